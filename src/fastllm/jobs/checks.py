"""What can be known before a job begins: whether its files may be written, and whether there is anything to do."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..errors import ConfigError, JobConflictError
from ..formats.base import Reader, check_model, check_output, reopened
from ..formats.columns import ALL, Columns
from ..formats.output import ERRORS, failures_path, sharing
from .journal import journal_path
from .manifest import manifest_path, read_manifest
from .publish import Shape

logger = logging.getLogger("fastllm")

LOOKED_AT = 1000  # rows


def check_job(
    reader: Reader, output: Path, shape: Shape, *, journal: Path, overwrite: bool, retry_failed: bool | None
) -> None:
    """Check everything that can be checked before a request costs money. Raises ConfigError, JobConflictError."""
    check_output(output, shape.columns, format=shape.format, like=reader)
    for warning in unknown_kept(reader, shape.columns):
        logger.warning("%s", warning)
    check_places(output, reader.path, journal=journal, overwrite=overwrite)
    if not overwrite and not journal.exists() and output.exists():
        raise JobConflictError(
            f"{output} exists and is of no job that could be resumed (there is no {journal.name}): "
            "give another output, or write over it with overwrite=True"
        )
    check_model(reader)
    if retry_failed and not journal.exists():
        raise ConfigError(f"there is no {journal}, and so no rows that failed: run without retry_failed=True")


def unknown_kept(reader: Reader, columns: Columns) -> Iterator[str]:
    """Say which columns are to be kept that no row has, of an input that names them in its rows and can be read again.
    It is no error: rows of JSON need not have the same fields, and only the first ones are looked at."""
    if reader.header is not None or reader.path is None or reader.pipe is not None:
        return
    wanted = [name for name in columns.keep if name not in (ALL, "custom_id")]
    if not wanted:
        return
    every, found, count = Columns(keep=(ALL,)), set[str](), 0
    with reopened(reader) as rows:
        for row in islice(rows, LOOKED_AT):
            count += 1
            found.update(every.kept(row.source))
            if found.issuperset(wanted):
                return
    where = "no row" if count < LOOKED_AT else f"none of the first {count:,} rows"
    for name in wanted:
        if count and name not in found:
            near = difflib.get_close_matches(name, found, 1)
            yield f"keep={name!r}: {where} has that column" + (f"; did you mean {near[0]!r}?" if near else "")


def check_places(
    output: Path, source: Path | None, *, journal: Path, overwrite: bool, summary: Path | None = None
) -> None:
    """Refuse, before anything is sent, an output that cannot or must not be written. Raises ConfigError."""
    for name in (output, failures_path(output), journal, manifest_path(output)):
        try:
            os.lstat(name.with_name(f".{name.name}.partial"))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:  # such as a name that is too long, which must not come out when all is paid for
            raise ConfigError(f"cannot write {name}: {error.strerror or error}") from None
    for folder in (output.parent, Path(os.path.realpath(output)).parent):
        if not folder.is_dir():
            raise ConfigError(f"the directory of the output does not exist: {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"no permission to write into {folder}, where the output goes")
    if output.is_dir():
        raise ConfigError(f"the output {output} is a directory; name a file")
    if output.exists() and not output.is_file():
        raise ConfigError(f"the output {output} is no regular file, which would be put in its place; name a file")
    if journal_path(sharing(output)).exists() and not journal.exists():
        raise ConfigError(
            f"{output} would share its file of failures, {failures_path(output).name}, with the job of "
            f"{sharing(output)}; give another output"
        )
    if output.name.endswith(ERRORS):
        raise ConfigError(f"{output} is the name of a file of failures; give another output")
    places = {
        "output": output,
        "failures file": failures_path(output),
        "journal": journal,
        "manifest": manifest_path(output),
    }
    for what, path in places.items():
        if source is not None and _is_same(path, source):
            raise ConfigError(f"the input {source} is also the {what} of this job; give another output")
        if summary is not None and _is_same(path, summary):
            raise ConfigError(f"the summary {summary} is also the {what} of this job; give another file")
    failures = places["failures file"]
    if not overwrite and failures.exists() and not journal.exists():
        raise ConfigError(
            f"{failures} exists and is not of this job, which would replace it: move it away, give another output, "
            "or write over it with overwrite=True"
        )
    if not overwrite and not journal.exists():
        read_manifest(manifest_path(output))
    if source is not None and summary is not None and _is_same(source, summary):
        raise ConfigError(f"the summary {summary} is also the input of this job; give another file")


def _is_same(one: Path, other: Path) -> bool:
    """Tell whether two names are one file, be it there or not."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)
