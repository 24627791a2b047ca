from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from fastllm.errors import APIConnectionError, APITimeoutError
from fastllm.options import Limits, Timeout
from fastllm.policy.headers import read_hints
from fastllm.testing.clock import run_virtual
from fastllm.testing.provider_models import Bucket, Model, SharedWindow, Slots, Spread, Window, crowding
from fastllm.testing.simulator import (
    Report,
    Run,
    SimTransport,
    body_for,
    client,
    fastllm,
    simulate,
)
from fastllm.testing.zoo import ANIMALS, EVEN_SHARE, WAY
from fastllm.types import HTTPRequest, HTTPResponse

ASKED = 2500
CONCURRENCY_BOUND = {"hidden_concurrency", "vllm"}
RATE_BOUND = sorted(set(ANIMALS) - CONCURRENCY_BOUND)
arrivals = st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 60)), max_size=80)  # (seconds since the last, size)


def made(name: str, **parameters: Any) -> Model:
    return ANIMALS[name](seed=7, **parameters)


def wait_of(model: Model, now: float, tokens: float) -> float:
    """What an all-knowing client waits: until every gate lets one request through, or the outage ends."""
    for start, end, _ in model.traits.outages:
        if start <= now < end:
            return end - now
    wait = max(gate.wait(now, tokens if gate.unit == "tokens" else 1.0) for gate in model.gates)
    return min(wait, 0.05) if isinstance(model.gates[0], SharedWindow) else wait


def greedy(model: Model, seconds: float, tokens: float) -> list[float]:
    """Admission times of a client that sends the moment the server lets it."""
    now, times = 0.0, []
    while now < seconds:
        if model.judge(now, tokens).allowed:
            times.append(now)
        else:
            now += max(wait_of(model, now, tokens), 1e-9)
    return times


def most_within(times: list[float], span: float) -> int:
    """The most events in any half-open interval of this length."""
    start = most = 0
    for end, when in enumerate(times):
        while times[start] + span <= when:
            start += 1
        most = max(most, end - start + 1)
    return most


def clockwork(model: Model, in_flight: int, seconds: float) -> float:
    """Answers a second of a closed loop with so many requests in the server, without any network."""
    leaving: list[float] = []
    now = 0.0
    for _ in range(in_flight):
        heapq.heappush(leaving, model.judge(0.0, 100.0).latency)
    done = 0
    while (now := heapq.heappop(leaving)) < seconds:
        model.finish(now, 100.0)
        done += now > seconds / 10
        verdict = model.judge(now, 100.0)
        assert verdict.allowed
        heapq.heappush(leaving, now + verdict.latency)
    return done / (0.9 * seconds)


# Gates


@given(arrivals, st.integers(60, 200))
def test_a_window_admits_exactly_what_fits_in_every_span(arrivals: list[tuple[float, int]], limit: int) -> None:
    window, booked, now = Window(limit), list[tuple[float, int]](), 0.0
    for pause, size in arrivals:
        now += pause
        used = sum(amount for at, amount in booked if at + 60.0 > now)
        wait = window.wait(now, size)
        assert (wait == 0.0) == (used + size <= limit)
        if wait:
            assert window.wait(now, size) == wait  # asking costs nothing
            assert sum(amount for at, amount in booked if at + 60.0 > now + wait + 1e-9) + size <= limit
        else:
            window.book(now, size)
            booked.append((now, size))
        assert window.remaining(now) == limit - window.used


@given(arrivals, st.floats(0.5, 5.0), st.integers(60, 100))
def test_a_bucket_never_gives_more_than_it_held_and_was_refilled(
    arrivals: list[tuple[float, int]], rate: float, capacity: int
) -> None:
    bucket, booked, now = Bucket(rate, capacity), list[tuple[float, int]](), 0.0
    for pause, size in arrivals:
        now += pause
        wait = bucket.wait(now, size)
        if wait:
            now += wait * (1 + 1e-9)
            assert not bucket.wait(now, size)
        bucket.book(now, size)
        booked.append((now, size))
        for at, _ in booked:
            assert sum(size for when, size in booked if when >= at) <= capacity + rate * (now - at) + 1e-6


def test_slots_count_what_is_in_the_server() -> None:
    slots = Slots(2)
    slots.book(0.0, 1.0)
    slots.book(0.0, 1.0)
    assert slots.wait(0.0, 1.0) == math.inf
    slots.free(1.0)
    assert slots.wait(1.0, 1.0) == 0.0


