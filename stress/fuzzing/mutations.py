"""Damage: wrong types in any place of a JSON value, bits and stretches of bytes, events lost, doubled and moved."""

from __future__ import annotations

import json
from random import Random
from typing import Any

_DEEP = "@deep@"
_DEEPEST = b"[" * 3000 + b"]" * 3000  # beyond what a decoder goes into
_VALUES: tuple[Any, ...] = (
    None, None, True, False, 0, 1, -1, 3, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308,
    1e999, float("nan"), float("-inf"), "", "x", "stop", "é\U0001f600", "\ud800", "\x00", "9" * 50, [], [None], [[]],
    [1, "x"], [{}], {}, {"a": None}, {"type": "text"}, {"type": []}, {"": {"": []}}, _DEEP, [[[[[[[[[[]]]]]]]]]],
)  # fmt: skip


def written(value: Any) -> bytes:
    """Give the JSON of a value, NaN and lone surrogates included: as careless servers write it."""
    text = json.dumps(value).encode()
    return text.replace(b'"@deep@"', _DEEPEST)


def changed(value: Any, random: Random, times: int | None = None) -> Any:
    """Give a copy with a few places lost, doubled or of another type."""
    copy = copied(value)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5)) if times is None else times):
        places = list(_places(copy))
        if not places:
            return copied(random.choice(_VALUES))
        holder, key = random.choice(places)
        what = random.random()
        if what < 0.7:
            holder[key] = copied(random.choice(_VALUES))
        elif what < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(random.randrange(len(holder) + 1), copied(holder[key]))
        else:  # a value from elsewhere
            other, at = random.choice(places)
            holder[key] = copied(other[at])
    return copy


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Give each place of a JSON value as its holder and the key there."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def damaged(data: bytes, random: Random) -> bytes:
    """Give bytes with a bit turned, a stretch lost, doubled, put in, or all cut off behind a place."""
    if not data:
        return data
    at = random.randrange(len(data))
    end = at + random.choice((1, 1, 2, 5, 40))
    what = random.randrange(6)
    if what == 0:
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if what == 1:
        return data[:at] + data[end:]
    if what == 2:
        return data[:end] + data[at:]
    if what == 3:
        return data[:at]
    if what == 4:
        junk = (b"\r", b"\n\n", b"\xff", b"\x00", b"NaN", b'"', b"[", b"{", b"1e999", b"\xef\xbb\xbf", b"data: ", b"}")
        return data[:at] + random.choice(junk) + data[at:]
    return data[:at] + random.randbytes(random.randrange(1, 9)) + data[end:]


def shuffled(events: list[tuple[str, bytes]], random: Random) -> list[tuple[str, bytes]]:
    """Give a stream's events with one lost, doubled, moved, renamed or changed."""
    events = list(events)
    at = random.randrange(len(events))
    what = random.randrange(6)
    if what == 0:
        del events[at]
    elif what == 1:
        events.insert(random.randrange(len(events) + 1), events[at])
    elif what == 2:
        events.insert(random.randrange(len(events)), events.pop(at))
    elif what == 3:
        events[at] = (random.choice(("", "error", "message_stop", "x\ufffd")), events[at][1])
    else:
        name, data = events[at]
        events[at] = (name, _changed_inside(data, random) or damaged(data, random))
    return events


def _changed_inside(data: bytes, random: Random) -> bytes | None:
    """Change one of its values; None where it is no JSON object (any more), or one that nothing here can read."""
    if data[:1] != b"{" or _DEEPEST in data:
        return None
    try:
        return written(changed(json.loads(data), random))
    except ValueError:
        return None


def wire(events: list[tuple[str, bytes]], random: Random) -> bytes:
    """Write events as a stream, with line ends and comments as some servers have them."""
    end = random.choice((b"\n", b"\n", b"\r\n", b"\r"))
    out = bytearray()
    for name, data in events:
        if random.random() < 0.1:
            out += random.choice((b": keep-alive" + end, end, b"id: 1" + end, b"retry: 5" + end))
        if name:
            out += b"event: %b%b" % (name.encode(), end)
        out += b"data: %b%b%b" % (data, end, end)
    return bytes(out)


def pieces(data: bytes, random: Random) -> list[bytes]:
    """Cut bytes as a socket may give them."""
    if random.random() < 0.2:
        size = random.choice((1, 2, 7, 64))
        return [data[at : at + size] for at in range(0, len(data), size)]
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
