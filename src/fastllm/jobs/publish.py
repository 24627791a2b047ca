"""Publishing: the output and failures files made from the journal, each whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from ..formats.base import Reader, open_writer
from ..formats.columns import Columns
from ..formats.output import JSONLWriter, failure_line, failures_path
from .entry import outcome_of
from .frames import FAILED, OK
from .journal import Entry, Journal
from .manifest import Totals
from .replacing import replacing
from .sources import Sources

Order = Literal["input", "finished"]
ORDERS: tuple[Order, ...] = ("input", "finished")
_BREATH = 256  # rows from one look whether to give up to the next
NOT_THERE = "have no columns of the input beside their answer: it changed since, or is gone"


class Answers(Protocol):
    """What is recorded of the rows of a job: its journal, or one that is only read."""

    @property
    def states(self) -> bytearray: ...

    def read(self, index: int) -> Entry: ...

    def check(self, index: int) -> int: ...

    def as_finished(self) -> Iterator[int]: ...


class Shape(msgspec.Struct):
    """What the output is to look like: its columns, its format where the name does not tell, and the input from which
    columns are kept. `without_source` counts the rows of which none could be kept, because they are not there any more.
    """

    columns: Columns = Columns()
    format: str | None = None
    order: Order = "input"
    reader: Reader | None = None
    without_source: int = 0

    def described(self) -> dict[str, Any]:
        """Say what makes another output of the same answers."""
        return {"order": self.order, "format": self.format, **msgspec.to_builtins(self.columns)}


class GivenUpError(Exception):
    """Writing was given up on request; both files are as they were before."""


def publish(
    journal: Journal,
    total: int,
    output: Path,
    *,
    shape: Shape | None = None,
    totals: Totals | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Write both files; give the path of the failures, None where there are none. `totals` counts every row.

    The output comes last: as long as it is not there, the job is not done. Raises JournalError or OSError, or
    GivenUpError once `given_up` says so; then the output is as it was before.
    """
    totals = totals or Totals()
    failures: Path | None = failures_path(output)
    assert failures is not None
    if journal.count(total)[1]:
        with replacing(failures) as file:
            for _, entry in entries(journal, total, FAILED, given_up=given_up):
                totals.add(entry)
                file.write(failure_line(entry.custom_id, entry.line, entry.source, entry.error or {}, entry.body))
    else:
        failures.unlink(missing_ok=True)
        failures = None
    write_answers(journal, total, output, shape=shape, totals=totals, given_up=given_up)
    return failures


def write_answers(
    journal: Answers,
    total: int,
    output: Path,
    *,
    shape: Shape | None = None,
    totals: Totals | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """Write the answers that there are. Raises as `publish` does."""
    shape = shape or Shape()
    columns, reader = shape.columns, shape.reader
    states = (OK, FAILED) if columns.failures else (OK,)
    kept = reader if columns.keep else None
    with replacing(output) as file, Sources(kept, in_order=shape.order == "input", folder=output.parent) as sources:
        writer = open_writer(file, output, columns, format=shape.format, like=reader)
        plain = writer if isinstance(writer, JSONLWriter) and writer.is_plain else None
        for index, entry in entries(journal, total, *states, order=shape.order, given_up=given_up):
            if totals is not None and entry.error is None:
                totals.add(entry)
            if plain is not None and entry.error is None:  # most outputs: an outcome costs as much as its line
                plain.write_answer(index, entry.custom_id, entry.body, entry.status, entry.request_id)
                continue
            source = sources.of(index, journal.check(index), entry.source) if columns.keep else b""
            writer.write(outcome_of(index, entry), source, entry.error)
        writer.close()
        shape.without_source = sources.missing


def entries(
    journal: Answers,
    total: int,
    *states: int,
    order: Order = "input",
    given_up: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Entry]]:
    """Give (index, entry) of the rows in these states, in the order of the input or as they finished."""
    known, read = journal.states, journal.read
    for index in range(min(total, len(known))) if order == "input" else journal.as_finished():
        if index < total and known[index] in states:
            yield index, read(index)
        if not index % _BREATH and given_up():
            raise GivenUpError
