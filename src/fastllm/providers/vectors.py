"""Embeddings as lists: one input, one vector, in order. Whoever packs requests or judges answers reads them here."""

from __future__ import annotations

import re

import msgspec

_TOKENS = re.compile(rb"\s*\[\s*\d")  # one input, as an array of token ids
_VECTOR = re.compile(rb"\s*(?:\"|\[\s*[-\d])")  # base64, or numbers: as far as its first tells
_NOTHING = frozenset((b"[]", b'""', b"null"))


class _Asked(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw()


class Vector(msgspec.Struct):
    """One input's vector as it came: JSON of floats, or of base64 text."""

    index: int | None = None
    embedding: msgspec.Raw = msgspec.Raw()


class _Given(msgspec.Struct):
    data: list[Vector] = []


_asked = msgspec.json.Decoder(_Asked)
_given = msgspec.json.Decoder(_Given)
_list = msgspec.json.Decoder(list[msgspec.Raw])


def is_one(raw: bytes) -> bool:
    """Tell whether the JSON of an `input` is a single one: a text, or an array of tokens."""
    return raw[:1] == b'"' or _TOKENS.match(raw) is not None


def count_of(body: bytes) -> int:
    """Give how many inputs an embeddings body has; 0 where it has none that can be counted."""
    try:
        raw = _asked.decode(body).input
        return 1 if is_one(bytes(raw)) else len(_list.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def vectors_of(body: bytes, count: int) -> list[Vector]:
    """Give the `count` vectors of an answer in the order of the inputs. ValueError says what is wrong with them.

    The index decides, not the place; where no vector has one, the place does.
    """
    try:
        data = _given.decode(body).data
    except msgspec.DecodeError:
        raise ValueError("has not the shape of embeddings") from None
    if len(data) != count:
        raise ValueError(f"has {len(data)} vectors for {count} inputs")
    if any(bytes(vector.embedding).strip() in _NOTHING or not vector.embedding for vector in data):
        raise ValueError("has an empty vector")
    if not all(_VECTOR.match(vector.embedding) for vector in data):
        raise ValueError("has a vector that is no list of numbers")
    if all(vector.index is None for vector in data):
        return data
    if {vector.index for vector in data} != set(range(count)):
        raise ValueError("has vectors whose indices are not those of the inputs")
    return sorted(data, key=lambda vector: vector.index or 0)
