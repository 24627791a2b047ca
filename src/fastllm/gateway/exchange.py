"""Exchange: one HTTP request and its answer, over any ASGI server.

It reads the few headers that matter in one pass, reads the body up to its bound, writes answers and events, and watches
for a client that goes away: then the task that works for it is cancelled, and whatever that holds is given back.

Our own server tells of that by itself, and writes without a message for each piece (`Wire`). Of any other it is asked,
by a task, and as watching a request that is answered at once would cost more than answering it, a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, Protocol

from .auth import Tenant
from .config import GatewayOptions
from .faces import Face, Fault, Refusal, pairs_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]

WIRE = "fastllm.wire"  # where our own server puts a Wire into the scope


class Wire(Protocol):
    """What a server may do for us beyond ASGI."""

    task: asyncio.Task[None] | None

    def body(self) -> bytes | None:
        """Take the request's body, where all of it has come. None: receive it."""

    def on_leave(self, callback: Callable[[], None] | None) -> None:
        """Have this called, once, when the client leaves before its answer is whole; None: nobody."""

    def whole(self, status: int, lines: bytes, body: bytes) -> bool:
        """Write a whole answer; `lines` are those of its head, good as they are. False: it was not taken, send it."""

    def write(self, data: bytes) -> bool:
        """Write a piece of an answer that has begun. False: it was not taken, send it."""

    def abort(self) -> None:
        """Drop the connection with all that was written and not read."""

    def soon(self, callback: Callable[[], None]) -> None:
        """Call this once the answers that are ready now are written."""


WATCH_AFTER = 0.02  # seconds: a client that went away is noticed so much later at most
MOST_DISCARDED = 256 * 1024 * 1024  # bytes of a body that is refused, and read all the same
DISCARD_SECONDS, DISCARD_PAUSE = 5.0, 0.5  # for all of it, and for the next piece
GONE = 499  # what is recorded of a client that went away, as nginx does
_PING = b":\n\n"
_ID = re.compile(rb"[A-Za-z0-9_.:+=/-]{1,128}")
_JSON = b"content-type: application/json\r\ncontent-length: %d\r\n%b%b"
_EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
_READ = {
    b"authorization": "authorization",
    b"x-api-key": "x_api_key",
    b"api-key": "api_key",
    b"x-request-id": "x_request_id",
    b"content-length": "content_length",
    b"content-encoding": "content_encoding",
    b"cache-control": "cache_control",
    b"anthropic-version": "anthropic_version",
    b"anthropic-beta": "anthropic_beta",
    b"openai-beta": "openai_beta",
    b"x-stainless-retry-count": "retry_count",
    b"x-stainless-timeout": "timeout",
    b"host": "host",
    b"origin": "origin",
}


