"""Usage: who asked what, how much, and what it cost: sums by day, key, model and endpoint, and never a prompt.

Rules. `add` never waits: it adds to sums in memory, which one thread writes every GROUP seconds, so a crash loses no
more than that. What cannot be written is kept and tried again. Nothing is lost where too much comes: there is one sum
for each group, groups are bounded (models beyond MOST_GROUPS a day are "other"), and only rows of single requests,
where they are wanted at all, are left out beyond MOST_ROWS waiting; the sums have them.
"""

from __future__ import annotations

import datetime
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from ..errors import ConfigError, LLMError
from .database import Connection, Database

logger = logging.getLogger("fastllm")

GROUP = 0.02
PATIENCE = 2.0  # seconds that a write waits for another process
AGAIN = 1.0  # seconds until what could not be written is tried again
MOST_GROUPS = 10_000
MOST_ROWS = 10_000
KEPT_ROWS = 1_000_000  # rows of single requests that the file keeps
LONGEST_NAME = 200
CHECKPOINT = 20.0
BY = ("day", "key", "model", "endpoint")
SUMS = (
    "requests", "errors", "cached", "unpriced", "prompt_tokens", "completion_tokens", "cached_tokens", "cost_usd",
    "seconds",
)  # fmt: skip

_ADD = (
    f"INSERT INTO usage ({', '.join(BY + SUMS)}) VALUES ({', '.join('?' * len(BY + SUMS))}) "
    f"ON CONFLICT DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in SUMS)}"
)
_ROW = (
    "INSERT INTO requests (time, key, model, endpoint, status, cached, prompt_tokens, completion_tokens, "
    "cached_tokens, cost_usd, seconds, request_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")

