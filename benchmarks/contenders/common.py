"""What all contenders share: the work, and how it is measured. Runs in each one's environment: stdlib only.

A contender calls `measure(ask, count, in_flight)` once it is set up; `ask(count)` sends so many requests, `in_flight`
at once, and gives how many were answered rightly. A first round opens the connections and is not counted.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable

PROMPT = "x" * 540  # a body of 600 B
ANSWER = 800  # characters of an answer's text


def messages() -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPT}]


def given() -> tuple[str, int, int]:
    """Give the upstream's base URL, how many requests, and how many at once."""
    return sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def right(text: object) -> bool:
    return isinstance(text, str) and len(text) == ANSWER


class Measured:
    """CPU and wall seconds from here on."""

    def __init__(self) -> None:
        self._cpu, self._wall = _cpu(), time.perf_counter()

    def tell(self, answered: int) -> None:
        """Print what it came to, as one line of JSON."""
        found = {
            "cpu": _cpu() - self._cpu,
            "seconds": time.perf_counter() - self._wall,
            "answered": answered,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print("RESULT " + json.dumps(found), flush=True)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(ask: Callable[[int], Awaitable[int]], count: int, in_flight: int) -> None:
    """Open the connections, then send and measure."""
    await ask(in_flight)
    measured = Measured()
    measured.tell(await ask(count))


def measure_sync(ask: Callable[[int], int], count: int, in_flight: int) -> None:
    """The same for a contender that blocks."""
    ask(in_flight)
    measured = Measured()
    measured.tell(ask(count))
