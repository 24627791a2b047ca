"""Parquet and Arrow, and every other format in and out: ten thousand rows with unicode, nulls and nested columns."""

from __future__ import annotations

import csv
import datetime
import decimal
import gc
import gzip
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from fastllm.answers import Usage
from fastllm.errors import ConfigError
from fastllm.formats.base import check_output, open_reader, open_writer, reopened
from fastllm.formats.columns import Columns
from fastllm.formats.jsonl import JSONLReader
from fastllm.formats.rows import Recipe
from fastllm.types import Outcome, Response, Row

WORDS = ["naïve", "日本語", "emoji 🎉", 'quote "', "comma,", "line\nend", "tab\t", "\u2028", "zero\u200dwidth", "a b"]
ROWS = 10_000


@pytest.fixture(scope="module")
def people() -> list[dict[str, Any]]:
    """Rows as a public data set has them: some columns are empty, some hold lists and structs."""
    rng = random.Random(4)

    def one(i: int) -> dict[str, Any]:
        return {
            "custom_id": f"case-{i}",
            "prompt": " ".join(rng.choices(WORDS, k=6)),
            "label": rng.choice([None, 0, 1, 2]),
            "score": rng.choice([None, rng.random()]),
            "flag": rng.random() < 0.5,
            "tags": rng.choice([None, [], rng.choices(WORDS, k=2)]),
            "meta": rng.choice([None, {"source": rng.choice(WORDS), "page": i}]),
        }

    return [one(i) for i in range(ROWS)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
    elif kind in ("arrow", "feather"):
        with pa.OSFile(str(path), "wb") as sink:
            table = pa.Table.from_pylist(rows)
            make = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
            with make(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=3000)
    else:
        content = io.StringIO(newline="")
        if kind == "jsonl":
            content.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif kind == "txt":
            content.writelines(row["prompt"].replace("\n", " ") + "\n" for row in rows)
        else:
            table = csv.DictWriter(content, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            for row in rows:
                cells = {name: _cell(value) for name, value in row.items()}
                table.writerow(cells)
        data = content.getvalue().encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _cell(value: Any) -> Any:
    return "" if value is None else json.dumps(value) if isinstance(value, list | dict | bool) else value


def prompt_of(row: Row) -> str:
    assert row.request is not None, row.error
    return str(msgspec.json.decode(row.request.body)["messages"][0]["content"])


def outcome(row: Row) -> Outcome:
    body = {"choices": [{"message": {"content": prompt_of(row)[::-1]}, "finish_reason": "stop"}], "model": "m"}
    usage = Usage(prompt_tokens=row.index, completion_tokens=2)
    return Outcome(
        index=row.index,
        custom_id=row.custom_id,
        response=Response(body=msgspec.json.encode(body), usage=usage, cost=0.5, attempts=1),
    )


@pytest.mark.parametrize("source", ["jsonl", "jsonl.gz", "csv", "tsv", "txt", "txt.gz", "parquet", "arrow", "feather"])
def test_every_prompt_arrives_as_it_was(tmp_path: Path, people: list[dict[str, Any]], source: str) -> None:
    path = tmp_path / f"in.{source}"
    write_rows(path, people)
    expected = [row["prompt"] for row in people]
    if source.startswith("txt"):
        expected = [prompt.replace("\n", " ").strip(" \t") for prompt in expected]
    with open_reader(path, model="m") as reader:
        rows = list(reader)
    assert [prompt_of(row) for row in rows] == expected
    ids = [f"row-{i}" if source.startswith("txt") else f"case-{i}" for i in range(ROWS)]
    assert [row.custom_id for row in rows] == ids


@pytest.fixture(scope="module")
def answers(people: list[dict[str, Any]]) -> list[Outcome]:
    lines = io.BytesIO(b"".join(msgspec.json.encode(row) + b"\n" for row in people))
    return [outcome(row) for row in JSONLReader(lines, Recipe(model="m"))]


@pytest.mark.parametrize("out", ["jsonl", "jsonl.gz", "csv", "tsv.gz", "parquet", "arrow"])
def test_every_answer_is_written_as_it_was(
    tmp_path: Path, people: list[dict[str, Any]], answers: list[Outcome], out: str
) -> None:
    """Another library reads it back; equal rows give equal bytes."""
    target, contents = tmp_path / f"out.{out}", []
    for _ in range(2):
        with target.open("wb") as file:
            writer = open_writer(file, target)
            for answer in answers:
                writer.write(answer)
            writer.close()
        contents.append(target.read_bytes())
    assert contents[0] == contents[1]
    assert list(read_back(target)) == [(row["custom_id"], row["prompt"][::-1]) for row in people]


def read_back(path: Path) -> Iterator[tuple[str, str]]:
    """Give id and text of each answer, by another library than wrote them."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        for row in parquet.read_table(path).to_pylist():
            yield row["custom_id"], row["text"]
        return
    if kind == "arrow":
        with pa.ipc.open_file(path) as file:
            for row in file.read_all().to_pylist():
                yield row["custom_id"], row["text"]
        return
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    if kind == "jsonl":
        for line in text.split("\n")[:-1]:
            fields = json.loads(line)
            yield fields["custom_id"], fields["response"]["body"]["choices"][0]["message"]["content"]
    else:
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter="," if kind == "csv" else "\t"):
            yield row["custom_id"], row["text"]


@pytest.mark.parametrize(("source", "out"), [("parquet", "arrow"), ("arrow", "parquet")])
def test_kept_columns_keep_their_types(tmp_path: Path, people: list[dict[str, Any]], source: str, out: str) -> None:
    """Numbers stay numbers, lists lists, structs structs, and nulls nulls."""
    path, target = tmp_path / f"in.{source}", tmp_path / f"out.{out}"
    write_rows(path, people)
    names = ["label", "score", "flag", "tags", "meta"]
    with open_reader(path, model="m") as reader, target.open("wb") as file:
        writer = open_writer(file, target, Columns.of(keep=names), like=reader)
        for row in reader:
            writer.write(Outcome(index=row.index, custom_id=row.custom_id), row.source)
        writer.close()
    table = parquet.read_table(target) if out == "parquet" else pa.ipc.open_file(target).read_all()
    assert table.column_names == [
        *("custom_id", *names),
        *("text", "finish_reason", "prompt_tokens", "completion_tokens"),
    ]
    assert table.select(names).to_pylist() == [{name: row[name] for name in names} for row in people]


def test_values_of_other_types(tmp_path: Path) -> None:
    """Each has its text; nanoseconds are cut."""
    path = tmp_path / "in.parquet"
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    columns = {
        "day": pa.array([datetime.date(2026, 1, 2)]),
        "moment": pa.array([1767323045678901999], type=pa.timestamp("ns", "UTC")),
        "price": pa.array([decimal.Decimal("1.50")]),
        "blob": pa.array([b"\xff\x00"]),
        "nan": pa.array([float("nan")]),
        "map": pa.array([[("a", 1)]], type=pa.map_(pa.string(), pa.int64())),
        "word": pa.array(["x"]).dictionary_encode(),
    }
    parquet.write_table(pa.table(columns), path)
    prompt = "{day}|{moment}|{price}|{blob}|{map}|{word}"
    with open_reader(path, model="m", prompt=prompt) as reader:
        (row,) = reader
    assert prompt_of(row) == '2026-01-02|2026-01-02T03:04:05.678901Z|1.50|/wA=|[["a",1]]|x'
    assert moment.isoformat() == "2026-01-02T03:04:05.678901+00:00"
    with open_reader(path, model="m", prompt="{word}") as reader, reopened(reader) as again:
        assert [prompt_of(row) for row in again] == ["x"]


def test_requests_in_columns(tmp_path: Path) -> None:
    """Messages as lists of structs, parameters as numbers or as JSON in text; a null is no parameter."""
    path = tmp_path / "in.parquet"
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}], "temperature": 0.5, "stop": '["x"]'},
        {"messages": [{"role": "user", "content": "b", "name": "n"}], "temperature": None, "stop": None},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    with open_reader(path, model="m") as reader:
        bodies = [msgspec.json.decode(row.request.body) for row in reader if row.request is not None]
    assert bodies == [
        {"messages": [{"role": "user", "content": "a"}], "temperature": 0.5, "stop": ["x"]},
        {"messages": [{"role": "user", "content": "b", "name": "n"}]},
    ]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A file that is none, one without a prompt, a template without its column, a compressed one: said at once."""
    broken = tmp_path / "in.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match=r"cannot read .*in\.parquet as Parquet"):
        open_reader(broken, model="m")
    parquet.write_table(pa.table({"text": ["a"]}), broken)
    with pytest.raises(ConfigError, match="has no column 'prompt'"):
        open_reader(broken, model="m")
    with pytest.raises(ConfigError, match="txet"):
        open_reader(broken, model="m", prompt="{txet}")
    with pytest.raises(ConfigError, match=r"leave the \.gz away"):
        open_reader(tmp_path / "in.parquet.gz", model="m")
    with pytest.raises(ConfigError, match="cannot be read from standard input"):
        open_reader("-", model="m", format="parquet")
    with pytest.raises(ConfigError, match=r"input_format must be one of jsonl.*not 'xml'"):
        open_reader(broken, model="m", format="xml")


def test_a_damaged_group_in_the_middle(tmp_path: Path) -> None:
    """What comes before it is there, and the error names the row."""
    path = tmp_path / "in.parquet"
    prompts = [f"{i} {random.Random(i).random()}" for i in range(5000)]
    parquet.write_table(pa.table({"prompt": prompts}), path, row_group_size=1024, compression="zstd")
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at : at + 2000] = bytes(2000)
    path.write_bytes(content)
    read = 0
    with open_reader(path, model="m") as reader, pytest.raises(ConfigError, match=r"after row \d+"):
        for _ in reader:
            read += 1
    assert 1024 <= read < 5000


def test_a_null_is_named_where_the_template_wants_it(tmp_path: Path) -> None:
    """It is no missing column: the others are there, and so is this one."""
    path = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"text": ["a", None], "n": [None, 2]}), path)
    with open_reader(path, model="m", prompt="{text}") as reader:
        first, second = reader
    assert prompt_of(first) == "a"
    assert second.error is not None
    assert second.error.message == "line 2: column 'text' is null, so the template cannot be filled"


@pytest.mark.parametrize("name", ["o.parquet.gz", "o.zst"])
def test_a_table_that_is_compressed_inside_gets_no_other_compression(name: str) -> None:
    with pytest.raises(ConfigError, match=r"compressed inside; leave the \.\w+ away"):
        check_output(Path(name), format="parquet")


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow"])
def test_a_writer_that_is_given_up_is_quiet(tmp_path: Path, name: str) -> None:
    """Its file is closed by then, and nobody waits for its end."""
    with (tmp_path / name).open("wb") as file:
        writer = open_writer(file, Path(name))
        writer.write(Outcome(index=0, custom_id="a"))
    del writer
    gc.collect()  # what it raised would fail this test
