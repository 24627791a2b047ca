"""The shape of an output: told otherwise it is written anew, and nobody is asked; what is kept of a row is there."""

# ruff: noqa: ASYNC240  (files of a few KB)

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from fastllm.answers import Usage
from fastllm.errors import BadRequestError, ConfigError
from fastllm.formats.base import open_reader
from fastllm.formats.columns import Columns
from fastllm.jobs import publish
from fastllm.jobs.journal import JournalError
from fastllm.jobs.manifest import manifest_path, read_manifest
from fastllm.jobs.runner import Job, JobResult
from fastllm.jobs.sources import Sources
from fastllm.types import Request, Response

ROWS = 30


class Engine:
    """Answers with JSON, in a random order; questions in `bad` fail."""

    concurrency = 4

    def __init__(self, *bad: str, word: str = "re") -> None:
        self.bad = bad
        self.word = word
        self.asked: Counter[str] = Counter()
        self._rng = random.Random(5)

    async def execute(self, request: Request) -> Response:
        question = msgspec.json.decode(request.body)["messages"][-1]["content"]
        self.asked[question] += 1
        await asyncio.sleep(self._rng.random() / 200)
        if question in self.bad:
            raise BadRequestError("no", status_code=400)
        text = json.dumps({"word": f"{self.word}: {question}"})
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        return Response(body=body, usage=Usage(prompt_tokens=2, completion_tokens=3), finish_reason="stop")


def write(path: Path, rows: int = ROWS) -> Path:
    """An input in the format of its name; labels are of another type than text where the format has types."""
    table = [{"prompt": f"p{i}", "label": None if i == 3 else i} for i in range(rows)]
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(table), path)
    elif path.suffix == ".csv":
        path.write_text("prompt,label\n" + "".join(f"p{i},{'' if i == 3 else i}\n" for i in range(rows)))
    elif path.suffix == ".txt":
        path.write_text("".join(f"p{i}\n" for i in range(rows)))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


async def run(engine: Engine, source: Path | str, output: Path, **options: Any) -> JobResult:
    with open_reader(source, model="m", format=options.pop("input_format", None)) as reader:
        return await Job(engine, reader, output, **options).run()


