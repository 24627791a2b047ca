"""cache/disk: one file, many processes; whatever is wrong with it costs hits and one warning, never a wrong answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from fastllm import ConfigError, DiskCache
from fastllm.cache import background, disk, filelock, place, writer
from fastllm.cache.background import Trouble
from fastllm.cache.disk import LOCK_NAME, NAME, SQLiteStore
from fastllm.cache.place import default_directory
from fastllm.types import Response

VALUE = b"value " * 200


class Wall:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def key(n: int) -> bytes:
    return n.to_bytes(4, "big") * 12


def answer(n: int) -> Response:
    return Response(body=b'{"n":%d,"x":"' % n + bytes(range(65, 91)) * 40 + b'"}', finish_reason="stop")


@contextlib.asynccontextmanager
async def opened(directory: Path, **options: object) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(directory, **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.aclose()


async def written(directory: Path, entries: int = 60) -> Path:
    """A cache file with so many answers, closed."""
    cache = DiskCache(directory=directory)
    for n in range(entries):
        await cache.put(key(n), b"asked %d" % n, answer(n))
    await cache.aclose()
    return directory / NAME


async def read_all(directory: Path, entries: int = 60) -> int:
    """Read every answer, of which each is the right one or none, then see that the cache works; give the hits."""
    cache = DiskCache(directory=directory)
    hits = 0
    for n in range(entries):
        hit = await cache.get(key(n), b"asked %d" % n)
        assert hit is None or hit.body == answer(n).body
        hits += hit is not None
    await cache.put(key(9999), b"new", answer(1))
    await cache.get(key(0), b"asked 0")
    assert isinstance((await cache.stats()).entries, int)
    await cache.aclose()
    return hits


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def run(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import asyncio, os, sys\nfrom fastllm.cache.disk import *\n" + code]
    return subprocess.Popen([*command, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)


# Files and modes


async def test_directory_and_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "a" / "cache") as store:
        await store.put(key(1), VALUE)
        await store.stats()
        assert store.directory.stat().st_mode & 0o777 == 0o700
        names = {path.name for path in store.directory.iterdir()}
        assert {NAME, f"{NAME}-wal", f"{NAME}-shm", LOCK_NAME} == names
        assert {path.stat().st_mode & 0o777 for path in store.directory.iterdir()} == {0o600}
    assert {path.name for path in (tmp_path / "a" / "cache").iterdir()} == {NAME, LOCK_NAME}


def test_nothing_is_made_before_the_first_use(tmp_path: Path) -> None:
    before = threading.active_count()
    cache = DiskCache(directory=tmp_path / "cache")
    assert not cache.directory.exists() and threading.active_count() == before


def test_the_default_directory_is_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert DiskCache().directory == tmp_path / "fastllm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    for platform, tail in (("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "AppData/Local")):
        monkeypatch.setattr(place.sys, "platform", platform)
        assert default_directory() == tmp_path / tail / "fastllm"
    monkeypatch.setattr(place.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(ConfigError, match="no home"):
        DiskCache()


def test_a_directory_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="is not a directory"):
        DiskCache(directory=tmp_path / "file")
    with pytest.raises(ConfigError, match="needs a directory"):
        DiskCache(directory=5)  # type: ignore[arg-type]


# Groups, bounds and order


async def test_everything_put_before_aclose_is_on_disk_after_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for n in range(3000):
            await store.put(key(n), VALUE)
    assert "fastllm-cache-writer" not in {thread.name for thread in threading.enumerate()}
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as db:
        assert db.execute("SELECT count(*) FROM entries").fetchone() == (3000,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_put_waits_where_too_much_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_WAITING", 50_000)
    async with opened(tmp_path) as store:
        await store.get(key(0))
        assert store._file is not None and store._writer is not None
        store._file.writing.acquire()  # the disk does not move
        try:
            tasks = [asyncio.create_task(store.put(key(n), bytes(1000))) for n in range(300)]
            await asyncio.sleep(0.05)
            done = sum(task.done() for task in tasks)
            assert 40 < done < 150
            await asyncio.sleep(0.05)
            assert sum(task.done() for task in tasks) == done
            assert len(store._writer.waiting) + len(store._writer.taken) == done
        finally:
            store._file.writing.release()
        await asyncio.gather(*tasks)
        assert (await store.stats()).entries == 300


async def test_the_size_bound_is_swept_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    wall = Wall()
    async with opened(tmp_path, max_bytes=1_000_000, wall=wall) as store:
        for n in range(100):
            await store.put(key(n), bytes(2000))
        await store.stats()
        wall.now += 1000
        assert all([await store.get(key(n)) for n in range(20)])  # used: they stay
        for n in range(100, 1000):
            await store.put(key(n), bytes(2000))
            if n % 50 == 0:
                found = await store.stats()
                assert found.bytes <= 1_250_000
        found = await store.stats()
        assert 0.8e6 < found.bytes <= 1.1e6 and await store.get(key(50)) is None
        assert await store.get(key(999)) is not None
    assert (tmp_path / NAME).stat().st_size < 1.5e6


async def test_what_was_used_lately_outlives_what_was_only_written_lately(tmp_path: Path) -> None:
    wall = Wall()
    async with opened(tmp_path, max_bytes=300_000, wall=wall) as store:
        for n in range(100):
            await store.put(key(n), bytes(1000))
        await store.stats()
        wall.now += 1000
        assert await store.get(key(3)) is not None  # noted, written with the next group
        for n in range(100, 250):
            await store.put(key(n), bytes(1000))
        await store.stats()
        assert await store.get(key(3)) is not None and await store.get(key(0)) is None


async def test_expired_entries_go_before_any_other(tmp_path: Path) -> None:
    wall = Wall()
    async with opened(tmp_path, max_bytes=300_000, wall=wall) as store:
        for n in range(100):
            await store.put(key(n), bytes(1000), wall.now + 10 if n >= 50 else None)
        await store.stats()
        wall.now += 11
        for n in range(100, 240):
            await store.put(key(n), bytes(1000))
        assert (await store.stats()).expired == 0 and await store.get(key(60)) is None
        assert all([await store.get(key(n)) for n in range(15, 50)])


async def test_hits_do_not_write(tmp_path: Path) -> None:
    wall = Wall()
    async with opened(tmp_path, wall=wall) as store:
        await store.put(key(1), VALUE)
        await store.stats()
        size = (tmp_path / f"{NAME}-wal").stat().st_size
        for _ in range(100):
            wall.now += 5
            assert await store.get(key(1)) == VALUE
        await store.stats()
        assert (tmp_path / f"{NAME}-wal").stat().st_size == size


async def test_prune_brings_an_overfull_cache_back_under_its_bound(tmp_path: Path) -> None:
    await written(tmp_path, 300)
    async with opened(tmp_path, max_bytes=100_000) as store:
        removed = await store.prune()
        found = await store.stats()
        assert removed > 200 and found.bytes <= 100_000 and found.entries == 300 - removed


async def test_clear_gives_the_room_back(tmp_path: Path) -> None:
    path = await written(tmp_path, 1000)
    async with opened(tmp_path) as store:
        assert await store.clear() == 1000
    assert path.stat().st_size < 100_000


async def test_a_value_larger_than_the_bound_is_not_kept_and_takes_the_old_one_away(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=100_000) as store:
        await store.put(key(1), b"old")
        await store.put(key(1), bytes(100_000))
        assert await store.get(key(1)) is None


@pytest.mark.fault("key-of-64-bits")
async def test_two_keys_with_the_same_64_bits_never_give_each_others_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_hash", lambda key: 7)
    async with opened(tmp_path) as store:
        for n in range(5):
            await store.put(key(n), b"%d" % n)
            await store.stats()
            assert [await store.get(key(m)) for m in range(5)] == [b"%d" % n if m == n else None for m in range(5)]
        await store.delete(key(1))
        await store.stats()
        assert await store.get(key(4)) == b"4"


async def test_one_prompt_at_many_endpoints_is_kept_for_each(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for n in range(20):
            await store.put(bytes(32) + bytes([n]) * 16, b"%d" % n)
        assert (await store.stats()).entries == 20


# Other threads, loops and the end of the interpreter


async def test_two_loops_in_two_threads_share_one_store(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.put(key(0), b"x")

        async def work(first: int) -> None:
            for n in range(first, first + 300):
                await store.put(key(n), b"%d" % n)
                assert await store.get(key(n)) == b"%d" % n
                assert await store.get(key(0)) == b"x"

        await asyncio.gather(*(asyncio.to_thread(lambda f=f: asyncio.run(work(f))) for f in (1000, 2000)), work(3000))
        assert (await store.stats()).entries == 901


async def test_a_loop_that_went_away_with_a_call_pending_does_not_stop_the_writer(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.get(key(0))
        file = store._file
        assert file is not None
        file.writing.acquire()

        async def leave() -> None:
            task = asyncio.create_task(store.stats())
            await asyncio.sleep(0.03)
            task.cancel()

        await asyncio.to_thread(lambda: asyncio.run(leave()))
        file.writing.release()
        await store.put(key(1), b"one")
        assert (await store.stats()).entries == 1


async def test_a_store_that_is_dropped_writes_what_it_has_and_ends_its_thread(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path)
    await store.put(key(1), VALUE)
    assert store._writer is not None
    thread = store._writer._thread
    del store
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()
    async with opened(tmp_path) as again:
        assert await again.get(key(1)) == VALUE


def test_the_interpreter_ends_at_once_and_what_waits_is_written(tmp_path: Path) -> None:
    code = """
