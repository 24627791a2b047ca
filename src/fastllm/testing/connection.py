"""One HTTP/1.1 connection of the model server: requests in, Wires out in order, nothing left when the client goes.

Requests that come in together (pipelining) are answered one after the other, each judged when its turn comes. A
client that closes its side, even half, counts as gone: what was on its way is cancelled. At most one timer exists
per connection, and no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import cast

import httptools

from .app import App, Received
from .faults import STALL_BEFORE_RESET
from .reply import Reply, Wire, error_body

_HEAD_LIMIT = 1_048_576
_QUEUE_LIMIT = 64
_LENGTHS = frozenset({6, 12, 13})  # of the headers below: most others are told apart without lowering them


class Connection(asyncio.Protocol):
    """Speaks HTTP for an App on one socket."""

    def __init__(self, app: App, everyone: set[Connection], loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._everyone = everyone
        self._loop = loop
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Received] = deque()
        self._wire: Wire | None = None  # what is being waited for or sent
        self._timer: asyncio.Handle | None = None
        self._position = 0
        self._began = 0.0
        self._paused = False  # the client reads more slowly than we write
        self._stopped_reading = False
        self._last = False  # nothing more is read: the connection ends with what is queued
        self._head_bytes = 0
        self._clear()

    def _clear(self) -> None:
        self._url = b""
        self._authorization = b""
        self._fault = b""
        self._parts: list[bytes] = []
        self._size = 0

    # --- asyncio calls these ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._everyone.add(self)
        live = self._app.recorder.live
        live.connections_open += 1
        live.connections_total += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._everyone.discard(self)
        self._app.recorder.live.connections_open -= 1
        self._last = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wire is not None:
            # A fault that ends the connection has played its part; everything else was cut off by the client.
            done = self._wire.end in ("close", "reset") and self._position >= len(self._wire.pieces)
            self._finish(cancelled=not done)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._wire is not None and self._timer is None and self._position:
            self._play()

    def data_received(self, data: bytes) -> None:
        if self._last:
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # RFC 9110 7.8: a server may go on as if nothing was asked
            self._parser = httptools.HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            if rest:
                self.data_received(rest)
        except httptools.HttpParserError as error:
            self._refuse(400, f"This is not HTTP/1.1: {error}.")
        if self._head_bytes > _HEAD_LIMIT and not self._parts and not self._last:
            self._refuse(431, "The headers are too large.")

    # --- the parser calls these ------------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) not in _LENGTHS:
            return
        name = name.lower()
        if name == b"authorization":
            self._authorization = value
        elif name == b"x-api-key":
            self._authorization = b"Bearer " + value
        elif name == b"x-mock-fault":
            self._fault = value
        elif name == b"expect" and value.lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._app.config.body_limit:
            self._parts.append(data)
        elif not self._last:
            self._parts.clear()
            self._refuse(413, f"The request body is larger than {self._app.config.body_limit} bytes.")

    def on_message_complete(self) -> None:
        parser, parts = self._parser, self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        keep = parser.should_keep_alive()
        received = Received(parser.get_method(), self._url, self._authorization, self._fault, body, keep)
        self._clear()
        self._head_bytes = 0
        if self._last:
            return
        self._queue.append(received)
        if not keep:
            self._last = True
        if self._wire is None:
            self._pump()
        elif len(self._queue) >= _QUEUE_LIMIT and not self._stopped_reading:
            self._stopped_reading = True
            self._transport.pause_reading()

    # --- answering -------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Answer what is queued until one answer takes time."""
        while self._queue and self._wire is None:
            received = self._queue.popleft()
            wire = self._app.answer(received)
            if wire.end == "keep" and not received.keep_alive:
                wire.end = "close"
            self._wire = wire
            self._position = 0
            if wire.delay:
                self._timer = self._loop.call_later(wire.delay, self._late)
            else:
                self._send()
        if self._stopped_reading and len(self._queue) < _QUEUE_LIMIT:
            self._stopped_reading = False
            self._transport.resume_reading()

    def _late(self) -> None:
        self._timer = None
        self._send()
        self._pump()

    def _send(self) -> None:
        wire = self._wire
        assert wire is not None
        if len(wire.pieces) == 1:
            self._transport.write(wire.pieces[0])
            self._position = 1
            if not self._paused:
                self._sent(wire)
        elif wire.pieces:
            self._began = self._loop.time()
            self._play()
        else:
            self._sent(wire)

    def _play(self) -> None:
        """Write the pieces that are due, then wait for the next or for the client to read."""
        self._timer = None
        wire = self._wire
        if wire is None or self._paused:
            return  # resume_writing comes back here
        count, now = len(wire.pieces), self._loop.time()
        due = self._position + 1
        if wire.pause:  # counted from the beginning, so that late timers do not add up
            due = max(due, 1 + int((now - self._began) / wire.pause + 0.01))
        due = min(due, count)
        if due > self._position:
            self._transport.write(b"".join(wire.pieces[self._position : due]))
            self._position = due
        if due < count:
            wait = max(0.0, self._began + due * wire.pause - now) if wire.pause else 0.0
            self._timer = self._loop.call_later(wait, self._play) if wait else self._loop.call_soon(self._play)
        elif not self._paused:
            self._sent(wire)
            self._pump()

    def _sent(self, wire: Wire) -> None:
        """Everything is written: do what the wire ends with."""
        if wire.end == "keep":
            self._finish(cancelled=False)
        elif wire.end == "close":
            self._finish(cancelled=False)
            self._stop()
            self._transport.close()
        elif wire.end == "reset" and wire.pieces:
            self._timer = self._loop.call_later(STALL_BEFORE_RESET, self._reset)
        elif wire.end == "reset":
            self._reset()
        # "hang": until the client has enough

    def _finish(self, *, cancelled: bool) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._app.recorder.ended(wire, cancelled=cancelled)

    def _stop(self) -> None:
        self._last = True
        self._queue.clear()

    def _reset(self) -> None:
        """Close with an RST: a linger of 0 s makes the kernel throw away what it still has."""
        self._finish(cancelled=False)
        self._stop()
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no request, and close: where the next one would begin is unknown."""
        self._stop()
        body = error_body(message, type="invalid_request_error")
        self._transport.write(b"".join(Reply(body, status, headers="connection: close\r\n").pieces()))
        self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def __repr__(self) -> str:
        state = "waiting" if self._timer else "sending" if self._wire else "idle"
        return f"<Connection {state}, {len(self._queue)} queued>"
