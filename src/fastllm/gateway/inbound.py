"""Inbound: one connection of a client: HTTP/1.1 in, one request after another to the app; llhttp does the parsing.

llhttp refuses what is ambiguous about a message's length. What it leaves open is closed here: a head has a largest size
and a longest time, a connection that nobody uses an end, and what is no body cannot go on for ever. A client that goes
away is told of in the moment in which the kernel says so.

It is made by uvicorn's server, which wants of it: the keywords of its constructor, `shutdown`, that it enters and
leaves `server_state.connections`, and its tasks `server_state.tasks`.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools

from .config import GatewayOptions
from .exchange import ASGI, WIRE, Scope
from .faces import OPENAI, Fault
from .outbox import WRITE_HIGH, WRITE_LOW, Patience, Shared
from .turn import STATUS_LINE, Turn

MOST_WAITING = 64 * 1024  # bytes of a body that nobody takes: above it the connection is not read
MOST_AHEAD = 8  # requests that came before the answer to an earlier one: with so many no more is parsed
STEP = 512  # bytes at least that are parsed together, whatever is in them
_HEAD_END = b"\r\n\r\n"
UNSENT = 32 * 1024  # bytes that the kernel takes of us beyond what is on its way
_UNSENT_OPTION = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_HEAD_TOO_LARGE = Fault(status=431, message="the request's head is too large", code="head_too_large")
_HEAD_TIMEOUT = Fault(status=408, message="the request's head did not come in time", code="head_timeout")
_BAD_REQUEST = Fault(status=400, message="this is no valid HTTP request", code="bad_http")


class _Refused(Exception):
    """Stops the parser; what is wrong stands in the connection's `_fault`."""