store = SQLiteStore(sys.argv[1])
async def main():
    for n in range(500):
        await store.put(n.to_bytes(4, "big") * 12, b"x" * 1000)
asyncio.run(main())
"""
    child = run(code, tmp_path)
    _, errors = child.communicate(timeout=15)
    assert (child.returncode, errors) == (0, b"")
    assert asyncio.run(_entries(tmp_path)) == 500


async def _entries(directory: Path) -> int:
    async with opened(directory) as store:
        return (await store.stats()).entries


async def test_calls_on_a_closed_writer_are_refused_and_the_store_answers_all_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.put(key(1), b"one")
        held = store._writer
        assert held is not None and "fastllm-cache-writer" in repr(held)
        await held.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await held.call(lambda: None)
        assert (await store.stats()).entries == 0  # closed under its feet: no answer, no exception
        await held.put(key(2), b"two", None)
        held._bytes = 10**9
        await held.put(key(3), b"three", None)  # waits for nobody


# Several processes

WORKER = """
import random
async def main(directory, seed, rounds):
    from fastllm.types import Response
    rng, cache = random.Random(seed), DiskCache(directory=directory, max_bytes=400_000)
    for _ in range(rounds):
        n = rng.randrange(300)
        key, asked, body = n.to_bytes(4, "big") * 12, b"asked %d" % n, b"%d " % n * 300
        hit = await cache.get(key, asked)
        assert hit is None or hit.body == body, "a wrong answer"
        if hit is None:
            await cache.put(key, asked, Response(body=body, finish_reason="stop"))
        if rng.random() < 0.01:
            await cache.prune()
    await cache.aclose()
    assert cache.errors == 0, cache
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def test_four_processes_read_write_and_evict_in_one_directory(tmp_path: Path) -> None:
    children = [run(WORKER, tmp_path, seed, 1500) for seed in range(4)]
    ended = [(child.communicate(timeout=60)[1], child.returncode) for child in children]
    assert ended == [(b"", 0)] * 4
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM entries").fetchone()[0] > 50


