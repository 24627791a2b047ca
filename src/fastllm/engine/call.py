"""Call: one logical request on its way through the engine: what its steps tell each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from ..clock import Clock, Deadline
from ..errors import APITimeoutError, DeadlineExceededError, LLMError, Tried
from ..options import Timeout
from ..types import Request, Response
from .endpoint import Endpoint
from .flight import Flight
from .permit import Permit
from .router import Tier, Tiers

A = TypeVar("A")
Split = tuple[tuple[tuple[str, bytes], ...], bytes]  # the fields of a body but its input, and the input
MOST_ADAPTED = 32  # times that a request is sent again without what was refused: more than there are such parameters


class OnRoute(Protocol):
    """What the engine's steps ask of the way that a request is on, see `way.Way`."""

    tier: Tier
    tiers: Tiers

    async def travel(
        self,
        first: Endpoint,
        repeat: Callable[[Endpoint], Awaitable[A]],
        look: Callable[[Tier], Awaitable[A | None]] | None,
    ) -> A: ...
    def leaves(self, endpoint: Endpoint, error: LLMError) -> bool: ...
    def restart(self) -> None: ...
    def patience(self, seconds: float) -> float: ...


class Missed(msgspec.Struct, eq=False):
    """An attempt that was made in the lane and failed: when it began, what was sent, and how it ended."""

    began: float
    sent: Request
    error: LLMError


class Call(msgspec.Struct, eq=False):
    """The state of one request."""

    request: Request
    timeout: Timeout
    deadline: Deadline
    began: float
    excused: float = 0.0  # seconds that are not held against the deadline
    endpoint: Endpoint | None = None
    flight: Flight | None = None
    way: OnRoute | None = None
    shared: Split | None = None  # its one input, and the rest: it is to travel in a pack
    tried: list[Tried] = []
    attempts: int = 0
    counted: int = 0  # of them, those that count against `retry.attempts`
    several: bool = False  # it is a pack of more than one
    adapted: int = 0  # attempts whose refusal taught what to leave out
    spared: int = 0  # attempts that cost nothing, because their connection was stale: one at most
    whole: list[bool] | None = None  # with hedging: not empty once one of its streams has ended whole
    missed: Missed | None = None  # its first attempt
    last: LLMError | None = None
    response: Response | None = None  # paid for: nothing that happens from then on may lose it

    @property
    def place(self) -> Tier | None:
        """Where on its route it is."""
        return self.way.tier if self.way is not None else None

    def note(self, endpoint: Endpoint, error: LLMError) -> None:
        """Write down an attempt that failed, once."""
        if error is self.last and error.history:
            return
        self.last = error
        tried = Tried(
            endpoint=endpoint.name, error=type(error).__name__, status_code=error.status_code, code=error.code
        )
        self.tried = [*self.tried, tried]
        error.history = tuple(self.tried)

    def adapt(self, endpoint: Endpoint, sent: Request, error: LLMError) -> bool:
        """Learn from a refusal of what was sent; True if the request, as it goes out now, is worth sending again at
        once: never the same one, and not for ever."""
        if self.adapted >= MOST_ADAPTED or not endpoint.adapts(sent, error):
            return False
        self.adapted += 1
        return endpoint.adapted(self.request).body != sent.body

    def excuse(self, now: float) -> float:
        """From here to `hold` the time of a batch request does not count. Gives `now`."""
        if self.request.priority:
            self.deadline.pause()
        return now

    def hold(self, waited: float) -> None:
        """The time counts again."""
        if self.request.priority:
            self.deadline.resume()
            self.excused += waited


async def in_time(clock: Clock, call: Call, endpoint: Endpoint, permit: Permit, attempt: Awaitable[A]) -> A:
    """Bound one attempt, so that the next may follow. Nested, and only where it was asked for: it costs 2 µs."""
    limit = clock.deadline(call.timeout.attempt)
    try:
        with limit:
            return await attempt
    except TimeoutError as error:
        if not limit.expired or isinstance(error, LLMError):
            raise
        text = f"no whole answer from {endpoint.name} within {call.timeout.attempt:g} s (timeout.attempt)"
        late = APITimeoutError(text, code="timeout_attempt")
        endpoint.broke(permit, late)
        raise late from None


def too_late(call: Call) -> DeadlineExceededError:
    """Give the error of a request whose time is up."""
    last = call.last
    why = f"; the last attempt ended with: {last.message}" if last is not None else ""
    error = DeadlineExceededError(
        f"no answer within {call.timeout.total:g} s (timeout.total){why}",
        code="deadline_exceeded",
        status_code=last.status_code if last is not None else None,
        request_id=last.request_id if last is not None else None,
    )
    error.attempts = call.attempts
    tried = list(call.tried)
    if call.endpoint is not None and call.attempts > len(tried):  # the one that was under way
        tried.append(Tried(endpoint=call.endpoint.name, error=type(error).__name__, code=error.code))
    error.history = tuple(tried)
    error.endpoint = call.endpoint.name if call.endpoint is not None else ""
    return error
