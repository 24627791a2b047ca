"""Body: a streamed answer, read as it arrives."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from ..errors import APIConnectionError
from .base import HTTPStream

HIGH_WATER = 16 * 1024  # decoded bytes nobody has taken yet: above it the connection is not read
SIP = 16 * 1024  # bytes that a connection which carries streams reads at once


class Sink:
    """What has arrived of one body, between the connection that fills it and the Body that empties it.

    The connection does not hold the Body, so that a forgotten Body can be collected and close its connection.
    """

    __slots__ = ("ended", "error", "pieces", "size", "waiter")

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.error: APIConnectionError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def put(self, pieces: list[bytes]) -> None:
        self.pieces.extend(pieces)
        self.size += sum(map(len, pieces))

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Source(Protocol):
    """What a Body needs of its connection; each call does nothing once the connection is another sink's."""

    loop: asyncio.AbstractEventLoop

    def more(self, sink: Sink) -> asyncio.Future[None]: ...

    def taken(self, sink: Sink) -> None: ...

    def drop(self, sink: Sink) -> None: ...


class Reader(Protocol):
    """A connection, as Sips sees it."""

    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Sips(asyncio.BufferedProtocol):
    """Reads for a connection, no more than SIP bytes at a time: a loop would read what the kernel has, a quarter of a
    megabyte for each of a thousand streams that nobody takes from."""

    __slots__ = ("_buffer", "_reader", "connection_lost", "eof_received", "pause_writing", "resume_writing")

    def __init__(self, reader: Reader, buffer: memoryview) -> None:
        self._reader = reader
        self._buffer = buffer  # all connections of a loop share it: what is read is copied at once
        self.eof_received = reader.eof_received  # type: ignore[method-assign]
        self.connection_lost = reader.connection_lost  # type: ignore[method-assign]
        self.pause_writing = reader.pause_writing  # type: ignore[method-assign]
        self.resume_writing = reader.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.data_received(self._buffer[:nbytes].tobytes())


class Body(HTTPStream):
    """Iterate for decoded bytes. A Body that is dropped without `aclose` closes its connection all the same."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], source: Source, sink: Sink) -> None:
        self.status = status
        self.headers = headers
        self._source = source
        self._sink = sink

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        sink = self._sink
        while not sink.pieces:
            if sink.error is not None:
                raise sink.error
            if sink.ended:
                raise StopAsyncIteration
            if sink.waiter is not None:
                raise RuntimeError("two tasks read the same stream")
            try:
                await self._source.more(sink)
            except BaseException:
                self.close()
                raise
        piece = sink.pieces.popleft()
        sink.size -= len(piece)
        if sink.size < HIGH_WATER // 2:
            self._source.taken(sink)
        return piece

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; nothing more can be read."""
        self._source.drop(self._sink)
        self._sink.ended = True
        self._sink.pieces.clear()
        self._sink.wake()

    def __del__(self) -> None:
        # The collector may run in any thread, and after the loop.
        loop = self._source.loop
        if not self._sink.ended and self._sink.error is None and not loop.is_closed():
            loop.call_soon_threadsafe(self._source.drop, self._sink)

    def __repr__(self) -> str:
        state = "ended" if self._sink.ended else "failed" if self._sink.error else "open"
        return f"<Body {self.status} {state}, {self._sink.size} B waiting>"
