"""What comes out: answers as OpenAI's batch output lines or CSV, failures as lines that are valid input again."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import msgspec

from ..errors import ConfigError
from ..types import Outcome
from .columns import PLAIN, Columns, as_text, cells
from .files import create_bytes
from .rows import SOURCE_BYTES

_encode = msgspec.json.encode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])

ERRORS = ".errors.jsonl"
_ANSWER = (
    b'{"id":"batch_req_%016x%08x","custom_id":%s,"response":{"status_code":%d,'
    b'"request_id":%s,"body":%s},"error":null}\n'
)
_LF, _CR = b"\n\r"  # as numbers: for bytes `in` first fails to take them as one, and an exception is dear


def failures_path(output: Path) -> Path:
    """`answers.jsonl` -> `answers.errors.jsonl`; any other name stays whole (`answers.csv.errors.jsonl`), so that
    hardly two outputs share one: `answers.csv.jsonl` and `answers.csv` do (`sharing`)."""
    return output.with_name(output.name.removesuffix(".jsonl") + ERRORS)


def sharing(output: Path) -> Path:
    """Give the other output that has the same failures file."""
    name = output.name
    return output.with_name(name.removesuffix(".jsonl") if name.endswith(".jsonl") else name + ".jsonl")


def answer_line(
    custom_id: str | None, index: int, body: bytes, status: int = 200, request_id: str | None = None
) -> bytes:
    """Give a line of OpenAI's batch output. The body is kept byte for byte, but for line ends between its tokens."""
    if _LF in body or _CR in body:  # never inside a JSON string, so a space means the same
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    name = b'"row-%d"' % index if custom_id is None else _encode(custom_id)
    quoted = b"null" if request_id is None else _encode(request_id)
    return _ANSWER % (index, crc32(name), name, status, quoted, body)


def error_line(custom_id: str, index: int, error: dict[str, Any]) -> bytes:
    """Give a line of OpenAI's batch output for a row that failed."""
    name = _encode(custom_id)
    shown = {"code": error.get("code") or error.get("class"), "message": error.get("message")}
    return b'{"id":"batch_req_%016x%08x","custom_id":%s,"response":null,"error":%s}\n' % (
        *(index, crc32(name)),
        *(name, _encode(shown)),
    )


def failure_line(custom_id: str | None, line: int, source: bytes, error: dict[str, Any], answer: bytes = b"") -> bytes:
    """Give a line that is the row itself with its error beside it, so that the file of failures is an input.

    `answer` is the body of one that was paid for and does not fit; it goes in as `_answer`.
    What is no JSON object is kept as text in `_source`; read again, it is the same bad row.
    """
    try:
        source.decode()
        fields = _object.decode(source)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = source[:SOURCE_BYTES].decode("utf-8", "replace")
        bad = {"custom_id": custom_id, "_error": error, "_line": line, "_source": text}
        return _encode(bad) + b"\n"
    own = bytes(fields.get("custom_id", b"null"))
    if (bytes(fields.get("id", b"null")) if own == b"null" else own) in (b"null", b'""') and custom_id is not None:
        fields.pop("custom_id", None)
        fields = {"custom_id": msgspec.Raw(_encode(custom_id)), **fields}
    fields["_error"] = msgspec.Raw(_encode(error))
    fields.pop("_answer", None)  # of an earlier run
    if answer:
        fields["_answer"] = msgspec.Raw(answer)
    return _encode(fields).replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


class JSONLWriter:
    """OpenAI's batch output shape; what else is asked for stands behind it, as `keep` and `fields`."""

    def __init__(
        self, file: BinaryIO, name: Path, columns: Columns = PLAIN, header: Sequence[str] | None = None
    ) -> None:
        if columns.names:
            raise ConfigError("columns are for tables (CSV, Parquet, Arrow); JSON lines have keep and fields")
        columns.check_kept(header)
        self._raw = file
        self._file = create_bytes(file, name)
        self._columns = columns
        self.is_plain = not (columns.keep or columns.fields)  # a line holds nothing but the answer

    def write_answer(self, index: int, custom_id: str | None, body: bytes, status: int, request_id: str | None) -> None:
        """Where it `is_plain`: write what `write` would of an outcome with this answer, without one."""
        self._file.write(answer_line(custom_id, index, body, status, request_id))

    def write(self, outcome: Outcome, source: bytes = b"", failure: dict[str, Any] | None = None) -> None:
        answer, columns = outcome.response, self._columns
        index, custom_id = outcome.index, outcome.custom_id
        if answer is None:
            line = error_line(custom_id if custom_id is not None else f"row-{index}", index, failure or {})
        else:
            line = answer_line(custom_id, index, answer.body, answer.status_code, answer.request_id)
        more: dict[str, Any] = {}
        if columns.keep:
            more["keep"] = columns.kept(source)
        if columns.fields:
            more["fields"] = None if answer is None else columns.parsed(answer)
        if more:
            line = line[:-2] + b"," + _encode(more)[1:] + b"\n"
        self._file.write(line)

    def close(self) -> None:
        if self._file is not self._raw:
            self._file.close()


class CSVWriter:
    """One line an answer. What is no text is JSON: several choices, tool calls, vectors, nested columns. Fields are
    quoted where they must be; lines end in LF."""

    def __init__(
        self,
        file: BinaryIO,
        name: Path,
        delimiter: str = ",",
        columns: Columns = PLAIN,
        header: Sequence[str] | None = None,
    ) -> None:
        self._columns = columns.table(header)
        self._raw = file
        self._file = create_bytes(file, name)
        self._text = io.TextIOWrapper(self._file, encoding="utf-8", errors="backslashreplace", newline="")
        made = partial(csv.writer, self._text, delimiter=delimiter, lineterminator="\n")
        self._rows, self._quoted = made(), made(quoting=csv.QUOTE_ALL)
        self._write([column.name for column in self._columns])

    def write(self, outcome: Outcome, source: bytes = b"", failure: dict[str, Any] | None = None) -> None:
        self._write([as_text(value) for value in cells(self._columns, outcome, source, failure)])

    def _write(self, values: list[str]) -> None:
        # Before Python 3.13 a CR alone was not seen to need quotes.
        (self._quoted if any("\r" in value for value in values) else self._rows).writerow(values)

    def close(self) -> None:
        self._text.detach()
        if self._file is not self._raw:
            self._file.close()
