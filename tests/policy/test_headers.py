"""policy/headers: every spelling of limits and waits, and nothing else (FAULTS 29-32, PROVIDERS section 1)."""

from __future__ import annotations

import math
import timeit
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from fastllm.policy.headers import (
    DAY,
    LONGEST,
    NOTHING,
    Hints,
    Limit,
    body_hints,
    parse_duration,
    parse_reset,
    read_hints,
    refusal_about,
)

NOW = 1_793_000_000.0  # 2026-10-26 07:33:20 UTC


def hints(*pairs: tuple[str, str], **more: Any) -> Hints:
    return read_hints([(name.encode(), value.encode("latin-1")) for name, value in pairs], NOW, **more)


def wait(value: str, *more: tuple[str, str]) -> float | None:
    return hints(("retry-after", value), *more).retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("12", 12.0), ("1.5", 1.5), (" 7 ", 7.0), ("1e2", 100.0), (".5", 0.5),
        ("12ms", 0.012), ("8.64s", 8.64), ("6m0s", 360.0), ("1m30.5s", 90.5), ("1h2m3s", 3723.0), ("1h", 3600.0),
        ("2m", 120.0), ("1d", DAY), ("1d1h", 90000.0), ("500us", 0.0005), ("500µs", 0.0005), ("10ns", 1e-8),
        ("1m5ms", 60.005), ("45.837906927s", 45.837906927), (" 1m30s ", 90.0), ("0s", 0.0), ("1.s", 1.0),
        ("1e300", LONGEST), ("99999h", LONGEST), ("9" * 50 + "d", LONGEST),
        ("", None), ("s", None), ("ms", None), ("m", None), ("m0s", None), ("6m-1s", None), ("-1", None),
        ("-5s", None), ("-3ms", None), ("nan", None), ("nans", None), ("inf", None), ("infs", None), ("1x", None),
        ("1s1", None), ("1 m", None), ("1s,2s", None), ("x1s", None), ("1e999", None), ("1" * 65, None),
        ("abc", None), ("1h m", None), ("x" * 10_000, None), ("infm1s", None),
    ],
)  # fmt: skip
def test_a_duration_is_read_or_left(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == pytest.approx(seconds) if seconds is not None else parse_duration(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0), ("0.25", 0.25), ("60", 60.0),
        ("2026-10-26T06:14:20Z", 60.0), ("2026-10-26T06:14:20.5+00:00", 60.5), ("2026-10-26T08:14:20+02:00", 60.0),
        ("2026-10-26T06:14:20.123456789Z", 60.123456), ("2026-10-26T06:14:20", 60.0),
        ("2020-01-01T00:00:00Z", 0.0), ("9999-12-31T23:59:59Z", LONGEST),
        (str(int(NOW) + 30), 30.0), (f"{NOW + 0.5}", 0.5), (str(int(NOW * 1000) + 250), 0.25),
        (str(int(NOW) - 30), 0.0), (str(int(NOW * 1000) - 30), 0.0), ("1e300", LONGEST),
        ("-1", None), ("nan", None), ("soon", None), ("x" * 100, None), ("", None), ("0001-01-01T00:00:00+14:00", 0.0),
    ],
)  # fmt: skip
def test_a_reset_is_a_duration_a_time_or_an_epoch(text: str, seconds: float | None) -> None:
    found = parse_reset(text, 1_792_995_200.0 if "-10-26T" in text else NOW)
    assert found == pytest.approx(seconds, abs=1e-5) if seconds is not None else found is None


# Retry-After (FAULTS 29)


@pytest.mark.fault(29, "retry-after-nan")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("20", 20.0), ("0", 0.0), ("0.5", 0.5), ("1m30s", 90.0), ("86400", DAY), ("1e308", LONGEST),
        ("nan", None), ("inf", None), ("-inf", None), ("-5", None), ("", None), ("soon", None),
        ("5, 10", 10.0), ("5, soon", None), (str(int(NOW) + 30), 30.0), ("1792995230", 0.0),
        ("2026-01-01T00:00:00Z", 0.0),
        ("\xff\xfe", None), ("Mon, 32 Foo 2026 99:99:99 GMT", None), ("x" * 5000, None),
    ],
)  # fmt: skip
def test_retry_after_is_honoured_clamped_or_ignored(value: str, seconds: float | None) -> None:
    """The OpenAI SDK ignores a day, litellm ignores every value."""
    assert wait(value) == seconds


