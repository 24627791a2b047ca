"""Way: one request's way through the endpoints of a route, until one of them answers.

Rules:
- Within a tier, whoever can take the request now gets it, and where one fails another is asked at once, before anybody
  waits. A batch request would rather wait for its tier than go to a fallback because of a limit; an interactive one
  waits for `route.patience` seconds.
- The next tier is asked for the reasons in `route.on`: after an outage of `route.tries` attempts, or at once where
  asking again cannot help. A prompt that is too long, or refused by a filter, leaves its tier at once.
- Where nobody is left to ask, the request backs off as it does at a single endpoint and begins again at the first tier,
  as long as the retry policy allows.
- While there is somebody else to ask, one attempt may take half of the time that is left, so that a server which hangs
  does not use up all of it.
- An answer that a content filter has cut off goes to the caller only if nobody else answers.
- A fallback that cannot take the request at all (its dialect has no word for a parameter) is passed over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from ..errors import (
    APIConnectionError,
    APITimeoutError,
    BudgetExceededError,
    ConflictError,
    ContentFilterError,
    ContextLengthError,
    DeadlineExceededError,
    InternalServerError,
    InvalidRequestError,
    LimitExceededError,
    LLMError,
    NotFoundError,
    RateLimitError,
    RequestTooLargeError,
    StoppedError,
)
from ..options import Reason
from ..types import Response
from .call import Call
from .endpoint import Endpoint
from .router import INF, Tier, Tiers
from .stats import Stats

A = TypeVar("A")

_DEEPER = ("context_length", "content_filter")  # another endpoint of the same tier would say the same
HURRY = 1.0  # seconds that an endpoint may keep a request waiting which another one could take
SHORTEST = 0.05  # seconds: the least that an attempt gets
MONTH = 30 * 24 * 3600.0  # seconds: longer than any limit keeps a batch waiting


def reason_of(error: LLMError) -> Reason | None:
    """Say why another endpoint may answer where this error came; None where it is the request's own."""
    cause = error.__cause__
    if isinstance(error, BudgetExceededError | DeadlineExceededError):
        return None
    if isinstance(error, StoppedError):
        return reason_of(cause) if isinstance(cause, LLMError) else "rate_limit"
    if isinstance(error, ContextLengthError | RequestTooLargeError | LimitExceededError):
        return "context_length"
    if isinstance(error, ContentFilterError):
        return "content_filter"
    if error.fatal_for_key:
        return "key"
    if isinstance(error, RateLimitError):
        return "rate_limit"
    if isinstance(error, NotFoundError):
        return "not_found"
    return "outage" if isinstance(error, APIConnectionError | InternalServerError | ConflictError) else None


