"""Kills: SIGKILL at random times, runs of one job after the other until it is done; every row exactly once."""

from __future__ import annotations

import os
import random
import signal
import time

from .bench import CONCURRENCY, LATENCY, Bench, ended
from .findings import Findings

ROWS = 80


def random_kills(kills: int, seed: int) -> Findings:
    """Kill runs of jobs, recovering ones included, until that many were."""
    findings = Findings("kills")
    rng = random.Random(seed)
    with Bench(ROWS) as bench:
        bench.expected()
        began = time.monotonic()
        bench.run()
        whole = time.monotonic() - began
        while findings.kills < kills:
            bench.clear()
            bench.received()
            _one_job(bench, findings, rng, whole, kills)
    return findings


def _one_job(bench: Bench, findings: Findings, rng: random.Random, whole: float, kills: int) -> None:
    kept: set[str] = set()
    findings.states += 1
    while findings.kills < kills:
        where = f"job {findings.states}, kill {findings.kills + 1}"
        pid = bench.start()
        time.sleep(rng.uniform(0.0, whole * 1.05))
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        if ended(pid) != -signal.SIGKILL:
            break  # it had ended before
        findings.kills += 1
        before, kept = kept, bench.look(findings, where)
        whole *= 1.1 if before == kept else 1.0  # the machine has become slower: no run would get anywhere
        if before - kept:
            findings.lost += len(before - kept)
            findings.complain(f"{where}: {len(before - kept)} rows were in the journal and are no more")
        asked = bench.check_asked(findings, where, before)
        _count_repeats(findings, where, [when for name, when in asked if name not in kept], killed)
    bench.finish(findings, f"job {findings.states}", kept)


def _count_repeats(findings: Findings, where: str, again: list[float], killed: float) -> None:
    """What was asked and is not in the journal is asked again: what was in flight, and what was answered so shortly
    before the kill that it was on its way to the journal; together they are no more than may be in flight."""
    answered = [killed - when - LATENCY for when in again if killed - when > LATENCY]
    findings.note("re-sent", len(again))
    findings.note("of them in flight at the kill", len(again) - len(answered))
    findings.most("at most after one kill", len(again))
    findings.most("ms at most from an answer to its journal", int(1000 * max(answered, default=0)))
    if len(again) > CONCURRENCY:
        findings.wrong += 1
        findings.complain(f"{where}: {len(again)} rows were asked and are not kept, with {CONCURRENCY} in flight")
