"""`fastllm run` and `jobs export`: the same answers in other shapes, after a kill, and from and to remote places."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from fastllm.cli import cli
from fastllm.errors import ConfigError
from fastllm.testing import MockConfig, serve_in_thread
from kits.commands import settle

FASTLLM = [sys.executable, "-m", "fastllm.cli"]
PROMPTS = ["plain", "naïve, 日本語 🎉", 'a "quote"', "two\nlines", "tab\there"]


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig(latency=0.01)) as running:
        yield running


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Any) -> Path:
    """Each test runs in a directory of its own, with the mock as its provider."""
    settle(tmp_path, monkeypatch, server.base_url, progress="none")
    return tmp_path


def run(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*FASTLLM, *args], input=stdin, capture_output=True, timeout=60)
    return subprocess.CompletedProcess(args, done.returncode, done.stdout.decode(), done.stderr.decode())


def asked(server: Any) -> int:
    return int(server.stats.requests)


def write(name: str, prompts: list[str]) -> str:
    """An input of these prompts with a column beside them, in the format of its name."""
    path, plain = Path(name), name.removesuffix(".gz")
    rows = [{"custom_id": f"id-{i}", "prompt": prompt, "label": i} for i, prompt in enumerate(prompts)]
    if plain.endswith((".parquet", ".arrow")):
        table = pa.Table.from_pylist(rows)
        if plain.endswith(".parquet"):
            parquet.write_table(table, path)
        else:
            with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        return name
    text = io.StringIO(newline="")
    if plain.endswith(".txt"):
        text.writelines(prompt + "\n\n" for prompt in prompts)
    elif plain.endswith(".jsonl"):
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        table_of = csv.DictWriter(text, list(rows[0]), delimiter="\t" if plain.endswith(".tsv") else ",")
        table_of.writeheader()
        table_of.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return name


def read(name: str, format: str = "") -> list[dict[str, Any]]:
    """An output's rows, of JSON lines as they are."""
    kind = format or name.removesuffix(".gz").rpartition(".")[2]
    content = Path(name).read_bytes()
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    if kind == "parquet":
        return parquet.read_table(io.BytesIO(content)).to_pylist()
    if kind == "arrow":
        return pa.ipc.open_file(content).read_all().to_pylist()
    if kind == "jsonl":
        return [json.loads(line) for line in content.decode().split("\n")[:-1]]
    return list(csv.DictReader(io.StringIO(content.decode(), newline=""), delimiter="\t" if kind == "tsv" else ","))


def test_a_table_on_standard_input() -> None:
    """Named by --input-format; an output of any name by --output-format."""
    content = b'prompt\tlabel\n"a\nb"\t7\n'
    flags = ("--input-format", "tsv", "--output-format", "csv", "--keep", "label")
    done = run("run", "-", "-o", "out.data", *flags, stdin=content)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = read("out.data", "csv")
    assert row["label"] == "7" and "a\nb" in row["text"]
    done = run("run", "-", "-o", "more.csv", stdin=content)
    assert done.returncode == 2 and "line 1: not valid JSON" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--keep", "lable"),
            "--keep lable is no column of the input; did you mean 'label'? known are custom_id",
        ),
        (("--columns", "txet"), "--columns has no 'txet'; did you mean 'text'?"),
        (("--columns", "text", "-o", "out.jsonl"), "columns are for tables (CSV, Parquet, Arrow)"),
        (("--failures", "both"), "--failures must be one of file, rows; not 'both'"),
        (("--output-format", "xlsx"), "--output-format must be one of jsonl, csv, tsv, parquet, arrow; not 'xlsx'"),
        (("-o", "out.xlsx"), "or name it: --output-format jsonl"),
    ],
)
def test_shapes_that_cannot_be(server: Any, elsewhere: Path, flags: tuple[str, ...], words: str) -> None:
    """One line that speaks of the flag, nothing asked and nothing left behind; a dry run says the same."""
    before, command = asked(server), ("run", write("in.csv", PROMPTS), "-o", "out.csv", *flags)
    for more in ((), ("--dry-run",)) if flags[0] == "--keep" else ((),):
        done = run(*command, *more)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr
    assert asked(server) == before
    assert [path.name for path in elsewhere.iterdir()] == ["in.csv"]


def test_another_shape_is_written_from_the_same_answers(server: Any) -> None:
    """By the same command with other columns, and by `jobs export` into a file of its own."""
    command = ("run", write("in.parquet", PROMPTS), "-o", "out.csv")
    assert run(*command).returncode == 0
    before = asked(server)
    done = run(*command, "--keep", "label", "--columns", "text")
    assert done.stderr == "out.csv is written anew from the 5 answers that there were; nothing was asked\n"
    assert [list(row) for row in read("out.csv")] == [["label", "text"]] * 5
    done = run("jobs", "export", "out.csv", "e.parquet", "--keep", "*", "--columns", "custom_id,text,status")
    assert (done.returncode, done.stderr) == (0, "5 answers in e.parquet; 0 rows failed\n")
    rows = read("e.parquet")
    assert list(rows[0]) == ["custom_id", "prompt", "label", "text", "status"]
    assert [(row["label"], row["prompt"], row["status"]) for row in rows] == [
        (i, prompt, 200) for i, prompt in enumerate(PROMPTS)
    ]
    done = run("jobs", "export", "out.csv", "e.csv", "--keep", "lable")
    assert done.returncode == 2 and "did you mean 'label'?" in done.stderr and not Path("e.csv").exists()
    Path("in.parquet").unlink()
    done = run("jobs", "export", "out.csv", "e.csv", "--keep", "label")
    assert done.returncode == 2 and "cannot read" in done.stderr and done.stderr.count("\n") == 1
    assert run("jobs", "export", "out.csv", "e.jsonl").returncode == 0
    assert len(read("e.jsonl")) == 5
    assert asked(server) == before


