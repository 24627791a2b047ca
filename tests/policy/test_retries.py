"""policy/retries: retries never multiply what is sent, and a small user never hears of it."""

from __future__ import annotations

from hypothesis import given, strategies as st

from fastllm.policy.retries import RESERVE, SECONDS, SHARE, RetryBudget

# Seconds that pass, requests that come, and retries that are wanted after them.
STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 2000), st.integers(0, 300)), max_size=60)


@given(STEPS, st.sampled_from([(SHARE, RESERVE, SECONDS), (0.02, 0.0, 60.0)]), st.floats(0, 1e6))
def test_retries_stay_within_share_and_reserve(
    steps: list[tuple[float, int, int]], numbers: tuple[float, float, float], start: float
) -> None:
    share, reserve, seconds = numbers
    now, attempts, requests, retries = start, 0, 0, 0
    budget = RetryBudget(now, share=share, reserve=reserve, seconds=seconds)
    for wait, come, wanted in steps:
        now += wait
        attempts += come
        requests += come
        for _ in range(wanted):
            if budget.withdraw(now, attempts):
                attempts += 1
                retries += 1
        assert retries <= share * requests + reserve * (now - start + seconds) + 1e-6


@given(STEPS)
def test_of_the_last_seconds_no_more_than_of_what_was_sent_in_them(steps: list[tuple[float, int, int]]) -> None:
    """Both as sums that forget exponentially, so that no burst was saved up before."""
    budget = RetryBudget(0.0, share=0.02, reserve=0.0, seconds=60.0)
    now, attempts = 0.0, 0
    for wait, come, wanted in steps:
        now += wait
        attempts += come
        for _ in range(wanted):
            attempts += budget.withdraw(now, attempts)
        assert budget._retries <= 0.02 * budget._requests + 1e-6


@given(st.floats(0, 1e6), st.floats(0.112, 5.0))
def test_nine_retries_a_second_are_always_there(start: float, gap: float) -> None:
    budget = RetryBudget(start)
    assert all(budget.withdraw(start + gap * i, 0) for i in range(500))


def test_a_hundred_at_once_are_there_and_no_more() -> None:
    budget = RetryBudget(5.0)
    assert sum(budget.withdraw(5.0, 0) for _ in range(200)) == 100
    assert sum(budget.withdraw(6.0, 0) for _ in range(200)) in (9, 10)


def test_a_fifth_of_steady_traffic_is_there() -> None:
    budget = RetryBudget(0.0, reserve=0.0)
    attempts = granted = 0
    for tick in range(10_000):  # 100 requests a second
        attempts += 1
        if budget.withdraw(tick / 100, attempts):
            granted += 1
            attempts += 1
    assert 1980 <= granted <= 2000


def test_what_was_sent_long_ago_is_forgotten_whenever_it_is_asked() -> None:
    budget = RetryBudget(0.0, reserve=0.0)
    assert 0.19 * 1000 < budget.left(10.0, 10_000) * 1000 / 6321 < 0.21 * 1000  # of an even stream for 10 s
    assert budget.left(200.0, 10_000) < 0.01


def test_attempts_that_are_no_requests_bring_nothing_in() -> None:
    budget = RetryBudget(0.0, reserve=0.0)
    for _ in range(1000):
        budget.skip()
    assert budget.left(0.0, 1000) == 0.0
    assert budget.left(0.0, 1010) == 2.0
