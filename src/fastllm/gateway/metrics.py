"""Metrics: the counters, the engine and the process in Prometheus' words, read when they are asked for.

Names, units and what they mean stand in docs/observability.md. Nothing here is on the way of a request.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from .. import __version__
from ..engine.endpoint import Endpoint
from ..engine.engine import Engine
from ..engine.holds import hold_of
from ..errors import MissingExtra
from ..policy.ledger import Ledger
from ..policy.names import OTHER
from .counters import BOUNDS, Counters, Sums, Times, Watched
from .metrics_sum import Published

try:
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.openmetrics import exposition as openmetrics
    from prometheus_client.registry import Collector
except ImportError:
    raise MissingExtra("the gateway's metrics need prometheus-client: pip install 'fastllm[gateway]'") from None

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What `Gateway(metrics=metrics.scrape)` shows; `metrics.counters` is to hear of requests and of the engine."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Reader(self.counters))
        ProcessCollector(registry=self._registry)
        self._shown = self._registry  # of all processes, where there are several
        self._lock = threading.Lock()  # one at a time: what many ask for at once costs no more memory

    def watch(self, gateway: Watched) -> None:
        """Show this gateway and its engine, too."""
        self.counters.watch(gateway)

    @asynccontextmanager
    async def shared(self, folder: Path, index: int) -> AsyncIterator[None]:
        """Show the metrics of all processes that have a file in this folder; this one's is number `index`."""
        published = Published(folder, index, lambda: generate_latest(self._registry).decode())
        self._shown = CollectorRegistry(auto_describe=False)
        self._shown.register(published)
        async with published.publishing():
            yield

    def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """Give all metrics and their type: OpenMetrics where `accept` names it. Any thread may ask."""
        with self._lock:
            if "application/openmetrics-text" in accept:
                text: bytes = openmetrics.generate_latest(self._shown)  # type: ignore[no-untyped-call]
                return text, openmetrics.CONTENT_TYPE_LATEST
            return generate_latest(self._shown), TEXT

    def __repr__(self) -> str:
        return f"<Metrics {self.counters!r}>"


class _Reader(Collector):
    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def describe(self) -> Iterable[Metric]:
        return ()  # there is nothing else in its registry that could have the same names

    def collect(self) -> Iterator[Metric]:
        counters = self._counters
        yield InfoMetricFamily(
            "fastllm_build", "What runs.", value={"version": __version__, "python": platform.python_version()}
        )
        yield from _requests(counters)
        yield from _times(counters)
        yield from _usage(counters)
        if counters.gateway is not None:
            yield from _gateway(counters.gateway)
            yield from _engine(counters.gateway.engine)
            yield from _endpoints(counters.gateway.engine, counters.by_endpoint())


def _counted(name: str, text: str, labels: Iterable[str], sums: Sums) -> Metric:
    family = CounterMetricFamily(name, text, labels=tuple(labels))
    for key, count in sums.items():
        family.add_metric([_text(part) for part in key], count)
    return family


def _text(part: str | int) -> str:
    return part if isinstance(part, str) else str(part).lower()


def _requests(counters: Counters) -> Iterator[Metric]:
    labels = ("route", "model", "status", "cached")
    yield _counted("fastllm_requests", "Requests that have ended; 499: the client left.", labels, counters.requests)
    yield _counted("fastllm_errors", "Requests that ended in an error.", ("route", "error"), counters.errors)
    text = "Requests that a key was refused: unknown, not allowed, or its limits or budget used up."
    yield _counted("fastllm_key_refusals", text, ("key", "reason"), counters.refusals)
    text = "Attempts at an endpoint by how they ended: ok, or the error's class."
    yield _counted("fastllm_endpoint_attempts", text, ("endpoint", "outcome"), counters.attempts)
    text = "Attempts at an endpoint that failed and were followed by another one."
    yield _counted("fastllm_endpoint_retries", text, ("endpoint",), counters.retries)


def _times(counters: Counters) -> Iterator[Metric]:
    whole = HistogramMetricFamily(
        "fastllm_request_duration_seconds", "From a request to the end of its answer.", labels=("route",)
    )
    first = HistogramMetricFamily(
        "fastllm_request_first_byte_seconds", "From a request to the first byte of its answer.", labels=("route",)
    )
    overhead = HistogramMetricFamily(
        "fastllm_request_overhead_seconds",
        "What of the time to the first byte was not the provider's.",
        labels=("route",),
    )
    for route in list(counters.routes.values()):
        for family, times in ((whole, route.whole), (first, route.first_byte), (overhead, route.overhead)):
            _add(family, route.name, times)
    yield from (whole, first, overhead)


def _add(family: HistogramMetricFamily, label: str, times: Times) -> None:
    counts, total, so_far = list(times.counts), times.total, 0
    if not any(counts):
        return
    buckets = []
    for bound, count in zip((*BOUNDS, "+Inf"), counts, strict=True):
        so_far += count
        buckets.append((str(bound) if isinstance(bound, str) else f"{bound:g}", float(so_far)))
    family.add_metric([label], buckets, total)


