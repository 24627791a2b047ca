"""Journal: what it says was done was done, whatever happened to its bytes, and one process at a time holds it."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from fastllm.errors import ConfigError, JobConflictError
from fastllm.jobs import appender, frames
from fastllm.jobs.frames import FAILED, OK, Layout
from fastllm.jobs.journal import Durability, Entry, Identity, Journal, JournalError

JOB = Identity(fingerprint="abc", model="m")
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def entry(index: int, size: int = 50) -> Entry:
    return Entry(custom_id=f"id-{index}", line=index + 1, status=200, body=b"%d:" % index + b"x" * size)


def written(path: Path, count: int = 12, *, finish: bool = False, size: int = 50) -> None:
    journal = Journal.open(path, JOB, overwrite=True)
    for i in range(count):
        journal.append(i, i % 4 != 3, 1000 + i, entry(i, size))
    if finish:
        journal.finish(count)
    journal.close()


def checked(path: Path, count: int = 12) -> Journal:
    """Open, and compare every row that is there with what was written."""
    journal = Journal.open(path, JOB)
    for i in range(count):
        if journal.state(i):
            assert journal.state(i) == (FAILED if i % 4 == 3 else OK)
            assert journal.check(i) == 1000 + i
            read = journal.read(i)
            assert read.custom_id == f"id-{i}"
            assert read.body.startswith(b"%d:" % i)
    assert journal.state(count) == 0
    return journal


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_round_trip(tmp_path: Path, durability: Durability) -> None:
    """What was appended is there when opened again: states, counts, the total and every field."""
    path = tmp_path / "o.journal"
    journal = Journal.open(path, JOB, durability=durability)
    rich = Entry(
        custom_id="ü",
        line=3,
        status=200,
        request_id="req",
        body=b'{"a":1}',
        prompt_tokens=4,
        completion_tokens=5,
        attempts=2,
        cached=True,
        endpoint="e",
        finish_reason="stop",
    )
    failed = Entry(custom_id=None, error={"code": "x", "n": [1, None]}, source=b"\xff{")
    journal.append(5, True, 7, rich)
    journal.append(2, False, 8, failed)
    journal.append(1000, True, 9, entry(1000))
    journal.finish(1001)
    journal.sync()
    assert journal.read(5) == rich
    assert "2 ok, 1 failed" in repr(journal)
    journal.close()
    journal.close()
    again = Journal.open(path, JOB)
    assert (again.ok, again.failed, again.total, again.damaged, again.torn_bytes) == (2, 1, 1001, 0, 0)
    assert [i for i in range(1100) if again.state(i)] == [2, 5, 1000]
    assert again.read(5) == rich
    assert again.read(2) == failed
    again.append(2, True, 8, entry(2))  # tried again, and well this time
    again.finish(1001)
    again.close()
    last = Journal.open(path, JOB)
    assert (last.ok, last.failed, last.state(2)) == (3, 0, OK)
    assert last.read(2) == entry(2)
    last.append(2, False, 8, failed)
    assert (last.ok, last.failed) == (2, 1)
    last.close()


def test_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "o.journal"
    written(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@SETTINGS
@given(cut=st.integers(0, 3000))
def test_any_truncation_leaves_a_valid_prefix(tmp_path: Path, cut: int) -> None:
    """Cut anywhere, the rows before the cut are there, unchanged, and the journal goes on."""
    path = tmp_path / "o.journal"
    written(path, finish=True)
    size = path.stat().st_size
    os.truncate(path, min(cut, size))
    journal = checked(path)
    rows = [i for i in range(12) if journal.state(i)]
    assert rows == list(range(len(rows)))
    assert journal.damaged == 0
    journal.append(11, False, 1011, entry(11))
    journal.close()
    again = checked(path)
    assert again.state(11) == FAILED
    again.close()


@SETTINGS
@given(data=st.data())
def test_any_flip_damages_one_row_at_most(tmp_path: Path, data: st.DataObject) -> None:
    """One wrong byte: no exception, no wrong row, at most one row lost, and it is counted."""
    path = tmp_path / "o.journal"
    written(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    journal = checked(path)
    missing = [i for i in range(12) if not journal.state(i)]
    assert len(missing) <= 1
    assert bool(missing) == bool(journal.damaged or journal.torn_bytes)
    if missing:
        journal.append(missing[0], missing[0] % 4 != 3, 1000 + missing[0], entry(missing[0]))
    journal.close()
    again = checked(path)
    assert again.ok + again.failed == 12
    again.close()


@SETTINGS
@given(
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=200)), max_size=4),
    tail=st.binary(max_size=300),
    zeros=st.integers(0, 9000),
)
@example(damage=[], tail=b"", zeros=8192)
def test_any_damage_after_the_header(
    tmp_path: Path, damage: list[tuple[float, bytes]], tail: bytes, zeros: int
) -> None:
    """Overwritten places, garbage and zeroed pages at the end: what is left is right, and reading ends."""
    path = tmp_path / "o.journal"
    written(path)
    content = bytearray(path.read_bytes())
    start = len(frames.new_layout(b"").header()) and 200
    for where, what in damage:
        at = start + int(where * (len(content) - start))
        content[at : at + len(what)] = what[: len(content) - at]
    path.write_bytes(bytes(content) + tail + bytes(zeros))
    try:
        checked(path).close()
    except JobConflictError as error:  # both headers hit
        assert "header" in str(error)


def test_a_frame_inside_a_row_is_no_frame(tmp_path: Path) -> None:
    """A row whose content is another journal's frames, or its own ones moved, cannot pass for rows after damage."""
    path = tmp_path / "o.journal"
    journal = Journal.open(path, JOB)
    layout: Layout = journal._layout
    at = journal._end
    fakes = b"".join(layout.frame(at + shift, 7, OK, 0, b"") for shift in range(0, 2000, 41))
    journal.append(0, True, 0, Entry(body=fakes))
    journal.append(1, True, 0, entry(1))
    journal.close()
    content = bytearray(path.read_bytes())
    content[at + 8] ^= 1  # the outer frame's checksum
    path.write_bytes(content)
    again = Journal.open(path, JOB)
    assert again.damaged >= 1
    assert again.state(0) == 0
    assert again.state(1) == OK
    again.close()


