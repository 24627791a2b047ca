"""`fastllm run INPUT --output OUT`: a file of prompts becomes a file of answers."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from .. import build, loop, worker
from ..build import EngineOptions
from ..engine.engine import Engine
from ..engine.stats import Snapshot
from ..errors import ConfigError
from ..formats.base import Reader, open_reader
from ..formats.output import failures_path
from ..formats.remote import Places, local_places
from ..formats.rows import unsent_words
from ..formats.template import Template
from ..jobs.checks import check_places
from ..jobs.journal import journal_path
from ..jobs.publish import NOT_THERE
from ..jobs.runner import DEFAULT_CONCURRENCY, Job, JobResult, JournalError
from ..jobs.team import Team
from ..progress import Kind, Summary, make_progress, of_rows, show_summary, summary
from ..providers.vendors import is_local
from ..settings import Settings
from . import dry_run as dry
from .again import Again, command_to_keep
from .options import PAYING, SENDING, check_model, local_hint, setting_options, settings_of
from .say import Saying, say

PAGE = "fastllm.cli.run_page:run_dashboard"  # loaded where it is wanted: it takes a hundredth of a second
REASONS = 3  # kinds of failures of which one message is shown
GRACE = 30.0  # seconds for what is in flight after Ctrl-C
SETTINGS = (
    "model",
    *SENDING,
    "prompt",
    "system",
    "temperature",
    "max_tokens",
    "schema",
    "schema_retries",
    *PAYING,
    "workers",
    "leases",
    "input_format",
    "output_format",
    "keep",
    "fields",
    "columns",
    "failures",
    "durability",
    "order",
    "progress",
    "summary_json",
    "dashboard_port",
)


@click.command("run")
@click.argument("source", metavar="INPUT")
@click.option(
    "-o",
    "--output",
    required=True,
    envvar="FASTLLM_OUTPUT",
    metavar="OUT",
    help="Answers: .jsonl in OpenAI's batch shape, or a table: .csv, .tsv, .parquet, .arrow.",
)
@setting_options(*SETTINGS)
@click.option(
    "--overwrite",
    is_flag=True,
    envvar="FASTLLM_OVERWRITE",
    help="Start afresh: forget an earlier job's answers in OUT.",
)
@click.option(
    "--force",
    is_flag=True,
    envvar="FASTLLM_FORCE",
    help="Go on though the input or the parameters changed; answers stay as they are.",
)
@click.option(
    "--retry-failed/--no-retry-failed",
    default=None,
    envvar="FASTLLM_RETRY_FAILED",
    help="Ask only what failed, or only what was never asked. [default: both]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    envvar="FASTLLM_DRY_RUN",
    help="Say what it would ask, cost and take; send and write nothing.",
)
@click.option(
    "--dashboard",
    is_flag=True,
    envvar="FASTLLM_DASHBOARD",
    help="Serve a page to watch the run by, for this machine, on any free port.",
)
def command(
    source: str,
    output: str,
    overwrite: bool,
    force: bool,
    retry_failed: bool | None,
    dry_run: bool,
    dashboard: bool,
    **flags: Any,
) -> int:
    """Answer every row of INPUT and write OUT.

    INPUT is .jsonl, .csv, .tsv or .txt (a prompt a line), each also .gz or .zst, or .parquet, .arrow; - is standard
    input.

    Run the same command again to resume: rows that have their answer are not sent again.
    """
    settings = settings_of(flags)
    check_model(settings)
    worker.checked_size(settings["workers"])
    port = 0 if dashboard and settings["dashboard_port"] is None else settings["dashboard_port"]
    if port is not None and port > 65535:  # said before there is a job
        raise ConfigError(f"dashboard_port must be a port number, 0 to 65535; not {port} (0: any free one)")
    again = Again(overwrite=overwrite, force=force, retry_failed=retry_failed)

    def is_ours(local: Path) -> bool:
        return overwrite or journal_path(local).exists()

    with local_places(source, output, is_ours=is_ours) as places:
        logging.basicConfig(handlers=[Saying()], level=logging.WARNING)
        if dry_run:
            return dry.show(places, settings, again)
        return _done(places, settings, again, port)


def _done(places: Places, settings: Settings, again: Again, port: int | None) -> int:
    """Run the job and give its exit status; `port` is its dashboard's."""
    model, target = settings["model"] or "", places.output
    # A missing key or an unknown provider ends the run before there is a job. Only where a local model would have to
    # start, and there is an output already, does it start with the first row that is still to be asked.
    at_once = bool(model) and not (is_local(model) and target.exists())
    params = {name: settings[name] for name in ("temperature", "max_tokens") if settings[name] is not None}
    schema = settings.schema()
    with open_reader(
        places.source,
        model=model,
        prompt=settings["prompt"],
        system=settings["system"],
        params=params,
        schema=schema,
        format=settings["input_format"],
    ) as reader:
        summary_file = _summary_file(settings["summary_json"], reader, target, overwrite=again.overwrite)
        options = build.options_of(settings, os.environ)
        try:
            with local_hint(settings):
                result, found, status = loop.run(
                    _run(places, reader, options, settings, again=again, at_once=at_once, port=port)
                )
        except JournalError as error:
            raise click.ClickException(str(error)) from None
    unsaved = _uploaded(places) if result.finished else None
    if not result.nothing_to_do and settings["progress"] != "none":
        show_summary(found)
    _tell(result, bad=status == 2)
    if unsaved is not None:
        say(f"fastllm: error: {unsaved}")
        status = status or 2
    elif result.finished and places.url is not None:
        say(f"uploaded to {places.target}")
    if summary_file is not None:
        try:
            summary_file.write_bytes(found.to_json())
        except OSError as error:
            say(f"fastllm: error: {_unwritable(summary_file, error)}")
            return status or 2
    return status