def _usage(counters: Counters) -> Iterator[Metric]:
    """By model, and by key where there are keys: of what providers answered, not of what was kept."""
    for label, prefix, sums in (
        ("model", "fastllm", counters.by_model),
        ("key", "fastllm_key", counters.by_key),
    ):
        what = f"by {label}; answers from the cache use and cost nothing"
        tokens = CounterMetricFamily(
            f"{prefix}_tokens", f"Tokens {what}. cached ones are part of prompt.", labels=(label, "kind")
        )
        cost = CounterMetricFamily(f"{prefix}_cost_usd", f"US dollars {what}.", labels=(label,))
        unpriced = CounterMetricFamily(f"{prefix}_unpriced", "Answers whose cost is not known.", labels=(label,))
        for name, spent in list(sums.items()):
            tokens.add_metric([name, "prompt"], spent.prompt)
            tokens.add_metric([name, "completion"], spent.completion)
            tokens.add_metric([name, "cached"], spent.cached)
            cost.add_metric([name], spent.cost)
            unpriced.add_metric([name], spent.unpriced)
        yield from (tokens, cost, unpriced)
    requests = CounterMetricFamily("fastllm_key_requests", "Requests by key.", labels=("key",))
    for name, spent in list(counters.by_key.items()):
        requests.add_metric([name], spent.requests)
    yield requests


def _gateway(gateway: Watched) -> Iterator[Metric]:
    yield _gauge("fastllm_requests_in_flight", "Clients' requests under way, this one included.", gateway.under_way)
    yield _gauge("fastllm_draining", "1 while the gateway stops.", int(gateway.draining))


def _engine(engine: Engine) -> Iterator[Metric]:
    stats = engine.stats
    for name, text, value in (
        ("attempts", "Attempts sent to providers.", stats.attempts),
        ("retries", "Attempts after the first one of a request.", stats.retries),
        ("hedges", "Second attempts beside one that was late.", stats.hedges),
        ("rate_limited", "Attempts that were refused with 429.", stats.rate_limited),
        ("joined", "Requests that joined an identical one under way.", stats.joined),
    ):
        yield CounterMetricFamily(f"fastllm_{name}", text, value=value)
    yield _gauge("fastllm_attempts_in_flight", "Attempts at providers now.", stats.in_flight)
    yield _gauge("fastllm_requests_waiting", "Requests that wait for admission.", stats.waiting)
    yield _gauge("fastllm_requests_backing_off", "Requests that wait to be tried again.", stats.backing_off)
    if engine.budget is not None:
        yield _gauge("fastllm_budget_limit_usd", "The budget until the gateway stops.", engine.budget.limit)
        yield _gauge("fastllm_budget_spent_usd", "What is gone of it, or may be.", engine.budget.spent)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _endpoints(engine: Engine, found: Mapping[str, list[Endpoint]]) -> Iterator[Metric]:
    families = {
        name: GaugeMetricFamily(f"fastllm_endpoint_{name}", text, labels=("endpoint",))
        for name, text in (
            ("in_flight", "Attempts at this endpoint now."),
            ("waiting", "Requests in its queue."),
            ("concurrency_limit", "Attempts that may be in flight now, as far as is known to be good."),
            ("requests_per_minute_limit", "The limit in force: set, told by the provider, or found."),
            ("requests_per_minute_used", "Requests that count against it now."),
            ("tokens_per_minute_limit", "The limit in force: set, told by the provider, or found."),
            ("tokens_per_minute_used", "Tokens that count against it now."),
            ("held", "1 while nothing goes out: parked, no answers, or a day's limit used up."),
        )
    }
    now, wall = engine.clock.now(), engine.clock.time()
    for label, endpoints in found.items():
        limiters = [endpoint.limiter for endpoint in endpoints]
        values = {
            "in_flight": sum(limiter.in_flight for limiter in limiters),
            "waiting": sum(limiter.waiting for limiter in limiters),
        }
        if label != OTHER:
            values["concurrency_limit"] = sum(limiter.concurrency for limiter in limiters)
            values["held"] = int(any(hold_of(label, limiter, now, wall) is not None for limiter in limiters))
            values |= _limit("requests", [limiter.learner.requests for limiter in limiters], now)
            values |= _limit("tokens", [limiter.learner.tokens for limiter in limiters], now)
        for name, value in values.items():
            families[name].add_metric([label], value)
    yield from families.values()


def _limit(unit: str, ledgers: list[Ledger], now: float) -> dict[str, int]:
    """Give a limit of a minute and what is used of it, where one is known."""
    limits = [ledger.limit for ledger in ledgers if ledger.limit is not None]
    if not limits:
        return {}
    used = sum(ledger.window.used_at(now) for ledger in ledgers)
    return {f"{unit}_per_minute_limit": round(sum(limits)), f"{unit}_per_minute_used": round(used)}