def test_large_rows(tmp_path: Path) -> None:
    """Rows larger than the chunks in which the file is read, whole and damaged."""
    path = tmp_path / "o.journal"
    written(path, 4, size=1_500_000)
    checked(path, 4).close()
    content = bytearray(path.read_bytes())
    content[2_000_000] ^= 1
    path.write_bytes(content)
    journal = checked(path, 4)
    assert (journal.ok + journal.failed, journal.damaged) == (3, 1)
    journal.close()


def test_damage_found_while_reading_back(tmp_path: Path) -> None:
    path = tmp_path / "o.journal"
    written(path)
    journal = Journal.open(path, JOB)
    with path.open("r+b") as file:
        file.seek(journal._rows.offset(4) + 40)
        file.write(b"\0\0\0\0\0\0")
    with pytest.raises(JournalError, match="damaged at row 4"):
        journal.read(4)
    journal.close()


def test_another_job_is_refused_with_the_difference(tmp_path: Path) -> None:
    """The message names what differs and the ways out; overwrite starts anew."""
    path = tmp_path / "o.journal"
    written(path)
    other = Identity(fingerprint="xyz", model="n" * 100, params={"temperature": 0})
    with pytest.raises(JobConflictError) as found:
        Journal.open(path, other)
    for part in ("the input's content", 'model "m" -> "nnn', "params {} ->", "overwrite=True", "another output"):
        assert part in str(found.value)
    journal = Journal.open(path, other, overwrite=True)
    assert journal.ok == 0
    journal.close()
    Journal.open(path, other).close()