def test_a_writer_that_is_killed_harms_neither_the_file_nor_the_others(tmp_path: Path) -> None:
    code = """
async def main():
    cache = DiskCache(directory=sys.argv[1])
    from fastllm.types import Response
    for n in range(10**9):
        answer = Response(body=b"%d " % n * 300, finish_reason="stop")
        await cache.put(n.to_bytes(4, "big") * 12, b"asked %d" % n, answer)
        if n == 400:
            await cache.stats()
            print("go", flush=True)
        await asyncio.sleep(0)
asyncio.run(main())
"""
    children = [run(code, tmp_path), run(code, tmp_path)]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == b"go\n"
        child.send_signal(signal.SIGKILL)
        child.communicate()

    async def look() -> None:
        cache = DiskCache(directory=tmp_path)
        for n in range(401):
            hit = await cache.get(key(n), b"asked %d" % n)
            assert hit is not None and hit.body == b"%d " % n * 300
        await cache.aclose()

    asyncio.run(look())
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_opens_the_file_anew_and_both_go_on(tmp_path: Path) -> None:
    code = """
store = SQLiteStore(sys.argv[1])
K = [bytes([n]) * 48 for n in range(9)]
async def before():
    await store.put(K[1], b"parent")
    await store.stats()
    await store.put(K[2], b"waiting")
async def child():
    assert store._writer is None and await store.get(K[1]) == b"parent"
    await store.put(K[3], b"child")
    await store.aclose()
async def after():
    await store.put(K[4], b"after")
    assert [await store.get(k) for k in K[1:5]] == [b"parent", b"waiting", b"child", b"after"]
    await store.aclose()
asyncio.run(before())
pid = os.fork()
if pid == 0:
    asyncio.run(child())
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
asyncio.run(after())
"""
    child = run(code, tmp_path)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 0, errors.decode()


