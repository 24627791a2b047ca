"""Board: what the page is told is what was counted, each second once."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, strategies as st

from fastllm.dashboard.board import COLUMNS, KEPT, SPAN, Board
from fastllm.dashboard.ended import Ended
from fastllm.dashboard.reading import EndpointState, JobState, Reading
from fastllm.gateway.record import Record
from fastllm.policy.names import MOST_NAMES as MOST, OTHER


class Source:
    """Something to read, a second later each time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reading = Reading()
        self.board = Board(self.read(), "title", "1.2", clock=lambda: self.now, wall=lambda: 1000.0 + self.now)

    def read(self) -> Reading:
        return msgspec.convert(msgspec.to_builtins(self.reading), Reading)

    def tick(self, **counts: int) -> None:
        self.now += 1.0
        for name, more in counts.items():
            self.reading.counts[name] = self.reading.counts.get(name, 0) + more
        self.board.tick(self.read())

    def data(self, after: int = 0) -> dict[str, Any]:
        return msgspec.json.decode(self.board.data(after))


def test_a_sample_has_what_came_in_its_second() -> None:
    source = Source()
    source.reading.endpoints = [EndpointState(name="a", slots=20), EndpointState(name="b", slots=5)]
    source.reading.latency = {500: 10}
    source.tick(ok=5, failed=1, completion_tokens=70, in_flight=3)
    sample = dict(zip(COLUMNS, source.data()["samples"][-1], strict=True))
    assert (sample["ok"], sample["failed"], sample["completion_tokens"]) == (5, 1, 70)
    assert (sample["in_flight"], sample["slots"]) == (3, 25)
    assert 0.19 < sample["p50"] < 0.21  # 1e-5 * 1.02 ** 500.5
    source.tick()
    assert dict(zip(COLUMNS, source.data()["samples"][-1], strict=True))["ok"] == 0


@given(st.lists(st.integers(0, 40), max_size=20), st.integers(0, 2 * KEPT))
def test_a_page_that_asks_again_and_again_gets_every_sample_once_and_in_order(asks: list[int], start: int) -> None:
    source = Source()
    for _ in range(start):
        source.tick(ok=1)
    seen: list[Any] = []
    last = 0
    for ticks in asks:
        for _ in range(ticks):
            source.tick(ok=1)
        data = source.data(last)
        assert data["first"] == data["last"] - len(data["samples"]) + 1
        assert data["first"] <= last + 1 or len(data["samples"]) == KEPT
        last = data["last"]
        seen += data["samples"]
    assert len(seen) == (min(KEPT, start + asks[0]) + sum(asks[1:]) if asks else 0)


def test_a_page_of_another_start_gets_everything() -> None:
    source = Source()
    source.tick()
    assert len(source.data(after=10_000)["samples"]) == 1


def test_rates_look_back_ten_seconds_and_percentiles_forget() -> None:
    source = Source()
    ended = Ended(["/chat/completions"])
    for i in range(30):
        for _ in range(10):
            ended(record(seconds=1.0 if i < 10 else 0.1))
        source.reading = ended.into(Reading())
        source.tick()
    data = source.data()
    assert data["models"][0]["rate"] == 10.0
    assert 0.09 < data["samples"][-1][COLUMNS.index("p99")] < 0.11
    assert data["totals"]["p99"] > 0.9
    assert SPAN == 10


def test_a_job_says_how_long_it_will_take() -> None:
    source = Source()
    for done in (0, 10, 20):
        source.reading.jobs = [JobState(id="j", name="n", status="running", done=done, total=120)]
        source.tick()
    (job,) = source.data()["jobs"]
    assert job["rate"] == 20 / 3
    assert job["left"] == 15.0


def record(**fields: Any) -> Record:
    usual = {"route": "/chat/completions", "model": "m", "status": 200, "seconds": 0.1, "tenant": "key-1", "cost": 0.5}
    return Record(at=0.0, request_id="r", method="POST", **{**usual, **fields})


def test_requests_are_counted_by_how_they_ended() -> None:
    ended = Ended(["/chat/completions"])
    ended(record())
    ended(record(cached=True, cost=0.5))
    ended(record(status=429, kind="queue_full", error="a-word-of-a-provider"))
    ended(record(status=404, kind="model_not_found", model="no-such-thing"))
    ended(record(status=401, kind="missing_api_key", model="", tenant=""))
    ended(record(route="/health", model="", status=200))
    ended(record(route="/dashboard/data", model="", status=401, kind="missing_api_key"))
    found = ended.into(Reading())
    assert found.counts == {"ok": 2, "failed": 3, "cached": 1, "refused": 1}
    assert found.errors == {"queue_full": 1, "model_not_found": 1, "missing_api_key": 1}
    assert list(found.models) == ["m"]
    assert (found.models["m"].requests, found.models["m"].cost) == (3, 0.5)
    assert found.keys["key-1"].requests == 4


def test_names_that_clients_make_up_have_a_bound() -> None:
    ended = Ended([])
    for i in range(3 * MOST):
        ended(record(model=f"model-{i}", tenant=f"key-{i}"))
        ended(record(model=f"made-up-{i}", kind=f"error-{i}", status=500))
    ended(record(model="x" * 100_000))
    found = ended.into(Reading())
    for groups in (found.models, found.keys, found.errors):
        assert len(groups) <= MOST + 1 and OTHER in groups
    assert not [name for name in found.models if name.startswith("made-up") or len(name) > 200]
    assert sum(group.requests for group in found.models.values()) == 6 * MOST + 1
