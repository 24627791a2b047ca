"""What an answer says about limits and about coming back, in every spelling that providers use.

One pass over the headers with a look-up per name. Nothing here raises: a value that cannot be read is left out, and
every number that comes out is finite and not negative.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from .window import DAY

PLENTY, MANY = 0.25, 1000.0  # of a limit; a smaller one is soon used up
LONGEST = 7 * DAY  # seconds; whatever is said beyond a week means "not today"
_LONGEST_TEXT = 64  # bytes; no number or date is longer

_NO_NAMES: Mapping[str, str] = {}


class Limit(msgspec.Struct):
    """One limit as an answer told it: how much in all, how much is left, seconds until it is full again."""

    limit: float | None = None
    remaining: float | None = None
    reset_seconds: float | None = None


class Hints(msgspec.Struct, eq=False):
    """What one answer told: `retry_after` in seconds, and `limits`."""

    retry_after: float | None = None
    _limits: dict[str, Limit] | None = None
    _found: list[tuple[tuple[str, str], bytes]] = []
    _now_wall: float = 0.0
    _names: Mapping[str, str] = _NO_NAMES

    @property
    def limits(self) -> Mapping[str, Limit]:
        """Dimension -> Limit, read from the headers at the first access: every answer has them, few are looked at.

        "requests", "tokens", "input_tokens" and "output_tokens" are per minute, others say their period
        ("requests/day"); "requests/unknown" is a plain `x-ratelimit-limit`, whose period only the vendor's
        documents tell.
        """
        if self._limits is None:
            self._limits = _read_limits(self._found, self._now_wall, self._names) if self._found else {}
        return self._limits


NOTHING = Hints()


def is_comfortable(hints: Hints) -> bool:
    """Tell whether so much is left of all limits that the next few answers' headers will be no news."""
    if not hints._found:
        return True
    limits = hints.limits.values()
    return all(one.limit is not None and (one.remaining or 0.0) >= PLENTY * max(one.limit, MANY) for one in limits)


_UNIT = {"d": DAY, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|us|µs|μs|ns|h|m|s|d)")


def parse_duration(text: str) -> float | None:
    """Read Go's durations ("6m0s", "1m30.5s", "12ms") and plain seconds; None if it is neither, or negative."""
    if len(text) > _LONGEST_TEXT:
        return None
    if text[-2:] == "ms":
        seconds = _number(text[:-2])
        seconds = seconds / 1000.0 if seconds is not None else None
    elif text[-1:] == "s":
        minutes, mark, rest = text[:-1].rpartition("m")  # "6m0s", and "8.6s" without minutes
        seconds = _number(rest)
        if mark and seconds is not None:
            whole = _number(minutes)
            seconds = 60.0 * whole + seconds if whole is not None else None
    else:
        seconds = _number(text)
    if seconds is None:  # only now the slow way: "1h2m3.5s", "5us"
        seconds = _many_units(text.strip())
    return min(seconds, LONGEST) if seconds is not None else None


def _many_units(text: str) -> float | None:
    total, end = 0.0, 0
    for match in _DURATION.finditer(text):
        if match.start() != end:
            return None
        total, end = total + float(match[1]) * _UNIT[match[2]], match.end()
    return total if end and end == len(text) and math.isfinite(total) else None


def parse_reset(text: str, now_wall: float) -> float | None:
    """Read when a limit is full again: a duration, an RFC 3339 time, or an epoch in s or ms; as seconds from now."""
    seconds = parse_duration(text)
    if seconds is None:
        moment = _moment(datetime.fromisoformat, text.strip()) if len(text) <= _LONGEST_TEXT else None
    elif seconds == LONGEST and (number := _number(text) or 0.0) > 1e9:
        moment = number / 1000.0 if number > 1e11 else number
    else:
        return seconds
    return min(max(0.0, moment - now_wall), LONGEST) if moment is not None else None


