"""Counters of one engine: plain integers and a latency histogram, read by anyone through `snapshot()`."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec

from ..answers import Usage
from ..errors import StoppedError
from ..types import Response
from .endpoint import Endpoint
from .holds import Hold, KnownLimit, Room, hold_of, learnt_of, rooms_of
from .latencies import Latencies, percentiles


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The counters at one moment. Tokens as the providers' `usage` told them; `elapsed` in seconds.

    `done` = `ok` + `failed`; `cached` and `joined` (identical request already under way) are part of `ok`, and of
    `misfits`: answers that did not fit their schema, or that a filter cut off where a fallback was asked, which is
    neither success nor failure yet.
    `attempts` counts what was sent, `retries` those after the first, `hedges` those sent beside one that was late,
    `rate_limited` answers of 429.
    `cost_usd` is what the answers cost by their usage and the price table; None where a price or usage is not known.
    `unsent` requests were given up before they were sent, because their job or their key was stopped or the budget was
    used up (StoppedError): they are neither done nor failed.
    `left` streams were closed by their readers before the end; they are neither ok nor failed.
    `waiting` requests wait for admission, `in_flight` ones are at the provider; `backing_off` sleep before a retry.
    """

    elapsed: float = 0.0
    done: int = 0
    ok: int = 0
    failed: int = 0
    unsent: int = 0
    left: int = 0
    cached: int = 0
    joined: int = 0
    misfits: int = 0
    attempts: int = 0
    retries: int = 0
    hedges: int = 0
    rate_limited: int = 0
    in_flight: int = 0
    waiting: int = 0
    backing_off: int = 0
    most_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    errors: dict[str, int] = {}
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    limits: dict[str, str] = {}
    cost_usd: float | None = 0.0
    holds: tuple[Hold, ...] = ()
    rooms: dict[str, Room] = {}
    learnt: dict[str, dict[str, KnownLimit]] = {}

    @property
    def cache_hit_ratio(self) -> float | None:
        """Answers from the cache as a share of all answers; None before the first."""
        answers = self.ok + self.misfits
        return self.cached / answers if answers else None


class Tally(msgspec.Struct, array_like=True):
    """All counters of one Stats, to be added to another's: in another process, say."""

    counts: dict[str, int] = {}
    errors: dict[str, int] = {}
    histogram: dict[int, int] = {}


