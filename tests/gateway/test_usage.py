"""Usage: every request is in exactly one sum, nobody waits for the disk, and no prompt is anywhere."""

from __future__ import annotations

import datetime
import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastllm.errors import ConfigError, OverloadedError
from fastllm.gateway import usage as room
from fastllm.gateway.usage import UsageLog, UsageRecord

DAWN = 1_800_057_600.0  # 2027-01-16, 00:00 UTC


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.sqlite3"


@pytest.fixture
def log(path: Path) -> Iterator[UsageLog]:
    log = UsageLog(path, wall=lambda: DAWN + 5)
    yield log
    log.close()


def record(**fields: Any) -> UsageRecord:
    given = {"key": "key-1", "model": "m", "endpoint": "openai/m", "prompt_tokens": 10, "completion_tokens": 5}
    return UsageRecord(**{**given, "cost_usd": 0.25, "seconds": 2.0, **fields})


def test_sums_by_any_of_day_key_model_and_endpoint(log: UsageLog) -> None:
    log.add(record(cached_tokens=4))
    log.add(record(status=429, cost_usd=0.0))
    log.add(record(key="key-2", cached=True, cost_usd=0.0))
    log.add(record(model="n", cost_usd=None))
    log.add(record(time=DAWN - 1, cost_usd=4.0))
    total = log.query(by=[])
    assert len(total) == 1 and (total[0].requests, total[0].cost_usd, total[0].seconds) == (5, 4.25, 10.0)
    assert (total[0].errors, total[0].cached, total[0].unpriced, total[0].cached_tokens) == (1, 1, 1, 4)
    assert (total[0].prompt_tokens, total[0].completion_tokens, total[0].day) == (50, 25, None)
    assert [(row.key, row.requests) for row in log.query(by=["key"])] == [("key-1", 4), ("key-2", 1)]
    assert [(row.day, row.model, row.requests) for row in log.query(by=["day", "model"])] == [
        ("2027-01-15", "m", 1),
        ("2027-01-16", "m", 3),
        ("2027-01-16", "n", 1),
    ]
    assert [row.endpoint for row in log.query(by=("endpoint", "endpoint"))] == ["openai/m"]


def test_days_from_and_to_are_included(log: UsageLog) -> None:
    for day in range(5):
        log.add(record(time=DAWN + day * 86400.0))
    days = [row.day for row in log.query(by=["day"], since="2027-01-17", until=datetime.date(2027, 1, 19))]
    assert days == ["2027-01-17", "2027-01-18", "2027-01-19"]
    assert log.query(by=["day"], since="2028-01-01") == log.query(by=[], since="2028-01-01") == []


@pytest.mark.parametrize("day", ["yesterday", "2027-1-1", "2027-02-30", 7, "2027-01-01' OR 1=1 --", ""])
def test_what_is_no_day_is_refused(log: UsageLog, day: Any) -> None:
    with pytest.raises(ConfigError, match="since must be a day such as 2026-11-28, not"):
        log.query(since=day)


@pytest.mark.parametrize("by", [["prompt"], ["day", "1; DROP TABLE usage"], "day"])
def test_other_groups_are_refused(log: UsageLog, by: Any) -> None:
    with pytest.raises(ConfigError, match="day, key, model, endpoint; not by"):
        log.query(by=by)


def test_rows_of_requests_only_where_they_are_wanted(path: Path, log: UsageLog) -> None:
    log.add(record())
    log.flush()
    wanting = UsageLog(path, rows=True)
    wanting.add(record(request_id="r-1", time=DAWN, status=500, cost_usd=None))
    wanting.flush()
    rows = wanting._database.read("SELECT * FROM requests")
    assert [row[1:] for row in rows] == [(DAWN, "key-1", "m", "openai/m", 500, 0, 10, 5, 0, None, 2.0, "r-1")]
    wanting.close()


def test_the_oldest_rows_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "KEPT_ROWS", 3)
    log = UsageLog(path, rows=True)
    for number in range(8):
        log.add(record(request_id=f"r-{number}"))
    log.flush()
    assert [id for (id,) in log._database.read("SELECT request_id FROM requests")] == ["r-5", "r-6", "r-7"]
    assert log.query(by=[])[0].requests == 8
    log.close()


def test_while_nothing_can_be_written_sums_are_kept_and_adding_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "MOST_ROWS", 5)
    monkeypatch.setattr(room, "PATIENCE", 0.01)
    log = UsageLog(path, rows=True)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING, "fastllm"):
        for _ in range(1000):
            log.add(record())
        with pytest.raises(OverloadedError):
            log.flush()
        with pytest.raises(OverloadedError):
            log.query()
    assert len(log._sums) == 1 and len(log._rows) == 5
    holder.execute("ROLLBACK")
    holder.close()
    log.flush()
    assert log.query(by=[])[0].requests == 1000
    assert log._database.read("SELECT count(*) FROM requests") == [(1000 - log.rows_left_out,)]
    log.close()
    log.close()


def test_made_up_names_do_not_grow_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_GROUPS", 50)
    log = UsageLog(path)
    for number in range(5000):
        log.add(record(model=f"model-{number}" + "x" * 10_000, endpoint=f"e-{number}", time=DAWN))
    rows = log.query(by=["model", "endpoint"])
    assert len(rows) <= 102 and sum(row.requests for row in rows) == 5000
    assert max(len(str(row.model)) for row in rows) == 200 and "other" in {row.model for row in rows}
    log.close()


def test_threads_add_and_none_is_lost(log: UsageLog) -> None:
    crew = [threading.Thread(target=lambda: [log.add(record()) for _ in range(500)]) for _ in range(8)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert log.query(by=[])[0].requests == 4000


def test_processes_add_to_the_same_sums(path: Path) -> None:
    code = (
        "import sys; from fastllm.gateway.usage import *; log = UsageLog(sys.argv[1])\n"
        "for _ in range(500): log.add(UsageRecord(key='k', model='m', cost_usd=0.5))\n"
        "log.close()"
    )
    crew = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [process.wait(60) for process in crew] == [0, 0, 0]
    log = UsageLog(path)
    assert [(row.requests, row.cost_usd) for row in log.query(by=[])] == [(1500, 750.0)]
    log.close()


def test_the_thread_writes_by_itself(path: Path, log: UsageLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHECKPOINT", 0.0)
    log.add(record())
    reader = UsageLog(path)
    while not reader._database.read("SELECT * FROM usage"):
        assert log._thread.is_alive()
    assert "0 sums to be written" in repr(log)
    reader.close()
