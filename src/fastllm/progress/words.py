"""Numbers as people read them, and the fields of a progress line in the order of their worth."""

from __future__ import annotations

import msgspec

from ..policy.budget import dollars
from .base import View

_UNITS = ("", "k", "M", "G", "T", "P")


class Field(msgspec.Struct, frozen=True):
    """One part of the line: what to show, shorter words for a narrow terminal, its worth (1 stays longest)."""

    name: str
    text: str
    short: str
    worth: int


def count(number: float) -> str:
    """7 -> 7, 12345 -> 12.3k, 1234567 -> 1.2M; below ten with one decimal where it is no whole number."""
    if number < 10 and number != int(number):
        return f"{number:.1f}"
    if round(number) < 1000:
        return f"{number:.0f}"
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            return f"{number:.0f}{unit}" if number >= 99.95 or not unit else f"{number:.1f}{unit}"
        number /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """42 -> 42s, 394 -> 6m34s, 7500 -> 2h05m, 273600 -> 3d04h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def latency(seconds: float) -> str:
    """0.0042 -> 4.2ms, 0.81 -> 810ms, 2.34 -> 2.34s."""
    if seconds < 1:
        return f"{seconds * 1000:.1f}ms" if seconds < 0.01 else f"{seconds * 1000:.0f}ms"
    return f"{seconds:.2f}s" if seconds < 10 else duration(seconds)


def fields(view: View) -> list[Field]:
    """Give what the line shows, left to right; what did not happen is not mentioned."""
    exact, brief = f"{view.done:,}", count(view.done)
    if view.total is not None:
        exact, brief = f"{exact}/{view.total:,}", f"{brief}/{count(view.total)}"
    shown = [Field("done", exact, brief, 1)]
    if view.share is not None:
        shown.append(Field("share", *_twice(f"{view.percent}%"), 3))
    if view.hold:
        shown.append(Field("hold", view.hold, view.hold_short, 2))
    else:
        shown.append(Field("rate", *_twice(f"{count(view.rate)}/s"), 2))
    if (view.prompt_rate or view.completion_rate) and not view.hold:
        tokens = f"{count(view.prompt_rate)} in + {count(view.completion_rate)} out tok/s"
        shown.append(Field("tokens", tokens, f"{count(view.prompt_rate)}+{count(view.completion_rate)} tok/s", 7))
    if view.in_flight or not view.hold:
        shown.append(Field("in_flight", *_twice(f"{count(view.in_flight)} in flight"), 6))
    if view.waiting and view.hold:
        shown.append(Field("waiting", *_twice(f"{count(view.waiting)} waiting"), 7))
    elif view.waiting:
        text = f"{count(view.waiting)} waiting"
        shown.append(Field("waiting", f"{text} for limits", text, 6))
    if view.backing_off:
        shown.append(Field("backing_off", *_twice(f"{count(view.backing_off)} backing off"), 11))
    if view.retries:
        shown.append(Field("retries", *_twice(plural(view.retries, "retry", "retries")), 9))
    if view.rate_limited:
        shown.append(Field("rate_limited", *_twice(f"{count(view.rate_limited)}×429"), 8))
    if view.cached and view.hit_ratio is not None:
        shown.append(Field("cached", *_twice(f"{int(view.hit_ratio * 100)}% cached"), 10))
    if view.cost:
        shown.append(Field("cost", *_twice(dollars(view.cost)), 6))
    if view.failed:
        shown.append(Field("failed", *_twice(f"{count(view.failed)} failed"), 4))
    if view.unsent:
        shown.append(Field("unsent", *_twice(f"{count(view.unsent)} not sent"), 4))
    if view.eta is not None and view.done < (view.total or 0):
        shown.append(Field("eta", *_twice(f"ETA {duration(view.eta)}"), 5))
    return shown


def fit(parts: list[Field], width: int, gap: int = 3) -> list[tuple[str, str]]:
    """Choose (name, text) pairs that fit in `width` columns: all long, else the less worthy ones short, else only the
    worthiest."""
    short: set[str] = set()
    for part in [None, *sorted(parts, key=lambda part: -part.worth)]:
        if part is not None:
            short.add(part.name)
        texts = [(part.name, part.short if part.name in short else part.text) for part in parts]
        if sum(len(text) + gap for _, text in texts) - gap <= width:
            return texts
    kept: set[str] = set()
    left = width + gap
    for part in sorted(parts, key=lambda part: part.worth):
        if len(part.short) + gap <= left:
            kept.add(part.name)
            left -= len(part.short) + gap
    return [(part.name, part.short) for part in parts if part.name in kept]


def plural(number: int, one: str, many: str) -> str:
    return f"{count(number)} {one if number == 1 else many}"


def encodable(text: str, encoding: str | None) -> str:
    """Give the text as this encoding can show it: `·` and `×` have plain forms. None (text in memory) takes all."""
    try:
        text.encode(encoding or "utf-8", "surrogatepass" if encoding is None else "strict")
    except (UnicodeEncodeError, LookupError):
        text = text.replace("·", "|").replace("×", "x ").encode("ascii", "replace").decode()
    return text


def _twice(text: str) -> tuple[str, str]:
    return text, text
