"""JSON lines: one object a line, in any of the shapes of rows.py. Blank lines, a BOM and CRLF are no rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError
from ..types import Row
from .files import BROKEN, MAX_LINE_BYTES, STDIN, Closing, bunches, fingerprint, open_bytes, seek_behind, stdin_bytes
from .ids import MADE_UP
from .pipe import Pipe
from .rows import Intake, Recipe

BOM = b"\xef\xbb\xbf"


class JSONLReader(Closing):
    """Iterates the rows of a file, lazily and once. `path` is None for a stream such as standard input."""

    format = ".jsonl"
    header: Sequence[str] | None = None  # rows have columns of their own

    def __init__(
        self,
        source: str | Path | BinaryIO,
        recipe: Recipe,
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self.recipe = recipe
        self.path: Path | None = None
        self.count_hint: int | None = None
        self._max = max_line_bytes
        self._intake = Intake(recipe)
        self._marks = array("Q")  # see `files.Content`
        self.pipe: Pipe | None = None
        if source == STDIN:
            self._file, self.pipe = stdin_bytes()
        elif isinstance(source, str | Path):
            self.path = Path(source)
            self._file, self.pipe = open_bytes(self.path)
        else:
            self._file = source

    def fingerprint(self) -> str:
        """Hash the file's content; "" for a stream, which can be read only once. Sets `count_hint`."""
        if self.path is None or not self.path.is_file():
            return ""
        content = fingerprint(self.path)
        self.count_hint = content.lines or None
        self._intake.expect(content.lines)
        self._marks = content.marks
        return content.digest

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, self._texts(self._file))

    def unanswered(
        self, passed: Callable[[int], Sequence[int] | None], line_of: Callable[[int], int] | None = None
    ) -> Iterator[Row | int]:
        behind = self._behind if len(self._marks) else None
        return self._intake.unanswered(
            *(self._texts(self._file), passed, self._row, self._remember), line_of=line_of, behind=behind
        )

    def _behind(self, line: int) -> Iterator[tuple[int, bytes | None]]:
        """Give what stands behind a line."""
        seek_behind(self._file, line, self._marks)
        return self._texts(self._file, line)

    def _row(self, record: tuple[int, bytes | None]) -> Row:
        number, text = record
        if text is None:
            return self._intake.bad(number, f"longer than {self._max} bytes, and skipped")
        return self._intake.line(text, number)

    def _remember(self, record: tuple[int, bytes | None]) -> None:
        number, text = record
        if text is None:
            self._intake.recall(MADE_UP, number)
        else:
            self._intake.remember(text, number)

    def _texts(self, file: BinaryIO, number: int = 0) -> Iterator[tuple[int, bytes | None]]:
        """Give number and text of each line that is a row, None for one that is too long; `number` lines are behind."""
        try:
            for found in bunches(file, self._max):
                for text in found:
                    number += 1
                    if text is None:
                        yield number, None
                        continue
                    if number == 1 and text.startswith(BOM):
                        text = text[3:]
                    text = text.strip(b" \t\r")
                    if text:
                        yield number, text
        except BROKEN as error:
            raise ConfigError(f"cannot read {self.path or 'the input'} after line {number}: {error}") from None

    @property
    def unsent(self) -> dict[str, int]:
        """Fields that stayed at home although somebody may have meant them as parameters, and in how many rows."""
        return self._intake.unsent

    def close(self) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return f"<JSONLReader {self.path or 'stream'} {self._intake!r}>"
