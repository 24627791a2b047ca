"""Parking: what requests are told where a provider wants them back so late that nobody should wait without a word."""

from __future__ import annotations

import time

from ..clock import Clock
from ..errors import LLMError, RateLimitError, StoppedError
from ..options import Retry
from .endpoint import Endpoint


def check(endpoint: Endpoint, retry: Retry, clock: Clock, *, batch: bool) -> None:
    """Fail at once where it would take too long."""
    seconds = endpoint.limiter.parked_for
    patient = batch and retry.patient
    if seconds <= (max(retry.retry_after_cap, retry.park_cap) if patient else retry.retry_after_cap):
        return
    text = f"not sent: {blocked_until(endpoint, clock, seconds)}"
    if batch:
        raise StoppedError(text, code="blocked", sent=False)
    raise RateLimitError(text, code="blocked", retry_after=seconds, retryable=False, sent=False)


def dismiss(endpoint: Endpoint, retry: Retry, clock: Clock, seconds: float, cause: LLMError) -> None:
    """Those who wait already are told as well."""
    text = f"not sent: {blocked_until(endpoint, clock, seconds)}"
    late = RateLimitError(text, code="blocked", retry_after=seconds, retryable=False, sent=False)
    endpoint.limiter.dismiss(0, late)
    if not retry.patient or seconds > max(retry.retry_after_cap, retry.park_cap):
        stopped = StoppedError(text, code="blocked", sent=False)
        stopped.__cause__ = cause
        endpoint.limiter.dismiss(1, stopped)


def blocked_until(endpoint: Endpoint, clock: Clock, seconds: float) -> str:
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(clock.time() + seconds))
    return f"{endpoint.name} is blocked until {until} (Retry-After {seconds:.0f} s)"
