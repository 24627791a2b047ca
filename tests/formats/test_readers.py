"""Readers: every shape of row becomes the right request; whatever is wrong with a line is that row's error alone."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from fastllm.errors import ConfigError, InvalidRequestError, MissingExtra
from fastllm.formats import files
from fastllm.formats.base import open_reader
from fastllm.formats.jsonl import JSONLReader
from fastllm.formats.rows import Recipe, unsent_words
from fastllm.schema.base import Schema
from fastllm.types import Row

SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
CHAT = [{"role": "user", "content": "hi"}]


def read(content: bytes | str, **options: Any) -> list[Row]:
    if isinstance(content, str):
        content = content.encode()
    limit = options.pop("max_line_bytes", files.MAX_LINE_BYTES)
    recipe = Recipe(**{"model": "m", **options})
    with JSONLReader(io.BytesIO(content), recipe, max_line_bytes=limit) as reader:
        return list(reader)


def one(fields: Any, **options: Any) -> tuple[str, dict[str, Any], Row]:
    """Read one row; give its path, body and itself."""
    (row,) = read(json.dumps(fields), **options)
    assert row.error is None, row.error
    assert row.request is not None
    return row.request.path, msgspec.json.decode(row.request.body), row


def wrong(fields: Any, **options: Any) -> str:
    (row,) = read(json.dumps(fields) if not isinstance(fields, bytes) else fields, **options)
    assert row.request is None
    assert isinstance(row.error, InvalidRequestError)
    assert row.error.message.startswith("line 1: ")
    assert str(row.error) == row.error.message
    return row.error.message


def test_openai_batch_lines_keep_their_bytes() -> None:
    body = b'{"model": "own",  "messages":[{"role":"user","content":"\xc3\xbc"}], "x": 1.0e0}'
    (row,) = read(b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + body + b"}", model="")
    assert row.request is not None
    assert row.request.body == body
    assert (row.request.path, row.request.model, row.request.custom_id) == ("/chat/completions", "own", "a")
    assert (row.request.priority, row.index, row.line, row.custom_id) == (1, 0, 1, "a")
    assert "Row 0 a" in repr(row)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"body": {"messages": CHAT}}, "/chat/completions"),
        ({"body": {"input": "x"}, "url": "/v1/embeddings"}, "/embeddings"),
        ({"body": {"input": "x"}, "url": "/responses", "method": "post"}, "/responses"),
        ({"body": {"prompt": "x"}}, "/completions"),
        ({"body": {"prompt": "x"}, "url": "/v1/completions"}, "/completions"),
        ({"body": {}}, "/chat/completions"),
        ({"messages": CHAT}, "/chat/completions"),
        ({"input": "x"}, "/responses"),
        ({"input": [{"role": "user"}]}, "/responses"),
        ({"input": []}, "/responses"),
        ({"input": "x", "model": "text-embedding-3"}, "/embeddings"),
        ({"input": "x", "dimensions": 3}, "/embeddings"),
        ({"input": ["a", "b"]}, "/embeddings"),
        ({"input": [[1, 2]]}, "/embeddings"),
        ({"prompt": "x"}, "/chat/completions"),
    ],
)
def test_the_shape_tells_the_operation(fields: dict[str, Any], path: str) -> None:
    assert one(fields, model="text-embedding-3" if "model" in fields else "m")[0] == path


def test_plain_bodies() -> None:
    """A plain body goes out as it is, without what is ours."""
    line = json.dumps({"messages": CHAT, "model": "own"}).encode()
    (row,) = read(line, model="")
    assert row.request is not None
    assert row.request.body == line
    ours = {"custom_id": "c", "id": 4, "method": "POST", "url": "/x", "_error": {}, "_line": 3}
    _, body, row = one({**ours, "messages": CHAT, "top_p": 1})
    assert body == {"messages": CHAT, "top_p": 1}
    assert row.custom_id == "c"


def test_prompts() -> None:
    """{"prompt"} is a chat message after "system"; known parameters and extra_body are sent, other columns are not."""
    _, body, row = one(
        {
            "id": 7,
            "prompt": "p",
            "system": "s",
            "temperature": 0,
            "seed": None,
            "expected": "Paris",
            "extra_body": {"x": 1},
        }
    )
    assert body == {
        "model": "m",
        "temperature": 0,
        "x": 1,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
    }
    assert row.custom_id == "7"
    parts = [{"type": "text", "text": "p"}]
    assert one({"prompt": parts, "model": "own"}, model="")[1]["messages"][0]["content"] == parts


def test_templates() -> None:
    """With --prompt a row is columns whatever its keys; --system stands before, also before messages without one."""
    options = {"prompt": "Sum: {text}", "system": "In {lang}."}
    _, body, _ = one({"text": "a {b}", "lang": "French", "messages": 1, "body": 2, "prompt": 3}, **options)
    assert body["messages"] == [{"role": "system", "content": "In French."}, {"role": "user", "content": "Sum: a {b}"}]
    assert "which is no column" in wrong({"txt": 1}, **options)
    assert one({"prompt": "p"}, system="S")[1]["messages"][0] == {"role": "system", "content": "S"}
    assert one({"prompt": "p", "system": "own"}, system="S")[1]["messages"][0]["content"] == "own"
    assert one({"messages": CHAT}, system="S")[1]["messages"] == [{"role": "system", "content": "S"}, *CHAT]
    assert len(one({"body": {"messages": CHAT}}, system="S")[1]["messages"]) == 2
    assert one({"messages": [{"role": "developer", "content": "d"}]}, system="S")[1]["messages"][0]["content"] == "d"
    assert "list of objects" in wrong({"messages": [1]}, system="S")


def test_models() -> None:
    """The given model wins and fills in; a row with neither is bad."""
    for fields in ({"messages": CHAT}, {"prompt": "x"}, {"body": {"messages": CHAT}}):
        inner = fields.get("body", fields)
        assert "names no model" in wrong(fields, model="")
        for own, given_model, expected in (("own", "", "own"), ("own", "m", "m"), ("", "m", "m")):
            changed = {**inner, "model": own}
            _, _, row = one({"body": changed} if "body" in fields else changed, model=given_model)
            assert row.request is not None
            assert row.request.model == expected


def test_default_parameters() -> None:
    """Defaults fill in what a body lacks, under the name its operation knows, and never beside another spelling."""
    params = {"temperature": 0, "max_tokens": 64, "seed": None}
    assert one({"messages": CHAT}, params=params)[1] == {"messages": CHAT, "temperature": 0, "max_tokens": 64}
    _, body, row = one({"messages": CHAT, "temperature": 1, "max_completion_tokens": 5}, params=params)
    assert body == {"messages": CHAT, "temperature": 1, "max_completion_tokens": 5}
    assert row.request is not None
    assert row.request.max_tokens == 5
    assert one({"input": "x"}, params=params)[1] == {"input": "x", "temperature": 0, "max_output_tokens": 64}
    assert one({"input": ["x"]}, params={**params, "user": "u"})[1] == {"input": ["x"], "user": "u"}
    with pytest.raises(ConfigError, match="params"):
        read(b"", params={"x": object()})


CITY = Schema.of({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})


def test_a_schema_is_what_rows_of_chat_and_responses_must_fit() -> None:
    """In the words of the operation, beside what else the row says; the request knows the schema itself."""
    for fields in ({"messages": CHAT}, {"prompt": "x"}, {"body": {"messages": CHAT, "response_format": None}}):
        path, body, row = one(fields, schema=CITY, params={"temperature": 0})
        assert path == "/chat/completions" and body["response_format"] == CITY.response_format
        assert row.request is not None and row.request.schema is CITY and body["temperature"] == 0
        assert (row.request.priority, row.request.custom_id) == (1, "row-0")
    _, body, row = one({"input": "x", "text": {"verbosity": "low"}}, schema=CITY)
    assert body["text"] == {"verbosity": "low", **CITY.text_format}
    assert row.request is not None and row.request.schema is CITY


def test_a_row_that_says_its_own_format_keeps_it() -> None:
    for fields in (
        {"messages": CHAT, "response_format": {"type": "json_object"}},
        {"input": "x", "text": {"format": {"type": "text"}}},
    ):
        _, body, row = one(fields, schema=CITY)
        assert body == fields and row.request is not None and row.request.schema is None


def test_a_row_that_can_have_no_schema_is_a_bad_one() -> None:
    assert "/embeddings takes no schema" in wrong({"input": ["x"]}, schema=CITY)
    assert "/completions takes no schema" in wrong({"url": "/v1/completions", "body": {"prompt": "x"}}, schema=CITY)


def test_streaming_is_dropped() -> None:
    _, body, row = one({"messages": CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert body == {"messages": CHAT}
    assert row.request is not None
    assert not row.request.stream


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (b"nonsense", "not valid JSON"),
        (b'{"messages":[],}', "not valid JSON: .*trailing comma"),
        (b"[1]", "not a JSON object but [1]"),
        (b"null", "not a JSON object but null"),
        (b'"' + b"x" * 100 + b'"', "x…"),
        (b'{"messages":NaN}', "not valid JSON"),
        (b'{"prompt":"x","seed":-Infinity}', "not valid JSON"),
        (b'{"prompt":"x","seed":1e999}', "out of range"),
        (b'{"messages":"\\ud800"}', "not valid JSON"),
        (b'{"messages":"\xff"}', "not UTF-8 at byte 13"),
        (b'{"messages":"\x00"}', "not valid JSON"),
        (b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        ({"text": "x", "more": 1}, "give prompt=…. Columns: text, more"),
        ({}, "Columns: none"),
        ({"prompt": 3}, "prompt must be text, not 3"),
        ({"prompt": None}, "prompt must be text, not null"),
        ({"body": 3}, "body must be an object, not 3"),
        ({"body": {}, "method": "GET"}, 'method must be POST, not "GET"'),
        ({"body": {}, "url": "/v1/images"}, 'url "/v1/images" is not one of /v1/chat'),
        ({"body": {}, "url": 3}, "url 3 is not one of"),
        ({"messages": CHAT, "max_tokens": "many"}, "not a valid JSON object"),
        ({"custom_id": 1.5, "prompt": "x"}, "custom_id must be a string, not 1.5"),
        ({"_source": "x", "_error": 5}, "could not be read"),
        ({"_source": "x", "_error": {"message": "line 9: too bad"}}, "line 1: too bad"),
        ({"_source": "x"}, "could not be read"),
    ],
)
def test_bad_rows(fields: Any, words: str) -> None:
    message = wrong(fields)
    assert words in message or re.search(words, message), message
    assert len(message) < 400
    assert "\n" not in message


def test_deep_defaults() -> None:
    """A body that only has to be decoded for a default can be too deep for that, and is a bad row then."""
    deep = b'{"messages":' + b"[" * 3000 + b"]" * 3000 + b"}"
    for options in ({}, {"params": {"seed": 1}}, {"system": "S"}):
        (row,) = read(deep, **options)
        assert (row.request is None) == (row.error is not None)


def test_dirty_files() -> None:
    """BOM, CRLF, blank lines, no final newline: no rows of their own; line numbers count every line."""
    rows = read(b'\xef\xbb\xbf{"prompt":"a"}\r\n\r\n  \n\t{"prompt":"b"} \r\nbad\n\n{"prompt":"c"}')
    assert [(r.index, r.line, r.error is None) for r in rows] == [
        (0, 1, True),
        (1, 4, True),
        (2, 5, False),
        (3, 7, True),
    ]
    assert [r.custom_id for r in rows] == ["row-0", "row-1", "row-2", "row-3"]
    assert read(b"") == read(b"\n\n \r\n") == read(b"\xef\xbb\xbf") == []


def test_lines_over_the_cap_are_skipped_unread() -> None:
    """An endless line costs its row, not the memory; the rows after it go on. A line of just the cap is fine."""
    good = b'{"prompt":"ok"}'
    huge = b'{"prompt":"' + b"x" * 30_000_000 + b'"}'
    tracemalloc.start()
    try:
        rows = read(good + b"\n" + huge + b"\n" + good + b"\n" + b"y" * 2000, max_line_bytes=1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [r.error is None for r in rows] == [True, False, True, False]
    assert "line 2: longer than 1000 bytes" in str(rows[1].error)
    assert peak < 30_000_000 + 35_000_000  # the input itself, its concatenation, and little more
    exact = len(good)
    assert [r.error is None for r in read(good + b"\n" + good, max_line_bytes=exact)] == [True, True]
    assert [r.error is None for r in read(good + b" \n" + good + b" ", max_line_bytes=exact)] == [False, False]


def test_ids() -> None:
    """Ids are kept; one seen before is a bad row that names the first line; derived ones never collide unseen."""
    rows = read(
        b'{"custom_id":"a","prompt":"x"}\n{"id":"a","prompt":"x"}\n{"custom_id":"","prompt":"x"}\n'
        b'{"custom_id":"row-2","prompt":"x"}\n{"custom_id":"row-5","prompt":"x"}\n{"prompt":"x"}\n'
        b'{"custom_id":"row-99999999999999999999999999","prompt":"x"}\n{"custom_id":"row-x","prompt":"x"}'
    )
    assert [r.error and r.error.message for r in rows] == [
        None,
        "line 2: custom_id 'a' was already used on line 1",
        None,
        "line 4: custom_id 'row-2' is taken by row 2",
        None,
        "line 6: the row has no custom_id, and 'row-5', which it would get, is taken by line 5",
        None,
        None,
    ]
    again = read(b'{"custom_id":"row-1","prompt":"x"}\n{"custom_id":"row-0","prompt":"x"}\n{"prompt":"x"}')
    assert all(r.error is None for r in again)


def csv_rows(path: Path, content: str | bytes, **options: Any) -> list[Row]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with open_reader(path, model="m", **options) as reader:
        assert path.name in repr(reader)
        return list(reader)


NESTED = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize(
    ("line", "custom_id"),
    [
        (b'{"custom_id":"a","prompt":"cut off', "a"),
        (b'{"custom_id": "a", "prompt": "x",}', "a"),
        (b'{"custom_id":"a","prompt":NaN}', "a"),
        (b'{"prompt":"x"} {"custom_id":"b"}', "row-0"),
        (b'{"custom_id":"a","prompt":"x"} more', "a"),
        (b'{"custom_id":"\xc3\xa4","prompt":"\xff"}', "ä"),
        (b'{"custom_id":"\xff","prompt":"x"}', "row-0"),
        (b'{"custom_id":"a\\"b","prompt":"\\ud800"}', 'a"b'),
        (b'{"custom_id":"\\ud800","prompt":"x"}', "row-0"),
        (b'{"prompt":' + NESTED + b',"custom_id":"a"}', "a"),
        (b'{"custom_id":7,"prompt":tru}', "7"),
        (b'{"id":"b","prompt":tru,"custom_id":"a"}', "a"),
        (b'{"id":"b","prompt":tru}', "b"),
        (b'{"metadata":{"custom_id":"b"},"prompt":tru}', "row-0"),
        (b'{"prompt":"say \\"custom_id\\":\\"b\\"","n":tru}', "row-0"),
        (b'{"custom_id":"","prompt":tru}', "row-0"),
        (b'["custom_id":"a"]', "row-0"),
        (b"{'custom_id':'a'}", "row-0"),
        (b'{"id":"a","prompt":5}', "a"),
        (b'{"custom_id":"a","foo":5}', "a"),
        (b'{"custom_id":{},"id":"a","prompt":"x"}', "row-0"),
    ],
)
def test_a_row_that_is_none_keeps_its_id_where_it_can_be_read(line: bytes, custom_id: str) -> None:
    (row,) = read(line)
    assert row.error is not None and row.custom_id == custom_id


def test_looking_for_the_id_of_a_broken_line_takes_no_longer_than_the_line_is() -> None:
    began = time.process_time()
    (row,) = read(b'{"custom_id":"a","prompt":"' + b'\\"' * 500_000)
    assert row.custom_id == "a" and time.process_time() - began < 2


def test_an_id_that_a_broken_row_has_is_taken() -> None:
    rows = read(b'{"custom_id":"a","prompt":"cut off\n{"custom_id":"a","prompt":"x"}\n{"id":"a","prompt":"x"}')
    assert [row.custom_id for row in rows] == ["a", "a", "a"]
    for row in rows[1:]:
        assert str(row.error).endswith("custom_id 'a' was already used on line 1")


def test_csv(tmp_path: Path) -> None:
    """Columns become prompts; quoted line ends, empty optional and typed parameter columns are understood."""
    path = tmp_path / "f.csv"
    rows = csv_rows(
        path,
        "\ufeffid,prompt,temperature,service_tier,note\r\n"
        'a,"two\nlines, ""q""",0.5,flex,n\r\n\r\n,p,,,\r\nb,too few\r\nc,"\x00",1,2,3\r\nd,"unfinished\r\n',
    )
    assert [r.line for r in rows] == [2, 5, 6, 7, 8]
    bodies = [msgspec.json.decode(r.request.body) if r.request else None for r in rows]
    assert bodies[0] == {
        "model": "m",
        "temperature": 0.5,
        "service_tier": "flex",
        "messages": [{"role": "user", "content": 'two\nlines, "q"'}],
    }
    assert bodies[1] == {"model": "m", "messages": [{"role": "user", "content": "p"}]}
    assert [r.custom_id for r in rows] == ["a", "row-1", "row-2", "c", "row-4"]
    assert "line 6: 2 fields where the header has 5" in str(rows[2].error)
    assert rows[2].source == b"b,too few"
    assert "line 8: not valid CSV" in str(rows[4].error)
    assert msgspec.json.decode(rows[0].source)["note"] == "n"
    tabs = csv_rows(tmp_path / "f.tsv", "text\tlang\nx\ty\n", prompt="{text}-{lang}")
    assert b'"x-y"' in tabs[0].request.body  # type: ignore[union-attr]


