"""Writers: answers keep their bytes, failures are input again."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from fastllm.answers import Usage
from fastllm.errors import ConfigError, InvalidRequestError
from fastllm.formats import files
from fastllm.formats.base import check_output, open_writer
from fastllm.formats.jsonl import JSONLReader
from fastllm.formats.output import answer_line, failure_line
from fastllm.formats.rows import Recipe
from fastllm.types import Outcome, Response


def test_answers_keep_their_bytes() -> None:
    """The body stands in the line as it came, but for line ends between tokens; the id is stable."""
    body = b'{"a": 1.0e0, "b":"\xc3\xbc\\n"}'
    line = answer_line('q"1', 3, body, request_id="r")
    assert body in line
    fields = msgspec.json.decode(line)
    assert fields["custom_id"] == 'q"1'
    assert fields["error"] is None
    assert fields["response"]["status_code"] == 200
    assert fields["id"].startswith("batch_req_")
    assert line == answer_line('q"1', 3, body, request_id="r")
    assert fields["id"] != msgspec.json.decode(answer_line('q"1', 4, body))["id"]
    pretty = answer_line("q", 0, b'{\r\n  "a": 1\n}')
    assert pretty.count(b"\n") == 1
    assert msgspec.json.decode(pretty)["response"]["body"] == {"a": 1}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.dictionaries(st.sampled_from(["custom_id", "prompt", "messages", "x"]), st.text(), max_size=3).map(
            msgspec.json.encode
        ),
    )
)
@example(b"\n\x00")
def test_every_failure_can_be_read_again(source: bytes) -> None:
    """Whatever the row was, its failure is one line that reads as the same request, or as the same bad row."""

    def read(content: bytes) -> Any:
        with JSONLReader(io.BytesIO(content), Recipe(model="m")) as reader:
            return list(reader)

    row = next(iter(read(source)), None)
    if row is None or b"\n" in source.strip() or b"\r" in source.strip():
        return
    error = row.error or InvalidRequestError("the provider said no")
    line = failure_line(row.custom_id, row.line, row.source, error.to_dict())
    assert line.count(b"\n") == 1
    (again,) = read(line)
    if row.request is None:
        assert again.error is not None
        # The id that was made up is a column now.
        assert told(again.error.message) == told(row.error.message)
    else:
        assert again.request is not None
        assert msgspec.json.decode(again.request.body) == msgspec.json.decode(row.request.body)
        assert again.custom_id == row.custom_id
    assert msgspec.json.decode(line)["_error"]["message"] == error.message


@pytest.mark.parametrize(
    "own", [b'"custom_id":""', b'"custom_id":null', b'"id":""', b'"id":null', b'"id":null,"custom_id":""']
)
def test_a_failure_keeps_the_id_that_its_row_was_given(own: bytes) -> None:
    """An empty or null id counts as none; on another line the row would get another one."""
    source = b'{"prompt":"x",%s}' % own
    with JSONLReader(io.BytesIO(failure_line("row-41", 42, source, {})), Recipe(model="m")) as reader:
        (row,) = reader
    assert row.custom_id == "row-41"


def test_a_failure_shows_the_answer_that_did_not_fit_and_is_still_the_same_row() -> None:
    """What was paid for can be read; read again as input it is not sent, and a later failure has its own."""
    source = b'{"custom_id":"a","messages":[{"role":"user","content":"x"}]}'
    line = failure_line("a", 1, source, {"message": "m"}, b'{\n"choices": [1]}')
    assert line.count(b"\n") == 1
    assert msgspec.json.decode(line)["_answer"] == {"choices": [1]}
    with JSONLReader(io.BytesIO(line), Recipe(model="m")) as reader:
        (row,) = reader
    assert row.request is not None
    assert msgspec.json.decode(row.request.body) == {"messages": [{"role": "user", "content": "x"}]}
    assert "_answer" not in msgspec.json.decode(failure_line("a", 1, row.source, {"message": "n"}))


CALL = {
    "role": "assistant",
    "content": "so:",
    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    ("body", "cell"),
    [
        ({"choices": [{"message": {"content": "a"}}]}, "a"),
        ({"choices": [{"text": "a"}]}, "a"),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}, "a"),
        ({"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}, ["a", "b"]),
        ({"choices": [{"text": "a"}, {"text": "b"}]}, ["a", "b"]),
        ({"choices": [{"message": CALL}]}, CALL),
        ({"choices": [{"message": CALL}, {"message": {"content": "b"}}]}, [CALL, "b"]),
        ({"data": [{"embedding": [0.1, -2]}]}, [0.1, -2]),
        ({"data": [{"embedding": [0.1]}, {"embedding": [0.2]}]}, [[0.1], [0.2]]),
        ({"data": [{"embedding": "AAAA"}]}, "AAAA"),
        ({"output": [{"type": "message", "content": [{"text": "a"}]}, {"type": "reasoning"}]}, "a"),
        ({"output": [{"type": "function_call", "name": "f"}]}, [{"type": "function_call", "name": "f"}]),
        ({"results": [{"flagged": True}]}, [{"flagged": True}]),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"choices": [{"message": {"content": "", "reasoning": "so"}}]}, {"content": "", "reasoning": "so"}),
        ({"choices": [{"message": {"content": "a", "reasoning": "so"}}]}, "a"),
        ({"choices": ["odd"]}, "odd"),
        ({"other": 1}, ""),
    ],
)
def test_a_table_loses_nothing_of_an_answer(tmp_path: Path, body: Any, cell: Any) -> None:
    """What is more than one text stands as JSON in the text's column."""
    path = tmp_path / "o.csv"
    with path.open("wb") as file:
        writer = open_writer(file, path)
        writer.write(outcome(1, msgspec.json.encode(body)))
        writer.close()
    with path.open(newline="") as text:
        (_, row) = csv.reader(text)
    assert (row[1] if isinstance(cell, str) else msgspec.json.decode(row[1])) == cell


