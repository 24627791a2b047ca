"""Disk store: one SQLite file that any number of processes may share.

Rules. Reads happen on a read-only connection (WAL: no reader waits for a writer), writes on another one in the writer's
thread. A crash of the process loses at most the last group, one of the machine what was not yet checkpointed, and
neither harms the file. A damaged file or one of another version is renamed, but only by its sole user: everybody who
has it open holds a shared lock on the file beside it, because SQLite's files must not be exchanged under another
process. Nothing is memory-mapped: a file cut short would kill the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .background import File, FileStore, Trouble
from .base import Cache, StoreStats, check_bytes
from .filelock import FileLock
from .place import checked_directory
from .writer import Write

logger = logging.getLogger("fastllm")

NAME = "cache.sqlite3"
LOCK_NAME = "cache.lock"
APPLICATION_ID = 0x464C4C4D  # "FLLM"
SCHEMA = 2
DEFAULT_BYTES = 10 * 1024 * 1024 * 1024
ROW_BYTES = 120  # what a row and its index entries cost beside key and value
SWEEP_AT, SWEEP_TO = 1.1, 0.9
SWEEP_SECONDS = 0.2  # that one group may spend on evicting; the next one goes on
WRITE_PATIENCE, READ_PATIENCE = 10.0, 0.05  # seconds to wait for another process; reads happen on the event loop

# A narrow unique index over 64 bits: a blob key without rowid costs 52 µs a write and stalls (DESIGN section 6). Two
# keys with the same 64 bits replace each other; the whole key is compared, so this costs a miss, not a wrong answer.
# The blobs come last, so that looking at sizes and times reads no overflow pages.
_CREATE = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY,
    hash INTEGER NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    used REAL NOT NULL,
    expires REAL,
    key BLOB NOT NULL,
    value BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_used ON entries (used);
CREATE INDEX IF NOT EXISTS entries_expires ON entries (expires) WHERE expires IS NOT NULL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA};
COMMIT;
"""
_GET = "SELECT value, expires, used FROM entries WHERE hash = ? AND key = ?"
_PUT = "INSERT OR REPLACE INTO entries (hash, size, used, expires, key, value) VALUES (?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM entries WHERE hash = ? AND key = ?"
_TOUCH = "UPDATE entries SET used = ?1 WHERE hash = ?2 AND used < ?1"
_OLDEST = "SELECT id, size FROM entries ORDER BY used, id LIMIT 500"
_EXPIRED = "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE expires <= ? LIMIT ?)"
# SQLite's errors that say nothing about the file's content: busy, locked, no memory, read-only, interrupted, input or
# output, full, cannot open, protocol, no large files, not permitted. 0 is Python's own.
_OUTSIDE = frozenset({0, 3, 5, 6, 7, 8, 9, 10, 13, 14, 15, 21, 22, 23})

_TIMES = (float, type(None))


class _Foreign(sqlite3.DatabaseError):
    """Another program's database: left where it is."""


class _OtherVersion(sqlite3.DatabaseError):
    """Ours, of another version."""


def _trouble(error: Exception) -> Trouble:
    """The one place where SQLite's errors become ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    damage = isinstance(error, _OtherVersion) or code not in _OUTSIDE
    return Trouble(error, damage=damage, busy=code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED))


def _hash(key: bytes) -> int:
    """64 bits of the whole key: one prompt in two namespaces differs only in the key's end."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big", signed=True)


