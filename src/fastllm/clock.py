"""Time as the rest of the house sees it: monotonic for every rule, wall time only for records shown to people.

A deadline costs a set entry in a bucket instead of a timer of its own (asyncio.timeout: 4-7 µs), so it may fire
up to 20 ms late (half a second, where it lies over ten seconds ahead), and never early.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import msgspec

# Python 3.11 asks for the process id in every current_task(): 500 ns against 60 here and in later versions.
TASKS: dict[Any, asyncio.Task[Any]] = getattr(asyncio.tasks, "_current_tasks", {}) if sys.version_info < (3, 12) else {}

TICK = 0.02
COARSE = 25  # ticks in a bucket of half a second


class Clock(Protocol):
    """What rules may know of time; `fastllm.testing.clock` has a virtual one."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def time(self) -> float:
        """Wall-clock seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle: ...

    def deadline(self, seconds: float | None) -> Deadline:
        """Cancel the block under `with` after so many seconds, as TimeoutError."""
        ...

    def close(self) -> None: ...


class Sweeper:
    """Fires many deadlines from one timer: entries lie in buckets by when they are due.

    A bucket spans 20 ms, or half a second for what lies over ten seconds ahead, so there are never more than
    a few thousand. The timer stands at the first bucket that holds anything. Invariant: a key of `buckets` is
    in the heap `_ticks` exactly once, and while there is one, a timer stands at or before the smallest.
    `latest` is the coarse bucket of what is due in [since, until): most deadlines of a run go where the last one went.
    """

    __slots__ = (
        "_armed",
        "_clock",
        "_ticks",
        "_tidy_at",
        "_timer",
        "buckets",
        "latest",
        "loop",
        "now",
        "since",
        "until",
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.now = clock.now
        self.loop: asyncio.AbstractEventLoop | None = None
        self.buckets: dict[int, set[Deadline]] = {}
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0
        self.latest: set[Deadline] = set()
        self.since = self.until = self._tidy_at = 0.0

    def current_task(self) -> asyncio.Task[Any]:
        """Give the running task; a loop other than before (a second asyncio.run) makes a fresh start."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self.close()  # the old loop's timer will never fire
            self.loop = loop
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline can only be set inside an asyncio task")
        return task

    def open(self, tick: int) -> set[Deadline]:
        """Begin the bucket of that tick, with the timer at or before it."""
        if (now := self.now()) >= self._tidy_at:
            self._tidy_at = now + 1.0
            for other in self.buckets.values():
                if not other:
                    other.clear()  # an emptied set keeps its room, and a bucket may stand for minutes
        bucket: set[Deadline] = set()
        self.buckets[tick] = bucket
        heapq.heappush(self._ticks, tick)
        if self._timer is None or tick < self._armed:
            self._arm(tick)
        return bucket

    def _arm(self, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = tick
        self._timer = self._clock.call_later(max(0.0, tick * TICK - self.now()), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self.now()
        while self._ticks:
            tick = self._ticks[0]
            bucket = self.buckets[tick]
            if bucket and tick * TICK > now:  # the very product that _arm waits for, or rounding could spin
                self._arm(tick)
                return
            heapq.heappop(self._ticks)
            del self.buckets[tick]
            if bucket is self.latest:
                self.until = 0.0
            while bucket:  # cancelling may run foreign code that leaves other blocks
                bucket.pop().expire()

    def close(self) -> None:
        """Stop the timer; called when the loop's last engine closes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.loop = None
        self.until = 0.0
        self.buckets.clear()
        self._ticks.clear()

    def __repr__(self) -> str:
        waiting = sum(map(len, self.buckets.values()))
        return f"<Sweeper {waiting} deadlines in {len(self.buckets)} buckets>"


class Deadline(msgspec.Struct, eq=False, weakref=False):
    """A `with` block that is cancelled when its time is up, then raises TimeoutError.

    As in asyncio.timeout: each expiry is one `task.cancel()` taken back by one `task.uncancel()`, and it becomes
    a TimeoutError only if nobody else asked for cancellation since the block was entered.
    """

    _sweeper: Sweeper
    _seconds: float | None
    expired: bool = False
    _bucket: set[Deadline] | None = None
    _task: asyncio.Task[Any] | None = None
    _cancelling: int = 0
    _due: float = 0.0
    _left: float | None = None

    def __enter__(self) -> Deadline:
        seconds = self._seconds
        if seconds is not None:
            sweeper = self._sweeper
            self._task = task = TASKS.get(sweeper.loop) or sweeper.current_task()
            self._cancelling = task.cancelling()
            self._due = due = sweeper.now() + seconds
            if sweeper.since <= due < sweeper.until and seconds > 10:
                self._bucket = bucket = sweeper.latest
                bucket.add(self)
            else:
                self._book(due, seconds)
        return self

    def _book(self, due: float, seconds: float) -> None:
        sweeper = self._sweeper
        tick = int(due / TICK) + 1
        if seconds > 10:
            tick += -tick % COARSE
        bucket = sweeper.buckets.get(tick)
        if bucket is None:
            bucket = sweeper.open(tick)
        if seconds > 10:
            sweeper.latest, sweeper.since, sweeper.until = bucket, (tick - COARSE) * TICK, tick * TICK
        bucket.add(self)
        self._bucket = bucket

    def pause(self) -> None:
        """Stop the count while the block waits for what is not held against it."""
        if self._bucket is not None:
            self._left = max(0.0, self._due - self._sweeper.now())
            self._bucket.discard(self)
            self._bucket = None

    def resume(self) -> None:
        """Go on with the time that was left at `pause`."""
        if self._left is not None and self._task is not None and not self.expired:
            self._due = due = self._sweeper.now() + self._left
            self._book(due, self._left)
        self._left = None

    def expire(self) -> None:
        """Called by the sweeper, once, while the task is suspended inside the block."""
        self._bucket = None
        task = self._task
        if task is not None:
            self.expired = True
            task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bucket = self._bucket
        if bucket is not None:
            bucket.discard(self)
            self._bucket = None
        elif self.expired:
            self._leave_expired(kind, error)
        self._task = None

    def _leave_expired(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        task = self._task
        alone = task is not None and task.uncancel() <= self._cancelling
        if alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error


class SystemClock:
    """The real clock; timers run on the running loop, so one instance serves one loop."""

    def __init__(self) -> None:
        self._sweeper = Sweeper(self)

    now = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, callback, *args)

    def deadline(self, seconds: float | None) -> Deadline:
        return Deadline(self._sweeper, seconds)

    def close(self) -> None:
        """Stop the timer of the deadlines."""
        self._sweeper.close()

    def __repr__(self) -> str:
        return f"<SystemClock {self._sweeper!r}>"
