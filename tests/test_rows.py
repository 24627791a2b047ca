"""What users hand to the verbs: each item its own row, its own error and nobody else's."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
import pytest

from fastllm.batch import RequestBatch
from fastllm.client import AsyncFastLLM
from fastllm.errors import ConfigError
from fastllm.rows import mapped, rows_of
from fastllm.sync import FastLLM
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import EMBEDDINGS, HTTPResponse, Request, Row


def test_more_than_one_place_for_a_plain_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"more than one \{\}"):
        mapped("from {} to {}", [1], "m", None, {})


def test_a_batch_does_not_stream() -> None:
    with pytest.raises(ConfigError, match="leave out stream=True"):
        RequestBatch().chat.completions.create(model="m", messages=[], stream=True)  # type: ignore[call-arg]


def body(row: Row) -> Any:
    assert row.request is not None, row.error
    return msgspec.json.decode(row.request.body)


@pytest.mark.parametrize(
    "bad",
    [
        "\ud800",
        [{"role": "user", "content": object()}],
        [{"role": "user", "content": "\udfff"}],
        {"prompt": "\ud800", "custom_id": "mine"},
        {"prompt": "a", 1: object()},
        {"prompt": "a", "max_tokens": 10**400},
        Request(body=b"no json", model="m", stream=True),
        b"\xff",
        3,
        None,
    ],
    ids=repr,
)
def test_what_is_no_json_is_that_items_error(bad: Any) -> None:
    rows: Any = list(rows_of(["ok", bad, "fine"], "m"))  # type: ignore[arg-type]
    assert [row.index for row in rows] == [0, 1, 2]
    assert [row.error is None for row in rows] == [True, False, True]
    assert rows[1].custom_id == ("mine" if isinstance(bad, dict) and "custom_id" in bad else "row-1")
    str(rows[1].error).encode()


def test_ids_of_items_are_not_compared_with_made_up_ones() -> None:
    rows: Any = list(rows_of([{"prompt": "a"}, {"custom_id": "row-0", "prompt": "b"}, "c"], "m"))  # type: ignore[arg-type]
    assert [row.error for row in rows] == [None, None, None]


def test_a_request_from_a_callable_gets_the_parameters_and_the_system_message_of_map() -> None:
    """What the Request says itself stays; an operation without a system message is that row's error."""

    def made(value: str) -> Request:
        path = EMBEDDINGS if value == "embed" else "/chat/completions"
        more = {"temperature": 1} if value == "own" else {}
        fields = {"model": "m", "messages": [{"role": "user", "content": value}], **more}
        return Request.of(fields, path=path, custom_id=value, sample=3)

    rows: Any = list(mapped(made, ["a", "own", "embed"], "", "S", {"temperature": 0.5, "timeout": 9.0}))
    assert body(rows[0]) == {
        "model": "m",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}],
        "temperature": 0.5,
    }
    assert body(rows[1])["temperature"] == 1
    assert (rows[0].request.custom_id, rows[0].request.sample) == ("a", 3)
    assert rows[0].request.timeout is not None
    assert rows[2].error is not None and "takes no system message" in rows[2].error.message
    plain = made("a")
    (row,) = mapped(lambda _: plain, ["a"], "", None, {})  # type: ignore[misc]
    assert row.request is not None and row.request.body is plain.body


