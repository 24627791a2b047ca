"""Traced: a whole `python -m fastllm.cli` under strace, which kills it at a call or lets the call fail.

What the hooks cannot see is tried here: whatever may go past them, and SQLite's calls for the cache. strace counts the
calls of each thread for itself, so that a number is met by whichever thread gets there first.
"""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from .bench import Bench
from .findings import Findings

ROWS = 50
CALLS = "openat,write,pwrite64,writev,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat"
WAYS = ("signal=SIGKILL", "error=ENOSPC", "error=EIO")
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)", re.MULTILINE)
_NAMES = ("out.jsonl", "out.jsonl.journal", "out.jsonl.manifest.json", "out.errors.jsonl")
_CACHE_NAMES = ("cache.sqlite3", "cache.sqlite3-wal", "cache.sqlite3-shm", "cache.lock")


def is_traceable() -> bool:
    """Tell whether strace is there and may trace."""
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-f", "true"], capture_output=True).returncode == 0


def every_call(*, quick: bool) -> Findings:
    """Kill a real process at each of its calls for a job's files, and let each fail; then the same for the cache's."""
    findings = Findings("traced")
    if not is_traceable():
        findings.note("times skipped, for want of a strace that may trace")
        return findings
    with Bench(ROWS) as bench:
        bench.expected()
        job = [bench.folder, *(bench.folder / name for name in _NAMES)]
        job += [bench.folder / f".{name}.partial" for name in _NAMES]
        tried = list(_points(bench, job))
        for call, number in tried[:: len(tried) // 2] if quick else tried:
            for way in WAYS[:1] if quick else WAYS:
                _try(bench, findings, job, f"{call}:{way}:when={number}")
        cache = bench.folder.with_name("cache")
        cached = ("--cache", "disk", "--cache-dir", str(cache))
        files = [cache / name for name in _CACHE_NAMES]
        tried = list(_points(bench, files, *cached))
        for call, number in tried[len(tried) // 2 :][:1] if quick else tried:
            for way in WAYS[1:2] if quick else WAYS:
                shutil.rmtree(cache, ignore_errors=True)
                again = "" if "signal" in way else "+"  # a full disk stays full
                _try(bench, findings, files, f"{call}:{way}:when={number}{again}", *cached)
    return findings


def _points(bench: Bench, files: Iterable[Path], *more: str) -> Iterable[tuple[str, int]]:
    """Give the calls for some files that one run makes, with their numbers."""
    bench.clear()
    log = bench.folder.with_name("trace")
    if status := _run(bench, files, ["-o", str(log), "-e", f"trace={CALLS}"], *more):
        raise SystemExit(f"the traced run ended with {status}: {bench.said.read_text()}")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    most: collections.Counter[str] = collections.Counter()
    for thread, call, _ in _CALL.findall(log.read_text(errors="replace")):
        counts[thread, call] += 1
        most[call] = max(most[call], counts[thread, call])
    for call, count in most.items():
        yield from ((call, number) for number in range(1, count + 1))


def _run(bench: Bench, files: Iterable[Path], options: list[str], *more: str) -> int:
    paths = [word for path in files for word in ("-P", str(path))]
    command = ["strace", "-f", "-qq", *paths, *options, sys.executable, "-m", "fastllm.cli", *bench.arguments, *more]
    with bench.said.open("wb") as said:
        status = subprocess.run(command, stdout=said, stderr=said, timeout=120).returncode
    return status


def _try(bench: Bench, findings: Findings, files: Iterable[Path], injected: str, *more: str) -> None:
    bench.clear()
    bench.received()
    log = bench.folder.with_name("trace")
    status = _run(bench, files, ["-o", str(log), "-e", f"trace={CALLS}", "-e", f"inject={injected}"], *more)
    findings.states += 1
    findings.kills += status < 0
    kept = bench.look(findings, injected)
    where = f"{injected} of {'the cache' if more else 'the job'}"
    if status == 0:
        findings.note("done all the same")
        findings.compare(bench.expected(), bench.output, where)
    elif status > 0 and more:
        findings.wrong += 1
        findings.complain(f"{where}: a cache that fails ended the job with {status}: {bench.said.read_text()[-300:]}")
    elif status > 0 and (status > 2 or "Traceback" in bench.said.read_text()):
        findings.wrong += 1
        findings.complain(f"{where}: ended with {status}: {bench.said.read_text()[-300:]}")
    bench.finish(findings, where, kept, *more)
