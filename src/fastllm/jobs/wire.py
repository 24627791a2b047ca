"""What a team's processes tell each other: rows one way, outcomes the other; length-prefixed msgpack, never pickle."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from .. import errors
from ..answers import Usage
from ..engine.stats import COUNTED, Snapshot, Stats, Tally
from ..errors import ConfigError, InvalidAnswerError, LLMError, Tried
from ..options import CacheControl, Timeout
from ..types import NO_HEADERS, Headers, Request, Response

_LENGTH = struct.Struct("<I")
_COUNTS = struct.Struct(f"<{len(COUNTED)}q")
_FIELDS = ("status_code", "request_id", "code", "type", "param", "retry_after")


class Told(msgspec.Struct, array_like=True):
    """A Response. Of a usage without details only the three counts are sent."""

    body: bytes
    path: str
    status_code: int
    finish_reason: str | None
    request_id: str | None
    endpoint: str
    attempts: int
    cached: bool
    latency: float
    cost: float | None
    counts: tuple[int, int, int] | None = None
    usage: Usage | None = None
    history: tuple[Tried, ...] = ()


class Failed(msgspec.Struct, array_like=True):
    """An LLMError: its classes' names, nearest first, and what it says. `cause` is a ConfigError's name and words."""

    names: list[str]
    message: str
    fields: dict[str, Any]
    retryable: bool
    sent: bool
    attempts: int
    endpoint: str
    history: tuple[Tried, ...] = ()
    cause: tuple[str, str] | None = None
    response: Told | None = None
    rejected: tuple[Told, ...] = ()


class Asked(msgspec.Struct, array_like=True):
    """A row's request, and the turn by which its outcome goes. `schema` is the number of one that was defined."""

    turn: int
    path: str
    body: bytes
    model: str
    body_model: str
    stream: bool
    max_tokens: int
    sample: int
    priority: int
    schema: int = 0
    headers: dict[str, str] | None = None
    timeout: Timeout | float | None = None
    timed: bool = False
    namespace: str = ""
    cache: CacheControl | None = None


class Answered(msgspec.Struct, array_like=True):
    """What became of a row."""

    turn: int
    response: Told | None = None
    error: Failed | None = None


class Begin(msgspec.Struct, tag=1, array_like=True):
    """A run begins; so many of its requests may be in work in this process."""

    run: int
    concurrency: int


class Rows(msgspec.Struct, tag=2, array_like=True):
    run: int
    rows: list[Asked]


class Define(msgspec.Struct, tag=3, array_like=True):
    number: int
    schema: dict[str, Any]
    retries: int


class End(msgspec.Struct, tag=4, array_like=True):
    """No more rows of a run: those in work are finished ("stop"), for one attempt ("drain"), or given up ("cancel")."""

    run: int
    how: str


class Outcomes(msgspec.Struct, tag=5, array_like=True):
    """What became of rows, and what the process has counted by then, `packed_counts`, and what it all cost."""

    run: int
    rows: list[Answered]
    counts: bytes = b""
    cost: float | None = 0.0


class Ended(msgspec.Struct, tag=6, array_like=True):
    """Nothing of a run is left. `why`: what went wrong, if anything did."""

    run: int
    why: str | None = None


class Report(msgspec.Struct, tag=7, array_like=True):
    """How the process is doing; `out`: requests of each run that are at the provider."""

    tally: Tally
    snapshot: Snapshot
    out: dict[int, int]


class Said(msgspec.Struct, tag=8, array_like=True):
    """A line of its log."""

    level: int
    text: str


Message = Begin | Rows | Define | End | Outcomes | Ended | Report | Said
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def packed(message: Message) -> bytes:
    """Give the bytes of a message, with their length before them."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """`feed` what was read; gives the messages that it completes."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= 4:
            (length,) = _LENGTH.unpack_from(rest, at)
            if len(rest) - at - 4 < length:
                break
            message = _decode(memoryview(rest)[at + 4 : at + 4 + length].tobytes())
            at += 4 + length
            yield message
        del rest[:at]


