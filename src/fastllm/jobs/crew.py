"""Crew: the rows of one run answered by the processes of a team, in as few messages as there are turns of the loop.

No task, no future and no message for a row of its own: rows that are pulled in one turn go out together, outcomes that
come together are read together. The rows of a process that dies are given to another; it may have asked some of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Callable, Iterator
from typing import Any

from ..engine.fitting import fitted
from ..errors import InvalidAnswerError, LLMError
from ..types import EMBEDDINGS, Outcome, Request, Response, Row
from .collector import PACE
from .delivery import Delivery
from .team import LEAVING, UNCOUNTED, Member, Team, TeamError
from .wire import Answered, Asked, Outcomes, Rows as RowsMessage, asked, error_of, response_of
from .workers import MOST_PACKED, Rows, empty

BURST = 256  # rows that are pulled in one turn of the loop


class Crew(Delivery):
    """One run. Rows are pulled on the loop where they are a plain iterable, by a task where they may wait."""

    def __init__(
        self,
        team: Team,
        rows: Rows,
        *,
        concurrency: int,
        ordered: bool = False,
        window: int | None = None,
        unwritten: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(concurrency=concurrency, ordered=ordered, window=window, unwritten=unwritten)
        self._team = team
        self._source = rows
        self._rows: Iterator[Row | None] | None = None
        self._out: dict[Member, dict[int, Row]] = {}
        self._outbox: dict[Member, list[Asked]] = {}
        self._number = 0
        self._pulls_ended = self._told_end = False
        self._how = "stop"
        self._waiting_for: set[Member] = set()  # who has yet to say that nothing of this run is left
        self._filling = self._flushing = False  # `_fill`, `_flush` will be called
        self._puller: asyncio.Task[None] | None = None
        self._space: asyncio.Future[None] | None = None  # what the puller of an async source waits for
        self._closed = self._left = False  # nobody wants outcomes any more; `aclose` was called
        self._tasks = {self._loop.create_task(self._begin(), name="fastllm-crew")}
        PACE.__enter__()

    @property
    def finished(self) -> bool:
        return self._told_end and not self._waiting_for and not self._tasks

    @property
    def in_flight(self) -> int:
        return self._team.in_flight(self._number)

    async def _begin(self) -> None:
        """Start the processes if need be, and begin to pull."""
        try:
            self._number = await self._team.begin(self, self.concurrency)
            self._waiting_for = set(self._team.members)
            if self._pulls_ended:  # stopped meanwhile
                self._tell_end()
            elif isinstance(self._source, AsyncIterable):
                self._puller = self._loop.create_task(self._pull(self._source), name="fastllm-crew-pull")
                self._tasks.add(self._puller)
            else:
                self._rows = iter(self._source)
                self._fill()
        except Exception as error:
            self._fail(error)
        finally:
            self._gone()

    async def _pull(self, source: AsyncIterable[Row | None]) -> None:
        """Pull from a source that may wait."""
        try:
            async for row in source:
                if row is not None:
                    self._give(row)
                    if not self._flushing:
                        self._flushing = True
                        self._loop.call_soon(self._flush)
                while self._is_full():
                    self._space = self._loop.create_future()
                    await self._space
            self._end_of_rows()
        except Exception as error:
            self._fail(error)
        finally:
            self._gone()

    def _gone(self) -> None:
        self._tasks.discard(asyncio.current_task())
        if self.finished:
            self._call_consumer()

    # Rows, on their way out

    def _fill(self) -> None:
        """Pull as many rows as there is room for, and send them."""
        self._filling = False
        if self._rows is None or self._pulls_ended:
            return
        for _ in range(BURST):
            if self._is_full():
                break
            try:
                row = next(self._rows)
            except StopIteration:
                self._end_of_rows()
                return
            except Exception as error:
                self._fail(error)
                return
            if row is None:
                break
            self._give(row)
        self._flush()
        if not self._is_full():
            self._fill_soon()

    def _fill_soon(self) -> None:
        if not self._filling and not self._pulls_ended:
            self._filling = True
            self._loop.call_soon(self._fill)

    def _give(self, row: Row) -> None:
        """Put a row into the bag of the process that is to answer it."""
        turn = self._pulled
        self._pulled = turn + 1
        request = row.request
        if request is None:
            error = row.error or empty(row)
            self._deliver(turn, Outcome(index=row.index, custom_id=row.custom_id, error=error))
            return
        if request.path == EMBEDDINGS:
            self._room = MOST_PACKED
        self._assign(turn, row, request)

    def _assign(self, turn: int, row: Row, request: Request) -> None:
        team = self._team
        members = team.members
        if team.sticky:
            member = members[hash((request.path, request.body, request.sample)) % len(members)]
        else:
            member = min(members, key=_load)
        member.rows += 1
        schema = 0 if request.schema is None else team.define(member, request.schema)
        self._outbox.setdefault(member, []).append(asked(turn, request, schema))
        self._out.setdefault(member, {})[turn] = row

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        self._flushing = False
        for member, rows in outbox.items():
            member.send(RowsMessage(self._number, rows))

    def _end_of_rows(self) -> None:
        self._pulls_ended = True
        self._flush()
        if self._number:
            self._tell_end()

    def _tell_end(self) -> None:
        """Have the processes finish; asked again, more harshly."""
        self._told_end = True
        self._team.end(self._number, self._how)
        if self.finished:
            self._call_consumer()

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._end_of_rows()
        self._call_consumer()

    # Outcomes, on their way in

    def came(self, member: Member, found: Outcomes) -> None:
        out = self._out.get(member)
        if out is None or self._closed:
            return
        for answer in found.rows:
            row = out.pop(answer.turn, None)
            if row is not None:
                self._deliver(answer.turn, _outcome(row, answer, member))

    def ended(self, member: Member, why: str | None) -> None:
        self._waiting_for.discard(member)
        member.rows -= len(self._out.pop(member, ()))  # those that were given up
        if why is not None and self._failure is None:
            self._failure = RuntimeError(why)
            self.stop()
        if self.finished:
            self._call_consumer()

    def lost(self, member: Member) -> None:
        """A process died: what it had is given to the others, unless the run is ending anyway."""
        self._waiting_for.discard(member)
        self._outbox.pop(member, None)
        left = self._out.pop(member, {})
        if self._how == "stop" and self._failure is None and not self._closed and (left or not self._pulls_ended):
            self._told_end = False
            self._tasks.add(self._loop.create_task(self._again(left), name="fastllm-crew-again"))
        elif self.finished:
            self._call_consumer()

    def abandoned(self) -> None:
        """The team is closed under this run."""
        self._closed = True
        self._fail(TeamError("the client was closed while requests were under way"))

    async def _again(self, left: dict[int, Row]) -> None:
        try:
            await self._team.replace(self._number, self.concurrency)
            self._waiting_for = set(self._team.members)
            for turn, row in left.items():
                assert row.request is not None
                self._assign(turn, row, row.request)
            self._flush()
            if self._pulls_ended:
                self._tell_end()
        except Exception as error:
            self._fail(error)
        finally:
            self._gone()

    # What the consumer does

    def _taken_one(self) -> None:
        self._go_on()

    def _go_on(self) -> None:
        if self._space is not None and not self._space.done():
            self._space.set_result(None)
        elif self._rows is not None:
            self._fill_soon()

    async def news(self) -> None:
        if not self._is_full():
            self._go_on()
        await super().news()

    def written_from_thread(self) -> None:
        if not self._filling and not self._pulls_ended:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._go_on)

    def stop(self) -> None:
        """Pull no more rows. A pull that waits is cancelled: it may wait for ever."""
        if self._puller is not None:
            self._puller.cancel()
        if self._number and not self._told_end:
            self._end_of_rows()
        self._pulls_ended = True

    def drain(self) -> None:
        self._how = "drain"
        self.stop()
        if self._number:
            self._tell_end()

    def cancel(self) -> None:
        self._how = "cancel"
        self.stop()
        if self._number:
            self._tell_end()

    async def aclose(self) -> None:
        if self._left:
            return
        self._left = self._closed = True
        self._how, self._pulls_ended = "cancel", True
        try:
            for task in self._tasks:
                task.cancel()
            while self._tasks:
                await asyncio.wait(self._tasks)
            if self._number:
                self._tell_end()
                killing = self._loop.call_later(LEAVING, self._kill)
                while not self.finished:
                    await super().news()
                killing.cancel()
        finally:
            self._team.forget(self._number)
            PACE.__exit__(None, None, None)

    def _kill(self) -> None:
        for member in self._waiting_for:
            member.process.kill()

    def __repr__(self) -> str:
        state = "ended" if self._pulls_ended else "running"
        return f"<Crew {state}: {self.in_work} rows in work, {len(self._ready)} to be taken, {self._team!r}>"


def _load(member: Member) -> int:
    return member.rows


def _outcome(row: Row, answer: Answered, member: Member) -> Outcome:
    request = row.request
    if answer.response is not None:
        response = response_of(answer.response)
        if request is not None and request.schema is not None:
            return _fitted(row, response, request)
        return Outcome(index=row.index, custom_id=row.custom_id, response=response, request=request)
    error: LLMError = error_of(answer.error) if answer.error is not None else LLMError("the worker gave no outcome")
    member.failures[type(error).__name__ if error.__cause__ is None else UNCOUNTED] += 1
    return Outcome(index=row.index, custom_id=row.custom_id, error=error, request=request)


def _fitted(row: Row, response: Response, request: Request) -> Outcome:
    """Read the value by the caller's own type: the other process knew its JSON schema only."""
    schema: Any = request.schema
    try:
        found = fitted(response, schema)
    except InvalidAnswerError as error:
        return Outcome(index=row.index, custom_id=row.custom_id, error=error, request=request)
    found.attempts, found.cached, found.cost = response.attempts, response.cached, response.cost
    return Outcome(index=row.index, custom_id=row.custom_id, response=found, request=request)