def test_a_neighbours_use_counts_in_the_same_window() -> None:
    gate = SharedWindow(600.0, [(0.0, 0.5), (90.0, 0.1)])
    assert gate.others(60.0) == 300.0
    assert gate.others(120.0) == 180.0  # 30 s at 5 a second, 30 s at 1
    assert gate.remaining(600.0) == 540.0


def test_refusals_cost_quota_where_a_provider_says_so() -> None:
    """Two refused requests push the window's end back."""
    model = made("sliding_window", rpm=1).altered(refusals_cost=True)
    assert [model.judge(now, 1.0).allowed for now in (0.0, 59.0, 61.0, 120.0, 180.5)] == [
        True,
        False,
        False,
        False,
        True,
    ]


def test_beyond_the_knee_throughput_is_flat_and_beyond_twice_the_knee_it_falls() -> None:
    done = [n / crowding(n, 32) for n in range(1, 400)]
    assert done[:32] == [float(n) for n in range(1, 33)]
    assert done[31:64] == [pytest.approx(32.0)] * 33
    assert all(b <= a + 1e-9 for a, b in pairwise(done[63:]))
    assert done[127] == pytest.approx(16.0)
    assert done[-1] == pytest.approx(8.0)


def test_a_spread_draws_its_own_mean() -> None:
    spread = Spread(500.0, 0.8, 50.0, 10_000.0)
    values = spread.table()
    assert sum(values) / len(values) == pytest.approx(spread.mean)
    assert spread.mean == pytest.approx(500.0 * math.exp(0.32), rel=0.01)
    assert min(values) >= 50.0 and max(values) <= 10_000.0


# Animals


@pytest.mark.parametrize("name", RATE_BOUND)
def test_an_all_knowing_client_gets_exactly_the_capacity(name: str) -> None:
    model = made(name)
    tokens = 1000.0 if model.traits.unit == "tokens" else 100.0
    times = greedy(model, 600.0, tokens)
    got = len(times) * (tokens if model.traits.unit == "tokens" else 1.0)
    slack = 0.03 if name == "noisy_neighbour" else 1e-4  # a burst is bound by what the neighbour took before it
    share = EVEN_SHARE if name == "per_second" else 1.0  # without jitter the whole limit gets through
    assert share * got == pytest.approx(model.capacity(0.0, 600.0), rel=slack, abs=1)
    assert model.admitted == len(times)
    assert sum(model.good) == got


@pytest.mark.parametrize("name", sorted(CONCURRENCY_BOUND))
def test_a_full_server_answers_exactly_its_capacity(name: str) -> None:
    slots = 100 if name == "hidden_concurrency" else 40
    model = made(name)
    mean = model.traits.latency.mean  # the capacity knows of the way there and back, the clockwork does not
    share = mean / (mean + WAY) if name == "hidden_concurrency" else 1.0
    assert share * clockwork(model, slots, 1000.0) * 1000.0 == pytest.approx(model.capacity(0.0, 1000.0), rel=0.02)


def test_capacity_adds_up() -> None:
    """Over adjoining times; the burst counts once, at the start."""
    for name in ANIMALS:
        model = made(name)
        parts = model.capacity(0.0, 200.0) + model.capacity(200.0, 430.0) + model.capacity(430.0, 600.0)
        assert parts == pytest.approx(model.capacity(0.0, 600.0))
    assert made("token_bucket", rpm=600).capacity(0.0, 60.0) == 1200.0
    assert made("steps", rpm=2400).capacity(180.0, 300.0) == 2400.0 + 600.0
    assert made("outage", rpm=600).capacity(150.0, 270.0) == 600.0
    assert made("daily_cap").capacity(150.0, 420.0) == 0.0


@pytest.mark.parametrize("name", sorted(ANIMALS))
@settings(max_examples=4)
@given(seed=st.integers(0, 1000))
def test_no_animal_lets_more_through_than_its_limits(name: str, seed: int) -> None:
    """However a client hammers; counted by hand from the times of admission."""
    model, draw = ANIMALS[name](seed=seed), random.Random(seed)
    now, leaving, times = 0.0, list[float](), list[float]()
    limits = {"per_second": (80, 1.0), "steps": (2400, 60.0), "no_headers": (1200, 60.0), "liar": (1800, 60.0)}
    limits |= {"sliding_window": (1800, 60.0), "outage": (1800, 60.0), "token_bucket": (3600, 60.0)}
    limits |= {"no_headers_bucket": (1400, 60.0), "daily_cap": (1200, 60.0)}
    for _ in range(ASKED):
        now += draw.expovariate(45.0) if draw.random() < 0.999 else draw.uniform(0.0, 5.0)
        while leaving and leaving[0] <= now:
            model.finish(heapq.heappop(leaving), 100.0)
        verdict = model.judge(now, 100.0)
        if verdict.allowed:
            times.append(now)
            heapq.heappush(leaving, now + verdict.latency)
        if name == "hidden_concurrency":
            assert model.in_flight <= 100
    limit, span = limits.get(name, (10**9, 60.0))
    assert most_within(times, span) <= limit
    assert model.admitted == len(times)
    assert model.admitted + model.refused + model.down == ASKED == sum(model.attempts)


