"""Data frames, tables and data sets in the verbs for many requests: anything that has `__arrow_c_stream__`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from fastllm import AsyncFastLLM, FastLLM
from fastllm.testing import MockConfig, serve_in_thread


class Frame:
    """What a data frame shows of itself: a stream, and an iteration that is not of its rows."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._table = pa.table(columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)


@pytest.fixture(scope="module")
def client() -> Iterator[FastLLM]:
    with serve_in_thread(MockConfig()) as server, FastLLM(base_url=server.base_url, api_key="k") as made:
        yield made


def makers() -> dict[str, Any]:
    """Make a frame with each library that is here."""

    def duck(columns: dict[str, Any]) -> Any:
        duckdb = pytest.importorskip("duckdb")
        return duckdb.arrow(pa.table(columns))

    return {
        "any": Frame,
        "pyarrow": pa.table,
        "reader": lambda columns: pa.table(columns).to_reader(max_chunksize=1),
        "polars": lambda columns: pytest.importorskip("polars").DataFrame(columns),
        "pandas": lambda columns: pytest.importorskip("pandas", minversion="2.2").DataFrame(columns),
        "duckdb": duck,
        "datasets": lambda columns: pytest.importorskip("datasets").Dataset.from_dict(columns),
    }


@pytest.mark.parametrize("library", list(makers()))
def test_rows_of_a_frame_fill_a_template(client: FastLLM, library: str) -> None:
    frame = makers()[library]({"name": ["Zoë", "李"], "n": [1, 2], "tags": [["a"], []]})
    outcomes = client.map("{name} is {n}: {tags}", frame, model="m")
    texts = [outcome.text or str(outcome.error) for outcome in outcomes]
    assert [text.partition(": ")[2] for text in texts] == ['Zoë is 1: ["a"]', "李 is 2: []"]


def test_a_null_fills_no_template(client: FastLLM) -> None:
    """It is an error of its row, which names the column, and not an empty place."""
    one, two = client.map("{name} is {n}", Frame({"name": ["a", "b"], "n": [1, None]}), model="m")
    assert one.ok
    assert "column 'n' is null" in str(two.error)


def test_rows_of_a_frame_are_requests_by_their_columns(client: FastLLM) -> None:
    frame = Frame({"custom_id": ["a", "b"], "prompt": ["x", "y"], "max_tokens": [3, None]})
    outcomes = list(client.process(frame, model="m"))
    assert [(outcome.custom_id, outcome.ok) for outcome in outcomes] == [("a", True), ("b", True)]
    listed = Frame({"messages": [[{"role": "user", "content": "z"}]]})
    (outcome,) = client.process(listed, model="m")
    assert outcome.text is not None
    assert outcome.text.endswith("z")


async def test_a_frame_is_streamed() -> None:
    with serve_in_thread(MockConfig()) as server:
        async with AsyncFastLLM(base_url=server.base_url, api_key="k") as client:
            frame = Frame({"prompt": [f"q{i}" for i in range(50)]})
            found = {outcome.index: outcome.text async for outcome in client.stream(frame, model="m")}
    assert sorted(found) == list(range(50))
    assert all(str(found[i]).endswith(f"q{i}") for i in found)


def test_a_batch_is_read_when_its_rows_are_due(client: FastLLM) -> None:
    """No table is made of a stream: its batches come one after the other."""
    given: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for i in range(100):
            given.append(i)
            yield pa.record_batch({"prompt": [f"q{i}-{j}" for j in range(200)]})

    schema = pa.schema([("prompt", pa.string())])
    stream = client.stream(pa.RecordBatchReader.from_batches(schema, batches()), model="m")
    assert next(iter(stream)).ok
    assert len(given) < 100
    stream.close()