def packed_counts(stats: Stats) -> bytes:
    """Write the plain counters; they are read only of a process that died, so its owner skips over them."""
    return _COUNTS.pack(*stats.counts())


def counts_of(counts: bytes) -> dict[str, int]:
    """Read them, by their names; none where none were written."""
    return dict(zip(COUNTED, _COUNTS.unpack(counts), strict=True)) if counts else {}


def asked(turn: int, request: Request, schema: int) -> Asked:
    """Write a request."""
    found = Asked(
        turn,
        request.path,
        request.body,
        request.model,
        request.body_model,
        request.stream,
        request.max_tokens,
        request.sample,
        request.priority,
        schema,
    )
    if request.headers is not NO_HEADERS:
        found.headers = dict(request.headers)
    if request.timeout is not UNSET:
        found.timed, found.timeout = True, request.timeout
    if request.namespace or request.cache is not None:
        found.namespace, found.cache = request.namespace, request.cache
    return found


def request_of(row: Asked, schemas: dict[int, Any]) -> Request:
    """Read a request."""
    more: dict[str, Any] = {}
    if row.schema:
        more["schema"] = schemas[row.schema]
    if row.headers is not None:
        more["headers"] = Headers(row.headers)
    if row.timed:
        more["timeout"] = row.timeout
    return Request(
        path=row.path,
        body=row.body,
        model=row.model,
        body_model=row.body_model,
        stream=row.stream,
        max_tokens=row.max_tokens,
        sample=row.sample,
        priority=row.priority,
        namespace=row.namespace,
        cache=row.cache,
        **more,
    )


def told(response: Response) -> Told:
    """Write an answer; of one that was parsed, the answer alone."""
    usage = response.usage
    found = Told(
        response.body,
        response.path,
        response.status_code,
        response.finish_reason,
        response.request_id,
        response.endpoint,
        response.attempts,
        response.cached,
        response.latency,
        response.cost,
    )
    if usage is not None:
        if usage.prompt_tokens_details or usage.completion_tokens_details or usage.input_tokens_details:
            found.usage = usage
        else:
            found.counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    if response.history:
        found.history = response.history
    return found


def response_of(found: Told) -> Response:
    """Read an answer."""
    counts, usage = found.counts, found.usage
    if counts is not None:
        usage = Usage(counts[0], counts[1], counts[2])
    return Response(
        body=found.body,
        path=found.path,
        usage=usage,
        finish_reason=found.finish_reason,
        status_code=found.status_code,
        request_id=found.request_id,
        endpoint=found.endpoint,
        attempts=found.attempts,
        cached=found.cached,
        latency=found.latency,
        cost=found.cost,
        history=found.history,
    )


def failed(error: LLMError) -> Failed:
    """Write an error."""
    fields = {
        name: getattr(error, name) for name in ("status_code", "request_id", "code", "type", "param", "retry_after")
    }
    cause = error.__cause__
    found = Failed(
        [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, LLMError)],
        error.message,
        {name: value for name, value in fields.items() if value is not None},
        error.retryable,
        error.sent,
        error.attempts,
        error.endpoint,
        error.history,
        (type(cause).__name__, str(cause)) if isinstance(cause, ConfigError) else None,
    )
    if isinstance(error.response, Response):
        found.response = told(error.response)
    if isinstance(error, InvalidAnswerError):
        found.rejected = tuple(told(answer) for answer in error.rejected)
    return found


def error_of(found: Failed) -> LLMError:
    """Read an error; of a class that only the other process knows, the nearest that is known here."""
    cls = next((known for name in found.names if (known := getattr(errors, name, None)) is not None), LLMError)
    made: LLMError = cls.__new__(cls)
    LLMError.__init__(made, found.message, **found.fields, retryable=found.retryable, sent=found.sent)
    made.attempts, made.endpoint, made.history = found.attempts, found.endpoint, found.history
    if found.cause is not None:
        name, text = found.cause
        kind = getattr(errors, name, ConfigError)
        made.__cause__ = kind(text)
    if found.response is not None:
        made.response = response_of(found.response)
    if isinstance(made, InvalidAnswerError):
        made.rejected = tuple(response_of(answer) for answer in found.rejected)
    return made