def test_headers_are_read_by_the_library_and_tell_the_truth() -> None:
    for name, dimension in (("token_bucket", "requests"), ("sliding_window", "requests"), ("lumpy", "tokens")):
        model = made(name)
        for sent in range(1, 50):
            limits = read_hints(model.judge(sent * 1e-6, 100.0).headers, 0.0).limits[dimension]
            cost = 100.0 if dimension == "tokens" else 1.0
            assert limits.remaining == model.gates[0].limit(0.0) - sent * cost
            assert limits.limit == model.gates[0].limit(0.0)
            assert limits.reset_seconds


@pytest.mark.parametrize("name", ["token_bucket", "sliding_window", "rpm_tpm", "steps", "daily_cap"])
def test_who_waits_as_long_as_the_refusal_says_gets_through(name: str) -> None:
    model, now, refusals = made(name), 0.0, 0
    while refusals < 5:
        verdict = model.judge(now, 100.0)
        if not verdict.allowed:
            refusals += 1
            after = read_hints(verdict.headers, 0.0).retry_after
            assert after is not None and after > 0
            now += after
            assert model.judge(now, 100.0).allowed


@pytest.mark.parametrize("name", ["hidden_concurrency", "vllm", "no_headers", "no_headers_bucket"])
def test_the_silent_ones_say_nothing(name: str) -> None:
    model = made(name)
    verdicts = [model.judge(k * 1e-4, 100.0) for k in range(3000)]
    assert not all(v.allowed for v in verdicts)
    assert not any(v.headers for v in verdicts)
    assert {v.status for v in verdicts} == {200, 503 if name == "vllm" else 429}


def test_the_liar_lies() -> None:
    model = made("liar", rpm=100)
    verdicts = [model.judge(k * 1e-4, 100.0) for k in range(150)]
    assert sum(v.allowed for v in verdicts) == 100
    assert {read_hints(v.headers, 0.0).limits["requests"].remaining for v in verdicts} == {200.0}
    assert read_hints(verdicts[-1].headers, 0.0).retry_after == 1.0


def test_the_day_is_spelt_as_cerebras_does_and_ends_at_midnight() -> None:
    model = made("daily_cap", cap=10, midnight=400.0)
    verdicts = [model.judge(float(k), 100.0) for k in range(11)]
    assert [v.allowed for v in verdicts] == [True] * 10 + [False]
    hints = read_hints(verdicts[-1].headers, 0.0)
    assert hints.retry_after == 390.0
    assert (hints.limits["requests/day"].limit, hints.limits["requests/day"].remaining) == (10.0, 0.0)
    assert hints.limits["requests/day"].reset_seconds == 390.0
    assert model.judge(400.0, 100.0).allowed
    assert (model.traits.wall + 400.0) % 86400.0 == 0.0


def test_an_outage_is_refused_connections_and_then_503() -> None:
    model = made("outage")
    assert [model.judge(at, 1.0).status for at in (179.9, 180.0, 209.0, 211.0, 239.9, 240.0)] == [
        200,
        0,
        0,
        503,
        503,
        200,
    ]
    assert model.down == 4


def test_a_slow_server_is_slow_for_two_minutes() -> None:
    model = made("slow_down")
    seconds = {at: sum(model.latency(at) for _ in range(300)) / 300 for at in (100.0, 200.0, 310.0)}
    assert seconds[200.0] == pytest.approx(20.0, rel=0.1)
    assert seconds[100.0] == pytest.approx(1.0, rel=0.1) == seconds[310.0]


# The simulator


def post(index: int = 0, tokens: int = 100) -> HTTPRequest:
    return HTTPRequest(url="http://sim/v1/chat/completions", body=body_for(index, tokens))


