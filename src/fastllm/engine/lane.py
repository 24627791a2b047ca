"""Lane: the short way of a batch's plain requests, which take no task of their own while nothing holds them back.

A request takes it where its endpoint is known and admits it, and no more is asked for than an attempt: no cache, no
schema, no hedge, no money to reserve, no time limit of its own. It goes through the steps of the engine's page in the
same order, by the same functions. What comes to anything but an answer goes on in a task, with its first attempt made
(`resume`), and so does whatever cannot take the lane now.

Answers that arrive in one turn of the loop are handled together at the beginning of the next, and so are the rows that
follow them: the code of each step is then in the processor's cache.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
from msgspec import UNSET

from ..errors import FastLLMError, LLMError
from ..policy.tokens import Estimate
from ..transport.base import Exchange, Line
from ..types import EMBEDDINGS, Headers, HTTPRequest, HTTPResponse, Outcome, Request, Response, Row
from . import codec
from .call import Call, Missed, too_late
from .endpoint import Endpoint
from .engine import Engine
from .limiter import Limiter
from .parking import patience
from .permit import Permit, Waiter

SPAN = 0.5  # seconds at least between two looks for what has taken too long
_PROXY = 407


class Crew(Protocol):
    """Whose rows they are."""

    def landed(self, turn: int, outcome: Outcome) -> None:
        """A row has its outcome."""
        ...

    def missed(self, turn: int, row: Row, missed: Missed | None) -> None:
        """A row goes on in a task: its attempt has failed; or (None) it is as if it was not made."""
        ...

    def refill(self) -> None:
        """There is room for more rows."""
        ...

    def broke(self, error: BaseException) -> None:
        """This is a bug, and ends the run."""
        ...


class Sent(msgspec.Struct, eq=False):
    """One request on its way. To the connection it is the future that waits for the answer."""

    lane: Lane
    turn: int
    row: Row
    request: Request  # as it was sent: the endpoint's rules may be others by the time of the answer
    endpoint: Endpoint
    permit: Permit
    answer: HTTPResponse | None = None
    error: BaseException | None = None
    exchange: Exchange | None = None

    def set_result(self, answer: HTTPResponse) -> None:
        self.answer = answer
        arrived = self.lane.arrived
        if not arrived:
            self.lane.wake()
        arrived.append(self)

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        arrived = self.lane.arrived
        if not arrived:
            self.lane.wake()
        arrived.append(self)

    def done(self) -> bool:
        return self.answer is not None or self.error is not None


class Held(msgspec.Struct, eq=False):
    """The row that stands in the limiter's queue for all that follow it. To the limiter it is a waiter's future."""

    lane: Lane
    turn: int
    row: Row
    endpoint: Endpoint
    waiter: Waiter | None = None
    permit: Permit | None = None
    over: bool = False  # it waits no more

    def set_result(self, permit: Permit) -> None:
        self.permit, self.over = permit, True
        self.lane.wake()

    def set_exception(self, error: Exception) -> None:
        self.over = True
        self.lane.wake()

    def done(self) -> bool:
        return self.over


def lane_for(engine: object, crew: Crew) -> Lane | None:
    """Give the lane for a run on this engine; None where more than an attempt is asked for, or it is another thing."""
    if not isinstance(engine, Engine):
        return None
    wants_more = engine.cache is not None or engine.retry.hedge is not None or engine.timeout.attempt is not None
    return None if wants_more else Lane(engine, crew)


def _resumed(engine: Engine, request: Request, endpoint: Endpoint, sent: float) -> Call:
    """Give the call of a request whose first attempt was made in the lane; its time runs since then."""
    total = engine.timeout.total
    left = None if total is None else max(0.0, sent + total - engine.clock.now())
    call = Call(request, engine.timeout, engine.clock.deadline(left), sent)
    call.endpoint = endpoint
    call.attempts = 1
    return call


async def resume(engine: Engine, request: Request, missed: Missed) -> Response:
    """Go on with a request whose first attempt failed in the lane."""
    endpoint = engine.router.known.get(request.model) or await engine.router.resolve(request.model)
    call = _resumed(engine, request, endpoint, missed.began)
    call.missed = missed
    return await engine.answer(call)


class Lane:
    """The lane of one run. `out` is what is on its way, `arrived` what of it has come back and is to be looked at,
    `held` the row that waits for a slot: while there is one, pull no other. `cancel` the lane when the run ends."""

    __slots__ = (
        "_crew", "_endpoint", "_engine", "_free", "_headers", "_line", "_loop", "_mixed", "_open", "_packs",
        "_pressed", "_sole", "_tasks", "_timer", "_total", "_url", "arrived", "held", "out",
    )  # fmt: skip

    def __init__(self, engine: Engine, crew: Crew) -> None:
        self._engine = engine
        self._crew = crew
        self._total = engine.timeout.total
        self._packs = engine.packs is not None
        self._loop = asyncio.get_running_loop()
        self._open = True
        self.arrived: list[Sent] = []
        self._timer: asyncio.TimerHandle | None = None
        self.out: set[Sent] = set()
        self.held: Held | None = None
        self._sole: Endpoint | None = None  # whose rows have come so far
        self._mixed = False  # there are rows of others, too, which are not to wait for this one's slots
        self._pressed: Limiter | None = None  # which was told that there are more rows than slots
        self._tasks = 0
        # Of the row before, so that one like it is not looked at again:
        self._endpoint: Endpoint | None = None
        self._free = 0  # rows that its limiter lets in without more ado
        self._url = ""
        self._headers: Headers | None = None
        self._line: Line | None = None

    def anew(self, tasks: int) -> None:
        """Begin to launch rows: something may have happened since the last one. So many of the run's are in tasks."""
        self._endpoint = None
        self._tasks = tasks

    def launch(self, turn: int, row: Row) -> bool:
        """Send a row's request or hold it; or leave it to a task: whatever is wrong with it is found again there."""
        request, engine = row.request, self._engine
        if request is None or request.schema is not None or request.timeout is not UNSET or not self._open:
            return False
        endpoint = engine.router.known.get(request.model)
        if endpoint is not self._sole:
            self._mixed, self._sole = self._mixed or self._sole is not None, endpoint
        if endpoint is None or endpoint.purse is not None or (self._packs and request.path == EMBEDDINGS):
            return False
        try:
            asked, http = codec.encoded(endpoint, request)
            line = self._line
            if http.url != self._url or http.headers is not self._headers or line is None:
                line = self._line_of(http)
            limiter, now = endpoint.limiter, engine.clock.now()
            if line is None:
                return False
            if endpoint is not self._endpoint:
                self._endpoint, self._free = endpoint, limiter.free(now)
            need = endpoint.estimator.estimate(request)
            if self._free > 0 and request.priority:
                self._free -= 1
                permit = limiter.take(now, need)
            else:
                permit = limiter.try_acquire(need, request.priority)
        except FastLLMError:
            return False
        if permit is None:
            return self._hold(turn, row, endpoint, need)
        self._begin(Sent(self, turn, row, asked, endpoint, permit), line, http, now)
        return True

    def _line_of(self, http: HTTPRequest) -> Line | None:
        self._line = line = self._engine.transport.line(http)
        self._url, self._headers = http.url, http.headers
        return line

    def _begin(self, sent: Sent, line: Line, http: HTTPRequest, now: float) -> None:
        try:
            sent.exchange = line.begin(http.body, self._engine.timeout, now, sent)
        except BaseException:
            sent.permit.cancel()
            raise
        self._engine.stats.sent(1)
        self.out.add(sent)
        if self._timer is None and self._total is not None:
            self._timer = self._engine.clock.call_later(self._total, self._sweep)

    # Waiting for a slot

    def _hold(self, turn: int, row: Row, endpoint: Endpoint, need: Estimate) -> bool:
        """Let the row wait in the limiter's queue and the others unpulled, instead of each in a task. Not where more
        than a slot is missing, or somebody else waits: a run is to have as many places in the queue as it has rows."""
        request, limiter, engine = row.request, endpoint.limiter, self._engine
        assert request is not None
        alone = limiter.waiting <= self._tasks and not self._mixed
        if not (request.priority and alone and limiter.lacks_slots(need)):
            return False
        self.held = held = Held(self, turn, row, endpoint)
        self._pressed = limiter
        limiter.pressed = True
        engine.stats.waiting += 1
        held.waiter = limiter.queue(
            held, need, 1, patience=patience(engine.retry, batch=True),
            estimate=lambda: endpoint.estimator.estimate(request),
        )  # fmt: skip
        return True

    def _let_in(self, held: Held) -> None:
        """It has its permit, or there will be none."""
        self.held = None
        self._engine.stats.waiting -= 1
        permit, request = held.permit, held.row.request
        assert request is not None
        if permit is not None:
            try:
                asked, http = codec.encoded(held.endpoint, request)
                line = self._line_of(http) if self._open else None
            except FastLLMError:  # it went well when the row was held
                line = None
            if line is not None:
                sent = Sent(self, held.turn, held.row, asked, held.endpoint, permit)
                self._begin(sent, line, http, permit.sent)
                return
            permit.cancel()
        self._crew.missed(held.turn, held.row, None)

    def drop(self) -> None:
        """Give up the row that waits."""
        held, self.held = self.held, None
        if held is None:
            return
        self._engine.stats.waiting -= 1
        if held.permit is not None:
            held.permit.cancel()
        elif not held.over and held.waiter is not None:
            held.over = True
            held.endpoint.limiter.forget(held.waiter, 1)

    def _ease(self) -> None:
        """Slots are not what the run waits for, or it is over."""
        if self._pressed is not None:
            self._pressed.pressed, self._pressed = False, None

    # What comes back

    def wake(self) -> None:
        """Look at what has arrived, once everything has that this turn of the loop brings."""
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        arrived, self.arrived = self.arrived, []
        now, end = self._engine.clock.now(), self._end
        try:
            for sent in arrived:
                end(sent, now)
            if self.held is not None and self.held.over:
                self._let_in(self.held)
            self._crew.refill()
            if self.held is None:
                self._ease()
        except BaseException as error:
            self._crew.broke(error)

    def _end(self, sent: Sent, now: float) -> None:
        """It has its answer, or has failed."""
        self.out.discard(sent)
        row, answer, engine, endpoint = sent.row, sent.answer, self._engine, sent.endpoint
        request = row.request
        assert request is not None
        if answer is None or 300 <= answer.status < 400 or answer.status == _PROXY:
            self._missed(sent)
            return
        try:
            response = engine.landed(request, endpoint, sent.permit, answer, now)
        except LLMError as error:
            self._crew.missed(sent.turn, row, Missed(sent.permit.sent, sent.request, error))
            return
        response.endpoint = endpoint.name
        if engine.observers:
            engine.done(request, response, None, sent.permit.sent)
        self._crew.landed(
            sent.turn, Outcome(index=row.index, custom_id=row.custom_id, response=response, request=request)
        )

    def _missed(self, sent: Sent) -> None:
        """It has no answer, or one that sends it elsewhere, which the transport is to see to, from now on for all."""
        failure = sent.error if isinstance(sent.error, LLMError) else None
        self._engine.lost(sent.endpoint, sent.permit, failure)
        if sent.error is not None and failure is None:
            raise sent.error
        self._open = self._open and failure is not None
        missed = None if failure is None else Missed(sent.permit.sent, sent.request, failure)
        self._crew.missed(sent.turn, sent.row, missed)

    # The time limit of a whole request

    def _sweep(self) -> None:
        assert self._total is not None
        self._timer = None
        now = self._engine.clock.now()
        for sent in [sent for sent in self.out if sent.permit.sent + self._total <= now and not sent.done()]:
            self._expire(sent)
        if self.out:
            first = min(sent.permit.sent for sent in self.out) + self._total
            self._timer = self._engine.clock.call_later(max(SPAN, first - now), self._sweep)
        try:
            self._crew.refill()
        except BaseException as error:
            self._crew.broke(error)

    def _expire(self, sent: Sent) -> None:
        engine, row = self._engine, sent.row
        assert row.request is not None
        self._give_up(sent)
        call = _resumed(engine, row.request, sent.endpoint, sent.permit.sent)
        error = engine.failed(call, too_late(call))
        self._crew.landed(
            sent.turn, Outcome(index=row.index, custom_id=row.custom_id, error=error, request=row.request)
        )

    def _give_up(self, sent: Sent) -> None:
        """Close its connection, so that the provider stops working on it."""
        self.out.discard(sent)
        if not sent.done() and sent.exchange is not None:
            sent.exchange.forsake(sent)
        self._engine.lost(sent.endpoint, sent.permit, None)

    def cancel(self) -> None:
        """Give up whatever is on its way."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.arrived.clear()
        self.drop()
        self._ease()
        for sent in list(self.out):
            self._give_up(sent)

    def __repr__(self) -> str:
        held = "one held" if self.held is not None else "none held"
        return f"<Lane {'open' if self._open else 'closed'}, {len(self.out)} on their way, {held}>"
