"""`fastllm run` from every format into every other, as a user calls it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from fastllm.cli import cli
from fastllm.errors import ConfigError
from fastllm.testing import MockConfig, serve_in_thread
from kits.commands import settle

ROWS = [
    {"id": f"r{i}", "prompt": f"Wie heißt {i}? 日本", "label": i if i % 2 else None, "tags": ["a", "ü"][: i % 3]}
    for i in range(20)
]


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig()) as running:
        yield running


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Any) -> Path:
    """Each test runs in a directory of its own, with the mock as its provider."""
    settle(tmp_path, monkeypatch, server.base_url, progress="none")
    return tmp_path


def run(*args: str) -> Result:
    result = CliRunner().invoke(cli, list(args), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def as_csv() -> str:
    content = io.StringIO()
    writer = csv.DictWriter(content, list(ROWS[0]))
    writer.writeheader()
    writer.writerows({**row, "tags": json.dumps(row["tags"])} for row in ROWS)
    return content.getvalue()


def make(name: str) -> str:
    """Write the rows in the format that the name says."""
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), name, row_group_size=6)
    elif kind == "arrow":
        rows = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_file(name, rows.schema) as writer:
            writer.write_table(rows)
    else:
        text = {
            "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
            "txt": "\ufeff" + "".join(f"{row['prompt']}\r\n\r\n" for row in ROWS),
            "csv": as_csv(),
        }[kind]
        Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return name


def answers(name: str) -> list[str]:
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        return parquet.read_table(name).column("text").to_pylist()
    if kind == "arrow":
        return pa.ipc.open_file(name).read_all().column("text").to_pylist()
    data = Path(name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    if kind == "jsonl":
        bodies = [json.loads(line)["response"]["body"] for line in text.splitlines()]
        return [body["choices"][0]["message"]["content"] for body in bodies]
    return [row["text"] for row in csv.DictReader(io.StringIO(text), delimiter="\t" if kind == "tsv" else ",")]


SOURCES = ["in.jsonl", "in.jsonl.gz", "in.csv", "in.txt", "in.txt.gz", "in.parquet", "in.arrow"]
OUTPUTS = ["out.jsonl", "out.csv.gz", "out.tsv", "out.parquet", "out.arrow"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_format_into_every_other(source: str, output: str) -> None:
    """The mock's answers end with the question: each is behind its own, in the order of the input."""
    assert run("run", make(source), "-o", output).return_value == 0
    found = answers(output)
    assert len(found) == len(ROWS)
    assert all(text.endswith(row["prompt"]) for text, row in zip(found, ROWS, strict=True))


@pytest.mark.parametrize("source", SOURCES)
def test_every_format_keeps_its_columns(source: str) -> None:
    """The rows are read once more for them, and are the same."""
    run("run", make(source), "-o", "out.jsonl", "--keep", "*")
    kept = [json.loads(line)["keep"] for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in ROWS]
    if "txt" not in source:
        assert [row["id"] for row in kept] == [row["id"] for row in ROWS]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_standard_input_in_every_format(kind: str) -> None:
    command = [sys.executable, "-m", "fastllm.cli", "run", "-", "--input-format", kind, "-o", "out.csv"]
    done = subprocess.run(command, input=Path(make(f"in.{kind}")).read_bytes(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(answers("out.csv")) == len(ROWS)


def test_columns_beside_the_answers(elsewhere: Path) -> None:
    run("run", make("in.csv"), "-o", "out.csv", "--keep", "label,tags", "--columns", "custom_id,text,attempts")
    first, second, third = Path("out.csv").read_text().splitlines()[:3]
    assert first == "custom_id,label,tags,text,attempts"
    assert second.startswith("r0,,[],")
    assert third.startswith('r1,1,"[""a""]",')
    assert third.endswith(",1")
    again = run("run", "in.csv", "-o", "out.csv", "--columns", "text")
    assert Path("out.csv").read_text().splitlines()[0] == "text"
    assert "written anew from the 20 answers" in again.stderr


def test_failures_as_rows() -> None:
    make("in.parquet")
    with serve_in_thread(MockConfig()) as server:
        server.when(lambda body: "heißt 7?" in json.dumps(body, ensure_ascii=False), "400")
        options = ["--base-url", server.base_url, "--failures", "rows", "--keep", "*"]
        assert run("run", "in.parquet", "-o", "out.parquet", *options).return_value == 1
    found = parquet.read_table("out.parquet").to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert [row["custom_id"] for row in found if row["error_class"]] == ["r7"]
    assert found[7]["text"] is None
    assert [row["tags"] for row in found] == [row["tags"] for row in ROWS]
    assert len(Path("out.parquet.errors.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["in.csv", "-o", "out.csv", "--columns", "txt"], r"--columns has no 'txt'; did you mean 'text'"),
        (
            ["in.csv", "-o", "out.csv", "--keep", "lable"],
            r"keep='lable' is no column of the input; did you mean 'label'",
        ),
        (["in.csv", "-o", "out.jsonl", "--columns", "text"], "columns are for tables"),
        (["in.csv", "-o", "out.xlsx"], "output_format='jsonl'"),
        (["in.xlsx", "-o", "out.csv"], "input_format='jsonl'"),
        (["in.csv", "-o", "out.csv", "--input-format", "xls"], "input.format must be one of jsonl, csv"),
        (["no.parquet", "-o", "out.csv"], r"cannot read no\.parquet"),
        (["-", "--input-format", "parquet", "-o", "out.csv"], "cannot be read from standard input"),
        (["memory://no.csv", "-o", "out.csv"], "there is no such file"),
    ],
)
def test_what_cannot_be(elsewhere: Path, args: list[str], words: str) -> None:
    make("in.csv")
    with pytest.raises(ConfigError, match=words):
        run("run", *args)
    assert [path.name for path in elsewhere.iterdir()] == ["in.csv"]
