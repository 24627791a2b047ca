"""Job: reader -> workers -> journal -> output; it can be stopped or killed anywhere and run again.

What is in the journal with an answer is never asked again. What failed is asked again by the next run, because
running the command again says so. The output appears when every row is done; until then there is only the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from zlib import crc32

import msgspec

from ..errors import ConfigError, DeadlineExceededError, JobConflictError, LLMError, StoppedError
from ..formats.base import BREATH, Reader, reopened
from ..formats.columns import PLAIN, Columns
from ..formats.output import failures_path
from ..types import Outcome, Row, _without_secrets
from .ahead import Ahead
from .checks import check_job
from .delivery import Delivery
from .entry import entry_of
from .frames import FAILED, OK
from .journal import Durability, Finished, Identity, Journal, JournalError, journal_path
from .manifest import Ledger
from .mounts import shared_filesystem
from .outcomes import delivery, outcomes
from .publish import ORDERS, GivenUpError, Order, Shape, publish
from .result import JobResult
from .workers import Executes

__all__ = ["Executes", "Job", "JobResult", "JournalError", "outcomes", "run_job"]

logger = logging.getLogger("fastllm")

DEFAULT_CONCURRENCY = 1024  # rows in work; how many of them are in flight, the engine finds out
_MOST_BACKLOG = 64 * 1024 * 1024  # bytes that may wait for a slow disk before the workers do
_MOST_MISFITS = 10_000  # held back until it is known whose mistake they are
COMPLAINTS = 10
_TOGETHER = 64  # outcomes at most that are recorded at once


class Job:
    """One run of one input into one output.

    `concurrency` rows are in work at once; `grace` seconds are given to those in flight after `stop`; after
    `fatal_after` errors in a row that condemn the key (no credit, wrong key), and no success between them, the job
    stops instead of failing every row. `base_url`, where one was given, is part of what makes it this job.
    `durability` "full" has a row on the disk within 20 ms, "normal" in a second.

    `retry_failed`: None asks what failed and what is missing, False only what is missing, True only what failed.
    `force` goes on where input or parameters changed, and keeps the answers as they are. `order` is that of the output,
    `columns` say what it holds. `origin` is where the input was copied from, if it was.
    `command`, without prompts, is what to call for another run; it goes into the manifest.
    """

    def __init__(
        self,
        engine: Executes,
        reader: Reader,
        output: str | Path,
        *,
        overwrite: bool = False,
        base_url: str | None = None,
        durability: Durability = "normal",
        concurrency: int | None = None,
        grace: float = 30.0,
        fatal_after: int = 10,
        retry_failed: bool | None = None,
        force: bool = False,
        order: Order = "input",
        columns: Columns = PLAIN,
        output_format: str | None = None,
        origin: str | None = None,
        command: Sequence[str] = (),
    ) -> None:
        if order not in ORDERS:
            raise ConfigError(f"order must be one of {', '.join(ORDERS)}; not {order!r}")
        if overwrite and (force or retry_failed is not None):
            raise ConfigError("overwrite=True starts anew: it has no use for force or retry_failed")
        self.output = Path(output)
        self.journal_path = journal_path(self.output)
        self.skipped = self.cached = self.bad = self.finished = 0  # `finished`: rows that this run has recorded
        self.errors: Counter[str] = Counter()  # the failures among them, by their class
        self.reasons: dict[str, str] = {}  # the first message of each class of failures, but for those of bad rows
        self.complaints: list[str] = []  # of the first bad rows: what is wrong, and on which line
        self._engine = engine
        self._reader = reader
        self._overwrite = overwrite
        self._base_url = base_url
        self._durability = durability
        self._concurrency = concurrency or min(engine.concurrency or DEFAULT_CONCURRENCY, DEFAULT_CONCURRENCY)
        self._grace, self._fatal_after = grace, fatal_after
        self._retry_failed, self._force = retry_failed, force
        self._shape = Shape(columns=columns, format=output_format, order=order, reader=reader)
        self._keeps_source = columns.keeps and (reader.path is None or reader.pipe is not None)
        self._command, self._origin = command, origin
        self._ledger: Ledger | None = None
        self.passed = self.changed = 0  # rows not to be asked now (see retry_failed); rows changed, but kept by force
        self._began = 0.0
        self._journal: Journal | None = None
        self._workers: Delivery | None = None
        self._under_way: dict[int, Row] = {}
        self._read = 0
        self._all_read = False
        self._accepted = self._unchanged = False  # the input is, to the byte, what it was in the run before
        self.publishing = False  # every row is done, and the output is being written
        self._stop_asked = 0
        self._given_up = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopped: str | None = None
        self._fatal = 0
        self._may_pass = False
        self._has_sent = False  # in this run or an earlier one
        self._misfits: list[Outcome] = []
        self._finished: list[Finished] = []  # settled, and not in the journal yet

    @property
    def total(self) -> int | None:
        """How many rows there are: exact once all are read, before that an estimate, or None."""
        return self._read if self._all_read else self._reader.count_hint

    @property
    def done(self) -> int:
        """Rows with an answer or a final error so far, those of earlier runs with an answer included."""
        return self.kept + self.finished

    @property
    def kept(self) -> int:
        """Rows that are as an earlier run left them: answered, or failed and not to be asked again."""
        return self.skipped + (self.passed if self._retry_failed is False else 0)

    @property
    def in_flight(self) -> int:
        """Rows whose request is under way now."""
        return self._workers.in_flight if self._workers is not None else 0

    async def open(self) -> Journal:
        """Check all that can be checked and lock the journal; `run` does it where it was not done before, and must
        follow. Raises ConfigError."""
        self._began = time.monotonic()
        self._journal = await self._opened()
        return self._journal

    async def run(self) -> JobResult:
        """Run to the end, or until stopped. Raises ConfigError before anything is sent, JournalError if the disk
        fails; whatever was answered until then is kept, and the same job run again goes on."""
        journal = self._journal or await self.open()
        ledger, result = self._ledger, None
        assert ledger is not None
        try:
            if journal.damaged or journal.torn_bytes:
                logger.warning(
                    "%s: %d damaged places and %d torn bytes at the end; their rows run again",
                    *(journal.path, journal.damaged, journal.torn_bytes),
                )
            if self._is_complete(journal):
                self.skipped, self.passed = journal.ok, journal.failed
                self._read = self.skipped + self.passed
                self._all_read = True
                result = self._result(journal.total, None)
                return result
            await asyncio.to_thread(ledger.begin, anew=self._overwrite)
            result = await self._run(journal)
            return result
        finally:
            self._journal = None
            await asyncio.shield(asyncio.to_thread(self._close, journal, ledger, result))

    async def _run(self, journal: Journal) -> JobResult:
        await self._ask(journal)
        if self._all_read and self._retry_failed and self.passed and self._stopped is None:
            self._stopped = f"{self.passed:,} rows were never asked, and retry_failed=True asks only those that failed"
        if not self._all_read or self._stopped is not None or self._under_way:
            await asyncio.to_thread(journal.sync)
            return self._result(None, None)
        journal.finish(self._read)
        await asyncio.to_thread(journal.sync)
        try:
            result = self._result(self._read, await self._published(journal))
            return msgspec.structs.replace(result, rewritten=result.nothing_to_do)
        except GivenUpError:
            return self._result(None, None)

    def _close(self, journal: Journal, ledger: Ledger, result: JobResult | None) -> None:
        """Let go of the journal, after the manifest: the lock guards that, too."""
        try:
            if not _is_kept(journal):
                ledger.discard()
            elif ledger.began:
                state = "stopped" if result is None or result.stopped else "interrupted" if result.interrupted else ""
                ledger.end(
                    state or "finished",
                    ok=journal.ok,
                    failed=journal.failed,
                    elapsed=time.monotonic() - self._began,
                    failures=None if result is None else result.failures,
                )
        finally:
            (journal.close if _is_kept(journal) else journal.discard)()

    def stop(self) -> None:
        """Send nothing more and let what is in flight finish within `grace` seconds; asked twice, give it up at once.
        Once every row is done only the second call does something: it gives up the writing of the output. Call it on
        the loop's thread, for instance from a signal handler."""
        self._stop_asked += 1
        if self._workers is None:
            self._given_up = self._stop_asked > 1  # what is being written, if anything is
            return
        self._workers.drain()
        if self._stop_asked > 1 or self._grace <= 0:
            self._workers.cancel()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._grace, self._workers.cancel)

    async def _opened(self) -> Journal:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on: what it opens must be closed, or the lock would outlive this run.
            opening.add_done_callback(_close_opened)
            raise

    def _open(self) -> Journal:
        """Check what can be checked, then open the journal, and what belongs to it."""
        check_job(
            *(self._reader, self.output, self._shape),
            journal=self.journal_path,
            overwrite=self._overwrite,
            retry_failed=self._retry_failed,
        )
        identity = identify(self._reader, self._base_url)
        if kind := shared_filesystem(self.output.parent):
            logger.warning("%s is on %s, where locks may not hold: run one job there once at a time", self.output, kind)
        journal = Journal.open(
            self.journal_path, identity, overwrite=self._overwrite, force=self._force, durability=self._durability
        )
        try:
            self._ledger = Ledger(
                *(self.output, self._reader.path, identity, self._command),
                origin=self._origin,
                input_format=self._reader.format[1:],
                rows=self._reader.count_hint,
                shape=self._shape.described(),
            )
            # What an earlier run compared, or was forced to take, is not compared again; only its lines may have moved.
            self._accepted = bool(identity.fingerprint) and not journal.input_changed and not journal.differences
            self._unchanged = self._accepted and not journal.moved
            if journal.differences:
                logger.warning(
                    "%s goes on by force: it differs in %s; its %d answers stay as they are",
                    *(journal.path, ", ".join(journal.differences), journal.ok),
                )
                journal.take_over(identity)
            if journal.input_changed:
                self._compare(journal)
                journal.take_over(identity)
        except BaseException:
            journal.close()
            raise
        return journal

    def _compare(self, journal: Journal) -> None:
        """Make sure that a changed input left the rows alone that have their answers; what else it holds is asked.
        Before anything is sent, so that nobody pays for half of a mistake."""
        count = 0
        with reopened(self._reader) as rows:
            for row in rows:
                count = row.index + 1
                if journal.state(row.index) != OK:
                    continue
                if row.request is None or journal.check(row.index) != crc32(row.source):
                    raise JobConflictError(
                        f"line {row.line} of {self._reader.path} has its answer in {journal.path} and is another now: "
                        f"the input's content changed. To mend rows that failed, change only those, or mend "
                        f"{failures_path(self.output)} and run that; else give another output, or start anew with "
                        "overwrite=True"
                    )
        beyond = journal.ok - journal.count(count)[0]
        if beyond:
            raise JobConflictError(
                f"{self._reader.path} has only {count:,} rows now, and {beyond:,} behind them have their answers in "
                f"{journal.path}: is it whole? Give another output, leave those answers out of this one with "
                "force=True, or start anew with overwrite=True"
            )

    @property
    def nothing_to_do(self) -> bool:
        """True where it is known, after `open`, that every row was answered by earlier runs."""
        return self._journal is not None and self._is_complete(self._journal)

    def _is_complete(self, journal: Journal) -> bool:
        # Of a stream only reading it tells whether it is the same input.
        known = self._reader.path is not None and self._reader.pipe is None
        if not known or journal.total is None or not self.output.exists():
            return False
        ok, failed = journal.count(journal.total)
        if self._ledger is None or not self._ledger.is_told(ok, failed):  # the output may be another's, or another one
            return False
        if self._retry_failed is False and failures_path(self.output).exists():
            return ok + failed == journal.total
        return ok == journal.total and not failures_path(self.output).exists()

    async def _ask(self, journal: Journal) -> None:
        """Have every row answered that is not yet, and record the outcomes."""
        if self._stop_asked:
            return
        self._has_sent = journal.ok > 0
        pipe = self._reader.pipe
        ahead = Ahead(self._reader, pipe.interrupt) if pipe is not None else None
        rows = self._rows(journal) if ahead is None else self._rows_of(ahead, journal)
        concurrency = self._concurrency
        workers = delivery(
            *(self._engine, rows), concurrency=concurrency, window=concurrency, unwritten=journal.unwritten
        )
        journal.when_written(workers.written_from_thread)
        self._workers = workers
        try:
            while True:
                if self._settled(workers, journal):
                    if journal.backlog > _MOST_BACKLOG:
                        await asyncio.sleep(0.01)
                elif workers.finished:
                    break
                else:
                    await workers.news()
            workers.check()
            if journal.failure is not None:
                raise journal.failure
        finally:
            self._workers = None
            journal.when_written(None)
            if self._timer is not None:
                self._timer.cancel()
            try:
                await workers.aclose()
            finally:
                if ahead is not None:
                    ahead.close()

    def _rows(self, journal: Journal) -> Iterator[Row | None]:
        """Give the rows that have no answer yet. Nothing is pulled once the journal cannot be written."""
        known = len(journal.states)  # no earlier run had more rows
        asks_new = not is_left(0, self._retry_failed)
        for row in self._unanswered(journal, known) if self._unchanged and known else self._reader:
            if row is None:
                yield None
            elif (row.index >= known and asks_new) or not self._is_answered(row, journal):
                if journal.failure is not None:
                    return
                self._take(row)
                yield row
            elif (self.skipped + self.passed) % BREATH == 0:
                yield None
        self._all_read = True

    def _unanswered(self, journal: Journal, known: int) -> Iterator[Row | None]:
        """Go over the same input as before: what has its answer need not even be looked at."""
        passing = bytes(state for state in (0, OK, FAILED) if state == OK or is_left(state, self._retry_failed))

        def passed(index: int) -> Sequence[int] | None:
            return journal.keys(index, passing) if index < known else None

        for found in self._reader.unanswered(passed, journal.line):
            if not isinstance(found, int):
                yield found
                continue
            before, self._read = self._read, self._read + found
            answered = journal.states.count(OK, before, self._read)
            self.skipped += answered
            self.passed += found - answered
            yield None

    def _take(self, row: Row) -> None:
        self._read = row.index + 1
        self._under_way[row.index] = row

    async def _rows_of(self, ahead: Ahead, journal: Journal) -> AsyncIterator[Row | None]:
        """Do the same with rows that are waited for."""
        async for row in ahead:
            if not self._is_answered(row, journal):
                if journal.failure is not None:
                    return
                self._take(row)
                yield row
            elif (self.skipped + self.passed) % BREATH == 0:
                yield None
        self._all_read = True

    def _is_answered(self, row: Row, journal: Journal) -> bool:
        """Tell whether an earlier run answered this row. JobConflictError where it was another one."""
        self._read = row.index + 1
        state = journal.state(row.index)
        if state != OK:
            passed = is_left(state, self._retry_failed)
            self.passed += passed
            return passed
        if self._accepted or journal.check(row.index) == crc32(row.source):
            pass
        elif self._force:
            self.changed += 1
        else:
            raise JobConflictError(
                f"row {row.index} is not what it was when {journal.path} was written: the input changed; "
                "give another output, go on and keep its answers with force=True, or start anew with overwrite=True"
            )
        self.skipped += 1
        return True

    def _settled(self, workers: Delivery, journal: Journal) -> bool:
        """Record outcomes that are there, several at once; tell whether there were any."""
        taken = 0
        try:
            while taken < _TOGETHER and (outcome := workers.take()) is not None:
                taken += 1
                self._settle(outcome)
        finally:
            if self._finished:
                finished, self._finished = self._finished, []
                journal.append_all(finished)
                self.finished += len(finished)
        return taken > 0

    def _settle(self, outcome: Outcome) -> None:
        """Have it recorded. Misfits (a ConfigError: no key, no such provider) are the whole job's mistake as long as
        nothing was sent; whether they are is not known while anything is in flight, and until then they wait."""
        error = outcome.error
        if error is not None and not self._has_sent and isinstance(error.__cause__, ConfigError):
            self._misfits.append(outcome)
            if len(self._misfits) == len(self._under_way):
                raise error.__cause__
            if len(self._misfits) >= _MOST_MISFITS:
                self._give_up(error.message)
            return
        if error is None or error.sent:
            self._has_sent = True
            if self._misfits:
                misfits, self._misfits = self._misfits, []
                for other in [] if self._stopped else misfits:
                    self._record(other)
        self._record(outcome)
        if self._misfits and len(self._misfits) == len(self._under_way):
            cause = self._misfits[0].error and self._misfits[0].error.__cause__
            raise cause or ConfigError("no row can be sent")

    def _record(self, outcome: Outcome) -> None:
        row, error = self._under_way.pop(outcome.index), outcome.error
        if error is None:
            self._fatal = 0
        elif not self._goes_on(row, error):
            self._under_way[outcome.index] = row  # not done: neither asked nor recorded
            return
        entry = entry_of(row, outcome, keeps_source=self._keeps_source)
        self.cached += entry.cached
        self._finished.append((outcome.index, error is None, crc32(row.source), entry))

    def _goes_on(self, row: Row, error: LLMError) -> bool:
        """Count an error. Tell whether it is the row's own; otherwise it is the job's, which then stops."""
        if row.request is None:
            self.bad += 1
            if len(self.complaints) < COMPLAINTS:
                self.complaints.append(error.message)
        else:
            self.reasons.setdefault(type(error).__name__, error.message)
            self._may_pass = self._may_pass or _may_pass(error)
        if isinstance(error, StoppedError):
            self._give_up(error.message)
            return False
        self.errors[type(error).__name__] += 1
        if error.fatal_for_key:
            self._fatal += 1
            if self._fatal >= self._fatal_after:
                self._give_up(f"{self._fatal} times in a row: {error.message}")
        return True

    def _give_up(self, why: str) -> None:
        self._stopped = self._stopped or why
        if self._workers is not None:
            self._workers.drain()

    async def _published(self, journal: Journal) -> Path | None:
        self.publishing = True
        writing = asyncio.ensure_future(asyncio.to_thread(self._publish, journal))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread goes on for a while; the lock must not be given away before it ended.
            self._given_up = True
            while not writing.done():
                with contextlib.suppress(asyncio.CancelledError):  # the first one is raised
                    await asyncio.wait([writing])
            if not writing.cancelled():
                writing.exception()
            raise

    def _publish(self, journal: Journal) -> Path | None:
        try:
            totals = self._ledger.totals if self._ledger is not None else None
            return publish(
                *(journal, self._read, self.output),
                shape=self._shape,
                totals=totals,
                given_up=lambda: self._given_up,
            )
        except OSError as error:
            raise JournalError(
                f"cannot write {self.output}: {error.strerror or error}; every answer is in {journal.path}, "
                "run the job again to write them out"
            ) from None

    def _result(self, total: int | None, failures: Path | None) -> JobResult:
        journal = self._journal
        assert journal is not None
        ok, failed = (journal.ok, journal.failed) if total is None else journal.count(total)
        return JobResult(
            total=total,
            done=ok + failed,
            ok=ok,
            failed=failed,
            skipped=self.skipped,
            passed=self.passed,
            cached=self.cached,
            interrupted=total is None and self._stopped is None,
            stopped=self._stopped,
            output=self.output,
            failures=failures,
            reasons=dict(self.reasons),
            may_pass=self._may_pass,
            journal=journal.path,
            damaged=journal.damaged,
            without_source=self._shape.without_source,
            elapsed=time.monotonic() - self._began,
        )

    def __repr__(self) -> str:
        return f"<Job {self.output.name}: {self.done} of {self.total or '?'} rows, {self._workers!r}>"


