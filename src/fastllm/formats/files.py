"""Bytes of files: opening them by suffix, lines of bounded length, and the fingerprint of their content."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import msgspec

from ..errors import ConfigError, MissingExtra
from .pipe import Pipe, may_pause

try:
    from compression import zstd  # Python 3.14
except ImportError:
    try:
        from backports import zstd
    except ImportError:
        zstd = None

STDIN = "-"
MAX_LINE_BYTES = 64 * 1024 * 1024
COMPRESSIONS = ("", ".gz", ".zst")
BREATH = 256  # rows passed over before the reader's taker gets a turn
_CHUNK = 1 << 20
_BUNCH = 1 << 16  # bytes: lines that are taken soon are still in the processor's cache
# What a damaged or truncated compressed file raises, besides OSError.
BROKEN = (OSError, EOFError, zlib.error) if zstd is None else (OSError, EOFError, zlib.error, zstd.ZstdError)


def suffixes(path: Path) -> tuple[str, str]:
    """Split `a.csv.gz` into (".csv", ".gz"); both lower-case, the second "" where nothing is compressed."""
    outer = path.suffix.lower()
    if outer in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), outer
    return outer, ""


def open_bytes(path: Path) -> tuple[BinaryIO, Pipe | None]:
    """Open for reading, decompressing by the suffix; the Pipe is what may pause under it, if anything may.

    ConfigError if it cannot be opened.
    """
    _, compression = suffixes(path)
    library = _zstd() if compression == ".zst" else None
    try:
        raw: Any = path.open("rb")
        pipe = Pipe(os.dup(raw.fileno())) if may_pause(raw.fileno()) else None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; give a file") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    if pipe is not None:
        raw.close()
        raw = io.BufferedReader(pipe, _CHUNK)
    if compression == ".gz":
        raw = io.BufferedReader(_Owning(gzip.GzipFile(fileobj=raw, mode="rb"), raw), _CHUNK)
    elif library is not None:
        raw = io.BufferedReader(_Owning(library.ZstdFile(raw), raw), _CHUNK)
    return cast(BinaryIO, raw), pipe


def create_bytes(raw: BinaryIO, name: Path) -> BinaryIO:
    """Wrap an open file for writing, compressing as the suffix of `name` says."""
    _, compression = suffixes(name)
    if compression == ".gz":  # without name and time, so that equal rows give equal bytes
        return cast(BinaryIO, gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0))
    if compression == ".zst":
        return cast(BinaryIO, _zstd().ZstdFile(raw, mode="w"))
    return raw


def stdin_bytes() -> tuple[BinaryIO, Pipe | None]:
    """Standard input as bytes, on a descriptor of its own; see open_bytes."""
    try:
        fd = os.dup(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):
        raise ConfigError("standard input is closed; give a file instead of '-'") from None
    if not may_pause(fd):
        return os.fdopen(fd, "rb"), None
    pipe = Pipe(fd)
    return io.BufferedReader(pipe, _CHUNK), pipe


class Closing:
    """A context manager that closes itself."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Content(msgspec.Struct, frozen=True):
    """What reading a file once tells: the SHA-256 of its bytes and how many line ends it has; of one that is not
    compressed, how many come before each piece of it, too."""

    digest: str
    lines: int
    marks: array[int]


def fingerprint(path: Path) -> Content:
    """Read a whole file. The number of lines is 0 for compressed files. ConfigError where it cannot be read."""
    digest = hashlib.sha256()
    plain = not suffixes(path)[1]
    lines = 0
    marks = array("Q")
    last: bytes | bytearray = b"\n"
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while size := _filled(file, view):
                digest.update(view[:size])
                if plain:
                    marks.append(lines)
                    lines += buffer.count(b"\n", 0, size)
                last = buffer[size - 1 : size]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    return Content(digest.hexdigest(), lines + (plain and last != b"\n"), marks)


def _filled(file: io.FileIO, view: memoryview) -> int:
    """Read as much as there is room for, or as there is."""
    size = 0
    while size < len(view) and (more := file.readinto(view[size:])):
        size += more
    return size


def seek_behind(file: BinaryIO, line: int, marks: array[int]) -> None:
    """Go to where a line ends, of a file whose `marks` these are; the first line is 1."""
    piece = max(0, bisect_left(marks, line) - 1)  # the last one that begins before that end
    file.seek(piece * _CHUNK)
    for _ in islice(lines(file, _CHUNK), line - marks[piece]):
        pass


def lines(file: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes | None]:
    """Give each line with its end; None for a line over `max_bytes`, which is skipped without being held."""
    readline = file.readline
    limit = max_bytes + 1
    while line := readline(limit):
        if len(line) == limit and not line.endswith(b"\n"):
            while (rest := readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line


def bunches(file: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[list[bytes] | list[bytes | None]]:
    """Give the same lines without their ends, many at once: as many as a read finds, so of a pipe what is there."""
    read = getattr(file, "read1", file.read)
    begun = bytearray()  # of a line whose end was not seen yet; no more than tells that it is too long
    while chunk := read(_BUNCH):
        found: list[bytes] = chunk.split(b"\n")
        last = found.pop()
        if found:
            if begun:
                found[0] = bytes(begun) + found[0]
                begun.clear()
            long = max(map(len, found)) > max_bytes
            yield [line if len(line) <= max_bytes else None for line in found] if long else found
        if len(begun) <= max_bytes:
            begun += last
    if begun:
        yield [bytes(begun) if len(begun) <= max_bytes else None]


class _Owning(io.RawIOBase):
    """A decompressor that closes the file under it."""

    def __init__(self, inner: Any, raw: BinaryIO) -> None:
        self._inner = inner
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._inner.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
            self._raw.close()
        super().close()


def _zstd() -> Any:
    if zstd is None:
        raise MissingExtra("reading and writing .zst needs a package: pip install 'fastllm[zstd]'")
    return zstd
