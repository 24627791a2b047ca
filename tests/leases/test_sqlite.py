"""SQLiteLeases: real processes on one file never hold more than the limit, and what the dead held stays counted."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastllm.errors import ConfigError
from fastllm.leases import sqlite
from fastllm.leases.base import INF, Ask
from fastllm.leases.sqlite import SQLiteLeases

KEY = b"k"


async def cap(
    leases: SQLiteLeases, used: float = 0, want: float = 100, *, stays: float = 60, limit: float = 100
) -> float:
    ask = Ask(limit=limit, used=used, want=want, whole=True, stays=stays)
    return (await leases.exchange({KEY: ask}))[KEY].cap


async def test_two_share_and_what_one_gives_back_the_other_gets(tmp_path: Path) -> None:
    one, two = SQLiteLeases(tmp_path / "l"), SQLiteLeases(tmp_path / "l")
    assert await cap(one) == 100
    assert await cap(two) == 0  # all is taken
    assert await cap(one, used=30) == 50
    assert await cap(two) == 50
    await one.aclose()
    assert await cap(two) == 70  # what the other had used counts for a minute yet
    await two.aclose()
    three = SQLiteLeases(tmp_path / "l")
    assert await cap(three) == 70
    await three.aclose()


async def test_who_leaves_gives_back_at_once_what_does_not_stay_used(tmp_path: Path) -> None:
    one, two = SQLiteLeases(tmp_path / "l"), SQLiteLeases(tmp_path / "l")
    assert await cap(one, used=0, stays=0) == 100
    assert await cap(one, used=80, stays=0) == 100
    await one.aclose()
    assert await cap(two, stays=0) == 100
    await two.aclose()


async def test_money_that_others_spent_is_told_and_never_comes_back(tmp_path: Path) -> None:
    one, two = SQLiteLeases(tmp_path / "l"), SQLiteLeases(tmp_path / "l")
    ask = Ask(limit=1.0, used=0.3, want=0.6, spent=0.25, stays=INF, spread=False)
    await one.exchange({KEY: ask})
    await one.exchange({KEY: ask})
    share = (await two.exchange({KEY: Ask(limit=1.0, used=0, want=1, stays=INF, spread=False)}))[KEY]
    assert share.cap == pytest.approx(0.4) and share.spent == 0.25
    await one.aclose()
    share = (await two.exchange({KEY: Ask(limit=1.0, used=0, want=1, stays=INF, spread=False)}))[KEY]
    assert share.cap == pytest.approx(0.75) and share.spent == 0.25
    await two.aclose()


HOLDER = """
import asyncio, sys
from fastllm.leases.base import Ask
from fastllm.leases.sqlite import SQLiteLeases
async def main():
    leases = SQLiteLeases(sys.argv[1])
    ask = Ask(limit=100, used=0, want=float(sys.argv[2]), spent=0, stays=float(sys.argv[3]), spread=False)
    print((await leases.exchange({b"k": ask}))[b"k"].cap, flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


def holder(path: Path, want: float, stays: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path), str(want), str(stays)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and float(process.stdout.readline()) == want
    return process


def end(process: subprocess.Popen[str], how: signal.Signals) -> None:
    process.send_signal(how)
    with process:
        process.communicate()


async def test_what_a_killed_process_held_stays_counted_for_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = holder(tmp_path / "l", 40, 60), holder(tmp_path / "l", 10, 0)
    here = SQLiteLeases(tmp_path / "l")
    assert await cap(here) == 50
    end(first, signal.SIGKILL)
    end(second, signal.SIGKILL)
    assert await cap(here) == 60  # slots are free as soon as their process is gone
    now = sqlite.time.monotonic()
    monkeypatch.setattr(sqlite.time, "monotonic", lambda: now + 61)
    assert await cap(here) == 100
    await here.aclose()


async def test_money_that_a_killed_process_held_is_gone(tmp_path: Path) -> None:
    process = holder(tmp_path / "l", 40, INF)
    here = SQLiteLeases(tmp_path / "l")
    end(process, signal.SIGKILL)
    share = (await here.exchange({KEY: Ask(limit=100, used=0, want=100, stays=INF, spread=False)}))[KEY]
    assert (share.cap, share.spent) == (60, 40)
    await here.aclose()


async def test_a_stopped_process_keeps_what_it_holds(tmp_path: Path) -> None:
    process = holder(tmp_path / "l", 40, 0)
    process.send_signal(signal.SIGSTOP)
    here = SQLiteLeases(tmp_path / "l")
    assert await cap(here) == 60
    end(process, signal.SIGKILL)
    await here.aclose()


RIVAL = """
import asyncio, random, sys
from fastllm.leases.base import Ask
from fastllm.leases.sqlite import SQLiteLeases
async def main():
    leases, rng, used = SQLiteLeases(sys.argv[1]), random.Random(sys.argv[2]), 0
    for _ in range(150):
        ask = Ask(limit=37, used=used, want=used + rng.randrange(20), whole=True, stays=60)
        cap = int((await leases.exchange({b"k": ask}))[b"k"].cap)
        used = max(used, rng.randint(0, cap)) if rng.random() < 0.6 else rng.randint(0, used)
asyncio.run(main())
"""


def rival(path: Path, seed: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RIVAL, str(path), str(seed)])


