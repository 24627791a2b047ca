"""What a format is: a Reader of Rows or a Writer of Outcomes; and which suffix means which format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from ..errors import ConfigError
from ..schema.base import Schema
from ..types import Outcome, Row
from .columns import PLAIN, Columns
from .csv import CSVReader
from .files import BREATH, COMPRESSIONS, MAX_LINE_BYTES, STDIN, suffixes
from .jsonl import JSONLReader
from .output import CSVWriter, JSONLWriter
from .parquet import ARROW, PARQUET, TableReader, TableWriter
from .pipe import Pipe
from .rows import NO_MODEL, Recipe
from .text import TextReader

_JSONL = (".jsonl", ".ndjson", ".jsonlines")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_TEXT = (".txt",)
READ = ("jsonl", "csv", "tsv", "txt", "parquet", "arrow")  # formats that may be named where a suffix does not tell
WRITTEN = ("jsonl", "csv", "tsv", "parquet", "arrow")
_OPTIONS = {READ: "input_format", WRITTEN: "output_format"}  # what a run calls them
_WHOLE = (PARQUET, *ARROW)  # that no compression is put round
__all__ = ["BREATH", "Reader", "Writer", "check_model", "check_output", "open_reader", "open_writer", "reopened"]

_FIRST = 100  # rows that are looked at before anything is done


class Reader(Protocol):
    """Iterates the Rows of an input lazily, in constant memory, once; a context manager that closes it.

    `path` is the file, None for a stream; `count_hint` about how many rows there are, where that is known. Where
    reading may wait for somebody, `pipe` can end the wait; then it is read in a thread of its own. `format` is its
    suffix, `header` the names of its columns where they are known before the rows.
    """

    path: Path | None
    format: str
    pipe: Pipe | None
    recipe: Recipe
    count_hint: int | None

    @property
    def header(self) -> Sequence[str] | None: ...

    @property
    def unsent(self) -> dict[str, int]:
        """Fields of rows so far that were not sent, though they may have been meant as parameters."""
        ...

    def fingerprint(self) -> str:
        """Hash the whole content; "" where it can be read only once."""
        ...

    def __iter__(self) -> Iterator[Row]: ...

    def unanswered(
        self, passed: Callable[[int], Sequence[int] | None], line_of: Callable[[int], int] | None = None
    ) -> Iterator[Row | int]:
        """Iterate the rows that need an answer, and pass over the others cheaply; give the number of those instead.

        `passed(index)` gives a key for each row from `index` on that is to be passed over: the key of its id
        (`ids.key_of`), 0 where that must be looked for in the row itself. It gives none if that row is not, and None if
        no further one is either. `line_of` gives the line of a row that is passed over, 0 where it is not known; with
        it, much of a file need not even be read again.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


class Writer(Protocol):
    """Writes outcomes of rows to an open file; `close` finishes the format, not the file. `source` is the row as it was
    read, for what is kept of it, `failure` what is known of one without an answer."""

    def write(self, outcome: Outcome, source: bytes = b"", failure: dict[str, Any] | None = None) -> None: ...

    def close(self) -> None: ...


def open_reader(
    path: str | Path,
    *,
    model: str = "",
    prompt: str | None = None,
    system: str | None = None,
    params: Mapping[str, Any] | None = None,
    schema: Schema[Any] | None = None,
    format: str | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Reader:
    """Open an input by its suffix, or as the `format` that is named; "-" is standard input, JSON lines if not named.

    `model` wins over the rows' own; `prompt` and `system` are templates; `params` are sent where a row lacks them,
    and answers must fit `schema`. Raises ConfigError for an unknown suffix, an unreadable file or a template that does
    not fit a table's header, MissingExtra where a format needs a package.
    """
    recipe = Recipe(model=model, prompt=prompt, system=system, params=dict(params or {}), schema=schema)
    source = STDIN if str(path) == STDIN else Path(path)
    kind = _named(format, READ) or (".jsonl" if source == STDIN else _kind(Path(path), READ))
    if kind in _WHOLE:
        if source == STDIN:
            raise ConfigError(f"{kind} cannot be read from standard input; give a file")
        return TableReader(source, recipe, format=kind)
    if kind in _DELIMITERS:
        return CSVReader(source, recipe, delimiter=_DELIMITERS[kind], max_line_bytes=max_line_bytes)
    reader = TextReader if kind in _TEXT else JSONLReader
    return reader(source, recipe, max_line_bytes=max_line_bytes)


def open_writer(
    file: BinaryIO, name: Path, columns: Columns = PLAIN, *, format: str | None = None, like: Reader | None = None
) -> Writer:
    """Make the Writer that the suffix of `name` asks for, or the `format` that is named, on an open file. `like` is the
    input whose columns may be kept. ConfigError for an unknown suffix, or columns that it cannot have."""
    kind = _named(format, WRITTEN) or _kind(name, WRITTEN)
    if kind in _WHOLE and suffixes(name)[1]:
        raise ConfigError(f"{name}: {kind} is compressed inside; leave the {suffixes(name)[1]} away")
    header = None if like is None else like.header
    if kind in _DELIMITERS:
        return CSVWriter(file, name, _DELIMITERS[kind], columns, header)
    if kind in _WHOLE:
        return TableWriter(file, columns, format=kind, header=header, schema=getattr(like, "schema", None))
    return JSONLWriter(file, name, columns, header)


def reopened(reader: Reader) -> Reader:
    """Open a regular file once more, from its beginning, with the same recipe."""
    assert reader.path is not None
    recipe = reader.recipe
    given = {name: getattr(recipe, name) for name in recipe.__struct_fields__}
    return open_reader(reader.path, format=reader.format[1:], **given)


def check_model(reader: Reader) -> None:
    """Raise ConfigError where the file's first rows show that nobody named a model. A stream is not looked into."""
    if reader.recipe.model or reader.path is None or reader.pipe is not None:
        return
    with reopened(reader) as rows:
        first = list(islice(rows, _FIRST))
    if first and all(row.error is not None and row.error.code == NO_MODEL for row in first):
        raise ConfigError("no model: give model=…, or name one in each row")


def check_output(
    name: Path, columns: Columns = PLAIN, *, format: str | None = None, like: Reader | None = None
) -> None:
    """Raise ConfigError where no Writer fits the name, or its columns do not fit it."""
    with BytesIO() as nowhere:
        open_writer(nowhere, name, columns, format=format, like=like).close()


def _named(format: str | None, known: tuple[str, ...]) -> str | None:
    """Give the suffix of a format that was named."""
    if format is None:
        return None
    kind = f".{format.lower().removeprefix('.')}"
    if kind[1:] not in known and kind not in _JSONL and kind not in ARROW:
        raise ConfigError(f"{_OPTIONS[known]} must be one of {', '.join(known)}; not {format!r}")
    return kind


def _kind(path: Path, known: tuple[str, ...]) -> str:
    kind, compression = suffixes(path)
    if (kind[1:] in known or kind in _JSONL or kind in ARROW) and not (compression and kind in _WHOLE):
        return kind
    if compression and kind in _WHOLE:
        raise ConfigError(f"{path}: {kind} is compressed inside; leave the {compression} away")
    plain = [f".{name}" for name in known if f".{name}" not in _WHOLE]
    whole = [f".{name}" for name in known if f".{name}" in _WHOLE]
    also = " or ".join(c for c in COMPRESSIONS if c)
    raise ConfigError(
        f"cannot tell the format of {path} by its suffix; known are {', '.join(plain)}, each also with {also}, and "
        f"{', '.join(whole)}; or name it: {_OPTIONS[known]}={known[0]!r}"
    )
