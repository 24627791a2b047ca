"""Saying something on standard error; a reader that is gone never ends, fails or delays what is said."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from typing import TextIO

from ..settings import SETTINGS

_NAMES = "|".join(("overwrite", "output", "force", "retry_failed", *SETTINGS))
_OPTION = re.compile(rf"\b({_NAMES})=(?:…|True|'([^']*)')")


def in_flags(text: str) -> str:
    """Say of options as they are called here what the library says in its own words: `base_url=…` is --base-url."""
    text = text.replace("api_key=…", "--api-key-env VAR")
    return _OPTION.sub(lambda m: f"--{m[1].replace('_', '-')}{f' {m[2]}' if m[2] else ''}", text)


def say(text: str = "") -> None:
    """Print a line on standard error, if anybody reads it. Never raises."""
    text = in_flags(text)
    try:
        if sys.stderr is not None:  # not click's echo: that would write through the live line
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
    except (OSError, ValueError):  # the pipe is broken, the terminal or the stream closed
        silence(sys.stderr)


class Saying(logging.Handler):
    """Says what is logged, above the live line where there is one: that takes the place of standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"fastllm: {record.levelname.lower()}: {record.getMessage()}")


def silence(stream: TextIO | None) -> None:
    """Let go of a stream that cannot be written, or the interpreter complains about it once more at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


def settle() -> None:
    """Have all that was printed written, where it can be: a broken pipe must not change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            silence(stream)
