"""Text: each line that is not blank is a prompt, and the column `prompt` of a template."""

from __future__ import annotations

from ..types import Row
from .ids import MADE_UP
from .jsonl import JSONLReader
from .rows import not_utf8


class TextReader(JSONLReader):
    """Iterates the rows of a file, lazily and once."""

    format = ".txt"
    header = ("prompt",)

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
