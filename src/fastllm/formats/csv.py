"""CSV and TSV with a header line; quoted fields may hold line ends. A row is its columns, see rows.py.

A column named as a request's parameter (`temperature`) is read as JSON where it is JSON; an empty one is not sent. With
a template of one's own every field is text, and goes in as it stands in the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError
from ..types import Row
from .files import BROKEN, MAX_LINE_BYTES, STDIN, Closing, fingerprint, lines, open_bytes, stdin_bytes
from .ids import MADE_UP
from .jsonl import BOM
from .rows import PARAMETERS, SOURCE_BYTES, Intake, Recipe, check_header, not_utf8

# Parameters that are always text, so that a `user` 007 stays what it is.
_TEXT_COLUMNS = {
    *("user", "service_tier", "prompt_cache_key", "safety_identifier", "reasoning_effort", "verbosity"),
    *("grammar", "guided_grammar", "guided_regex"),
}
_JSON_COLUMNS = (PARAMETERS - _TEXT_COLUMNS) | {"messages", "input", "body", "extra_body"}
_OR_TEXT = {"input": (list, dict), "stop": (list, str)}  # what their JSON may be; anything else is text
_OPTIONAL = _JSON_COLUMNS | _TEXT_COLUMNS | {"custom_id", "id", "model", "system", "url", "method"}
_Record = tuple[int, list[str], str]  # the first line and the fields, and what is wrong with it, if anything is


class CSVReader(Closing):
    """Iterates the rows of a file, lazily and once. ConfigError for a header that cannot be used."""

    def __init__(
        self, source: str | Path, recipe: Recipe, *, delimiter: str = ",", max_line_bytes: int = MAX_LINE_BYTES
    ) -> None:
        self.recipe = recipe
        self.path: Path | None = None if source == STDIN else Path(source)
        self.format = ".csv" if delimiter == "," else ".tsv"
        self.count_hint: int | None = None
        self._max = max_line_bytes
        self._delimiter = delimiter
        self._line = 0
        self._broken = ""  # why the line that the parser is about to get is none
        self._raw: list[bytes] = []  # the record's lines so far, as much of them as would be kept
        self._raw_bytes = 0
        self._intake = Intake(recipe)
        # Process-wide, as the stdlib has it; only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))
        self._file, self.pipe = stdin_bytes() if self.path is None else open_bytes(self.path)
        try:
            self._parser = csv.reader(self._text(), delimiter=delimiter, strict=True)
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    @property
    def name(self) -> str:
        return "standard input" if self.path is None else str(self.path)

    def _read_header(self) -> list[str]:
        try:
            header = [name.strip() for name in next(self._parser, [])]
        except csv.Error as error:
            raise ConfigError(f"the header of {self.name} cannot be read: {error}") from None
        except BROKEN as error:
            raise ConfigError(f"cannot read {self.name}: {error}") from None
        if self._broken:
            raise ConfigError(f"the header of {self.name} cannot be read: {self._broken}")
        if not header:
            raise ConfigError(f"{self.name} is empty: its first line must name the columns, such as prompt")
        check_header(self.name, header, self._intake)
        return header

    def _text(self) -> Iterator[str]:
        """Give the parser its lines; one that cannot be decoded is given as an empty one and remembered."""
        for raw in lines(self._file, self._max):
            self._line += 1
            if raw is None:
                self._broken = f"longer than {self._max} bytes, and skipped"
                yield "\n"
                continue
            if self._line == 1 and raw.startswith(BOM):
                raw = raw[3:]
            if self._raw_bytes < SOURCE_BYTES:
                self._raw.append(raw)
                self._raw_bytes += len(raw)
            try:
                yield raw.decode()
            except UnicodeDecodeError as error:
                self._broken = not_utf8(error)
                yield raw.decode("utf-8", "replace")

    def fingerprint(self) -> str:
        """Hash the file's content; "" for what is no regular file. Sets `count_hint`."""
        if self.path is None or not self.path.is_file():
            return ""
        content = fingerprint(self.path)
        self.count_hint = max(0, content.lines - 1) or None
        self._intake.expect(content.lines)
        return content.digest

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, self._records())

    def unanswered(
        self, passed: Callable[[int], Sequence[int] | None], line_of: Callable[[int], int] | None = None
    ) -> Iterator[Row | int]:
        return self._intake.unanswered(self._records(), passed, self._row, self._remember)

    def _row(self, record: _Record) -> Row:
        first, fields, wrong = record
        if wrong:
            source = _joined(fields) if fields else b"".join(self._raw)[:SOURCE_BYTES]
            return self._intake.bad(first, wrong, source)
        return self._intake.columns(self._columns(fields), first)

    def _remember(self, record: _Record) -> None:
        first, fields, wrong = record
        if wrong:
            self._intake.recall(MADE_UP, first)
        else:
            self._intake.remember_columns(self._columns(fields), first)

    def _columns(self, fields: list[str]) -> dict[str, Any]:
        columns = dict(zip(self.header, fields, strict=True))
        return columns if self.recipe.prompt is not None else typed(columns)

    def _records(self) -> Iterator[_Record]:
        parser, width = self._parser, len(self.header)
        while True:
            first = self._line + 1
            self._broken, self._raw_bytes = "", 0
            self._raw.clear()
            try:
                fields = next(parser)
            except StopIteration:
                return
            except csv.Error as error:
                yield first, [], self._what(error, first)
                continue
            except BROKEN as error:
                raise ConfigError(f"cannot read {self.name} after line {self._line}: {error}") from None
            if self._broken:
                yield first, fields, self._broken
            elif len(fields) == width:
                yield first, fields, ""
            elif fields:
                yield first, fields, f"{len(fields)} fields where the header has {width}"

    def _what(self, error: csv.Error, first: int) -> str:
        if "unexpected end of data" in str(error):
            return f"not valid CSV: a quote is opened and never closed; the lines {first} to {self._line} are no rows"
        return f"not valid CSV: {error}"

    @property
    def unsent(self) -> dict[str, int]:
        """Nothing: a table has columns for other purposes, and that is no mistake."""
        return {}

    def close(self) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return f"<CSVReader {self.name} {self._intake!r}>"


def typed(columns: dict[str, Any]) -> dict[str, Any]:
    """Read parameter columns as JSON and leave out empty optional ones."""
    for name in columns.keys() & _OPTIONAL:
        value = columns[name]
        if value == "":
            del columns[name]
        elif name in _JSON_COLUMNS and isinstance(value, str):
            try:
                decoded = msgspec.json.decode(value)
                if isinstance(decoded, _OR_TEXT.get(name, object)):
                    columns[name] = decoded
            except (msgspec.DecodeError, RecursionError):
                pass  # plain text, such as service_tier
    return columns


def _joined(fields: list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()[:SOURCE_BYTES].encode()