async def test_processes_in_a_hurry_never_hold_more_than_there_is(tmp_path: Path) -> None:
    leases = SQLiteLeases(tmp_path / "l")
    rivals = [rival(tmp_path / "l", n) for n in range(4)]
    db = sqlite3.connect(tmp_path / "l")
    seen = 0
    while any(one.poll() is None for one in rivals):
        (total, over), seen = db.execute("SELECT sum(part), max(used - part) FROM claims").fetchone(), seen + 1
        assert total is None or (total <= 37 and over <= 0)
        await asyncio.sleep(0.001)
    db.close()
    await leases.aclose()
    assert seen > 20 and [one.returncode for one in rivals] == [0] * 4


async def test_a_file_from_before_the_machine_started_again_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SQLiteLeases(tmp_path / "l")
    assert await cap(one, used=0) == 100
    assert await cap(one, used=100) == 100
    await one.aclose()
    monkeypatch.setattr(sqlite, "_boot", lambda: "another")
    two = SQLiteLeases(tmp_path / "l")
    assert await cap(two) == 100
    await two.aclose()


def test_the_file_is_the_users_alone(tmp_path: Path) -> None:
    leases = SQLiteLeases(tmp_path / "l")
    assert (tmp_path / "l").stat().st_mode & 0o777 == 0o600
    asyncio.run(leases.aclose())


def test_another_programs_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    (tmp_path / "text").write_text("no database at all, but long enough to look like one " * 20)
    before = (tmp_path / "other.db").read_bytes(), (tmp_path / "text").read_bytes()
    for name in ("other.db", "text"):
        with pytest.raises(ConfigError, match=f"leases: .*{name}"):
            SQLiteLeases(tmp_path / name)
    assert before == ((tmp_path / "other.db").read_bytes(), (tmp_path / "text").read_bytes())


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing/l"):
        SQLiteLeases(tmp_path / "missing" / "l")


def test_a_process_is_known_by_when_it_began() -> None:
    assert sqlite._began(os.getpid()) == sqlite._began(os.getpid()) != ""
    assert sqlite._began(2**22 + 1) == ""


def test_a_file_that_many_make_at_the_same_moment_is_everybodys(tmp_path: Path) -> None:
    for turn in range(20):
        begin, failed = threading.Barrier(8), []

        def opened(path: Path, begin: threading.Barrier, failed: list[Exception]) -> None:
            begin.wait()
            try:
                asyncio.run(SQLiteLeases(path).aclose())
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=opened, args=(tmp_path / f"{turn}.db", begin, failed)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