class SQLiteStore(FileStore):
    """Keeps entries in `directory`, up to `max_bytes`; any number of loops, threads and processes may share it."""

    def __init__(
        self,
        directory: str | Path | None = None,
        max_bytes: int = DEFAULT_BYTES,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.directory = checked_directory(directory)
        where, bound = self.directory, check_bytes(max_bytes)
        super().__init__(lambda: _SQLiteFile(where, bound, wall), where / NAME, max_bytes=bound, wall=wall)


class DiskCache(Cache):
    """A cache on disk: `DiskCache(directory="answers", ttl=86400, max_bytes=10_000_000_000)`.

    `directory` defaults to the user's cache directory; `ttl` in seconds, None until evicted.
    """

    def __init__(
        self,
        *,
        directory: str | Path | None = None,
        ttl: float | None = None,
        max_bytes: int = DEFAULT_BYTES,
        namespace: str = "",
        wall: Callable[[], float] = time.time,
    ) -> None:
        store = SQLiteStore(directory, max_bytes, wall=wall)
        super().__init__(store, ttl=ttl, namespace=namespace, wall=wall)
        self.directory = store.directory


class _SQLiteFile(File):
    def __init__(self, directory: Path, max_bytes: int, wall: Callable[[], float]) -> None:
        super().__init__()
        self.path = directory / NAME
        self._max_bytes = max_bytes
        self._wall = wall
        self._lock = FileLock(directory / LOCK_NAME)
        self._reader: sqlite3.Connection | None = None
        self._db: sqlite3.Connection | None = None
        self._sweeping = False
        self._writes = False
        self._read_before = False  # the fork that goes on

    def open(self) -> None:
        """Open, create or replace the file; where it can only be read, `trouble` says so."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            alone = self._lock.acquire()
            try:
                self._db = _checked(self.path)
            except sqlite3.Error as error:
                if not alone or not _trouble(error).damage:
                    raise
                _set_aside(self.path, error)
                self._db = _checked(self.path)
            self._lock.share()
            self._reader = _reading(self.path)
            self._writes = True
        except OSError as error:
            self._open_to_read(Trouble(error))
        except sqlite3.Error as error:
            trouble = _trouble(error)
            if trouble.damage or isinstance(error, _Foreign):
                raise trouble from error
            self._open_to_read(trouble)

    def _open_to_read(self, why: Trouble) -> None:
        self.close()
        self.trouble = why
        try:
            self._reader = _read_only(self.path)
        except (sqlite3.Error, OSError):
            raise why from None

    def read(self, key: bytes) -> tuple[bytes, float | None, float] | None:
        try:
            with self.reading:
                row = self._reader.execute(_GET, (_hash(key), key)).fetchone() if self._reader is not None else None
        except sqlite3.Error as error:
            raise _trouble(error) from error
        if row is None or type(row[0]) is not bytes or type(row[1]) not in _TIMES or type(row[2]) is not float:
            return None  # another type: a damaged row
        return row  # type: ignore[no-any-return]

    def close_reader(self) -> None:
        with self.reading:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()

    def replace(self, why: Trouble) -> None:
        """Set the closed, damaged file aside, unless another process has it open."""
        try:
            if self._lock.acquire():
                _set_aside(self.path, why)
        except OSError as problem:
            logger.debug("the damaged cache file %s stays: %s", self.path, problem)
        finally:
            self._lock.release()

    def commit(self, writes: Mapping[bytes, Write], touched: Mapping[bytes, float]) -> None:
        """Write one group in one transaction."""
        if self.trouble is not None or not (writes or touched):
            return
        try:
            now = self._wall()
            puts = [
                (_hash(key), len(key) + len(value) + ROW_BYTES, now, expires, key, value)
                for key, (value, expires) in writes.items()
                if value is not None
            ]
            with self.writing:
                if self._db is None:
                    return
                with _transaction(self._db) as db:
                    db.executemany(_DELETE, [(_hash(k), k) for k, (value, _) in writes.items() if value is None])
                    db.executemany(_PUT, puts)
                    db.executemany(_TOUCH, [(when, _hash(key)) for key, when in touched.items()])
                if puts:
                    self._sweep(self._db)
        except Exception as error:  # whatever somebody put: the thread lives on
            self.trouble = _trouble(error)

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Beyond 110 % of the bound remove the least recently used down to 90 %, a while in each group."""
        size = _live_bytes(db)
        if size > self._max_bytes * SWEEP_AT:
            self._sweeping = True
        end = time.monotonic() + SWEEP_SECONDS
        while self._sweeping and time.monotonic() < end:
            self._sweeping = bool(self._remove_oldest(db, size)) and size > self._max_bytes * SWEEP_TO
            size = _live_bytes(db)

    def _remove_oldest(self, db: sqlite3.Connection, size: int) -> int:
        """Remove expired entries, else the oldest, at most until SWEEP_TO is reached; give how many."""
        excess = size - self._max_bytes * SWEEP_TO
        if excess <= 0:
            return 0
        with _transaction(db):
            removed = db.execute(_EXPIRED, (self._wall(), 500)).rowcount
            if removed:
                return removed
            chosen = []
            for number, row_bytes in db.execute(_OLDEST):
                chosen.append((number,))
                excess -= row_bytes
                if excess <= 0:
                    break
            db.executemany("DELETE FROM entries WHERE id = ?", chosen)
        return len(chosen)

    def clear(self) -> int:
        with self._working() as db:
            with _transaction(db):
                removed: int = db.execute("DELETE FROM entries").rowcount
            with contextlib.suppress(sqlite3.OperationalError):  # others read: the room is used again anyway
                db.execute("VACUUM")
        return removed

    def prune(self) -> int:
        with self._working() as db:
            with _transaction(db):
                removed: int = db.execute(_EXPIRED, (self._wall(), -1)).rowcount
            if _live_bytes(db) > self._max_bytes:
                while gone := self._remove_oldest(db, _live_bytes(db)):
                    removed += gone
        return removed

    def stats(self) -> StoreStats:
        count = "SELECT count(*) FROM entries"
        with self._looking() as db:
            (entries,) = db.execute(count).fetchone()
            (expired,) = db.execute(f"{count} WHERE expires <= ?", (self._wall(),)).fetchone()
            used = _live_bytes(db)
        return StoreStats(entries=entries, bytes=used, max_bytes=self._max_bytes, expired=expired)

    @contextlib.contextmanager
    def _working(self) -> Iterator[sqlite3.Connection]:
        try:
            with self.writing:
                if self._db is None or self.trouble is not None:
                    raise self.trouble or Trouble("it is closed")
                yield self._db
        except sqlite3.Error as error:
            raise _trouble(error) from error

    @contextlib.contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection]:
        try:
            with self.writing if self._writes else self.reading:
                db = self._db if self._writes else self._reader
                if db is None:
                    raise Trouble("it is closed")
                yield db
        except sqlite3.Error as error:
            raise _trouble(error) from error

    def close(self) -> None:
        db, self._db, self._writes = self._db, None, False
        if db is not None:
            with contextlib.suppress(sqlite3.Error), self.writing:
                db.close()
        self._lock.release()

    def pause(self) -> None:
        self._read_before = self._reader is not None
        for db in (self._reader, self._db):
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()
        self._db = self._reader = None

    def resume(self) -> None:
        try:
            self._db = _checked(self.path) if self._writes else None
            if self._read_before:
                self._reader = _reading(self.path) if self._writes else _read_only(self.path)
        except (sqlite3.Error, OSError) as error:
            self.trouble = self.trouble or Trouble(error)