@pytest.mark.fault(29)
def test_retry_after_ms_comes_first_unless_it_is_garbage() -> None:
    assert wait("20", ("retry-after-ms", "1500")) == 1.5
    assert wait("20", ("retry-after-ms", "nan")) == 20.0
    assert wait("20", ("retry-after-ms", "-1")) == 20.0
    assert hints(("retry-after-ms", "1e300")).retry_after == LONGEST
    assert hints(("retry-after-ms", "")).retry_after is None


@pytest.mark.fault(29)
def test_of_two_retry_afters_the_longer_counts() -> None:
    assert wait("5", ("retry-after", "10")) == wait("10", ("retry-after", "5")) == 10.0
    assert wait("garbage", ("retry-after", "5")) == 5.0


DATE = "Mon, 26 Oct 2026 06:13:50 GMT"


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (DATE, 30.0),
        ("Mon, 26 Oct 2026 06:13:50", 30.0),
        ("Mon, 26 Oct 2026 06:13:50 -0000", 30.0),
        ("Monday, 26-Oct-26 06:13:50 GMT", 30.0),
        ("Sun, 25 Oct 2026 06:13:50 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST),
    ],
)
def test_a_date_counts_from_the_servers_own_clock(value: str, seconds: float) -> None:
    """Whatever our clock says: skew of days cancels."""
    assert wait(value, ("date", "Mon, 26 Oct 2026 06:13:20 GMT")) == seconds
    assert wait(value, ("date", "garbage"), ("date", "Mon, 26 Oct 2026 06:13:20 GMT")) == seconds


def test_a_date_without_the_servers_counts_from_ours() -> None:
    headers = [(b"retry-after", DATE.encode())]
    assert read_hints(headers, 1_792_995_200.0).retry_after == 30.0
    assert read_hints([*headers, (b"date", b"?")], 1_792_995_200.0).retry_after == 30.0


# Limits (FAULTS 32)

