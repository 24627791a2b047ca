"""ResponseStore: whose each response of the Responses API is and where it lies, for a while.

What a provider keeps is known by its id alone: who asked for it, and which endpoint has it. What was answered through
chat, by providers that keep nothing, is kept here, one file for each below a directory of its tenant, if there is one.
Nobody finds what another one's key has asked. Both have a bound: the oldest go first, and all of them after AGE.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Raw

from .database import Connection, Database
from .file_store import folder_name, private_file, private_folder

AGE = 30 * 86_400.0  # seconds, as at OpenAI
MOST = 100_000  # responses of one tenant
MOST_BYTES = 1024 * 1024 * 1024  # of all that is kept here of one tenant
LOOK = 64  # responses between looks at the bounds
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:=-]{0,199}")
_CREATE = """
CREATE TABLE IF NOT EXISTS responses (
    tenant TEXT NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, endpoint TEXT NOT NULL, scope BLOB NOT NULL,
    bytes INTEGER NOT NULL, created REAL NOT NULL,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS responses_age ON responses (tenant, created, bytes)"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A response: `model` is what was asked for, `endpoint` and `scope` say who answered; `size` is 0 where the
    provider keeps it, else what the file here has."""

    tenant: str
    id: str
    model: str
    endpoint: str
    scope: bytes
    size: int = 0


class Kept(msgspec.Struct):
    """What is kept of a response that no provider keeps: all that was said before it, and the answer."""

    input: list[Raw]
    answer: Raw


_kept = msgspec.json.Decoder(Kept)


class ResponseStore:
    """`folder` None: nothing is kept here. Every call works on the disk: not for a loop's thread."""

    def __init__(self, database: Database, folder: Path | None = None) -> None:
        self._database = database
        self._folder = private_folder(folder) if folder is not None else None
        self._added: Counter[str] = Counter()
        with database.transaction() as db:
            db.execute(_CREATE)
            db.execute(_INDEX)

    @property
    def keeps(self) -> bool:
        """True where answers can be kept here."""
        return self._folder is not None

    def add(self, known: Known, kept: Kept | None = None) -> bool:
        """Note a response, and keep it. False for an id that nobody could ask for."""
        if not _ID.fullmatch(known.id):
            return False
        if kept is not None:
            data = msgspec.json.encode(kept)
            known = msgspec.structs.replace(known, size=len(data))
            self._write(known, data)
        row = (known.tenant, known.id, known.model, known.endpoint, known.scope, known.size, time.time())
        added = self._added[known.tenant] = self._added[known.tenant] + 1
        looks = added == 1 or added % LOOK == 0  # at first there may be those from before
        try:
            with self._database.transaction() as db:
                db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                gone = _beyond(db, known.tenant) if looks else []
        except BaseException:
            self._unlink([(known.tenant, known.id)])  # nobody would ever find it
            raise
        self._unlink(gone)
        return True

    def find(self, tenant: str, id: str) -> Known | None:
        """Give a response of this tenant."""
        sql = "SELECT model, endpoint, scope, bytes FROM responses WHERE tenant = ? AND id = ? AND created > ?"
        for model, endpoint, scope, size in self._database.read(sql, (tenant, id, time.time() - AGE)):
            return Known(tenant=tenant, id=id, model=model, endpoint=endpoint, scope=scope, size=size)
        return None

    def read(self, known: Known) -> Kept | None:
        """Give what is kept of it; None where it is gone."""
        path = self._path(known.tenant, known.id)
        try:
            return _kept.decode(path.read_bytes()) if path is not None else None
        except (OSError, msgspec.MsgspecError):
            return None

    def remove(self, known: Known) -> None:
        """Forget a response."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM responses WHERE tenant = ? AND id = ?", (known.tenant, known.id))
        self._unlink([(known.tenant, known.id)])

    def sweep(self) -> None:
        """Forget what is too old."""
        with self._database.transaction() as db:
            limit = (time.time() - AGE,)
            gone = db.execute("SELECT tenant, id FROM responses WHERE created <= ?", limit).fetchall()
            db.execute("DELETE FROM responses WHERE created <= ?", limit)
        self._unlink(gone)

    def _path(self, tenant: str, id: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / folder_name(tenant) / (hashlib.sha256(id.encode()).hexdigest()[:48] + ".json")

    def _write(self, known: Known, data: bytes) -> None:
        path = self._path(known.tenant, known.id)
        assert path is not None
        private_folder(path.parent)
        incoming = path.with_suffix(f".{secrets.token_hex(8)}")
        with private_file(incoming) as file:  # a power cut may cost it: it is a convenience, and not an answer
            file.write(data)
        incoming.replace(path)

    def _unlink(self, gone: Iterable[tuple[str, str]]) -> None:
        for tenant, id in gone:
            path = self._path(tenant, id)
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<ResponseStore {self._folder or 'of ids alone'}>"


def _beyond(db: Connection, tenant: str) -> list[tuple[str, str]]:
    """Forget a tenant's oldest responses beyond the bounds."""
    count, size = db.execute("SELECT count(*), sum(bytes) FROM responses WHERE tenant = ?", (tenant,)).fetchone()
    gone: list[tuple[str, str]] = []
    if count > MOST or size > MOST_BYTES:
        for id, bytes_ in db.execute("SELECT id, bytes FROM responses WHERE tenant = ? ORDER BY created", (tenant,)):
            if count <= MOST and size <= MOST_BYTES:
                break
            count, size = count - 1, size - bytes_
            gone.append((tenant, id))
        db.executemany("DELETE FROM responses WHERE tenant = ? AND id = ?", gone)
    return gone
