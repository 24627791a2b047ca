"""Turn: one request on a client's connection, and its answer: ASGI for every app, and shorter ways for ours.

An answer that is whole is written in one piece, the pieces of a stream without a message for each, and who works for a
client is told at once when that client leaves: no task waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

from .exchange import ASGI, WIRE, Message, Scope
from .faces import Pairs

logger = logging.getLogger("fastllm.gateway")

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_WITHOUT_BODY = frozenset((204, 304))
_CLOSE = b"\r\nconnection: close\r\n"


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINE = {status: _status_line(status) for status in range(100, 600)}


class Line(Protocol):
    """What a turn needs of its connection."""

    transport: Any
    write_paused: bool
    tasks: set[asyncio.Task[None]]

    def common(self) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def post(self, data: bytes) -> None: ...
    def soon(self, callback: Callable[[], None]) -> None: ...
    def read_on(self) -> None: ...
    def answered(self, turn: Turn) -> None: ...
    async def drained(self) -> None: ...


class Turn:
    """One request. `left` once its client has gone, `complete` once its answer is written."""

    __slots__ = (
        "_bare", "_chunked", "_event", "_expects", "_line", "_missing", "_on_leave", "_pieces", "_told", "complete",
        "keep_alive", "left", "more", "scope", "size", "started", "task",
    )  # fmt: skip

    def __init__(self, line: Line, scope: Scope, *, keep_alive: bool, expects: bool) -> None:
        self._line = line
        self.scope = scope
        self.keep_alive = keep_alive
        self.task: asyncio.Task[None] | None = None
        self._expects = expects  # it waits for "100 Continue"
        self._pieces: list[bytes] = []  # of its body, that nobody has taken yet
        self.size = 0  # of these
        self.more = True  # of its body may come
        self._told = False  # the end of the body
        self._event: asyncio.Event | None = None
        self._on_leave: Callable[[], None] | None = None
        self._chunked: bool | None = None
        self._bare = False  # HTTP/1.0 knows no chunks (RFC 9112, 6.1): a body without a length ends with the connection
        self._missing = 0  # bytes of the answer that were promised
        self.started = self.complete = self.left = False

    # The connection tells

    def put(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.size += len(piece)
        self._wake()

    def end(self) -> None:
        self.more = False
        self._wake()

    def leave(self) -> None:
        """The client has gone, or is to be treated so."""
        self.left = True
        self._wake()
        callback, self._on_leave = self._on_leave, None
        if callback is not None:
            callback()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()

    async def run(self, app: ASGI) -> None:
        """The task of this turn."""
        try:
            await app(self.scope, self.receive, self.send)
            if not (self.complete or self.left):
                self._broken("no whole answer")
        except Exception as error:  # what it says may hold a prompt
            self._broken(type(error).__name__)
        except asyncio.CancelledError:  # the server's time is up
            self._broken("")
            raise
        finally:
            task, self.task = self.task, None
            if task is not None:
                self._line.tasks.discard(task)
            # No cycle is left: a collector that has to find 10,000 of them a second stops everything for 50 ms.
            self.scope.pop(WIRE, None)

    def _broken(self, why: str) -> None:
        if why:
            logger.error("the app gave %s", why)
        if not (self.started or self.left):
            self.keep_alive = False
            if self.whole(500, b"content-length: 0\r\n", b""):
                return
        if not (self.complete or self.left):
            self._line.transport.abort()

    # What our own app calls

    def on_leave(self, callback: Callable[[], None] | None) -> None:
        """Have this called once, when the client leaves before its answer is whole."""
        if callback is not None and self.left:
            callback()
        else:
            self._on_leave = callback

    def abort(self) -> None:
        """Drop the connection with what was written and not read."""
        self._line.transport.abort()

    def soon(self, callback: Callable[[], None]) -> None:
        """Call this once the answers that are ready now are written."""
        self._line.soon(callback)

    def body(self) -> bytes | None:
        """Take the whole body, where it has come in one piece; None where it is to be received."""
        if self.more or self._expects or self.left or self.complete or len(self._pieces) != 1:
            return None
        self._told, self.size = True, 0
        self._line.read_on()
        return self._pieces.pop()

    def whole(self, status: int, lines: bytes, body: bytes) -> bool:
        """Write a whole answer, `lines` those of its head; False where it cannot be taken at once."""
        line = self._line
        if self.started or self.left or line.write_paused:
            return False
        self.started = True
        if _CLOSE in lines:
            self.keep_alive = False
        elif not self.keep_alive:
            lines += b"connection: close\r\n"
        line.post(b"%b%b%b\r\n%b" % (STATUS_LINE[status], line.common(), lines, body))
        self._complete()
        return True

    def write(self, data: bytes) -> bool:
        """Write a piece of a chunked answer that has begun; False where it cannot be taken at once."""
        if self._line.write_paused or not self._chunked or self.left or self.complete:
            return False
        self._line.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    # ASGI

    async def receive(self) -> Message:
        if self._expects:
            self._expects = False
            if self.more and not (self._pieces or self.started or self.left):
                self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.left or self.complete):
            if self._pieces or not (self.more or self._told):
                pieces = self._pieces
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces.clear()
                self.size = 0
                self._told = not self.more
                self._line.read_on()
                return {"type": "http.request", "body": body, "more_body": self.more}
            if self._event is None:
                self._event = asyncio.Event()
            self._event.clear()
            await self._event.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._line.write_paused and not self.left:
            await self._line.drained()
        if self.left:
            return
        kind = message["type"]
        if kind != ("http.response.body" if self.started else "http.response.start") or self.complete:
            raise RuntimeError(f"{kind} does not come now")
        if self.started:
            self._body(message.get("body", b""), message.get("more_body", False))
        else:
            self._head(message["status"], list(message.get("headers", ())))

    def _head(self, status: int, headers: Pairs) -> None:
        self.started = True
        pieces = [STATUS_LINE[status], self._line.common()]
        closes = False
        for name, value in headers:
            name = name.lower()
            if not _NAME.fullmatch(name) or _BAD_VALUE.search(value):
                raise RuntimeError("a header of the answer is not valid")
            if name == b"content-length" and self._chunked is None:
                self._missing, self._chunked = int(value), False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self._missing, self._chunked = 0, True
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive, closes = False, True
            pieces += (name, b": ", value, b"\r\n")
        if not (self.keep_alive or closes):
            pieces.append(b"connection: close\r\n")
        if self.scope["method"] == "HEAD" or status in _WITHOUT_BODY:
            self._missing, self._chunked = 0, None
        elif self._chunked is None and self.scope["http_version"] == "1.0":
            self._bare = True
        elif self._chunked is None:
            self._chunked = True
            pieces.append(b"transfer-encoding: chunked\r\n")
        pieces.append(b"\r\n")
        self._line.write(b"".join(pieces))

    def _body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._line.write(data if more else data + b"0\r\n\r\n")
        elif self._chunked is False:
            self._missing -= len(body)
            if self._missing < 0 or (self._missing and not more):
                raise RuntimeError("the answer has not the length that it promised")
            self._line.write(body)
        elif self._bare:
            self._line.write(body)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self.complete = True
        self._on_leave = None
        self._wake()
        self._line.answered(self)

    def __repr__(self) -> str:
        state = "left" if self.left else "answered" if self.complete else "begun" if self.started else "open"
        return f"<Turn {self.scope['method']} {self.scope['path'][:100]} {state}>"
