"""Puts together fields of a stream that nobody here knows, as they would stand in a whole answer: text is joined, lists
are laid end to end or their objects merged by index, objects are merged, all else is replaced.

Nothing is kept twice and nothing is joined twice: what they hold is no more than what has come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What names a thing or proves it comes whole, and some vendors repeat it with every piece.
_WHOLE = frozenset(
    ("index", "type", "id", "name", "format", "role", "status", "signature", "thought_signature", "url", "mime_type",
     "media_type")
)  # fmt: skip
_ENCRYPTED = "reasoning.encrypted"  # OpenRouter: each is one
_DEEPEST = 20


class Fields:
    """An object that comes in pieces."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def add(self, more: Mapping[str, Any], depth: int = 0) -> None:
        for name, value in more.items():
            if value is not None:
                self._values[name] = _with(self._values.get(name), name, value, depth)

    def goes_on_with(self, piece: Mapping[str, Any]) -> bool:
        """Tell whether an object of the same index is a piece of this one. OpenRouter gives blocks of different types
        the same index."""
        for name in ("type", "id"):
            mine, other = self._values.get(name), piece.get(name)
            if mine and other and mine != other:
                return False
        return piece.get("type") != _ENCRYPTED

    def whole(self) -> dict[str, Any]:
        return {name: _joined(value) for name, value in self._values.items()}

    def __bool__(self) -> bool:
        return bool(self._values)

    def __repr__(self) -> str:
        return f"<Fields {', '.join(self._values)}>"


class _Text:
    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[str] = []


class _Items:
    __slots__ = ("_open", "items")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._open: dict[int, Fields] = {}  # by index: the last that has it

    def add(self, more: list[Any], depth: int) -> None:
        for item in more:
            index = item.get("index") if isinstance(item, dict) else None
            if not isinstance(index, int):
                self.items.append(item)
                continue
            fields = self._open.get(index)
            if fields is None or not fields.goes_on_with(item):
                fields = self._open[index] = Fields()
                self.items.append(fields)
            fields.add(item, depth)


def _with(before: Any, name: str, more: Any, depth: int) -> Any:
    """Give what stood there with a piece more."""
    if depth >= _DEEPEST or (name in _WHOLE and isinstance(more, str)):
        return more
    if isinstance(more, str):
        found = before if isinstance(before, _Text) else _Text()
        found.pieces.append(more)
        return found
    if isinstance(more, list):
        items = before if isinstance(before, _Items) else _Items()
        items.add(more, depth + 1)
        return items
    if isinstance(more, dict):
        fields = before if isinstance(before, Fields) else Fields()
        fields.add(more, depth + 1)
        return fields
    return more


def _joined(value: Any) -> Any:
    if isinstance(value, _Text):
        return "".join(value.pieces)
    if isinstance(value, _Items):
        return [_joined(item) for item in value.items]
    return value.whole() if isinstance(value, Fields) else value