class Stats:
    """Counts what an engine does. Only the engine writes; reading needs no lock on one loop."""

    __slots__ = (
        "attempts",
        "backing_off",
        "cached",
        "cached_tokens",
        "completion_tokens",
        "errors",
        "failed",
        "hedges",
        "in_flight",
        "joined",
        "latencies",
        "left",
        "misfits",
        "most_in_flight",
        "ok",
        "prompt_tokens",
        "rate_limited",
        "retries",
        "started",
        "unsent",
        "waiting",
    )

    def __init__(self, now: float) -> None:
        self.started = now
        self.ok = self.failed = self.unsent = self.left = self.cached = self.joined = 0
        self.misfits = self.attempts = self.retries = self.hedges = self.rate_limited = 0
        self.in_flight = self.waiting = self.backing_off = self.most_in_flight = 0
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.errors: dict[str, int] = {}
        self.latencies = Latencies()

    def sent(self, attempt: int) -> None:
        """One attempt goes out; attempts count from 1."""
        self.attempts += 1
        self.in_flight += 1
        if self.in_flight > self.most_in_flight:
            self.most_in_flight = self.in_flight
        if attempt > 1:
            self.retries += 1

    def hedged(self) -> None:
        """A second attempt goes out beside the first."""
        self.sent(1)
        self.hedges += 1

    def answered(self, latency: float, usage: Usage | None) -> None:
        """One request got its answer from the provider, `latency` seconds after its last attempt began."""
        self.ok += 1
        self.latencies.add(latency)
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
            if usage.prompt_tokens_details is not None or usage.input_tokens_details is not None:
                # A part of the prompt, whatever a provider says.
                self.cached_tokens += max(0, min(usage.cached_tokens, usage.prompt_tokens))

    def hit(self, response: Response | None) -> Response | None:
        """Count an answer that was kept, if there was one."""
        if response is not None:
            self.cached += 1
            self.ok += 1
        return response

    def failure(self, error: BaseException) -> None:
        """One request ended in an error. What was never sent has not failed: it is still to be done."""
        if isinstance(error, StoppedError):
            self.unsent += 1
            return
        self.failed += 1
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1

    def misfit(self) -> None:
        """An answer that was counted does not fit its schema: it is asked for again, or counted as a failure."""
        self.ok -= 1
        self.misfits += 1

    def fits_after_all(self) -> None:
        """Take that back: there was no better answer."""
        self.misfits -= 1
        self.ok += 1

    def unfail(self, error: BaseException) -> None:
        """Take back a failure: the request ends in another one."""
        if isinstance(error, StoppedError):
            self.unsent -= 1
            return
        self.failed -= 1
        name = type(error).__name__
        self.errors[name] -= 1
        if not self.errors[name]:
            del self.errors[name]

    def tally(self) -> Tally:
        """Give all counters as plain values."""
        return Tally(dict(zip(COUNTED, self.counts(), strict=True)), dict(self.errors), self.latencies.counts())

    def counts(self) -> tuple[int, ...]:
        """Give the plain counters, in the order of COUNTED; cheap."""
        return _counts(self)

    def add(self, tally: Tally) -> None:
        """Count what another has counted, too."""
        for name, count in tally.counts.items():
            setattr(self, name, getattr(self, name) + count)
        for name, count in tally.errors.items():
            self.errors[name] = self.errors.get(name, 0) + count
        self.latencies.join(tally.histogram)

    def snapshot(
        self,
        now: float,
        limits: dict[str, str] | None = None,
        *,
        cost: float | None = 0.0,
        holds: Sequence[Hold] = (),
        rooms: dict[str, Room] | None = None,
        learnt: dict[str, dict[str, KnownLimit]] | None = None,
    ) -> Snapshot:
        """Give all counters at once. `limits` describes each endpoint's limiter in words, `cost` is in USD, `holds` are
        those that stand still, `rooms` the limits of a minute where there is one endpoint, `learnt` each endpoint's
        limits that were told or found."""
        p50, p95, p99 = percentiles(self.latencies.counts(), (0.5, 0.95, 0.99))
        return Snapshot(
            elapsed=max(0.0, now - self.started),
            done=self.ok + self.failed,
            ok=self.ok,
            failed=self.failed,
            unsent=self.unsent,
            left=self.left,
            cached=self.cached,
            joined=self.joined,
            misfits=self.misfits,
            attempts=self.attempts,
            retries=self.retries,
            hedges=self.hedges,
            rate_limited=self.rate_limited,
            in_flight=self.in_flight,
            waiting=self.waiting,
            backing_off=self.backing_off,
            most_in_flight=self.most_in_flight,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            errors=dict(self.errors),
            p50=p50,
            p95=p95,
            p99=p99,
            limits=limits or {},
            cost_usd=cost,
            holds=tuple(holds),
            rooms=rooms or {},
            learnt=learnt or {},
        )

    def __repr__(self) -> str:
        return (
            f"<Stats {self.ok} ok, {self.failed} failed, {self.cached} cached, {self.attempts} attempts, "
            f"{self.in_flight} in flight>"
        )


COUNTED = tuple(name for name in Stats.__slots__ if name not in ("errors", "latencies", "started"))
_counts = attrgetter(*COUNTED)


def sum_of(costs: Sequence[float | None]) -> float | None:
    """Add costs up; None where one of them is not known."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def snapshot_of(stats: Stats, endpoints: Sequence[Endpoint], now: float, wall: float) -> Snapshot:
    """Give the counters and each endpoint's limits at this moment."""
    limits = {endpoint.name: endpoint.limiter.describe() for endpoint in endpoints}
    holds = [hold for e in endpoints if (hold := hold_of(e.name, e.limiter, now, wall)) is not None]
    rooms = rooms_of(endpoints[0].limiter, now) if len(endpoints) == 1 else None
    cost = sum_of([endpoint.cost for endpoint in endpoints])
    learnt = {e.name: found for e in endpoints if (found := learnt_of(e.limiter))}
    return stats.snapshot(now, limits, cost=cost, holds=holds, rooms=rooms, learnt=learnt)
