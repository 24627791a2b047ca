"""Remote files: fetched whole, uploaded whole, never over somebody else's; and nothing is lost where that fails."""

from __future__ import annotations

import contextlib
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
from fastllm.formats.remote import is_remote, local_places


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, which is one for the whole process."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a directory over HTTP; /secret is forbidden."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/secret"):
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def places(source: str, output: str, **options: Any) -> Any:
    return local_places(source, output, **options)


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        *[(name, True) for name in ("s3://b/k", "gs://b/k", "https://h/f", "memory://f", "git+ssh://h/f")],
        *[(name, False) for name in ("in.jsonl", "-", "/a://b", "./a", "C:\\a", "://x", "a:/b")],
    ],
)
def test_a_url_is_told_from_a_file(name: str, remote: bool) -> None:
    assert is_remote(name) == remote


def test_names_of_files_stay_as_they_are(tmp_path: Path) -> None:
    with places("in.jsonl", "out/o.jsonl") as found:
        assert (found.source, found.output, found.origin, found.url) == ("in.jsonl", Path("out/o.jsonl"), None, None)
        assert (found.shown, found.target) == ("in.jsonl", "out/o.jsonl")
        found.upload(tmp_path / "none")
    with places("-", "o.jsonl") as found:
        assert found.source == "-"


def test_an_input_is_fetched_and_taken_away_again(memory: Any) -> None:
    """Under its own name, whose suffix tells the format."""
    memory.pipe("/data/in.csv.gz", b"abc")
    with places("memory://data/in.csv.gz", "o.jsonl") as found:
        source = Path(found.source)
        assert (source.name, source.read_bytes(), found.shown) == ("in.csv.gz", b"abc", "memory://data/in.csv.gz")
    assert not source.parent.exists()


def test_an_input_over_http(tmp_path: Path) -> None:
    """A query belongs to the request, not to the name, and is told to nobody."""
    (tmp_path / "in.csv").write_bytes(b"prompt\na\n")
    with served(tmp_path) as url:
        with places(f"{url}/in.csv?signature=hush/x.jsonl", "o.jsonl") as found:
            assert (Path(found.source).name, Path(found.source).read_bytes()) == ("in.csv", b"prompt\na\n")
            assert found.shown == f"{url}/in.csv"
        for name, words in (("gone.csv", "there is no such file"), ("secret.csv", "403")):
            with pytest.raises(ConfigError, match=f"cannot read {url}/{name}: .*{words}") as caught:
                places(f"{url}/{name}?signature=hush", "o.jsonl").__enter__()
            assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "output", "words"),
    [
        ("memory://data/gone.csv", "o.jsonl", "cannot read memory://data/gone.csv: there is no such file"),
        ("memory://data", "o.jsonl", "cannot read memory://data: "),
        ("nobody://x/in.csv", "o.jsonl", "cannot open nobody://x/in.csv: .*not known"),
        ("in.csv", "nobody://x/o.csv", "cannot open nobody://x/o.csv: .*not known"),
        ("in.csv", "memory://data/", "the output memory://data/ must end with a file's name"),
        ("in.csv", "https://user:hush@h/o.csv?s=hush", "the output https://h/o.csv cannot be written over HTTP"),
    ],
)
def test_places_that_are_none(memory: Any, source: str, output: str, words: str) -> None:
    memory.pipe("/data/in.csv", b"")
    with pytest.raises(ConfigError, match=words) as caught:
        places(source, output).__enter__()
    assert "hush" not in str(caught.value)


def test_an_output_and_its_failures_go_up(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of failures that are none any more is taken away."""
    monkeypatch.chdir(tmp_path)
    memory.mkdir("/out")
    with places("in.jsonl", "memory://out/o.jsonl", is_ours=lambda path: False) as found:
        assert (found.output, found.target) == (Path("o.jsonl"), "memory://out/o.jsonl")
        Path("o.jsonl").write_bytes(b"answers")
        Path("o.errors.jsonl").write_bytes(b"failures")
        found.upload(Path("o.errors.jsonl"))
        assert (memory.cat("/out/o.jsonl"), memory.cat("/out/o.errors.jsonl")) == (b"answers", b"failures")
        Path("o.errors.jsonl").unlink()
        Path("o.jsonl").write_bytes(b"another")  # as long as the first
        found.upload(Path("o.errors.jsonl"))
    assert memory.cat("/out/o.jsonl") == b"another"
    assert not memory.exists("/out/o.errors.jsonl")


def test_somebody_elses_output_is_not_replaced(memory: Any) -> None:
    """Which is said before an input is fetched; the job's own, or one that may be written over, is replaced."""
    memory.pipe("/out/o.jsonl", b"theirs")
    with pytest.raises(ConfigError, match=r"memory://out/o\.jsonl exists and is of no job in this directory"):
        places("memory://out/gone.csv", "memory://out/o.jsonl", is_ours=lambda path: False).__enter__()
    with places("in.csv", "memory://out/o.jsonl", is_ours=lambda path: path == Path("o.jsonl")) as found:
        assert found.output == Path("o.jsonl")


def test_an_upload_that_fails(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the place, the reason and the way out; a signature in what is said is left out."""
    monkeypatch.chdir(tmp_path)
    Path("o.jsonl").write_bytes(b"answers")

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError("PUT https://user:hush@h/o.jsonl?signature=hush: denied\nmore")

    with places("in.jsonl", "memory://out/o.jsonl") as found:
        monkeypatch.setattr(type(memory), "put_file", refuse)
        with pytest.raises(ConfigError) as caught:
            found.upload(Path("o.errors.jsonl"))
    assert str(caught.value) == (
        "cannot write memory://out/o.jsonl: PermissionError: PUT https://h/o.jsonl denied; every answer is in o.jsonl: "
        "run the job again, which asks nothing any more, to upload it"
    )


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named, with the command that installs it where it is FastLLM's."""
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "fsspec", None)
        for source, output in (("s3://b/in.csv", "o.csv"), ("in.csv", "s3://b/o.csv")):
            with pytest.raises(MissingExtra, match=r"pip install 'fastllm\[remote\]'"):
                places(source, output).__enter__()

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingExtra, match="s3:// needs a package: Install s3fs"):
        places("s3://b/in.csv", "o.csv").__enter__()
