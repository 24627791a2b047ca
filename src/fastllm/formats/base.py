"""What a format is: a Reader of Rows or a Writer of Outcomes; and which suffix means which format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from ..errors import ConfigError
from ..schema.base import Schema
from ..types import Outcome, Row
from .csv import CSVReader
from .files import BREATH, COMPRESSIONS, MAX_LINE_BYTES, STDIN, suffixes
from .jsonl import JSONLReader
from .output import CSVWriter, JSONLWriter
from .pipe import Pipe
from .rows import NO_MODEL, Recipe

_JSONL = frozenset({".jsonl", ".ndjson", ".jsonlines"})
__all__ = ["BREATH", "Reader", "Writer", "check_model", "check_output", "open_reader", "open_writer", "reopened"]

_FIRST = 100  # rows that are looked at before anything is done
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Reader(Protocol):
    """Iterates the Rows of an input lazily, in constant memory, once; a context manager that closes it.

    `path` is the file, None for a stream; `count_hint` about how many rows there are, where that is known. Where
    reading may wait for somebody, `pipe` can end the wait; then it is read in a thread of its own.
    """

    path: Path | None
    pipe: Pipe | None
    recipe: Recipe
    count_hint: int | None

    @property
    def unsent(self) -> dict[str, int]:
        """Fields of rows so far that were not sent, though they may have been meant as parameters."""
        ...

    def fingerprint(self) -> str:
        """Hash the whole content; "" where it can be read only once."""
        ...

    def __iter__(self) -> Iterator[Row]: ...

    def unanswered(self, passed: Callable[[int], Sequence[int]]) -> Iterator[Row | int]:
        """Iterate the rows that need an answer, and pass over the others cheaply; give the number of those instead.

        `passed(index)` gives a key for each row from `index` on that is to be passed over, none if that one is not:
        the key of its id (`ids.key_of`), 0 where that must be looked for in the row itself.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


class Writer(Protocol):
    """Writes the outcomes of rows that succeeded to an open file; `close` finishes the format, not the file."""

    def write(self, outcome: Outcome) -> None: ...

    def close(self) -> None: ...


def open_reader(
    path: str | Path,
    *,
    model: str = "",
    prompt: str | None = None,
    system: str | None = None,
    params: Mapping[str, Any] | None = None,
    schema: Schema[Any] | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Reader:
    """Open an input by its suffix; "-" is JSON lines from standard input.

    `model` wins over the rows' own; `prompt` and `system` are templates; `params` are sent where a row lacks them,
    and answers must fit `schema`. Raises ConfigError for an unknown suffix, an unreadable file or a template that does
    not fit a CSV header.
    """
    recipe = Recipe(model=model, prompt=prompt, system=system, params=dict(params or {}), schema=schema)
    if str(path) == STDIN:
        return JSONLReader(STDIN, recipe, max_line_bytes=max_line_bytes)
    path = Path(path)
    kind = _kind(path)
    if kind in _JSONL:
        return JSONLReader(path, recipe, max_line_bytes=max_line_bytes)
    return CSVReader(path, recipe, delimiter=_DELIMITERS[kind], max_line_bytes=max_line_bytes)


def open_writer(file: BinaryIO, name: Path) -> Writer:
    """Make the Writer that the suffix of `name` asks for, on an open file. ConfigError for an unknown suffix."""
    kind = _kind(name)
    return CSVWriter(file, name, _DELIMITERS[kind]) if kind in _DELIMITERS else JSONLWriter(file, name)


def reopened(reader: Reader) -> Reader:
    """Open a regular file once more, from its beginning, with the same recipe."""
    assert reader.path is not None
    recipe = reader.recipe
    given = {name: getattr(recipe, name) for name in recipe.__struct_fields__}
    return open_reader(reader.path, **given)


def check_model(reader: Reader) -> None:
    """Raise ConfigError where the file's first rows show that nobody named a model. A stream is not looked into."""
    if reader.recipe.model or reader.path is None or reader.pipe is not None:
        return
    with reopened(reader) as rows:
        first = list(islice(rows, _FIRST))
    if first and all(row.error is not None and row.error.code == NO_MODEL for row in first):
        raise ConfigError("no model: give model=…, or name one in each row")


def check_output(name: Path) -> None:
    """Raise ConfigError where no Writer fits the name."""
    _kind(name)


def _kind(path: Path) -> str:
    kind, _ = suffixes(path)
    if kind not in _JSONL and kind not in _DELIMITERS:
        known = ", ".join([*sorted(_JSONL), *_DELIMITERS])
        also = " or ".join(c for c in COMPRESSIONS if c)
        raise ConfigError(f"cannot tell the format of {path} by its suffix; known are {known}, each also with {also}")
    return kind
