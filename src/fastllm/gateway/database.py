"""Database: the gateway's one SQLite file, with its keys, the money that was spent, and what was used.

Rules. Any number of processes may share the file (WAL: no reader waits for a writer). It is no cache: a file that is
damaged or belongs to another program is never moved, emptied or replaced, it is a ConfigError that names it. The
directory is 0700 and the file 0600 if they are made here. One connection writes, under a lock; every other one only
reads. Nobody checkpoints while he commits, because that may take many milliseconds: `checkpoint` is for a thread.
A process opens the file after it was forked, not before.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OverloadedError

Connection = sqlite3.Connection
NAME = "gateway.sqlite3"
APPLICATION_ID = 0x464C4757  # "FLGW"
SCHEMA = 1
PATIENCE = 2.0  # seconds to wait for another process that writes; transactions take less than a millisecond
READ_PATIENCE = 0.05
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_CREATE = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, version INTEGER NOT NULL, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS keys_version ON keys (version);
CREATE TABLE IF NOT EXISTS secrets (hash BLOB PRIMARY KEY, key TEXT NOT NULL, expires REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS secrets_key ON secrets (key);
CREATE TABLE IF NOT EXISTS money (
    key TEXT NOT NULL, period TEXT NOT NULL, booked INTEGER NOT NULL, settled INTEGER NOT NULL,
    PRIMARY KEY (key, period)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS windows (
    key TEXT NOT NULL, kind TEXT NOT NULL, slot INTEGER NOT NULL, amount REAL NOT NULL,
    PRIMARY KEY (key, kind, slot)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    key TEXT NOT NULL, process TEXT NOT NULL, amount INTEGER NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (key, process)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, endpoint TEXT NOT NULL,
    requests INTEGER NOT NULL, errors INTEGER NOT NULL, cached INTEGER NOT NULL, unpriced INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    cost_usd REAL NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (day, key, model, endpoint)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, endpoint TEXT NOT NULL,
    status INTEGER NOT NULL, cached INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, cost_usd REAL, seconds REAL NOT NULL,
    request_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS requests_time ON requests (time);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA};
COMMIT;
"""


def default_path() -> Path:
    """Where the gateway keeps its file: in `$XDG_STATE_HOME/fastllm`, or the platform's usual place."""
    chosen = os.environ.get("XDG_STATE_HOME") or ""
    if Path(chosen).is_absolute():
        return Path(chosen) / "fastllm" / NAME
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "fastllm" / NAME
    return (
        Path.home()
        / ("Library/Application Support" if sys.platform == "darwin" else ".local/state")
        / (f"fastllm/{NAME}")
    )


class Database:
    """An open file; `path` defaults to `default_path()`. ConfigError where it cannot be opened or is not ours.

    Any thread may call anything here. What SQLite refuses later (a full disk, somebody who holds the file for
    seconds) is an OverloadedError: the gateway answers 503, and it may work again in a moment.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = _checked_path(path)
        self._lock = threading.Lock()
        self._patience = PATIENCE
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._db: Connection | None = _opened(self.path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot use the gateway's file {self.path}: {error}; --db names another") from None

    @contextlib.contextmanager
    def transaction(self, patience: float = PATIENCE) -> Iterator[Connection]:
        """Write under the lock, in one transaction: all of it, or nothing where the block raises. `patience` are the
        seconds to wait for another process that writes."""
        with self._lock, self._told():
            db = self._open()
            if patience != self._patience:
                db.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}").fetchall()
                self._patience = patience
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # an error may have ended it already
                    db.execute("ROLLBACK")
                raise

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Give all rows, as this connection sees them: for commands, not for an event loop."""
        with self._lock, self._told():
            return self._open().execute(sql, values).fetchall()

    def checkpoint(self) -> None:
        """Move what was committed from the log into the file; takes as long as the disk does."""
        with self._told(), contextlib.closing(_connect(self.path, PATIENCE)) as db:  # the others need not wait
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def watch(self) -> Watch:
        """Open a connection of its own that only reads."""
        with self._told():
            return Watch(self.path)

    def close(self) -> None:
        """Idempotent; the last process to close the file moves the log into it."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()

    def _open(self) -> Connection:
        if self._db is None:
            raise OverloadedError(f"the gateway's file {self.path} is closed", status_code=503, sent=False)
        return self._db

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The one place where SQLite's errors become ours."""
        try:
            yield
        except sqlite3.Error as error:
            text = f"the gateway's file {self.path.name} cannot be used now: {error}"
            raise OverloadedError(text, status_code=503, code="database_unavailable", sent=False) from error

    def __repr__(self) -> str:
        return f"<Database {self.path}{'' if self._db is not None else ', closed'}>"


class Watch:
    """A reading connection that knows whether anybody has written. Never waits long: a reader waits for no writer."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db: Connection | None = _connect(path, READ_PATIENCE)
        self._db.execute("PRAGMA query_only = 1")
        self._version = -1

    def changed(self) -> bool:
        """Tell whether anybody, this process included, has committed since the last call."""
        try:
            with self._lock:
                if self._db is None:
                    return False
                (version,) = self._db.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return True  # look, and be told what is wrong
        before, self._version = self._version, int(version)
        return before != self._version

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]] | None:
        """Give all rows; None where it cannot be read at this moment."""
        try:
            with self._lock:
                return self._db.execute(sql, values).fetchall() if self._db is not None else None
        except sqlite3.Error:
            self._version = -1
            return None

    def close(self) -> None:
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()


def _checked_path(path: str | Path | None) -> Path:
    try:
        found = Path(path) if path is not None else default_path()
    except (TypeError, RuntimeError) as error:
        raise ConfigError(f"the gateway's file must be a path, not {path!r}: {error}") from None
    if not found.name or "\0" in str(found):
        raise ConfigError(f"the gateway's file must be the path of a file, not {str(path)!r}")
    return found.absolute()


def _connect(path: Path, patience: float) -> Connection:
    # Autocommit, with transactions of our own. Any thread: locks see to order.
    uri = f"{path.as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=patience, check_same_thread=False, isolation_level=None)


def _opened(path: Path) -> Connection:
    """Open the file, made if need be; sqlite3.DatabaseError if it is not ours."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return _prepared(path)
        except sqlite3.OperationalError as error:  # whoever turns the log on lets nobody wait for it
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _prepared(path: Path) -> Connection:
    db = _connect(path, PATIENCE)
    try:
        db.execute("BEGIN")  # all three at one moment: another process may be making them
        application, version, tables = (
            db.execute(sql).fetchone()[0]
            for sql in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        db.execute("COMMIT")
        if tables and application != APPLICATION_ID:
            raise sqlite3.DatabaseError("it belongs to another program")
        if tables and version != SCHEMA:
            raise sqlite3.DatabaseError(f"it has version {version}, and this program reads version {SCHEMA}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        if not tables:
            db.executescript(_CREATE)
    except BaseException:
        db.close()
        raise
    return db