VENDORS: dict[str, tuple[list[tuple[str, str]], dict[str, Limit]]] = {
    "openai": (
        [
            ("x-ratelimit-limit-requests", "10000"), ("x-ratelimit-remaining-requests", "9999"),
            ("x-ratelimit-reset-requests", "8.64s"), ("x-ratelimit-limit-tokens", "200000"),
            ("x-ratelimit-remaining-tokens", "199983"), ("x-ratelimit-reset-tokens", "6m0s"),
            ("x-ratelimit-remaining-tokens_usage_based", "5"), ("x-ratelimit-remaining-project-tokens", "6"),
        ],
        {
            "requests": Limit(10000, 9999, 8.64), "tokens": Limit(200000, 199983, 360.0),
            "tokens_usage_based": Limit(None, 5), "project_tokens": Limit(None, 6),
        },
    ),
    "azure": (
        [("x-ratelimit-remaining-requests", "-1"), ("x-ratelimit-remaining-tokens", "0")],
        {"tokens": Limit(None, 0)},
    ),
    "anthropic": (
        [
            ("anthropic-ratelimit-requests-limit", "50"), ("anthropic-ratelimit-requests-remaining", "49"),
            ("anthropic-ratelimit-requests-reset", "2026-10-26T06:14:20Z"),
            ("anthropic-ratelimit-tokens-limit", "40000"), ("anthropic-ratelimit-input-tokens-remaining", "30000"),
            ("anthropic-ratelimit-output-tokens-remaining", "8000"),
            ("anthropic-ratelimit-output-tokens-reset", "2026-10-26T06:13:20Z"),
        ],
        {
            "requests": Limit(50, 49, 60.0), "tokens": Limit(40000), "input_tokens": Limit(None, 30000),
            "output_tokens": Limit(None, 8000, 0.0),
        },
    ),
    "openrouter": (
        [("x-ratelimit-limit", "20"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1792995260000")],
        {"requests/unknown": Limit(20, 0, 60.0)},
    ),
    "mistral": (
        [
            ("x-ratelimit-limit-req-minute", "60"), ("x-ratelimit-remaining-tokens-minute", "4000"),
            ("x-ratelimitbysize-limit-minute", "500000"), ("x-ratelimitbysize-remaining-month", "1000000"),
            ("ratelimitbysize-reset", "33"),
        ],
        {
            "requests": Limit(60), "tokens": Limit(500000, 4000, 33.0), "tokens/month": Limit(None, 1000000),
        },
    ),
    "together": (
        [("x-tokenlimit-limit", "3000"), ("x-tokenlimit-remaining", "2900")],
        {"tokens/second": Limit(3000, 2900)},
    ),
    "cerebras": (
        [
            ("x-ratelimit-limit-requests-day", "14400"), ("x-ratelimit-reset-requests-day", "33011.382867"),
            ("x-ratelimit-remaining-tokens-minute", "59990"), ("x-ratelimit-reset-tokens-minute", "11.382867"),
        ],
        {"requests/day": Limit(14400, None, 33011.382867), "tokens": Limit(None, 59990, 11.382867)},
    ),
    "lies": (
        [
            ("x-ratelimit-limit-tokens", "many"), ("x-ratelimit-remaining-tokens", "nan"),
            ("x-ratelimit-reset-tokens", "-3s"), ("x-ratelimit-limit-requests", "inf"),
        ],
        {},
    ),
}  # fmt: skip


@pytest.mark.fault(32)
@pytest.mark.parametrize("vendor", VENDORS)
def test_each_vendors_spelling_is_read(vendor: str) -> None:
    pairs, limits = VENDORS[vendor]
    headers = [(b"date", b"x"), *[(name.encode(), value.encode()) for name, value in pairs]]
    found = read_hints(headers, 1_792_995_200.0)
    assert found.limits == limits
    assert found.limits is found.limits
    assert found.retry_after is None


def test_a_vendor_may_mean_another_period_by_the_usual_name() -> None:
    pair = ("x-ratelimit-remaining-requests", "1000")
    assert hints(pair, names={"requests": "requests/day"}).limits == {"requests/day": Limit(None, 1000)}


@pytest.mark.fault(32, "input-output-swapped")
def test_input_and_output_are_never_read_from_each_others_header() -> None:
    pairs = [("anthropic-ratelimit-input-tokens-remaining", "1"), ("anthropic-ratelimit-output-tokens-remaining", "2")]
    found = hints(*pairs).limits
    assert (found["input_tokens"].remaining, found["output_tokens"].remaining) == (1, 2)


def test_an_answer_that_says_nothing_costs_no_object() -> None:
    assert hints() is hints(("date", "x"), ("server", "y")) is NOTHING
    assert dict(NOTHING.limits) == {}


def test_reading_twenty_five_headers_is_cheap() -> None:
    """2 µs on an idle core; the bound only catches work that grows, not a busy core."""
    headers = [(f"x-other-{i}".encode(), b"x") for i in range(19)]
    headers += [(name.encode(), value.encode()) for name, value in VENDORS["openai"][0][:6]]
    best = min(timeit.repeat(lambda: read_hints(headers, NOW), number=500, repeat=20)) / 500
    assert best < 200e-6


# Bodies


def google(*details: Any) -> bytes:
    return msgspec.json.encode({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}})


def info(delay: Any) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def failure(*quotas: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": q} for q in quotas]}


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (google(info("45.837906927s")), 45.837906927),
        (google(failure("GenerateRequestsPerMinutePerProject"), info("12s")), 12.0),
        (google(info("5s"), info("7s"), info(9), info("soon")), 7.0),
        (b"[" + google(info("3s")) + b"]", 3.0),
        (b'{"error":{"message":"Please try again in 1.5s. Visit"}}', 1.5),
        (b'{"error":{"message":"Please try again in 6m0s."}}', 360.0),
        (b'{"error":{"message":"Please try again in 20ms."}}', 0.02),
        (b'{"error":{"message":"Please retry in 45.8379s."}}', 45.8379),
        (b'{"error":{"message":"Please retry after 26 seconds."}}', 26.0),
        (b'{"error":{"message":"Try again in 2 minutes"}}', 120.0),
        (b'{"error":{"message":"try again in 300 milliseconds"}}', 0.3),
        (b'{"error":{"message":"retry in 1 hour"}}', 3600.0),
        (b"try again in 5s", 5.0),
        (b"try again in 99999999h", LONGEST),
        (b"try again in " + b"9" * 4000 + b" seconds", None),
        (b"try again in 5 sheep", None),
        (b"try again in 5sheep", None),
        (b"try again later", None),
        (b'{"error":"text"}', None),
        (b"[]", None),
        (b"", None),
        (google(5, None, "x"), None),
        (b"[" * 100_000, None),
    ],
)
def test_a_body_may_say_when_to_come_back(body: bytes, seconds: float | None) -> None:
    found = body_hints(body)
    assert found.retry_after == (pytest.approx(seconds) if seconds is not None else None)
    assert (found is NOTHING) is (seconds is None)