def test_bodies_and_answers_are_valid_json_with_the_usage_that_was_asked_for() -> None:
    async def scenario() -> HTTPResponse:
        return await SimTransport(made("token_bucket")).send(post(5, 1000), Timeout())

    answer = run_virtual(scenario)
    assert msgspec.json.decode(answer.body)["usage"]["total_tokens"] == 1000
    assert answer.header("x-ratelimit-remaining-requests") == "1799"
    body = msgspec.json.decode(body_for(5, 1000))
    assert len(body["messages"][0]["content"]) == 3000


def test_a_refused_connection_and_a_timeout_are_the_errors_a_real_transport_raises() -> None:
    async def scenario() -> tuple[APIConnectionError, APIConnectionError, float, Model]:
        down = SimTransport(made("outage", start=0.0, end=60.0))
        with pytest.raises(APIConnectionError) as refused:
            await down.send(post(), Timeout())
        model = made("slow_down", start=0.0)
        began = asyncio.get_running_loop().time()
        with pytest.raises(APITimeoutError) as late:
            await SimTransport(model).send(post(), Timeout(first_byte=2.0))
        return refused.value, late.value, asyncio.get_running_loop().time() - began, model

    refused, late, took, model = run_virtual(scenario)
    assert (refused.code, refused.sent) == ("connection_refused", False)
    assert late.sent
    assert took == pytest.approx(2.0, abs=0.011)
    assert model.in_flight == 0
    assert sum(model.good) == 0.0


def test_a_client_that_goes_away_frees_its_slot() -> None:
    async def scenario() -> Model:
        model = made("hidden_concurrency", slots=1)
        transport = SimTransport(model)
        first = asyncio.ensure_future(transport.send(post(0), Timeout()))
        await asyncio.sleep(0.3)
        assert model.in_flight == 1
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert model.in_flight == 0
        assert (await transport.send(post(1), Timeout())).status == 200
        return model

    model = run_virtual(scenario)
    assert (model.admitted, sum(model.good)) == (2, 1.0)


async def paced(run: Run) -> None:
    """A client that knows the limit: one request every 50 ms, whatever becomes of it."""
    rows: Iterator[Any] = run.rows(0)
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(_once(run, next(rows).request.body))
            await asyncio.sleep(0.05)


async def _once(run: Run, body: bytes) -> None:
    answer = await run.transport.send(HTTPRequest(url="http://sim", body=body), Timeout())
    if answer.status == 200:
        run.answered(0)
    else:
        run.lose("429")


def test_the_report_adds_up() -> None:
    """A client paced at the very limit uses it all; one stream of eight is as unfair as it gets."""
    report = simulate(made("sliding_window", rpm=1200), paced, 180.0, seed=1)
    assert report.share == pytest.approx(1.0, abs=0.005)
    assert report.share_after == pytest.approx(1.0, abs=0.02)
    assert report.refusals < 5.0  # the network's jitter moves a request or two over the edge of a window
    assert report.time_to_95 == 0.0
    assert report.fairness == pytest.approx(1 / 8)
    assert sum(report.attempts) == pytest.approx(3600, abs=5)
    assert sum(report.good) == pytest.approx(report.answered, abs=60)
    assert report.capacity == [20.0] * 180
    assert report.longest_wait == 0.0
    assert report.contender == "paced"


@pytest.mark.parametrize("name", sorted(ANIMALS))
def test_the_same_seed_gives_the_same_run(name: str) -> None:
    def once(seed: int) -> Report:
        report = simulate(name, client(limits=Limits(concurrency=60)), 15.0, seed=seed, demand=80)
        return msgspec.structs.replace(report, cost=0.0)

    first = once(5)
    assert first == once(5)
    assert first.attempts != once(6).attempts


def test_the_run_leaves_the_global_random_generator_as_it_was() -> None:
    random.seed(1)
    before = random.getstate()
    simulate("liar", fastllm, 2.0)
    assert random.getstate() == before


def test_an_engine_that_knows_the_limit_keeps_it() -> None:
    report = simulate("sliding_window", client(limits=Limits(rpm=1800)), 130.0, seed=2)
    assert report.refusals == 0.0
    assert report.fairness > 0.99
    assert report.states[-1]["concurrency"] > 30
    assert report.lost == 0


def test_a_client_that_spins_without_time_passing_is_told_so() -> None:
    async def spinning(run: Run) -> None:
        for _ in run.rows(0):
            run.lose("at once")

    with pytest.raises(RuntimeError, match="without letting time pass"):
        simulate("liar", spinning, 10.0)
