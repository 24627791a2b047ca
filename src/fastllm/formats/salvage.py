"""The id of a line that is no row, as far as it can be read: whoever looks for the row's error looks for its id."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[{}\[\]]')  # a string that is cut off, too: its quotes begin no other
_VALUE = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*+"|-?\d+\b)')
_NAMES = (b'"custom_id"', b'"id"')
_MOST = 1 << 20  # bytes of a line that are looked at


def own_id(custom_id: Any, other: Any) -> str | None:
    """Give the id of a row by its "custom_id" and its "id"; None where it has none that is text."""
    given = custom_id if custom_id is not None else other
    if type(given) is int:
        return str(given)
    return given if type(given) is str and given else None


def salvaged(text: bytes) -> str | None:
    """Give the id of a line that is no JSON, or none that can be decoded: the first one that stands in the outermost
    object, before or behind what is wrong."""
    found: dict[bytes, Any] = {}
    depth = 0
    if not text.startswith(b"{"):
        return None
    for token in _TOKEN.finditer(text, 0, _MOST):
        word = token[0]
        if word in b"{[":
            depth += 1
        elif word in b"}]":
            depth -= 1
            if depth <= 0:
                break
        elif depth == 1 and word in _NAMES and word not in found and (value := _VALUE.match(text, token.end())):
            try:
                found[word] = msgspec.json.decode(value[1])
            except (msgspec.DecodeError, UnicodeDecodeError):
                found[word] = None
    custom_id, other = (found.get(name) for name in _NAMES)
    return own_id(custom_id, other)
