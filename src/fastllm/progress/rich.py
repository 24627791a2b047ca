"""Progress as one live line on a terminal, and the summary in colours. Beside cli/ the one file that imports rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from .base import Display, Meter, View
from .summary import Summary
from .words import encodable, fields, fit

if TYPE_CHECKING:  # rich takes 60 ms to import: only when something is shown
    from rich.console import Console
    from rich.text import Text

BAR = 24
_LEAST_BAR = 8
_STYLES = {
    "done": "bold",
    "rate": "cyan",
    "tokens": "blue",
    "retries": "yellow",
    "rate_limited": "yellow",
    "waiting": "yellow",
    "hold": "bold yellow",
    "unsent": "yellow",
    "backing_off": "yellow",
    "cached": "green",
    "failed": "bold red",
    "eta": "magenta",
}


class RichProgress(Display):
    """One line that never wraps: fields give way by their worth as the terminal gets narrower."""

    def __init__(self, meter: Meter, *, stream: TextIO, label: str = "", width: int | None = None) -> None:
        super().__init__(meter)
        self._stream = stream
        self._label = label
        self._width = width
        self._live: Any = None

    def _open(self) -> None:
        if self._live is not None:
            return
        from rich.live import Live

        console = _console(self._stream, self._width)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, vertical_overflow="crop")
        self._live.start()

    def _draw(self, view: View) -> None:
        self._open()
        self._live.update(line(view, self._live.console.width, self._label, self._live.console.encoding), refresh=True)

    def _finish(self, view: View) -> None:
        try:
            if not self._broken:
                self._draw(view)
        finally:
            if self._live is not None:  # gives the cursor and standard error back
                self._live.stop()


def _console(stream: TextIO, width: int | None = None) -> Console:
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would point standard output to /dev/null and exit; Display gives up drawing instead

    return Ours(file=stream, force_terminal=True, width=width, highlight=False)


def line(view: View, columns: int, label: str = "", encoding: str = "utf-8") -> Text:
    """Lay out one line of at most `columns - 2` cells: label, bar, fields."""
    from rich.text import Text

    room = columns - 2  # the `^C` that a terminal echoes behind it must not wrap
    text = Text(no_wrap=True, overflow="crop", end="")
    if label and len(label) + 30 < room:
        text.append(label + " ", style="bold")
        room -= len(label) + 1
    parts = fields(view)
    share = view.share
    bar = _LEAST_BAR if share is not None and room >= 50 else 0
    chosen = fit(parts, room - bar - 1 if bar else room)
    if share is not None and bar:
        used = sum(len(part) + 3 for _, part in chosen) - 3
        _append_bar(text, share, min(BAR, room - used - 1), encoding)
    for i, (name, shown) in enumerate(chosen):
        text.append(encodable(" · ", encoding) if i else "", style="dim")
        text.append(encodable(shown, encoding), style=_STYLES.get(name, ""))
    text.truncate(columns - 2)
    return text


def _append_bar(text: Text, share: float, width: int, encoding: str) -> None:
    full, rest = encodable("━", encoding), encodable("━", encoding)
    if full == "?":
        full, rest = "#", "-"
    filled = int(share * width)
    text.append(full * filled, style="green" if share >= 1 else "cyan")
    text.append(rest * (width - filled) + " ", style="bright_black")


def print_summary(summary: Summary, stream: TextIO) -> None:
    """Write the summary in colours."""
    from rich.text import Text

    console = _console(stream)
    for name, value in summary.lines():
        style = "red" if name == "failed" and summary.failed else "green" if name == "ok" else ""
        shown = Text(f"  {name:<10} " if name else "", style="dim", no_wrap=True, overflow="ellipsis")
        shown.append(encodable(value, console.encoding), style=style if name else "bold")
        console.print(shown)
