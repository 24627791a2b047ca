"""Columns: what of the row, of its answer and of its failure stands in an output, under which name and as what."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fastllm.answers import TokenDetails, Usage
from fastllm.errors import ConfigError
from fastllm.formats.base import check_output, open_reader, open_writer
from fastllm.formats.columns import DEFAULT, NAMES, Columns
from fastllm.types import Outcome, Response

FAILURE = {"class": "BadRequestError", "message": "no", "code": "bad"}


def answered(text: str = "a", index: int = 0, **fields: Any) -> Outcome:
    body = {"model": "m-1", "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    return Outcome(index=index, custom_id=f"q{index}", response=Response(body=json.dumps(body).encode(), **fields))


def table(columns: Columns, *rows: tuple[Outcome, dict[str, Any], Any], header: list[str] | None = None) -> list[Any]:
    """Write rows as CSV; give its header and its lines."""

    class Input:
        """As much of a reader as a writer wants to know."""

        def __init__(self) -> None:
            self.header = header

    file = io.BytesIO()
    writer = open_writer(file, Path("o.csv"), columns, like=Input())  # type: ignore[arg-type]
    for outcome, source, failure in rows:
        writer.write(outcome, json.dumps(source).encode(), failure)
    writer.close()
    return list(csv.reader(io.StringIO(file.getvalue().decode(), newline="")))


def lines(columns: Columns, *rows: tuple[Outcome, Any, Any]) -> list[dict[str, Any]]:
    file = io.BytesIO()
    writer = open_writer(file, Path("o.jsonl"), columns)
    for outcome, source, failure in rows:
        writer.write(outcome, source if isinstance(source, bytes) else json.dumps(source).encode(), failure)
    writer.close()
    return [json.loads(line) for line in file.getvalue().splitlines()]


def test_every_column_that_has_a_name_has_a_value() -> None:
    """Of an answer all but the error's; of a failure the error's."""
    usage = Usage(prompt_tokens=5, completion_tokens=2, prompt_tokens_details=TokenDetails(cached_tokens=4))
    answer = answered(usage=usage, cost=0.5, attempts=2, cached=True, endpoint="e", request_id="r")
    found = table(Columns.of(NAMES), (answer, {}, None), (Outcome(index=1, custom_id="q1"), {}, FAILURE))
    expected = {
        "custom_id": "q0",
        "index": "0",
        "error": "",
        "error_class": "",
        "text": "a",
        "finish_reason": "stop",
        "prompt_tokens": "5",
        "completion_tokens": "2",
        "cached_tokens": "4",
        "cost": "0.5",
        "attempts": "2",
        "cached": "true",
        "endpoint": "e",
        "model": "m-1",
        "status": "200",
        "request_id": "r",
    }
    first = dict(zip(found[0], found[1], strict=True))
    assert json.loads(first.pop("body")) == json.loads(answer.unwrap().body)
    assert first == expected
    second = {name: value for name, value in zip(found[0], found[2], strict=True) if value}
    assert second == {"custom_id": "q1", "index": "1", "error": "no", "error_class": "BadRequestError"}


def test_what_stands_where_nothing_is_chosen() -> None:
    """The default columns; with failures also what went wrong."""
    assert table(Columns(), (answered(), {}, None))[0] == list(DEFAULT)
    assert table(Columns.of(failures=True), (answered(), {}, None))[0] == [*DEFAULT, "error_class", "error"]


def test_kept_columns_stand_behind_the_id_and_fields_at_the_end() -> None:
    """Values that are no text are JSON; a column that a row does not have is empty."""
    columns = Columns.of("custom_id,text", keep="label,tags,gone", fields="city,geo.lat")
    answer = answered('```json\n{"city": "Paris", "geo": {"lat": 48.9}}\n```')
    rows = ((answer, {"label": 3, "tags": ["é", None]}, None), (answered("prose", 1), {"label": None}, None))
    found = table(columns, *rows)
    assert found[0] == ["custom_id", "label", "tags", "gone", "text", "city", "geo.lat"]
    assert found[1][:4] == ["q0", "3", '["é",null]', ""]
    assert found[1][5:] == ["Paris", "48.9"]
    assert found[2] == ["q1", "", "", "", "prose", "", ""]


def test_a_field_whose_name_holds_a_dot_comes_first() -> None:
    assert table(Columns.of("text", fields="a.b"), (answered('{"a.b": 1, "a": {"b": 2}}'), {}, None))[1][1] == "1"
    for text in ("[1]", '"a"', "{", "", '{"a": [1]}', "```", "``````"):
        assert table(Columns.of("text", fields="a.b"), (answered(text), {}, None))[1][1] == ""


def test_names_that_are_taken_get_a_prefix() -> None:
    """None is lost, and none stands there twice."""
    columns = Columns.of(keep="text,cost,input_text", fields="text,cost,label")
    row = {"text": "of the row", "cost": 7, "input_text": "mine"}
    found = table(columns, (answered('{"text": "of the answer", "cost": 8, "label": "x"}'), row, None))
    named = dict(zip(*found, strict=True))
    assert len(named) == len(found[0]) == len(DEFAULT) + 6
    assert (named["input_text"], named["cost"], named["input_input_text"]) == ("of the row", "7", "mine")
    assert (named["answer_text"], named["answer_cost"], named["label"]) == ("of the answer", "8", "x")


def test_an_id_that_is_kept_stands_there_once() -> None:
    assert table(Columns.of(keep="custom_id,label"), (answered(), {}, None))[0][:3] == ["custom_id", "label", "text"]
    assert table(Columns.of("text", keep="custom_id"), (answered(), {"custom_id": "q0"}, None))[1] == ["q0", "a"]


def test_everything_is_kept() -> None:
    """All columns of a table; of JSON lines the row as it was."""
    found = table(
        Columns.of(keep="*"), (answered(), {"a": 1, "prompt": "p"}, None), header=["custom_id", "a", "prompt"]
    )
    assert found[0] == ["custom_id", "a", "prompt", *DEFAULT[1:]]
    assert found[1][:4] == ["q0", "1", "p", "a"]
    (line,) = lines(Columns.of(keep="*"), (answered(), {"x": {"y": None}, "messages": []}, None))
    assert line["keep"] == {"x": {"y": None}, "messages": []}


def test_json_lines_have_keep_and_fields_behind_openais_shape() -> None:
    """A row that cannot be read has nothing to keep, one that failed no fields."""
    columns = Columns.of(keep="label,gone", fields="city", failures=True)
    failed = Outcome(index=1, custom_id="q1")
    found = lines(
        columns,
        (answered('{"city": "Paris"}'), {"label": 0, "prompt": "p"}, None),
        (failed, b"not json", FAILURE),
    )
    assert [list(line) for line in found] == [["id", "custom_id", "response", "error", "keep", "fields"]] * 2
    assert (found[0]["keep"], found[0]["fields"], found[0]["error"]) == ({"label": 0}, {"city": "Paris"}, None)
    assert (found[1]["keep"], found[1]["fields"], found[1]["response"]) == ({}, None, None)
    assert found[1]["error"] == {"code": "bad", "message": "no"}
    assert lines(Columns.of(fields="city"), (answered("prose"), {}, None))[0]["fields"] == {"city": None}


def test_failures_are_rows_of_a_parquet_file(tmp_path: Path) -> None:
    """With nulls where there is no answer; numbers are numbers."""
    path = tmp_path / "o.parquet"
    with path.open("wb") as file:
        writer = open_writer(file, path, Columns.of("custom_id,text,cost,cached,error_class", failures=True))
        writer.write(answered(cost=0.25))
        writer.write(Outcome(index=1, custom_id="q1"), b"", FAILURE)
        writer.close()
    assert parquet.read_table(path).to_pylist() == [
        {"custom_id": "q0", "text": "a", "cost": 0.25, "cached": False, "error_class": None},
        {"custom_id": "q1", "text": None, "cost": None, "cached": None, "error_class": "BadRequestError"},
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": "txet"}, "columns has no 'txet'; did you mean 'text'?"),
        ({"names": ["zzzz"]}, "columns has no 'zzzz'; known are custom_id, index"),
        ({"keep": ""}, r"keep must be names with commas between them, such as a,b; not ''"),
        ({"keep": "a,,b"}, "keep must be names"),
        ({"fields": ["a", 3]}, "fields must be names"),
        ({"fields": "a,b, a"}, "fields names 'a' twice"),
    ],
)
def test_names_that_are_none(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Columns.of(**options)
    assert words in str(caught.value)


def test_columns_that_the_output_cannot_have(tmp_path: Path) -> None:
    """Said before anything is asked: names for JSON lines, all of what has no names, one that is not in the input."""
    path = tmp_path / "in.csv"
    path.write_text("prompt,label\na,b\n")
    with pytest.raises(ConfigError, match=r"columns=… is for tables.*JSON lines have keep=… and fields=…"):
        check_output(Path("o.jsonl"), Columns.of("text"))
    with pytest.raises(ConfigError, match=r"needs an input with named columns .*name them: keep='a,b'"):
        check_output(Path("o.csv"), Columns.of(keep="*"))
    with open_reader(path, model="m") as reader:
        for name in ("o.jsonl", "o.csv", "o.parquet"):
            with pytest.raises(ConfigError, match=r"keep='labl' is no column of the input; did you mean 'label'\?"):
                check_output(Path(name), Columns.of(keep="labl"), like=reader)
            check_output(Path(name), Columns.of(keep="label"), like=reader)
            check_output(Path(name), Columns.of(keep="*"), like=reader)


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
            writer.write(answered(), row.source)
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
