"""Metrics of several processes: counters are sums that never fall, gauges stand there for each of them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fastllm.gateway.metrics_sum import Published, summed


class Process:
    """One that counts."""

    def __init__(self, folder: Path, index: int) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "R.", ["route"], registry=self.registry)
        self.flying = Gauge("flying", "F.", ["endpoint"], registry=self.registry)
        self.seconds = Histogram("seconds", "S.", buckets=(0.1, 1.0), registry=self.registry)
        self.published = Published(folder, index, lambda: generate_latest(self.registry).decode())

    def count(self, times: int, route: str = "/a") -> None:
        self.requests.labels(route).inc(times)
        self.flying.labels("e").set(times)
        for _ in range(times):
            self.seconds.observe(0.5)

    def sample(self, name: str, **labels: str) -> float | None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self.published)
        text = generate_latest(registry).decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None


def test_whoever_is_asked_gives_the_sums_and_each_ones_gauges(tmp_path: Path) -> None:
    one, two = Process(tmp_path, 0), Process(tmp_path, 1)
    one.count(3)
    two.count(4)
    two.count(1, 'strange "route"\n')
    for process in (one, two):
        process.published.publish()
    for process in (one, two):
        assert process.sample("requests_total", route="/a") == 7
        assert process.sample("requests_total", route='strange "route"\n') == 1
        assert process.sample("seconds_count") == process.sample("seconds_bucket", le="+Inf") == 8
        assert process.sample("seconds_bucket", le="0.1") == 0
        assert process.sample("flying", endpoint="e", process="0") == 3
        assert process.sample("flying", endpoint="e", process="1") == 1
        assert process.sample("flying", endpoint="e") is None


def test_no_counter_falls_whichever_process_is_asked_next(tmp_path: Path) -> None:
    processes, told = (Process(tmp_path, 0), Process(tmp_path, 1)), 0.0
    for turn in range(20):
        asked = processes[turn % 3 % 2]
        processes[turn % 2].count(2)
        now = asked.sample("requests_total", route="/a") or 0.0
        assert now >= told
        told = now
    assert told > 20


def test_what_a_process_had_counted_that_died_still_counts_however_often(tmp_path: Path) -> None:
    other = Process(tmp_path, 1)
    for died in range(4):
        process = Process(tmp_path, 0)
        process.count(10)
        process.published.publish()
        process.published.publish()
        assert process.sample("requests_total", route="/a") == 10 * (died + 1)
        assert other.sample("requests_total", route="/a") == 10 * (died + 1)
    assert process.sample("flying", endpoint="e", process="0") == 10


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    process = Process(tmp_path, 0)
    (tmp_path / "1.prom").mkdir()
    process.count(2)
    assert process.sample("requests_total", route="/a") == 2


@given(st.lists(st.dictionaries(st.sampled_from(["/a", "/b", "/c"]), st.integers(0, 9)), max_size=4))
def test_sums_are_sums(counts: list[dict[str, int]]) -> None:
    texts = []
    for one in counts:
        registry = CollectorRegistry()
        counter = Counter("requests", "R.", ["route"], registry=registry)
        for route, count in one.items():
            counter.labels(route).inc(count)
        texts.append(("", generate_latest(registry).decode()))
    found = {
        sample.labels["route"]: sample.value
        for family in summed(texts)
        for sample in family.samples
        if sample.name == "requests_total"
    }
    routes = {route for one in counts for route in one}
    assert found == {route: sum(one.get(route, 0) for one in counts) for route in routes}
