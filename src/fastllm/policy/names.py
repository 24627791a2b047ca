"""Names: of a kind that others choose, as many as there is room for, so that what is counted by name has a bound."""

from __future__ import annotations

OTHER = "other"
MOST_NAMES = 200  # distinct ones of a kind: models, endpoints, keys, …
LONGEST_NAME = 200  # characters


class Names:
    """Labels of one kind: the first `most` names, and "other" for those that come after them. Nothing is one, too."""

    __slots__ = ("_most", "known")

    def __init__(self, most: int = MOST_NAMES) -> None:
        self.known: dict[str, str] = {"": ""}
        self._most = most + 1

    def add(self, name: str) -> str:
        """Give the label of a name, which may be a label from now on."""
        known = self.known.get(name)
        if known is not None:
            return known
        if len(self.known) >= self._most or len(name) > LONGEST_NAME or not name.isprintable():
            return OTHER
        self.known[name] = name
        return name

    def __len__(self) -> int:
        return len(self.known)