async def test_a_fork_waits_for_no_lock_for_ever_and_leaves_the_parent_as_it_was(tmp_path: Path) -> None:
    """The hooks, called by hand: the child's half would end this process's own store."""
    hooks: dict[str, Callable[[], None]] = {}
    store = SQLiteStore(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "register_at_fork", lambda **found: hooks.update(found))
        patch.setattr(background, "FORK_PATIENCE", 0.01)
        await store.put(key(1), VALUE)
        file, old = store._file, store._writer
        assert file is not None and old is not None
        with file.reading:
            hooks["before"]()
            hooks["after_in_parent"]()
        hooks["before"]()
        assert file.reading.locked() and file.writing.locked()
        hooks["after_in_parent"]()
        assert not file.reading.locked() and await store.get(key(1)) == VALUE
        await old.aclose()
        hooks["after_in_child"]()
        assert store._file is None and await store.get(key(1)) == VALUE
        await store.aclose()
        file.close_reader()
        store._parents.clear()
        await store.aclose()
    del store
    for hook in hooks.values():
        hook()


# What may be wrong with the file


@pytest.mark.parametrize("page", range(0, 30, 3))
async def test_damage_in_any_page_costs_hits_but_no_wrong_answer_and_no_exception(tmp_path: Path, page: int) -> None:
    path = await written(tmp_path)
    size = path.stat().st_size
    assert size > 22 * 4096
    start = page * 4096 % size
    for at in (start, start + 100, start + 2048, start + 4095):
        with path.open("r+b") as file:
            file.seek(at)
            old = file.read(60)
            file.seek(at)
            file.write(bytes(b ^ 0x5A for b in old))
    await read_all(tmp_path)
    assert await read_all(tmp_path) <= 60


@pytest.mark.parametrize("size", [1, 50, 100, 4095, 4096, 4097, 8192, 20_000, 40_960])
async def test_a_file_cut_short_is_no_exception(tmp_path: Path, size: int) -> None:
    path = await written(tmp_path)
    with path.open("r+b") as file:
        file.truncate(size)
    await read_all(tmp_path)
    await read_all(tmp_path)


async def test_an_empty_file_is_a_new_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).write_bytes(b"")
    async with opened(tmp_path) as store:
        await store.put(key(1), VALUE)
        assert (await store.stats()).entries == 1
    assert warnings(caplog) == []


