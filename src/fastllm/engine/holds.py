"""Holds: what keeps an endpoint's requests waiting now and what room its limits have left, for people who watch.

Nothing here changes anything, so that a display may ask from a thread of its own.
"""

from __future__ import annotations

import math
import time
from itertools import accumulate
from typing import Literal

import msgspec

from ..policy.breaker import PROBE
from ..policy.ledger import INF
from ..policy.window import DAY, Window
from .limiter import Limiter

BRIEF = 2.0  # seconds: a shorter wait is over before it is read
STEP, STEPS = 5.0, 14  # seconds; a minute, and its end


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Why nothing goes out to an endpoint: in words, in fewer words, and the wall time at which it ends, if known."""

    endpoint: str
    why: str
    short: str
    until: float | None = None


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """A limit of a minute: how much of it will still be used in 0, STEP, 2 * STEP … seconds if nothing more is sent."""

    limit: float
    used: tuple[float, ...]


def hold_of(name: str, limiter: Limiter, now: float, wall: float) -> Hold | None:
    """Say what holds an endpoint's requests back beyond its limits of a minute; None where nothing does."""
    parked, learner = limiter._parked - now, limiter.learner
    if parked > BRIEF:
        return _until(name, "parked", wall + parked, limiter.parked_why)
    spent = [until for left, until, _ in tuple(learner.quotas.values()) if now < until and limiter.in_flight >= left]
    if spent and min(spent) - now > BRIEF:
        return _until(name, "day's quota used up", wall + min(spent) - now, "")
    if limiter.breaker.opened:
        return Hold(endpoint=name, why=f"no answer, asking every {PROBE:g} s", short="no answer")
    if learner.blocked:
        return Hold(endpoint=name, why="429 to everything, asking now and then", short="only 429s")
    for meter in limiter._more:
        window = meter.window
        if window.seconds == DAY and window.limit - window.used_at(now) < 1.0:
            return _until(name, "day's limit used up", wall + max(0.0, window.next_out(now) - now), "")
    return None


def rooms_of(limiter: Limiter, now: float) -> dict[str, Room]:
    """Give the limits of a minute that are known, of "requests" and of "tokens"."""
    found = {}
    for name, ledger in (("requests", limiter.learner.requests), ("tokens", limiter.learner.tokens)):
        limit = ledger.limit
        if limit is not None:
            found[name] = Room(limit=limit, used=_leaving(ledger.window, now))
    return found


class KnownLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that somebody who did not know it may want to know; `source`: the provider told it, or it was found."""

    limit: float
    source: Literal["told", "found"]


def learnt_of(limiter: Limiter) -> dict[str, KnownLimit]:
    """Give the limits that hold now and were not set by the user: "requests_per_minute" and the like."""
    found: dict[str, KnownLimit] = {}
    learner = limiter.learner
    for name, ledger in (("requests_per_minute", learner.requests), ("tokens_per_minute", learner.tokens)):
        if ledger.source == "found":
            found[name] = KnownLimit(limit=round(ledger.found.value), source="found")
        elif ledger.source == "told":
            found[name] = KnownLimit(limit=ledger.told, source="told")
    if learner.pace.value < INF:
        found["requests_per_second"] = KnownLimit(limit=float(f"{learner.pace.value:.3g}"), source="found")
    return found


def _leaving(window: Window, now: float) -> tuple[float, ...]:
    gone = [0.0] * STEPS
    for entry in tuple(window._buckets):
        step = max(0, math.ceil((entry.expires - now) / STEP))
        if step < STEPS:
            gone[step] += entry.amount
    return tuple(max(0.0, window.used - so_far) for so_far in accumulate(gone))


def _until(name: str, what: str, until: float, why: str) -> Hold:
    at = time.localtime(round(until))
    text = time.strftime("%H:%M:%S" if until - time.time() < 12 * 3600 else "%Y-%m-%d %H:%M", at)
    return Hold(
        endpoint=name,
        why=f"{what} until {text}{f' ({why})' if why else ''}",
        short=f"{what} until {text[:-3]}",
        until=until,
    )
