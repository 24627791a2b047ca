"""policy/backoff: when to ask again, and when not."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from fastllm import errors as e
from fastllm.options import Retry
from fastllm.policy.backoff import delay, only_patience

RETRYABLE = [
    e.RateLimitError("x", status_code=429),
    e.InternalServerError("x", status_code=500),
    e.OverloadedError("x", status_code=529),
    e.ConflictError("x", status_code=409),
    e.APIConnectionError("x", code="connection_reset"),
    e.APITimeoutError("x", code="timeout_first_byte"),
    e.TruncatedStreamError("x"),
]
FINAL = [
    e.BadRequestError("x", status_code=400),
    e.ContextLengthError("x", status_code=400),
    e.AuthenticationError("x", status_code=401),
    e.QuotaExceededError("x", status_code=429),
    e.NotFoundError("x", status_code=404),
    e.InvalidRequestError("x"),
    e.LimitExceededError("x"),
]


@pytest.mark.fault(26, "context-tried-once")
@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
def test_what_cannot_get_better_is_tried_once(error: e.LLMError) -> None:
    assert delay(Retry(), error, 1, 1, lambda: 0.5) is None


@pytest.mark.fault(27)
@pytest.mark.parametrize("error", RETRYABLE, ids=lambda error: type(error).__name__)
def test_what_may_pass_is_tried_until_the_attempts_are_used_up(error: e.LLMError) -> None:
    retry = Retry(attempts=3)
    assert delay(retry, error, 2, 2, lambda: 0.5) is not None
    assert delay(retry, error, 3, 3, lambda: 0.5) is None


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_longer_than_the_cap(attempt: int, roll: float) -> None:
    pause = delay(Retry(), e.InternalServerError("x"), attempt, 1, lambda: roll)
    assert pause is not None and 0 <= pause <= Retry().cap


@pytest.mark.fault(28, "retry-without-back-off")
def test_delays_double_on_average_from_the_base() -> None:
    error = e.InternalServerError("x")
    assert [delay(Retry(), error, n, n, lambda: 1.0) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 16, 30]


@pytest.mark.fault(28, "retry-without-back-off")
@pytest.mark.parametrize(("after", "most"), [(None, 2.0), (0.0, 2.0), (10.0, 1.0), (2.0, 0.3)])
def test_those_who_failed_together_do_not_come_back_together(after: float | None, most: float) -> None:
    """Full jitter: any time up to the back-off; after a Retry-After, any within a tenth of it or a second."""
    error = e.RateLimitError("x", retry_after=after)
    pauses = [delay(Retry(), error, 3, 3, lambda roll=roll / 4: roll) for roll in range(4)]
    assert pauses[0] == (after or 0.0)
    steps = [late - early for early, late in pairwise(pause or 0.0 for pause in pauses)]
    assert steps == pytest.approx([(most + (0.1 if after == 0.0 else 0.0)) / 4] * 3)


def test_a_reset_is_tried_again_sooner() -> None:
    assert delay(Retry(), e.APIConnectionError("x", code="connection_reset"), 1, 1, lambda: 1.0) == 0.05


@given(st.floats(0, 120), st.floats(0, 1, exclude_max=True), st.integers(1, 50))
def test_retry_after_is_a_minimum(after: float, roll: float, attempt: int) -> None:
    pause = delay(Retry(), e.RateLimitError("x", retry_after=after), attempt, 1, lambda: roll)
    most = after + 1 if after >= 0.5 else max(after, min(30.0, 0.5 * 2.0 ** (attempt - 1))) + 1
    assert pause is not None and after <= pause <= most


def test_a_retry_after_of_nothing_does_not_make_the_back_off_shorter() -> None:
    for after in (None, 0.0, 0.01):
        error = e.RateLimitError("x", retry_after=after)
        pauses = [delay(Retry(), error, n, 1, lambda: 0.999) for n in range(1, 8)]
        assert all(pause is not None and pause >= 0.99 * 0.5 * 2.0**n for n, pause in enumerate(pauses[:6]))


@pytest.mark.fault(29, "retry-after-a-day")
def test_retry_after_beyond_the_cap_is_final() -> None:
    assert delay(Retry(), e.RateLimitError("x", retry_after=86400), 1, 1, lambda: 0.5) is None


@pytest.mark.fault(17)
def test_an_answer_that_is_nonsense_is_asked_for_twice_more() -> None:
    html = e.ProtocolError("HTML", status_code=200)
    assert delay(Retry(), html, 2, 2, lambda: 0.5) is not None
    assert delay(Retry(), html, 3, 3, lambda: 0.5) is None


def test_only_what_says_later_about_the_provider_is_waited_out() -> None:
    for error in (e.RateLimitError("x"), e.OverloadedError("x"), e.APIConnectionError("x", code="connection_refused")):
        assert only_patience(error)
    assert not only_patience(e.InternalServerError("x"))
    assert not only_patience(e.APIConnectionError("x", code="connection_reset"))


def test_a_patient_batch_waits_longer_for_retry_after_than_a_person() -> None:
    error = e.RateLimitError("x", retry_after=1800.0)
    assert delay(Retry(), error, 1, 0, lambda: 0.5) is None
    assert 1800 <= (delay(Retry(), error, 1, 0, lambda: 0.5, batch=True) or 0) < 1802
    assert delay(Retry(patient=False), error, 1, 0, lambda: 0.5, batch=True) is None
    assert delay(Retry(), e.RateLimitError("x", retry_after=7200.0), 1, 0, lambda: 0.5, batch=True) is None
