"""Waits that the engine makes before it sends: in a limiter's queue, where the provider wants nobody so early, and for
money held for others.

What a provider wants back so late that nobody should wait without a word is told at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..clock import Clock
from ..errors import BudgetExceededError, LLMError, RateLimitError, StoppedError
from ..options import Retry
from ..policy.tokens import Estimate
from .call import Call
from .endpoint import Endpoint
from .limiter import ParkedError
from .permit import Permit
from .stats import Stats

LONGEST = 86_400.0  # seconds: what is told of a wait whose end is not known
PURSE_WAIT = 0.5  # seconds between looks at money that is held for others


def patience(retry: Retry, *, batch: bool) -> float:
    """Give for how many seconds a request may be kept waiting because the provider said so."""
    return max(retry.retry_after_cap, retry.park_cap) if batch and retry.patient else retry.retry_after_cap


def check(endpoint: Endpoint, most: float, clock: Clock, *, batch: bool) -> None:
    """Fail at once where it would take longer than `most` seconds."""
    seconds = endpoint.limiter.parked_for
    if seconds <= most:
        return
    text = f"not sent: {blocked_until(endpoint, clock, seconds)}"
    if batch:
        raise StoppedError(text, code="blocked", sent=False)
    raise RateLimitError(text, code="blocked", retry_after=seconds, retryable=False, sent=False)


async def admission(call: Call, endpoint: Endpoint, need: Estimate, retry: Retry, clock: Clock, stats: Stats) -> Permit:
    """Wait in the limiter's queue. For batch requests this time is not held against the deadline; a single call waits
    for `timeout.queue` at most."""
    batch = call.request.priority > 0
    most = patience(retry, batch=batch)
    if call.way is not None:
        most = call.way.patience(most)
    stats.waiting += 1
    # Where nobody has ever answered, waiting is not excused: it is no outage.
    breaker = endpoint.limiter.breaker
    waited = call.excuse(clock.now()) if breaker.proven or not breaker.opened else None
    queue = None if batch else call.timeout.queue
    try:
        if queue is None:
            return await _turn(call, endpoint, need, most, clock)
        if endpoint.limiter.least_wait(need) > queue:
            check(endpoint, most, clock, batch=batch)
            raise queue_too_long(endpoint, need, queue)
        limit = clock.deadline(queue)
        try:
            with limit:
                return await _turn(call, endpoint, need, most, clock)
        except TimeoutError as error:
            if not limit.expired or isinstance(error, LLMError):
                raise
            raise queue_too_long(endpoint, need, queue) from None
    finally:
        stats.waiting -= 1
        if waited is not None:
            call.hold(clock.now() - waited)


async def _turn(call: Call, endpoint: Endpoint, need: Estimate, most: float, clock: Clock) -> Permit:
    """Wait for as long as it takes, but not where the provider wants nobody for longer than `most` seconds."""
    request = call.request
    while True:
        check(endpoint, most, clock, batch=request.priority > 0)
        try:
            return await endpoint.limiter.acquire(
                need, request.priority, patience=most, estimate=lambda: endpoint.estimator.estimate(request)
            )
        except ParkedError:
            continue


def queue_too_long(endpoint: Endpoint, need: Estimate, most: float) -> RateLimitError:
    """Make the error of a single call that may not wait as long as it would take."""
    seconds = min(endpoint.limiter.outlook(need), LONGEST)
    text = f"not sent: too many requests wait for {endpoint.name}; {most:g} s (timeout.queue) are not enough"
    return RateLimitError(text, code="queue_timeout", retry_after=seconds, retryable=False, sent=False)


def blocked_until(endpoint: Endpoint, clock: Clock, seconds: float) -> str:
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(clock.time() + seconds))
    return f"{endpoint.name} is blocked until {until} (Retry-After {seconds:.0f} s)"


async def pay(
    call: Call, endpoint: Endpoint, permit: Permit, clock: Clock, stats: Stats, random: Callable[[], float]
) -> bool:
    """Reserve the most that this attempt can cost. False: money held for others is missing; try again later. A single
    call waits for `timeout.queue` at most."""
    try:
        endpoint.reserve(call.request, permit)
        return True
    except BaseException as error:
        permit.cancel()
        if not (isinstance(error, BudgetExceededError) and error.passing):
            raise
    waited = call.excuse(clock.now())
    queue = None if call.request.priority > 0 else call.timeout.queue
    stats.waiting += 1
    try:
        while not endpoint.affords(call.request):
            if queue is not None and clock.now() - waited >= queue:
                text = f"not sent: the money for it was held for others for {queue:g} s (timeout.queue)"
                raise RateLimitError(text, code="queue_timeout", retry_after=PURSE_WAIT, retryable=False, sent=False)
            await clock.sleep(PURSE_WAIT * (0.5 + random()))
    finally:
        stats.waiting -= 1
        call.hold(clock.now() - waited)
    return False
