"""Parquet and Arrow files, by pyarrow: batches of rows in, row groups out, never a whole table in memory.

In: a row is its columns as JSON has them (rows.py); dates, times and durations as ISO 8601, decimals as text, bytes as
base64, maps as lists of pairs; nanoseconds are cut to microseconds. A null is no value: the column is not there, nor is
the field of a struct; in a template it is a bad row. Columns named as a request's parameters may be text that is JSON,
as in CSV.

Out: numbers, bools and text of kept columns keep the type that a Parquet or Arrow input gives them, lists and structs
of these, too; every other value is text, as in CSV. Equal rows give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConfigError, MissingExtra
from ..types import Outcome, Row
from .columns import Column, Columns, as_text, cells
from .csv import typed
from .files import Closing, fingerprint
from .pipe import Pipe
from .rows import Intake, Recipe, check_header

PARQUET = ".parquet"
ARROW = (".arrow", ".feather", ".ipc")
_BATCH = 1024  # rows
_GROUP_ROWS, _GROUP_BYTES = 16_384, 32 * 1024 * 1024  # after which a row group is written

Record = tuple[int, dict[str, Any]]


def arrow() -> Any:
    """Give the library. MissingExtra where it is not installed."""
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtra("Parquet and Arrow need a package: pip install 'fastllm[arrow]'") from None
    return pa


class TableReader(Closing):
    """Iterates the rows of a file, lazily and once. ConfigError where it cannot be read."""

    def __init__(self, path: str | Path, recipe: Recipe, *, format: str) -> None:
        self.recipe = recipe
        self.path: Path | None = Path(path)
        self.pipe: Pipe | None = None
        self.count_hint: int | None = None
        self.format = format
        self._intake = Intake(recipe)
        pa = arrow()
        self._broken = (pa.ArrowException, OSError)
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror or error}") from None
        try:
            self._batches = self._parquet() if format == PARQUET else self._ipc(pa)
            check_header(self.path, self.header, self._intake)
        except self._broken as error:
            self._file.close()
            kind = "Parquet" if format == PARQUET else "Arrow"
            raise ConfigError(f"cannot read {self.path} as {kind}: {_first_line(error)}") from None
        except BaseException:
            self._file.close()
            raise

    @property
    def header(self) -> list[str]:
        """The names of its columns."""
        return list(self.schema.names)

    def _parquet(self) -> Iterator[Any]:
        from pyarrow import parquet

        file = parquet.ParquetFile(self._file)
        self.schema, self.count_hint = file.schema_arrow, file.metadata.num_rows
        return iter(file.iter_batches(batch_size=_BATCH))

    def _ipc(self, pa: Any) -> Iterator[Any]:
        try:
            file = pa.ipc.open_file(self._file)
        except pa.ArrowInvalid:
            self._file.seek(0)
            stream = pa.ipc.open_stream(self._file)
            self.schema = stream.schema
            return iter(stream)
        self.schema = file.schema
        return map(file.get_batch, range(file.num_record_batches))

    def fingerprint(self) -> str:
        """Hash the file's content. Sets `count_hint` where the file says how many rows there are."""
        assert self.path is not None
        if not self.path.is_file():
            return ""
        if self.count_hint is not None:
            self._intake.expect(self.count_hint)
        return fingerprint(self.path).digest

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, self._records())

    def unanswered(
        self, passed: Callable[[int], Sequence[int] | None], line_of: Callable[[int], int] | None = None
    ) -> Iterator[Row | int]:
        return self._intake.unanswered(self._records(), passed, self._row, self._remember)

    def _records(self) -> Iterator[Record]:
        number = 0
        try:
            for batch in self._batches:
                for at in range(0, batch.num_rows, _BATCH):
                    for columns in rows_of_batch(batch.slice(at, _BATCH)):
                        number += 1
                        yield number, columns
        except self._broken as error:
            raise ConfigError(f"cannot read {self.path} after row {number}: {_first_line(error)}") from None

    def _row(self, record: Record) -> Row:
        return self._intake.columns(self._columns(record), record[0])

    def _remember(self, record: Record) -> None:
        self._intake.remember_columns(self._columns(record), record[0])

    def _columns(self, record: Record) -> dict[str, Any]:
        return record[1] if self.recipe.prompt is not None else typed(without_nulls(record[1]))

    @property
    def unsent(self) -> dict[str, int]:
        """Nothing: a table has columns for other purposes, and that is no mistake."""
        return {}

    def close(self) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return f"<TableReader {self.path} {self._intake!r}>"