def read(path: Path) -> list[dict[str, Any]]:
    """Give an output's rows; of CSV as text."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return parquet.read_table(path).to_pylist()


SHAPES: list[dict[str, Any]] = [
    {"columns": Columns.of("custom_id,text")},
    {"columns": Columns.of("text,custom_id")},
    {"columns": Columns.of(keep="label")},
    {"columns": Columns.of(keep="*", fields="word")},
    {"columns": Columns.of(failures=True)},
    {"order": "finished"},
    {"output_format": "tsv"},
    {"output_format": "parquet"},
    {},
]


async def test_another_shape_asks_nothing(tmp_path: Path) -> None:
    """Whatever of it changed: the output is what a first run would have written, and the same shape changes nothing."""
    source, output = write(tmp_path / "in.csv"), tmp_path / "out.csv"
    await run(Engine(), source, output)
    engine = Engine(word="another")
    contents = [output.read_bytes()]
    for shape in SHAPES:
        result = await run(engine, source, output, **shape)
        assert result.rewritten and result.nothing_to_do
        contents.append(output.read_bytes())
        result = await run(engine, source, output, **shape)
        assert result.nothing_to_do and not result.rewritten
        assert output.read_bytes() == contents[-1]
    assert not engine.asked
    assert contents[-1] == contents[0] and len(set(contents)) == len(SHAPES)
    fresh = tmp_path / "fresh.csv"
    await run(Engine(), source, fresh, columns=Columns.of(keep="*", fields="word"))
    assert fresh.read_bytes() == contents[4]


@pytest.mark.parametrize("order", ["input", "finished"])
@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.parquet", "in.txt"])
async def test_columns_stand_beside_their_own_answer(tmp_path: Path, name: str, order: str) -> None:
    """In the first run and in one that is told so later; also of rows that failed."""
    source, kept = write(tmp_path / name), ["prompt"] if name == "in.txt" else ["prompt", "label"]
    columns = Columns.of("custom_id,text,error_class", keep=kept, failures=True)
    first, later = tmp_path / "first.parquet", tmp_path / "later.parquet"
    assert (await run(Engine("p5"), source, first, columns=columns, order=order)).without_source == 0
    await run(Engine("p5"), source, later)
    engine = Engine("p5")
    result = await run(engine, source, later, columns=columns, order=order, retry_failed=False)
    assert (result.without_source, result.rewritten, sum(engine.asked.values())) == (0, True, 0)
    labels = list(range(ROWS)) if name == "in.parquet" else [str(i) for i in range(ROWS)]
    for output in (first, later):
        rows = read(output)
        assert {row["custom_id"] for row in rows} == {f"row-{i}" for i in range(ROWS)}
        if order == "input":
            assert [row["prompt"] for row in rows] == [f"p{i}" for i in range(ROWS)]
        for row in rows:
            index = int(row["custom_id"][4:])
            assert row["prompt"] == f"p{index}"
            if "label" in kept:
                assert row["label"] in ((None, "") if index == 3 else (labels[index],))
            if index == 5:
                assert (row["text"], row["error_class"]) == (None, "BadRequestError")
            else:
                assert json.loads(row["text"]) == {"word": f"re: p{index}"}


@pytest.mark.parametrize("order", ["input", "finished"])
async def test_columns_of_a_stream_are_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """It can be read only once; the same stream again asks nothing. What nobody kept then is gone, and told."""
    content = write(tmp_path / "in.csv").read_bytes()

    async def piped(engine: Engine, output: Path, **options: Any) -> JobResult:
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        with os.fdopen(reading) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return await run(engine, "-", output, input_format="csv", **options)

    columns, output = Columns.of(keep="prompt,label"), tmp_path / "out.csv"
    result = await piped(Engine(), output, columns=columns, order=order)
    assert (result.ok, result.without_source) == (ROWS, 0)
    found = read(output)
    assert sorted(int(row["prompt"][1:]) for row in found) == list(range(ROWS))
    assert all(json.loads(row["text"])["word"] == f"re: {row['prompt']}" for row in found)
    engine = Engine()
    assert (await piped(engine, output, columns=columns, order=order)).nothing_to_do
    assert read(output) == found
    plain = tmp_path / "plain.csv"
    await piped(engine, plain)
    asked = sum(engine.asked.values())
    result = await piped(engine, plain, columns=columns)
    assert (asked, sum(engine.asked.values()), result.without_source) == (ROWS, ROWS, ROWS)
    assert {row["prompt"] for row in read(plain)} == {""}


async def test_an_input_that_is_gone_costs_only_its_columns(tmp_path: Path) -> None:
    """Every answer is written; what could not be kept is counted."""
    source, output = write(tmp_path / "in.csv"), tmp_path / "out.csv"

    class Removing(Engine):
        async def execute(self, request: Request) -> Response:
            source.unlink(missing_ok=True)
            return await super().execute(request)

    result = await run(Removing(), source, output, columns=Columns.of(keep="label"))
    assert (result.ok, result.finished, result.without_source) == (ROWS, True, ROWS)
    assert len([row for row in read(output) if row["text"] and not row["label"]]) == ROWS


async def test_rows_that_are_others_now_keep_nothing(tmp_path: Path) -> None:
    """By force the answers stay; columns of another row would be a lie."""
    source, output = write(tmp_path / "in.csv"), tmp_path / "out.csv"
    await run(Engine(), source, output)
    source.write_text(source.read_text().replace("p7,7", "p7,8"))
    result = await run(Engine(), source, output, columns=Columns.of(keep="label"), force=True)
    assert result.without_source == 1
    assert [row["label"] for row in read(output)[6:9]] == ["6", "", "8"]


@pytest.mark.parametrize("order", ["input", "finished"])
async def test_writing_another_shape_that_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    """The old output stays until the new one is whole, and the next run does not take it for that."""
    source, output = write(tmp_path / "in.csv"), tmp_path / "out.csv"
    await run(Engine(), source, output)
    before = output.read_bytes()
    shape: dict[str, Any] = {"columns": Columns.of(keep="label"), "order": order}
    with monkeypatch.context() as patched:
        patched.setattr(publish, "open_writer", full)
        with pytest.raises(JournalError, match="run the job again to write them out"):
            await run(Engine(), source, output, **shape)
    assert output.read_bytes() == before
    engine = Engine()
    assert (await run(engine, source, output, **shape)).rewritten
    assert "label" in read(output)[0] and not engine.asked
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


async def test_an_earlier_jobs_output_is_not_taken_for_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun anew and broken off while it is written, the old answers still lie there; the next run replaces them."""
    source, output = write(tmp_path / "in.csv"), tmp_path / "out.csv"
    await run(Engine(word="old"), source, output)
    with monkeypatch.context() as patched:
        patched.setattr(publish, "open_writer", full)
        with pytest.raises(JournalError):
            await run(Engine(word="new"), source, output, overwrite=True)
    assert "old" in output.read_text()
    engine = Engine()
    assert (await run(engine, source, output)).rewritten
    assert "old" not in output.read_text() and "new" in output.read_text() and not engine.asked


def full(*args: Any, **options: Any) -> Any:
    raise OSError(28, "No space left on device")


async def test_the_manifest_tells_the_shape(tmp_path: Path) -> None:
    """And where a copied input came from."""
    source, output = write(tmp_path / "in.txt"), tmp_path / "out.dat"
    shape: dict[str, Any] = {"columns": Columns.of("text", keep="prompt"), "output_format": "csv"}
    await run(Engine(), source, output, origin="s3://bucket/in.txt", **shape)
    found = read_manifest(manifest_path(output))
    assert found is not None
    assert (found.input, found.input_format) == ("s3://bucket/in.txt", "txt")
    assert (found.shape["names"], found.shape["keep"], found.shape["format"]) == (["text"], ["prompt"], "csv")


async def test_columns_that_cannot_be_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    source, engine = write(tmp_path / "in.csv"), Engine()
    for output, columns in (("out.csv", Columns.of(keep="lable")), ("out.jsonl", Columns.of("text"))):
        with pytest.raises(ConfigError):
            await run(engine, source, tmp_path / output, columns=columns)
    assert not engine.asked
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_sources_in_any_order(tmp_path: Path) -> None:
    """A row beyond the end, or one of another content, is missing."""
    path = write(tmp_path / "in.jsonl", 3)
    lines = path.read_bytes().splitlines()
    with open_reader(path, model="m") as reader, Sources(reader, in_order=False, folder=tmp_path) as sources:
        assert [sources.of(i, crc32(lines[i]), b"") for i in (2, 0, 1, 0)] == [lines[i] for i in (2, 0, 1, 0)]
        assert (sources.of(1, 0, b""), sources.of(3, 0, b"x"), sources.missing) == (b"", b"", 2)
