"""SQLiteLeases: claims in a file. Every exchange is one transaction, so no two processes take the same part.

Times are those of the machine's monotonic clock, which all its processes share; a file from before the machine was
started again holds nothing. Whether a process lives is asked of the system, so that one that was stopped for an hour
still has its claims when it goes on. The file needs no durability: it is of no use after a power failure.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ..errors import ConfigError
from ..policy.shares import Claim, renewed
from .base import INF, Ask, Share

BUSY = 10.0  # seconds to wait for another process's transaction
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_ID = 0x464C4C53  # "FLLS"
_TABLES = """
CREATE TABLE IF NOT EXISTS boot (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS processes (id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL, began TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (
    key BLOB NOT NULL, process INTEGER NOT NULL, part REAL NOT NULL, used REAL NOT NULL, want REAL NOT NULL,
    need REAL NOT NULL, since REAL NOT NULL, spent REAL NOT NULL, stays REAL NOT NULL, until REAL,
    PRIMARY KEY (key, process)
) WITHOUT ROWID;
"""


class SQLiteLeases:
    """Claims in the file at `path`, which is made where it is missing. ConfigError where that cannot be."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._mine: dict[bytes, Ask] = {}
        try:
            self._db = self._open()
            with self._transaction():
                self._forget_other_boots()
                row = (os.getpid(), _began(os.getpid()))
                self._me = self._db.execute("INSERT INTO processes (pid, began) VALUES (?, ?)", row).lastrowid
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"leases: {str(self.path)!r} cannot be used ({error}); give a file in a directory of yours on a local "
                "disk, which need not exist"
            ) from None

    def _open(self) -> sqlite3.Connection:
        # Only where it is new: to close a file gives up all locks that this process has on it.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        end = time.monotonic() + BUSY
        while True:
            db = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(db)
                return db
            except sqlite3.OperationalError as error:  # whoever turns the log on lets nobody wait for it
                db.close()
                if error.sqlite_errorcode & 0xFF not in _LOCKED or time.monotonic() > end:
                    raise
                time.sleep(0.01)
            except BaseException:
                db.close()
                raise

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN")  # both at one moment: another process may be making them
        (found,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db.execute("COMMIT")
        if tables and found != _ID:
            raise sqlite3.DatabaseError("it is another program's database")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")
        if found != _ID:
            db.execute(f"PRAGMA application_id={_ID}")
        db.executescript(_TABLES)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _forget_other_boots(self) -> None:
        boot = _boot()
        row = self._db.execute("SELECT id FROM boot").fetchone()
        if row is None or row[0] != boot:
            for table in ("boot", "claims", "processes"):
                self._db.execute(f"DELETE FROM {table}")
            self._db.execute("INSERT INTO boot VALUES (?)", (boot,))

    async def exchange(self, asks: Mapping[bytes, Ask]) -> dict[bytes, Share]:
        """See `Leases.exchange`. sqlite3.Error where the file cannot be written."""
        return await asyncio.to_thread(self._exchange, dict(asks))

    def _exchange(self, asks: dict[bytes, Ask]) -> dict[bytes, Share]:
        with self._lock, self._transaction():
            self._bury(time.monotonic())
            shares = {key: self._renew(key, ask) for key, ask in asks.items()}
        self._mine.update(asks)
        return shares

    def _bury(self, now: float) -> None:
        """What processes held that have ended counts for a while yet; money that they held is gone."""
        for process, pid, began in self._db.execute("SELECT id, pid, began FROM processes").fetchall():
            if process != self._me and _began(pid) != began:
                self._db.execute(
                    "UPDATE claims SET until = ? + stays, spent = CASE WHEN stays > 1e300 THEN part ELSE spent END "
                    "WHERE process = ? AND until IS NULL",
                    (now, process),
                )
                self._db.execute("DELETE FROM processes WHERE id = ?", (process,))
        self._db.execute("DELETE FROM claims WHERE until <= ?", (now,))

    def _renew(self, key: bytes, ask: Ask) -> Share:
        rows = self._db.execute(
            "SELECT process, part, used, want, need, since, until IS NOT NULL, spent FROM claims WHERE key = ? "
            "ORDER BY process",
            (key,),
        ).fetchall()
        claims = {row[0]: Claim(row[1], row[2], row[3], row[4], row[5], bool(row[6]), row[7]) for row in rows}
        mine = claims.get(self._me or 0, Claim())
        mine.used, mine.want, mine.need, mine.since, mine.spent = ask.used, ask.want, ask.need, ask.since, ask.spent
        claims[self._me or 0] = mine  # the last one to come, where it is new
        part, cap = renewed(
            ask.limit, list(claims.values()), list(claims).index(self._me or 0), whole=ask.whole, spread=ask.spread
        )
        self._db.execute(
            "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            (key, self._me, part, ask.used, ask.want, ask.need, ask.since, ask.spent, ask.stays),
        )
        return Share(cap, sum(row[7] for row in rows if row[0] != self._me))

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock, closing(self._db):
            if self._me is None:
                return
            me, self._me = self._me, None
            now = time.monotonic()
            with self._transaction():
                for key, ask in self._mine.items():
                    kept = ask.spent if ask.stays == INF else ask.used
                    self._db.execute(
                        "UPDATE claims SET part = min(part, ?), until = ? + stays WHERE key = ? AND process = ?",
                        (kept, now, key, me),
                    )
                self._db.execute("DELETE FROM claims WHERE process = ? AND (part <= 0 OR stays <= 0)", (me,))
                self._db.execute("DELETE FROM processes WHERE id = ?", (me,))

    def __repr__(self) -> str:
        return f"<SQLiteLeases {str(self.path)!r}>"


def _began(pid: int) -> str:
    """Give a text that tells this process from any other that ever has its number; "" where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "alive"
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
