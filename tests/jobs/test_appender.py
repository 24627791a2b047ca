"""The appender: at once where the disk is quick, by its thread where it is not, in order whoever writes."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastllm.jobs import appender as room
from fastllm.jobs.appender import Appender, JournalError


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    yield path, fd
    os.close(fd)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which threads wrote."""
    names: list[str] = []
    write = os.write

    def watched(fd: int, data: bytes) -> int:
        names.append(threading.current_thread().name)
        return write(fd, data)

    monkeypatch.setattr(os, "write", watched)
    return names


def until(fulfilled: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not fulfilled():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.001)


def test_what_is_put_is_with_the_system_when_put_returns(file: tuple[Path, int], writes: list[str]) -> None:
    path, fd = file
    made = Appender(fd, "file", interval=1.0)
    for k in range(5):
        made.put(b"%d" % k, marked=1)
        assert path.read_bytes() == b"01234"[: k + 1]
        assert made.unwritten() == 0
    made.close()
    assert set(writes) == {"MainThread"} and made.synced == 5


def test_it_is_synced_by_itself_after_the_interval(file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[float] = []
    monkeypatch.setattr(room, "_sync", lambda fd: syncs.append(time.monotonic()))
    made = Appender(file[1], "file", interval=0.05)
    for k in range(3):  # again and again, also where nothing was put for a while
        made.put(b"x")
        until(lambda: made.synced == k + 1)  # noqa: B023
        time.sleep(0.02)
    made.close()
    assert len(syncs) == 3


def test_nobody_waits_for_a_disk_that_syncs(
    file: tuple[Path, int], writes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fd = file
    syncing, go_on = threading.Event(), threading.Event()

    def sync(fd: int) -> None:
        syncing.set()
        assert go_on.wait(10)

    monkeypatch.setattr(room, "_sync", sync)
    told: list[int] = []
    made = Appender(fd, "file", interval=0.01)
    made.wrote = lambda: told.append(made.unwritten())
    made.put(b"a", marked=1)
    assert syncing.wait(5)
    made.put(b"b", marked=1)
    made.put(b"c", marked=1)
    assert (path.read_bytes(), made.unwritten(), told) == (b"a", 2, [])
    go_on.set()
    until(lambda: made.unwritten() == 0)
    assert path.read_bytes() == b"abc" and told == [0]
    made.close()
    assert set(writes[1:]) == {"fastllm-journal"}


def test_after_a_slow_write_the_thread_writes_for_a_while(
    file: tuple[Path, int], writes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SLOW", -1.0)
    monkeypatch.setattr(room, "_WARY", 0.1)
    path, fd = file
    made = Appender(fd, "file", interval=1.0)
    made.put(b"a")
    made.put(b"b")
    until(lambda: made.written == 2)
    time.sleep(0.12)
    made.put(b"c")
    assert path.read_bytes() == b"abc"
    assert writes == ["MainThread", "fastllm-journal", "MainThread"]
    made.close()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_first_error_is_final(
    file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Nobody knows how much was written: what followed would stand at another place than it says."""
    made = Appender(file[1], "file", interval=1.0)
    made.put(b"a")

    def fails(fd: int, data: bytes) -> int:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fails)
        with pytest.raises(JournalError if isinstance(error, OSError) else KeyboardInterrupt):
            made.put(b"b", marked=1)
    with pytest.raises(JournalError, match=r"cannot write file: (No space left|KeyboardInterrupt)"):
        made.put(b"c")
    with pytest.raises(JournalError):
        made.sync()
    made.close()
    assert made.failure is not None and made.unwritten() == 0
    assert file[0].read_bytes() == b"a"


def test_whoever_writes_all_of_it_is_there_in_order(file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that are cut short, syncs and slow phases at random."""
    path, fd = file
    dice = random.Random(7)
    write = os.write

    def short(fd: int, data: bytes) -> int:
        if dice.random() < 0.02:
            time.sleep(0.002)
        return write(fd, data[: dice.randint(1, len(data))])

    monkeypatch.setattr(os, "write", short)
    monkeypatch.setattr(room, "_SLOW", 0.001)
    monkeypatch.setattr(room, "_WARY", 0.005)
    monkeypatch.setattr(room, "_sync", lambda fd: time.sleep(dice.random() * 0.003))
    made = Appender(fd, "file", interval=0.002)
    expected = b""
    for k in range(2000):
        piece = b"%d;" % k
        made.put(piece, marked=1)
        expected += piece
        if k % 500 == 499:
            made.sync()
            assert made.synced == len(expected) and path.read_bytes() == expected and made.unwritten() == 0
    made.close()
    assert path.read_bytes() == expected and made.synced == len(expected)


def test_what_is_put_while_the_thread_looks_is_there_once_it_is_synced(
    file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look for data and its look for who waits, both may come."""
    path, fd = file
    write, told = os.write, threading.Event()
    made = Appender(fd, "file", interval=10.0)
    synced: list[bytes] = []

    def wait() -> None:
        made.sync()
        synced.append(path.read_bytes())
        told.set()

    def slow(fd: int, data: bytes) -> int:
        told.wait(0.1)  # whoever was told too early looks now
        return write(fd, data)

    waiting = threading.Thread(target=wait)

    class Late(deque[threading.Event]):
        def __bool__(self) -> bool:
            return super().__len__() > 0

        def __len__(self) -> int:
            if not waiting.ident:
                made._wary = time.monotonic() + 60.0  # only the thread writes
                made.put(b"late")
                waiting.start()
                until(self.__bool__)
            return super().__len__()

    made._tickets = Late()
    monkeypatch.setattr(os, "write", slow)
    made.put(b"early,")
    until(told.is_set)
    made.close()
    assert synced == [b"early,late"]


def test_nothing_is_synced_after_a_write_that_failed(file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor if the thread waited for its turn when it failed."""
    syncs: list[int] = []
    monkeypatch.setattr(room, "_sync", syncs.append)
    made = Appender(file[1], "file", interval=0.02)
    made.put(b"a")

    def fails(fd: int, data: bytes) -> int:
        time.sleep(0.1)  # longer than the interval
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fails)
        with pytest.raises(JournalError):
            made.put(b"b")
    made.close()
    assert not syncs and made.synced == 0


def test_nothing_is_written_after_a_sync_that_failed(file: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, fd = file
    sizes: list[int] = []

    def fails(fd: int) -> None:
        sizes.append(path.stat().st_size)
        raise OSError(errno.EIO, "Input/output error")

    class Hesitant:
        """A lock after whose release somebody else comes first."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self.acquire = self._lock.acquire

        def release(self) -> None:
            self._lock.release()
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.05)

        def __enter__(self) -> None:
            self._lock.acquire()

        def __exit__(self, *error: object) -> None:
            self.release()

    monkeypatch.setattr(room, "_sync", fails)
    made = Appender(fd, "file", interval=0.01)
    made._busy = Hesitant()  # type: ignore[assignment]
    with pytest.raises(JournalError, match="Input/output error"):
        for _ in range(1000):
            made.put(b"a")
            time.sleep(0.001)
    made.close()
    assert [path.stat().st_size] == sizes