def test_newer_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A journal of a later version, a damaged header, and a file that is none: each says so and is left alone."""
    path = tmp_path / "o.journal"
    path.write_bytes(Layout(b"abcd", 1, b"future", frames.VERSION + 1).header())
    with pytest.raises(JobConflictError, match=r"newer FastLLM .journal version 2, this one knows 1"):
        Journal.open(path, JOB)
    written(path)
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    content[content.find(frames.MAGIC, 1) + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(JobConflictError, match=r"header of .* is damaged"):
        Journal.open(path, JOB)
    Journal.open(path, JOB, overwrite=True).close()
    path.write_bytes(Layout(b"abcd", 1, b"\xff not msgpack").header())
    with pytest.raises(JobConflictError, match="cannot be read"):
        Journal.open(path, JOB)
    path.write_text("my diary")
    for overwrite in (False, True):
        with pytest.raises(JobConflictError, match="not a FastLLM journal"):
            Journal.open(path, JOB, overwrite=overwrite)
    assert path.read_text() == "my diary"
    path.write_bytes(bytes(4096))  # a file whose pages never reached the disk
    Journal.open(path, JOB).close()


@pytest.mark.parametrize("kept", [{1}, {0}, {0, 2}, {1, 2}, {2}, {0, 1}])
@pytest.mark.parametrize("size", [1536, 2048, None])
def test_the_power_failed_while_the_header_was_written(tmp_path: Path, kept: set[int], size: int | None) -> None:
    """Sectors of it are missing, in any order: no row was in it, so it is started anew and not called damaged."""
    path = tmp_path / "o.journal"
    identity = msgspec.structs.replace(JOB, system="be kind " * 40)
    journal = Journal.open(path, identity)
    whole = path.read_bytes()
    journal.discard()
    found = bytearray(len(whole))
    for sector in kept:
        found[sector * 1024 : (sector + 1) * 1024] = whole[sector * 1024 : (sector + 1) * 1024]
    path.write_bytes(found[:size])
    journal = Journal.open(path, identity)
    assert (journal.ok, journal.failed) == (0, 0)
    journal.append(0, True, 0, entry(0))
    journal.close()
    again = Journal.open(path, identity)
    assert again.ok == 1
    again.close()


def test_a_damaged_header_of_rows_is_never_started_anew(tmp_path: Path) -> None:
    """However much both of its copies are damaged, a file with rows behind them is kept."""
    path = tmp_path / "o.journal"
    written(path)
    whole = path.read_bytes()
    half = whole.find(frames.MAGIC, 1)
    for first, second in ((20, half + 20), (12, half + 12), (14, half + 20), (0, half + 20), (20, half)):
        damaged = bytearray(whole)
        damaged[first] ^= 0x7F
        damaged[second] ^= 0x7F
        path.write_bytes(damaged)
        with pytest.raises(JobConflictError):
            Journal.open(path, JOB)
        assert path.read_bytes() == damaged


def test_places_that_cannot_hold_a_journal(tmp_path: Path) -> None:
    """Links are not followed; directories, missing ones and read-only files are one clear error."""
    target = tmp_path / "target"
    link = tmp_path / "link.journal"
    link.symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        Journal.open(link, JOB)
    assert not target.exists()
    with pytest.raises(ConfigError, match="cannot write"):
        Journal.open(tmp_path / "missing" / "o.journal", JOB)
    with pytest.raises(ConfigError, match="cannot write"):
        Journal.open(tmp_path, JOB)
    with pytest.raises(ConfigError, match="durability"):
        Journal.open(tmp_path / "o.journal", JOB, durability="sometimes")  # type: ignore[arg-type]
    if Path("/dev/null").exists():
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(ConfigError, match="no regular file"):
            Journal.open(tmp_path / "fifo", JOB)


def test_the_second_one_is_refused_at_once(tmp_path: Path) -> None:
    """The lock refuses in well under a second, and is free when the holder closes or dies."""
    path = tmp_path / "o.journal"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from fastllm.jobs.journal import *\n"
            f"j = Journal.open(Path({str(path)!r}), Identity(fingerprint='abc', model='m'))\n"
            "j.append(0, True, 1000, Entry(custom_id='id-0', body=b'0:')); j.sync(); print('held', flush=True)\n"
            "sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    for overwrite in (False, True):
        began = time.monotonic()
        with pytest.raises(JobConflictError, match="in use"):
            Journal.open(path, JOB, overwrite=overwrite)
        assert time.monotonic() - began < 1
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    journal = checked(path)
    assert journal.ok == 1
    with pytest.raises(JobConflictError, match="in use"):
        Journal.open(path, JOB)
    journal.close()


def test_replaced_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file is replaced or removed just then, the lock is taken on the one that has the name."""
    path = tmp_path / "o.journal"
    written(path)
    real = frames.os.open
    calls = 0

    def open_and_replace(name: object, flags: int, mode: int = 0o777) -> int:
        nonlocal calls
        fd = real(name, flags, mode)  # type: ignore[arg-type]
        if name == path:
            calls += 1
            if calls == 1:
                path.unlink()
            elif calls == 2:
                written_elsewhere = tmp_path / "new"
                written_elsewhere.write_bytes(b"")
                written_elsewhere.replace(path)
        return fd

    monkeypatch.setattr("fastllm.jobs.journal.os.open", open_and_replace)
    journal = Journal.open(path, JOB)
    assert calls == 3
    assert os.path.samestat(os.fstat(journal._fd), path.stat())
    journal.close()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow over 64 KiB: a full disk for everything this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_and_nothing_is_torn(tmp_path: Path, small_files: None) -> None:
    """Once a write failed, appending fails; what was written before is whole, and the rest runs again."""
    path = tmp_path / "o.journal"
    journal = Journal.open(path, JOB)
    with pytest.raises(JournalError, match=r"cannot write .*run it again"):
        for i in range(1000):
            journal.append(i, i % 4 != 3, 1000 + i, entry(i, 500))
            if i % 20 == 0:
                journal.sync()
    with pytest.raises(JournalError):
        journal.sync()
    with pytest.raises(JournalError):
        journal.append(1, True, 0, entry(1))
    assert "failed" in repr(journal._appender)
    journal.close()
    again = checked(path, 1000)
    rows = again.ok + again.failed
    assert 80 < rows < 130
    assert all(again.state(i) for i in range(rows))
    again.close()


