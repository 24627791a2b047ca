"""Connection: one socket that carries one HTTP/1.1 exchange at a time.

The rules that make it impossible to hand an answer to another request:
- bytes that come while no exchange is under way close the connection;
- so do bytes after the end of an answer, even half of a status line;
- an exchange that is given up (cancelled, timed out, dropped) closes its connection;
- a connection goes back to its owner only after the whole read that ended the answer has been parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any, Protocol

import msgspec

from ..errors import APIConnectionError, APITimeoutError, ProtocolError
from ..options import Timeout
from ..types import HTTPResponse
from .answer import AnswerReader
from .base import Receiver
from .plain import PlainReader
from .stream import HIGH_WATER, SIP, Body, Sink, Sips
from .sweep import NEVER, Sweeper

SLICE = 256 * 1024  # larger requests are written piece by piece, as the peer takes them
# A peer that vanished is noticed after about a minute, where the timeouts would let it hang for longer.
_SOCKET_OPTIONS = [
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 60_000),
    )
    if hasattr(socket, name)
]


class Outbox:
    """Requests that are written together, once everything else of this turn of the loop is done.

    The kernel's code for a write then stays in the processor's cache from one to the next: with 500 in flight that
    saves a tenth of all that a request costs.
    """

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[Connection, bytes]] = []

    def put(self, connection: Connection, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append((connection, data))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection, data in waiting:
            if not connection.closed:
                connection.write(data)

    def __repr__(self) -> str:
        return f"<Outbox {len(self._waiting)} requests>"


class Context(msgspec.Struct, frozen=True):
    """What all connections of a transport share."""

    loop: asyncio.AbstractEventLoop
    sweeper: Sweeper
    max_header_bytes: int
    max_body_bytes: int
    outbox: Outbox
    plain: PlainReader
    sip: memoryview = msgspec.field(default_factory=lambda: memoryview(bytearray(SIP)))


class Owner(Protocol):
    """Who is told when a connection is free again, was found dropped by the server, or is gone."""

    def release(self, connection: Connection) -> None: ...

    def stale(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


_UNSET = Timeout()  # to make one takes as long as half a request


class Connection(asyncio.Protocol):
    """`start` an exchange and await its future: an HTTPResponse, or a Body for a stream."""

    __slots__ = (
        "_context", "_read_paused", "_reader", "_sink", "_sips", "_streaming", "_timeout", "_unsent", "_waiter",
        "_write_paused", "busy", "closed", "due", "expires", "idle_since", "loop", "name", "owner", "requests",
        "retires", "transport",
    )  # fmt: skip

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self.loop = context.loop
        self.name = name
        self.owner: Owner | None = None
        self.transport: Any = None  # asyncio.Transport; uvloop's is not a subclass
        self.closed = False
        self.busy = False
        self.requests = 0
        self.expires = self.idle_since = self.retires = 0.0  # the owner's, for idle connections
        self.due = NEVER
        self._reader = AnswerReader(name, context.max_header_bytes, context.max_body_bytes)
        self._waiter: Any = None  # a Receiver; of a stream a future, which has its Body or (None) its end
        self._sink: Sink | None = None
        self._streaming = False
        self._timeout = _UNSET
        self._unsent: memoryview | None = None
        self._write_paused = self._read_paused = self._sips = False

    # The exchange

    def start(
        self, data: bytes, timeout: Timeout, now: float, *, stream: bool = False, receiver: Receiver | None = None
    ) -> Any:
        """Write a request; the future that is given back has its answer, unless there is a receiver to hear of it. The
        caller makes sure that the connection is free."""
        self._waiter = waiter = self.loop.create_future() if receiver is None else receiver
        self.busy = True
        self.requests += 1
        self._streaming = stream
        self._timeout = timeout
        if timeout.first_byte is not None:
            self._context.sweeper.watch(self, now, timeout.first_byte)
        if stream and not self._sips:
            self._sip()
        if len(data) <= SLICE:
            self._context.outbox.put(self, data)
        else:
            self._unsent = memoryview(data)
            self._pump()
        return waiter

    def _sip(self) -> None:
        """Read in small pieces from now on."""
        self._sips = True
        self.transport.pause_reading()
        self.transport.set_protocol(Sips(self, self._context.sip))
        self.transport.resume_reading()

    def forsake(self, waiter: Any) -> None:
        """Whoever awaited the future of `start` was cancelled: close, unless the exchange had ended before."""
        if self._waiter is waiter:
            self.abort()
        elif self._streaming and waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            waiter.result().close()

    def fail(self, error: APIConnectionError) -> None:
        """End the exchange with an error, and the connection with it."""
        waiter, sink = self._waiter, self._sink
        if sink is not None:
            self._pour(sink)
            sink.error = error
            sink.wake()
        elif waiter is not None:
            with contextlib.suppress(asyncio.InvalidStateError):
                waiter.set_exception(error)
        self.abort()

    def abort(self) -> None:
        """Close now, whatever is under way."""
        self.due = NEVER
        self._waiter = self._sink = self._unsent = None
        self.busy = False
        self.closed = True
        if self.transport is not None:
            self.transport.abort()

    def shutdown(self) -> None:
        """Close an idle connection politely."""
        self.closed = True
        self.transport.close()

    def write(self, data: bytes | memoryview) -> None:
        self.transport.write(data)

    def _pump(self) -> None:
        while self._unsent and not self._write_paused:
            piece, self._unsent = self._unsent[:SLICE], self._unsent[SLICE:]
            self.write(piece)

    def expire(self) -> None:
        """Called by the sweeper."""
        if self._reader.begun:
            what, phase, seconds = "no further byte of the answer", "between_chunks", self._timeout.between_chunks
        else:
            what, phase, seconds = "no byte of an answer", "first_byte", self._timeout.first_byte
        self.fail(APITimeoutError(f"{what} from {self.name} within {seconds:g} s ({phase})", code=f"timeout_{phase}"))

    def _finish(self) -> None:
        """The answer is whole and nothing follows it so far."""
        reader, sink = self._reader, self._sink
        answer = None
        if sink is not None:
            self._pour(sink)
            sink.ended = True
            sink.wake()
        else:
            chunks = reader.chunks
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            answer = HTTPResponse(status=reader.status, headers=reader.head, body=body)
        keep = reader.keep
        reader.reset()
        self._hand_over(answer, keep)

    def _hand_over(self, answer: HTTPResponse | None, keep: bool) -> None:
        """Tell whoever waits, and be free for the next."""
        waiter = self._waiter
        self._waiter = self._sink = None
        self.due = NEVER
        self.busy = False
        if waiter is not None:
            try:
                waiter.set_result(answer)
            except asyncio.InvalidStateError:  # it was cancelled, and `forsake` is on its way
                pass
        if not keep or self._unsent or self.closed or self.owner is None:
            self.abort()
            return
        if self._read_paused:
            self._resume()
        self.owner.release(self)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._context.sweeper.entries.add(self)
        sock = transport.get_extra_info("socket")
        for level, option, value in _SOCKET_OPTIONS:
            try:
                sock.setsockopt(level, option, value)
            except OSError:  # a kernel without it, or a socket that is already reset
                pass

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            self.abort()
            return
        reader = self._reader
        if reader.fresh and not self._streaming:
            answer = self._context.plain.answer(data)
            if answer is not None:
                self._hand_over(answer, True)
                return
        try:
            reader.feed(data)
        except ProtocolError as error:
            self.fail(error)
            return
        if self._streaming and self._sink is None and reader.status:
            self._hand_over_head()
        if reader.complete:
            self._finish()
        elif self._sink is not None:
            self._pour(self._sink)
        else:
            self._extend(self._timeout.between_chunks if reader.begun else self._timeout.first_byte)

    def eof_received(self) -> None:
        try:
            if not self.busy:
                self.closed = True
            elif self._reader.end():
                self._finish()
            else:
                self._cut_off(None)
        except ProtocolError as error:
            self.fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.busy:
            self._cut_off(exc)
        self._context.sweeper.entries.discard(self)
        self._reader.close()
        if self.owner is not None:
            self.owner.lost(self)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._unsent:
            self._extend(self._timeout.first_byte)
            self._pump()

    def _extend(self, seconds: float | None) -> None:
        """Move the time of expiry."""
        if seconds is None:
            self.due = NEVER
        else:
            self._context.sweeper.watch(self, time.monotonic(), seconds)

    def _cut_off(self, cause: Exception | None) -> None:
        code = "eof" if cause is None else "connection_reset"
        how = "closed" if cause is None else "reset"
        error: APIConnectionError
        if self._reader.begun:
            got = f"{self._reader.received} bytes of its body" if self._reader.status else "a part of its head"
            error = ProtocolError(f"{self.name} {how} the connection after {got}, before the end", code=code)
        elif self.requests > 1 and not self._reader.interim:
            # Most likely dropped while it was idle. Told before the request ends, so that the next finds a fresh one.
            if self.owner is not None:
                self.owner.stale(self)
            text = f"{self.name} {how} a reused connection before it answered"
            error = APIConnectionError(text, code="stale_connection")
        else:
            error = APIConnectionError(f"{self.name} {how} the connection before it answered", code=code)
        error.__cause__ = cause
        self.fail(error)

    # Streams

    def _hand_over_head(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():  # else it was cancelled, and `forsake` is on its way
            self.due = NEVER
            self._waiter = None
            self._sink = Sink()
            waiter.set_result(Body(self._reader.status, self._reader.head, self, self._sink))

    def _pour(self, sink: Sink) -> None:
        """Pass on what has been decoded; whoever waits for it is no longer waiting for the network."""
        chunks = self._reader.chunks
        if chunks:
            sink.put(chunks)
            chunks.clear()
            self.due = NEVER
            sink.wake()
            if sink.size > HIGH_WATER and not self._read_paused and not self.closed:
                self._read_paused = True
                self.transport.pause_reading()

    def more(self, sink: Sink) -> asyncio.Future[None]:
        """Wait for more in the sink. The time between chunks runs only while somebody waits."""
        sink.waiter = waiter = self.loop.create_future()
        if self._timeout.between_chunks is not None:
            self._context.sweeper.watch(self, time.monotonic(), self._timeout.between_chunks)
        return waiter

    def taken(self, sink: Sink) -> None:
        """The sink has room again."""
        if self._sink is sink and self._read_paused:
            self._resume()

    def _resume(self) -> None:
        self._read_paused = False
        self.transport.resume_reading()

    def drop(self, sink: Sink) -> None:
        """Nobody will read the rest."""
        if self._sink is sink:
            self.abort()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self.busy else "idle"
        return f"<{type(self).__name__} {self.name} {state}, {self.requests} requests>"