class Way:
    """The state of one request on a route. `tier` is where it is now."""

    __slots__ = (
        "_call", "_cause", "_failed", "_hurried", "_index", "_kept", "_move", "_patient", "_stats", "_timeout",
        "_tries", "tier", "tiers",
    )  # fmt: skip

    def __init__(self, tiers: Tiers, tier: Tier, call: Call, stats: Stats) -> None:
        self.tiers = tiers
        self._stats = stats
        self._call = call
        self._timeout = call.timeout
        self.tier = tier
        self._index = 0
        self._tries = 0  # attempts that failed in this tier
        self._failed: set[Endpoint] = set()  # who was asked in vain since the beginning, or the last pause
        self._move: int | None = None  # the tier where somebody else is to be asked, once that is decided
        self._hurried = self._patient = False  # it is not to wait long / as long as need be: nobody else is free
        self._cause: LLMError | None = None  # why the last endpoint was left
        self._kept: Any = None  # an answer that a filter has cut off

    async def travel(
        self,
        first: Endpoint,
        repeat: Callable[[Endpoint], Awaitable[A]],
        look: Callable[[Tier], Awaitable[A | None]] | None,
    ) -> A:
        """Have `repeat` make its attempts at one endpoint after another. `look` finds what a fallback has answered."""
        endpoint = first
        try:
            while True:
                self._call.endpoint = endpoint
                self._bound(endpoint)
                try:
                    answer = await look(self.tier) if self._index and look is not None else None
                    if answer is None:
                        answer = await repeat(endpoint)
                    if not self._filtered(answer):
                        self._kept = None
                        return answer
                    self._keep(answer)
                except LLMError as error:
                    self._call.note(endpoint, error)
                    if self._move is None and not self._passes_over(error) and not self.leaves(endpoint, error):
                        if self._kept is not None:
                            return self._kept  # type: ignore[no-any-return]
                        if self._unfit(error) and self._cause is not None:
                            raise self._cause from None
                        raise
                    self._cause = error if not self._unfit(error) else self._cause
                endpoint = await self._moved()
        finally:
            self._call.timeout = self._timeout
            if self._kept is not None:
                self._stats.fits_after_all()

    def _keep(self, answer: Any) -> None:
        """Have it at hand should nobody else answer, or the time run out: it was paid for."""
        self._stats.misfit()
        self._kept = self._call.response = answer
        self._move = self._index + 1

    def leaves(self, endpoint: Endpoint, error: LLMError) -> bool:
        """Tell whether to ask somebody else now instead of waiting here; `travel` then goes there."""
        reason = reason_of(error)
        if reason is None or (self._call.several and reason in _DEEPER):
            return False  # of a pack, that may be about one input: its parts are tried here first
        self._failed.add(endpoint)
        self._tries += 1
        others = self.tier.pick(self._call.request, self._failed)[1] if reason not in _DEEPER else INF
        if self._hurried and error.code == "blocked":
            self._move = self._after_hurry(others)
        elif others < (HURRY if error.retryable else INF):
            self._move = self._index
        elif self._has_next(reason) and self._is_over(endpoint, error, reason):
            self._move = self._index + 1
        return self._move is not None

    def _after_hurry(self, others: float) -> int:
        if others < INF:
            return self._index
        if not self._call.request.priority and self._has_next("rate_limit"):
            return self._index + 1
        self._patient = True  # who could have taken it can no longer: wait for whoever is first
        self._failed.clear()
        return self._index

    def _is_over(self, endpoint: Endpoint, error: LLMError, reason: Reason) -> bool:
        """Tell whether this tier has had its chance."""
        if reason in _DEEPER or not error.retryable or isinstance(error, APITimeoutError):
            return True
        if reason == "rate_limit":
            limiter, request = endpoint.limiter, self._call.request
            wait = limiter.outlook(endpoint.estimator.estimate(request), request.priority)
            return not request.priority and max(wait, error.retry_after or 0.0) > self.tiers.route.patience
        return self._tries >= self.tiers.route.tries or endpoint.limiter.breaker.opened

    def _has_next(self, reason: Reason) -> bool:
        return self._index + 1 < len(self.tiers) and reason in self.tiers.route.on

    def restart(self) -> None:
        """It has paused: from the first tier again."""
        self._failed.clear()
        self._move = 0

    def patience(self, seconds: float) -> float:
        """Give for how long a provider may keep this request waiting, which may wait for `seconds`: less where somebody
        else would take it."""
        request, route = self._call.request, self.tiers.route
        self._hurried = False
        if self._patient:
            return seconds
        but = {*self._failed, self._call.endpoint} if self._call.endpoint is not None else self._failed
        if self.tier.pick(request, but)[1] <= HURRY:
            least = HURRY
        elif not request.priority and self._has_next("rate_limit"):
            least = route.patience
        else:
            return seconds
        self._hurried = least < seconds
        return min(seconds, least)

    async def _moved(self) -> Endpoint:
        index, self._move = self._move, None
        assert index is not None
        if index != self._index:
            await self._enter(index)
        return await self.choose()

    async def _enter(self, index: int) -> None:
        self.tier = await self.tiers.tier(index)
        self._index, self._tries, self._patient = index, 0, False

    async def choose(self) -> Endpoint:
        """Choose within the tier, or beyond it where that would take an interactive request too long."""
        request, route = self._call.request, self.tiers.route
        while True:
            endpoint, wait = self.tier.pick(request, self._failed)
            if endpoint is not None and wait <= (route.patience if not request.priority else MONTH):
                return endpoint
            if not self._has_next("rate_limit" if wait < INF else "key"):
                break
            await self._enter(self._index + 1)
        if endpoint is None:
            endpoint, _ = self.tier.pick(request)
        assert endpoint is not None
        return endpoint

    def _unfit(self, error: LLMError) -> bool:
        """Tell whether a fallback's dialect has no words for this request."""
        return isinstance(error, InvalidRequestError) and not error.sent and self._cause is not None

    def _passes_over(self, error: LLMError) -> bool:
        if self._unfit(error) and self._index + 1 < len(self.tiers):
            self._move = self._index + 1
        return self._move is not None

    def _filtered(self, answer: object) -> bool:
        if not isinstance(answer, Response) or answer.finish_reason != "content_filter":
            return False
        return self._has_next("content_filter")

    def _bound(self, endpoint: Endpoint) -> None:
        """While there is somebody else to ask, one attempt may take half of the time that is left."""
        call, timeout = self._call, self._timeout
        alone = self._index + 1 >= len(self.tiers) and len(self.tier.members) <= len(self._failed) + 1
        if alone or timeout.total is None:
            call.timeout = timeout
            return
        left = timeout.total - (endpoint.limiter.now - call.began - call.excused)
        attempt = min(timeout.attempt or INF, max(SHORTEST, left / 2))
        call.timeout = msgspec.structs.replace(timeout, attempt=attempt)

    def __repr__(self) -> str:
        return f"<Way tier {self._index} of {len(self.tiers)}, {len(self._failed)} failed>"


async def begin(tiers: Tiers, call: Call, stats: Stats) -> Endpoint:
    """Put a request on a route, and give the endpoint that is to be asked first. ConfigError where there is none."""
    way = Way(tiers, await tiers.begin(), call, stats)
    call.way = way
    # What travels in a pack takes no turn of its own: the pack will choose.
    return way.tier.members[0].endpoint if call.shared is not None else await way.choose()
