"""Columns: what stands beside an answer, how it is called, and which names are none."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from pyarrow import parquet

from fastllm.answers import Usage
from fastllm.errors import ConfigError
from fastllm.formats.base import open_reader, open_writer
from fastllm.formats.columns import DEFAULT, NAMES, Columns, as_text, cells, parsed
from fastllm.formats.output import CSVWriter, JSONLWriter
from fastllm.types import Outcome, Response

VALUES = st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=2)


def answer(text: str, **fields: Any) -> Response:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "model": "m-1"}
    given: dict[str, Any] = {"usage": Usage(prompt_tokens=2, completion_tokens=3), "attempts": 2, "endpoint": "e"}
    return Response(body=msgspec.json.encode(body), **{**given, **fields})


def outcome(text: str = "hi", **fields: Any) -> Outcome:
    return Outcome(index=7, custom_id="r7", response=answer(text, **fields))


def table(columns: Columns, header: list[str] | None = None) -> list[str]:
    return [column.name for column in columns.table(header)]


def values(columns: Columns, found: Outcome, source: bytes = b"{}", header: list[str] | None = None) -> list[Any]:
    return cells(columns.table(header), found, source, None)


def test_names_as_text_or_as_a_sequence() -> None:
    assert Columns.of("text,cost", " a , b", ["x.y"]) == Columns.of(["text", "cost"], ("a", "b"), "x.y")
    assert Columns.of().names == Columns.of(None, (), "x").names == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": "txt"}, r"columns has no 'txt'; did you mean 'text'\? known are custom_id, "),
        ({"names": "zzzzzz"}, "columns has no 'zzzzzz'; known are custom_id, "),
        ({"keep": "a,,b"}, "keep must be names with commas between them, such as a,b; not 'a,,b'"),
        ({"fields": ""}, "fields must be names"),
        ({"keep": "a,b,a"}, "keep names 'a' twice"),
        ({"fields": [1]}, "fields must be names"),
    ],
)
def test_names_that_are_none(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Columns.of(**options)


def test_the_usual_columns_and_those_beside_them() -> None:
    """The row's columns stand before its answer, the answer's fields behind it."""
    assert table(Columns()) == list(DEFAULT)
    assert table(Columns.of(keep="a,b", fields="x")) == ["custom_id", "a", "b", *DEFAULT[1:], "x"]
    assert table(Columns.of(keep="*"), ["a", "b"]) == ["custom_id", "a", "b", *DEFAULT[1:]]
    assert table(Columns.of("text", failures=True)) == ["text"]
    assert table(Columns.of(failures=True)) == [*DEFAULT, "error_class", "error"]


def test_no_two_columns_have_one_name() -> None:
    columns = Columns.of("text,custom_id", "text,input_text,custom_id", "text,score")
    assert table(columns) == ["input_text", "input_input_text", "text", "custom_id", "answer_text", "score"]


@given(
    st.lists(st.sampled_from(NAMES), unique=True),
    st.lists(st.sampled_from([*NAMES, "a", "input_text", "answer_text"]), unique=True),
    st.lists(st.sampled_from([*NAMES, "a", "a.b", "input_text", "answer_text"]), unique=True),
    st.booleans(),
)
def test_names_are_unique_and_every_row_has_a_value_for_each(
    names: list[str], keep: list[str], fields: list[str], failures: bool
) -> None:
    columns = Columns.of(names, keep, fields, failures=failures)
    found = table(columns)
    assert len({*found}) == len(found)
    assert {*names} <= {*found}
    assert len(values(columns, outcome())) == len(found)
    failed = Outcome(index=7, custom_id="r7", error=None)
    assert len(cells(columns.table(), failed, b"no json", {"message": "no", "class": "X"})) == len(found)


def test_columns_that_the_input_does_not_have() -> None:
    """Said at once where the header is known; without one, rows may have any."""
    with pytest.raises(ConfigError, match=r"keep='nmae' is no column of the input; did you mean 'name'\?"):
        Columns.of(keep="nmae").table(["name", "text"])
    with pytest.raises(ConfigError, match="keep='x' is no column of the input; known are name"):
        JSONLWriter(io.BytesIO(), Path("a.jsonl"), Columns.of(keep="x"), ["name"])
    with pytest.raises(ConfigError, match=r"keep='\*' in a table needs an input with named columns"):
        Columns.of(keep="*").table()
    assert table(Columns.of(keep="custom_id"), ["name"]) == list(DEFAULT)
    with pytest.raises(ConfigError, match="columns are for tables"):
        JSONLWriter(io.BytesIO(), Path("a.jsonl"), Columns.of("text"))


def test_every_value_of_an_answer() -> None:
    found = dict(zip(NAMES, values(Columns(names=NAMES), outcome(cost=0.5, request_id="q")), strict=True))
    assert json.loads(found.pop("body"))["model"] == "m-1"
    assert found == {
        "custom_id": "r7",
        "index": 7,
        "error": None,
        "error_class": None,
        "text": "hi",
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "cached_tokens": None,
        "cost": 0.5,
        "attempts": 2,
        "cached": False,
        "endpoint": "e",
        "model": "m-1",
        "status": 200,
        "request_id": "q",
    }


def test_a_row_that_failed_has_its_error_and_nothing_of_an_answer() -> None:
    columns = Columns.of("custom_id,text,error,error_class,cost", "n", "x")
    failed = Outcome(index=7, custom_id="r7", error=None)
    failure = {"message": "no", "class": "BadRequestError"}
    assert cells(columns.table(), failed, b'{"n":1}', failure) == ["r7", 1, None, "no", "BadRequestError", None, None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("``` [1] ```", [1]),
        ("Sure! {}", None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_answers_that_are_json(text: str, value: Any) -> None:
    assert parsed(answer(text)) == value


def test_fields_of_answers() -> None:
    """A path goes into objects; a field that is called so is taken first; what is not there is None."""
    columns = Columns.of("text", fields="a,b.c,d.e,f,b")
    text = '{"a": [1, null], "b": {"c": "x"}, "d.e": 2, "d": {"e": 3}}'
    assert values(columns, outcome(text))[1:] == [[1, None], "x", 2, None, {"c": "x"}]
    assert values(columns, outcome("no json"))[1:] == [None] * 5
    assert values(columns, outcome("[1]"))[1:] == [None] * 5


def test_json_lines_have_them_behind_the_answer() -> None:
    file = io.BytesIO()
    writer = JSONLWriter(file, Path("a.jsonl"), Columns.of(keep="n,gone,o", fields="a.b"))
    writer.write(outcome('{"a": {"b": 1}}'), b'{"n": null, "o": {"p": [1]}, "q": 2}')
    writer.write(Outcome(index=8, custom_id="r8", error=None), b"no json", {"class": "X", "message": "no"})
    writer.close()
    first, second = map(json.loads, file.getvalue().splitlines())
    assert list(first) == ["id", "custom_id", "response", "error", "keep", "fields"]
    assert first["keep"] == {"n": None, "o": {"p": [1]}}
    assert first["fields"] == {"a.b": 1}
    assert second["error"] == {"code": "X", "message": "no"}
    assert (second["keep"], second["fields"]) == ({}, None)


def test_every_column_of_the_row_in_json_lines() -> None:
    file = io.BytesIO()
    JSONLWriter(file, Path("a.jsonl"), Columns.of(keep="*")).write(outcome(), b'{"n": 1, "prompt": "p"}')
    assert json.loads(file.getvalue())["keep"] == {"n": 1, "prompt": "p"}


@given(st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda name: name != "*"), VALUES, max_size=4))
def test_a_table_of_text_gives_back_every_kept_value(row: dict[str, Any]) -> None:
    """Text stands as it is, everything else as JSON, and nothing where there is nothing."""
    file = io.BytesIO()
    columns = Columns(keep=tuple(row))
    writer = CSVWriter(file, Path("a.csv"), ",", columns)
    writer.write(outcome(), msgspec.json.encode(row))
    writer.close()
    header, line = csv.reader(io.StringIO(file.getvalue().decode(), newline=""))
    names = [name for name in row if name != "custom_id"]
    assert len(header) == len(line) == len(DEFAULT) + len(names)
    assert line[1 : 1 + len(names)] == [as_text(row[name]) for name in names]


def test_failures_are_rows_of_a_parquet_file(tmp_path: Path) -> None:
    """With nulls where there is no answer; numbers are numbers."""
    path = tmp_path / "o.parquet"
    with path.open("wb") as file:
        writer = open_writer(file, path, Columns.of("custom_id,text,cost,cached,error_class", failures=True))
        writer.write(outcome(cost=0.25))
        writer.write(Outcome(index=1, custom_id="q1"), b"", {"class": "BadRequestError", "message": "no"})
        writer.close()
    assert parquet.read_table(path).to_pylist() == [
        {"custom_id": "r7", "text": "hi", "cost": 0.25, "cached": False, "error_class": None},
        {"custom_id": "q1", "text": None, "cost": None, "cached": None, "error_class": "BadRequestError"},
    ]


def test_types_that_json_does_not_give_back_are_text(tmp_path: Path) -> None:
    """Dates, decimals, bytes, dictionaries and half floats stay readable; not a number is null."""
    source, target = tmp_path / "in.parquet", tmp_path / "o.parquet"
    columns = {
        "prompt": pa.array(["p"]),
        "day": pa.array([1], type=pa.date32()),
        "blob": pa.array([b"\xff"]),
        "word": pa.array(["x"]).dictionary_encode(),
        "nan": pa.array([float("nan")]),
        "big": pa.array([2**64 - 1], type=pa.uint64()),
        "small": pa.array([0.1], type=pa.float32()),
        "half": pa.array([0.5], type=pa.float32()).cast(pa.float16()),
        "nested": pa.array([[{"a": 1, "b": None}]], type=pa.list_(pa.struct({"a": pa.int8(), "b": pa.string()}))),
    }
    parquet.write_table(pa.table(columns), source)
    with open_reader(source, model="m") as reader, target.open("wb") as file:
        writer = open_writer(file, target, Columns.of(keep="*"), like=reader)
        for row in reader:
            writer.write(outcome(), row.source)
        writer.close()
    written = parquet.read_table(target)
    (row_out,) = written.select(list(columns)).to_pylist()
    small = row_out.pop("small")
    assert pa.array([small], type=pa.float32()) == columns["small"]
    assert row_out == {
        "prompt": "p",
        "day": "1970-01-02",
        "blob": "/w==",
        "word": "x",
        "nan": None,
        "big": 2**64 - 1,
        "half": "0.5",
        "nested": [{"a": 1, "b": None}],
    }


def test_columns_that_are_kept_are_no_surprise() -> None:
    """Of what was not sent only the others are worth a warning."""
    assert Columns.of(keep="a").unkept({"a": 1, "b": 2}) == {"b": 2}
    assert Columns.of(keep="*").unkept({"a": 1}) == {}
    assert Columns().unkept({"a": 1}) == {"a": 1}