class Inbound(asyncio.Protocol):
    """One connection. `_turn` is the request that is being answered, `_reading` the one whose message comes in."""

    __slots__ = (
        "_address", "_ahead", "_app", "_at", "_body_came", "_connections", "_deaf", "_drains", "_due",
        "_ended", "_expects", "_fault", "_fresh", "_head_bytes", "_headers", "_held", "_hosts", "_in_head", "_limits",
        "_loop", "_other_bytes", "_parser", "_patience", "_read_paused", "_reading", "_rest", "_shared", "_state",
        "_timer", "_turn", "_url", "tasks", "transport", "write_paused",
    )  # fmt: skip

    def __init__(self, app: ASGI, limits: GatewayOptions, shared: Shared, *, server_state: Any, **_: Any) -> None:
        self._app = app
        self._limits = limits
        self._state = server_state
        self._connections: set[Any] = server_state.connections
        self.tasks: set[asyncio.Task[None]] = server_state.tasks
        self._shared = shared
        self._held = b""  # an answer that the end of this turn delivers
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # it is for us to say that nobody reads it
        self.transport: Any = None  # asyncio.Transport; uvloop's is not a subclass
        self._address: tuple[Any, Any] = (None, None)
        self._turn: Turn | None = None
        self._reading: Turn | None = None
        self._fresh: Turn | None = None  # came with this read, and has no task yet
        self._ahead: deque[Turn] = deque()
        self._drains: list[asyncio.Future[None]] = []
        self.write_paused = self._read_paused = False
        self._rest = b""  # came, and is parsed when there is room: all the time reading is paused
        self._deaf = False  # what comes is not for us any more
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._hosts = 0
        self._expects = False
        self._in_head = True
        self._head_bytes = 0  # that came since the head began, and maybe some of what follows it
        self._other_bytes = 0  # in a row that are neither head nor body
        self._body_came = self._ended = False  # in this read; `_ended`: a message did
        self._fault = _BAD_REQUEST
        self._timer: asyncio.TimerHandle | None = None
        self._at = self._due = math.inf  # when the timer fires; when patience ends

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._patience = Patience(transport, self._limits.write_seconds, self._loop)
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        sock = transport.get_extra_info("socket")
        if _UNSENT_OPTION is not None and sock is not None:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, _UNSENT_OPTION, UNSENT)
            except OSError:  # a kernel without it, or a socket that is already reset
                pass
        self._address = (transport.get_extra_info("sockname"), transport.get_extra_info("peername"))
        self._connections.add(self)
        self._await(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._patience.end()
        self._deaf = True
        self._held = self._rest = b""
        self._parser = self._fresh = self._reading = None
        self._ahead.clear()
        turn, self._turn = self._turn, None
        if turn is not None and not turn.complete:
            turn.leave()
        self.resume_writing()

    def eof_received(self) -> None:
        """Who waits for an answer and can hear nothing more has gone; closing politely would first write all of it.
        What is ready is delivered all the same: to who has only ended what it sends, and waits for that."""
        turn = self._turn
        if turn is not None and not self._held:
            self.transport.abort()
            return
        self._deaf = True
        self._turn = self._fresh = None
        self._ahead.clear()
        self._close()
        if turn is not None:
            turn.leave()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._patience.begin()

    def resume_writing(self) -> None:
        self.write_paused = False
        if not self.transport.is_closing():
            self._patience.end()
        drains, self._drains = self._drains, []
        for waiter in drains:
            if not waiter.done():
                waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        if len(data) <= STEP or data.count(_HEAD_END) + len(self._ahead) <= MOST_AHEAD:
            self._parse(data)
        else:
            self._parse_some(data)

    def _parse_some(self, data: bytes) -> None:
        """Parse while there is room, and keep the rest: the parser takes all that it is given."""
        start = 0
        while start < len(data) and not self._deaf:
            if self._is_full():  # and reading is paused
                self._rest = data[start:]
                return
            end = data.find(_HEAD_END, start + STEP)
            end = len(data) if end < 0 else end + len(_HEAD_END)
            self._parse(data[start:end])
            start = end

    def _parse(self, data: bytes) -> None:
        if self._deaf:
            return
        size = len(data)
        self._ended = self._body_came = False
        self._head_bytes = self._head_bytes + size if self._in_head else size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # what follows would be another protocol: nobody reads it
            self._deaf = True
        except httptools.HttpParserError:
            self._refuse(self._fault)
            return
        if self._fresh is not None:
            turn, self._fresh = self._fresh, None
            self._start(turn)
        if self._in_head:
            self._weigh_head()
        elif self._reading is not None:
            self._other_bytes = 0 if self._body_came else self._other_bytes + size
            if self._other_bytes - size > self._limits.header_bytes:
                self._refuse(_BAD_REQUEST)

    # The parser tells

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._hosts = 0
        self._expects = False
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        name = name.lower()
        self._headers.append((name, value))
        if name == b"host":
            self._hosts += 1
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise _Refused
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        parser = self._parser
        version = parser.get_http_version()
        self._check_head(version)
        self._in_head = False
        self._other_bytes = 0
        self._due = math.inf
        turn = Turn(
            self,
            self._scope(version, parser.get_method().decode("ascii")),
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            expects=self._expects and version != "1.0",  # RFC 9110, 10.1.1: it knows no interim answers
        )
        turn.scope[WIRE] = turn
        self._reading = turn
        if self._turn is None:
            self._turn = self._fresh = turn
        else:
            self._ahead.append(turn)
            if len(self._ahead) >= MOST_AHEAD:
                self._pause_reading()

    def on_body(self, body: bytes) -> None:
        turn = self._reading
        self._body_came = True
        if turn is not None and not turn.complete:
            turn.put(body)
            if turn.size > MOST_WAITING:
                self._pause_reading()

    def on_message_complete(self) -> None:
        self._ended = True
        turn, self._reading = self._reading, None
        if turn is not None:
            turn.end()
            if self._parser.should_upgrade():
                turn.keep_alive = False

    def _check_head(self, version: str) -> None:
        """Stop at what llhttp lets pass: a head that is too large, no Host or two of them, a version that is none."""
        if self._head_bytes > self._limits.header_bytes:
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
            if size > self._limits.header_bytes:
                self._fault = _HEAD_TOO_LARGE
                raise _Refused
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise _Refused
        if version not in ("1.1", "1.0"):
            raise _Refused

    def _scope(self, version: str, method: str) -> Scope:
        url, query = self._url, b""
        if url[:1] != b"/" or b"#" in url:
            parsed = httptools.parse_url(url)
            if parsed.path is None:
                raise _Refused
            raw, query = parsed.path, parsed.query or b""
        else:
            raw, _, query = url.partition(b"?")
        path = raw.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "scheme": "http",
            "method": method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw,
            "root_path": "",
            "query_string": query,
            "headers": self._headers,
            "server": self._address[0],
            "client": self._address[1],
        }

    # Bounds

    def _weigh_head(self) -> None:
        """A head has begun and is not whole."""
        if self._ended:  # it began somewhere in this read: the next ones are counted
            self._head_bytes = 0
        if self._head_bytes > self._limits.header_bytes:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._read_paused:  # it is not late while we do not read it
            self._due = math.inf
        elif self._ended or self._due - time.monotonic() > self._limits.header_seconds:
            self._await(self._limits.header_seconds)

    def _await(self, seconds: float) -> None:
        """Have patience for so long. A timer that stands already, and fires before, looks again then: most requests
        need none of their own."""
        self._due = due = time.monotonic() + seconds
        if self._at > due:
            if self._timer is not None:
                self._timer.cancel()
            self._at = due
            self._timer = self._loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._timer, self._at = None, math.inf
        left = self._due - time.monotonic()
        if left > 0.001:
            if left < math.inf:
                self._await(left)
        elif self._in_head:
            self._refuse(_HEAD_TIMEOUT)
        else:
            self._close()

    def _refuse(self, fault: Fault) -> None:
        """Say what is wrong and close. While an earlier request is still to be answered, an answer here would be taken
        for that one's."""
        self._deaf = True
        if self.transport.is_closing():
            return  # whoever is being answered hears of it when it is closed
        turn, self._turn, self._fresh = self._turn, None, None
        if turn is not None:
            hidden = self._in_head or turn.started or bool(self._ahead)
            self._ahead.clear()
            turn.leave()
            if hidden:  # else its own body is what is wrong
                self.transport.abort()
                return
        body = OPENAI.body(fault, "")
        head = (
            b"content-type: application/json\r\ncontent-length: %d\r\n"
            b"x-should-retry: false\r\nconnection: close\r\n\r\n" % len(body)
        )
        self.write(STATUS_LINE[fault.status] + head + body)
        self._close()

    # Turns

    def _start(self, turn: Turn) -> None:
        turn.task = task = self._loop.create_task(turn.run(self._app))
        self.tasks.add(task)

    def common(self) -> bytes:
        """Give the headers that all answers have."""
        return self._shared.headers()

    def write(self, data: bytes) -> None:
        """Write now, behind what is held."""
        if self._held:
            self.deliver()
        if self.write_paused:
            self._patience.grew(len(data))
        self.transport.write(data)

    def post(self, data: bytes) -> None:
        """Write at the end of this turn of the loop, together with others."""
        if self._held:
            self.deliver()
        self._held = data
        self._shared.post(self, self._loop)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call this at the end of this turn of the loop, once what is posted until then is written."""
        self._shared.soon(callback, self._loop)

    def deliver(self) -> None:
        """Write what is held, if anything."""
        data, self._held = self._held, b""
        if data:
            self.write(data)

    def _close(self) -> None:
        self.deliver()
        self.transport.close()
        self._patience.begin()  # until the connection is lost

    def answered(self, turn: Turn) -> None:
        """Go on with the next request, or wait for one."""
        self._state.total_requests += 1
        self._turn = None
        if not turn.keep_alive:
            self._deaf = True
            self._ahead.clear()
            self._close()
        elif self._ahead:
            self._turn = following = self._ahead.popleft()
            self._start(following)
        elif not self._in_head:
            self._await(self._limits.idle_seconds)
        if self._read_paused:
            self.read_on()

    async def drained(self) -> None:
        """Wait until the client has read on, or has gone."""
        while self.write_paused:
            waiter = self._loop.create_future()
            self._drains.append(waiter)
            await waiter

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()

    def _is_full(self) -> bool:
        turn = self._reading
        waits = turn is not None and not turn.complete and turn.size > MOST_WAITING
        return waits or len(self._ahead) >= MOST_AHEAD

    def read_on(self) -> None:
        """Read again, if that was paused and there is room."""
        if self._read_paused and not (self._is_full() or self.transport.is_closing()):
            if self._rest:  # the parser calls turns, one of which may be calling here
                self._loop.call_soon(self._go_on)
            else:
                self._read_paused = False
                self.transport.resume_reading()
                if self._in_head:
                    self._await(self._limits.header_seconds)

    def _go_on(self) -> None:
        rest, self._rest = self._rest, b""
        if rest and not self.transport.is_closing():
            self._parse_some(rest)
            self.read_on()

    def shutdown(self) -> None:
        """Close once what is under way has been answered."""
        if self._turn is None:
            self._close()
        else:
            last = self._ahead[-1] if self._ahead else self._turn
            last.keep_alive = False

    def __repr__(self) -> str:
        state = "answers" if self._turn is not None else "reads a head" if self._in_head else "idle"
        return f"<Inbound {state}, {len(self._ahead)} requests ahead>"
