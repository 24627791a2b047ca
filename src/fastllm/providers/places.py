"""Which tool call of a stream a piece belongs to."""

from __future__ import annotations

from ..answers import ToolCall


class Places:
    """The calls of one choice, in the order in which they began: by index; without one, a new id begins a new call; and
    where a vendor gives each call the same index, a new id with a name does. `indices` has the index of each."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self._ids: list[str | None] = []
        self._open: dict[int, int] = {}  # index -> place

    def of(self, piece: ToolCall) -> int:
        """Give the place of the piece's call: as many as there were before, where it begins one."""
        last = self.indices[-1] if self.indices else -1
        index = piece.index if piece.index is not None else (last + 1 if piece.id or last < 0 else last)
        place = self._open.get(index)
        if place is not None:
            named = piece.function or piece.custom
            known = self._ids[place]
            if not (piece.id and known and piece.id != known and named and named.name):
                return place
        self._open[index] = len(self.indices)
        self.indices.append(index)
        self._ids.append(piece.id)
        return len(self.indices) - 1

    def known(self, index: object) -> int | None:
        """Give the place of a call that has begun, the last one's where there is no index."""
        if isinstance(index, int):
            return self._open.get(index)
        return len(self.indices) - 1 if self.indices else None
