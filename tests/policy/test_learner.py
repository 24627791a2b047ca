"""policy/learner: ledgers that never pass a limit, and limits found from headers and refusals."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from fastllm.policy.adaptive import Adaptive
from fastllm.policy.headers import Hints, Limit
from fastllm.policy.learner import FREE, PACE, SLOTS, Attempt, Learner
from fastllm.policy.ledger import ASK, REQUESTS, TOKENS, Ledger
from fastllm.policy.window import GUARD, WINDOW

INF = float("inf")
steps = st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.001, 1.0), st.integers(1, 30)), max_size=40)


def learner(rpm: float | None = None, tpm: float | None = None, **more: Any) -> Learner:
    return Learner(Adaptive(4096), rpm=rpm, tpm=tpm, **more)


def send(it: Learner, now: float, *, tokens: float = 1.0, held: str = FREE) -> Attempt:
    """Book an attempt as engine/limiter does."""
    attempt = Attempt(tokens)
    attempt.held, attempt.sent = held, now
    attempt.request = it.requests.add(now, 1.0, waited=held == REQUESTS)
    attempt.token = it.tokens.add(now, tokens, waited=False)
    attempt.used, attempt.used_tokens = it.requests.window.used, it.tokens.window.used
    it.sent(now, attempt)
    return attempt


def told(limit: float | None, remaining: float | None = None, name: str = "requests", reset: Any = None) -> Hints:
    return Hints(_limits={name: Limit(limit=limit, remaining=remaining, reset_seconds=reset)})


# Ledger


@settings(max_examples=150)
@given(st.sampled_from([1.0, 7.0, 100.0, 12345.6, 3e7]), steps, st.booleans(), st.floats(0.0, 1.0))
@example(1.0, [(1.9, 1.0, 4)], False, 0.0)  # at the edge between two buckets
def test_never_over_the_limit_in_any_minute_whatever_is_booked(
    limit: float, wanted: list[tuple[float, float, int]], small: bool, given_back: float
) -> None:
    """Any amounts, any gaps, any order; some cost less than was booked. A request may be GUARD later than another."""
    ledger, now, sent = Ledger("tokens", limit), 0.0, []
    for gap, share, times in wanted:
        now += gap
        amount = limit * share * (0.019 if small else 1.0)
        for k in range(times):
            when = ledger.when(now, amount)
            if when > now and k % 3 == 0:
                now = min(when, now + 90.0)
                when = ledger.when(now, amount)
            if when <= now:
                entry = ledger.add(now, amount, waited=k % 3 == 0)
                if k % 5 == 4:
                    ledger.settle(entry, -given_back * amount)
                    sent.append((now, amount * (1.0 - given_back)))
                else:
                    sent.append((now, amount))
    live: deque[tuple[float, float]] = deque()
    used = 0.0
    for at, amount in sent:
        while live and live[0][0] <= at - WINDOW - GUARD + 1e-9:  # a nanosecond: 62.15 - 60.25 is less than 1.9
            used -= live.popleft()[1]
        live.append((at, amount))
        used += amount
        assert used <= limit * (1.0 + 1e-6)


@given(st.sampled_from([1.0, 7.0, 100.0, 3e7]), steps)
def test_who_wakes_when_it_says_gets_through_in_the_end(limit: float, wanted: list[tuple[float, float, int]]) -> None:
    ledger, now = Ledger("tokens", limit), 0.0
    for gap, share, _ in wanted:
        now += gap
        for _ in range(200):
            when = ledger.when(now, limit * share)
            if when <= now:
                break
            assert when <= now + 2 * WINDOW
            now = max(when, now + 1e-4)
        else:
            raise AssertionError(f"not let through by {now} s")
        ledger.add(now, limit * share, waited=True)


@pytest.mark.parametrize("limit", [60.0, 500.0, 6000.0])
def test_with_demand_98_percent_of_the_limit_are_used(limit: float) -> None:
    ledger, now, waited = Ledger("requests", limit), 0.0, False
    minutes = [0] * 21
    while now < 1200.0:
        when = ledger.when(now, 1.0)
        if when > now:
            now, waited = max(when, now + 1e-4), True
            continue
        ledger.add(now, 1.0, waited=waited)
        minutes[int(now / 60)] += 1
    assert sum(minutes[:20]) >= 0.98 * 20 * limit
    assert max(minutes) <= limit


def test_what_may_go_out_without_a_look_is_gone_once_a_large_request_has_taken_the_room() -> None:
    ledger = Ledger("tokens", 1e6)
    ledger.add(100.0, 100.0, waited=False)
    ledger.add(100.0, 1e6 - 100.0, waited=False)
    assert ledger.when(100.0, 100.0) > 100.0


def test_after_an_idle_minute_a_burst_may_go_out_at_once_and_no_more() -> None:
    ledger = Ledger("requests", 1000.0)
    ledger.add(0.0, 1.0, waited=False)
    sent = 0
    while ledger.when(300.0, 1.0) <= 300.0:
        ledger.add(300.0, 1.0, waited=False)
        sent += 1
    assert sent == 1000


def test_a_burst_that_has_left_the_window_slows_nothing_down() -> None:
    ledger, sent, now = Ledger("requests", 600.0), 0, 60.5
    for at in (*(k / 1000 for k in range(300)), *(55.0 + k / 1000 for k in range(6))):
        ledger.add(at, 1.0, False)
    while now < 115.0:
        when = ledger.when(now, 1.0)
        if when <= now:
            ledger.add(now, 1.0, True)
            sent += 1
        now = max(when, now + 1e-4)
    assert sent >= 0.9 * 600 * (115.0 - 60.5) / 60


def test_a_full_window_saves_up_nothing_for_a_burst() -> None:
    """Something else held requests back, while this ledger was nearly full; what leaves it then is used at once."""
    ledger, sent, now, waited = Ledger("requests", 600.0), 0, 121.2, False
    for k in range(590):
        ledger.add(61.1 + k / 40, 1.0, True)
    while now < 137.2:
        when = ledger.when(now, 1.0)
        if when <= now:
            ledger.add(now, 1.0, waited)
            sent, waited = sent + 1, False
        else:
            waited = True
        now = max(when, now + 1e-4)
    assert sent >= 0.9 * 600


def test_without_a_limit_it_only_counts() -> None:
    ledger = Ledger("requests")
    for k in range(1000):
        assert ledger.when(k / 100, 1e9) <= k / 100
        ledger.add(k / 100, 1e9, waited=False)
    assert ledger.limit is None and not ledger.known and ledger.window.used == 1e12


# What the provider tells


def test_what_is_told_holds_but_never_more_than_the_user_set() -> None:
    it = learner(tpm=1000)
    it.heard(1.0, send(it, 0.5), told(100, 99))
    it.heard(1.0, send(it, 0.6, tokens=10), told(5000, 4990, "tokens"))
    assert it.requests.limit == 100 and it.requests.known
    assert it.tokens.limit == 1000
    it.heard(2.0, send(it, 1.5, tokens=10), told(400, 380, "tokens"))
    assert it.tokens.limit == 400, "the least of both"
    it.heard(3.0, send(it, 2.5), told(300, 297))
    assert it.requests.limit == 300, "raised as soon as it is told"


def test_limits_a_second_and_a_day_are_heard_too() -> None:
    it = learner()
    it.heard(1.0, send(it, 0.5), told(10, name="requests/second"))
    assert it.pace.value == pytest.approx(9.7)
    it.heard(1.0, send(it, 0.6), told(50, name="tokens/second"))
    assert it.tokens.limit == 3000
    it.heard(1.0, send(it, 0.7), told(1000, 2, "requests/day", 3600.0))
    assert it.quota_at(2.0, 1) == 0.0 and it.quota_at(2.0, 2) == 3601.0 and it.quota_at(3601.0, 2) == 0.0


def test_a_day_has_the_least_left_that_was_told_until_newer_news() -> None:
    it = learner()
    late, first, last = send(it, 0.0), send(it, 0.1), send(it, 2.0)
    it.heard(1.0, first, told(1000, 5, "requests/day", 3600.0))
    it.heard(1.5, late, told(1000, 50, "requests/day", 3600.0))
    assert it.quota_at(2.0, 5) == 3601.0, "it was overtaken on its way"
    it.heard(3.0, last, told(1000, 900, "requests/day", 3600.0))
    assert it.quota_at(3.0, 5) == 0.0, "the quota rolls on"


@pytest.mark.parametrize("limit", [None, 0.0, 0.5])
def test_a_limit_that_is_none_is_not_believed(limit: float | None) -> None:
    it = learner()
    it.heard(1.0, send(it, 0.5), told(limit, 0))
    assert it.requests.limit is None


def test_headers_of_a_long_answer_are_old_news() -> None:
    it = learner()
    long = send(it, 0.0)
    it.heard(61.0, send(it, 60.0), told(400, 399))
    it.heard(62.0, long, told(100, 0))
    assert it.requests.limit == 400
    it.heard(63.0, send(it, 62.0), told(100, 98))
    assert it.requests.limit == 100


@pytest.mark.fault(35)
def test_what_a_neighbour_uses_is_held_free_and_given_back() -> None:
    it = learner()

    def talk(begin: int, seconds: int, others: float) -> None:
        for second in range(begin, begin + seconds):
            attempt = send(it, float(second))
            it.heard(second + 0.5, attempt, told(100, max(0.0, 100 - attempt.used - others)))

    talk(0, 30, 40.0)
    assert it.requests.limit == pytest.approx(59.5, abs=0.5)
    talk(100, 30, 0.0)
    assert it.requests.limit == 100.0


def begin_again(limit: int, before: list[float], seconds: float) -> tuple[list[float], list[float]]:
    """A new process, at time 0, at a sliding window in which its former self stands with requests at these times.

    It sends one request, hears limit and remaining a second later, and goes on; so with every answer. Gives when it
    was let through, and when it was refused.
    """
    ledger, now = Ledger(REQUESTS), 0.0
    live = deque(sorted(before))
    answers: deque[tuple[float, float, float, Any]] = deque()
    good: list[float] = []
    bad: list[float] = []
    while now < seconds:
        while answers and answers[0][0] <= now:
            at, left, used, refused = answers.popleft()
            if refused is not None:
                ledger.settle(refused, -1.0)
            ours, counted = (used, True) if refused is None else (used - 1.0, False)
            ledger.tell(at, at - 1.0, Limit(limit=limit, remaining=left), ours, counted=counted)
        when = ledger.when(now, 1.0) if good or bad else now
        if when > now or (not ledger.known and good + bad):
            now = min(when if when > now else INF, answers[0][0] if answers else INF)
            continue
        entry = ledger.add(now, 1.0, False)
        while live and live[0] + WINDOW <= now:
            live.popleft()
        room = len(live) < limit
        (good if room else bad).append(now)
        if room:
            live.append(now)
        answers.append((now + 1.0, limit - len(live), ledger.window.used, None if room else entry))
        now += 1e-3
    return good, bad


@settings(max_examples=40)
@given(st.integers(1, 400), st.floats(0.0, 1.0), st.floats(-60.0, -0.01), st.floats(0.0, 1.0))
@example(400, 1.0, -60.0, 1.0)  # it had used the limit evenly
@example(400, 1.0, -10.0, 0.05)  # all at once, ten seconds ago
def test_a_new_process_leaves_room_for_what_its_former_self_used(
    limit: int, share: float, begin: float, spread: float
) -> None:
    """Besides the first, so many are refused as may ask, at most."""
    used = int(limit * share)
    before = [begin * (1.0 - spread * k / max(1, used)) for k in range(used)]
    good, bad = begin_again(limit, before, 310.0)
    assert len(bad) <= 1 + WINDOW / ASK
    check_minutes([*before, *good], limit)
    assert sum(at > 58.0 for at in good) >= 3.5 * limit - 1, "and the four minutes after it are used"


def check_minutes(times: list[float], limit: int) -> None:
    live: deque[float] = deque()
    for at in sorted(times):
        live.append(at)
        while live[0] + WINDOW <= at:
            live.popleft()
        assert len(live) <= limit


def test_a_full_ledger_that_was_told_learns_nothing_from_a_refusal() -> None:
    it = learner()
    it.heard(0.1, send(it, 0.0), told(20, 19))
    attempts = [send(it, 1.0) for _ in range(19)]
    assert attempts[-1].request is not None
    it.requests.settle(attempts[-1].request, -1.0)
    it.refused(1.2, attempts[-1], 0.5, 18)
    assert it.pace.value == INF and not it.blocked and it.requests.limit == 20 and it.slots.mode == "start"


# What refusals teach


def play(it: Learner, limit: int, seconds: float, *, rate: float = 20.0) -> tuple[list[float], list[float]]:
    """Demand of `rate` a second at a sliding window that says nothing. Gives the times of answers and refusals."""
    live: deque[float] = deque()
    events: list[tuple[float, int, Attempt, bool]] = []
    number, flying, now, held = count(), 0, 0.0, FREE
    good: list[float] = []
    bad: list[float] = []
    while now < seconds:
        now += 1.0 / rate
        while events and events[0][0] <= now:
            at, _, attempt, allowed = heapq.heappop(events)
            flying -= 1
            if allowed:
                it.answered(at, attempt, at - attempt.sent)
                continue
            assert attempt.request is not None
            it.requests.settle(attempt.request, -1.0)
            it.refused(at, attempt, None, flying)
        waits = (it.requests.when(now, 1.0), it.pace.when(), it.probe_at(now))
        if max(waits) > now:
            held = REQUESTS if waits[0] > now else PACE if waits[1] > now else held
            continue
        attempt = send(it, now, held=held)
        flying += 1
        attempt.in_flight = flying
        while live and live[0] + 60.0 <= now:
            live.popleft()
        allowed = len(live) < limit
        (good if allowed else bad).append(now)
        if allowed:
            live.append(now)
        heapq.heappush(events, (now + (1.0 if allowed else 0.1), next(number), attempt, allowed))
        held = FREE
    return good, bad


def test_where_nothing_is_let_through_it_stops_and_probes_ever_more_rarely() -> None:
    it = learner()
    _, bad = play(it, 300, 60.0)
    assert it.blocked, "300 went through in 15 s, and 45 s are still to wait"
    probes = [at for at in bad if at > 20.0]
    assert len(probes) <= 12
    assert 4.5 <= probes[-1] - probes[-2] <= 5.5


def test_a_block_of_some_seconds_teaches_the_limit_a_minute() -> None:
    it = learner()
    good, bad = play(it, 600, 600.0)
    assert it.requests.found.value == pytest.approx(600.0, rel=0.03)
    assert len([at for at in good if at >= 120.0]) >= 0.95 * 8 * 600
    assert len([at for at in bad if at >= 120.0]) <= 0.01 * 8 * 600


@pytest.mark.parametrize(("about", "found"), [(TOKENS, TOKENS), (REQUESTS, REQUESTS), ("", "both")])
def test_a_refusal_teaches_the_limit_that_it_is_about(about: str, found: str) -> None:
    """Large requests that are refused for their tokens say nothing of how many small ones there may be."""
    it = learner()
    for k in range(20):
        it.answered(k / 2 + 0.3, send(it, k / 2, tokens=1000.0), 0.3)

    def refuse(*attempts: Attempt) -> None:
        for attempt in attempts:
            assert attempt.request is not None and attempt.token is not None
            it.requests.settle(attempt.request, -1.0)
            it.tokens.settle(attempt.token, -1000.0)
            it.refused(attempt.sent + 0.1, attempt, None, 0, about)

    refuse(*[send(it, 10.0 + k / 100, tokens=1000.0) for k in range(6)])
    assert it.blocked
    refuse(send(it, 12.0, tokens=1000.0))
    it.answered(61.5, send(it, 61.0, tokens=1000.0), 0.3)
    assert not it.blocked
    assert it.requests.limit == (20 if found in (REQUESTS, "both") else None)
    assert it.tokens.limit == (20_000 if found in (TOKENS, "both") else None)


def test_a_limit_that_was_found_gives_way_only_to_refusals_that_are_about_it() -> None:
    it = learner()
    it.requests.find(0.0, 20.0)
    attempts = [send(it, 1.0 + k, tokens=1000.0) for k in range(20)]
    it.refused(22.0, attempts[-1], None, 0, TOKENS)
    assert it.requests.found.value == 20.0
    it.refused(23.0, attempts[-1], None, 0, REQUESTS)
    assert it.requests.found.value < 20.0


def test_a_single_refusal_lowers_what_let_it_through_and_nothing_else() -> None:
    it = learner()
    it.pace.set(0.0, 10.0)
    attempt = send(it, 1.0, held=PACE)
    for k in range(9):
        send(it, 1.0 + k / 20)
    it.refused(1.6, attempt, None, 9)
    assert it.pace.value == pytest.approx(9.8) and not it.blocked and it.slots.mode == "start"
    it.slots.full(2.0, 100.0)
    attempt = send(it, 3.0, held=SLOTS)
    it.refused(3.1, attempt, None, 9)
    assert it.slots.limit == 98 and it.pace.value == pytest.approx(9.8)


def test_one_episode_is_one_cut_and_a_long_wait_is_no_limit_a_minute() -> None:
    it = learner()
    it.pace.set(0.0, 10.0)
    attempts = [send(it, 1.0 + k / 100) for k in range(2)]
    for attempt in attempts:
        it.refused(1.6, attempt, None, 9)
    assert it.pace.value == pytest.approx(9.8), "both were sent before the cut could help"
    it.refused(3.0, send(it, 2.9), 7200.0, 9)
    assert it.pace.value == pytest.approx(9.8)


def test_what_was_switched_off_learns_nothing_from_refusals() -> None:
    it = learner(rpm=100, adaptive=False)
    for k in range(50):
        it.refused(1.1, send(it, 1.0 + k / 1000), None, 9)
    assert it.pace.value == INF and not it.blocked and it.requests.limit == 100
