"""policy/hedging: quantiles that follow, and a budget without a reserve."""

from __future__ import annotations

import math

from hypothesis import given, strategies as st

from fastllm.policy.hedging import ENOUGH, MEMORY, SHARE, Hedging, Latencies

SECONDS = st.floats(1e-3, 2000.0)


def weighted(values: list[float], share: float) -> tuple[float, float]:
    """The exact quantile of values that weigh more the later they came: the least and the most it may be called."""
    step = 1 + 1 / MEMORY
    pairs = sorted((value, step**i) for i, value in enumerate(values))
    total, below = math.fsum(weight for _, weight in pairs), 0.0
    least = most = pairs[-1][0]
    for value, weight in pairs:
        below += weight
        if below >= (share - 1e-9) * total:
            least = value
            break
    below = 0.0
    for value, weight in pairs:
        below += weight
        if below > (share + 1e-9) * total:
            most = value
            break
    return least, most


@given(st.lists(SECONDS, min_size=1, max_size=300), st.floats(0.01, 0.999))
def test_a_quantile_is_at_most_five_percent_above_the_true_one(values: list[float], share: float) -> None:
    known = Latencies()
    for value in values:
        known.add(value)
    least, most = weighted(values, share)
    assert least * (1 - 1e-9) <= known.quantile(share) <= most * 1.05 * (1 + 1e-9)


@given(st.lists(st.one_of(st.floats(0, 1e9), st.just(math.inf)), min_size=1, max_size=50))
def test_no_latency_is_too_short_or_too_long(values: list[float]) -> None:
    known = Latencies()
    for value in values:
        known.add(min(value, 1e300))
    assert 1e-3 < known.quantile(0.95) < 2400


def test_it_follows_a_provider_that_became_slower_and_faster_again() -> None:
    known = Latencies()
    for i in range(3000):
        known.add(0.1 + 0.0001 * (i % 100))
    assert 0.1 < known.quantile(0.95) < 0.12
    for _ in range(200):
        known.add(2.0)
    assert 2.0 <= known.quantile(0.95) < 2.11
    for _ in range(4000):
        known.add(0.1)
    assert known.quantile(0.95) < 0.106


def test_weights_never_overflow() -> None:
    known = Latencies()
    for _ in range(100_000):
        known.add(1.0)
    assert known._total < 1e16 and 1.0 <= known.quantile(0.5) <= 1.05


def test_nothing_is_late_before_enough_is_known() -> None:
    known = Latencies()
    for _ in range(ENOUGH - 1):
        known.add(1.0)
    assert known.late_after(0.95) is None
    known.add(1.0)
    assert known.late_after(0.95) == known.quantile(0.95)


@given(st.integers(0, 5000))
def test_hedges_have_no_reserve(sent: int) -> None:
    hedging = Hedging(0.0, 0)
    granted = sum(hedging.budget.withdraw(0.0, sent) for _ in range(200))
    assert granted == min(200, int(SHARE * sent + 1e-9))