def _uploaded(places: Places) -> ConfigError | None:
    """Bring the output to where it belongs; give what stood in the way."""
    try:
        places.upload(failures_path(places.output))
    except ConfigError as error:
        return error
    return None


async def _run(
    places: Places,
    reader: Reader,
    options: EngineOptions,
    settings: Settings,
    *,
    again: Again,
    at_once: bool,
    port: int | None,
) -> tuple[JobResult, Summary, int]:
    size = worker.checked_size(settings["workers"])
    engine = build.engine(worker.sharing(options, size))
    executes = worker.team(engine, options, options.cache, size) if size > 1 else engine
    try:
        if at_once:
            await engine.router.resolve(settings["model"])
        job = Job(
            executes,
            reader,
            places.output,
            overwrite=again.overwrite,
            force=again.force,
            retry_failed=again.retry_failed,
            base_url=settings["base_url"],
            durability=settings["durability"],
            order=settings["order"],
            columns=settings.shape(),
            output_format=settings["output_format"],
            origin=places.origin,
            command=command_to_keep(sys.argv[1:]),
            concurrency=_rows_in_work(executes.concurrency, settings["concurrency"], size),
            grace=GRACE,
        )
        await job.open()
        interrupts = _Interrupts(job)
        if reader.count_hint != 1 and not job.nothing_to_do and _asks_the_same(settings):
            say("fastllm: warning: --prompt names no column, such as {prompt}: every row asks the same")
        result, found = await _watched(executes, job, settings["progress"], None if job.nothing_to_do else port)
        for complaint in job.complaints:
            say(f"fastllm: error: {places.shown}: {complaint}")
        if job.bad > len(job.complaints):
            say(f"fastllm: error: {places.shown}: and {job.bad - len(job.complaints):,} more such rows")
        if unsent := settings.shape().unkept(reader.unsent):
            say(f"fastllm: warning: {places.shown}: {dry.NOT_SENT}: {unsent_words(unsent)}")
        return result, found, interrupts.status if result.interrupted else _status(job, result)
    finally:
        await engine.aclose()


def _rows_in_work(ceiling: int | None, concurrency: int | None, size: int) -> int:
    most = DEFAULT_CONCURRENCY * size
    return min(ceiling or most, concurrency or most)


async def _watched(engine: Engine | Team, job: Job, kind: Kind, port: int | None) -> tuple[JobResult, Summary]:
    """Run the job under a progress display; give its result and the summary."""

    def snapshot() -> Snapshot:
        return of_rows(engine.snapshot(), job.finished, job.errors)

    shown: Kind = "none" if job.nothing_to_do else kind
    progress = make_progress(shown, snapshot, lambda: job.total, already_done=lambda: job.kept)
    with nullcontext() if port is None else build.load(PAGE)(port, f"run {job.output.name}", engine, job, snapshot):
        progress.start()
        try:
            result = await job.run()
        finally:
            progress.close()
    return result, summary(
        snapshot(),
        total=result.total or job.total,
        already_done=job.kept,
        elapsed=result.elapsed,
        output=str(result.output) if result.finished else None,
        failures=str(result.failures) if result.failures else None,
    )


