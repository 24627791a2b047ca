"""BatchRunner: runs batches as durable jobs on the gateway's own engine, after whatever interactive requests there are.

One process at a time runs the batches of a directory: the one that holds its lock. Others take batches in and show
them; if the holder dies, the next one goes on. A batch is a job with a journal: a process that is killed anywhere has
its batches gone on with at the next start, and what was answered is not asked again.

A tenant's turn comes by how few of its batches run, so that a hundred of one do not keep out the first of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from ..errors import ConfigError, JobConflictError
from ..formats.base import open_reader
from ..formats.output import failures_path
from ..jobs.journal import Journal
from ..jobs.runner import Job, JournalError
from .auth import Tenant
from .batch_files import check_input, words_of, write_results
from .batch_store import Batch, BatchStore, Ending, Status
from .charging import Charged, Gate, Patient
from .file_store import FileStore, new_id, share

logger = logging.getLogger("fastllm.gateway")

POLL = 1.0  # seconds between looks at what other processes left word of
RESTING = 60.0  # seconds until a batch is tried again that failed for a reason of ours, such as a full disk
GRACE = 10.0  # seconds for what is in flight when a batch is cancelled or the gateway stops
INPUT, OUTPUT, ERRORS = "input.jsonl", "output.jsonl", "failed.jsonl"

FindTenant = Callable[[Tenant], Tenant | None]


class _Live:
    """A batch that runs here."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.job: Job | None = None
        self.journal: Journal | None = None
        self.task: asyncio.Task[None] | None = None
        self.expired = False
        self.saved = (0, 0)

    def count(self) -> None:
        """Take over how far its job is."""
        if self.journal is not None:
            self.batch.completed, self.batch.failed = self.journal.ok, self.journal.failed

    def stop(self) -> None:
        if self.job is not None:
            self.job.stop()


