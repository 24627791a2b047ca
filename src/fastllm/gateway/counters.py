"""Counters: what became of requests, as plain sums in memory, for metrics.py to show. A Listener and an Observer.

Rules. Adding a record costs one or two microseconds, on the loop; another thread may read at any time. Counters never
fall. What a client makes up does not become a label: a model's name does once it was answered for or where the
operator named it, and of names of every kind there are at most MOST_NAMES; whatever is beyond that is "other". Errors
are told by our own names, never by a provider's words. There is no prompt, no answer and no secret of a key here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

from ..answers import MOST_TOKENS, Usage
from ..engine.endpoint import Endpoint
from ..engine.engine import Engine
from ..engine.events import AttemptFailed, Event
from ..policy.names import OTHER, Names
from .catalog import Catalog
from .record import Record

OK = "ok"
MOST_SERIES = 5000  # combinations of names in one family; beyond it all names are "other"
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_MOST_SECONDS = 1e9
_MOST_USD = 1e9
# What the door says no with; a key's limits have the classes below, and nobody was asked.
_AT_THE_DOOR = frozenset(
    ("missing_api_key", "invalid_api_key", "model_not_allowed", "master_key_needed", "passthrough_not_allowed")
)
_BY_LIMITS = frozenset(("RateLimitError", "LimitExceededError", "BudgetExceededError", "PermissionDeniedError"))


class Watched(Protocol):
    """What is read of a gateway."""

    catalog: Catalog
    under_way: int
    draining: bool

    @property
    def engine(self) -> Engine: ...


class Times:
    """A histogram of seconds: counts between BOUNDS, not summed up, and the sum of all."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0


class ByRoute:
    """The times of one route."""

    __slots__ = ("first_byte", "name", "overhead", "whole")

    def __init__(self, name: str) -> None:
        self.name = name
        self.whole, self.first_byte, self.overhead = Times(), Times(), Times()

    def add(self, seconds: float, first_byte: float | None, overhead: float | None) -> None:
        """Book what is known of one request, and is a time."""
        if 0.0 <= seconds <= _MOST_SECONDS:  # and no NaN
            times = self.whole
            times.counts[bisect_left(BOUNDS, seconds)] += 1
            times.total += seconds
        if first_byte is not None and 0.0 <= first_byte <= _MOST_SECONDS:
            times = self.first_byte
            times.counts[bisect_left(BOUNDS, first_byte)] += 1
            times.total += first_byte
        if overhead is not None and 0.0 <= overhead <= _MOST_SECONDS:
            times = self.overhead
            times.counts[bisect_left(BOUNDS, overhead)] += 1
            times.total += overhead


class Spent:
    """What one model or one key has used. `cached` tokens are part of the prompt's, `unpriced` answers cost what nobody
    knows."""

    __slots__ = ("cached", "completion", "cost", "prompt", "requests", "unpriced")

    def __init__(self) -> None:
        self.requests = self.prompt = self.completion = self.cached = self.unpriced = 0
        self.cost = 0.0

    def add(self, prompt: int, completion: int, cached: int, cost: float | None) -> None:
        self.prompt += prompt
        self.completion += completion
        self.cached += cached
        if cost is None:
            self.unpriced += 1
        elif 0.0 < cost <= _MOST_USD:
            self.cost += cost


