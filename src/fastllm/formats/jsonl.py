"""JSON lines: one object a line, in any of the shapes of rows.py. Blank lines, a BOM and CRLF are no rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ..errors import ConfigError
from ..types import Row
from .files import BREATH, BROKEN, MAX_LINE_BYTES, STDIN, fingerprint, lines, open_bytes, stdin_bytes
from .pipe import Pipe
from .rows import Intake, Recipe

BOM = b"\xef\xbb\xbf"


class JSONLReader:
    """Iterates the rows of a file, lazily and once. `path` is None for a stream such as standard input."""

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
        digest, count = fingerprint(self.path)
        self.count_hint = count or None
        return digest

    def __iter__(self) -> Iterator[Row]:
        intake = self._intake
        for number, text in self._texts(self._file):
            yield self._too_long(number) if text is None else intake.line(text, number)

    def unanswered(self, answered: Callable[[int], bool], needs_ids: Callable[[int], bool]) -> Iterator[Row | None]:
        intake, exact = self._intake, False
        for number, text in self._texts(self._file):
            index = intake.count
            if answered(index):
                if exact and text is not None:
                    intake.remember(text, number)
                else:
                    intake.pass_over()
                if index % BREATH == 0:
                    yield None
                continue
            if not exact and needs_ids(index):
                exact = True
                self._learn_ids(number)
            yield self._too_long(number) if text is None else intake.line(text, number)

    def _learn_ids(self, before: int) -> None:
        """Read the file once more, for the ids before this line."""
        assert self.path is not None
        self._intake.forget_ids()
        file, _ = open_bytes(self.path)
        with file:
            for number, text in self._texts(file):
                if number >= before:
                    break
                if text is None:
                    self._intake.pass_over()
                else:
                    self._intake.remember(text, number)

    def _texts(self, file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
        """Give number and text of each line that is a row; None for one that is too long."""
        number = 0
        try:
            for text in lines(file, self._max):
                number += 1
                if text is None:
                    yield number, None
                    continue
                if number == 1 and text.startswith(BOM):
                    text = text[3:]
                text = text.strip(b" \t\r\n")
                if text:
                    yield number, text
        except BROKEN as error:
            raise ConfigError(f"cannot read {self.path or 'the input'} after line {number}: {error}") from None

    def _too_long(self, number: int) -> Row:
        return self._intake.bad(number, f"longer than {self._max} bytes, and skipped")

    @property
    def unsent(self) -> dict[str, int]:
        """Fields that stayed at home although somebody may have meant them as parameters, and in how many rows."""
        return self._intake.unsent

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<JSONLReader {self.path or 'stream'} {self._intake!r}>"
