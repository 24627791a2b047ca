"""Interrupts: Ctrl-C and SIGTERM at random times, once and twice; the job says how to go on, and that goes on."""

from __future__ import annotations

import os
import random
import shlex
import signal
import time

from .bench import CONCURRENCY, Bench, ended
from .findings import Findings

ROWS = 40
LATENCY = 0.1  # seconds
WAYS = (
    (signal.SIGINT,),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGTERM,),
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT, signal.SIGTERM),
)


def every_interrupt(*, seed: int, quick: bool) -> Findings:
    """Interrupt jobs: the first signal keeps what is in flight, the second leaves it; no row is asked in vain."""
    findings = Findings("signals")
    rng = random.Random(seed)
    with Bench(ROWS, latency=LATENCY) as bench:
        bench.expected()
        for number in range(len(WAYS) if quick else 20 * len(WAYS)):
            _interrupt(bench, findings, rng, WAYS[number % len(WAYS)])
    return findings


def _interrupt(bench: Bench, findings: Findings, rng: random.Random, signals: tuple[signal.Signals, ...]) -> None:
    bench.clear()
    bench.received()
    findings.states += 1
    where = f"state {findings.states}, {' and '.join(one.name for one in signals)}"
    pid = bench.start()
    asked: list[tuple[str, float]] = []
    while not asked and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        asked += bench.received()
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 0.4))
    for one in signals:
        os.kill(pid, one)
        asked_to_stop = time.monotonic()
        time.sleep(0.02)
    status = ended(pid)
    findings.most(f"ms at most after {len(signals)}", int(1000 * (time.monotonic() - asked_to_stop)))
    kept = bench.look(findings, where)
    asked += bench.received()
    left = {name for name, _ in asked} - kept
    said = bench.said.read_text()
    findings.note("left in flight by the second", len(left))
    right = {128 + signals[-1]}
    if not left:
        right.add(128 + signals[0])  # what was in flight came in between: the first had ended it
    if status not in right or "Traceback" in said:
        findings.wrong += 1
        findings.complain(f"{where}: ended with {status}: {said[-300:]}")
    if len(left) > (CONCURRENCY if len(signals) > 1 else 0):
        findings.lost += len(left)
        findings.complain(f"{where}: {len(left)} rows were asked, and their answers not kept")
    command = [line for line in said.splitlines() if line.startswith("  fastllm run ")]
    if not command or shlex.split(command[-1]) != ["fastllm", *bench.arguments]:
        findings.wrong += 1
        findings.complain(f"{where}: it does not say how to go on: {said[-300:]}")
    bench.finish(findings, where, kept)
