"""Shared: what the connections of a server share."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class Delivers(Protocol):
    """A connection that holds an answer."""

    def deliver(self) -> None: ...


class Shared:
    """What the connections of a server share: the headers that all answers have, and an outbox.

    Answers that are ready in one turn of the loop are written together at its end, as the transport writes requests:
    the kernel's code for a write then stays in the processor's cache from one to the next.
    """

    __slots__ = ("_bytes", "_pairs", "_state", "_waiting")

    def __init__(self, server_state: Any) -> None:
        self._state = server_state
        self._pairs: Any = None
        self._bytes = b""
        self._waiting: list[Delivers] = []

    def post(self, connection: Delivers, loop: asyncio.AbstractEventLoop) -> None:
        """Have the connection deliver what it holds, at the end of this turn."""
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.deliver()

    def headers(self) -> bytes:
        """Give the headers that all answers have at the moment."""
        pairs = self._state.default_headers
        if pairs is not self._pairs:  # once a second, for the date
            self._pairs = pairs
            self._bytes = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
        return self._bytes
