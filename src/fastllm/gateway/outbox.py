"""Outbox: what goes out to clients: answers that are ready are written together, and who does not read is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class Delivers(Protocol):
    """A connection that holds an answer."""

    def deliver(self) -> None: ...


class Shared:
    """What the connections of a server share: the headers that all answers have, and an outbox.

    Answers that are ready in one turn of the loop are written together at its end, as the transport writes requests:
    the kernel's code for a write then stays in the processor's cache from one to the next.
    """

    __slots__ = ("_after", "_bytes", "_pairs", "_state", "_waiting")

    def __init__(self, server_state: Any) -> None:
        self._state = server_state
        self._pairs: Any = None
        self._bytes = b""
        self._waiting: list[Delivers] = []
        self._after: list[Callable[[], None]] = []

    def post(self, connection: Delivers, loop: asyncio.AbstractEventLoop) -> None:
        """Have the connection deliver what it holds, at the end of this turn."""
        if not (self._waiting or self._after):
            loop.call_soon(self.flush)
        self._waiting.append(connection)

    def soon(self, callback: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Call this at the end of this turn, once everything is delivered."""
        if not (self._waiting or self._after):
            loop.call_soon(self.flush)
        self._after.append(callback)

    def flush(self) -> None:
        """Do now what was to be done at the end of this turn."""
        waiting, self._waiting = self._waiting, []
        after, self._after = self._after, []
        for connection in waiting:
            connection.deliver()
        for callback in after:
            callback()

    def headers(self) -> bytes:
        """Give the headers that all answers have at the moment."""
        pairs = self._state.default_headers
        if pairs is not self._pairs:  # once a second, for the date
            self._pairs = pairs
            self._bytes = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
        return self._bytes


# What a client does not read waits for it at the provider, not here: the kernel would take megabytes for each.
WRITE_HIGH, WRITE_LOW = 16 * 1024, 4 * 1024


class Patience:
    """With a client that does not read: it ends where less than WRITE_HIGH bytes were taken in `seconds`, and not all.

    Neither a transport nor a close of one has an end of its own. What a client takes counts, not when it is done: a
    large answer is long under way on a slow line.
    """

    __slots__ = ("_loop", "_seconds", "_timer", "_transport", "_unread")

    def __init__(self, transport: Any, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._seconds = seconds
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0

    def begin(self) -> None:
        """Look from now on, unless that has begun."""
        if self._timer is None:
            self._unread = self._transport.get_write_buffer_size()
            self._timer = self._loop.call_later(self._seconds, self._look)

    def grew(self, size: int) -> None:
        """So much more is to be written."""
        self._unread += size

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        unread: int = self._transport.get_write_buffer_size()
        if not unread:
            return
        if self._unread - unread < WRITE_HIGH:
            self._transport.abort()
        else:
            self.begin()

    def __repr__(self) -> str:
        return f"<Patience {'runs' if self._timer is not None else 'not needed'}>"
