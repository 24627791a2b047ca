"""Text: each line that is not blank is a prompt, and the column `prompt` of a template."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from ..types import Row
from .files import MAX_LINE_BYTES
from .ids import MADE_UP
from .jsonl import JSONLReader
from .rows import Recipe, check_header, not_utf8


class TextReader(JSONLReader):
    """Iterates the rows of a file, lazily and once. ConfigError for a template of other columns."""

    format = ".txt"
    header = ("prompt",)

    def __init__(self, source: str | Path | BinaryIO, recipe: Recipe, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        super().__init__(source, recipe, max_line_bytes=max_line_bytes)
        try:
            check_header(self.path or "standard input", self.header, self._intake)
        except BaseException:
            self.close()
            raise

    def _row(self, record: tuple[int, bytes | None]) -> Row:
        number, text = record
        if text is None:
            return super()._row(record)
        try:
            return self._intake.columns({"prompt": text.decode()}, number)
        except UnicodeDecodeError as error:
            return self._intake.bad(number, not_utf8(error), text)

    def _remember(self, record: tuple[int, bytes | None]) -> None:
        self._intake.recall(MADE_UP, record[0])
