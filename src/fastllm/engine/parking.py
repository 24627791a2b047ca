"""Parking: what requests are told where a provider wants them back so late that nobody should wait without a word."""

from __future__ import annotations

import time

from ..clock import Clock
from ..errors import RateLimitError, StoppedError
from ..options import Retry
from .endpoint import Endpoint


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


def blocked_until(endpoint: Endpoint, clock: Clock, seconds: float) -> str:
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(clock.time() + seconds))
    return f"{endpoint.name} is blocked until {until} (Retry-After {seconds:.0f} s)"