def test_csv_bytes_that_are_no_text(tmp_path: Path) -> None:
    """A line that is not UTF-8 or too long is a bad row with its number; the next ones are fine."""
    path = tmp_path / "f.csv"
    rows = csv_rows(path, b"prompt\n\xff\nok\n" + b"x" * 200 + b"\nok\n", max_line_bytes=100)
    assert [(r.line, r.error is None) for r in rows] == [(2, False), (3, True), (4, False), (5, True)]
    assert "not UTF-8" in str(rows[0].error)
    assert "longer than 100 bytes" in str(rows[2].error)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("a,b,a\n", {"prompt": "{a}"}, "names a column twice: 'a'"),
        ("text,lang\nx,y\n", {}, r"no column 'prompt'; give prompt=… with some of \{text\}, \{lang\}"),
        ("text\nx\n", {"prompt": "{txt}"}, r"did you mean \{text\}"),
        ("text\nx\n", {"prompt": "{text}", "system": "{nope}"}, r"\{nope\}, which is no column"),
        ('"a"b\n', {}, "header of .* cannot be read"),
        (b"\xff,a\n", {}, "header of .* cannot be read: not UTF-8"),
        (b"\xff,a\n", {"max_line_bytes": 2}, "header of .* cannot be read: longer"),
    ],
)
def test_csv_headers_that_do_not_fit(tmp_path: Path, content: Any, options: dict[str, Any], words: str) -> None:
    """What is wrong with the header is one error, before anything is sent."""
    with pytest.raises(ConfigError, match=words):
        csv_rows(tmp_path / "f.csv", content, **options)