def test_failures_beside_the_answers() -> None:
    """A bad row is a row of the output, in its place, and still in the file of failures."""
    Path("in.jsonl").write_text('{"prompt":"a","label":1}\n{"label":2}\n{"prompt":"c","label":3}\n')
    done = run("run", "in.jsonl", "-o", "out.csv", "--failures", "rows", "--keep", "label", "--columns", "text,error")
    assert done.returncode == 2
    rows = read("out.csv")
    assert [row["label"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["text"]) for row in rows] == [True, False, True]
    assert rows[1]["error"].startswith("line 2: the row is no request")
    assert json.loads(Path("out.csv.errors.jsonl").read_text())["label"] == 2


def test_a_parquet_job_that_was_killed_ends_in_the_same_bytes() -> None:
    """kill -9 in the middle, and the same command once more."""
    write("in.parquet", [f"question {i}" for i in range(400)])
    flags = ("--keep", "*", "--concurrency", "4")
    assert run("run", "in.parquet", "-o", "whole.parquet", *flags).returncode == 0
    process = subprocess.Popen([*FASTLLM, "run", "in.parquet", "-o", "out.parquet", *flags])
    journal, end = Path("out.parquet.journal"), time.monotonic() + 20
    while not (journal.exists() and journal.read_bytes().count(b'"choices"') > 20):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not Path("out.parquet").exists()
    done = run("run", "in.parquet", "-o", "out.parquet", *flags, "--summary-json", "s.json")
    assert done.returncode == 0
    assert json.loads(Path("s.json").read_text())["resumed"] >= 20
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


# Remote places; in this process, because what is in memory is nowhere else.


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def here(*args: str) -> int:
    status = cli.main(list(args), standalone_mode=False)
    assert isinstance(status, int)
    return status


def test_remote_places(memory: Any, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Input and output may lie elsewhere; the journal lies here, and `jobs export` fetches the input again."""
    memory.pipe("/in/rows.csv", b"prompt,label\na,1\nb,2\n")
    command = ("run", "memory://in/rows.csv", "-o", "memory://out/answers.csv", "--keep", "label")
    before = asked(server)
    assert here(*command) == 0
    assert capsys.readouterr().err == "uploaded to memory://out/answers.csv\n"
    assert memory.cat("/out/answers.csv") == Path("answers.csv").read_bytes()
    assert {path.name for path in Path().iterdir()} == {
        *("answers.csv", "answers.csv.journal", "answers.csv.manifest.json")
    }
    assert here(*command) == 0
    assert "has all 2 answers already" in capsys.readouterr().err
    assert asked(server) == before + 2
    cli.main(["jobs", "export", "answers.csv", "e.csv", "--keep", "label,prompt"], standalone_mode=False)
    assert [(row["label"], row["prompt"]) for row in read("e.csv")] == [("1", "a"), ("2", "b")]


def test_an_upload_that_fails_loses_nothing(
    memory: Any, server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not called done; the next run asks nothing and uploads."""
    write("in.jsonl", PROMPTS)
    command = ("run", "in.jsonl", "-o", "memory://out/answers.jsonl", "--summary-json", "s.json")

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "put_file", refuse)
        assert here(*command) == 2
    told = capsys.readouterr().err
    assert "cannot write memory://out/answers.jsonl: OSError: no room; every answer is in answers.jsonl" in told
    assert "uploaded" not in told
    assert json.loads(Path("s.json").read_text())["ok"] == 5
    assert not memory.exists("/out/answers.jsonl")
    before = asked(server)
    assert here(*command) == 0
    assert "uploaded to memory://out/answers.jsonl" in capsys.readouterr().err
    assert len(memory.cat("/out/answers.jsonl").splitlines()) == 5
    assert asked(server) == before


def test_a_remote_output_of_somebody_else(memory: Any, server: Any) -> None:
    """Is refused before anything is asked, and written over by --overwrite."""
    write("in.jsonl", PROMPTS)
    memory.pipe("/out/answers.jsonl", b"theirs")
    before = asked(server)
    for more in ((), ("--dry-run",)):
        with pytest.raises(ConfigError, match="exists and is of no job in this directory"):
            here("run", "in.jsonl", "-o", "memory://out/answers.jsonl", *more)
    assert (asked(server), memory.cat("/out/answers.jsonl")) == (before, b"theirs")
    assert here("run", "in.jsonl", "-o", "memory://out/answers.jsonl", "--overwrite") == 0
    assert len(memory.cat("/out/answers.jsonl").splitlines()) == 5
