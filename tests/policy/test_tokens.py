"""policy/tokens: estimates that learn from usage and that no absurd usage can spoil (FAULTS 36 and 37)."""

from __future__ import annotations

import random
import timeit

import pytest
from hypothesis import given, strategies as st

from fastllm.answers import Usage
from fastllm.policy.tokens import FIRST_ANSWER, MOST_RATIO, START_ANSWER, START_RATIO, Estimator
from fastllm.types import EMBEDDINGS, MODERATIONS, Request


def request(size: int = 1000, max_tokens: int = 0, path: str = "/chat/completions") -> Request:
    return Request(path=path, body=b"x" * size, model="m", max_tokens=max_tokens)


def usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def test_the_first_estimate_is_a_little_more_than_a_token_every_four_bytes() -> None:
    assert 0.25 <= START_RATIO <= 0.3
    prompt = Estimator().estimate(request(4000, path=EMBEDDINGS)).tokens
    assert 1000 < prompt <= 1201


@pytest.mark.fault(37)
def test_before_any_answer_the_callers_bound_is_what_is_reserved() -> None:
    assert Estimator().estimate(request(0, max_tokens=50)).tokens == 51
    assert Estimator().estimate(request(0, max_tokens=5000)).tokens == 5001
    assert FIRST_ANSWER < Estimator().estimate(request(0)).tokens < 2 * FIRST_ANSWER


@pytest.mark.parametrize("path", [EMBEDDINGS, MODERATIONS])
def test_what_has_no_completion_reserves_none_and_teaches_none(path: str) -> None:
    estimator = Estimator()
    assert estimator.estimate(request(0, path=path)).tokens == 1
    estimator.learn(request(path=path), usage(250, 0))
    assert estimator.answer == START_ANSWER and estimator.ratio != START_RATIO


def test_estimates_come_near_to_what_is_used_and_stay_above_the_mean() -> None:
    estimator, rng = Estimator(), random.Random(1)
    for _ in range(300):
        size = rng.randrange(500, 5000)
        estimator.learn(request(size), usage(int(size * 0.21), rng.randrange(50, 150)))
    found = estimator.estimate(request(2000)).tokens
    assert 2000 * 0.21 + 100 < found < 2000 * 0.25 + 160
    assert estimator.estimate(request(2000, max_tokens=10)).tokens < 2000 * 0.25 + 11
    assert "300 seen" in repr(estimator)


def test_few_answers_are_enough_to_leave_the_start_behind() -> None:
    estimator = Estimator()
    for _ in range(10):
        estimator.learn(request(1000), usage(1000, 20))
    assert estimator.ratio == pytest.approx(1.0, rel=0.1)
    assert estimator.answer == pytest.approx(20, rel=1.2)


def test_large_images_and_small_texts_keep_the_ratio_within_bounds() -> None:
    estimator = Estimator()
    for _ in range(1000):
        estimator.learn(request(1_000_000), usage(1, 1))
    assert estimator.ratio > 0
    for _ in range(1000):
        estimator.learn(request(1), usage(10_000_000, 1))
    assert estimator.ratio == MOST_RATIO


@pytest.mark.parametrize("absurd", [usage(10**7, 10**7), usage(10**30, 10**30), usage(0, 10**7), usage(10**7, 0)])
def test_one_absurd_usage_moves_the_estimate_only_so_far(absurd: Usage) -> None:
    estimator = Estimator()
    for _ in range(50):
        estimator.learn(request(1000), usage(250, 100))
    before = estimator.estimate(request(1000)).tokens
    estimator.learn(request(1000), absurd)
    assert estimator.estimate(request(1000)).tokens < 4 * before
    for _ in range(60):
        estimator.learn(request(1000), usage(250, 100))
    assert estimator.estimate(request(1000)).tokens < 1.5 * before


def test_a_usage_that_counted_nothing_teaches_nothing() -> None:
    estimator = Estimator()
    estimator.learn(request(), usage(0, 0))
    estimator.learn(request(), usage(-5, -5))
    assert (estimator.ratio, estimator.answer, estimator.learned) == (START_RATIO, START_ANSWER, 0)


@pytest.mark.fault(37)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(-10, 10**40), st.integers(-10, 10**40)), max_size=30),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_an_estimate_is_bounded_whatever_was_learned(seen: list[tuple[int, int, int]], size: int, most: int) -> None:
    estimator = Estimator()
    for body, prompt, completion in seen:
        estimator.learn(request(body), usage(prompt, completion))
    found = estimator.estimate(request(size, max_tokens=most)).tokens
    assert found >= 1
    if most:
        assert found <= MOST_RATIO * size + 1 + most
    assert 1 <= estimator.estimate(request(size, path=EMBEDDINGS)).tokens <= MOST_RATIO * size + 1


def test_estimating_and_learning_are_cheap() -> None:
    """0.5 µs each on an idle core; the bound only catches work that grows, not a busy core."""
    estimator, asked, used = Estimator(), request(max_tokens=100), usage(250, 100)
    for call in (lambda: estimator.estimate(asked).tokens, lambda: estimator.learn(asked, used)):
        assert min(timeit.repeat(call, number=500, repeat=20)) / 500 < 100e-6
