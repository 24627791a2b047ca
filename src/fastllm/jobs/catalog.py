"""Catalog: the jobs under a directory, by their journals, which are only read; and what there is to remove of one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ConfigError, FastLLMError, JobConflictError
from ..formats.output import failures_path
from .frames import MAGIC
from .journal import INDEX, JOURNAL, Identity, journal_path
from .manifest import Manifest, manifest_path, read_manifest
from .recorded import Recorded

State = Literal["running", "finished", "unfinished", "unreadable"]


class Found(msgspec.Struct, kw_only=True):
    """A job as its files tell. `rows` is the number of the input's rows, None where it was not read to its end;
    `expected` is how many there are then, about, where that is known. `size_bytes` is the journal's, `changed` when it
    was last written (UTC)."""

    output: Path
    state: State
    rows: int | None = None
    expected: int | None = None
    ok: int = 0
    failed: int = 0
    damaged: int = 0
    size_bytes: int = 0
    changed: str = ""
    journal: Path
    identity: Identity | None = None
    manifest: Manifest | None = None
    problem: str | None = None


def output_of(path: Path) -> Path:
    """Take the name of a job's output, or of its journal. ConfigError where there is no such job."""
    if path.name.endswith(JOURNAL):
        path = path.with_name(path.name.removesuffix(JOURNAL))
    if not journal_path(path).exists():
        raise ConfigError(f"there is no job of {path}: there is no {journal_path(path)}")
    return path


def find_jobs(directory: Path) -> Iterator[Found]:
    """Look for journals in a directory and below it, in the order of their names; links are not followed."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory")
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(JOURNAL) and name != JOURNAL and not path.is_symlink() and _is_journal(path):
                yield look(path.with_name(name.removesuffix(JOURNAL)))


def _is_journal(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def look(output: Path) -> Found:
    """Tell how a job stands; what cannot be read is its `problem`."""
    found = Found(output=output, state="unfinished", journal=journal_path(output))
    try:
        with Recorded(found.journal) as recorded:
            status = os.fstat(recorded.fd)
            found.size_bytes = status.st_size
            changed = datetime.fromtimestamp(status.st_mtime, UTC)
            found.changed = changed.isoformat(timespec="seconds").replace("+00:00", "Z")
            found.rows, found.damaged, found.identity = recorded.total, recorded.damaged, recorded.identity
            found.ok, found.failed = recorded.ok, recorded.failed
            found.manifest = read_manifest(manifest_path(output))
            found.expected = found.rows if found.rows is not None or not found.manifest else found.manifest.rows
            if _is_locked(recorded.fd):
                found.state = "running"
            elif found.ok + found.failed == found.rows and output.exists():
                found.state = "finished"
    except FastLLMError as error:
        found.state, found.problem = "unreadable", str(error)
    return found


def _is_locked(fd: int) -> bool:
    """Try the lock that a run holds, for a moment."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def files_of(output: Path) -> list[Path]:
    """Name what a job keeps beside its output: journal, index, manifest, and what a killed run left half written."""
    journal = journal_path(output)
    halves = [p.with_name(f".{p.name}.partial") for p in (output, failures_path(output), manifest_path(output))]
    names = [journal.with_name(journal.name + INDEX), manifest_path(output), *halves, journal]
    return [path for path in names if path.exists() or path.is_symlink()]


def remove(output: Path) -> list[Path]:
    """Remove what a job keeps beside its output, which stays. JobConflictError where it is running."""
    journal = journal_path(output)
    try:
        fd = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot remove {journal}: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobConflictError(f"{journal} is in use: stop the process that runs this job first") from None
        files = files_of(output)
        for path in files:  # the journal last: as long as it is there, so is the lock
            path.unlink(missing_ok=True)
        return files
    finally:
        os.close(fd)
