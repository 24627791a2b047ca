"""Flips: a small journal and its index, damaged at every byte; no row may become another one, and none fail to open."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from fastllm.errors import FastLLMError
from fastllm.jobs.frames import OK
from fastllm.jobs.journal import Entry, Journal

from .bench import ended, forked, scratch
from .findings import Findings
from .power import JOB, JOURNAL, write_with_index

ROWS = 8
INDEX = JOURNAL + ".index"
Row = tuple[int, int, Entry]  # state, check and what is recorded


def every_byte(*, seed: int, quick: bool) -> Findings:
    """Flip every bit of the journal and one bit of every byte of the index; in the short form some of them."""
    findings = Findings("flips")
    rng = random.Random(seed)
    with scratch() as folder:
        _make(folder, write_small)
        _flip(findings, folder, JOURNAL, rng, quick=quick)
    with scratch() as folder, scratch() as aside:
        _make(folder, lambda folder: write_with_index(folder, 0, aside / "calls", apart=1))
        _flip(findings, folder, INDEX, rng, quick=quick)
    return findings


def write_small(folder: Path) -> None:
    """Write a journal of a whole job, every fourth row failed."""
    journal = Journal.open(folder / JOURNAL, JOB)
    for row in range(ROWS):
        entry = Entry(custom_id=f"q{row}", body=b"%d " % row * 9, error={"code": "no"} if row % 4 == 3 else None)
        journal.append(row, row % 4 != 3, crc32(b"%d" % row), entry)
    journal.finish(ROWS)
    journal.close()


def _make(folder: Path, work: Callable[[Path], None]) -> None:
    with scratch() as aside:
        said = aside / "said"
        if status := ended(forked(lambda: work(folder), said)):
            raise SystemExit(f"writing a journal ended with {status}: {said.read_text()}")


def _flip(findings: Findings, folder: Path, name: str, rng: random.Random, *, quick: bool) -> None:
    files = {path: path.read_bytes() for path in folder.iterdir()}
    path = folder / name
    content = files[path]
    rows = _rows(folder)
    places = range(len(content)) if not quick else sorted(rng.sample(range(len(content)), 200))
    for place in places:
        for bit in range(8) if name == JOURNAL and not quick else (rng.randrange(8),):
            for other, whole in files.items():
                other.write_bytes(whole)
            with path.open("r+b") as file:
                file.seek(place)
                file.write(bytes([content[place] ^ 1 << bit]))
            findings.states += 1
            _judge(findings, folder, rows, f"bit {bit} of byte {place} of {name}", may_lose=name == JOURNAL)


def _rows(folder: Path) -> dict[int, Row]:
    journal = Journal.open(folder / JOURNAL, JOB)
    try:
        return {row: (journal.state(row), journal.check(row), journal.read(row)) for row in _done(journal)}
    finally:
        journal.close()


def _done(journal: Journal) -> list[int]:
    return [row for row, state in enumerate(journal.states) if state]


def _judge(findings: Findings, folder: Path, rows: dict[int, Row], where: str, *, may_lose: bool) -> None:
    """One row at most runs again, and only where the journal itself is damaged, which it says."""
    broken = findings.broken
    try:
        journal = Journal.open(folder / JOURNAL, JOB)
        try:
            there = {row: (journal.state(row), journal.check(row), journal.read(row)) for row in _done(journal)}
            missing = len(rows.keys() - there.keys())
            findings.wrong += sum(rows.get(row) != found for row, found in there.items())
            findings.lost += missing if missing > may_lose or not (journal.damaged or journal.torn_bytes) else 0
            findings.wrong += (journal.ok, journal.failed) != (
                sum(state == OK for state, *_ in there.values()),
                sum(state != OK for state, *_ in there.values()),
            )
            findings.note("rows to run again", missing)
        finally:
            journal.close()
    except (FastLLMError, OSError, ValueError) as error:
        findings.wrong += 1
        findings.complain(f"{where}: {type(error).__name__}: {error}")
    if findings.broken > broken:
        findings.complain(f"{where}: a row is lost, or not what it was")
