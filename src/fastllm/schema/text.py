"""Finds the JSON in what a model wrote; where it is not clear which JSON is meant, it finds none."""

from __future__ import annotations

import json
import re

import msgspec

_FENCED = re.compile(r"^[ \t]*```[ \t]*(?:json|JSON)?[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_THOUGHTS = re.compile(r"\A\s*<(think|thinking|reasoning)>.*?</\1>", re.DOTALL)
_MOST_TRIES = 64  # places that look like a beginning: more, and it is prose
_decode = msgspec.json.Decoder().decode
_scan = json.JSONDecoder().raw_decode


def json_in(text: str, begins: str = "{[") -> str | None:
    """Give the part of `text` that is the one JSON value meant; None where there is none, or more than one.

    The whole text if it is JSON; else the content of its one fenced block; else the one value in it that begins with a
    character of `begins`. Thoughts in tags before the answer are passed over.
    """
    if _is_json(text):
        return text
    text = _THOUGHTS.sub("", text, count=1)
    blocks = [block for block in _FENCED.findall(text) if _is_json(block)]
    if blocks:
        return str(blocks[0]) if len(blocks) == 1 else None
    return _value_in(text, begins)


def _value_in(text: str, begins: str) -> str | None:
    found: str | None = None
    start = re.compile(f"[{re.escape(begins)}]")
    place = start.search(text)
    for _ in range(_MOST_TRIES):
        if place is None:
            return found
        try:
            _, end = _scan(text, place.start())
        except (ValueError, RecursionError):
            end = place.start() + 1
        else:
            if found is not None:
                return None
            found = text[place.start() : end]
        place = start.search(text, end)
    return None


def _is_json(text: str) -> bool:
    try:
        _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True