@pytest.mark.parametrize(
    ("quota", "dimension"),
    [("GenerateRequestsPerDayPerProjectPerModel", "requests/day"), ("InputTokensPerDayPerProject", "tokens/day")],
)
def test_a_days_quota_is_a_days_wait_whatever_retry_info_says(quota: str, dimension: str) -> None:
    for body in (google(info("12s"), failure(quota)), google(failure("TokensPerMinute", quota), info("12s"))):
        found = body_hints(body)
        assert found.retry_after == DAY
        assert found.limits == {dimension: Limit(remaining=0.0)}


# Whatever comes

NAMES = st.sampled_from(
    [b"retry-after", b"retry-after-ms", b"x-should-retry", b"date", b"x-ratelimit-reset", b"ratelimitbysize-reset"]
    + [f"x-ratelimit-{part}-tokens".encode() for part in ("limit", "remaining", "reset")]
    + [f"anthropic-ratelimit-requests-{part}".encode() for part in ("limit", "remaining", "reset")]
)
TEXTS = st.text(st.sampled_from("0123456789.-+:eEhmsµdnTZ ,/aiGMT"), max_size=30)
VALUES = (
    st.binary(max_size=70)
    | TEXTS.map(lambda text: text.encode("latin-1"))
    | st.floats().map(lambda number: str(number).encode())
    | st.datetimes().map(lambda moment: moment.isoformat().encode())
    | st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT").encode())
)


def is_sound(seconds: float | None) -> bool:
    return seconds is None or (math.isfinite(seconds) and 0 <= seconds <= LONGEST)


@given(st.lists(st.tuples(NAMES | st.binary(max_size=10), VALUES), max_size=8), st.floats(0, 1e11))
def test_no_header_raises_and_every_number_is_finite_and_not_negative(
    headers: list[tuple[bytes, bytes]], now: float
) -> None:
    found = read_hints(headers, now)
    assert is_sound(found.retry_after)
    for limit in found.limits.values():
        assert is_sound(limit.reset_seconds)
        for number in (limit.limit, limit.remaining):
            assert number is None or (math.isfinite(number) and number >= 0)


@given(TEXTS | st.text(max_size=20) | st.floats().map(str))
@example("1\x1f")
@example("٣s")
def test_no_text_raises_as_a_duration(text: str) -> None:
    assert is_sound(parse_duration(text))
    assert is_sound(parse_reset(text, NOW))


BODIES = st.lists(
    st.sampled_from([b"try again in ", b"retry after ", b"5s", b"9" * 30, b" seconds", b'{"error":', b"{", b"}", b'"'])
    | st.binary(max_size=10),
    max_size=10,
).map(b"".join)


@given(BODIES | st.recursive(st.none() | TEXTS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["error", "details", "retryDelay", "violations", "quotaId"]), inner), max_leaves=10,
).map(msgspec.json.encode))  # fmt: skip
def test_no_body_raises(body: bytes) -> None:
    assert is_sound(body_hints(body).retry_after)


def test_a_limit_in_a_message_may_have_commas() -> None:
    body = b'{"error":{"message":"Rate limit reached for m on tokens per min (TPM): Limit 30,000, Used 29,000"}}'
    assert body_hints(body).limits["tokens"].limit == 30_000.0


@pytest.mark.parametrize(
    ("kind", "message", "about"),
    [
        ("tokens", "Rate limit reached", "tokens"),  # OpenAI, Groq
        ("requests", "Rate limit reached", "requests"),
        (
            None,
            "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 300, Used 290, Requested 40",
            "tokens",
        ),
        (None, "Rate limit reached for gpt-4o on requests per min (RPM): Limit 3, Used 3, Requested 1", "requests"),
        (None, "This request would exceed your organization's rate limit of 40,000 input tokens per minute", "tokens"),
        (None, "Number of request tokens has exceeded your per-minute rate limit", "tokens"),  # Anthropic
        (None, "Number of requests has exceeded your per-minute rate limit", "requests"),
        (None, "Requests to the operation have exceeded token rate limit of your S0 pricing tier", "tokens"),  # Azure
        (None, "Requests to the operation have exceeded call rate limit of your S0 pricing tier", "requests"),
        (None, "Limits: 60 requests per minute and 40000 tokens per minute", ""),
        ("rate_limit_error", "Too many requests", ""),
        (None, "", ""),
    ],
)
def test_a_refusal_says_what_it_is_about_or_nothing(kind: str | None, message: str, about: str) -> None:
    assert refusal_about(kind, message) == about
