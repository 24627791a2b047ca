"""The bytes of a journal: a header written twice, then frames; all checks of what a damaged file may hold are here.

    header   magic 8 s, version u16, 0 u16, identity length u32, marker 4 s, salt u32, crc32 u32 | identity   (twice)
    frame    marker 4 s, length u32, crc32 u32 | index u64, state u8, check u32 | payload     (little-endian)

`length` counts what follows the crc. The marker and the salt are random for each journal and the salt plus the frame's
own offset seed its crc, so that neither a row's content nor a frame that was moved can pass for a frame. A damaged
frame is skipped by looking for the next marker that begins a whole one; what is left at the end is a torn tail.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from zlib import crc32

import msgspec

MAGIC = b"FLLMJRNL"
VERSION = 1
OK, FAILED, END = 1, 2, 9  # states; an END frame's index is the number of rows

_HEAD = struct.Struct("<8sHHI4sII")
_HEAD_CHECKED = _HEAD.size - 4
_FRAME = struct.Struct("<4sIIQBI")
_BODY = struct.Struct("<QBI")
_PREFIX = struct.Struct("<4sII")
_MASK = 0xFFFFFFFF
MAX_ROWS = 1 << 36
MAX_PAYLOAD = 1 << 30
_CHUNK = 1 << 20
_BLOCK, _BLOCKS = 1 << 16, 64  # bytes; kept at once
_TRIED = 2 * _BLOCKS  # blocks, until it is seen whether they pay

Buffer = bytes | memoryview


class Layout(msgspec.Struct, frozen=True):
    """What one journal's header says: how its frames are marked and salted, where they start, whose they are."""

    marker: bytes
    salt: int
    identity: bytes
    version: int = VERSION

    @property
    def start(self) -> int:
        """Where the first frame lies."""
        return 2 * (_HEAD.size + len(self.identity))

    def header(self) -> bytes:
        """Give both copies of the header."""
        head = _HEAD.pack(MAGIC, self.version, 0, len(self.identity), self.marker, self.salt, 0)[:_HEAD_CHECKED]
        return (head + struct.pack("<I", crc32(self.identity, crc32(head))) + self.identity) * 2

    def frame(self, offset: int, index: int, state: int, check: int, payload: bytes = b"") -> bytes:
        """Give the frame that may stand at this offset."""
        body = _BODY.pack(index, state, check) + payload
        return _PREFIX.pack(self.marker, len(body), crc32(body, (self.salt + offset) & _MASK)) + body


def new_layout(identity: bytes) -> Layout:
    """Give a layout with a marker and salt of its own."""
    return Layout(os.urandom(4), int.from_bytes(os.urandom(4), "little"), identity)


def read_layout(content: bytes) -> Layout | None:
    """Read the first whole copy of the header; None where there is none."""
    at = content.find(MAGIC)
    while at >= 0:
        if at + _HEAD.size <= len(content):
            _, version, _, length, marker, salt, crc = _HEAD.unpack_from(content, at)
            identity = content[at + _HEAD.size : at + _HEAD.size + length]
            if len(identity) == length and crc32(identity, crc32(content[at : at + _HEAD_CHECKED])) == crc:
                return Layout(marker, salt, identity, version)
        at = content.find(MAGIC, at + 1)
    return None


