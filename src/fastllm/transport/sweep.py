"""Sweeper: ends what has waited too long, by one timer for a whole transport.

To wait costs a request one number: when it is due. When the earliest of these times has come the sweeper looks at
everything there is, and then stands at the earliest that is left; where answers come in time that is once in as many
seconds as the timeouts say. What expires fails its own future, so that a request needs no task switch and no
cancellation to time out. Never early; late by at most 25 ms, or by 10 µs for each connection there is.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

TICK = 0.025  # seconds between two looks, at least
A_LOOK = 1e-5  # the same for each entry, so that looking takes no more than a hundredth of the time
BLOCKED = 0.1  # seconds of lateness from which on the loop must have been blocked
NEVER = float("inf")


class Waiting(Protocol):
    """What can be watched: not finished at `due` means `expire()`, which sets another `due`."""

    due: float

    def expire(self) -> None: ...


class Sweeper:
    """Invariant: unless nothing is watched, a timer stands at `first`, and none of the entries is due before it."""

    __slots__ = ("_closed", "_loop", "_timer", "_yielded", "entries", "first")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._yielded = False
        self._closed = False
        self.entries: set[Waiting] = set()  # whoever may ever wait, as long as it exists
        self.first = NEVER

    def watch(self, entry: Waiting, now: float, seconds: float) -> None:
        """Expire the entry, which is one of `entries`, in so many seconds, unless its `due` is moved before."""
        entry.due = due = now + seconds
        if due < self.first:
            self.arm(due, now)

    def arm(self, due: float, now: float) -> None:
        """Look again then."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.first = due
        self._timer = self._loop.call_later(max(0.0, due - now), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = time.monotonic()
        if now - self.first > BLOCKED and not self._yielded:
            # uvloop runs timers before it reads sockets: the answers may be in the kernel already.
            self._yielded = True
            self._timer = self._loop.call_later(TICK, self._sweep)
            return
        self._yielded = False
        self.first = first = NEVER
        for entry in [entry for entry in self.entries if entry.due < NEVER]:
            if entry.due <= now:
                entry.expire()
            first = min(first, entry.due)
        if first < self.first:
            self.arm(max(first, now + max(TICK, A_LOOK * len(self.entries))), now)

    def close(self) -> None:
        """Stop the timer; what is still watched never expires."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.entries.clear()

    def __repr__(self) -> str:
        return f"<Sweeper {sum(entry.due < NEVER for entry in self.entries)} waiting>"
