"""Progress as plain lines, for logs and pipes: one every ten seconds and one at the end."""

from __future__ import annotations

from typing import TextIO

from .base import Display, Meter, View
from .words import count, duration, encodable, fields

_OF_THE_MOMENT = ("rate", "tokens", "in_flight", "waiting", "hold", "eta")  # and of no meaning at the end


class LineProgress(Display):
    """Writes whole lines without control codes."""

    interval = 10.0

    def __init__(self, meter: Meter, *, stream: TextIO, label: str = "") -> None:
        super().__init__(meter)
        self._stream = stream
        self._label = label + " " if label else ""

    def _draw(self, view: View) -> None:
        if view.elapsed > 0:  # nothing to tell at the very start
            self._write(f"[{duration(view.elapsed)}]", [part.text for part in fields(view)])

    def _finish(self, view: View) -> None:
        if self._broken:
            return
        whole = [part.text for part in fields(view) if part.name not in _OF_THE_MOMENT]
        per_second = f"{count(view.overall_rate)}/s"
        self._write(f"[{duration(view.elapsed)}]", [*whole, per_second])

    def _write(self, head: str, texts: list[str]) -> None:
        line = f"{self._label}{head} {' · '.join(texts)}\n"
        self._stream.write(encodable(line, getattr(self._stream, "encoding", None)))
        self._stream.flush()