def test_a_full_disk_at_the_header(tmp_path: Path) -> None:
    """A journal that could not even be begun is a ConfigError, and can be begun later."""
    path = tmp_path / "o.journal"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        with pytest.raises(ConfigError, match="cannot write"):
            Journal.open(path, JOB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    Journal.open(path, JOB).close()


def test_a_failed_sync_is_never_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO at fdatasync: the failure is final, a later sync that would succeed is not even tried."""
    calls = 0

    def failing(fd: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(appender, "_sync", failing)
    journal = Journal.open(tmp_path / "o.journal", JOB)
    journal.append(0, True, 0, entry(0))
    with pytest.raises(JournalError, match="Input/output error"):
        journal.sync()
    monkeypatch.setattr(appender, "_sync", lambda fd: None)
    with pytest.raises(JournalError):
        journal.sync()
    assert journal.failure is not None
    journal.close()
    assert calls == 1


def test_durability_bounds_the_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`full` syncs within 20 ms of an append, by itself; many appends share one sync."""
    synced: list[float] = []
    monkeypatch.setattr(appender, "_sync", lambda fd: synced.append(time.monotonic()))
    journal = Journal.open(tmp_path / "o.journal", JOB, durability="full")
    began = time.monotonic()
    for i in range(500):
        journal.append(i, True, 0, entry(i))
    while not synced and time.monotonic() - began < 2:
        time.sleep(0.002)
    assert synced
    assert synced[0] - began < 0.2  # 20 ms, and the mercy of a busy machine
    journal.close()
    assert len(synced) <= 5
    assert "closed" in repr(journal._appender)


def test_what_was_appended_survives_kill_at_once(tmp_path: Path) -> None:
    """Without any sync, an append is with the system within milliseconds, so SIGKILL loses it no more."""
    path = tmp_path / "o.journal"
    code = (
        "import os, signal, time; from pathlib import Path; from fastllm.jobs.journal import *\n"
        f"j = Journal.open(Path({str(path)!r}), Identity(fingerprint='abc', model='m'))\n"
        "for i in range(40): j.append(i, i % 4 != 3, 1000 + i, Entry(custom_id=f'id-{i}', body=b'%d:' % i))\n"
        "time.sleep(0.1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    journal = checked(path, 40)
    assert journal.ok + journal.failed == 40
    journal.close()


def test_a_look_at_the_lock_stops_no_run(tmp_path: Path) -> None:
    """`fastllm jobs list` tries the lock of a job, for a moment; a run that begins in it waits that long."""
    path = tmp_path / "out.jsonl.journal"
    Journal.open(path, JOB).close()
    with path.open("rb") as looked:
        fcntl.flock(looked, fcntl.LOCK_SH)
        timer = threading.Timer(0.03, fcntl.flock, (looked.fileno(), fcntl.LOCK_UN))
        timer.start()
        Journal.open(path, JOB).close()
        timer.join()
