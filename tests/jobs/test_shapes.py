"""What a job's output holds beside the answers, and in which format; also after a crash and in another shape."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from fastllm.answers import Usage
from fastllm.errors import BadRequestError, ConfigError
from fastllm.formats.base import open_reader
from fastllm.formats.columns import Columns
from fastllm.jobs.runner import Job, JobResult
from fastllm.types import Request, Response

ROWS = 60
FORMATS = ("jsonl", "jsonl.gz", "csv", "tsv.gz", "parquet", "arrow")


class Fake:
    """Answers with JSON about the question, in a random order; questions in `bad` fail."""

    concurrency = 8

    def __init__(self, bad: set[str] | None = None) -> None:
        self.bad = bad or set()
        self.asked: Counter[str] = Counter()
        self.half = asyncio.Event()
        self._rng = random.Random(7)

    async def execute(self, request: Request) -> Response:
        question = msgspec.json.decode(request.body)["messages"][-1]["content"]
        self.asked[question] += 1
        if len(self.asked) == ROWS // 2:
            self.half.set()
        await asyncio.sleep(self._rng.random() / 1000)
        if question in self.bad:
            error = BadRequestError("no", status_code=400)
            error.attempts = 1
            raise error
        text = json.dumps({"length": len(question), "of": {"what": question}})
        body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "model": "m-1"})
        return Response(body=body.encode(), usage=Usage(prompt_tokens=2, completion_tokens=3))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A table with unicode, nulls and nested columns."""
    rows = [
        {"id": f"r{i}", "prompt": f"q{i} é\u2028", "label": i if i % 3 else None, "tags": ["日本", ""][: i % 3]}
        for i in range(ROWS)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=7)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in.parquet"


async def run(engine: Any, source: Path, output: Path, columns: Columns | None = None, **options: Any) -> JobResult:
    with open_reader(source, model="m") as reader:
        return await Job(engine, reader, output, columns=columns or Columns(), **options).run()


def table(output: Path) -> list[dict[str, Any]]:
    if output.suffix == ".parquet":
        return parquet.read_table(output).to_pylist()
    return list(csv.DictReader(io.StringIO(output.read_text(), newline="")))


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_job_that_was_killed_comes_to_the_same_bytes(source: Path, tmp_path: Path, kind: str) -> None:
    """Every format, with columns of the row and of the answer, and rows that failed in their place."""
    columns = Columns.of(keep="label,tags", fields="length,of.what", failures=True)
    bad = {f"q{i} é\u2028" for i in (5, 6)}
    whole, output = tmp_path / f"whole.{kind}", tmp_path / f"out.{kind}"
    assert (await run(Fake(bad), source, whole, columns)).failed == 2

    engine = Fake(bad)
    with open_reader(source, model="m") as reader:
        job = Job(engine, reader, output, columns=columns, grace=0)
        task = asyncio.create_task(job.run())
        await engine.half.wait()
        job.stop()
        assert (await task).interrupted
    assert not output.exists()
    result = await run(Fake(bad), source, output, columns)
    assert (result.ok, result.failed) == (ROWS - 2, 2)
    assert output.read_bytes() == whole.read_bytes()


async def test_kept_columns_and_fields_of_a_table(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    columns = Columns.of("custom_id,error_class", "label,tags", "length,of.what", failures=True)
    await run(Fake({"q7 é\u2028"}), source, output, columns)
    found = table(output)
    assert [row["custom_id"] for row in found] == [f"r{i}" for i in range(ROWS)]
    assert found[8] == {
        "custom_id": "r8",
        "label": 8,
        "tags": ["日本", ""],
        "error_class": None,
        "length": "5",
        "of.what": "q8 é\u2028",
    }
    assert found[7]["error_class"] == "BadRequestError"
    assert (found[7]["label"], found[7]["length"]) == (7, None)
    assert found[9]["label"] is None


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (Columns.of("text"), "csv"),
        (Columns.of(keep="label"), "csv"),
        (Columns.of(fields="length"), "csv"),
        (Columns.of(failures=True), "csv"),
        (Columns(), "tsv"),
    ],
)
async def test_another_shape_is_written_without_asking(
    source: Path, tmp_path: Path, columns: Columns, kind: str
) -> None:
    """The answers are there: a run that wants them otherwise writes them anew, and back again."""
    output = tmp_path / "out.csv"
    await run(Fake(), source, output)
    before = output.read_bytes()
    engine = Fake()
    result = await run(engine, source, output, columns, output_format=kind)
    assert (result.ok, result.total, dict(engine.asked)) == (ROWS, ROWS, {})
    assert output.read_bytes() != before
    await run(engine, source, output)
    assert output.read_bytes() == before
    assert not engine.asked


@pytest.mark.parametrize("order", ["input", "finished"])
async def test_columns_of_a_stream_are_those_that_were_answered(source: Path, tmp_path: Path, order: Any) -> None:
    """What can be read only once is kept with its answer; and so it is where rows come as they finish."""
    output = tmp_path / "out.csv"
    piped = tmp_path / "pipe.jsonl"
    lines = (tmp_path / "in.jsonl").read_bytes()
    piped.write_bytes(lines)
    with open_reader(piped, model="m") as reader:
        reader.path = None if order == "input" else reader.path
        job = Job(Fake(), reader, output, columns=Columns.of(keep="label,id"), order=order)
        await job.run()
    found = table(output)
    assert sorted(row["custom_id"] for row in found) == sorted(f"r{i}" for i in range(ROWS))
    assert all(row["id"] == row["custom_id"] for row in found)
    assert all(row["label"] == ("" if int(row["id"][1:]) % 3 == 0 else row["id"][1:]) for row in found)


async def test_columns_of_rows_that_are_not_there_any_more(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are empty, and counted, and no other row's; the answers are there."""
    source = tmp_path / "in.jsonl"
    output = tmp_path / "out.csv"
    await run(Fake(), source, output)
    lines = source.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace("q3", "other")
    source.write_text("".join(lines))
    result = await run(Fake(), source, output, Columns.of(keep="label"), force=True)
    assert result.without_source == 1
    found = table(output)
    assert [row["label"] for row in found[1:5]] == ["1", "2", "", "4"]
    assert all("length" in row["text"] for row in found)


@pytest.mark.parametrize(
    ("columns", "name", "words"),
    [
        (Columns.of(keep="lable"), "out.csv", "keep='lable' is no column of the input; did you mean 'label'"),
        (Columns.of(keep="lable"), "out.jsonl", "keep='lable'"),
        (Columns.of("text"), "out.jsonl", "columns are for tables"),
        (Columns(), "out.parquet.gz", r"leave the \.gz away"),
        (Columns(), "out.txt", "cannot tell the format of"),
    ],
)
async def test_what_cannot_be_written_is_said_before_anything_is_sent(
    source: Path, tmp_path: Path, columns: Columns, name: str, words: str
) -> None:
    engine = Fake()
    with pytest.raises(ConfigError, match=words):
        await run(engine, source, tmp_path / name, columns)
    assert not engine.asked
    assert not (tmp_path / name).exists()


async def test_a_format_that_the_name_does_not_tell(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers"
    await run(Fake(), source, output, output_format="csv")
    assert len(table(output)) == ROWS
    with pytest.raises(ConfigError, match="output_format='jsonl'"):
        await run(Fake(), source, output)
