"""What users hand to the verbs for many requests becomes Rows: requests, dicts, JSON lines, prompts, tables."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from .errors import ConfigError, InvalidRequestError
from .formats.parquet import rows_of_stream, without_nulls
from .formats.rows import Intake, Recipe
from .formats.short import BATCH
from .formats.template import Template as FileTemplate
from .params import call_options
from .types import Request, Row

# A Request; an OpenAI batch line or a plain body as a mapping, or as JSON in bytes; a prompt as text; messages.
Item = Request | Mapping[str, Any] | str | bytes | Sequence[Mapping[str, Any]]
Template = str | Callable[[Any], Any]
_PLAIN_VALUE = ""  # the column that `{}` names


def rows_of(items: Iterable[Item] | AsyncIterable[Item], model: str) -> Iterable[Row] | AsyncIterable[Row]:
    """Give a Row for each item; what is no request becomes a Row with an error."""
    intake = Intake(Recipe(model=model))
    if hasattr(items, "__arrow_c_stream__"):
        items = map(without_nulls, rows_of_stream(items))  # a data frame would iterate its columns' names
    else:
        refuse_single("requests", "requests", items, Mapping)  # one body would iterate its fields' names

    def make(item: Item) -> Row:
        return intake.line(item, 0) if type(item) is bytes else _row(intake, item, model)

    return _each(items, intake, make)


def mapped(
    template: Template,
    rows: Iterable[Any] | AsyncIterable[Any],
    model: str,
    system: str | None,
    params: Mapping[str, Any],
) -> Iterable[Row] | AsyncIterable[Row]:
    """Give a Row for each of the user's rows, by a text template or a callable."""
    if isinstance(template, str) and FileTemplate(template).count(_PLAIN_VALUE) > 1:
        raise ConfigError(
            "the template has more than one {}, and a row is one value: name columns, such as {first} and {second}, "
            "and give rows that are mappings"
        )
    body, options = call_options(params)
    text = template if isinstance(template, str) else None
    recipe = Recipe(model=model, prompt=text, system=system, params=body, schema=options.pop("schema", None))
    intake = Intake(recipe)

    def make(value: Any) -> Row:
        if isinstance(template, str):
            row = intake.columns(dict(value) if isinstance(value, Mapping) else {_PLAIN_VALUE: value}, 0)
        else:
            row = _made(intake, template(value), model)
        if options and row.request is not None:
            row.request = msgspec.structs.replace(row.request, **options)
        return row

    if hasattr(rows, "__arrow_c_stream__"):
        rows = rows_of_stream(rows)
    else:
        refuse_single("rows", "rows", rows)
    return _each(rows, intake, make)


def refuse_single(name: str, items: str, given: object, *also: type) -> None:
    """Raise ConfigError for what is no collection; a text is one of letters, and each would be asked."""
    # What has places and no iterator can be gone through as well: data sets are often so.
    many = isinstance(given, Iterable | AsyncIterable) or hasattr(given, "__getitem__")
    if isinstance(given, (str, bytes, *also)) or not many:
        raise ConfigError(f"{name} must be a list, or another iterable, of {items}; not of type {type(given).__name__}")


def _made(intake: Intake, item: Any, model: str) -> Row:
    """What a callable gave; a Request gets what `map` was told, as every other kind of item does."""
    row = _row(intake, item, model)
    if isinstance(item, Request) and row.request is not None:
        row.request = intake.filled(row.request)
    return row


def _row(intake: Intake, item: Any, model: str) -> Row:
    if type(item) is dict:
        return intake.columns(item, 0)
    if isinstance(item, bytes):
        return intake.line(item, 0)
    if isinstance(item, Request):
        index = intake.count
        intake.count += 1
        changes: dict[str, Any] = {"priority": BATCH}
        if model:
            changes["model"] = model
        if item.stream:
            item = item.with_fields(stream=msgspec.UNSET, stream_options=msgspec.UNSET)
        request = msgspec.structs.replace(item, **changes)
        return Row(index=index, request=request, custom_id=request.custom_id)
    if isinstance(item, str):
        return intake.columns({"prompt": item}, 0)
    if isinstance(item, list | tuple):
        return intake.columns({"messages": list(item)}, 0)
    if isinstance(item, Mapping):
        return intake.columns(dict(item), 0)
    return intake.bad(0, f"an item must be a Request, a mapping, bytes of JSON or a prompt, not {type(item).__name__}")


def _unmade(intake: Intake, count: int, error: Exception) -> Row:
    """What a user's callable raises, or a value that is no JSON, is that row's error and nobody else's."""
    intake.count = count
    row = intake.bad(0, f"the row could not be made: {type(error).__name__}: {error}")
    if isinstance(row.error, InvalidRequestError):
        row.error.__cause__ = error
    return row


def _each(
    items: Iterable[Any] | AsyncIterable[Any], intake: Intake, make: Callable[[Any], Row]
) -> Iterable[Row] | AsyncIterable[Row]:
    return _async_each(items, intake, make) if isinstance(items, AsyncIterable) else _sync_each(items, intake, make)


def _sync_each(items: Iterable[Any], intake: Intake, make: Callable[[Any], Row]) -> Iterator[Row]:
    for item in items:
        count = intake.count
        try:
            row = make(item)
        except Exception as error:
            row = _unmade(intake, count, error)
        yield row


async def _async_each(items: AsyncIterable[Any], intake: Intake, make: Callable[[Any], Row]) -> AsyncIterator[Row]:
    async for item in items:
        count = intake.count
        try:
            row = make(item)
        except Exception as error:
            row = _unmade(intake, count, error)
        yield row
