"""`fastllm jobs list|show|resume|export|rm`: what earlier runs left, by their journals."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec

from ..errors import ConfigError
from ..formats.base import Reader, check_output, open_reader
from ..formats.files import suffixes
from ..formats.output import failures_path
from ..formats.remote import local_places
from ..jobs.catalog import Found, files_of, find_jobs, look, output_of, remove
from ..jobs.journal import journal_path
from ..jobs.manifest import Totals, description, manifest_path, read_manifest
from ..jobs.publish import NOT_THERE, ORDERS, Order, Shape, entries, write_answers
from ..jobs.recorded import Recorded
from ..policy.budget import dollars
from .again import command_again
from .options import setting_options, settings_of
from .say import say

_OUT = click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_UNITS = ("B", "kB", "MB", "GB", "TB")


@click.group("jobs")
def command() -> None:
    """List, show, resume, export or remove the jobs under a directory. OUT is a job's output (or its journal)."""


@command.command("list")
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@_JSON
def list_jobs(directory: Path, as_json: bool) -> None:
    """List the jobs in DIR and below it, by default the current directory."""
    found = list(find_jobs(directory))
    if as_json:
        click.echo(_json([_plain(job) for job in found]))
        return
    if not found:
        say(f"no jobs in {directory}")
        return
    lines = [("OUTPUT", "STATE", "ROWS", "OK", "FAILED", "SIZE", "LAST WRITTEN (UTC)")]
    lines += [
        (
            _printable(str(job.output)),
            job.state,
            _rows(job),
            f"{job.ok:,}",
            f"{job.failed:,}",
            _size(job.size_bytes),
            job.changed.rstrip("Z").replace("T", " "),
        )
        for job in found
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            f"{c:<{w}}" if i in (0, 1, 6) else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


@command.command()
@_OUT
@_JSON
def show(output: Path, as_json: bool) -> None:
    """Show a job: what it is, how far it is, what it came to, and its runs."""
    output = output_of(output)
    found = look(output)
    totals = Totals()
    if found.problem is None:
        with Recorded(found.journal) as recorded:
            for state in (1, 2):
                for _, entry in entries(recorded, recorded.rows, state):
                    totals.add(entry)
    if as_json:
        click.echo(_json({**_plain(found), "totals": totals, "manifest": found.manifest}))
        return
    for name, value in _lines(found, totals):
        click.echo(f"{name:<10} {value}")


def _lines(found: Found, totals: Totals) -> list[tuple[str, str]]:
    rows = _rows(found)
    if found.rows is None:
        rows = f"about {found.expected:,}, not all read yet" if found.expected is not None else f"not known ({rows})"
    lines = [("output", _printable(str(found.output))), ("state", found.problem or found.state), ("rows", rows)]
    lines += [("ok", f"{found.ok:,}" + (f" ({totals.cached:,} cached)" if totals.cached else ""))]
    if found.failed:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(totals.errors.items(), key=lambda e: (-e[1], e[0])))
        lines.append(("failed", f"{found.failed:,} ({kinds})"))
    if found.damaged:
        lines.append(("damaged", f"{found.damaged:,} places of the journal; their rows run again"))
    if found.identity is not None:
        job = description(found.identity)
        lines += [("model", job.model or "as the rows say"), ("base URL", job.base_url or "the provider's")]
        lines += [(name, _json(value, indent=0)) for name, value in job.params.items()]
        lines += [("input", f"SHA-256 {job.fingerprint}" if job.fingerprint else "a stream")]
    lines.append(
        ("tokens", f"{totals.prompt_tokens:,} in ({totals.cached_tokens:,} cached), {totals.completion_tokens:,} out")
    )
    lines.append(("cost", "not known" if totals.cost_usd is None else dollars(totals.cost_usd)))
    lines.append(("attempts", f"{totals.attempts:,} ({totals.retries:,} retries)"))
    lines.append(
        ("journal", f"{_printable(found.journal.name)}, {_size(found.size_bytes)}, last written {found.changed}")
    )
    for run in found.manifest.runs if found.manifest is not None else ():
        state = "running or killed" if run.ended is None else f"{run.state}, {run.elapsed:,.1f} s, {run.ok:,} ok so far"
        lines.append(("run", f"{run.began} {state} (FastLLM {run.fastllm}, Python {run.python})"))
    return lines