class Exchange:
    """The state of one request. `began` is monotonic; `status` is 0 until an answer has begun."""

    __slots__ = (
        "_gone", "_handle", "_last", "_receive", "_send", "_streaming", "_task", "_watcher", "began", "face",
        "headers", "method", "options", "path", "request_id", "scope", "sent_bytes", "status", "tenant", "wire",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, options: GatewayOptions, face: Face) -> None:
        self.began = time.monotonic()
        self.scope = scope
        self.tenant: Tenant | None = None  # who asks, once that is known
        self.options = options
        self.face = face
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._receive = receive
        self._send = send
        self.wire: Wire | None = scope.get(WIRE)
        found: dict[str, bytes] = {}
        for name, value in scope["headers"]:
            known = _READ.get(name)
            if known is not None:
                # A second one of a name is put behind the first, as HTTP has it: two keys are no key.
                found[known] = value if known not in found else found[known] + b", " + value
        self.headers = found
        given = found.get("x_request_id")
        good = given is not None and _ID.fullmatch(given) is not None
        self.request_id = given.decode() if good and given is not None else f"req_{random.getrandbits(96):024x}"
        self.status = 0
        self.sent_bytes = 0
        self._task: asyncio.Task[Any] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False
        self._streaming = False
        self._last = 0.0

    def header(self, name: str) -> str:
        """Give one of the headers that are read; "" where it was not sent."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def gone(self) -> bool:
        """True once the client has gone away."""
        return self._gone

    # The request

    async def body(self) -> bytes:
        """Read the whole body. Refusal where it is too large, compressed, or too slow."""
        most = self.options.body_bytes
        encoding = self.headers.get("content_encoding")
        if encoding is not None and encoding.strip().lower() not in (b"identity", b""):
            raise Refusal(415, "the body must not be compressed: leave out content-encoding", close=True)
        length = self.headers.get("content_length")
        if length is not None and length.isdigit() and int(length[:20]) > most:
            raise await self._too_large(more=True)
        come = self.wire.body() if self.wire is not None else None
        if come is not None:
            if len(come) > most:
                raise await self._too_large(more=False)
            return come
        message = await self._receive()
        if not message.get("more_body"):
            if message["type"] == "http.disconnect":
                raise self._left()
            first: bytes = message.get("body", b"")
            if len(first) > most:
                raise await self._too_large(more=False)
            return first
        pieces, size = [], 0
        while True:
            piece = message.get("body", b"")
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise await self._too_large(more=bool(message.get("more_body")))
            if not message.get("more_body"):
                return b"".join(pieces)
            try:
                async with asyncio.timeout(self.options.body_seconds):
                    message = await self._receive()
            except TimeoutError:
                text = f"nothing more of the body came within {self.options.body_seconds:g} s"
                raise Refusal(408, text, code="body_timeout", close=True) from None
            if message["type"] == "http.disconnect":
                raise self._left()

    async def _too_large(self, *, more: bool) -> Refusal:
        if more:
            await self.discard()
        text = f"the body is larger than {self.options.body_bytes} bytes"
        return Refusal(413, text, code="request_too_large", close=True)

    async def discard(self) -> None:
        """Read on for a while what is left of a body that is refused. Most clients look for an answer only when they
        have sent all of it, and take for a broken connection what is closed before that."""
        length = self.headers.get("content_length", b"")
        endless = length.isdigit() and int(length[:20]) > MOST_DISCARDED
        if endless or b"expect" in (name for name, _ in self.scope["headers"]):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                await self._discard()

    async def _discard(self) -> None:
        size, more = 0, True
        while more and size <= MOST_DISCARDED:
            async with asyncio.timeout(DISCARD_PAUSE):
                message = await self._receive()
            if message["type"] == "http.disconnect":
                raise self._left()
            size += len(message.get("body", b""))
            more = bool(message.get("more_body"))

    def _left(self) -> asyncio.CancelledError:
        self._gone = True
        return asyncio.CancelledError("the client went away")

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """Give the task that works for it, once it is watched."""
        return self._task

    # The client that goes away

    def watch(self) -> None:
        """Cancel this task when the client goes away, from now until `unwatch`."""
        if self.wire is not None:
            self._task = self.wire.task
            self.wire.on_leave(self._has_left)
        else:
            self._task = asyncio.current_task()
            self._handle = asyncio.get_running_loop().call_later(WATCH_AFTER, self._begin_watching)

    def unwatch(self) -> None:
        if self.wire is not None:
            self.wire.on_leave(None)
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def _has_left(self) -> None:
        self._gone = True
        if self._task is not None:
            self._task.cancel("the client went away")

    def _begin_watching(self) -> None:
        self._handle = None
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watching(), name="fastllm-watch")

    async def _watching(self) -> None:
        pause = self.options.keep_alive
        while True:
            try:
                async with asyncio.timeout(pause if self._streaming else None):
                    message = await self._receive()
            except TimeoutError:
                quiet = time.monotonic() - self._last
                pause = self.options.keep_alive - quiet
                if pause <= 0.001:
                    await self._write(_PING)
                    pause = self.options.keep_alive
                continue
            if message["type"] == "http.disconnect":
                self._has_left()
                return

    # The answer

    def _named(self) -> bytes:
        """Give the request's id under every name that clients look for."""
        return self.face.named.replace(b"%", self.request_id.encode())

    async def answer(self, status: int, body: bytes, lines: bytes = b"") -> None:
        """Send a whole JSON answer; `lines` are more of its head, see `faces.pairs_of`."""
        await self._send_whole(status, body, _JSON % (len(body), self._named(), lines))

    async def plain(self, status: int, body: bytes, lines: bytes) -> None:
        """Send a whole answer of another type."""
        if status != 204:  # RFC 9110, 8.6
            lines = b"content-length: %d\r\n%b" % (len(body), lines)
        await self._send_whole(status, body, lines)

    async def _send_whole(self, status: int, body: bytes, lines: bytes) -> None:
        self.status = status
        self.sent_bytes = len(body)
        if self.wire is not None and self.method != "HEAD" and self.wire.whole(status, lines, body):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": pairs_of(lines)})
        await self._send({"type": "http.response.body", "body": body if self.method != "HEAD" else b""})

    async def fail(self, fault: Fault, lines: bytes = b"") -> None:
        """Answer with an error in the route's dialect; in a stream it is the last event."""
        if not self.status:
            body = self.face.body(fault, self.request_id)
            await self.answer(fault.status, body, self.face.lines(fault) + lines)
        elif self._streaming:
            await self._write(self.face.event(fault, self.request_id))
            await self.end()

    async def begin(self, lines: bytes = b"") -> None:
        """Begin a stream of events: from now on comments keep its connection alive."""
        pairs = pairs_of(b"%b%b%b" % (_EVENTS, self._named(), lines))
        self.status = 200
        self._last = time.monotonic()
        await self._send({"type": "http.response.start", "status": 200, "headers": pairs})
        self._streaming = True
        if self.wire is not None:
            self._keep_alive()
        elif self._handle is not None:
            self._handle.cancel()
            self._begin_watching()

    def _keep_alive(self) -> None:
        """Write a comment where nothing was written for long, and look again. Who does not read needs none."""
        now = time.monotonic()
        quiet, pause = now - self._last, self.options.keep_alive
        if quiet >= pause - 0.001:
            if self.wire is not None and self.wire.write(_PING):
                self.sent_bytes += len(_PING)
            self._last, quiet = now, 0.0
        self._handle = asyncio.get_running_loop().call_later(pause - quiet, self._keep_alive)

    async def write(self, events: bytes) -> None:
        """Send whole events. Waits while the client does not read."""
        self._last = time.monotonic()
        await self._write(events)

    async def _write(self, events: bytes) -> None:
        self.sent_bytes += len(events)
        if self.wire is not None and self.wire.write(events):
            return
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        """End the stream."""
        self._streaming = False
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def hand_over(self, app: ASGI) -> None:
        """Let another app answer; what it answers with is noted."""

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            elif message["type"] == "http.response.body":
                self.sent_bytes += len(message.get("body", b""))
            await self._send(message)

        await app(self.scope, self._receive, send)

    async def abort(self) -> None:
        """Drop the connection with all that was written and not read."""
        self._gone = True
        if self.wire is not None:
            self.wire.on_leave(None)
            self.wire.abort()

    def __repr__(self) -> str:
        return f"<Exchange {self.method} {self.path} {self.status or 'open'}>"


@lru_cache(maxsize=4096)
def header_value(text: str) -> bytes:
    """Give text as it may stand in a header: what may not is a ?."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:256]).encode()
