"""Board: keeps the last minutes of readings, a second apart, and says in JSON what the page shows of them.

The page asks again and again for what is new. No connection has to stay open for that, so that a page that is left
open never holds up the end of a gateway, and one that slept goes on where it was.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec

from ..engine.latencies import percentiles
from .reading import EndpointState, Group, JobState, Reading

STEP = 1.0  # seconds between two samples
KEPT = 300  # samples
SPAN = 10  # samples that rates and percentiles look back
_SHARES = (0.5, 0.95, 0.99)
COLUMNS = (
    "ok",
    "failed",
    "hits",
    "rate_limited",
    "prompt_tokens",
    "completion_tokens",
    "p50",
    "p95",
    "p99",
    "in_flight",
    "waiting",
    "slots",
)


class GroupView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row of a table: counts since the start, requests and tokens a second of late, seconds."""

    name: str
    requests: int
    failed: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    rate: float
    tokens_rate: float
    p50: float | None
    p99: float | None


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job, with rows a second of late and the seconds that are left at that rate."""

    job: JobState
    rate: float
    left: float | None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Since the start."""

    counts: dict[str, int]
    cost: float | None
    hit_ratio: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What the page is told. `samples` are those after the one that it has, `last` the number of the newest; each has
    COLUMNS: per second what is counted, seconds, and what is so at the moment. `started` tells a page that the program
    is another one, and its samples begin anew."""

    title: str
    version: str
    started: float
    now: float
    step: float
    columns: tuple[str, ...]
    first: int
    last: int
    samples: list[list[float | None]]
    totals: Totals
    errors: dict[str, int]
    endpoints: list[EndpointState]
    models: list[GroupView]
    keys: list[GroupView]
    jobs: list[JobView]


class _Taken(msgspec.Struct, frozen=True):
    at: float
    reading: Reading


class Board:
    """Takes what was read every STEP seconds, from one thread; `data` may be asked from others."""

    def __init__(
        self,
        first: Reading,
        title: str,
        version: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._title = title
        self._version = version
        self._clock = clock
        self._wall = wall
        self._started = wall()
        self._taken: deque[_Taken] = deque([_Taken(clock(), first)], SPAN + 1)
        self._samples: deque[list[float | None]] = deque(maxlen=KEPT)
        self._last = 0

    def tick(self, reading: Reading) -> None:
        """Take a sample."""
        now = _Taken(self._clock(), reading)
        before, past = self._taken[-1], self._taken[0]
        self._taken.append(now)
        self._samples.append(_sample(now, before, past))
        self._last += 1

    def data(self, after: int = 0) -> bytes:
        """Give what is new after sample number `after`, and how everything stands, as JSON."""
        samples, last = list(self._samples), self._last
        missing = max(0, min(len(samples), last - after)) if 0 <= after <= last else len(samples)
        taken = list(self._taken)
        now, past = taken[-1], taken[0]
        seconds = max(now.at - past.at, STEP)
        reading = now.reading
        return msgspec.json.encode(
            Data(
                title=self._title,
                version=self._version,
                started=self._started,
                now=self._wall(),
                step=STEP,
                columns=COLUMNS,
                first=last - missing + 1,
                last=last,
                samples=samples[len(samples) - missing :],
                totals=_totals(reading),
                errors=reading.errors,
                endpoints=reading.endpoints,
                models=_views(reading.models, past.reading.models, seconds),
                keys=_views(reading.keys, past.reading.keys, seconds),
                jobs=[_job(job, past.reading.jobs, seconds) for job in reading.jobs],
            )
        )

    def __repr__(self) -> str:
        return f"<Board {self._title!r}, {self._last} samples>"


def _sample(now: _Taken, before: _Taken, past: _Taken) -> list[float | None]:
    seconds = max(now.at - before.at, 0.001)

    def rate(name: str) -> float:
        more = now.reading.counts.get(name, 0) - before.reading.counts.get(name, 0)
        return round(max(0, more) / seconds, 3)  # a process of several may have left, with what it had counted

    p50, p95, p99 = percentiles(_more(now.reading.latency, past.reading.latency), _SHARES)
    counts = now.reading.counts
    return [
        rate("ok"),
        rate("failed"),
        rate("cached"),
        rate("rate_limited"),
        rate("prompt_tokens"),
        rate("completion_tokens"),
        _rounded(p50),
        _rounded(p95),
        _rounded(p99),
        counts.get("in_flight", 0),
        counts.get("waiting", 0),
        sum(endpoint.slots for endpoint in now.reading.endpoints) or None,
    ]


def _more(now: dict[int, int], past: dict[int, int]) -> dict[int, int]:
    """Give what a histogram has gained."""
    return {bucket: more for bucket, count in now.items() if (more := count - past.get(bucket, 0)) > 0}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.4g}")


def _totals(reading: Reading) -> Totals:
    p50, p95, p99 = map(_rounded, percentiles(reading.latency, _SHARES))
    ok = reading.counts.get("ok", 0)
    return Totals(
        counts=reading.counts,
        cost=reading.cost,
        hit_ratio=reading.counts.get("cached", 0) / ok if ok else None,
        p50=p50,
        p95=p95,
        p99=p99,
    )


def _views(groups: dict[str, Group], before: dict[str, Group], seconds: float) -> list[GroupView]:
    """Give the rows of a table, the busiest first."""
    views = [_view(name, group, before.get(name, Group()), seconds) for name, group in groups.items()]
    return sorted(views, key=lambda view: (-view.requests, view.name))


def _view(name: str, group: Group, before: Group, seconds: float) -> GroupView:
    p50, p99 = map(_rounded, percentiles(group.latency, (0.5, 0.99)))
    tokens = group.prompt_tokens + group.completion_tokens
    tokens_before = before.prompt_tokens + before.completion_tokens
    return GroupView(
        name=name,
        requests=group.requests,
        failed=group.failed,
        cached=group.cached,
        prompt_tokens=group.prompt_tokens,
        completion_tokens=group.completion_tokens,
        cost=None if group.unpriced else group.cost,
        rate=max(0.0, group.requests - before.requests) / seconds,
        tokens_rate=max(0.0, tokens - tokens_before) / seconds,
        p50=p50,
        p99=p99,
    )


def _job(job: JobState, before: list[JobState], seconds: float) -> JobView:
    done = next((one.done for one in before if one.id == job.id), 0)
    rate = max(0, job.done - done) / seconds
    left = job.left
    if left is None and job.total is not None and rate > 0:
        left = max(0, job.total - job.done) / rate
    return JobView(job=job, rate=rate, left=left)
