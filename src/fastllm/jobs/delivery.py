"""Delivery: outcomes on their way from whoever makes them to one consumer, in bounded number.

A row counts as *ahead* from being pulled until the consumer has taken its outcome; no more than `window` rows are ever
ahead, so a slow consumer, or in order a slow row, stalls the others instead of filling the memory. Where outcomes are
recorded, a row stays ahead until its record is written: what a kill makes ask again is then at most the window.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from ..errors import ConfigError
from ..types import Outcome

ORDERED_WINDOW = 8  # times the concurrency: room to wait for a slow row while the others go on


class Delivery(ABC):
    """What a run's consumer sees: `take` outcomes, wait for `news`, `stop`, `drain`, then `aclose`. Subclasses pull the
    rows and answer them; `pulled` of them so far, by the turn in which their outcome is due."""

    def __init__(
        self, *, concurrency: int, ordered: bool, window: int | None, unwritten: Callable[[], int] | None
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency must be a whole number of at least 1, not {concurrency!r}")
        self.concurrency = concurrency
        self.window = max(window or concurrency * (ORDERED_WINDOW if ordered else 2), concurrency)
        self._room = 0  # rows that may be ahead beyond the window, because they share requests with others
        self._unwritten = unwritten  # tells how many rows were taken and not recorded yet
        self._ordered = ordered
        self._ready: deque[Outcome] = deque()
        self._held: dict[int, Outcome] = {}  # in order: outcomes whose turn has not come
        self._turn = 0
        self._pulled = self._taken = 0
        self._failure: BaseException | None = None
        self._consumer: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    @abstractmethod
    def finished(self) -> bool:
        """True when no row is in work and none will be; outcomes may still be there to take."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Rows whose request is under way; where that is not known, those in work."""

    @abstractmethod
    def stop(self) -> None:
        """Pull no more rows; those in work go on."""

    @abstractmethod
    def drain(self) -> None:
        """Stop, and send nothing more: only rows whose request is under way are waited for, for this one attempt."""

    @abstractmethod
    def cancel(self) -> None:
        """Give up the rows in work; they get no outcome."""

    @abstractmethod
    async def aclose(self) -> None:
        """Cancel what is in work and wait until it is gone."""

    @abstractmethod
    def written_from_thread(self) -> None:
        """Go on with rows that wait for records; may be called from any thread, and is cheap where none do."""

    @abstractmethod
    def _taken_one(self) -> None:
        """The consumer took an outcome, which may make room."""

    @property
    def in_work(self) -> int:
        return self._pulled - self._taken - len(self._ready) - len(self._held)

    def take(self) -> Outcome | None:
        """Give the next outcome if there is one, and let rows follow."""
        if not self._ready:
            return None
        self._taken += 1
        if self._unwritten is None:
            self._taken_one()
        return self._ready.popleft()

    async def news(self) -> None:
        """Wait until an outcome is ready or all is finished."""
        self._consumer = self._loop.create_future()
        try:
            await self._consumer
        finally:
            self._consumer = None

    def check(self) -> None:
        """Raise what ended the run early, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _is_full(self) -> bool:
        ahead = self._pulled - self._taken
        window = self.window + self._room
        return ahead >= window or (self._unwritten is not None and ahead + self._unwritten() >= window)

    def _deliver(self, turn: int, outcome: Outcome) -> None:
        if not self._ordered:
            self._ready.append(outcome)
        elif turn != self._turn:
            self._held[turn] = outcome
            return
        else:
            self._ready.append(outcome)
            self._turn += 1
            while self._held and self._turn in self._held:
                self._ready.append(self._held.pop(self._turn))
                self._turn += 1
        consumer = self._consumer
        if consumer is not None and not consumer.done():
            consumer.set_result(None)

    def _call_consumer(self) -> None:
        consumer = self._consumer
        if consumer is not None and not consumer.done():
            consumer.set_result(None)