class Sums:
    """Counts by several names at once."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[tuple[str | int, ...], int] = {}

    def add(self, *key: str | int) -> None:
        counts = self.counts
        try:
            counts[key] += 1
        except KeyError:
            if len(counts) >= MOST_SERIES:
                key = tuple(OTHER if isinstance(part, str) else part for part in key)
            counts[key] = counts.get(key, 0) + 1

    def items(self) -> Sequence[tuple[tuple[str | int, ...], int]]:
        return list(self.counts.items())


def _tokens(usage: Usage) -> tuple[int, int, int]:
    """Give the tokens of prompt and answer, and those of the prompt that the provider had kept."""
    prompt, completion, cached = usage.prompt_tokens, usage.completion_tokens, 0
    if not (0 <= prompt <= MOST_TOKENS and 0 <= completion <= MOST_TOKENS):
        prompt, completion = max(0, min(prompt, MOST_TOKENS)), max(0, min(completion, MOST_TOKENS))
    if usage.prompt_tokens_details is not None or usage.input_tokens_details is not None:
        cached = max(0, min(usage.cached_tokens, prompt))
    return prompt, completion, cached


class Counters:
    """Called with each Record that ended; `saw` is for the engine. `watch` the gateway before the first."""

    def __init__(self) -> None:
        self.models, self.keys, self.endpoints = Names(), Names(), Names()
        self.routes: dict[str, ByRoute] = {}
        self.requests = Sums()  # by route, model, status and whether it came from the cache
        self.errors = Sums()  # by route and error
        self.refusals = Sums()  # by key and reason
        self.attempts = Sums()  # by endpoint and how they ended
        self.retries = Sums()  # by endpoint
        self.by_model: dict[str, Spent] = {}
        self.by_key: dict[str, Spent] = {}
        self.gateway: Watched | None = None
        self._route_names, self._errors = Names(), Names()

    def watch(self, gateway: Watched) -> None:
        """Read this one from now on; the models that it names are labels whatever comes."""
        self.gateway = gateway
        for name in gateway.catalog.models:
            self.models.add(name)

    def __call__(self, record: Record) -> None:
        route = self.routes.get(record.route) or self._route(record.route)
        model = self.models.known.get(record.model) or self._model(record)
        status, cached, endpoint = record.status, record.cached, record.endpoint
        self.requests.add(route.name, model, status if 100 <= status < 600 else 0, cached)
        route.add(record.seconds, record.first_byte, record.overhead)
        key = None
        if record.tenant:
            key = self.by_key.get(record.tenant) or self._spent(self.by_key, self.keys.add(record.tenant))
            key.requests += 1
        if record.kind:
            self._failed(record, route.name)
        elif endpoint and not cached and status < 400:
            self.attempts.add(self.endpoints.known.get(endpoint) or self.endpoints.add(endpoint), OK)
        usage = record.usage
        if usage is not None and not cached:  # what was kept is used and paid once
            prompt, completion, cached_tokens = _tokens(usage)
            cost = record.cost
            (self.by_model.get(model) or self._spent(self.by_model, model)).add(prompt, completion, cached_tokens, cost)
            if key is not None:
                key.add(prompt, completion, cached_tokens, cost)

    def saw(self, event: Event) -> None:
        """Count an attempt that failed; how requests end is told by their records."""
        if isinstance(event, AttemptFailed):
            label = self.endpoint(event.endpoint)
            self.attempts.add(label, self._errors.add(type(event.error).__name__))
            if event.delay is not None:
                self.retries.add(label)

    def _route(self, route: str) -> ByRoute:
        """Give the times of a route. What no route is found for is "other"."""
        name = self._route_names.add(route) or OTHER
        found = self.routes.get(name)
        if found is None:
            found = self.routes[name] = ByRoute(name)
        return found

    def _model(self, record: Record) -> str:
        name = record.model
        if not name:
            return ""
        if (record.endpoint and record.status < 400) or self._is_named(name):
            return self.models.add(name)
        return OTHER

    def _is_named(self, model: str) -> bool:
        return self.gateway is not None and self.gateway.catalog.names_model(model)

    def _spent(self, sums: dict[str, Spent], label: str) -> Spent:
        found = sums.get(label)
        if found is None:
            found = sums[label] = Spent()
        return found

    def _failed(self, record: Record, route: str) -> None:
        kind = self._errors.add(record.kind)
        self.errors.add(route, kind)
        if record.kind in _AT_THE_DOOR:
            self.refusals.add(self.keys.add(record.tenant), kind)
        elif record.tenant and record.kind in _BY_LIMITS and not record.endpoint and not record.attempts:
            self.refusals.add(self.keys.add(record.tenant), self._errors.add(record.error))  # nobody else was asked

    # Endpoints

    def endpoint(self, name: str) -> str:
        """Give the label of an endpoint, whose name may be a model's that a client made up."""
        known = self.endpoints.known.get(name)
        if known is not None:
            return known
        if any(endpoint.name == name for endpoint in self._named()):
            return self.endpoints.add(name)
        return OTHER

    def _named(self) -> list[Endpoint]:
        """Give the endpoints of what the operator named."""
        if self.gateway is None:
            return []
        router, found = self.gateway.engine.router, []
        for name in self.gateway.catalog.models:
            tiers = router.route(name)
            if tiers is not None:
                found += tiers.known
            elif name in router.known:
                found.append(router.known[name])
        return found

    def by_endpoint(self) -> dict[str, list[Endpoint]]:
        """Give the engine's endpoints by their labels; several may look alike."""
        found: dict[str, list[Endpoint]] = {}
        if self.gateway is not None:
            for endpoint in self._named():
                self.endpoints.add(endpoint.name)
            for endpoint in self.gateway.engine.router.endpoints:
                found.setdefault(self.endpoints.known.get(endpoint.name) or OTHER, []).append(endpoint)
        return found

    def __repr__(self) -> str:
        return f"<Counters {len(self.requests.counts)} kinds of requests, {len(self.models)} models>"