class BatchRunner:
    """Runs at most `most` batches of a store at once, from `start` to `aclose`. `find_tenant` says what has become of a
    tenant since it made a batch: None where it may ask no more."""

    def __init__(self, gate: Gate, store: BatchStore, files: FileStore, *, most: int, find_tenant: FindTenant) -> None:
        self._gate = gate
        self._patient = Patient(gate)
        self._store = store
        self._files = files
        self.grace = GRACE
        self.poll = POLL
        self._most = most
        self._find_tenant = find_tenant
        self._waiting: dict[str, Batch] = {}
        self._live: dict[str, _Live] = {}
        self._resting: dict[str, float] = {}  # batch -> when, in the loop's time, it is tried again
        self._known: dict[str, Tenant] = {}
        self._news = asyncio.Event()
        self._writing = asyncio.Lock()
        self._turns: asyncio.Task[None] | None = None
        self._closing = False
        self._lock = -1

    async def start(self) -> None:
        """Go on with what is not finished."""
        await self._look()
        self._turns = asyncio.create_task(self._take_turns(), name="fastllm-batches")

    async def aclose(self) -> None:
        """Stop; what runs is gone on with at the next start."""
        self._closing = True
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait([self._turns])
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for live in self._live.values():
            live.stop()
        if tasks:
            await asyncio.wait(tasks)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def add(self, tenant: Tenant) -> None:
        """Have a look: there is a new batch of this tenant. What lies on the disk alone says which."""
        self._known[tenant.id] = tenant
        self._news.set()

    def shown(self, batch: Batch) -> Batch:
        """Give a batch as it is at this moment."""
        live = self._live.get(batch.id)
        if live is not None:
            live.count()
            return live.batch
        return self._waiting.get(batch.id, batch)

    async def cancel(self, batch: Batch) -> Batch:
        """Have a batch cancelled, whichever process runs it."""
        await asyncio.to_thread(self._store.ask_to_cancel, batch)
        if self._lock >= 0:
            await self._cancel_here(batch.id)
        self._news.set()
        batch = self.shown(batch)
        if not batch.ended and not batch.cancels():
            _set(batch, "cancelling")  # for this answer; who runs it writes it down
        return batch

    def done(self, id: str) -> int:
        """Give how many requests of a batch that runs here are done."""
        live = self._live.get(id)
        return live.journal.ok + live.journal.failed if live is not None and live.journal is not None else 0

    def unfinished(self) -> list[Batch]:
        """Give the batches that this process runs or is to run, the oldest first."""
        for live in self._live.values():
            live.count()
        found = [*(live.batch for live in self._live.values()), *self._waiting.values()]
        return sorted(found, key=lambda batch: batch.created)

    @property
    def running(self) -> int:
        return len(self._live)

    # Turns

    async def _take_turns(self) -> None:
        while True:
            while (batch := self._next()) is not None:
                self._begin(batch)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.poll):
                    await self._news.wait()
            self._news.clear()
            try:
                await self._look()
            except Exception as error:  # such as a disk that fails for a while
                logger.error("batches cannot be looked at: %s", type(error).__name__)

    async def _look(self) -> None:
        """See what other processes left word of, and write down how far ours are."""
        if self._lock < 0:
            await asyncio.to_thread(self._try_lock)
            if self._lock < 0:
                return
        known = {**self._waiting, **self._live}
        for batch in await asyncio.to_thread(self._store.unfinished, known):
            if batch.id not in self._live:
                self._waiting.setdefault(batch.id, batch)
        for batch in [*self._waiting.values(), *(live.batch for live in self._live.values())]:
            if not batch.cancels() and await asyncio.to_thread(self._store.is_to_be_cancelled, batch):
                await self._cancel_here(batch.id)
        for live in list(self._live.values()):
            if self._owner(live.batch) is None:  # its rows are refused, but for those that only wait by now
                await self._cancel_here(live.batch.id)
            live.count()
            counts = live.batch.completed, live.batch.failed
            if counts != live.saved:
                live.saved = counts
                await self._save(live.batch, unless_ended=True)

    def _try_lock(self) -> None:
        fd = os.open(self._store.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return
        self._lock = fd

    async def _cancel_here(self, id: str) -> None:
        live = self._live.get(id)
        batch = live.batch if live is not None else self._waiting.get(id)
        if batch is None or batch.ended or batch.status in ("cancelling", "finalizing"):
            return
        _set(batch, "cancelling")
        await self._save(batch)
        if live is not None:
            live.stop()
        self._news.set()

    def _next(self) -> Batch | None:
        """Choose the next batch to begin. What only has to be ended needs no place."""
        if self._closing:
            return None
        now, wall = asyncio.get_running_loop().time(), time.time()
        ready = [batch for batch in self._waiting.values() if self._resting.get(batch.id, 0.0) <= now]
        for batch in ready:
            if batch.cancels() or batch.expires <= wall:
                return batch
        if len(self._live) >= self._most:
            return None
        running = Counter(live.batch.tenant for live in self._live.values())
        return min(ready, key=lambda batch: (running[batch.tenant], batch.created), default=None)

    def _begin(self, batch: Batch) -> None:
        del self._waiting[batch.id]
        live = self._live[batch.id] = _Live(batch)
        live.task = asyncio.create_task(self._run(live), name=f"fastllm-{batch.id}")

    # One batch

    async def _run(self, live: _Live) -> None:
        batch = live.batch
        try:
            await self._carry(live)
        except (JournalError, JobConflictError, OSError) as error:
            logger.error("%s has to wait: %s", batch.id, error)
            self._rest(batch)
        except Exception as error:  # what it says may hold a prompt
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s has to wait: it failed with %s\n%s", batch.id, type(error).__name__, where)
            self._rest(batch)
        finally:
            live.count()
            self._live.pop(batch.id, None)
            self._news.set()

    def _rest(self, batch: Batch) -> None:
        self._resting[batch.id] = asyncio.get_running_loop().time() + RESTING
        self._waiting[batch.id] = batch

    async def _carry(self, live: _Live) -> None:
        """Bring a batch from wherever it is to its end, or to where the gateway stops."""
        batch = live.batch
        if batch.ending is None and not batch.cancels() and batch.expires <= time.time():
            live.expired = True
        if batch.status == "validating" and not live.expired and not await self._check(batch):
            return
        if batch.ending is None:
            batch.ending = await self._ask(live)
            if batch.ending is None:  # the gateway stops
                live.count()
                await self._save(batch)
                return
        if batch.output_id is None:
            batch.output_id, batch.error_id = new_id(), new_id()
            if batch.ending == "completed":
                _set(batch, "finalizing")
            await self._save(batch)
        await self._finish(batch)

    async def _check(self, batch: Batch) -> bool:
        """Check its input; False where it has failed."""
        tenant = self._tenant(batch)
        source = self._store.folder(batch) / INPUT
        checked = await asyncio.to_thread(check_input, source, batch.endpoint, tenant, self._gate.serves)
        if batch.cancels():
            return True
        if checked.flaws:
            batch.flaws = checked.flaws
            await self._end(batch, "failed")
            return False
        batch.total, batch.asks = checked.count, checked.models
        _set(batch, "in_progress")
        await self._save(batch)
        return True

    async def _ask(self, live: _Live) -> Ending | None:
        """Run the job; say how the batch ends, None where only the gateway does."""
        batch, folder = live.batch, self._store.folder(live.batch)
        if batch.cancels() or live.expired or self._closing:
            return "cancelled" if batch.cancels() else "expired" if live.expired else None
        tenant = self._tenant(batch)
        executes = Charged(self._gate, self._patient, tenant, batch.id)
        await executes.meet(batch.asks)
        with open_reader(folder / INPUT) as reader:
            job = live.job = Job(
                *(executes, reader, folder / OUTPUT),
                durability="full",
                grace=self.grace,
                retry_failed=False,
            )
            timer = asyncio.get_running_loop().call_later(max(0.0, batch.expires - time.time()), _expire, live)
            try:
                live.journal = await job.open()
                if batch.cancels() or self._closing:
                    job.stop()
                result = await job.run()
            except JobConflictError:
                raise
            except ConfigError as error:  # none of it can be sent
                batch.flaws = [words_of(error)]
                return "failed"
            finally:
                timer.cancel()
                live.count()
                live.job = live.journal = None
        if result.finished:
            return "completed"
        if result.stopped is not None:
            batch.flaws = [words_of(result.stopped)]
            return "failed"
        return "cancelled" if batch.cancels() else "expired" if live.expired else None

    async def _finish(self, batch: Batch) -> None:
        """Make its files, and end it."""
        folder, ending = self._store.folder(batch), batch.ending
        assert ending is not None and batch.output_id is not None and batch.error_id is not None
        expires = None if batch.kept_seconds is None else time.time() + batch.kept_seconds
        output, errors = folder / OUTPUT, folder / ERRORS
        outputs: tuple[tuple[str, Any], ...] = ((batch.output_id, output), (batch.error_id, errors))

        def make() -> tuple[str | None, str | None]:
            written = write_results(
                *(folder / INPUT, output, errors), whole=ending == "completed", expired=ending == "expired"
            )
            batch.completed, batch.failed = written.completed, written.failed
            ids: list[str | None] = []
            for (id, path), count, name in zip(
                outputs, (written.completed, written.failed), ("output", "error"), strict=True
            ):
                if count:
                    shared = path.with_name(f"{path.name}.shared")
                    share(path, shared)
                    self._files.keep(
                        *(batch.tenant, shared),
                        name=f"{batch.id}_{name}.jsonl",
                        purpose="batch_output",
                        expires=expires,
                        id=id,
                    )
                ids.append(id if count else None)
            return ids[0], ids[1]

        batch.output_id, batch.error_id = await asyncio.to_thread(make)
        failures_path(output).unlink(missing_ok=True)
        await self._end(batch, ending)

    async def _end(self, batch: Batch, ending: Ending) -> None:
        batch.ending = ending
        _set(batch, ending)
        async with self._writing:
            await asyncio.to_thread(self._store.close, batch)

    def _tenant(self, batch: Batch) -> Tenant:
        """Give whose it is: with the limits of the key as it is now, and nothing to ask for where it is gone."""
        found = self._owner(batch)
        return found if found is not None else msgspec.structs.replace(batch.owner(), models=())

    def _owner(self, batch: Batch) -> Tenant | None:
        """Give whose it is as it is now; None where it may ask no more."""
        owner = self._known.get(batch.tenant) or batch.owner()
        return owner if owner.is_master else self._find_tenant(owner)

    async def _save(self, batch: Batch, *, unless_ended: bool = False) -> None:
        async with self._writing:  # whoever writes last writes how it is then
            if not (unless_ended and batch.ended):
                await asyncio.to_thread(self._store.save, batch)

    def __repr__(self) -> str:
        state = "runs" if self._lock >= 0 else "leaves to another process"
        return f"<BatchRunner {state} {len(self._live)} batches, {len(self._waiting)} wait>"


def _expire(live: _Live) -> None:
    live.expired = True
    live.stop()


def _set(batch: Batch, status: Status) -> None:
    batch.status = status
    batch.times = {**batch.times, status: time.time()}
