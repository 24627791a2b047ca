"""policy/breaker: opens after failures in a row, asks now and then, and comes back gently."""

from __future__ import annotations

from itertools import pairwise

from fastllm.policy.breaker import FAILURES, PROBE, RAMP, Breaker

USUAL = 100.0  # successes a second


def proven(now: float = 100.0) -> Breaker:
    """A breaker that has seen a success."""
    breaker = Breaker()
    breaker.succeeded(now, now)
    assert breaker.quiet
    return breaker


def opened(now: float = 100.0) -> Breaker:
    breaker = proven(now)
    for _ in range(FAILURES):
        breaker.failed(now, now, USUAL)
    assert breaker.opened
    return breaker


def test_one_that_never_answered_is_given_up_after_as_many_probes_as_failures() -> None:
    breaker = Breaker()
    assert [breaker.failed(1.0, k / 10, 0.0) for k in range(FAILURES)][-1] and breaker.opened and not breaker.dead
    for k in range(FAILURES):
        assert not breaker.dead
        breaker.failed(2.0 + k, 1.9 + k, 0.0)
    assert breaker.dead and not opened().dead


def test_eight_failures_in_a_row_open_it_once_and_a_success_between_does_not() -> None:
    breaker = proven()
    for _ in range(10):
        for _ in range(FAILURES - 1):
            assert not breaker.failed(100.0, 99.0, USUAL)
        breaker.succeeded(100.0, 100.0)
    found = [breaker.failed(101.0, 100.5, USUAL) for _ in range(20)]
    assert FAILURES == 8 and found == [False] * 7 + [True] + [False] * 12


def test_while_it_is_open_one_probe_goes_out_every_second_and_a_half() -> None:
    breaker, now, probes = opened(), 100.0, []
    while now < 160.0:
        if breaker.when(now) <= now:
            breaker.sent(now)
            probes.append(now)
            breaker.failed(now, now, USUAL)
        now += 0.01
    assert PROBE == 1.5 and 38 <= len(probes) <= 40
    assert min(b - a for a, b in pairwise(probes)) >= PROBE - 1e-9
    assert probes[0] >= 100.0 + PROBE - 1e-9, "and the first not at once"


def test_after_the_first_success_it_ramps_from_half_to_all_of_the_usual_rate() -> None:
    breaker = opened()
    breaker.succeeded(160.0, 160.0)
    assert not breaker.opened
    now, sent = 160.0, []
    while now < 163.0:
        while breaker.when(now) <= now and len(sent) < 10_000:
            breaker.sent(now)
            sent.append(now)
            if now >= 160.0 + RAMP:
                break
        now += 0.001
    first = sum(at < 161.0 for at in sent)
    second = sum(161.0 <= at < 162.0 for at in sent)
    assert 50 <= first <= 80, "from 50 to 75 a second where 100 were usual"
    assert 75 <= second <= 105 and second > first
    assert breaker.when(162.0) <= 162.0 and breaker.steady(162.0), "after that it holds nobody back"


def test_it_keeps_the_rate_of_before_the_outage_and_not_that_of_its_ramp() -> None:
    breaker = opened()
    breaker.succeeded(160.0, 160.0)
    for _ in range(FAILURES):
        breaker.failed(161.0, 160.5, 0.4 * USUAL)
    assert breaker.opened and breaker.usual == USUAL
    breaker.succeeded(170.0, 170.0)
    for _ in range(FAILURES):
        breaker.failed(180.0, 179.0, 0.4 * USUAL)
    assert breaker.usual == 0.4 * USUAL, "until the ramp is over"


def test_failures_of_attempts_from_before_it_closed_are_old_news() -> None:
    breaker = opened()
    breaker.succeeded(110.0, 110.0)
    assert not any(breaker.failed(111.0, 105.0, USUAL) for _ in range(50))
    assert not breaker.opened
    assert sum(breaker.failed(112.0, 111.0, USUAL) for _ in range(FAILURES)) == 1 and breaker.opened


def test_without_a_usual_rate_there_is_no_ramp() -> None:
    breaker = Breaker()
    breaker.proven = True
    for _ in range(FAILURES):
        breaker.failed(5.0, 5.0, 0.0)
    breaker.succeeded(10.0, 10.0)
    for _ in range(100):
        assert breaker.when(10.0) <= 10.0
        breaker.sent(10.0)


def test_a_time_of_zero_is_a_time() -> None:
    """A virtual clock begins at 0."""
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(0.0, 0.0, 0.0)
    assert breaker.opened and breaker.when(0.0) == PROBE
