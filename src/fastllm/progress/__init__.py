"""Showing a run: one live line on a terminal, plain lines elsewhere, a bar in a notebook, and a summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Literal, TextIO

from ..engine.stats import Snapshot
from ..errors import ConfigError, MissingExtra
from .base import Meter, Progress, Silent, View, of_rows, watch, with_unseen
from .line import LineProgress
from .notebook import NotebookProgress, in_notebook
from .rich import RichProgress, print_summary
from .summary import Summary, summary
from .words import encodable

__all__ = [
    "Kind",
    "Progress",
    "Summary",
    "View",
    "make_progress",
    "of_rows",
    "show_summary",
    "summary",
    "watch",
    "with_unseen",
]

Kind = Literal["auto", "rich", "plain", "none"]


def make_progress(
    kind: Kind,
    snapshot: Callable[[], Snapshot],
    total: Callable[[], int | None],
    *,
    already_done: int | Callable[[], int] = 0,
    stream: TextIO | None = None,
    label: str = "",
) -> Progress:
    """Choose the display: `auto` is a bar in a notebook, one live line on a terminal, else plain lines.

    `total` may give None until it is known. `already_done` rows were finished by an
    earlier run, a number or a function that gives it. Everything is
    written to `stream`, standard error if not given; standard output stays free for data.
    """
    if kind not in ("auto", "rich", "plain", "none"):
        raise ConfigError(f"progress must be one of auto, rich, plain, none; not {kind!r}")
    out = stream or sys.stderr
    if kind == "none" or out is None:  # a process without standard error, such as pythonw
        return Silent()
    meter = Meter(snapshot, total, already_done=already_done)
    if kind == "auto" and in_notebook():
        try:
            return NotebookProgress(meter, label=label)
        except MissingExtra:
            return LineProgress(meter, stream=out, label=label)
    if kind == "rich" or (kind == "auto" and _is_terminal(out)):
        return RichProgress(meter, stream=out, label=label)
    return LineProgress(meter, stream=out, label=label)


def show_summary(found: Summary, stream: TextIO | None = None) -> None:
    """Write the summary to standard error, in colours on a terminal."""
    out = stream or sys.stderr
    if out is None:
        return
    try:
        if _is_terminal(out):
            print_summary(found, out)
        else:
            out.write(encodable(found.text(), getattr(out, "encoding", None)))
            out.flush()
    except (OSError, ValueError):  # nobody is reading any more
        return


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "")
    except ValueError:  # closed
        return False
