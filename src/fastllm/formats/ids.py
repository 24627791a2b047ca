"""Which custom_ids were seen, and on which line: two bytes of memory an id, the rest in a file without a name.

An id is known by its key, a 63-bit hash that is the same in every process. Two different ids with the same key would be
taken for one; in ten million rows the chance is one in 180,000.

Filters tell for sure that a key is new: Bloom filters whose four bits lie in one word, of 30 bits because Python is
quick with those. A key that may be known is looked for among the keys of its part, of which the last are in memory and
the others in the file, in chunks.
"""

from __future__ import annotations

import os
import random
import struct
import tempfile
from array import array
from collections.abc import Sequence
from functools import cache

UNKNOWN, MADE_UP = 0, 1  # keys that are none: of an id that is not known, and of "row-N" for the row N without one
LIKE_MADE_UP = 1 << 63  # set in the key of an id that reads like a made-up one

_PRIME = 0x7F4DFBBE6519A9D5  # of 63 bits, without a pattern, so that ids with one do not meet
_FACTOR = 0x5851F42D4C957F2D5851F42D4C957F2D  # spreads short ids over all of them
_FIRST_IDS = 1 << 16  # that the first filter is for; each further one is for twice as many
_IDS_A_WORD = 2
_PARTS = 256
_RECORD = 16  # bytes: key, line
_CHUNK = 256 * _RECORD
_pack = struct.Struct("<QQ").pack


@cache
def _bits() -> list[int]:
    """Give 4,096 words with four bits set; made when first needed, because it takes 20 ms."""
    draw = random.Random(0)
    return [sum(1 << bit for bit in draw.sample(range(30), 4)) for _ in range(4096)]


def key_of(custom_id: str, index: int) -> int:
    """Give the key of the id of the row `index`."""
    return MADE_UP if custom_id == f"row-{index}" else own_key(custom_id)


def own_key(custom_id: str) -> int:
    """Give the key of an id that the row brought with it."""
    key = int.from_bytes(custom_id.encode("utf-8", "surrogatepass") + b"\1", "little") * _FACTOR % _PRIME
    if key <= MADE_UP:
        key += 2
    if custom_id.startswith("row-") and custom_id[4:].isdecimal():
        key |= LIKE_MADE_UP
    return key


class SeenIds:
    """A set of keys that remembers the line of each."""

    __slots__ = (
        *("_buffers", "_chunks", "_fd", "_full", "_written"),
        *("_keys", "_older", "_bits", "_room", "_size", "_words", "expected"),
    )

    def __init__(self) -> None:
        self.expected = 0  # how many ids there may be, if somebody knows
        self._bits = _bits()
        self._older: list[array[int]] = []  # the filters that are full
        self._words = array("I", [0])  # the one that takes new keys
        self._size = 1  # words
        self._room = 0  # keys for which there is room in it
        self._keys = 0  # for which there was room in the filters
        self._buffers: list[bytearray] = []
        self._chunks: list[array[int]] = []
        self._fd = -1
        self._written = 0  # chunks
        self._full = False  # the disk takes no more: everything stays in memory

    def add(self, key: int, line: int) -> int:
        """Remember a key; give 0, or the line where it was seen before."""
        bits = self._bits[key & 4095]
        place = key >> 12
        words = self._words
        at = place % self._size
        word = words[at]
        if word & bits == bits or (self._older and self._is_in_older(place, bits)):
            before = self._line(key)
            if before:
                return before
        if not self._room:
            self._extend()
            return self.add(key, line)
        words[at] = word | bits
        self._room -= 1
        part = place % _PARTS
        buffer = self._buffers[part]
        buffer += _pack(key, line)
        if len(buffer) >= _CHUNK and not self._full:
            self._write(part, buffer)
        return 0

    def add_all(self, keys: Sequence[int], line: int) -> None:
        """Remember the keys of rows of which the first stands on this line, the next one on the next."""
        if self._older or self._room < len(keys):
            for key in keys:
                self.add(key, line)
                line += 1
            return
        words, size, buffers, bits_of, pack = self._words, self._size, self._buffers, self._bits, _pack
        for key in keys:  # as in `add`, but quicker
            place = key >> 12
            at = place % size
            word, bits = words[at], bits_of[key & 4095]
            if word & bits == bits:
                self.add(key, line)
            else:
                words[at] = word | bits
                self._room -= 1
                part = place % _PARTS
                buffer = buffers[part]
                buffer += pack(key, line)
                if len(buffer) >= _CHUNK and not self._full:
                    self._write(part, buffer)
            line += 1

    def _is_in_older(self, place: int, bits: int) -> bool:
        return any(words[place % len(words)] & bits == bits for words in self._older)

    def _line(self, key: int) -> int:
        """Look for a key in its part; 0 if it is not there."""
        packed = key.to_bytes(8, "little")
        part = (key >> 12) % _PARTS
        if found := _find(self._buffers[part], packed):
            return found
        for place in self._chunks[part]:
            if found := _find(os.pread(self._fd, _CHUNK, place * _CHUNK), packed):
                return found
        return 0

    def _extend(self) -> None:
        """Make room in the filters."""
        if not self._keys:
            self._buffers = [bytearray() for _ in range(_PARTS)]
            self._chunks = [array("I") for _ in range(_PARTS)]
            self._room = max(self.expected, _FIRST_IDS)
        else:
            self._older.append(self._words)
            self._room = 2 * _IDS_A_WORD * self._size
        self._keys += self._room
        self._size = self._room // _IDS_A_WORD
        self._words = array("I", bytes(4 * self._size))

    def _write(self, part: int, buffer: bytearray) -> None:
        try:
            if self._fd < 0:
                self._fd = _nameless_file()
            place = self._written
            if os.pwrite(self._fd, buffer, place * _CHUNK) < _CHUNK:
                raise OSError("the disk is full")
        except OSError:
            self._full = True
            return
        self._chunks[part].append(place)
        self._written = place + 1
        buffer.clear()

    def __len__(self) -> int:
        """Give how many keys there are."""
        return self._keys - self._room

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"<SeenIds {len(self)}>"


def _find(records: bytes | bytearray, packed: bytes) -> int:
    """Give the line of a key; 0 if it is not there."""
    at = records.find(packed)
    while at % _RECORD > 0:  # not at the beginning of a record; -1 % 16 is 15
        if at < 0:
            return 0
        at = records.find(packed, at + 1)
    return int.from_bytes(records[at + 8 : at + _RECORD], "little")


def _nameless_file() -> int:
    with tempfile.TemporaryFile(prefix="fastllm-ids-") as file:
        return os.dup(file.fileno())
