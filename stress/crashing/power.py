"""Power: jobs are recorded call by call, and every moment of them is a power loss of which many ends are drawn.

Of each end the journal is opened: what a returned fsync covered is there and right, whatever else is there is right,
too, and output and manifest are whole or not there. Some of the ends are run to the end of their job.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from fastllm.errors import FastLLMError
from fastllm.jobs import index, journal as journals
from fastllm.jobs.frames import OK
from fastllm.jobs.journal import Entry, Identity, Journal
from fastllm.jobs.manifest import manifest_path, read_manifest
from fastllm.jobs.recorded import Recorded

from .bench import Bench, ended, forked, scratch
from .disk import Disk
from .findings import Findings, normal
from .hooks import Call, Perform, hook

ROWS = 50
SECTORS = (512, 4096)
DRAWS = 4  # at a time, of each moment and sector
STALE = 40  # rounds over all moments without a new state: there are no more
JOB = Identity(fingerprint="f", model="m")  # of the journals that are written without one
OUTPUT, JOURNAL = "out.jsonl", "out.jsonl.journal"


class Recorder:
    """Writes down each call; kills the process in the middle of the write after `most` calls."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._left = most
        self._write = os.write

    def __call__(self, call: Call, perform: Perform) -> Any:
        if self._left is not None:
            self._left -= 1
            if self._left < 0 and call.name == "write":
                call.data = call.data[: len(call.data) // 2]
                perform(call.data)
                self._note(call)
                os.kill(os.getpid(), signal.SIGKILL)
        result = perform()
        if call.name == "write":
            call.data = call.data[:result]
        self._note(call)
        return result

    def _note(self, call: Call) -> None:
        packed = msgspec.msgpack.encode(call)
        self._write(self._fd, len(packed).to_bytes(4, "little") + packed)


class Recording(msgspec.Struct):
    """What a job did to its files, and what it came to: of each row its id and body, and the whole output, if any."""

    name: str
    calls: list[Call]
    identity: Identity
    rows: dict[int, tuple[str | None, bytes]]
    output: bytes | None = None


def power_losses(states: int, seed: int, *, resumed: int) -> Findings:
    """Draw so many different states over all jobs and moments, and judge each; run some to their end."""
    findings = Findings("power")
    rng = random.Random(seed)
    with Bench(ROWS, durability="full") as full, Bench(ROWS) as usual, scratch() as folder:
        of_bench = [
            (full, _of_job(full, "full")),
            (full, _of_killed_job(full, "full, killed")),
            (usual, _of_job(usual, "normal")),
            (usual, _of_killed_job(usual, "normal, killed")),
        ]
        made = [_of_index(), *(recording for _, recording in of_bench)]
        for number, recording in enumerate(made):  # those with `full` have fewer states: the last ones make up for it
            judge(recording, findings, rng, (states - findings.states) // (len(made) - number), folder)
        for bench, recording in of_bench:
            _run_to_the_end(bench, recording, findings, rng, resumed // len(of_bench))
    return findings


def judge(recording: Recording, findings: Findings, rng: random.Random, states: int, folder: Path) -> None:
    """Draw so many different states of one job, spread over its moments, and judge each."""
    seen: set[int] = set()
    stale = 0
    while len(seen) < states and stale < STALE:
        before = len(seen)
        disk, promised = Disk(), set[int]()
        for number in range(len(recording.calls) + 1):
            for sector in SECTORS[:1] if disk.is_settled else SECTORS * DRAWS:
                found = disk.crash(rng, sector)
                mark = hash((number, tuple(sorted(found.items()))))
                if mark not in seen:
                    seen.add(mark)
                    _judge(recording, findings, found, promised, folder, f"{recording.name}, before call {number}")
            if len(seen) >= states:
                break
            if number < len(recording.calls):
                call = recording.calls[number]
                disk.take(call)
                if call.name == "sync":
                    promised |= _rows_in(disk.safe(JOURNAL), folder)
        stale = 0 if len(seen) > before else stale + 1
    findings.states += len(seen)


def _judge(
    recording: Recording, findings: Findings, found: dict[str, bytes], promised: set[int], folder: Path, where: str
) -> None:
    _lay_out(folder, found)
    broken = findings.broken
    try:
        with _opened(folder / JOURNAL, recording.identity) as journal:
            there = _right_rows(journal, recording, findings)
            is_whole, again = journal.ok == len(recording.rows), None
            findings.note("with skipped places", journal.damaged > 0)
        with _opened(folder / JOURNAL, recording.identity) as journal:
            again = {row for row in recording.rows if journal.state(row)}
        findings.wrong += again != there
        findings.lost += len(promised - there)
        _judge_output(recording, findings, folder, is_whole=is_whole)
    except FastLLMError as error:
        findings.wrong += 1
        findings.complain(f"{where}: {error}")
    if findings.broken > broken:
        findings.complain(f"{where}: {len(promised)} rows were safe; found: { {k: len(v) for k, v in found.items()} }")


def _right_rows(journal: Journal, recording: Recording, findings: Findings) -> set[int]:
    """Give the rows that a journal says are done; count those that are not what they were."""
    there = {row for row, state in enumerate(journal.states) if state}
    for row in there:
        entry = journal.read(row)
        findings.wrong += (entry.custom_id, entry.body) != recording.rows.get(row) or journal.state(row) != OK
    return there


def _judge_output(recording: Recording, findings: Findings, folder: Path, *, is_whole: bool) -> None:
    output = folder / OUTPUT
    if recording.output is None:
        return
    if output.exists():
        findings.torn += normal(output.read_bytes()) != normal(recording.output)
        findings.lost += not is_whole  # it was published, so every row had to be safe
    read_manifest(manifest_path(output))


def _lay_out(folder: Path, found: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, content in found.items():
        (folder / name).write_bytes(content)


@contextmanager
def _opened(path: Path, identity: Identity) -> Iterator[Journal]:
    journal = Journal.open(path, identity)
    try:
        yield journal
    finally:
        journal.close()


def _rows_in(content: bytes | None, folder: Path) -> set[int]:
    """Give the rows in a journal that is whole."""
    if content is None:
        return set()
    path = folder / "safe"
    path.write_bytes(content)
    with Recorded(path) as journal:
        found = {row for row in range(journal.rows) if journal.state(row)}
    path.unlink()
    return found


# The jobs


def _of_job(bench: Bench, name: str) -> Recording:
    """A job from its beginning to its end."""
    return _recorded(bench, name, None)


def _of_killed_job(bench: Bench, name: str) -> Recording:
    """A job that is killed in the middle of a write, and the run that recovers, cuts the tail off and goes on."""
    return _recorded(bench, name, 16)


def _recorded(bench: Bench, name: str, most: int | None) -> Recording:
    bench.expected()
    bench.clear()
    log = bench.folder.with_name("calls")
    log.unlink(missing_ok=True)
    if most is not None:
        bench.run(lambda: hook(bench.folder, Recorder(log, most)))
    status = bench.run(lambda: hook(bench.folder, Recorder(log)))
    if status:
        raise SystemExit(f"the recorded run ended with {status}: {bench.said.read_text()}")
    return _as_recording(name, log, bench.folder)


def _as_recording(name: str, log: Path, folder: Path) -> Recording:
    with Recorded(folder / JOURNAL) as journal:
        identity = journal.identity
        entries = {row: journal.read(row) for row in range(journal.rows) if journal.state(row)}
    assert identity is not None
    output = folder / OUTPUT
    return Recording(
        name=name,
        calls=list(recorded_calls(log.read_bytes())),
        identity=identity,
        rows={row: (entry.custom_id, entry.body) for row, entry in entries.items()},
        output=output.read_bytes() if output.exists() else None,
    )


def recorded_calls(log: bytes) -> Iterator[Call]:
    decode: Callable[[bytes], Call] = msgspec.msgpack.Decoder(Call).decode
    at = 0
    while at < len(log):
        size = int.from_bytes(log[at : at + 4], "little")
        yield decode(log[at + 4 : at + 4 + size])
        at += 4 + size


def _of_index() -> Recording:
    """A journal whose index covers it again and again, over three runs."""
    root = Path(tempfile.mkdtemp(prefix="fastllm-crash-"))
    folder = root / "job"
    folder.mkdir()
    try:
        for run in range(3):
            pid = forked(lambda run=run: write_with_index(folder, run, root / "calls"), root / "said")  # type: ignore[misc]
            if status := ended(pid):
                raise SystemExit(f"the recorded journal ended with {status}: {(root / 'said').read_text()}")
        return _as_recording("index", root / "calls", folder)
    finally:
        shutil.rmtree(root)


def write_with_index(folder: Path, run: int, log: Path, apart: int = 700) -> None:
    """Append rows to a journal whose index is written from the first row on, and after each KB; the rows lie so far
    apart."""
    index.WORTH, journals._CHECKPOINT, index.KEPT = 1, 1024, 2  # as if it were a large job
    hook(folder, Recorder(log))
    journal = Journal.open(folder / JOURNAL, JOB, durability="full")
    for i in range(12):
        row = (i * 3 + run) * apart
        journal.append(row, True, crc32(b"%d" % row), Entry(custom_id=f"q{row}", body=b"%d " % row * 60))
        if i % 4 == 3:
            journal.sync()
    if run == 2:
        journal.finish(36 * apart)
    journal.close()


def _run_to_the_end(bench: Bench, recording: Recording, findings: Findings, rng: random.Random, count: int) -> None:
    """Draw states and run the job to its end from there."""
    for _ in range(count):
        moment = rng.randint(0, len(recording.calls))
        disk = Disk()
        for call in recording.calls[:moment]:
            disk.take(call)
        bench.clear()
        _lay_out(bench.folder, disk.crash(rng, rng.choice(SECTORS)))
        where = f"{recording.name}, power lost before call {moment}"
        bench.finish(findings, where, bench.look(findings, where))
    findings.note("run to their end", count)