def test_an_empty_csv(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is empty: its first line must name the columns"):
        csv_rows(tmp_path / "f.csv", "", prompt="{x}")
    assert csv_rows(tmp_path / "f.csv", "prompt\n") == []


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "CSV"])
def test_compressed_files(tmp_path: Path, kind: str, suffix: str) -> None:
    """Each format is read plain, gzipped and as zstd; the fingerprint is of the content and tells the rows."""
    content = b"prompt\na\nb\n" if kind == "CSV" else b'{"prompt":"a"}\n{"prompt":"b"}'
    path = tmp_path / f"f.{kind}{suffix}"
    pack = {"": bytes, ".gz": gzip.compress, ".zst": getattr(files.zstd, "compress", None)}[suffix]
    if pack is None:
        pytest.skip("no zstd here")
    path.write_bytes(pack(content))
    with open_reader(path, model="m") as reader:
        before = reader.fingerprint()
        assert reader.count_hint == (None if suffix else 2)
        assert len(list(reader)) == 2
    path.write_bytes(pack(content + b" "))
    with open_reader(path, model="m") as reader:
        assert reader.fingerprint() != before


@pytest.mark.parametrize("name", ["f.jsonl.gz", "f.csv.gz", "f.jsonl.zst"])
def test_damaged_compression(tmp_path: Path, name: str) -> None:
    """A truncated or corrupt file is an error that says after which line."""
    path = tmp_path / name
    lines = b"prompt\n" * 2000 if "csv" in name else b'{"prompt":"x"}\n' * 2000
    packed = files.zstd.compress(lines) if name.endswith("zst") else gzip.compress(lines)
    for content in (packed[: len(packed) // 2], b"not compressed at all", packed[:30] + b"XX" + packed[32:]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot read"), open_reader(path, model="m") as reader:
            list(reader)


def test_zstd_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "zstd", None)
    (tmp_path / "f.jsonl.zst").write_bytes(b"")
    with pytest.raises(MissingExtra, match=r"pip install 'fastllm\[zstd\]'"):
        open_reader(tmp_path / "f.jsonl.zst")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, words in (("nope.jsonl", "No such file"), ("nope.csv", "No such file")):
        with pytest.raises(ConfigError, match=words):
            open_reader(tmp_path / name)
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        open_reader(tmp_path / "d.jsonl")
    for name in ("f.xlsx", "f", "f.gz", "f.json"):
        with pytest.raises(ConfigError, match=r"known are \.jsonl.*\.csv.*\.gz"):
            open_reader(tmp_path / name)
    (tmp_path / "f.jsonl").write_bytes(b"")
    with open_reader(tmp_path / "f.jsonl") as reader:
        (tmp_path / "f.jsonl").unlink()
        assert reader.fingerprint() == ""
    with pytest.raises(ConfigError, match="cannot read"):
        files.fingerprint(tmp_path / "f.jsonl")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads JSON lines from standard input, which has no fingerprint."""
    reading, writing = os.pipe()
    os.write(writing, b'{"prompt":"a"}\n')
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with open_reader("-", model="m") as reader:
            assert (reader.path, reader.fingerprint(), reader.count_hint) == (None, "", None)
            assert "stream" in repr(reader)
            assert [row.custom_id for row in reader] == ["row-0"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="standard input is closed"):
        open_reader("-")


NAMES = [
    "input",
    "body",
    "user",
    "stop",
    "metadata",
    "seed",
    "temperature",
    "messages",
    "extra_body",
    "system",
    "url",
    "method",
    "n",
    "prompt",
    "text",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["1.10", "", '{"a":  1}', "[1]", "null", "007", '"quoted"', "1e400"])
def test_a_template_takes_fields_as_they_stand_whatever_their_column_is_called(
    tmp_path: Path, name: str, value: str
) -> None:
    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["custom_id", name], ["a", value]])
    with open_reader(path, model="m", prompt=f"<{{{name}}}>", system=f"S {{{name}}}") as reader:
        (row,) = reader
    assert row.request is not None, row.error
    assert msgspec.json.decode(row.request.body)["messages"] == [
        {"role": "system", "content": f"S {value}"},
        {"role": "user", "content": f"<{value}>"},
    ]
    assert row.custom_id == "a"


def test_text_parameters_of_a_table_stay_text(tmp_path: Path) -> None:
    """A user 007 is no number 7, and a stop word 1.10 no 1.1; a list of stop words is one."""
    path = tmp_path / "in.csv"
    path.write_text('prompt,user,stop,seed\nx,007,1.10,7\nx,,"[""a"",""b""]",\n')
    with open_reader(path, model="m") as reader:
        bodies = [msgspec.json.decode(row.request.body) for row in reader if row.request is not None]
    assert [{k: b.get(k) for k in ("user", "stop", "seed")} for b in bodies] == [
        {"user": "007", "stop": "1.10", "seed": 7},
        {"user": None, "stop": ["a", "b"], "seed": None},
    ]


@pytest.mark.parametrize(
    "shape",
    ['{"body":{"messages":%s}}', '{"messages":%s}', '{"id":"x","messages":%s}', '{"prompt":%s}', '{"input":%s}'],
)
@pytest.mark.parametrize("options", [{}, {"params": {"seed": 1}}, {"system": "S"}, {"prompt": "{prompt}"}])
def test_any_depth_is_a_row_or_a_bad_row(shape: str, options: Any) -> None:
    for depth in (900, 950, *range(985, 1003)):
        (row,) = read((shape % ("[" * depth + "]" * depth)).encode(), **options)
        assert (row.request is None) == (row.error is not None)


@pytest.mark.parametrize("shape", ['{"max_tokens":%s,"prompt":"a"}', '{"max_tokens":%s,"messages":[]}'])
def test_numbers_without_end_are_bad_rows(shape: str) -> None:
    for digits in (15, 17, 400, 5000, 100_000):
        (row,) = read((shape % ("9" * digits)).encode())
        assert (row.request is None) == (digits > 16)
        assert row.error is None or len(row.error.message) < 400


def test_made_up_ids_are_compared_as_text() -> None:
    rows = read(b'{"prompt":"a"}\n{"custom_id":"row-00","prompt":"b"}\n{"custom_id":"row-0","prompt":"c"}')
    assert [r.error is None for r in rows] == [True, True, False]


def test_system_goes_where_the_operation_has_it() -> None:
    """Into the instructions of the Responses API, unless the row has some; where there is no place, a bad row."""
    rows = read(
        b'{"input":"a"}\n{"input":"a","instructions":"own"}\n{"input":[{"role":"developer","content":"own"}]}\n'
        b'{"input":[{"role":"user","content":"x"}],"instructions":null}\n'
        b'{"input":["a"]}\n{"body":{"prompt":"a"},"url":"/v1/completions"}\n{"input":"a","model":"embed"}',
        model="",
        params={"model": "m"},
        system="S {input}",
    )
    told = [msgspec.json.decode(r.request.body).get("instructions") for r in rows if r.request is not None]
    assert told[:3] == ["S a", "own", None]
    assert str(told[3]).startswith('S [{"role"')
    assert [r.error is not None for r in rows[4:]] == [True, True, True]
    assert "/embeddings takes no system message" in rows[4].error.message  # type: ignore[union-attr]
    assert "/completions takes no system message" in rows[5].error.message  # type: ignore[union-attr]


def test_fields_that_were_not_sent_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"id":"1","prompt":"x","temprature":0,"note":"n","user":"u"}\n{"prompt":"x","note":""}\n')
    with open_reader(path, model="m") as reader:
        assert all(row.request is not None for row in reader)
        assert reader.unsent == {"temprature": 1, "note": 2}
        assert unsent_words(reader.unsent) == "note (2 rows), temprature (1 row; did you mean temperature?)"
    assert unsent_words({f"c{i}": 1 for i in range(20)}).endswith(" and 12 more")
    table = tmp_path / "in.csv"
    table.write_text("prompt,note\nx,y\n")
    with open_reader(table, model="m") as reader:
        assert list(reader) and reader.unsent == {}