class Scan:
    """Goes over the frames of a file: (offset, index, state, check, payload) of each; the payload is for the
    moment only. Afterwards `end` is where the last whole one ends and `damaged` counts the places that were skipped."""

    def __init__(self, fd: int, layout: Layout, size: int, start: int = 0) -> None:
        self._fd = fd
        self._layout = layout
        self._size = size
        self.end = start or layout.start
        self.damaged = 0

    def __iter__(self) -> Iterator[tuple[int, int, int, int, memoryview]]:
        marker, salt, unpack = self._layout.marker, self._layout.salt, _FRAME.unpack_from
        while self.end + _FRAME.size <= self._size:
            base, at = self.end, 0
            chunk = os.pread(self._fd, _CHUNK, base)
            view, size = memoryview(chunk), len(chunk)
            while at + _FRAME.size <= size:
                mark, length, crc, index, state, check = unpack(chunk, at)
                stop = at + 12 + length
                if mark != marker or stop > size or crc32(view[at + 12 : stop], (salt + base + at) & _MASK) != crc:
                    break
                if length < _BODY.size or index >= MAX_ROWS:
                    break
                yield base + at, index, state, check, view[at + _FRAME.size : stop]
                at = stop
            self.end = base + at
            if at:
                continue  # what begins here may only have been cut off by the chunk's end
            whole = _whole_frame(self._fd, self._layout, base)
            if whole is not None:
                index, state, check, body = whole
                yield base, index, state, check, memoryview(body)[_BODY.size :]
                self.end = base + 12 + len(body)
                continue
            found = self._resynchronise(base + 1)
            if found is None:
                return
            self.damaged += 1
            self.end = found

    def _resynchronise(self, position: int) -> int | None:
        """Find the next offset at which a whole frame stands."""
        while position + _FRAME.size <= self._size:
            chunk = os.pread(self._fd, _CHUNK, position)
            if len(chunk) < len(self._layout.marker):
                return None
            at = chunk.find(self._layout.marker)
            while at >= 0:
                if read_frame(self._fd, self._layout, position + at) is not None:
                    return position + at
                at = chunk.find(self._layout.marker, at + 1)
            position += max(1, len(chunk) - 3)  # a marker may lie across the edge
        return None


def read_frame(fd: int, layout: Layout, offset: int) -> tuple[int, int, bytes] | None:
    """Read (index, state, payload) of the frame at an offset; None if there is no whole one."""
    whole = _whole_frame(fd, layout, offset)
    return None if whole is None else (whole[0], whole[1], whole[3][_BODY.size :])


class Frames:
    """Reads frames here and there in a file that only grows. Most are asked for nearly in the order in which they lie,
    so blocks are read and kept for a while; where that does not pay, frames are read one by one."""

    def __init__(self, fd: int, layout: Layout) -> None:
        self._fd = fd
        self._layout = layout
        self._marker, self._salt = layout.marker, layout.salt
        self._blocks: dict[int, memoryview] = {}
        self._reads = self._misses = 0
        self._pays = True

    def read(self, offset: int) -> tuple[int, int, Buffer] | None:
        """Give (index, state, payload) of the frame at an offset; None if there is no whole one."""
        number, at = offset // _BLOCK, offset % _BLOCK
        block = self._blocks.get(number)
        if block is None:
            if not self._pays:
                return read_frame(self._fd, self._layout, offset)
            block = self._load(number)
        self._reads += 1
        if at + _FRAME.size <= len(block):
            mark, length, crc, index, state, _ = _FRAME.unpack_from(block, at)
            stop = at + 12 + length
            fits = stop <= len(block) and length >= _BODY.size and mark == self._marker and index < MAX_ROWS
            if fits and crc32(block[at + 12 : stop], (self._salt + offset) & _MASK) == crc:
                return index, state, block[at + _FRAME.size : stop]
        return read_frame(self._fd, self._layout, offset)  # cut off by the block's end, or written since, or damaged

    def _load(self, number: int) -> memoryview:
        self._misses += 1
        if self._misses > _TRIED and self._reads < 4 * self._misses:
            self._pays = False
        blocks = self._blocks
        if len(blocks) >= _BLOCKS:
            del blocks[next(iter(blocks))]
        block = blocks[number] = memoryview(os.pread(self._fd, _BLOCK, number * _BLOCK))
        return block

    def __repr__(self) -> str:
        return f"<Frames {self._reads} read, {self._misses} blocks>"


def _whole_frame(fd: int, layout: Layout, offset: int) -> tuple[int, int, int, bytes] | None:
    content = os.pread(fd, 4096, offset)
    if len(content) < _FRAME.size:
        return None
    mark, length, crc, index, state, check = _FRAME.unpack_from(content)
    if mark != layout.marker or not _BODY.size <= length <= MAX_PAYLOAD or index >= MAX_ROWS:
        return None
    if 12 + length > len(content):
        if offset + 12 + length > os.fstat(fd).st_size:
            return None
        content = os.pread(fd, 12 + length, offset)
    body = content[12 : 12 + length]
    if len(body) < length or crc32(body, (layout.salt + offset) & _MASK) != crc:
        return None
    return index, state, check, body
