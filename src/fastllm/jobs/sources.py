"""Sources: the rows of a job's input once more, for what is kept of them beside their answers."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self
from zlib import crc32

from ..errors import ConfigError
from ..formats.base import Reader, reopened
from ..types import Row


class Sources:
    """Gives the rows of a file again, as long as they are those that were answered. Where they are not asked for in
    their order, they are copied first into a file without a name in `folder`."""

    def __init__(self, reader: Reader | None, *, in_order: bool, folder: Path) -> None:
        self.missing = 0
        self._rows: Iterator[Row] = iter(())
        self._last: Row | None = None
        self._copy: BinaryIO | None = None
        self._starts = array("q", (0,))
        self._opened = ExitStack()
        self._can = False
        if reader is None or reader.path is None or reader.pipe is not None:
            return
        try:
            self._rows = iter(self._opened.enter_context(reopened(reader)))
        except ConfigError:  # it is gone; only what the journal has is there then
            return
        self._can = True
        if not in_order:
            try:
                copy = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                self._copy_to(self._opened.enter_context(copy))
            except BaseException:
                self._opened.close()
                raise

    def _copy_to(self, file: BinaryIO) -> None:
        for row in self._rows:
            file.write(row.source)
            self._starts.append(self._starts[-1] + len(row.source))
        self._copy = file

    def of(self, index: int, check: int, recorded: bytes) -> bytes:
        """Give a row's source, b"" where it is not there any more or is another now. `recorded` is what the journal has
        of it: rows of a stream, rows that failed."""
        if not self._can:
            self.missing += not recorded
            return recorded
        source = self._next(index) if self._copy is None else self._copied(self._copy, index)
        if source is None or crc32(source) != check:
            self.missing += 1
            return b""
        return source

    def _next(self, index: int) -> bytes | None:
        row = self._last
        while row is None or row.index < index:
            row = self._last = next(self._rows, None)
            if row is None:
                return None
        return row.source if row.index == index else None

    def _copied(self, file: BinaryIO, index: int) -> bytes | None:
        if index + 1 >= len(self._starts):
            return None
        file.seek(self._starts[index])
        return file.read(self._starts[index + 1] - self._starts[index])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()