def told(message: str) -> str:
    """What is wrong, without where it stood: blank lines before the row are in no failures file."""
    return re.sub(r"^line \d+: ", "", message).split("Columns")[0]


def outcome(index: int, body: bytes, usage: Usage | None = None) -> Outcome:
    return Outcome(index=index, custom_id=f"q{index}" if index else None, response=Response(body=body, usage=usage))


@pytest.mark.parametrize("name", ["o.jsonl", "o.ndjson.gz", "o.jsonl.zst", "o.csv", "o.tsv.gz"])
def test_each_writer(tmp_path: Path, name: str) -> None:
    """Every suffix that is read is also written, and closing the writer leaves the file to its owner."""
    bodies = [b'{"choices":[{"message":{"content":"a,\\n\\"b\\""},"finish_reason":"stop"}]}', b'{"output":[]}']
    path = tmp_path / name
    with path.open("wb") as file:
        writer = open_writer(file, path)
        writer.write(outcome(0, bodies[0]))
        writer.write(outcome(1, bodies[1], Usage(prompt_tokens=3, completion_tokens=4)))
        writer.close()
        assert not file.closed
    with files.open_bytes(path)[0] as unpacked:
        content = unpacked.read()
    if "sv" in name:
        rows = list(csv.reader(io.StringIO(content.decode()), delimiter="," if "csv" in name else "\t"))
        assert rows[1:] == [["", 'a,\n"b"', "stop", "", ""], ["q1", "", "", "3", "4"]]
    else:
        assert [msgspec.json.decode(line)["custom_id"] for line in content.splitlines()] == ["row-0", "q1"]


def test_unknown_suffixes() -> None:
    with pytest.raises(ConfigError, match="known are"):
        check_output(Path("o.xlsx"))
    check_output(Path("o.jsonl.gz"))
