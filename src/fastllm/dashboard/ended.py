"""Ended: counts requests of clients that have ended, by model, by key and by what went wrong."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from ..answers import Usage
from ..engine.latencies import bucket_of
from ..policy.names import OTHER, Names
from .reading import Group, Reading

_UNKNOWN = frozenset((401, 403, 404))  # statuses of requests whose model's name may be anything


class Record(Protocol):
    """A request that has ended; `seconds` until the end of its answer."""

    route: str
    tenant: str
    model: str
    status: int
    seconds: float
    cached: bool
    usage: Usage | None
    cost: float | None
    kind: str  # of error: its class, or the gateway's own word


class Ended:
    """Hears of every request that has ended, and gives what it has counted: those of `routes`, and whatever else asked
    a model."""

    def __init__(self, routes: Container[str]) -> None:
        self._routes = routes
        self._ok = self._failed = self._refused = self._cached = 0
        self._latency: dict[int, int] = {}
        self._errors: dict[str, int] = {}
        self._models: dict[str, _Counts] = {}
        self._keys: dict[str, _Counts] = {}
        self._model_names, self._key_names, self._error_names = Names(), Names(), Names()

    def __call__(self, record: Record) -> None:
        if not record.model and record.route not in self._routes:
            return  # a look at the health, say
        failed = record.status >= 400
        bucket = -1
        if failed:
            self._failed += 1
            self._refused += record.status == 429
            name = self._error_names.add(record.kind or str(record.status))
            self._errors[name] = self._errors.get(name, 0) + 1
        else:
            self._ok += 1
            self._cached += record.cached
            bucket = bucket_of(record.seconds)
            self._latency[bucket] = self._latency.get(bucket, 0) + 1
        if record.model and not (failed and record.status in _UNKNOWN):
            names = self._model_names  # what a client makes up is no name before it was answered for
            name = names.known.get(record.model, OTHER) if failed else names.add(record.model)
            _counts(self._models, name).add(record, bucket)
        if record.tenant:
            _counts(self._keys, self._key_names.add(record.tenant)).add(record, bucket)

    def into(self, reading: Reading) -> Reading:
        """Say of a reading how requests ended for the clients, where until now it said so of the engine's."""
        reading.counts |= {"ok": self._ok, "failed": self._failed, "cached": self._cached, "refused": self._refused}
        reading.latency = self._latency.copy()
        reading.errors = dict(self._errors)
        reading.models = {name: counts.group() for name, counts in self._models.items()}
        reading.keys = {name: counts.group() for name, counts in self._keys.items()}
        return reading

    def __repr__(self) -> str:
        return f"<Ended {self._ok} ok, {self._failed} failed>"


class _Counts:
    """What Group shows, as it is counted."""

    __slots__ = ("_group", "_latency")

    def __init__(self) -> None:
        self._group = Group()
        self._latency: dict[int, int] = {}  # of hundreds of groups few buckets are in use

    def add(self, record: Record, bucket: int) -> None:
        """Count one; `bucket` is that of its latency, -1 where it failed."""
        group = self._group
        group.requests += 1
        if bucket < 0:
            group.failed += 1
            return
        group.cached += record.cached
        self._latency[bucket] = self._latency.get(bucket, 0) + 1
        usage = record.usage
        if usage is not None and not record.cached:
            group.prompt_tokens += usage.prompt_tokens
            group.completion_tokens += usage.completion_tokens
        if record.cached:
            return
        if record.cost is None:
            group.unpriced += 1
        else:
            group.cost += record.cost

    def group(self) -> Group:
        found = self._group
        return Group(
            requests=found.requests,
            failed=found.failed,
            cached=found.cached,
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
            cost=found.cost,
            unpriced=found.unpriced,
            latency=self._latency.copy(),
        )


def _counts(groups: dict[str, _Counts], name: str) -> _Counts:
    found = groups.get(name)
    if found is None:
        found = groups[name] = _Counts()
    return found
