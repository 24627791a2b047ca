"""What every contender is given to do, and how that is measured.

Standard library only: it runs in the contenders' own environments. A contender's script makes its client, says how it
answers so many requests, and hands that over to `measure` (or `measured`, where the client is asynchronous), which

- has it warm up: connections are made, lazy imports done; the time this takes bounds the requests that follow (where
  it took little it is done again, for the making of connections says little about what a request takes);
- measures CPU seconds (user + system, all threads, and processes that ended) and wall seconds of the requests;
- prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MARK = "measured: "  # before the line of JSON, for libraries print things, too
KEY = "sk-bench"
MODEL = "m"
Body = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """One round of one contender; it comes as JSON in the first argument."""

    url: str
    requests: int
    in_flight: int
    seconds: float  # of one round, about, at most
    core: int | None  # to run on
    characters: int  # of an answer's text
    chunks: int  # of a streamed answer; 0: do not stream
    latency: float  # in seconds, the mean

    @classmethod
    def given(cls) -> Work:
        """Read the argument, and move to the core it names."""
        work = cls(**json.loads(sys.argv[1]))
        if work.core is not None:
            os.sched_setaffinity(0, {work.core})
        return work

    def enough(self, warm_up: float) -> int:
        """How many requests to measure, if `in_flight` of them took so many seconds: a few rounds of them at least."""
        affordable = int(self.in_flight * self.seconds / warm_up)
        return min(self.requests, max(affordable, self.in_flight))

    def good(self, text: str | None) -> bool:
        """Tell whether this is the whole text of an answer."""
        return text is not None and len(text) == self.characters

    def measure(self, run: Callable[[int], int]) -> None:
        """`run(n)` sends n requests and gives how many were answered well."""

        async def running(count: int) -> int:
            return run(count)

        measuring = self.measured(running)
        try:
            measuring.send(None)  # it awaits nothing but `running`; no loop is to run here, for `run` may start its own
        except StopIteration:
            pass

    async def measured(self, run: Callable[[int], Coroutine[Any, Any, int]]) -> None:
        """The same where `run` is asynchronous."""
        warm_up, taken = 0, 0.0
        while not warm_up or (warm_up == self.in_flight and taken < self.seconds / 4):
            began = time.perf_counter()
            await run(self.in_flight)
            warm_up, taken = warm_up + self.in_flight, time.perf_counter() - began
        count = self.enough(taken)
        meter = Meter()
        meter.report(count, await run(count), warm_up=warm_up)

    async def pulled(self, ask: Callable[[Body], Coroutine[Any, Any, bool]], count: int) -> int:
        """Let `in_flight` workers pull bodies from one iterator; give how many were answered well."""
        good = 0
        waiting = bodies(count)

        async def worker() -> None:
            nonlocal good
            for body in waiting:
                answered = await ask(body)
                good += answered

        await asyncio.gather(*(worker() for _ in range(self.in_flight)))
        return good


@dataclass(frozen=True)
class Measured:
    requests: int
    good: int
    sent: int  # with those of the warm-up
    seconds: float
    cpu: float  # seconds, all requests together
    rss: int  # bytes, the most

    def print(self) -> None:
        print(f"\n{MARK}{json.dumps(asdict(self))}", flush=True)


class Meter:
    """Measures from where it is made to where it reports."""

    def __init__(self) -> None:
        gc.collect()
        self._cpu = cpu()
        self._began = time.perf_counter()

    def report(self, requests: int, good: int, *, warm_up: int) -> None:
        seconds, spent = time.perf_counter() - self._began, cpu() - self._cpu
        Measured(requests, good, requests + warm_up, seconds, spent, peak()).print()


def cpu() -> float:
    """CPU seconds of this process and of its children that ended."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak(pid: int | None = None) -> int:
    """Give the most bytes that a process had in memory. (ru_maxrss would tell its parent's, too.)"""
    status = Path(f"/proc/{pid or 'self'}/status")
    if not status.exists():
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0  # none: it has just ended


def prompts(count: int) -> Iterator[str]:
    """No two are alike, so that nothing can be kept or encoded once for all."""
    text = "x" * 520
    for n in range(count):
        yield f"{n:08} {text}"


def bodies(count: int) -> Iterator[Body]:
    """Bodies of 600 B."""
    for prompt in prompts(count):
        yield {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


def child(command: list[str], **options: Any) -> tuple[Measured, str]:
    """Run a command to its end: its seconds and most memory, and what it said. RuntimeError says how it failed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    most = 0
    while True:
        most = max(most, peak(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    assert process.stdout is not None
    said = process.stdout.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {said[-400:]}")
    return Measured(0, 0, 0, seconds, usage.ru_utime + usage.ru_stime, most), said
