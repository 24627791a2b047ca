"""Points: a job that is killed, or whose disk fails, at each single call that changes its files.

`every_point` kills before the call, after it, and in the middle of what it writes, and kills the recovering run, too.
`every_fault` lets the call fail: once, from then on, or after half of what it should write.
"""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

from .bench import Bench
from .findings import Findings
from .hooks import Call, Perform, hook

ROWS = 50
MOST_CALLS = 200  # a job of 50 rows makes 40 or so; how many writes there are depends on the moment
KILLS = ("before", "torn", "after")
FAULTS = ("once", "on", "short")
CODES = (errno.ENOSPC, errno.EIO)


class Killer:
    """Kills this process at its n-th call."""

    def __init__(self, number: int, how: str) -> None:
        self._left = number
        self._how = how

    def __call__(self, call: Call, perform: Perform) -> Any:
        self._left -= 1
        if self._left:
            return perform()
        if self._how == "after":
            perform()
        elif self._how == "torn" and call.name == "write":
            perform(call.data[: len(call.data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a killed process goes on")


class Failing:
    """Lets the n-th call fail; `how` is once, on (as all after it, but for removing: a full disk allows that), or short
    (half of a write is made, and the next call fails)."""

    def __init__(self, number: int, how: str, code: int) -> None:
        self._left = number
        self._how = how
        self._code = code

    def __call__(self, call: Call, perform: Perform) -> Any:
        self._left -= 1
        if self._left == 0 and self._how == "short" and call.name == "write":
            self._left = 1
            self._how = "once"
            return perform(call.data[: len(call.data) // 2])
        fails = self._left == 0 or (self._left < 0 and self._how == "on")
        if not fails or (self._code == errno.ENOSPC and call.name in ("unlink", "rename")):
            return perform()
        raise OSError(self._code, os.strerror(self._code), call.path)

    def __str__(self) -> str:
        return f"{errno.errorcode[self._code]} {self._left} calls on, {self._how}"


def every_point(*, seed: int, quick: bool) -> Findings:
    """Kill at every call, and the recovery at one of its own; in the long form at each of them."""
    findings = Findings("points")
    rng = random.Random(seed)
    with Bench(ROWS) as bench:
        bench.expected()
        for number in _some(rng, quick, 12):
            for how in (rng.choice(KILLS),) if quick else KILLS:
                if not _killed_at(bench, findings, number, how, rng):
                    return findings
            for again in () if quick else range(1, MOST_CALLS):
                if not _killed_twice(bench, findings, number, again):
                    break
    return findings


def _killed_at(bench: Bench, findings: Findings, number: int, how: str, rng: random.Random) -> bool:
    bench.clear()
    where = f"{how} call {number}"
    killed, kept = _killed(bench, findings, where, Killer(number, how), set())
    if killed:
        again = rng.randint(1, number + 5), rng.choice(KILLS)
        _, kept = _killed(bench, findings, f"{where}, recovery {again[1]} call {again[0]}", Killer(*again), kept)
    bench.finish(findings, where, kept)
    return killed


def _killed_twice(bench: Bench, findings: Findings, number: int, again: int) -> bool:
    bench.clear()
    where = f"at call {number} and at the recovery's {again}"
    _, kept = _killed(bench, findings, where, Killer(number, "before"), set())
    killed, kept = _killed(bench, findings, where, Killer(again, "before"), kept)
    bench.finish(findings, where, kept)
    return killed


def _killed(bench: Bench, findings: Findings, where: str, killer: Killer, before: set[str]) -> tuple[bool, set[str]]:
    bench.received()
    killed = bench.run(lambda: hook(bench.folder, killer)) == -signal.SIGKILL
    findings.states += killed
    findings.kills += killed
    bench.check_asked(findings, where, before)
    kept = bench.look(findings, where)
    if before - kept:
        findings.lost += len(before - kept)
        findings.complain(f"{where}: {len(before - kept)} rows were in the journal and are no more")
    return killed, kept


def every_fault(*, seed: int, quick: bool) -> Findings:
    """Let every call fail with ENOSPC and EIO: never done without being done, and an exact resume when it is healed."""
    findings = Findings("faults")
    rng = random.Random(seed)
    with Bench(ROWS) as bench:
        bench.expected()
        for number in _some(rng, quick, 12):
            ways = [(code, how) for code in CODES for how in FAULTS]
            reached = [_failed_at(bench, findings, rng, number, way) for way in ([rng.choice(ways)] if quick else ways)]
            if not any(reached) and not quick:
                break  # there was no such call any more
    return findings


def _failed_at(bench: Bench, findings: Findings, rng: random.Random, number: int, way: tuple[int, str]) -> bool:
    """Let a new job fail so, then the run that goes on, too; then nothing fails. Tell whether there was such a call."""
    bench.clear()
    bench.received()
    where = f"{errno.errorcode[way[0]]} at call {number}, {way[1]}"
    reached, kept = _failed(bench, findings, where, Failing(number, way[1], way[0]), set())
    again = Failing(rng.randint(1, 20), rng.choice(FAULTS), rng.choice(CODES))
    _, kept = _failed(bench, findings, f"{where}, and in the next run {again}", again, kept)
    bench.finish(findings, where, kept)
    return reached


def _failed(bench: Bench, findings: Findings, where: str, failing: Failing, before: set[str]) -> tuple[bool, set[str]]:
    """Run under failing calls. It says that it is done only when it is; what the journal has is not asked again."""
    reached = bench.folder.with_name("reached")
    reached.unlink(missing_ok=True)

    def watcher(call: Call, perform: Perform) -> Any:
        try:
            return failing(call, perform)
        except OSError:
            reached.touch()
            raise

    status = bench.run(lambda: hook(bench.folder, watcher))
    findings.states += reached.exists()
    said = bench.said.read_text()
    bench.check_asked(findings, where, before)
    kept = bench.look(findings, where)
    if before - kept:
        findings.lost += len(before - kept)
        findings.complain(f"{where}: {len(before - kept)} rows were in the journal and are no more")
    if status == 0:
        findings.note("done all the same", reached.exists())
        findings.compare(bench.expected(), bench.output, where)
    elif status not in (1, 2) or "Traceback" in said or not said.strip():
        findings.wrong += 1
        findings.complain(f"{where}: ended with {status}: {said[-300:]}")
    return reached.exists(), kept


def _some(rng: random.Random, quick: bool, count: int) -> Iterator[int]:
    """Give the numbers of calls to try: all of them, or some of those that each job makes."""
    yield from sorted(rng.sample(range(1, 25), count)) if quick else range(1, MOST_CALLS)