def _connect(path: Path, mode: str, patience: float) -> sqlite3.Connection:
    # Autocommit, with transactions of our own. Any thread: locks see to order.
    uri = f"{path.absolute().as_uri()}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=patience, check_same_thread=False, isolation_level=None)


def _checked(path: Path) -> sqlite3.Connection:
    """Open the file for writing, made if need be; an error that `_is_damage` knows if it is not a cache of ours."""
    with contextlib.suppress(FileExistsError):  # an existing file is not opened: closing it would drop SQLite's locks
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    db = _connect(path, "mode=rw", WRITE_PATIENCE)
    try:
        db.execute("BEGIN")  # all three at one moment: another process may be making them
        application, version, tables = (
            db.execute(sql).fetchone()[0]
            for sql in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        db.execute("COMMIT")
        if application != APPLICATION_ID and tables:
            raise _Foreign(f"{path.name} belongs to another program")
        if tables and version != SCHEMA:
            raise _OtherVersion(f"{path.name} has version {version}, not {SCHEMA}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        if not tables:
            db.executescript(_CREATE)
        db.execute(_GET, (0, b"")).fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _reading(path: Path) -> sqlite3.Connection:
    db = _connect(path, "mode=ro", READ_PATIENCE)
    db.execute("PRAGMA cache_size = -16384")  # 16 MB, bounded; saves a fifth of a hit
    return db


def _read_only(path: Path) -> sqlite3.Connection:
    """Open a file in a place where nothing can be written."""
    wal = path.with_name(f"{path.name}-wal")
    still = not wal.exists() or not wal.stat().st_size
    error: sqlite3.Error = sqlite3.OperationalError("no file")
    for mode in ("mode=ro", "mode=ro&immutable=1") if still else ("mode=ro",):
        db = _connect(path, mode, READ_PATIENCE)
        try:
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise _Foreign(f"{path.name} belongs to another program")
            db.execute(_GET, (0, b"")).fetchone()
            return db
        except sqlite3.Error as problem:
            db.close()
            error = problem
    raise error


def _set_aside(path: Path, why: Exception) -> None:
    n = next(n for n in range(1, 100_000) if not path.with_name(f"{path.name}.corrupt-{n}").exists())
    aside = path.with_name(f"{path.name}.corrupt-{n}")
    logger.warning("the cache file %s cannot be used (%s); it is now %s", path, why, aside.name)
    for suffix in ("-wal", "-shm", ""):  # the log goes first: a new file must never find it
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(f"{aside}{suffix}")


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # an error may have ended it already
            db.execute("ROLLBACK")
        raise


def _live_bytes(db: sqlite3.Connection) -> int:
    """Bytes of all pages in use: from the file's header, so it costs the same for any number of entries."""
    pages, free, size = (db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)
