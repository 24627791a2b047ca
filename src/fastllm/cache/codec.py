"""The bytes of one cached answer: versioned, checksummed, compressed where that pays; no pickle.

    magic "FLC" | version u8 | codec u8 | crc32 u32 of what follows | msgpack array, compressed

Whatever does not fit (another version, a flipped bit, another request) reads as None. Neither headers nor keys are
among what is kept.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import msgspec

from ..answers import Usage
from ..types import Response

try:
    from compression import zstd
except ImportError:
    try:
        from backports import zstd
    except ImportError:
        zstd = None

VERSION = 2
RAW, ZLIB, ZSTD = 0, 1, 2
# Bytes below which nothing is compressed. A usual chat entry of 2 KB would shrink to 54 %, for 18 µs a write and 20 µs
# a hit (zstd 3; zlib 1: 25 and 7), where the disk takes 5; at 16 KB, an embedding, a hit costs 35 of its 150 µs.
SMALL = 4096
LARGE = 64 * 1024  # bytes from which packing and unpacking take too long for the event loop
MOST_BYTES = 256 * 1024 * 1024  # no entry unpacks to more
LARGEST = MOST_BYTES - LARGE  # bytes of request and answer above which nothing is kept: the rest of an entry is small
_HEAD = struct.Struct(">3sBBI")
_MAGIC = b"FLC"


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One answer and what it answers; `created` is wall-clock seconds."""

    key: bytes
    canonical: bytes
    created: float
    path: str
    body: bytes
    usage: Usage | None
    finish_reason: str | None
    request_id: str | None
    endpoint: str

    def response(self) -> Response:
        return Response(
            body=self.body,
            path=self.path,
            usage=self.usage,
            finish_reason=self.finish_reason,
            request_id=self.request_id,
            endpoint=self.endpoint,
            attempts=0,
            cached=True,
            cost=0.0,
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


def pack(key: bytes, canonical: bytes, created: float, response: Response) -> bytes:
    """Give the bytes to keep for this answer to this canonical request."""
    data = _encode(
        Entry(
            key,
            canonical,
            created,
            response.path,
            response.body,
            response.usage,
            response.finish_reason,
            response.request_id,
            response.endpoint,
        )
    )
    codec = RAW
    if len(data) >= SMALL:
        codec, data = (ZSTD, zstd.compress(data, 3)) if zstd is not None else (ZLIB, zlib.compress(data, 1))
    return _HEAD.pack(_MAGIC, VERSION, codec, zlib.crc32(data)) + data


def unpack(key: bytes, canonical: bytes, value: bytes) -> Entry | None:
    """Read an entry back, if the bytes are whole and belong to this key and this canonical request."""
    try:
        magic, version, codec, checksum = _HEAD.unpack_from(value)
        data = memoryview(value)[_HEAD.size :]
        if magic != _MAGIC or version != VERSION or zlib.crc32(data) != checksum:
            return None
        entry = _decode(_UNPACK[codec](data))
    except _UNREADABLE:
        return None
    return entry if entry.canonical == canonical and entry.key == key else None


def _as_is(data: memoryview) -> memoryview:
    return data


def _inflate(data: memoryview) -> bytes:
    unpacker = zlib.decompressobj()
    out = unpacker.decompress(data, MOST_BYTES)
    if not unpacker.eof:
        raise ValueError("cut off, or larger than any answer")
    return out


def _expand(data: memoryview) -> bytes:
    unpacker = zstd.ZstdDecompressor()
    out: bytes = unpacker.decompress(data, MOST_BYTES)
    if not unpacker.eof:
        raise ValueError("cut off, or larger than any answer")
    return out


_UNPACK: dict[int, Callable[[memoryview], bytes | memoryview]] = {RAW: _as_is, ZLIB: _inflate}
# KeyError: a codec that is not installed here. TypeError: a store that gave something else than bytes. RecursionError:
# a deep entry of somebody else's.
_UNREADABLE: tuple[type[Exception], ...] = (
    msgspec.MsgspecError, struct.error, ValueError, TypeError, KeyError, zlib.error, MemoryError, RecursionError,
)  # fmt: skip
if zstd is not None:
    _UNPACK[ZSTD] = _expand
    _UNREADABLE += (zstd.ZstdError,)
