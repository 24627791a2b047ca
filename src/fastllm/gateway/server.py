"""The gateway's HTTP server: uvicorn, with bounds on heads and times, and errors that are JSON like all others.

uvicorn and llhttp do the reading, and refuse what is ambiguous about a message's length. What they leave open is closed
here: a head has a largest size and a longest time, and a connection can be dropped with what it has not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
from asyncio.events import TimerHandle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ..errors import ConfigError, MissingExtra
from .app import Gateway
from .exchange import ABORT, AT_ONCE
from .faces import OPENAI, Fault, Pairs

try:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
except ImportError:
    raise MissingExtra("the gateway needs uvicorn: pip install 'fastllm[gateway]'") from None

BACKLOG = 4096
LAST_WORDS = 2.0  # seconds that requests have to end, once they are told to
_HEAD_TOO_LARGE = Fault(status=431, message="the request's head is too large", code="head_too_large")
_HEAD_TIMEOUT = Fault(status=408, message="the request's head did not come in time", code="head_timeout")
_BAD_REQUEST = Fault(status=400, message="this is no valid HTTP request", code="bad_http")


class _Refused(Exception):
    """Stops the parser; what is wrong stands in the protocol's `_fault`."""


class _Protocol(HttpToolsProtocol):
    """One connection."""

    most_head_bytes = 32 * 1024
    head_seconds = 10.0
    _head_bytes = 0  # that came since the head began, and maybe some of what follows it
    _in_head = True
    _ended = False  # a message ended in the last read
    _head_timer: TimerHandle | None = None
    _fault = _BAD_REQUEST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._ended = False
        self._head_bytes = self._head_bytes + len(data) if self._in_head else len(data)
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            if self._ended:  # the head began somewhere in this read: the next ones are counted
                self._head_bytes = 0
            if self._head_bytes > self.most_head_bytes:
                self._refuse(_HEAD_TOO_LARGE)
            elif self._head_timer is None:
                self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        self._check_head()
        self._in_head = False
        if self._head_timer is not None:
            self._head_came()
        super().on_headers_complete()
        self.scope[AT_ONCE] = partial(_at_once, self.cycle)  # type: ignore[literal-required]
        if self.parser.get_http_version() == "1.0":
            self.cycle.waiting_for_100_continue = False  # RFC 9110, 10.1.1: it knows no interim answers
            self.cycle.send = partial(_send_unchunked, self.cycle)  # type: ignore[method-assign]

    def on_message_complete(self) -> None:
        self._ended = True
        super().on_message_complete()

    def _check_head(self) -> None:
        """Stop at what llhttp lets pass: a head that is too large, no Host or two of them, an encoding of the body
        beside `chunked`, a version that is none."""
        if self._head_bytes > self.most_head_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.most_head_bytes:
                self._fault = _HEAD_TOO_LARGE
                raise _Refused
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise _Refused
        version = self.parser.get_http_version()
        if hosts > 1 or (version == "1.1" and not hosts) or version not in ("1.1", "1.0"):
            raise _Refused

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(_HEAD_TIMEOUT)

    def _unsupported_upgrade_warning(self) -> None:
        """What follows would be another protocol: nobody reads it."""
        self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._fault)

    def _refuse(self, fault: Fault) -> None:
        """Say what is wrong and close. While an earlier request is still to be answered, an answer here would be taken
        for that one's."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._in_head or cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True  # its body is what is wrong
            cycle.message_event.set()
        body = OPENAI.body(fault, "")
        head = (
            b"content-type: application/json\r\ncontent-length: %d\r\n"
            b"x-should-retry: false\r\nconnection: close\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[fault.status] + head + body)
        self.transport.close()


def _at_once(cycle: RequestResponseCycle, status: int, headers: Pairs, body: bytes) -> bool:
    """Write a whole answer in one piece, as the cycle's `send` would in two: that takes a fifth of a request's time,
    most of it to check headers that are our own. False where the connection does not take it at once."""
    if cycle.response_started or cycle.disconnected or cycle.flow.write_paused:
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    pieces = [STATUS_LINE[status]]
    for name, value in cycle.default_headers:
        pieces += (name, b": ", value, b"\r\n")
    for name, value in headers:
        pieces += (name, b": ", value, b"\r\n")
        if name == b"connection":
            cycle.keep_alive = False
    if not cycle.keep_alive and (b"connection", b"close") not in headers:
        pieces.append(b"connection: close\r\n")
    pieces += (b"\r\n", body)
    cycle.transport.write(b"".join(pieces))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


async def _send_unchunked(cycle: RequestResponseCycle, message: Any) -> None:
    """Send to a client of HTTP/1.0, which knows no chunks (RFC 9112, 6.1): a body without a length ends with the
    connection. uvicorn would send it in chunks."""
    if message["type"] == "http.response.start":
        if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
            cycle.chunked_encoding = False
    elif cycle.response_started and not cycle.expected_content_length:
        cycle.expected_content_length = len(message.get("body", b""))
    await RequestResponseCycle.send(cycle, message)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the loop's, see `run`


class Server:
    """Listens for one gateway; `run` it until `stop`. ConfigError at once where its address cannot be had."""

    def __init__(self, gateway: Gateway) -> None:
        options = gateway.options
        self.gateway = gateway
        self._socket = _bound(options.host, options.port)
        self.port = int(self._socket.getsockname()[1])
        protocol = type(
            "_BoundProtocol",
            (_Protocol,),
            {"most_head_bytes": options.header_bytes, "head_seconds": options.header_seconds},
        )
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                gateway,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=math.ceil(options.idle_seconds),
                timeout_graceful_shutdown=math.ceil(options.drain),
            )
        )
        self._stopping: asyncio.Task[None] | None = None

    @property
    def origin(self) -> str:
        """`http://host:port`."""
        host = self.gateway.options.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def run(self, on_listening: Callable[[str], None] | None = None) -> None:
        """Serve until `stop`, then let requests under way end."""
        if on_listening is not None:
            on_listening(self.origin)
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            self._socket.close()
            tasks = self._uvicorn.server_state.tasks
            if tasks:
                await asyncio.wait(set(tasks), timeout=LAST_WORDS)

    def stop(self) -> None:
        """Begin to stop: not ready at once, deaf after `lead` seconds. The second call does not wait for anybody."""
        if self._stopping is not None:
            self._uvicorn.force_exit = True
            self._uvicorn.should_exit = True
            for task in list(self._uvicorn.server_state.tasks):
                task.cancel("the gateway stops at once")
            return
        self.gateway.draining = True
        self._stopping = asyncio.get_running_loop().create_task(self._lead_out(), name="fastllm-lead-out")

    async def _lead_out(self) -> None:
        await asyncio.sleep(self.gateway.options.lead)
        self._uvicorn.should_exit = True

    def on_signals(self, reload: Callable[[], Any]) -> None:
        """Stop on SIGTERM and SIGINT, `reload` on SIGHUP."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, reload)

    def __repr__(self) -> str:
        return f"<Server {self.origin} {len(self._uvicorn.server_state.connections)} connections>"


def _bound(host: str, port: int) -> socket.socket:
    """Give a listening socket."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    found.setblocking(False)
    return found
