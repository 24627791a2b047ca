"""Options check themselves: every bad value is refused at once, with field, value and range in the message."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastllm.errors import ConfigError
from fastllm.options import CachePolicy, Limits, Retry, Timeout

NOT_NUMBERS: list[Any] = ["5", True, False, [1], b"1", object]
NOT_FINITE: list[Any] = [math.nan, math.inf, -math.inf, 10**400, -(10**400)]
# (class, field, zero allowed, whole, None allowed, the range as the message says it)
FIELDS = [
    *[
        (Timeout, name, False, False, True, "a number of seconds greater than 0")
        for name in ("connect", "tls", "first_byte", "between_chunks", "total")
    ],
    (Limits, "concurrency", False, True, True, "a whole number of requests in flight greater than 0"),
    (Limits, "rpm", False, False, True, "a number of requests per minute of at least 1"),
    (Limits, "tpm", False, False, True, "a number of tokens per minute of at least 1"),
    (Retry, "attempts", False, True, False, "a whole number of attempts of at least 1"),
    *[
        (Retry, name, True, False, False, "a number of seconds of at least 0")
        for name in ("base", "reset_base", "cap", "retry_after_cap")
    ],
    (CachePolicy, "ttl", False, False, True, "a number of seconds greater than 0"),
    (CachePolicy, "memory_bytes", False, True, False, "a whole number of bytes greater than 0"),
    (CachePolicy, "disk_bytes", False, True, False, "a whole number of bytes greater than 0"),
]
PREFIX = {Timeout: "timeout", Limits: "limits", Retry: "retry", CachePolicy: "cache"}


def bad_values() -> list[Any]:
    cases = []
    for cls, field, zero, whole, none, allowed in FIELDS:
        values = [*NOT_NUMBERS, *NOT_FINITE, -1, -0.5]
        values += [] if zero else [0, 0.0]
        values += [1.5, 1.0] if whole else []
        values += [] if none else [None]
        cases += [pytest.param(cls, field, v, allowed, id=f"{PREFIX[cls]}.{field}={str(v)[:12]}") for v in values]
    return cases


@pytest.mark.parametrize(("cls", "field", "value", "allowed"), bad_values())
def test_a_bad_value_is_refused_naming_field_value_and_range(cls: Any, field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cls(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{PREFIX[cls]}.{field} must be {allowed}, not ")
    huge = isinstance(value, int) and abs(value) > 10**300
    assert "bits" in message if huge else repr(value) in message
    assert len(message) < 200 and "\n" not in message


@pytest.mark.parametrize(("cls", "field", "zero", "whole", "none", "allowed"), FIELDS)
def test_good_values_stay_as_they_were_given(
    cls: Any, field: str, zero: bool, whole: bool, none: bool, allowed: str
) -> None:
    for value in [1, 7, *([] if whole else [1.5, 1e9]), *([0] if zero else []), *([None] if none else [])]:
        assert getattr(cls(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (Retry, "patient", 1), (Retry, "patient", None), (Retry, "hedge", 0), (Retry, "hedge", 1.0),
        (Retry, "hedge", True), (Retry, "hedge", "0.9"), (Retry, "hedge", float("nan")),
        (CachePolicy, "mode", "redis"), (CachePolicy, "mode", None),
        (CachePolicy, "mode", ["off"]), (CachePolicy, "directory", 5), (CachePolicy, "namespace", None),
    ],
)  # fmt: skip
def test_other_fields_are_checked_too(cls: Any, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be .*not") as caught:
        cls(**{field: value})
    assert repr(value) in str(caught.value)


def test_options_are_frozen_values() -> None:
    assert Timeout() == Timeout() and hash(Limits()) == hash(Limits()) and Retry(attempts=2) != Retry()
    with pytest.raises(AttributeError):
        Limits().rpm = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(speed=5)  # type: ignore[call-arg]


def test_a_timeout_of_a_number_is_the_total_which_comes_before_the_end_of_any_phase() -> None:
    assert Timeout.of(30) == Timeout(connect=5, tls=5, first_byte=31, between_chunks=31, total=30)
    assert Timeout.of(2) == Timeout(connect=3, tls=3, first_byte=3, between_chunks=3, total=2)
    given = Timeout(total=7)
    assert Timeout.of(given) is given


def test_a_timeout_of_none_is_no_limit_at_all() -> None:
    assert all(getattr(Timeout.of(None), name) is None for name in Timeout.__struct_fields__)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "30"])
def test_a_timeout_of_a_bad_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="timeout must be a number of seconds greater than 0"):
        Timeout.of(value)
