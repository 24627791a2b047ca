"""N workers pulling from one iterator of rows: an Outcome for each row, in bounded memory.

Rules. One worker at a time pulls. Workers are made as rows come, never more than there are rows in work. Whatever ends
the input (its end, its exception, `stop`), the rows in work are finished and delivered first. `drain` also gives up the
rows that only wait (for limits, or to try again): they were not sent, or came back without an answer.

What can goes through the engine's lane instead of a worker; the two together are never more than the concurrency.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Protocol

from ..engine.call import Missed
from ..engine.engine import Engine
from ..engine.fitting import fitting
from ..engine.lane import Lane, lane_for, resume
from ..engine.stats import Stats
from ..engine.underway import UnderWay
from ..errors import ConfigError, InvalidRequestError, LLMError, let_go
from ..types import Outcome, Request, Response, Row
from .collector import PACE
from .delivery import Delivery

NOTHING_YET = Row(index=-1)  # what an iterator gives that has no row now; `fed` says that it has
MOST_PACKED = 8192  # rows that share requests are in work beyond the concurrency


class Executes(Protocol):
    """What a job needs of an engine."""

    async def execute(self, request: Request) -> Response: ...

    @property
    def concurrency(self) -> int | None:
        """How many requests are worth having under way at once; None where that is not known."""
        ...


Rows = Iterable[Row | None] | AsyncIterable[Row | None]


class Workers(Delivery):
    """The workers of one run, in this process."""

    def __init__(
        self,
        engine: Executes,
        rows: Rows,
        *,
        concurrency: int,
        ordered: bool = False,
        window: int | None = None,
        unwritten: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(concurrency=concurrency, ordered=ordered, window=window, unwritten=unwritten)
        self._packed = 0  # rows that share requests; `_room` of them are not counted
        self._execute = engine.execute
        self._stats: Stats | None = getattr(engine, "stats", None)
        self._next: Callable[[], Row | None] | None = None
        self._anext: Callable[[], Awaitable[Row | None]] | None = None
        if isinstance(rows, AsyncIterable):
            self._anext = aiter(rows).__anext__
        else:
            self._next = iter(rows).__next__
        self._puller: asyncio.Task[Any] | None = None  # the worker that waits for an async row
        self._ended = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._under_way: UnderWay | None = getattr(engine, "under_way", None)
        self.out: set[asyncio.Task[Any]] = set()  # whose request is at the provider, or answered and not delivered
        self._draining = False
        self._idle: deque[asyncio.Future[None]] = deque()
        self._lane: Lane | None = lane_for(engine, self) if self._next is not None else None
        self._engine = engine if isinstance(engine, Engine) else None
        self._starved = False  # the lane has room, and what is ahead has none
        self._refilling = False
        PACE.__enter__()
        self._closed = False
        self._spawn()

    @property
    def finished(self) -> bool:
        return self._ended and not self._at_work

    @property
    def _at_work(self) -> int:
        lane = self._lane
        return len(self._tasks) + (len(lane.out) + (lane.held is not None) if lane is not None else 0)

    def _taken_one(self) -> None:
        if self._idle:
            self._wake()
        elif self._packed:
            self._more()
        elif self._starved:
            self._refill_soon()

    def written_from_thread(self) -> None:
        if self._idle or self._packed or self._starved:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._written)

    def _written(self) -> None:
        if self._idle:
            self._wake_all()
        elif self._packed:
            self._more()
        if self._starved:
            self._refill_soon()

    async def news(self) -> None:
        if (self._idle or self._starved) and not self._is_full():
            self._wake()
            if self._starved:
                self._refill()
                if self._ready or self.finished:
                    return
        await super().news()

    def stop(self) -> None:
        """Pull no more rows; those in work go on. A pull that waits is cancelled: it may wait for ever."""
        self._ended = True
        if self._puller is not None:
            self._puller.cancel()
        self._wake_all()
        if self.finished:  # the lane may have answered the last row, and no worker is left to tell
            self._call_consumer()

    @property
    def in_flight(self) -> int:
        if self._under_way is None:
            return self.in_work
        return len(self.out) + (len(self._lane.out) if self._lane is not None else 0)

    def drain(self) -> None:
        self.stop()
        if self._under_way is not None and not self._draining:
            self._draining = True
            for task in self._tasks - self.out:
                task.cancel()
            if self._lane is not None:
                self._lane.drop()
            if self.finished:
                self._call_consumer()

    def fed(self, rows: int) -> None:
        """An iterator that had nothing has so many rows more."""
        for _ in range(min(rows, len(self._idle) + self.concurrency + self._room - self._at_work)):
            self._more()

    def sent(self, task: asyncio.Task[Any]) -> None:
        self.out.add(task)

    def packed(self, count: int) -> None:
        """Rows that wait in packs keep no others from being pulled: more of them make fuller packs."""
        self._packed += count
        self._room = min(self._packed, MOST_PACKED)
        if count > 0:
            self._more()

    def _more(self) -> None:
        """Have one more row pulled if there is room for it."""
        if self._ended or self._is_full():
            return
        if self._idle:
            self._wake()
        elif self._at_work < self.concurrency + self._room:
            self._spawn()

    def refused(self, task: asyncio.Task[Any]) -> None:
        self.out.discard(task)
        if self._draining:
            task.cancel()  # at its next wait, which a final error does not have

    def cancel(self) -> None:
        self.stop()
        for task in self._tasks:
            task.cancel()
        if self._lane is not None:
            self._lane.cancel()
        self._call_consumer()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self.cancel()
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            PACE.__exit__(None, None, None)

    # The lane's crew

    def landed(self, turn: int, outcome: Outcome) -> None:
        self._deliver(turn, outcome)

    def missed(self, turn: int, row: Row, missed: Missed | None) -> None:
        self._spawn(turn, row, missed)

    def broke(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self.cancel()

    def refill(self) -> None:
        """Pull as many rows as there is room for: into the lane, or else each into a worker."""
        self._refilling = self._starved = False
        lane, pull, most = self._lane, self._next, self.concurrency + self._room
        assert lane is not None and pull is not None
        lane.anew(len(self._tasks))
        while not self._ended and lane.held is None and len(self._tasks) + len(lane.out) < most:
            if self._is_full():
                self._starved = True
                return
            try:
                row = pull()
            except Exception as error:
                self._input_ended(error)
                break
            if row is None:
                self._refill_soon()  # once others had their turn
                return
            if row is NOTHING_YET:
                return
            turn = self._pulled
            self._pulled = turn + 1
            if row.request is None:
                self._deliver(turn, _none(row))
            elif not lane.launch(turn, row):
                self._spawn(turn, row)
        if self._ended and self.finished:
            self._call_consumer()

    def _refill_soon(self) -> None:
        if not self._refilling:
            self._refilling = True
            self._loop.call_soon(self._refill)

    def _refill(self) -> None:
        try:
            self.refill()
        except BaseException as error:
            self.broke(error)

    def _spawn(self, *given: Any) -> None:
        """Make a worker; what it is given it does first: a row by its turn, and how its attempt in the lane ended."""
        task = self._loop.create_task(self._work(*given), name="fastllm-worker")
        self._tasks.add(task)
        if self._under_way is not None:
            self._under_way.enrol(task, self)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self._under_way is not None:
            self._under_way.leave(task)
            self.out.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None and task.cancelled() and not self._ended:
            error = RuntimeError("a worker was cancelled from outside its run")
        if error is not None:
            self._failure = self._failure or error
            self.stop()
        if self.finished:
            self._call_consumer()
        elif self._packed:
            self._more()

    def _wake(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._idle:
            self._wake()

    async def _work(self, turn: int = -1, row: Row | None = None, missed: Missed | None = None) -> None:
        if row is not None:
            await self._answer(turn, row, missed)
        pull, lane = self._next, self._lane
        while not self._ended:
            # The packs are gone that made room for this one, or its row has gone into the lane, or is held there.
            if self._at_work > self.concurrency + self._room or (lane is not None and lane.held is not None):
                self._wake()
                return
            if self._puller is not None or self._is_full():
                waiter = self._loop.create_future()
                self._idle.append(waiter)
                if self._puller is None and not self._is_full():  # written in between, when nobody waited
                    self._idle.remove(waiter)
                    continue
                await waiter
                continue
            if pull is None:
                row = await self._pull_async()
            else:
                try:
                    row = pull()
                except Exception as error:
                    self._input_ended(error)
                    return
            if row is None:
                if not self._ended:
                    await asyncio.sleep(0)
                continue
            if row is NOTHING_YET:
                waiter = self._loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            turn = self._pulled
            self._pulled = turn + 1
            if self._idle or self._at_work < self.concurrency + self._room:
                self._more()
            if lane is not None:
                lane.anew(len(self._tasks))
                if lane.launch(turn, row):
                    continue
            await self._answer(turn, row, None)

    async def _answer(self, turn: int, row: Row, missed: Missed | None) -> None:
        """See one row to its outcome; `missed` tells of its attempt in the lane."""
        request, me = row.request, asyncio.current_task()
        if request is None:
            outcome = _none(row)
        else:
            try:
                if missed is not None and self._engine is not None:
                    if self._draining and me is not None:
                        me.cancel()  # at its next wait, which a final error does not have
                    response = await resume(self._engine, request, missed)
                elif request.schema is None:
                    response = await self._execute(request)
                else:
                    response = await self._fitting(request)
                outcome = Outcome(index=row.index, custom_id=row.custom_id, response=response, request=request)
            except LLMError as error:
                let_go(error)
                outcome = Outcome(index=row.index, custom_id=row.custom_id, error=error, request=request)
            except ConfigError as error:
                outcome = Outcome(index=row.index, custom_id=row.custom_id, error=_misfit(error), request=request)
        if self.out and me is not None:
            self.out.discard(me)
        self._deliver(turn, outcome)

    async def _fitting(self, request: Request) -> Response:
        """Once the run is to end, an answer that does not fit is the row's last."""
        return await fitting(self._execute, request, stats=self._stats, may_ask=lambda: not self._draining)

    def _input_ended(self, error: Exception) -> None:
        if not isinstance(error, (StopIteration, StopAsyncIteration)):
            self._failure = error
        self.stop()

    async def _pull_async(self) -> Row | None:
        assert self._anext is not None
        self._puller = asyncio.current_task()
        try:
            return await self._anext()
        except Exception as error:
            self._input_ended(error)
            return None
        finally:
            self._puller = None

    def __repr__(self) -> str:
        state = "ended" if self._ended else "running"
        waiting = len(self._ready) + len(self._held)
        crew = f"{len(self._tasks)} of {self.concurrency} workers, {len(self._idle)} idle, {self._lane!r}"
        return f"<Workers {state}: {self.in_work} rows in work, {waiting} to be taken, {crew}>"


def _none(row: Row) -> Outcome:
    return Outcome(index=row.index, custom_id=row.custom_id, error=row.error or empty(row))


def _misfit(error: ConfigError) -> LLMError:
    wrapped = InvalidRequestError(str(error), sent=False)
    wrapped.__cause__ = error
    return wrapped


def empty(row: Row) -> LLMError:
    """Give the error of a row that is none."""
    return InvalidRequestError(f"row {row.index} holds neither a request nor an error", sent=False)
