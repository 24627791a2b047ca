"""The index beside a journal: it spares reading, it never changes what is known of a row."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fastllm.jobs import index as module, journal as journal_module
from fastllm.jobs.frames import FAILED, OK
from fastllm.jobs.index import PAGE
from fastllm.jobs.journal import Entry, Identity, Journal, JournalError

JOB = Identity(fingerprint="f", model="m")


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small journals have an index too."""
    monkeypatch.setattr(module, "WORTH", 1)


def filled(path: Path, rows: range, state: int = OK) -> None:
    journal = Journal.open(path, JOB)
    for row in rows:
        journal.append(row, state == OK, row * 7, Entry(custom_id=f"r{row}", body=b"%d" % row))
    journal.close()


def index_of(path: Path) -> Path:
    return path.with_name(path.name + ".index")


def known(path: Path, *, without_index: bool = False) -> tuple[bytes, int, int, int | None]:
    if without_index:
        index_of(path).unlink(missing_ok=True)
    journal = Journal.open(path, JOB)
    try:
        states = bytes(journal.state(row) for row in range(3 * PAGE))
        for row in range(0, 3 * PAGE, 97):
            if states[row]:
                assert journal.check(row) == row * 7
                assert journal.read(row).body == b"%d" % row
        return states, journal.ok, journal.failed, journal.total
    finally:
        journal.close()


def test_a_journal_with_an_index_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    filled(path, range(PAGE + 10))
    starts: list[int] = []

    class Scan(journal_module.Scan):
        def __init__(self, fd: int, layout: object, size: int, start: int = 0) -> None:
            super().__init__(fd, layout, size, start)  # type: ignore[arg-type]
            starts.append(size - start)

    monkeypatch.setattr(journal_module, "Scan", Scan)
    with_index = known(path)
    assert starts == [0]
    assert with_index == known(path, without_index=True)
    assert starts[-1] > 1000
    assert with_index[1] == PAGE + 10


def test_what_came_after_the_index_is_read_from_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path, range(100), FAILED)
    old = index_of(path).read_bytes()
    filled(path, range(50, PAGE + 50))
    index_of(path).write_bytes(old)
    states, ok, failed, _ = known(path)
    assert (ok, failed) == (PAGE, 50)
    assert states[:50] == bytes([FAILED]) * 50 and states[50 : PAGE + 50] == bytes([OK]) * PAGE


def test_pages_newer_than_their_header_are_believed_only_as_far_as_the_journal_goes(tmp_path: Path) -> None:
    """A crash may leave the new pages, the old header, and a journal without its end."""
    path = tmp_path / "j"
    filled(path, range(100))
    header, size = index_of(path).read_bytes()[:4096], path.stat().st_size
    filled(path, range(100, 200))
    pages = index_of(path).read_bytes()[4096:]
    index_of(path).write_bytes(header + pages)
    os.truncate(path, size + 500)
    found = known(path)
    assert found == known(path, without_index=True)
    assert 100 < found[1] < 120
    # Others now lie where the lost rows were: what the index said of those must not come back.
    filled(path, range(300, 420))
    found = known(path)
    assert found == known(path, without_index=True)
    assert not any(found[0][150:300])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_index_changes_nothing_that_is_known(tmp_path: Path, place: int, bit: int) -> None:
    path = tmp_path / "j"
    if not path.exists():
        filled(path, range(0, 300, 3))
        filled(path, range(1, 300, 3), FAILED)
    index = index_of(path)
    if not index.exists():
        filled(path, range(301, 302))
    content = bytearray(index.read_bytes())
    content[place % len(content)] ^= 1 << bit
    index.write_bytes(content)
    found = known(path)
    assert found == known(path, without_index=True)


def test_another_journals_index_is_thrown_away(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    filled(one, range(10))
    filled(other, range(20, 40))
    index_of(one).write_bytes(index_of(other).read_bytes())
    assert known(one)[1] == 10


def test_an_index_is_left_behind_neither_by_a_new_journal_nor_by_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    filled(path, range(10))
    Journal.open(path, JOB, overwrite=True).close()
    assert not index_of(path).exists()
    monkeypatch.setattr(module, "WORTH", 10_000)
    filled(path, range(10))
    assert not index_of(path).exists()
    filled(path, range(10, 20))
    journal = Journal.open(path, JOB)
    journal.discard()
    assert list(tmp_path.iterdir()) == []


def test_rows_far_apart_go_through_the_file_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    path = tmp_path / "j"
    journal = Journal.open(path, JOB)
    rows = [page * PAGE + place for place in (1, 5, 4095) for page in (0, 3, 1, 2, 4)]
    for row in rows:
        journal.append(row, True, row * 7, Entry(body=b"%d" % row))
    journal.sync()
    assert [journal.read(row).body for row in rows] == [b"%d" % row for row in rows]
    assert [journal.check(row) for row in rows] == [row * 7 for row in rows]
    journal.close()
    again = Journal.open(path, JOB)
    assert again.ok == len(rows) and [again.read(row).body for row in rows] == [b"%d" % row for row in rows]
    again.close()


def test_damage_that_the_index_hid_is_found_and_the_row_runs_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path, range(50))
    journal = Journal.open(path, JOB)
    with path.open("r+b") as file:
        file.seek(journal._rows.offset(20) + 30)
        file.write(b"\xff\xff\xff")
    with pytest.raises(JournalError, match="damaged at row 20"):
        journal.read(20)
    journal.close()
    assert not index_of(path).exists()
    again = Journal.open(path, JOB)
    assert again.damaged == 1 and again.state(20) == 0 and again.ok == 49
    again.close()


def test_a_disk_that_does_not_take_the_index_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 1)
    path = tmp_path / "j"
    index_of(path).mkdir()  # whatever is in its way
    rows = [page * PAGE for page in range(4)]
    journal = Journal.open(path, JOB)
    for row in rows:
        journal.append(row, True, row * 7, Entry(body=b"%d" % row))
    journal.sync()
    assert [journal.read(row).body for row in rows] == [b"%d" % row for row in rows]
    journal.close()
    again = Journal.open(path, JOB)
    assert again.ok == 4
    again.close()


def test_a_long_run_is_covered_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one that is killed need not be read from its beginning."""
    monkeypatch.setattr(journal_module, "_CHECKPOINT", 2000)
    path = tmp_path / "j"
    journal = Journal.open(path, JOB, durability="full")
    for row in range(200):
        journal.append(row, True, row * 7, Entry(custom_id=f"r{row}", body=b"%d" % row))
        if row % 20 == 0:
            journal.sync()
    journal.sync()
    journal._join()
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    index_of(copy).write_bytes(index_of(path).read_bytes())
    journal.close()
    again = Journal.open(copy, JOB)
    assert again._covered > 2000 and again.ok == 200
    again.close()