def _number(text: str | bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value < math.inf else None


def read_hints(headers: Sequence[tuple[bytes, bytes]], now_wall: float, names: Mapping[str, str] = _NO_NAMES) -> Hints:
    """Read all hints from lower-case headers; `now_wall` is the wall clock in seconds.

    `names` renames dimensions where a vendor means its own by the usual spelling (Groq's requests are per day).
    """
    for name, _ in headers:
        if name in _PLACES:
            break
    else:
        return NOTHING
    found = [(_PLACES[name], value) for name, value in headers if name in _PLACES]
    hints = Hints(None, None, found, now_wall, names)
    waits = [(place[1], value.decode("latin-1")) for place, value in found if not place[0]]
    if waits:
        hints.retry_after = _retry_after(waits, now_wall, headers)
    return hints


def _read_limits(
    found: list[tuple[tuple[str, str], bytes]], now_wall: float, names: Mapping[str, str]
) -> dict[str, Limit]:
    limits: dict[str, Limit] = {}
    for (dimension, part), value in found:
        if not dimension:
            continue
        number = parse_reset(value.decode("latin-1"), now_wall) if part == "reset_seconds" else _number(value)
        if number is not None:
            limit = limits.setdefault(names.get(dimension, dimension), Limit())
            setattr(limit, part, number)
    return limits


def _retry_after(waits: list[tuple[str, str]], now_wall: float, headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """retry-after-ms before retry-after; the longest where one is given twice."""
    by_ms = [n for part, text in waits if part == "ms" and (n := _number(text)) is not None]
    if by_ms:
        return min(max(by_ms) / 1000.0, LONGEST)
    found = [_wait(text, now_wall, headers) for part, text in waits if part == "seconds"]
    return max((seconds for seconds in found if seconds is not None), default=None)


def _wait(text: str, now_wall: float, headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """Seconds, a duration, an epoch, an RFC 3339 time or an HTTP date, or the longest of several with commas between.

    An HTTP date counts from the server's own Date, so that clock skew cancels.
    """
    if len(text) > _LONGEST_TEXT:
        return None
    seconds = parse_reset(text, now_wall)
    if seconds is None and "," in text:
        several = [parse_duration(part) for part in text.split(",")]
        seconds = None if None in several else max(number for number in several if number is not None)
    if seconds is not None:
        return seconds
    when = _moment(parsedate_to_datetime, text)
    if when is None:
        return None
    dates = (_moment(parsedate_to_datetime, value.decode("latin-1")) for name, value in headers if name == b"date")
    server = next((moment for moment in dates if moment is not None), now_wall)
    return min(max(0.0, when - server), LONGEST)


def _moment(parse: Callable[[str], datetime], text: str) -> float | None:
    """Seconds since the epoch; a time without a zone is UTC."""
    try:
        moment = parse(text[:_LONGEST_TEXT])
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


_PARTS = {"limit": "limit", "remaining": "remaining", "reset": "reset_seconds"}

# The words after x-ratelimit-{limit,remaining,reset}, and the dimension each means.
_WORDS = {
    "requests": "requests",  # OpenAI, Azure; Groq, who means a day
    "tokens": "tokens",
    "tokens_usage_based": "tokens_usage_based",  # OpenAI
    "project-requests": "project_requests",
    "project-tokens": "project_tokens",
    "input-tokens": "input_tokens",
    "output-tokens": "output_tokens",
    "requests-minute": "requests",
    "requests-hour": "requests/hour",
    "requests-day": "requests/day",  # Cerebras
    "tokens-minute": "tokens",  # Cerebras
    "tokens-hour": "tokens/hour",
    "tokens-day": "tokens/day",
    "req-minute": "requests",  # Mistral
    "req-second": "requests/second",
}


def _places() -> dict[bytes, tuple[str, str]]:
    """Header name -> (dimension, part); what is no limit has the dimension ""."""
    table = {"retry-after": ("", "seconds"), "retry-after-ms": ("", "ms")}
    for word, part in _PARTS.items():
        table[f"x-ratelimit-{word}"] = ("requests/unknown", part)  # Together: a second; OpenRouter: by account
        table[f"x-tokenlimit-{word}"] = ("tokens/second", part)  # Together
        for name, dimension in _WORDS.items():
            table[f"x-ratelimit-{word}-{name}"] = (dimension, part)
        for name in ("requests", "tokens", "input-tokens", "output-tokens"):
            table[f"anthropic-ratelimit-{name}-{word}"] = (name.replace("-", "_"), part)
        table[f"x-ratelimitbysize-{word}-minute"] = ("tokens", part)  # Mistral
        table[f"x-ratelimitbysize-{word}-month"] = ("tokens/month", part)
    table["ratelimitbysize-reset"] = ("tokens", "reset_seconds")
    return {name.encode(): place for name, place in table.items()}


_PLACES = _places()

# "Please try again in 1.5s", "Please retry in 45.8s", "retry after 26 seconds".
_TRY_AGAIN = re.compile(
    rb"(?:try again|retry)(?: in| after) (?:((?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+)(?![a-z])"
    rb"|([0-9]+(?:\.[0-9]+)?) ?(milliseconds?|seconds?|minutes?|hours?))",
    re.IGNORECASE,
)
_LIMIT = re.compile(rb"on (requests|tokens) per (min|day)[^:]{0,20}: Limit:? ([0-9][0-9,]{0,18})", re.IGNORECASE)
_OF_TOKENS = re.compile(r"\btokens? (?:per |rate limit|has exceeded|have exceeded)|\bTPM\b", re.IGNORECASE)
_OF_REQUESTS = re.compile(r"\b(?:request|call)s? (?:per |rate limit|has exceeded|have exceeded)|\bRPM\b", re.IGNORECASE)
_PER_DAY = re.compile(rb'"[^"]*PerDay[^"]*"')  # a quotaId
_WORD_SECONDS = {b"mil": 1e-3, b"sec": 1.0, b"min": 60.0, b"hou": 3600.0}


class _Error(msgspec.Struct):
    details: Any = None


class _Body(msgspec.Struct):
    error: _Error | None = None


_body = msgspec.json.Decoder(_Body)
_bodies = msgspec.json.Decoder(list[_Body])


def body_hints(body: bytes) -> Hints:
    """Read hints from an error body: Google's RetryInfo and QuotaFailure, or "try again in 1.5s" in the message.

    A quota per day comes back as a day's wait and nothing left for the day, whatever RetryInfo says beside it.
    """
    wait: float | None = None
    for detail in _details(body):
        if daily := _PER_DAY.search(msgspec.json.encode(detail.get("violations"))):
            dimension = "tokens/day" if b"oken" in daily[0] else "requests/day"
            return Hints(DAY, {dimension: Limit(remaining=0.0)})
        if isinstance(delay := detail.get("retryDelay"), str) and (seconds := parse_duration(delay)) is not None:
            wait = max(wait or 0.0, seconds)
    if wait is None:
        wait = _wait_in_text(body[:4096])
    limits = _limits_in_text(body[:4096])
    return Hints(wait, limits) if wait is not None or limits else NOTHING


def _details(body: bytes) -> list[dict[str, Any]]:
    try:
        # Gemini's OpenAI endpoint puts its error into a list of one.
        found = next(iter(_bodies.decode(body)), _Body()) if body[:1] == b"[" else _body.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return []
    details = found.error.details if found.error is not None else None
    return [item for item in details if isinstance(item, dict)] if isinstance(details, list) else []


def _limits_in_text(text: bytes) -> dict[str, Limit] | None:
    """OpenAI's message names the limit that was met: "on requests per min (RPM): Limit 500, Used 500, Requested 1"."""
    match = _LIMIT.search(text)
    limit = _number(match[3].replace(b",", b"")) if match is not None else None
    if match is None or not limit:
        return None
    what = match[1].decode().lower()
    day = match[2].lower() == b"day"
    return {f"{what}/day": Limit(limit, 0.0)} if day else {what: Limit(limit)}


def _wait_in_text(text: bytes) -> float | None:
    match = _TRY_AGAIN.search(text)
    if match is None:
        return None
    if match[1] is not None:
        return parse_duration(match[1].decode("ascii").lower())
    seconds = _number(match[2])
    return min(seconds * _WORD_SECONDS[match[3][:3].lower()], LONGEST) if seconds is not None else None


def refusal_about(kind: str | None, message: str) -> str:
    """Give what a refusal is about, "requests" or "tokens", by its error's type or else its message; "" where it does
    not say, or names both."""
    if kind in ("requests", "tokens"):
        return kind
    tokens, requests = _OF_TOKENS.search(message), _OF_REQUESTS.search(message)
    if tokens is None:
        return "requests" if requests is not None else ""
    return "tokens" if requests is None else ""
