"""RowIndex: the state, check and place of every row of a journal; only the states are in memory.

The rest lies in pages of 4,096 rows, of which some are kept, the others in a file beside the journal. That file spares
a later run the reading of the whole journal, and is never trusted over it: a header names the journal it belongs to and
how much of it is covered, each page has its checksum, and what does not fit is thrown away and read anew.

    header   magic 8 s, version u16, 0 u16, marker 4 s, salt u32, covered u64, total i64, rows u64 | crc32 u32
    page     4,096 states u8, checks u32, offsets i64, keys u64 | crc32 u32, salted with the page's number
                                                                                                  (little-endian)
A row's key is that of its id (formats/ids.py), 0 where it is not known.

A page may be newer than the header, after a crash: its rows whose frames lie beyond `covered` are forgotten, because
the journal itself says what became of them. A header is written when its pages are safe, and the journal as far as it
covers it. A disk that does not take the file costs memory and time, and no row.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import msgspec

from .frames import FAILED, OK, Layout

PAGE = 4096  # rows
KEPT = 32  # pages in memory: 2.6 MB
WORTH = 50_000  # rows, below which reading the journal is as fast
MAGIC = b"FLLMINDX"
VERSION = 2
RUN = 1024  # rows at most that are given at once
_HEADER = struct.Struct("<8sHH4sIQqQI")
_START = 4096
_CHECKS, _OFFSETS, _KEYS, _CRC = PAGE, 5 * PAGE, 13 * PAGE, 21 * PAGE
_SIZE = _CRC + 4
_SWAP = sys.byteorder == "big"
_NONE = array("Q")

Note = tuple[int, int, int, int, int]  # index, state, where its frame lies, its check, its id's key


class _Page:
    __slots__ = ("checks", "is_new", "keys", "offsets")

    def __init__(self, content: bytes | None = None) -> None:
        self.checks = array("I", bytes(4 * PAGE) if content is None else content[_CHECKS:_OFFSETS])
        self.offsets = array("q", bytes(8 * PAGE) if content is None else content[_OFFSETS:_KEYS])
        self.keys = array("Q", bytes(8 * PAGE) if content is None else content[_KEYS:_CRC])
        if _SWAP and content is not None:
            self.checks.byteswap()
            self.offsets.byteswap()
            self.keys.byteswap()
        self.is_new = content is None


class Saved(msgspec.Struct, frozen=True):
    """What a file held: how many bytes of the journal it covers, and the number of rows (None: not known)."""

    covered: int
    total: int | None


class Checkpoint(msgspec.Struct, frozen=True):
    """A header to be written once the journal is safe as far as it covers it; its pages are written already."""

    fd: int
    covered: int
    header: bytes

    def write(self) -> None:
        """Make the pages safe, and then the header. An OSError leaves the one before, which is as good as ever."""
        with contextlib.suppress(OSError):
            os.fsync(self.fd)
            _write(self.fd, self.header, 0)
            os.fsync(self.fd)


class RowIndex:
    """`state(i)` is 0, OK or FAILED; `ok` and `failed` count them. One thread at a time."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self._counts = [0, 0, 0]  # by state; that of rows without one is of no use
        self._layout = layout
        self._states = bytearray()
        self._pages: dict[int, _Page] = {}
        self._last_number = -1
        self._last = _Page()
        self._fd = -1
        self._broken = False  # the disk does not take the file: everything stays in memory

    def load(self, size: int) -> Saved | None:
        """Read the file, if it is there and fits a journal of `size` bytes; else None, and the index is empty."""
        saved = None
        with contextlib.suppress(OSError):
            self._fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            saved = self._read(size)
        if saved is None:
            self.clear()
        return saved

    def _read(self, size: int) -> Saved | None:
        head = os.pread(self._fd, _HEADER.size, 0)
        if len(head) < _HEADER.size:
            return None
        magic, version, _, marker, salt, covered, total, rows, crc = _HEADER.unpack(head)
        if (magic, version, marker, salt) != (MAGIC, VERSION, self._layout.marker, self._layout.salt):
            return None
        if crc32(head[:-4]) != crc or not self._layout.start <= covered <= size or rows > 21 * size:
            return None
        states = self._states
        for number in range(-(-rows // PAGE)):
            content = self._content(number)
            if content is None:
                return None
            here = bytearray(content[:PAGE])
            offsets = array("q", content[_OFFSETS:_KEYS])
            if _SWAP:
                offsets.byteswap()
            if max(offsets) >= covered:
                for place, offset in enumerate(offsets):
                    if offset >= covered:
                        here[place] = 0
                page = self._pages[number] = _Page(content)
                page.is_new = True  # or these rows would be believed once the file covers their offsets
            states += here
        self._counts = [states.count(state) for state in (0, OK, FAILED)]
        return Saved(covered, None if total < 0 else total)

    def _content(self, number: int) -> bytes | None:
        content = os.pread(self._fd, _SIZE, _START + number * _SIZE)
        whole = len(content) == _SIZE and crc32(content[:_CRC], number) == int.from_bytes(content[_CRC:], "little")
        return content if whole else None

    def clear(self) -> None:
        """Forget everything, and the file."""
        self._states.clear()
        self._pages.clear()
        self._last_number = -1
        self._counts = [0, 0, 0]
        self.drop()

    def drop(self) -> None:
        """Remove the file: what it says is not to be believed, or not needed."""
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; `save` comes before."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # Rows

    def __len__(self) -> int:
        return len(self._states)

    @property
    def ok(self) -> int:
        return self._counts[OK]

    @property
    def failed(self) -> int:
        return self._counts[FAILED]

    @property
    def states(self) -> bytearray:
        """A byte for each row, as far as there are any."""
        return self._states

    def state(self, index: int) -> int:
        return self._states[index] if index < len(self._states) else 0

    def note(self, rows: Iterable[Note]) -> None:
        """Take in where the newest frames of rows lie and what they say, and their ids' keys."""
        states, counts = self._states, self._counts
        page, current = self._last, -1  # the page of the row before, and its number
        for index, state, offset, check, key in rows:
            number, place = index // PAGE, index % PAGE
            if number != current:
                page, current = self._page(number), number
                page.is_new = True
                if index >= len(states):
                    states.extend(bytes((number + 1) * PAGE - len(states)))
            before = states[index]
            if before != state:
                counts[before] -= 1
                counts[state] += 1
                states[index] = state
            page.offsets[place] = offset
            page.checks[place] = check
            page.keys[place] = key

    def count(self, total: int) -> tuple[int, int]:
        """Give how many of the first `total` rows are ok and how many failed."""
        return self._states.count(OK, 0, total), self._states.count(FAILED, 0, total)

    def check(self, index: int) -> int:
        """Give the checksum of a done row's source."""
        number = index // PAGE
        return (self._last if number == self._last_number else self._page(number)).checks[index % PAGE]

    def keys(self, index: int, states: bytes) -> array[int]:
        """Give the keys of the rows from `index` on that are in one of these states, up to the first that is not."""
        stop = min(index + RUN, (index // PAGE + 1) * PAGE)
        here = self._states[index:stop]
        run = len(here) - len(here.lstrip(states))
        if not run:
            return _NONE
        number, place = index // PAGE, index % PAGE
        page = self._last if number == self._last_number else self._page(number)
        return page.keys[place : place + run]

    def offset(self, index: int) -> int:
        """Give where a done row's frame lies."""
        number = index // PAGE
        return (self._last if number == self._last_number else self._page(number)).offsets[index % PAGE]

    def _page(self, number: int) -> _Page:
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= KEPT and not self._broken:
                self._evict()
            content = None
            if self._fd >= 0 and not self._broken:
                content = os.pread(self._fd, _SIZE, _START + number * _SIZE)
                if len(content) < _SIZE:
                    content = None  # it was never written
            page = self._pages[number] = _Page(content)
        self._last_number, self._last = number, page
        return page

    def _evict(self) -> None:
        """Make room: the page that came first goes to the file."""
        number = next(iter(self._pages))
        page = self._pages[number]
        if page.is_new:
            try:
                _write(self._file(), self._packed(number, page), _START + number * _SIZE)
            except OSError:
                self._broken = True  # pages that are there are good, those in memory stay there
                return
        del self._pages[number]

    def _file(self) -> int:
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o600)
        return self._fd

    def _packed(self, number: int, page: _Page) -> bytes:
        columns = (page.checks, page.offsets, page.keys)
        if _SWAP:
            columns = (page.checks[:], page.offsets[:], page.keys[:])
            for column in columns:
                column.byteswap()
        states = bytes(self._states[number * PAGE : (number + 1) * PAGE])
        content = b"".join((states, *(column.tobytes() for column in columns)))
        return content + crc32(content, number).to_bytes(4, "little")

    def checkpoint(self, covered: int, total: int | None) -> Checkpoint | None:
        """Write the pages, and give the header by which the file covers so much of the journal; None if it is not worth
        it."""
        if len(self._states) < WORTH or self._broken:
            return None
        try:
            fd = self._file()
            for number, page in self._pages.items():
                if page.is_new:
                    _write(fd, self._packed(number, page), _START + number * _SIZE)
                    page.is_new = False
        except OSError:
            self._broken = True
            return None
        marker, salt, rows = self._layout.marker, self._layout.salt, len(self._states)
        head = _HEADER.pack(MAGIC, VERSION, 0, marker, salt, covered, -1 if total is None else total, rows, 0)[:-4]
        return Checkpoint(fd, covered, head + struct.pack("<I", crc32(head)))

    def __repr__(self) -> str:
        return f"<RowIndex {self.ok} ok, {self.failed} failed, {len(self._pages)} pages in memory>"


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done