def _asks_the_same(settings: Settings) -> bool:
    """Tell whether templates make all requests equal, but for what rows say of their model."""
    texts = [text for text in (settings["prompt"], settings["system"]) if text is not None]
    return settings["prompt"] is not None and not any(Template(text).names for text in texts)


def _summary_file(name: str | None, reader: Reader, output: Path, *, overwrite: bool) -> Path | None:
    """Make sure, before anything is paid for, that the summary can be written and overwrites nothing of the job."""
    if name is None:
        return None
    path = Path(name)
    check_places(output, reader.path, journal=journal_path(output), overwrite=overwrite, summary=path)
    try:
        if not path.exists():
            path.touch()
            path.unlink()
        else:
            path.open("ab").close()
    except OSError as error:
        raise ConfigError(_unwritable(path, error)) from None
    return path


def _unwritable(path: Path, error: OSError) -> str:
    return f"cannot write the summary to {path}: {error.strerror or error}"


def _status(job: Job, result: JobResult) -> int:
    """2 where rows of the input are no requests, 1 where requests failed, 0 where every row has its answer."""
    if job.bad:
        return 2
    return 1 if result.stopped is not None or result.failed else 0


class _Interrupts:
    """Ctrl-C and SIGTERM: once stops the job gently, twice at once."""

    def __init__(self, job: Job) -> None:
        self.status = 0
        self._job = job
        running = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            running.add_signal_handler(number, self._stop, number)

    def _stop(self, number: int) -> None:
        again, self.status = self.status, 128 + number
        self._job.stop()  # before anything is said: nobody may be reading any more
        if self._job.publishing:
            say("\nfastllm: every row is done, the output is being written (again: stop that)")
        elif not again and (under_way := self._job.in_flight):
            what = "the request" if under_way == 1 else f"the {under_way:,} requests"
            say(f"\nfastllm: stopping; up to {GRACE:g} s for {what} in flight (again: at once)")
        elif not again:
            say("\nfastllm: stopping")


def _tell(result: JobResult, *, bad: bool) -> None:
    """Say what a user needs to know beyond the numbers. `bad`: some rows of the input are no requests."""
    for name, message in list(result.reasons.items())[:REASONS] if result.stopped is None else ():
        say(f"  {name}: {message}")
    if len(result.reasons) > REASONS and result.stopped is None:
        say(f"  and {len(result.reasons) - REASONS} more kinds of failures")
    if result.nothing_to_do and result.failed:
        say(f"{result.output} has all there is: {result.ok:,} answers; {result.failed:,} rows failed, and stay so")
    elif result.rewritten:
        say(f"{result.output} is written anew from the {result.total:,} answers that there were; nothing was asked")
    elif result.nothing_to_do:
        say(f"{result.output} has all {result.total:,} answers already; --overwrite asks again")
    elif result.stopped is not None:
        say(f"fastllm: stopped: {result.stopped}\nNothing is lost; when that is mended, go on with:")
        say(f"  {_command()}")
    elif result.interrupted and not result.done:
        say(f"no row is done; begin again with:\n  {_command()}")
    elif result.interrupted:
        say(f"{result.done:,} rows are done and kept in {result.journal}; go on with:\n  {_command()}")
    if result.without_source:
        say(f"fastllm: warning: {result.without_source:,} rows {NOT_THERE}")
    if result.finished and result.failures is not None and not result.nothing_to_do:
        rows = "1 row" if result.failed == 1 else f"{result.failed:,} rows"
        ways = ["the same command tries again"] if result.may_pass else []
        ways += ["bad rows may be mended in the input, and the same command asks them"] if bad else []
        say(f"{rows} failed: see {result.failures}; {'; '.join(ways) or 'as they are, they would fail again'}")


def _command() -> str:
    """The command that resumes: this one, without --overwrite."""
    called = Path(sys.argv[0])
    name = ["python", "-m", "fastllm.cli"] if called.name == "__main__.py" else [called.name]
    return shlex.join([*name, *(word for word in sys.argv[1:] if word != "--overwrite")])