class Frame:
    """A data frame as far as Arrow knows one; iterated it would give its columns' names."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(schema)

    def __iter__(self) -> Any:
        raise AssertionError("a table's rows come by Arrow")


PEOPLE = pa.table({"name": ["Ann", None], "age": [3, 4], "tags": [["a", None], None]})


def texts(rows: Any) -> list[Any]:
    return [body(row)["messages"][0]["content"] if row.error is None else row.error.message for row in rows]


def test_tables_are_rows_of_a_template_or_of_a_callable() -> None:
    """A null is one; lists are JSON."""
    null = "column 'name' is null, so the template cannot be filled"
    assert texts(mapped("{name} {age}", Frame(PEOPLE), "m", None, {})) == ["Ann 3", null]
    assert texts(mapped("{tags}", Frame(PEOPLE.slice(0, 1)), "m", None, {})) == ['["a",null]']
    found = mapped(lambda row: f"{row['name']} is {row['age']}", Frame(PEOPLE), "m", None, {})
    assert texts(found) == ["Ann is 3", "None is 4"]


def test_tables_are_requests() -> None:
    """A null is no field of a request."""
    messages = [{"role": "user", "content": "hi", "name": None}]
    rows = pa.Table.from_pylist(
        [
            {"custom_id": "a", "messages": messages, "temperature": 0.5, "prompt": None},
            {"custom_id": None, "messages": None, "temperature": None, "prompt": "p"},
        ]
    )
    first, second = rows_of(Frame(rows), "m")  # type: ignore[arg-type, misc]
    assert (first.custom_id, second.custom_id) == ("a", "row-1")
    assert body(first) == {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
    assert body(second) == {"model": "m", "messages": [{"role": "user", "content": "p"}]}


@pytest.mark.parametrize("batches", [1, 3])
def test_a_single_column_is_its_values(batches: int) -> None:
    """A series, as data frames call it; also of dates, and in pieces."""
    pieces = pa.chunked_array([pa.array(["one", "two"])] * batches)
    assert texts(mapped("Say {}", Frame(pieces), "m", None, {})) == ["Say one", "Say two"] * batches
    moments = pa.chunked_array([pa.array([1_000_001_999], type=pa.timestamp("ns"))])
    assert texts(mapped("{}", Frame(moments), "m", None, {})) == ["1970-01-01T00:00:01.000001"]
    assert texts(rows_of(Frame(pieces), "m")) == ["one", "two"] * batches  # type: ignore[arg-type]


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_a_series_of_each_library_is_its_values(library: str) -> None:
    frame: Any = pytest.importorskip(library).DataFrame({"name": ["Ann", "Bob"], "age": [3, 4]})
    assert texts(mapped("{}", frame["name"], "m", None, {})) == ["Ann", "Bob"]
    assert texts(mapped("{}", frame["age"], "m", None, {})) == ["3", "4"]


@pytest.mark.parametrize("one", ["hello", b"hello", 5, None])
async def test_a_text_is_no_collection_of_requests(one: Any) -> None:
    """Each of its letters was a request that was paid for."""
    transport = ScriptedTransport(lambda request: HTTPResponse(status=200, body=b"{}"))
    async with AsyncFastLLM(api_key="k", transport=transport) as client:
        sync = FastLLM(api_key="k", transport=transport)
        for call in (
            lambda: client.process(one, model="m"),
            lambda: sync.process(one, model="m"),
            lambda: client.stream(one, model="m"),
            lambda: sync.stream(one, model="m"),
        ):
            with pytest.raises(ConfigError, match="requests must be a list, or another iterable, of requests; not of"):
                await call()  # type: ignore[misc]
        for call in (lambda: client.map("x {}", one, model="m"), lambda: sync.map("x {}", one, model="m")):
            with pytest.raises(ConfigError, match="rows must be a list, or another iterable, of rows; not of type"):
                await call()
        with pytest.raises(ConfigError, match="requests must be a list, or another iterable, of requests; not of"):
            sync.process({"messages": []}, model="m")
    assert transport.requests == 0


def test_a_collection_may_have_places_and_no_iterator() -> None:
    class Places:
        def __getitem__(self, place: int) -> str:
            return ["a", "b"][place]

    assert [body(row)["messages"][0]["content"] for row in rows_of(Places(), "m")] == ["a", "b"]  # type: ignore[arg-type,union-attr]


def test_messages_may_be_a_tuple() -> None:
    message = {"role": "user", "content": "x"}
    (row,) = rows_of([(message, message)], "m")  # type: ignore[misc]
    assert body(row)["messages"] == [message, message]
