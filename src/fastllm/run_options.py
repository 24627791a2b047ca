"""The options of `run`: which keyword is an option of the job, and which a parameter of its requests."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from .errors import ConfigError
from .formats.columns import Columns
from .formats.rows import PARAMETERS
from .jobs.journal import Durability
from .jobs.publish import Order
from .keywords import nearest, of_client
from .params import (
    CallOptions,
    ChatParams,
    CompletionParams,
    EmbeddingParams,
    ResponseFormat,
    ResponsesParams,
    RowChat,
)
from .progress import Kind
from .schema.base import Schema, is_schema
from .schema.tool import plain_tools


class RunParams(RowChat, total=False):
    """Options of `run`: templates, parameters for rows that lack them, what answers must fit, and how the job is kept.
    `schema` is a type, a JSON schema, a file of one or a Schema; `params` are parameters of any name."""

    response_format: ResponseFormat
    dimensions: int
    instructions: str | None
    max_output_tokens: int | None
    reasoning: Mapping[str, Any] | None

    prompt: str | None
    system: str | None
    params: Mapping[str, Any] | None
    schema: type[Any] | Mapping[str, Any] | str | os.PathLike[str] | Schema[Any] | None
    overwrite: bool
    durability: Durability
    retry_failed: bool | None
    force: bool
    order: Order
    input_format: str | None
    output_format: str | None
    keep: str | Sequence[str]
    fields: str | Sequence[str]
    columns: str | Sequence[str]
    failures: Literal["file", "rows"]
    progress: Kind


_JOB = (
    *("prompt", "system", "params", "schema", "schema_retries", "overwrite", "durability", "retry_failed", "force"),
    *("order", "input_format", "output_format", "keep", "fields", "columns", "failures", "progress"),
)
# Of one call, or of a stream: no row of a file has them by keyword.
_NOT_OF_ROWS = {*CallOptions.__annotations__, "schema_retries", "stream_options", "text_format"}
_OF_ROWS = PARAMETERS.union(
    *(each.__annotations__ for each in (ChatParams, CompletionParams, EmbeddingParams, ResponsesParams))
).difference(_NOT_OF_ROWS)
_INSTEAD = {
    "extra_body": "params={…} takes parameters of any name",
    "extra_headers": "headers are the client's: with_options(default_headers=…)",
    "text_format": "did you mean schema?",
    "stream": "a job has whole answers",
    "stream_options": "a job has whole answers",
}
_OTHERWISE = "parameters of a provider's own go into params={…}"


def checked_options(options: RunParams) -> RunParams:
    """Give the options with all parameters in `params`. ConfigError names what is neither, or was given twice."""
    given = dict(options)
    shared = given.get("params")
    if shared is not None and not isinstance(shared, Mapping):
        raise ConfigError(f"params must map names to values, not be of type {type(shared).__name__}")
    params = dict(shared or {})
    for name in [name for name in given if name not in _JOB]:
        if name not in _OF_ROWS:
            hint = _INSTEAD.get(name) or of_client(name) or nearest(name, {"model", *_JOB, *_OF_ROWS}, _OTHERWISE)
            raise ConfigError(f"run takes no option {name}; {hint}")
        value = given.pop(name)
        if name in params:
            raise ConfigError(f"{name} is given twice: as a keyword and in params; give it once")
        if name == "response_format" and is_schema(value):
            if given.get("schema") is not None:
                raise ConfigError("give schema=… or response_format=…, not both")
            given["schema"] = value
        elif value is not msgspec.UNSET:
            params[name] = plain_tools(value) if name == "tools" and value is not None else value
    given["params"] = params
    return cast("RunParams", given)


def columns_of(options: RunParams) -> Columns:
    """Give what the output is to hold."""
    failures = options.get("failures", "file")
    if failures not in ("file", "rows"):
        raise ConfigError(f"failures must be 'file' or 'rows', not {failures!r}")
    given = (options.get("columns"), options.get("keep"), options.get("fields"))
    return Columns.of(*given, failures=failures == "rows")
