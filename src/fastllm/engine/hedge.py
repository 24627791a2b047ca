"""Race: a second attempt beside one that is late; the first whole answer wins and the other is cancelled.

Rules:
- The first attempt runs in the caller's own task, so that whoever watches that task (a job that is stopped) sees what
  it would see without hedging; the second in a task that takes all it needs itself, so that it owes nothing before it
  runs, and gives it back itself.
- The second wins by cancelling the caller's task and taking that back, as asyncio.timeout does. Where somebody else
  cancelled the task, too (its caller, the deadline), the cancellation goes on.
- Whoever wins cancels the other in the very step that decoded the answer. So no request has two answers booked.
- An error that may pass leaves the other attempt running; the last one goes to the caller. A final one ends both.
- `run` never returns before the second task has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from ..clock import Clock
from ..errors import ConfigError, LLMError
from ..policy.hedging import Hedging, Latencies
from ..policy.tokens import Estimate
from ..types import Request, Response
from .endpoint import Endpoint
from .permit import Permit
from .stream import Stream

A = TypeVar("A", Response, Stream)


def latencies(endpoint: Endpoint, *, whole: bool) -> Latencies:
    """Give how long this endpoint's answers take, whole ones or their first chunks; counted from the first call on."""
    if endpoint.hedging is None:
        endpoint.hedging = Hedging(endpoint.limiter.now, endpoint.limiter.attempts)
    return endpoint.hedging.whole if whole else endpoint.hedging.first_chunks


def spare_permit(endpoint: Endpoint, request: Request, estimate: Estimate) -> Permit | None:
    """Give all that a second attempt needs (budget, permit, money), if it is there now; it waits for nothing."""
    limiter, hedging = endpoint.limiter, endpoint.hedging
    if hedging is None or limiter.breaker.opened or limiter.learner.blocked or limiter.parked_for:
        return None
    now, attempts = limiter.now, limiter.attempts
    if hedging.budget.left(now, attempts) < 1.0 or endpoint.retries.left(now, attempts) < 1.0:
        return None
    try:
        permit = limiter.try_acquire(estimate, request.priority)
    except LLMError:  # the key was refused meanwhile
        return None
    if permit is None:
        return None
    hedging.budget.withdraw(now, attempts)
    endpoint.retries.withdraw(now, attempts)
    try:
        endpoint.reserve(request, permit)
    except (LLMError, ConfigError):
        permit.cancel()
        return None
    return permit


class Race(Generic[A]):
    """One request's two attempts. `second` begins the other one, or gives None where it may not be; `won` is told of
    the answer that counts, `lost` of the error of one attempt while the other still runs."""

    __slots__ = (
        "_answer", "_caller", "_clock", "_decided", "_error", "_known", "_lost", "_second", "_sent", "_task", "_won"
    )  # fmt: skip

    def __init__(
        self,
        clock: Clock,
        known: Latencies,
        second: Callable[[], Awaitable[A] | None],
        won: Callable[[A], None],
        lost: Callable[[LLMError], None],
    ) -> None:
        self._clock = clock
        self._known = known
        self._second: Callable[[], Awaitable[A] | None] = second
        self._won: Callable[[A], None] = won
        self._lost = lost
        self._caller: asyncio.Task[Any] | None = None  # while the first attempt runs
        self._task: asyncio.Task[None] | None = None
        self._sent = False  # the second is more than a task that may look whether it can be
        self._answer: A | None = None  # the second's; whoever takes it leaves None
        self._error: BaseException | None = None  # the second's
        self._decided = False  # by the second, which interrupted the first

    async def run(self, first: Awaitable[A], share: float) -> A:
        """Give the answer that is there first. `share` is the quantile of latencies after which the second begins."""
        began = self._clock.now()
        late = self._known.late_after(share)
        if late is None:
            answer = await first
            self._known.add(self._clock.now() - began)
            return answer
        caller = self._caller = asyncio.current_task()
        assert caller is not None
        cancelling = caller.cancelling()
        timer = self._clock.call_later(late, self._start)
        failure: BaseException | None = None
        try:
            answer = await first
        except BaseException as error:
            failure = error
        timer.cancel()
        self._caller = None
        try:
            if self._decided and caller.uncancel() <= cancelling and failure is not None:
                self._known.add(self._clock.now() - began)
                answer = self._taken()
            elif failure is None:
                self._known.add(self._clock.now() - began)
                self._won(answer)
            else:
                answer = await self._other(failure)
        finally:
            failure = None  # it holds this frame, and this frame must not hold it
            await self._drop()
        return answer

    async def _other(self, failure: BaseException) -> A:
        """The first failed. If that may pass and a second is under way, it is the second that counts."""
        task = self._task
        may_pass = isinstance(failure, LLMError) and failure.retryable
        if task is None or task.done() or not self._sent or not may_pass:
            raise failure
        assert isinstance(failure, LLMError)
        self._lost(failure)
        await asyncio.wait((task,))
        if self._answer is None and self._error is None:
            raise failure  # somebody cancelled the second
        return self._taken()

    def _taken(self) -> A:
        """Take what the second came to."""
        if self._error is not None:
            raise self._error
        answer, self._answer = self._answer, None
        assert answer is not None
        return answer

    def _start(self) -> None:
        if self._caller is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="fastllm-hedge")

    async def _run(self) -> None:
        """The second attempt. What it comes to is kept here: nobody looks at the task's own result."""
        began = self._clock.now()
        try:
            attempt = self._second()
            if attempt is None:
                return
            self._sent = True
            answer = await attempt
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._caller is not None and isinstance(error, LLMError) and error.retryable:
                self._lost(error)
            else:
                self._error = error
                self._interrupt()
            return
        self._known.add(self._clock.now() - began)
        self._answer = answer
        self._won(answer)
        self._interrupt()

    def _interrupt(self) -> None:
        """End the first attempt, if it still runs."""
        caller, self._caller = self._caller, None
        if caller is not None:
            self._decided = True
            caller.cancel()

    async def _drop(self) -> None:
        """Cancel the second and wait until it is gone: a turn of the loop. An answer that nobody took is given up."""
        task, self._task = self._task, None
        if task is None:
            return
        self._error = None
        task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as error:
                cancelled = error  # goes on below
        answer, self._answer = self._answer, None
        if isinstance(answer, Stream):
            answer.began = False  # to its caller it never did
            await answer.aclose()
        if cancelled is not None:
            raise cancelled

    def __repr__(self) -> str:
        state = "decided" if self._decided else "running" if self._caller is not None else "over"
        return f"<Race {state}{', two attempts' if self._task is not None else ''}>"
