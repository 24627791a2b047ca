"""Sweeper: ends what has waited too long, by one timer for a whole transport.

Like the deadlines of clock.py, entries lie in buckets by when they are due; unlike those, an entry that expires
fails its own future, so that a request needs no task switch and no cancellation to time out. Never early; late
by at most 25 ms, and by half a second where the wait is over ten seconds.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Protocol

TICK = 0.025
COARSE = 20  # ticks in a bucket for long waits
BLOCKED = 0.1  # seconds of lateness from which on the loop must have been blocked


class Waiting(Protocol):
    """What can be watched: not finished before `due` means `expire()`."""

    due: float
    bucket: set[Waiting] | None

    def expire(self) -> None: ...


class Sweeper:
    """Invariant: a key of `_buckets` is in the heap `_ticks` once, and a timer stands at or before the smallest.

    `_latest` is the coarse bucket of what is due in [_since, _until): most requests' is the one before's.
    """

    __slots__ = (
        "_armed",
        "_buckets",
        "_latest",
        "_loop",
        "_since",
        "_ticks",
        "_tidy_at",
        "_timer",
        "_until",
        "_yielded",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, set[Waiting]] = {}
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0
        self._yielded = False
        self._latest: set[Waiting] = set()
        self._since = self._until = self._tidy_at = 0.0

    def watch(self, entry: Waiting, now: float, seconds: float) -> None:
        """Expire the entry in so many seconds, unless it leaves its bucket or moves its `due` before."""
        entry.due = due = now + seconds
        bucket = self._latest if self._since <= due < self._until and seconds > 10 else self._bucket(due, seconds)
        bucket.add(entry)
        entry.bucket = bucket

    def _bucket(self, due: float, seconds: float) -> set[Waiting]:
        tick = int(due / TICK) + 1
        if seconds > 10:
            tick += -tick % COARSE
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._open(tick)
        if seconds > 10:
            self._latest, self._since, self._until = bucket, (tick - COARSE) * TICK, tick * TICK
        return bucket

    def _open(self, tick: int) -> set[Waiting]:
        now = time.monotonic()
        if now >= self._tidy_at:
            self._tidy_at = now + 1.0
            for other in self._buckets.values():
                if not other:
                    other.clear()  # an emptied set keeps its room, and a bucket may stand for minutes
        bucket: set[Waiting] = set()
        self._buckets[tick] = bucket
        heapq.heappush(self._ticks, tick)
        if self._timer is None or tick < self._armed:
            self._arm(tick, now)
        return bucket

    def _arm(self, tick: int, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = tick
        self._timer = self._loop.call_later(max(0.0, tick * TICK - now), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = time.monotonic()
        if now - self._armed * TICK > BLOCKED and not self._yielded:
            # uvloop runs timers before it reads sockets: the answers may be in the kernel already.
            self._yielded = True
            self._timer = self._loop.call_later(TICK, self._sweep)
            return
        self._yielded = False
        while self._ticks:
            tick = self._ticks[0]
            if tick * TICK > now and self._buckets[tick]:
                self._arm(tick, now)
                return
            heapq.heappop(self._ticks)
            bucket = self._buckets.pop(tick)
            if bucket is self._latest:
                self._until = 0.0
            while bucket:  # expiring one may take others out
                entry = bucket.pop()
                entry.bucket = None
                if entry.due > now:
                    self.watch(entry, now, entry.due - now)
                else:
                    entry.expire()

    def close(self) -> None:
        """Stop the timer; what is still watched never expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._until = 0.0
        self._buckets.clear()
        self._ticks.clear()

    def __repr__(self) -> str:
        return f"<Sweeper {sum(map(len, self._buckets.values()))} waiting>"


def unwatch(entry: Waiting) -> None:
    """Take the entry out of its bucket, if it is in one."""
    bucket = entry.bucket
    if bucket is not None:
        bucket.discard(entry)
        entry.bucket = None
