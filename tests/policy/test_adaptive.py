"""policy/adaptive: the number in flight that is worth having, against a simulated server."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from fastllm.policy.adaptive import BACK_OFF, BLIND, BLINDLY, COOL_DOWN, START, STEP, Adaptive

Latency = Callable[[float, int], float]


def play(slots: Adaptive, latency: Latency, seconds: float, *, begin: float = 0.0, seed: int = 0) -> list[int]:
    """A closed loop: as many in flight as allowed, all held back by that. Gives the limit after each second."""
    rng = random.Random(seed)
    limits: list[int] = []
    now, rate = begin, 0.0
    flying: list[tuple[float, float]] = []
    while now < begin + seconds:
        while len(flying) < slots.limit:
            took = latency(now, len(flying) + 1) * rng.uniform(0.7, 1.3)
            heapq.heappush(flying, (now + took, now))
        now, sent = heapq.heappop(flying)
        rate = (len(flying) + 1) / (now - sent)
        slots.answered(now, sent, now - sent, held=True, rate=rate)
        while len(limits) < now - begin:
            limits.append(slots.limit)
    return limits


def knee_of(knee: int, base: float = 1.0, shift: tuple[float, float] = (1e9, 1.0)) -> Latency:
    """Alone it takes `base`; beyond the knee throughput stays flat. From a time on all takes so many times as long."""

    def latency(now: float, in_flight: int) -> float:
        return base * max(1.0, in_flight / knee) * (shift[1] if now >= shift[0] else 1.0)

    return latency


def test_it_doubles_while_that_pays_up_to_the_ceiling() -> None:
    slots = Adaptive(1280)
    assert slots.limit == START
    limits = play(slots, lambda now, in_flight: 1.0, 30.0)
    assert limits[-1] == 1280 and slots.mode == "start"
    assert sorted(set(limits)) == [20, 40, 80, 160, 320, 640, 1280]
    assert limits.index(1280) <= 18, "two or three latencies for each doubling"


def test_requests_are_spread_only_while_it_grows() -> None:
    slots, spread = Adaptive(320), set()
    for second in range(30):
        play(slots, lambda now, in_flight: 1.0, 1.0, begin=float(second))
        spread.add((slots.limit, bool(slots.gap)))
    assert spread >= {(40, True), (80, True), (160, True), (320, True), (320, False)}
    assert not slots.gap and slots.mode == "start"
    slots.reopen(100.0, 40.0)
    assert slots.gap, "it grows again"


@pytest.mark.parametrize("knee", [12, 50, 100, 333])
@pytest.mark.parametrize("seed", range(2))
def test_it_stops_at_the_knee_and_loses_no_throughput(knee: int, seed: int) -> None:
    slots = Adaptive(4096)
    limits = play(slots, knee_of(knee), 300.0, seed=seed)
    assert slots.mode == "knee"
    late = limits[120:]
    assert min(late) >= knee / STEP - 1, "one trial beyond the knee, at times"
    assert max(late) <= 2.7 * max(knee, START), "more would only wait"
    mean = sum(min(1.0, limit / knee) for limit in late) / len(late)
    assert mean >= 0.97


@pytest.mark.parametrize("at", [150.0, 157.0, 163.0, 171.0, 180.0, 190.0, 200.0])
def test_answers_that_take_twenty_times_as_long_do_not_move_it(at: float) -> None:
    """The knee stays where it is: so does the throughput in requests under way, and no trial is mistaken."""
    slots = Adaptive(4096)
    before = max(play(slots, knee_of(100, 0.5), at)[-5:])  # at 190 s it is in the midst of a step down from 160
    after = play(slots, knee_of(100, 10.0), 600.0, begin=at)
    assert before >= 100 and min(after) >= 100 / STEP - 1
    assert sum(min(1.0, limit / 100) for limit in after) >= 0.97 * len(after)
    assert max(after) <= before * STEP + 1


@pytest.mark.parametrize("at", [151.3, 171.0, 180.0, 190.0])
def test_answers_that_take_twenty_times_as_long_never_lower_the_throughput(at: float) -> None:
    slots = Adaptive(4096)
    play(slots, knee_of(100, 0.5), at)
    after = play(slots, knee_of(100, 10.0), 600.0, begin=at)
    assert min(after) >= 100 / STEP - 1
    assert sum(min(1.0, limit / 100) for limit in after) >= 0.97 * len(after)


def test_answers_that_something_else_held_back_say_nothing() -> None:
    slots = Adaptive(4096)
    for k in range(1, 5000):
        slots.answered(k / 50, k / 50 - 1.0, 1.0 if k < 2500 else 20.0, held=False, rate=50.0)
    assert slots.limit == START and slots.mode == "start" and slots.baseline > 19


def test_an_overload_costs_a_fifth_once_an_episode_and_growth_waits() -> None:
    slots = Adaptive(4096)
    now = 30.0
    play(slots, lambda now, in_flight: 1.0, now)
    before = slots.limit
    for k in range(50):
        slots.overloaded(now + k / 50)
    assert slots.limit == int(before * BACK_OFF)
    assert set(play(slots, lambda now, in_flight: 1.0, COOL_DOWN - 1.0, begin=now)) == {slots.limit}
    slots.overloaded(now + COOL_DOWN + 0.1)
    assert slots.limit == int(int(before * BACK_OFF) * BACK_OFF)


def test_it_never_leaves_one_to_the_ceiling() -> None:
    slots = Adaptive(8)
    assert slots.limit == 8
    for k in range(100):
        slots.overloaded(k * (COOL_DOWN + 1))
        assert 1 <= slots.limit <= 8
    assert slots.limit == 1
    slots.full(2000.0, 1e9)
    assert slots.limit == 8
    slots.reopen(2001.0, 1e9)
    assert slots.limit == 8


def test_a_refusal_for_want_of_room_makes_it_a_dial() -> None:
    slots = Adaptive(4096)
    slots.full(0.0, 100.0)
    assert slots.limit == 100 and slots.mode == "full"
    slots.cut(1.0)
    assert slots.limit == 98
    for k in range(1, 401):
        slots.answered(1.0 + k / 40, 0.0, 1.0, held=True, rate=40.0)
    assert 99 <= slots.limit <= 102, "0.3 % a second"
    slots.reopen(12.0, 5.0)
    assert repr(slots) == f"<Adaptive {START} of 4096, start>"


def test_before_the_first_answer_it_doubles_once_a_second_and_then_asks_what_half_would_bring() -> None:
    slots = Adaptive(4096)
    assert slots.when(0.0, rates_known=False) == BLIND
    for k in range(3):
        assert slots.when(0.0, rates_known=False) == 1.0 + k
        slots.double(1.0 + k)
    assert slots.limit == 8 * START
    play(slots, knee_of(100, 4.0), 400.0, begin=4.0)
    assert 95 <= slots.limit <= 200


def test_before_the_first_answer_it_stops_at_a_thousand_or_so() -> None:
    slots = Adaptive(4096)
    for k in range(100):
        if slots.when(0.0, rates_known=False) == float("inf"):
            break
        slots.double(float(k))
    assert BLINDLY <= slots.limit < 2 * BLINDLY


def test_later_it_doubles_blindly_only_where_the_ledgers_keep_the_rate() -> None:
    slots = Adaptive(4096)
    slots.answered(1.0, 0.0, 3.0, held=False, rate=1.0)
    assert slots.when(10.0, rates_known=False) == float("inf")
    assert slots.when(10.0, rates_known=True) == 16.0
    slots.full(20.0, 50.0)
    assert slots.when(30.0, rates_known=True) == float("inf")
