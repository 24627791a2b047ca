"""policy/window: whatever is booked, no 60 seconds ever hold more than the limit."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fastllm.policy.window import BUCKET, GUARD, SPAN, WINDOW, Window

STEPS = st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 50), st.floats(0, 1.5)), max_size=120)


def most_in_any_window(events: list[tuple[float, float]], span: float) -> float:
    return max((sum(a for t, a in events if start <= t < start + span) for start, _ in events), default=0.0)


@pytest.mark.fault("twice-the-limit")
@given(STEPS)
def test_no_window_holds_more_than_the_limit_when_bookings_are_exact(steps: list[tuple[float, float, float]]) -> None:
    window, now, sent = Window(100), 0.0, []
    for wait, amount, _ in steps:
        now += wait
        if window.fits(now, amount):
            window.add(now, amount)
            sent.append((now, amount))
    assert most_in_any_window(sent, WINDOW + GUARD) <= 100 + 1e-6


@given(STEPS)
def test_a_request_booked_when_it_said_it_would_fit_does_fit(steps: list[tuple[float, float, float]]) -> None:
    window, now = Window(100), 0.0
    for wait, amount, _ in steps:
        now = max(now + wait, window.when(now + wait, amount))
        assert window.fits(now, amount)
        window.add(now, amount)


@given(STEPS)
def test_used_is_the_sum_of_what_is_live_after_any_settlements(steps: list[tuple[float, float, float]]) -> None:
    window, now, live = Window(1e9), 0.0, []
    for wait, amount, share in steps:
        now += wait
        window.fits(now, 0)
        entry = window.add(now, amount)
        window.settle(entry, amount * share - amount)
        live.append((entry, amount * share))
    window.fits(now, 0)
    assert abs(window.used - sum(a for e, a in live if e.expires)) < 1e-6


def test_a_settlement_after_the_window_has_passed_changes_nothing() -> None:
    window = Window(10)
    entry = window.add(0.0, 10)
    assert window.fits(SPAN + BUCKET, 10)
    window.settle(entry, -10)
    assert window.used == 0


def test_refunded_tokens_can_be_used_at_once() -> None:
    window = Window(10)
    entry = window.add(0.0, 10)
    assert not window.fits(1.0, 1)
    window.settle(entry, -4)
    assert window.fits(1.0, 4)
    assert not window.fits(1.0, 4.1)


def test_memory_does_not_grow_with_the_rate() -> None:
    window = Window(1e12)
    for i in range(200_000):
        window.fits(i / 1000, 1)
        window.add(i / 1000, 1)
    assert len(window._buckets) <= SPAN / BUCKET + 2


def test_an_amount_over_the_limit_never_fits() -> None:
    assert Window(10).when(0.0, 11) == float("inf")


def test_an_overdrawn_window_tells_when_it_has_recovered() -> None:
    """A settlement may book more than the limit; what follows waits until enough of it has left."""
    window = Window(10)
    window.settle(window.add(0.0, 5), 20)
    when = window.when(1.0, 1)
    assert SPAN <= when <= SPAN + 2 * BUCKET
    assert window.fits(when, 1)


def test_the_repr_says_what_is_used() -> None:
    window = Window(10)
    window.add(0.0, 3)
    assert repr(window) == "<Window 3 of 10 in 60 s, 1 buckets>"


def test_memory_does_not_grow_where_nobody_asks_whether_it_fits() -> None:
    window = Window(float("inf"))
    for i in range(200_000):
        window.add(i / 100, 1)
    assert len(window._buckets) <= SPAN / BUCKET + 2 and window.used <= 6_100