@pytest.mark.parametrize("kind", ["random", "text", "version", "damaged header"])
async def test_a_file_that_is_no_cache_of_this_version_is_set_aside_with_one_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = await written(tmp_path)
    with path.open("r+b") as file:
        if kind == "version":
            file.seek(60)
            file.write((disk.SCHEMA + 1).to_bytes(4, "big"))
        elif kind == "damaged header":
            file.write(b"SQLite forma")
            file.seek(0)
            file.write(b"XXXXXX")
        else:
            file.truncate(0)
            file.write(os.urandom(20_000) if kind == "random" else b"name,answer\n" * 1000)
    found = path.read_bytes()
    (tmp_path / f"{NAME}.corrupt-1").write_bytes(b"an earlier one")
    async with opened(tmp_path) as store:
        assert await store.get(key(1)) is None
        await store.put(key(1), VALUE)
        assert (await store.stats()).entries == 1
    assert len(warnings(caplog)) == 1 and f"{NAME}.corrupt-2" in caplog.text
    assert (tmp_path / f"{NAME}.corrupt-2").read_bytes() == found


async def test_another_programs_database_is_left_alone_and_the_cache_stays_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as db:
        db.execute("CREATE TABLE entries (precious)")
        db.commit()
    before = (tmp_path / NAME).read_bytes()
    async with opened(tmp_path) as store:
        for n in range(5):
            await store.put(key(n), VALUE)
            assert await store.get(key(n)) is None
        assert (await store.stats(), await store.clear()) == (
            disk.StoreStats(entries=0, bytes=0, max_bytes=store.max_bytes),
            0,
        )
        assert "off" in repr(store)
    assert (tmp_path / NAME).read_bytes() == before
    assert len(warnings(caplog)) == 1 and "belongs to another program" in caplog.text


async def test_damage_found_while_running_is_set_aside_and_the_run_goes_on_with_a_fresh_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await written(tmp_path, 500)
    async with opened(tmp_path) as store:
        assert await store.get(key(1)) is not None
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
        assert [await store.get(key(n)) for n in range(2, 500)].count(None) > 400
        await store.put(key(1), VALUE)
        assert await store.get(key(1)) == VALUE
    assert (tmp_path / f"{NAME}.corrupt-1").exists() and await _entries(tmp_path) == 1
    assert len(warnings(caplog)) == 2  # what was wrong, and where the file is now


async def test_damage_found_by_the_writer_is_set_aside_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.put(key(1), VALUE)
        await store.stats()
        assert store._file is not None
        store._file.trouble = Trouble("damaged", damage=True)
        await store.put(key(2), VALUE)
        assert not (tmp_path / NAME).exists() and (tmp_path / f"{NAME}.corrupt-1").exists()
        await store.put(key(3), VALUE)
        assert (await store.stats()).entries == 1


