"""Remote files: read by a copy, written by an upload, over fsspec's memory file system and a real HTTP server."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fastllm.errors import ConfigError, MissingExtra
from fastllm.formats.base import open_reader
from fastllm.formats.remote import is_remote, local_places

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def memory() -> Iterator[Any]:
    """The memory file system, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def web(elsewhere: Path) -> Iterator[str]:
    """A web server of a folder."""
    folder = elsewhere / "served"
    folder.mkdir()
    (folder / "in.csv").write_text("prompt\na\nb\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["s3://b/k.csv", "https://h/x", "memory://a", "abfs+x://c", "file:///tmp/x"])
def test_urls(name: str) -> None:
    assert is_remote(name)


@pytest.mark.parametrize("name", ["in.csv", "/a/b.jsonl", "-", "C:\\in.csv", "a:b", "", "://x", "dir/a b://c"])
def test_names_of_files(name: str) -> None:
    assert not is_remote(name)


def test_local_names_stay_as_they_are() -> None:
    with local_places("in.csv", Path("out.csv")) as places:
        assert (places.source, places.output, places.url) == ("in.csv", Path("out.csv"), None)
        places.upload(Path("nothing"))


def test_an_input_over_http(web: str) -> None:
    """It is copied, read by its suffix, and the copy is gone afterwards."""
    with local_places(f"{web}/in.csv?version=3", "out.csv") as places:
        copy = Path(places.source)
        assert copy.name == "in.csv"
        with open_reader(places.source, model="m") as reader:
            assert [row.custom_id for row in reader] == ["row-0", "row-1"]
    assert not copy.parent.exists()


def test_an_input_that_is_not_there(web: str, memory: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot read http://.*/no\.csv: there is no such file"):
        local_places(f"{web}/no.csv", "out.csv").__enter__()
    with pytest.raises(ConfigError, match=r"cannot read memory://no\.csv: there is no such file"):
        local_places("memory://no.csv", "out.csv").__enter__()
    with pytest.raises(ConfigError, match=r"cannot read http://127\.0\.0\.1:1/in\.csv: ") as told:
        local_places(f"http://user:{SECRET}@127.0.0.1:1/in.csv?signature={SECRET}", "out.csv").__enter__()
    assert SECRET not in str(told.value)


@pytest.mark.parametrize("name", ["nosuch://a/b.csv", "memory://folder/"])
def test_outputs_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError):
        local_places("in.csv", name).__enter__()


def test_an_output_is_made_here_and_then_uploaded(elsewhere: Path, memory: Any) -> None:
    with local_places("in.csv", "memory://bucket/day/out.csv") as places:
        assert places.output == Path("out.csv")
        places.output.write_text("answers")
        failures = Path("out.csv.errors.jsonl")
        failures.write_text("failures")
        places.upload(failures)
        assert memory.cat("/bucket/day/out.csv") == b"answers"
        assert memory.cat("/bucket/day/out.csv.errors.jsonl") == b"failures"


def test_what_is_there_already_is_not_sent_again(memory: Any) -> None:
    with local_places("in.csv", "memory://out.csv") as places:
        places.output.write_text("1234")
        memory.pipe("/out.csv", b"same")
        places.upload(None, only_if_missing=True)
        assert memory.cat("/out.csv") == b"same"
        memory.pipe("/out.csv", b"torn, or another")
        places.upload(None, only_if_missing=True)
        assert memory.cat("/out.csv") == b"1234"


def test_a_failed_upload_says_where_the_answers_are(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise PermissionError("no\nmore")

    monkeypatch.setattr(type(memory), "put_file", broken)
    with local_places("in.csv", f"memory://user:{SECRET}@out.csv") as places:
        places.output.write_text("answers")
        with pytest.raises(ConfigError, match=r"PermissionError: no; every answer is in .*, run the job again") as told:
            places.upload(None)
    assert SECRET not in str(told.value)


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec itself, or the one that knows a service."""
    with pytest.raises(MissingExtra, match="s3:// needs a package"):
        monkeypatch.setitem(sys.modules, "s3fs", None)
        local_places("s3://bucket/in.csv", "out.csv").__enter__()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fastllm\[remote\]'"):
        local_places("memory://in.csv", "out.csv").__enter__()