class TableWriter:
    """One row an answer, in Parquet with Zstandard, or in an Arrow file."""

    _finishing: Any = ()  # the class of a writer that would finish its file when it is collected

    def __init__(
        self,
        file: BinaryIO,
        columns: Columns,
        *,
        format: str,
        header: Sequence[str] | None = None,
        schema: Any = None,
    ) -> None:
        self._pa = pa = arrow()
        self._columns = columns.table(header)
        known = {} if schema is None else {field.name: field.type for field in schema}
        fields = [pa.field(column.name, self._type(column, known)) for column in self._columns]
        self._is_text = [field.type == pa.string() for field in fields]
        self._schema = pa.schema(fields)
        if format == PARQUET:
            from pyarrow import parquet

            self._finishing = parquet.ParquetWriter
            self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        else:
            self._writer = pa.ipc.new_file(file, self._schema)
        self._values: list[list[Any]] = [[] for _ in fields]
        self._bytes = 0

    def _type(self, column: Column, known: dict[str, Any]) -> Any:
        pa = self._pa
        if column.of_row:
            type_ = known.get(column.source or "")
            return type_ if type_ is not None and _is_plain(pa, type_) else pa.string()
        return {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}.get(column.kind or str, pa.string())

    def write(self, outcome: Outcome, source: bytes = b"", failure: dict[str, Any] | None = None) -> None:
        values = cells(self._columns, outcome, source, failure)
        for column, value, is_text in zip(self._values, values, self._is_text, strict=True):
            if is_text and value is not None:
                value = as_text(value).encode("utf-8", "backslashreplace").decode()
                self._bytes += len(value)
            column.append(value)
        if self._bytes >= _GROUP_BYTES or len(self._values[0]) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        pa = self._pa
        arrays = [pa.array(values, type=field.type) for values, field in zip(self._values, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        for values in self._values:
            values.clear()
        self._bytes = 0

    def close(self) -> None:
        if self._values[0]:
            self._flush()
        self._writer.close()

    def __del__(self) -> None:
        # A file that is given up may be closed by now; pyarrow's own end would complain of that.
        if isinstance(writer := getattr(self, "_writer", None), self._finishing):
            writer.is_open = False


def rows_of_batch(batch: Any) -> Iterator[dict[str, Any]]:
    """Give the rows of a RecordBatch as mappings; nulls within their values are left out."""
    pa = arrow()
    fields = [field.with_type(_coarse(pa, field.type)) for field in batch.schema]
    schema = pa.schema(fields)
    if schema != batch.schema:
        columns = [column.cast(field.type, safe=False) for column, field in zip(batch.columns, fields, strict=True)]
        batch = pa.record_batch(columns, schema=schema)
    for row in batch.to_pylist():
        yield {name: _without_nulls(value) for name, value in row.items()}


def rows_of_stream(table: Any) -> Iterator[Any]:
    """Give the rows of anything that has `__arrow_c_stream__`, a batch at a time: a data frame, a table, a relation; of
    a single column (a series) its values."""
    pa = arrow()
    try:
        batches = pa.RecordBatchReader.from_stream(table)
    except pa.ArrowInvalid:  # a single column
        for chunk in pa.chunked_array(table).chunks:
            for row in rows_of_batch(pa.record_batch([chunk], names=[""])):
                yield row[""]
        return
    for batch in batches:
        for at in range(0, batch.num_rows, _BATCH):
            yield from rows_of_batch(batch.slice(at, _BATCH))


def without_nulls(row: Any) -> Any:
    """Give the columns that have a value; of a row that is a value itself that."""
    return {name: value for name, value in row.items() if value is not None} if isinstance(row, dict) else row


def _coarse(pa: Any, type_: Any) -> Any:
    """Python has no nanoseconds."""
    if pa.types.is_timestamp(type_) and type_.unit == "ns":
        return pa.timestamp("us", type_.tz)
    if pa.types.is_duration(type_) and type_.unit == "ns":
        return pa.duration("us")
    if pa.types.is_time64(type_) and type_.unit == "ns":
        return pa.time64("us")
    return type_


def _without_nulls(value: Any) -> Any:
    if type(value) is dict:
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if type(value) is list:
        return [_without_nulls(inner) for inner in value]
    return value


def _is_plain(pa: Any, type_: Any) -> bool:
    """Tell whether JSON gives back the values of a type as they were."""
    types = pa.types
    if types.is_struct(type_):
        return all(_is_plain(pa, field.type) for field in type_)
    if types.is_list(type_) or types.is_large_list(type_):
        return _is_plain(pa, type_.value_type)
    texts = types.is_string(type_) or types.is_large_string(type_) or types.is_null(type_)
    numbers = types.is_integer(type_) or types.is_float32(type_) or types.is_float64(type_)
    return bool(texts or numbers or types.is_boolean(type_))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