Group = tuple[str, str, str, str]


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request that ended. `key` is a key's id, `cached` that the answer came from the cache, `cost_usd` None where
    nobody knows the cost; `time` is wall-clock seconds, None for now."""

    key: str = ""
    model: str = ""
    endpoint: str = ""
    status: int = 200
    cached: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = 0.0
    seconds: float = 0.0
    request_id: str = ""
    time: float | None = None


class UsageRow(msgspec.Struct, kw_only=True, omit_defaults=False):
    """Sums over a group; what it was not grouped by is None. `unpriced` requests have no known cost, `seconds` are the
    sum of their latencies."""

    day: str | None = None
    key: str | None = None
    model: str | None = None
    endpoint: str | None = None
    requests: int = 0
    errors: int = 0
    cached: int = 0
    unpriced: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0


class UsageLog:
    """Sums of usage in a file, None for the usual one; with `rows`, also a row for each request, without its content.

    Any thread may call anything here; `query` and `close` wait for the disk.
    """

    def __init__(
        self, path: str | Path | None = None, *, rows: bool = False, wall: Callable[[], float] = time.time
    ) -> None:
        self._database = Database(path)
        self._rows_wanted = rows
        self._wall = wall
        self._sums: dict[Group, list[float]] = {}
        self._rows: list[tuple[object, ...]] = []
        self.rows_left_out = 0
        self._groups: set[Group] = set()  # of this day: what a client makes up must not grow without bound
        self._day, self._day_until = "", 0.0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._work = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastllm-usage", daemon=True)
        self._thread.start()

    def add(self, record: UsageRecord) -> None:
        """Count one request. Takes microseconds, never waits, never raises for what a client could send."""
        at = self._wall() if record.time is None else record.time
        name, endpoint = record.model[:LONGEST_NAME], record.endpoint[:LONGEST_NAME]
        with self._lock:
            group = self._group(self._day_of(at), record.key[:LONGEST_NAME], name, endpoint)
            sums = self._sums.get(group)
            if sums is None:
                sums = self._sums[group] = [0.0] * len(SUMS)
            sums[0] += 1
            sums[1] += record.status >= 400
            sums[2] += record.cached
            sums[3] += record.cost_usd is None
            sums[4] += record.prompt_tokens
            sums[5] += record.completion_tokens
            sums[6] += record.cached_tokens
            sums[7] += record.cost_usd or 0.0
            sums[8] += record.seconds
            if self._rows_wanted:
                self._keep(record, at, name, endpoint)
        if not self._work.is_set():
            self._work.set()

    def _keep(self, record: UsageRecord, at: float, model: str, endpoint: str) -> None:
        if len(self._rows) >= MOST_ROWS:
            self.rows_left_out += 1
            return
        self._rows.append(
            (
                at, record.key, model, endpoint, record.status, record.cached, record.prompt_tokens,
                record.completion_tokens, record.cached_tokens, record.cost_usd, record.seconds,
                record.request_id[:LONGEST_NAME],
            )
        )  # fmt: skip

    def _group(self, day: str, key: str, model: str, endpoint: str) -> Group:
        group = (day, key, model, endpoint)
        if group not in self._groups:
            if len(self._groups) >= MOST_GROUPS:
                group = (day, key, "other", endpoint if len(self._groups) < 2 * MOST_GROUPS else "other")
            self._groups.add(group)
        return group

    def _day_of(self, at: float) -> str:
        if not self._day_until - 86400.0 <= at < self._day_until:
            whole = at // 86400.0 * 86400.0
            self._day, self._day_until = time.strftime("%Y-%m-%d", time.gmtime(whole)), whole + 86400.0
            self._groups.clear()
        return self._day

    def flush(self) -> None:
        """Write what was added until now. OverloadedError where it cannot be: then it is kept."""
        with self._writing:
            with self._lock:
                sums, self._sums = self._sums, {}
                rows, self._rows = self._rows, []
            if not sums and not rows:
                return
            try:
                with self._database.transaction(PATIENCE) as db:
                    _write(db, sums, rows)
            except BaseException:
                self._take_back(sums, rows)
                raise

    def _take_back(self, sums: dict[Group, list[float]], rows: list[tuple[object, ...]]) -> None:
        with self._lock:
            for group, more in sums.items():
                mine = self._sums.setdefault(group, [0.0] * len(SUMS))
                for i, amount in enumerate(more):
                    mine[i] += amount
            self._rows[:0] = rows
            self.rows_left_out += max(0, len(self._rows) - MOST_ROWS)
            del self._rows[MOST_ROWS:]

    def _run(self) -> None:
        """The thread: writes what came within GROUP seconds."""
        checkpoint, warned = time.monotonic() + CHECKPOINT, False
        while not self._closing.is_set():
            self._work.wait()
            self._work.clear()
            self._closing.wait(GROUP)
            try:
                self.flush()
                if time.monotonic() >= checkpoint:
                    checkpoint = time.monotonic() + CHECKPOINT
                    self._database.checkpoint()
                warned = False
            except LLMError as error:
                if not warned:
                    logger.warning("usage cannot be written now, and is kept: %s", error.message)
                warned = True
                self._closing.wait(AGAIN)
                self._work.set()

    def query(
        self, by: Sequence[str] = ("day", "key", "model"), *, since: object = None, until: object = None
    ) -> list[UsageRow]:
        """Give sums grouped by any of day, key, model, endpoint, the most expensive first within a day. `since` and
        `until` are UTC days, "2026-11-28" or dates, both included. ConfigError for anything else."""
        self.flush()
        return query(self._database, by, since=since, until=until)

    def close(self) -> None:
        """Write everything and end the thread. Idempotent."""
        self._closing.set()
        self._work.set()
        self._thread.join()
        try:
            self.flush()
        except LLMError as error:
            logger.warning("usage could not be written at the end: %s", error.message)
        self._database.close()

    def __repr__(self) -> str:
        return f"<UsageLog {len(self._sums)} sums to be written, {self._database!r}>"


def query(
    database: Database, by: Sequence[str] = ("day", "key", "model"), *, since: object = None, until: object = None
) -> list[UsageRow]:
    """Give what `UsageLog.query` gives, from a file that is open."""
    names = _checked_by(by)
    first, last = _checked_day("since", since, "0000-00-00"), _checked_day("until", until, "9999-99-99")
    sums = ", ".join(f"sum({name})" for name in SUMS)
    grouping = f" GROUP BY {', '.join(names)}" if names else ""
    order = f" ORDER BY {'day, ' if 'day' in names else ''}sum(cost_usd) DESC, sum(requests) DESC, {', '.join(names)}"
    rows = database.read(
        f"SELECT {', '.join([*names, sums])} FROM usage WHERE day BETWEEN ? AND ?{grouping}{order if names else ''}",
        (first, last),
    )
    fields = (*names, *SUMS)
    return [UsageRow(**dict(zip(fields, row, strict=True))) for row in rows if row[-1] is not None]


def _write(db: Connection, sums: dict[Group, list[float]], rows: Iterable[tuple[object, ...]]) -> None:
    whole = len(SUMS) - 2  # all but money and seconds are counts
    db.executemany(_ADD, [(*group, *map(int, found[:whole]), *found[whole:]) for group, found in sums.items()])
    if rows:
        db.executemany(_ROW, rows)
        (last,) = db.execute("SELECT max(id) FROM requests").fetchone()
        db.execute("DELETE FROM requests WHERE id <= ?", (last - KEPT_ROWS,))


def _checked_by(by: Sequence[str]) -> list[str]:
    wrong = [name for name in by if name not in BY] if not isinstance(by, str) else [by]
    if wrong:
        raise ConfigError(f"usage can be grouped by a list of {', '.join(BY)}; not by {wrong[0]!r}")
    return list(dict.fromkeys(by))


def _checked_day(field: str, value: object, default: str) -> str:
    if value is None:
        return default
    text = value.isoformat()[:10] if isinstance(value, datetime.date) else value
    try:
        if not isinstance(text, str) or not _DAY.fullmatch(text):
            raise ValueError
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ConfigError(f"{field} must be a day such as 2026-11-28, not {value!r}") from None
