"""Crashes: the short form of stress/crash.py holds, and its judges notice what is broken."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import pytest

from crashing import power
from crashing.disk import Disk
from crashing.findings import Findings
from crashing.hooks import Call
from crashing.power import JOB, JOURNAL, OUTPUT, Recording, judge
from fastllm.jobs.index import Note, RowIndex
from fastllm.jobs.journal import Entry, Journal

ROOT = Path(__file__).parents[2]
LINES = [b'{"custom_id":"q%d","response":{"request_id":"req_%016x"}}\n' % (i, i) for i in range(5)]


@pytest.mark.parametrize("trial", ["kills", "points", "faults", "power", "traced", "flips", "races", "signals"])
def test_short_form(trial: str) -> None:
    """Nothing is lost, doubled, torn, wrong or asked again; the seed is among what is printed."""
    command = [sys.executable, str(ROOT / "stress" / "crash.py"), "--quick", "--seed", "20261123", "--only", trial]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    states = re.search(r"(\d+) states", done.stdout)
    assert states is not None and int(states[1]) > 0
    assert "0 lost, 0 duplicate, 0 torn, 0 wrong, 0 asked twice" in done.stdout


# The judges


@pytest.mark.parametrize(
    ("got", "counts"),
    [
        (LINES, (0, 0, 0, 0)),
        (LINES[:4], (1, 0, 0, 0)),
        ([*LINES, LINES[2]], (0, 1, 0, 0)),
        ([*LINES, LINES[2][:20]], (0, 0, 1, 0)),
        ([*LINES[:4], LINES[4].replace(b"}}", b',"x":1}}')], (0, 0, 0, 1)),
        ([LINES[1], LINES[0], *LINES[2:]], (0, 0, 0, 1)),
    ],
)
def test_outputs_are_told_apart(tmp_path: Path, got: list[bytes], counts: tuple[int, ...]) -> None:
    """Lost, duplicate, torn and wrong rows are counted as what they are; request ids make no difference."""
    output = tmp_path / "out.jsonl"
    output.write_bytes(b"".join(got))
    findings = Findings("t")
    findings.compare(b"".join(LINES).replace(b"req_0", b"req_f"), output, "here")
    assert (findings.lost, findings.duplicate, findings.torn, findings.wrong) == counts
    assert bool(findings.complaints) == any(counts)


def recording(tmp_path: Path) -> Recording:
    """A journal of six rows, synced after four, and an output that is published by the rules."""
    path = tmp_path / JOURNAL
    journal = Journal.open(path, JOB)
    begin = path.stat().st_size
    rows = {}
    sizes = []
    for row in range(6):
        rows[row] = (f"q{row}", b"%d " % row * 400)
        journal.append(row, True, crc32(b"%d" % row), Entry(custom_id=rows[row][0], body=rows[row][1]))
        journal.sync()
        sizes.append(path.stat().st_size)
    journal.close()
    whole = path.read_bytes()
    partial = f".{OUTPUT}.partial"
    calls = [
        Call("create", JOURNAL),
        Call("write", JOURNAL, data=whole[:begin]),
        Call("sync", JOURNAL),
        Call("sync", ""),
        Call("write", JOURNAL, at=begin, data=whole[begin : sizes[3]]),
        Call("sync", JOURNAL),
        Call("write", JOURNAL, at=sizes[3], data=whole[sizes[3] :]),
        Call("sync", JOURNAL),
        Call("create", partial),
        Call("write", partial, data=b"".join(LINES * 40)),
        Call("sync", partial),
        Call("rename", partial, target=OUTPUT),
        Call("sync", ""),
    ]
    return Recording(name="r", calls=calls, identity=JOB, rows=rows, output=b"".join(LINES * 40))


def judged(found: Recording, folder: Path) -> Findings:
    findings = Findings("t")
    folder.mkdir(exist_ok=True)
    judge(found, findings, random.Random(3), 150, folder)
    assert findings.states >= 100
    return findings


def test_a_power_loss_that_keeps_the_rules_is_right(tmp_path: Path) -> None:
    assert judged(recording(tmp_path), tmp_path / "f").broken == 0


def test_a_journal_that_forgets_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was safe and is not there is lost."""
    found = recording(tmp_path)
    note = RowIndex.note

    def forgetful(self: RowIndex, rows: Iterable[Note]) -> None:
        note(self, (row for row in rows if row[0] != 2))

    monkeypatch.setattr(RowIndex, "note", forgetful)
    assert judged(found, tmp_path / "f").lost > 0


def test_a_row_that_changed_is_noticed(tmp_path: Path) -> None:
    found = recording(tmp_path)
    found.rows[1] = ("q1", b"another")
    assert judged(found, tmp_path / "f").wrong > 0


def test_an_output_named_before_it_is_safe_is_noticed(tmp_path: Path) -> None:
    """Without the fsync before the rename there are states with a torn output."""
    found = recording(tmp_path)
    found.calls = [call for call in found.calls if call != Call("sync", f".{OUTPUT}.partial")]
    assert judged(found, tmp_path / "f").torn > 0


def test_an_output_before_its_rows_are_safe_is_noticed(tmp_path: Path) -> None:
    """Without the journal's last fsync there are states with an output and too few rows."""
    found = recording(tmp_path)
    del found.calls[7]
    assert judged(found, tmp_path / "f").lost > 0


def test_only_what_was_synced_is_safe() -> None:
    """Of a file: none of what was written since, any sectors of it, or all; a name only after the folder's fsync."""
    disk, rng = Disk(), random.Random(1)
    for call in (Call("create", "a"), Call("write", "a", data=b"x" * 512), Call("sync", "a")):
        disk.take(call)
    assert {tuple(disk.crash(rng, 512)) for _ in range(50)} == {(), ("a",)}
    disk.take(Call("sync", ""))
    assert disk.is_settled and disk.safe("a") == b"x" * 512
    disk.take(Call("write", "a", at=512, data=b"y" * 1024))
    found = {disk.crash(rng, 512)["a"] for _ in range(300)}
    first, second, zeros = b"y" * 512, b"y" * 512, bytes(512)
    ends = (b"", first, first + second, zeros + second, first + zeros, zeros + zeros)
    assert found == {b"x" * 512 + end for end in ends}
    disk.take(Call("rename", "a", target="b"))
    assert {tuple(disk.crash(rng, 4096)) for _ in range(50)} == {("a",), ("b",)}
    disk.take(Call("unlink", "b"))
    assert {tuple(disk.crash(rng, 4096)) for _ in range(100)} == {("a",), ("b",), ()}


def test_the_index_is_part_of_the_trial(tmp_path: Path) -> None:
    """The recorded journal has an index, which was written more than once."""
    log = tmp_path / "calls"
    folder = tmp_path / "job"
    folder.mkdir()
    program = (
        "import sys; from pathlib import Path; from crashing.power import write_with_index as w;"
        "w(Path(sys.argv[1]), 0, Path(sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("src", "stress"))}
    subprocess.run([sys.executable, "-c", program, str(folder), str(log)], check=True, env=environment)
    calls = power.recorded_calls(log.read_bytes())
    assert sum(call.name == "sync" and call.path == JOURNAL + ".index" for call in calls) >= 4