@command.command(context_settings={"ignore_unknown_options": True})
@_OUT
@click.argument("more", metavar="[FLAGS]...", nargs=-1, type=click.UNPROCESSED)
def resume(output: Path, more: tuple[str, ...]) -> Any:
    """Run a job again, with the command that it was begun with; FLAGS of `fastllm run` are put behind it."""
    output = output_of(output)
    found = look(output)
    if found.problem is not None:
        raise ConfigError(found.problem)
    kept = found.manifest.command if found.manifest is not None else []
    if not kept or found.identity is None or found.manifest is None:
        raise ConfigError(f"{manifest_path(output)} names no command: run the job again as it was begun")
    if found.manifest.input is None:
        raise ConfigError(f"the input of {output} was a stream: give it again to the command that it was begun with")
    directory = Path(found.manifest.directory or ".")
    if not directory.is_dir():
        raise ConfigError(f"{directory}, in which the job was begun, is gone")
    words = [*command_again(kept, output, found.identity), *more]
    os.chdir(directory)
    say(shlex.join(["fastllm", *(w for w in words if not w.startswith(("--prompt=", "--system=")))]))
    from_here = [sys.executable, "-m", "fastllm.cli", *words]
    os.execv(sys.executable, from_here)  # its signals and exit status are the job's own


@command.command()
@_OUT
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--order", type=click.Choice(ORDERS), default="input", help="Order of the answers. [default: input]")
@setting_options("keep", "fields", "columns", "failures", "output_format")
@click.option("--overwrite", is_flag=True, help="Write over FILE where it exists.")
def export(output: Path, target: Path, order: Order, overwrite: bool, **flags: Any) -> None:
    """Write the answers that there are so far to FILE, .jsonl or a table; also while the job runs."""
    output = output_of(output)
    settings = settings_of(flags)
    shape = Shape(columns=settings.shape(), format=settings["output_format"], order=order)
    own = (output, journal_path(output), failures_path(output), manifest_path(output))
    if any(
        target.absolute() == path.absolute() or (target.exists() and path.exists() and target.samefile(path))
        for path in own
    ):
        raise ConfigError(f"{target} is a file of the job itself; give another")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists; give another file, or --overwrite")
    with ExitStack() as opened:
        recorded = opened.enter_context(Recorded(journal_path(output)))
        if shape.columns.keep:
            shape.reader = _input_of(output, recorded, opened)
        check_output(target, shape.columns, format=shape.format, like=shape.reader)
        write_answers(recorded, recorded.rows, target, shape=shape)
    say(f"{recorded.ok:,} answers in {target}; {recorded.failed:,} rows failed")
    if recorded.damaged:
        say(
            f"fastllm: warning: {recorded.damaged:,} places of {recorded.path} are damaged and left out; "
            "run the job again, which asks their rows anew"
        )
    if shape.without_source:
        say(f"fastllm: warning: {shape.without_source:,} rows {NOT_THERE}")


def _input_of(output: Path, recorded: Recorded, opened: ExitStack) -> Reader | None:
    """Open the input of a job once more, for its columns; None where it was a stream: the journal has its rows."""
    manifest, job = read_manifest(manifest_path(output)), recorded.identity
    if manifest is None or manifest.input is None or job is None:
        return None
    source = opened.enter_context(local_places(manifest.input, output)).source
    reader = open_reader(source, format=manifest.input_format, prompt=job.prompt, system=job.system)
    return opened.enter_context(reader)


@command.command()
@_OUT
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(output: Path, yes: bool) -> None:
    """Remove a job's journal, index and manifest. OUT and the file of failures stay; the job cannot be resumed."""
    output = output_of(output)
    found = look(output)
    names = ", ".join(path.name for path in files_of(output))
    if not output.exists() and found.ok:
        say(f"fastllm: warning: {found.ok:,} answers are only in the journal; `fastllm jobs export` writes them out")
    if not yes:
        click.confirm(f"remove {names}?", abort=True, err=True)
    try:
        say(f"removed {', '.join(path.name for path in remove(output))}")
    except OSError as error:
        raise ConfigError(f"cannot remove {error.filename}: {error.strerror or error}") from None


def _rows(found: Found) -> str:
    """How many rows the input has, about how many, or why that is not known."""
    if found.rows is not None:
        return f"{found.rows:,}"
    if found.expected is not None:
        return f"~{found.expected:,}"
    if found.identity is None or found.manifest is None:
        return "unknown"
    if not found.identity.fingerprint:
        return "a stream"
    return "compressed" if suffixes(Path(found.manifest.input or ""))[1] else "unknown"


def _plain(found: Found) -> dict[str, Any]:
    """What a program wants to know of a job; without its prompts."""
    fields = {
        name: getattr(found, name)
        for name in ("state", "rows", "expected", "ok", "failed", "damaged", "size_bytes", "changed")
    }
    job = None if found.identity is None else description(found.identity)
    return {"output": str(found.output), "journal": str(found.journal), **fields, "problem": found.problem, "job": job}


def _json(value: Any, indent: int = 2) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=indent).decode()


def _size(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:,.0f} {_UNITS[unit]}" if size >= 100 or not unit else f"{size:,.1f} {_UNITS[unit]}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
