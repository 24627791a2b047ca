"""Shares of one limit: never more than the limit together, and nobody is starved."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from fastllm.policy.shares import INF, Claim, renewed


def held(limit: float, *claims: Claim, whole: bool = True) -> list[tuple[float, float]]:
    """Let each claim be renewed in turn, and give what each came to."""
    found = []
    for place, claim in enumerate(claims):
        if claim.gone:
            continue
        part, cap = renewed(limit, claims, place, whole=whole)
        claim.part = part
        found.append((part, cap))
    return found


def test_who_is_alone_has_all() -> None:
    assert held(100, Claim()) == [(100, 100)]


def test_idle_ones_have_equal_parts_and_whoever_wants_more_gets_it() -> None:
    one, two = Claim(), Claim()
    held(100, one, two)
    assert held(100, one, two) == [(50, 50), (50, 50)]
    one.used, one.want = 30, 90
    held(100, one, two)
    assert held(100, one, two) == [(95, 95), (5, 5)]  # what is left over is divided again


def test_what_was_used_stays_and_may_not_be_added_to_until_it_is_free() -> None:
    one, two = Claim(part=100, used=80, want=100), Claim(want=100)
    assert held(100, one, two) == [(80, 50), (20, 20)]
    one.used = 55
    assert held(100, one, two) == [(55, 50), (45, 45)]
    one.used = 40
    assert held(100, one, two) == [(50, 50), (50, 50)]


def test_a_part_of_somebody_who_is_gone_is_nobodys() -> None:
    one = Claim(want=100)
    assert held(100, one, Claim(part=30, gone=True))[0] == (70, 70)


def test_whole_numbers_leave_nothing_over() -> None:
    claims = [Claim(want=10) for _ in range(4)]
    held(7, *claims)
    assert sorted(part for part, _ in held(7, *claims)) == [1, 2, 2, 2]


def test_one_slot_for_two_goes_to_who_waits_longest() -> None:
    one, two = Claim(part=1, used=1, want=5, need=1, since=9.0), Claim(want=5, need=1, since=3.0)
    assert held(1, one, two) == [(1, 0), (0, 0)]  # it is in use, and is not to be used again
    one.used = 0
    assert held(1, one, two) == [(0, 0), (1, 1)]


def test_a_request_larger_than_an_equal_part_gets_its_room() -> None:
    claims = [Claim(want=900, need=60, since=2.0), Claim(want=900, need=80, since=1.0), Claim(want=900)]
    for _ in range(3):
        held(100, *claims, whole=False)
    assert claims[1].part >= 80


def test_the_last_of_what_is_spent_for_good_is_gathered_for_who_waits_longest() -> None:
    """Three have spent 3 of 10 dollars each: the last one goes to one of them, and does not lie about in thirds."""
    claims = [Claim(used=3, spent=3, want=7, need=4, since=since) for since in (2.0, 1.0, 3.0)]
    for claim in claims:
        claim.part = 10 / 3
    for _ in range(3):
        held(10, *claims, whole=False)
    assert [round(claim.part, 6) for claim in claims] == [3, 4, 3]


def test_a_lower_limit_takes_back_what_is_not_in_use() -> None:
    one, two = Claim(part=50, used=10, want=50), Claim(part=50, used=50, want=50)
    held(60, one, two)
    assert held(60, one, two)[0][0] == 10
    assert two.part == 50


amounts = st.integers(0, 120)
steps = st.lists(st.tuples(st.integers(0, 3), amounts, amounts, st.integers(0, 3)), max_size=60)


@settings(max_examples=300)
@given(st.integers(1, 100), steps, st.booleans())
def test_no_order_of_renewals_lets_through_more_than_the_limit(
    limit: int, moves: list[tuple[int, int, int, int]], whole: bool
) -> None:
    claims, caps = [Claim() for _ in range(4)], [0.0] * 4
    for turn, (place, use, want, how) in enumerate(moves):
        claim = claims[place]
        if how == 0:  # use what may be used
            claim.used = max(claim.used, min(caps[place], claim.used + use))
        elif how == 1:  # some of it is free again
            claim.used = max(0.0, claim.used - use)
        else:
            claim.want = claim.used + want
            claim.need, claim.since = (min(use, limit), float(turn)) if how == 3 else (0.0, INF)
            claim.part, caps[place] = renewed(limit, claims, place, whole=whole)
        assert all(claim.used <= claim.part + 1e-6 for claim in claims)
        assert sum(claim.part for claim in claims) <= limit * (1 + 1e-6)


@settings(max_examples=200)
@given(st.integers(1, 50), st.lists(st.integers(0, 50), min_size=2, max_size=4), st.booleans())
def test_whoever_waits_for_longest_is_served_once_all_is_given_back(limit: int, wants: list[int], whole: bool) -> None:
    claims = [Claim(want=want + 1, need=min(want + 1, limit), since=float(place)) for place, want in enumerate(wants)]
    for _ in range(2):
        held(limit, *claims, whole=whole)
    assert claims[0].part >= claims[0].need - 1e-6


@settings(max_examples=200)
@given(st.integers(1, 1000), st.lists(st.integers(0, 2000), min_size=1, max_size=5))
def test_nothing_lies_idle_while_somebody_wants_it(limit: int, wants: list[int]) -> None:
    claims = [Claim(want=want) for want in wants]
    for _ in range(3):
        held(limit, *claims)
    assert sum(claim.part for claim in claims) == limit