async def test_a_damaged_file_that_somebody_else_uses_is_not_renamed_under_him(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await other.put(key(1), VALUE)
        await store.put(key(2), VALUE)
        await other.stats()
        for _ in range(background.MOST_REPLACED + 1):
            assert not store._off
            await store.stats()
            assert store._file is not None
            store._file.trouble = Trouble("damaged", damage=True)
            await store.put(key(2), VALUE)
        assert store._off  # after a few times it stays so
        assert not (tmp_path / f"{NAME}.corrupt-1").exists()
        assert await other.get(key(1)) == VALUE


async def test_a_row_of_other_types_is_a_miss(tmp_path: Path) -> None:
    await written(tmp_path, 3)
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as db:
        db.execute("UPDATE entries SET value = 'text' WHERE id = 1")
        db.execute("UPDATE entries SET value = 7 WHERE id = 2")
        db.execute("UPDATE entries SET used = 'never' WHERE id = 3")
        db.commit()
    async with opened(tmp_path) as store:
        assert [await store.get(key(n)) for n in range(3)] == [None] * 3


# Disks that are full, read-only or busy


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit here")
def test_no_room_switches_writing_off_with_one_warning_and_reading_goes_on(tmp_path: Path) -> None:
    code = """
import logging, resource, signal
logging.basicConfig(format="%(message)s", level=logging.WARNING)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
async def main():
    store = SQLiteStore(sys.argv[1])
    K = [n.to_bytes(4, "big") * 12 for n in range(2000)]
    await store.put(K[0], b"x" * 1000)
    await store.stats()
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for k in K[1:]:
        await store.put(k, b"x" * 1000)
        await asyncio.sleep(0)
    await store.stats()
    await store.put(K[5], b"y")
    assert "not writing" in repr(store), store
    assert await store.get(K[0]) == b"x" * 1000
    assert await store.clear() == 0
    await store.aclose()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.put(K[7], b"again")
    assert await store.get(K[0]) == b"x" * 1000 and (await store.stats()).entries >= 2
    await store.aclose()
asyncio.run(main())
"""
    child = run(code, tmp_path)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 0, errors.decode()
    assert errors.decode().count("\n") == 1 and b"cannot write the cache" in errors
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


READ_ONLY = """
import concurrent.futures.thread, logging
from fastllm.types import Response
if os.geteuid() == 0:  # to whom no permission is denied
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
logging.basicConfig(format="%(message)s", level=logging.WARNING)
async def main():
    cache = DiskCache(directory=sys.argv[1])
    found = [await cache.get(n.to_bytes(4, "big") * 12, b"asked %d" % n) for n in range(60)]
    await cache.put(b"n" * 48, b"new", Response(body=b"{}", finish_reason="stop"))
    assert await cache.get(b"n" * 48, b"new") is None
    assert await cache.clear() == 0
    print(sum(hit is not None for hit in found), (await cache.stats()).entries, cache.errors)
    await cache.aclose()
    await cache.aclose()
asyncio.run(main())
"""


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that any user can reach; pytest's own is private."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions here")
@pytest.mark.parametrize("mode", [0o555, 0o000])
async def test_a_cache_that_cannot_be_written_is_read_and_one_that_cannot_be_read_is_off(
    public_path: Path, mode: int
) -> None:
    directory = public_path / "cache"
    path = await written(directory)
    (directory / LOCK_NAME).unlink()
    path.chmod(0o444)
    directory.chmod(mode)
    try:
        child = run(READ_ONLY, directory)
        out, errors = await asyncio.to_thread(child.communicate, timeout=20)
    finally:
        directory.chmod(0o700)
    assert child.returncode == 0, errors.decode()
    assert out.split() == ([b"60", b"60", b"0"] if mode else [b"0", b"0", b"0"])
    assert errors.decode().count("\n") == 1, errors.decode()


async def test_a_file_that_another_process_has_locked_for_good_switches_writing_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "WRITE_PATIENCE", 0.05)
    async with opened(tmp_path) as store:
        await store.put(key(1), b"one")
        await store.stats()
        with contextlib.closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            await store.put(key(2), b"two")
            with contextlib.suppress(Trouble):
                await store.stats()
            await store.put(key(3), b"three")
            assert await store.get(key(1)) == b"one"
            db.execute("ROLLBACK")
        assert len(warnings(caplog)) == 1 and "locked" in caplog.text
        await store.aclose()
        await store.put(key(3), b"three")
        assert (await store.stats()).entries == 2


async def test_a_lock_that_is_never_given_back_leaves_the_cache_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(tmp_path, 3)
    monkeypatch.setattr(filelock, "PATIENCE", 0.02)
    lock = filelock.FileLock(tmp_path / LOCK_NAME)
    assert lock.acquire()
    async with opened(tmp_path) as store:
        assert await store.get(key(1)) is not None
        await store.put(key(1), b"new")
        assert await store.get(key(1)) != b"new"
        assert "not writing" in repr(store)
    lock.release()
    lock.release()


async def test_no_more_threads_switches_the_cache_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(background, "Writer", no_thread)
    async with opened(tmp_path) as store:
        await store.put(key(1), b"one")
        assert await store.get(key(1)) is None and "off" in repr(store)


async def test_a_read_that_finds_the_file_busy_is_a_quiet_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as store:
        await store.put(key(1), b"one")
        await store.stats()
        file = store._file
        assert file is not None
        troubles: list[Trouble] = [Trouble("busy", busy=True), Trouble("input/output")]
        fail: Callable[[bytes], None] = lambda key: (_ for _ in ()).throw(troubles.pop(0))  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(file, "read", fail)
            assert await store.get(key(1)) is None and warnings(caplog) == []
            assert await store.get(key(1)) is None and len(warnings(caplog)) == 1
        assert await store.get(key(1)) == b"one"
