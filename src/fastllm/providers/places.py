"""Which tool call of a stream a piece belongs to."""

from __future__ import annotations

from ..answers import ToolCall


class Places:
    """The calls of one choice, in the order in which they began: by index; without one, a new id begins a new call; and
    where a vendor gives each call the same index, a new id with a name does."""

    def __init__(self) -> None:
        self._ids: list[str | None] = []
        self._open: dict[int, int] = {}  # index -> place
        self._last = -1  # index

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, piece: ToolCall) -> int:
        """Give the place of the piece's call: as many as there were before, where it begins one."""
        index = piece.index
        if index is None:
            index = self._last + 1 if piece.id or self._last < 0 else self._last
        self._last = index
        place = self._open.get(index)
        if place is not None:
            named = piece.function or piece.custom
            known = self._ids[place]
            if not (piece.id and known and piece.id != known and named and named.name):
                return place
        self._open[index] = len(self._ids)
        self._ids.append(piece.id)
        return len(self._ids) - 1
