"""Text: a prompt a line."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm.errors import ConfigError
from fastllm.formats.base import check_model, open_reader, reopened
from fastllm.types import Row

CONTENT = '\ufeffone\r\n\r\n  {"prompt": "two"}\t\n \t\nthrée\u2028e'.encode()


def prompts(rows: list[Row]) -> list[Any]:
    return [msgspec.json.decode(row.request.body)["messages"] for row in rows if row.request is not None]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("name", ["in.txt", "in.txt.gz", "in.text"])
def test_each_line_that_is_not_blank_is_a_prompt(tmp_path: Path, name: str) -> None:
    """Without its mark of the byte order, its ends and the space around it; JSON is text, too. Lines are counted as
    an editor does."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(CONTENT) if name.endswith(".gz") else CONTENT)
    with open_reader(path, model="m", format="txt" if name == "in.text" else None) as reader:
        rows = list(reader)
        assert reader.unsent == {}
    assert prompts(rows) == [user("one"), user('{"prompt": "two"}'), user("thrée\u2028e")]
    assert [(row.custom_id, row.line) for row in rows] == [("row-0", 1), ("row-1", 3), ("row-2", 5)]


def test_it_is_opened_again_as_what_it_is(tmp_path: Path) -> None:
    """Once more for the columns kept, or to look whether anybody named a model."""
    path = tmp_path / "in.txt"
    path.write_text("one\ntwo\n")
    with open_reader(path, model="m") as reader, reopened(reader) as again:
        assert reader.format == again.format == ".txt"
        assert prompts(list(again)) == prompts(list(reader)) == [user("one"), user("two")]
    with open_reader(path) as reader, pytest.raises(ConfigError, match="no model: give model=…"):
        check_model(reader)


def test_a_template_has_the_one_column(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("one\n")
    with open_reader(path, model="m", prompt="Say {prompt}.", system="Be {prompt}.") as reader:
        assert prompts(list(reader)) == [[{"role": "system", "content": "Be one."}, *user("Say one.")]]
    with pytest.raises(ConfigError, match=r"the template names \{text\}, which is no column.* columns: prompt"):
        open_reader(path, model="m", prompt="Say {text}.")


def test_lines_that_are_none(tmp_path: Path) -> None:
    """Neither text in another code nor a line without end is anybody's prompt."""
    path = tmp_path / "in.txt"
    path.write_bytes(b"fine\n\xfcber\n" + b"x" * 100 + b"\nfine, too")
    with open_reader(path, model="m", max_line_bytes=50) as reader:
        rows = list(reader)
    assert [row.error is None for row in rows] == [True, False, False, True]
    assert "line 2: not UTF-8 at byte 0" in str(rows[1].error)
    assert "line 3: longer than 50 bytes" in str(rows[2].error)


def test_rows_with_an_answer_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("one\ntwo\n\nthree\n")
    with open_reader(path, model="m") as reader:
        found = list(reader.unanswered(lambda index: [0, 0] if index == 0 else []))
    assert found[0] == 2
    assert isinstance(found[1], Row) and (found[1].index, found[1].line, found[1].custom_id) == (2, 4, "row-2")


@pytest.mark.parametrize(
    ("format", "content", "expected"),
    [
        ("txt", b"a\nb\n", ["a", "b"]),
        ("csv", b'prompt,label\n"a\nb",1\nc,2\n', ["a\nb", "c"]),
        ("TSV", b"label\tprompt\n1\ta,b\n", ["a,b"]),
        (".jsonl", b'{"prompt": "a"}\n', ["a"]),
        (None, b'{"prompt": "a"}\n', ["a"]),
    ],
)
def test_standard_input_is_what_is_named(
    monkeypatch: pytest.MonkeyPatch, format: str | None, content: bytes, expected: list[str]
) -> None:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with open_reader("-", model="m", format=format) as reader:
            assert (reader.path, reader.fingerprint(), reader.count_hint) == (None, "", None)
            assert reader.pipe is not None
            assert prompts(list(reader)) == [user(text) for text in expected]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "standard input is empty: its first line must name the columns"),
        (b"text\na\n", "standard input has no column 'prompt'"),
        (b"a,a\n", "the header of standard input names a column twice: 'a'"),
    ],
)
def test_a_table_on_standard_input_that_is_none(monkeypatch: pytest.MonkeyPatch, content: bytes, words: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(ConfigError, match=words):
            open_reader("-", model="m", format="csv")