async def run_job(engine: Executes, reader: Reader, output: str | Path, **options: object) -> JobResult:
    """Run a Job; see there for the options."""
    return await Job(engine, reader, output, **options).run()  # type: ignore[arg-type]


def is_left(state: int, retry_failed: bool | None) -> bool:
    """Tell whether a row without an answer, with this state in the journal, is none that such a run should ask."""
    return retry_failed is not None and retry_failed != (state == FAILED)


def identify(reader: Reader, base_url: str | None) -> Identity:
    """Give what makes the job of this input the same job when it is run again."""
    recipe = reader.recipe
    return Identity(
        fingerprint=reader.fingerprint(),
        model=recipe.model,
        prompt=recipe.prompt,
        system=recipe.system,
        params=recipe.params,
        base_url=None if base_url is None else _without_secrets(base_url).rstrip("/"),
        schema=None if recipe.schema is None else recipe.schema.json_schema,
    )


def _is_kept(journal: Journal) -> bool:
    """Tell whether there is anything in the journal: what a refused run would leave behind is only in the way."""
    return bool(journal.ok or journal.failed or journal.damaged) or journal.total is not None or bool(journal.failure)


def _may_pass(error: LLMError) -> bool:
    """Tell whether the same request may succeed later, or as soon as something beside it is mended, such as a key."""
    passing = error.retryable or error.fatal_for_key or isinstance(error, DeadlineExceededError)
    return passing or isinstance(error.__cause__, ConfigError)


def _close_opened(opening: asyncio.Future[Journal]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
