"""Reading: what one process has counted and is doing at one moment; those of several processes can be added up.

It holds counts and names alone: no prompt, no answer, no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from ..engine.endpoint import Endpoint
from ..engine.holds import hold_of
from ..engine.stats import Snapshot
from ..policy.ledger import INF, Ledger

K = TypeVar("K", str, int)

# What only grows, and what is so at the moment.
COUNTED = (
    "ok",
    "failed",
    "cached",
    "joined",
    "attempts",
    "retries",
    "hedges",
    "rate_limited",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
)
PRESENT = ("in_flight", "waiting", "backing_off")
SET = "set"  # the source of a limit that is the user's own


class Group(msgspec.Struct, kw_only=True):
    """Requests of one model or one key. `cost` in USD is that of the answers whose price is known; `unpriced` counts
    the others. `latency` is a histogram (engine/latencies.py)."""

    requests: int = 0
    failed: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    latency: dict[int, int] = {}


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit of a minute: how much of it is used, and where it is known from: set, told or found."""

    used: float
    limit: float
    source: str


class EndpointState(msgspec.Struct, kw_only=True):
    """One endpoint: requests at it and waiting for it, and its limits as far as they are known. `pace` is in requests
    a second; `state` says in words why nothing goes out, "" where something may; `words` all of it where there are no
    numbers."""

    name: str
    in_flight: int = 0
    slots: int = 0
    waiting: int = 0
    requests: Limit | None = None
    tokens: Limit | None = None
    pace: float | None = None
    state: str = ""
    words: str = ""


class JobState(msgspec.Struct, kw_only=True):
    """One job: how many of its rows are done, those that failed among them. `total` None: not known yet; `left`: the
    seconds that are left, where somebody knows better than its rate tells."""

    id: str
    name: str
    status: str
    done: int = 0
    failed: int = 0
    total: int | None = None
    left: float | None = None


class Reading(msgspec.Struct, kw_only=True):
    """All of one process. `counts` has COUNTED and PRESENT, and `refused`: 429s that clients were given; `latency` is
    the histogram of all answers; `cost` in USD, None where a price is not known."""

    counts: dict[str, int] = {}
    cost: float | None = 0.0
    latency: dict[int, int] = {}
    errors: dict[str, int] = {}
    models: dict[str, Group] = {}
    keys: dict[str, Group] = {}
    endpoints: list[EndpointState] = []
    jobs: list[JobState] = []


def reading_of(snapshot: Snapshot, endpoints: Sequence[Endpoint], now: float, wall: float) -> Reading:
    """Read an engine, from any thread; without `endpoints`, what their limiters say in words is taken."""
    states = [_state(endpoint, now, wall) for endpoint in endpoints]
    if not states:
        held = {hold.endpoint: hold.why for hold in snapshot.holds}
        states = [
            EndpointState(name=name, words=words, state=held.get(name, "")) for name, words in snapshot.limits.items()
        ]
    return Reading(
        counts={name: getattr(snapshot, name) for name in (*COUNTED, *PRESENT)},
        cost=snapshot.cost_usd,
        errors=dict(snapshot.errors),
        endpoints=states,
    )


def _state(endpoint: Endpoint, now: float, wall: float) -> EndpointState:
    limiter = endpoint.limiter
    learner = limiter.learner
    hold = hold_of(endpoint.name, limiter, now, wall)
    return EndpointState(
        name=endpoint.name,
        in_flight=limiter.in_flight,
        slots=learner.slots.limit,
        waiting=limiter.waiting,
        requests=_limit(learner.requests, now),
        tokens=_limit(learner.tokens, now),
        pace=learner.pace.value if learner.pace.value < INF else None,
        state=hold.why if hold is not None else "",
    )


def _limit(ledger: Ledger, now: float) -> Limit | None:
    if ledger.limit is None:
        return None
    return Limit(used=round(ledger.window.used_at(now), 1), limit=round(ledger.limit, 1), source=ledger.source)


def added(readings: Sequence[Reading]) -> Reading:
    """Add up what several processes read. Of a job that more than one knows, the first one's word holds."""
    total = Reading()
    for one in readings:
        _add(total.counts, one.counts)
        _add(total.latency, one.latency)
        _add(total.errors, one.errors)
        total.cost = None if total.cost is None or one.cost is None else total.cost + one.cost
        for ours, theirs in ((total.models, one.models), (total.keys, one.keys)):
            for name, group in theirs.items():
                _add_group(ours.setdefault(name, Group()), group)
    states: dict[str, list[EndpointState]] = {}
    for one in readings:
        for state in one.endpoints:
            states.setdefault(state.name, []).append(state)
    total.endpoints = [_joined(name, same) for name, same in states.items()]
    jobs: dict[str, JobState] = {}
    for one in readings:
        for job in one.jobs:
            jobs.setdefault(job.id, job)
    total.jobs = list(jobs.values())
    return total


def _add(total: dict[K, int], more: dict[K, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def _add_group(total: Group, more: Group) -> None:
    for name in Group.__struct_fields__:
        if name != "latency":
            setattr(total, name, getattr(total, name) + getattr(more, name))
    _add(total.latency, more.latency)


def _joined(name: str, states: Sequence[EndpointState]) -> EndpointState:
    """Give an endpoint as the processes that share it see it."""
    paces = [state.pace for state in states if state.pace is not None]
    return EndpointState(
        name=name,
        in_flight=sum(state.in_flight for state in states),
        slots=sum(state.slots for state in states),
        waiting=sum(state.waiting for state in states),
        requests=_all_of([state.requests for state in states]),
        tokens=_all_of([state.tokens for state in states]),
        pace=sum(paces) if paces else None,
        state=max((state.state for state in states), default=""),
        words=max((state.words for state in states), default=""),
    )


def _all_of(limits: Sequence[Limit | None]) -> Limit | None:
    """Add up what is used. Of a limit that is set each process has a part; what a provider tells each is all of it."""
    known = [limit for limit in limits if limit is not None]
    if not known:
        return None
    sources = {limit.source for limit in known}
    most = sum(limit.limit for limit in known) if sources == {SET} else max(limit.limit for limit in known)
    return Limit(used=sum(limit.used for limit in known), limit=most, source=max(sources))
