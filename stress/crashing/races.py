"""Races: several processes begin the same job at once, also the one that a killed process left; one runs it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from .bench import Bench, ended
from .findings import Findings

ROWS = 40
LATENCY = 0.15  # seconds: longer together than any racer needs for its start
REFUSED = 2  # exit status
MOST_RACERS = 8


def every_race(*, seed: int, quick: bool) -> Findings:
    """Let 2 to 8 processes race for a new job, and for one whose process was killed."""
    findings = Findings("races")
    rng = random.Random(seed)
    with Bench(ROWS, latency=LATENCY) as bench:
        bench.expected()
        for racers in (3,) if quick else range(2, MOST_RACERS + 1):
            for _ in range(1 if quick else 3):
                bench.clear()
                bench.received()
                _race(bench, findings, racers, set(), f"{racers} at once")
                bench.clear()
                pid = bench.start()
                time.sleep(rng.uniform(0.2, 0.6))
                os.kill(pid, signal.SIGKILL)
                findings.kills += ended(pid) == -signal.SIGKILL
                where = f"{racers} at once after a kill"
                kept = bench.look(findings, where)
                bench.received()
                _race(bench, findings, racers, kept, where)
    return findings


def _race(bench: Bench, findings: Findings, racers: int, kept: set[str], where: str) -> None:
    findings.states += 1
    gate, opener = os.pipe()
    said = [bench.folder.with_name(f"said-{number}") for number in range(racers)]
    pids = [bench.start(_waiting(gate, opener, path)) for path in said]
    os.close(gate)
    began = time.monotonic()
    os.close(opener)
    statuses: dict[int, int] = {}
    while len(statuses) < racers:
        pid, status = _next_of([pid for pid in pids if pid not in statuses])
        statuses[pid] = status
        if status == REFUSED:
            findings.most("ms until the last refusal", int(1000 * (time.monotonic() - began)))
    texts = [path.read_text() for path in said]
    refused = sum(
        statuses[pid] == REFUSED and "is in use: another process is running this job" in text
        for pid, text in zip(pids, texts, strict=True)
    )
    if refused != racers - 1 or sorted(statuses.values())[0] != 0:
        findings.wrong += 1
        findings.complain(f"{where}: exit statuses {sorted(statuses.values())}, {refused} refusals")
    asked = [name for name, _ in bench.check_asked(findings, where, kept)]
    again = len(asked) - len(set(asked))
    if again:
        findings.duplicate += again
        findings.complain(f"{where}: {again} rows were asked by two processes")
    bench.finish(findings, where, {f"q{row}" for row in range(ROWS)})


def _next_of(pids: list[int]) -> tuple[int, int]:
    """Wait for the first of these to end; give which it is, and its exit status."""
    while True:
        for pid in pids:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return done, os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def _waiting(gate: int, opener: int, said: Path) -> Callable[[], None]:
    """Give what a racer does first: wait for the others, and say what it says into a file of its own."""

    def prepare() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        os.close(opener)
        os.read(gate, 1)

    return prepare
