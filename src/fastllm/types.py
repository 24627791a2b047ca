"""The nouns that travel between rooms: requests, answers, their wire forms, rows and outcomes.

Bytes first: a body stays bytes until someone reads a field of it. `Response` and `Chunk` decode on the first
access and keep what they decoded, so that an answer which only passes through costs nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from .answers import Choice, Embedding, Moderation, Payload, Usage, decode_object, decode_payload
from .errors import ConfigError, InvalidRequestError, LLMError, MissingExtra, Tried
from .options import CacheControl, Timeout
from .schema.base import Schema

T = TypeVar("T")
CHAT = "/chat/completions"
COMPLETIONS = "/completions"
EMBEDDINGS = "/embeddings"
RESPONSES = "/responses"
MODERATIONS = "/moderations"
MESSAGES = "/messages"  # Anthropic's, whose requests and answers keep their own shape
PATHS = frozenset({CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MODERATIONS})
_OPERATIONS = PATHS | {MESSAGES}

Schemas = Literal["json_schema", "json_object", "none"]

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: a token
_SDK_CLASSES = {
    CHAT: ("openai.types.chat", "ChatCompletion"),
    COMPLETIONS: ("openai.types", "Completion"),
    EMBEDDINGS: ("openai.types", "CreateEmbeddingResponse"),
    RESPONSES: ("openai.types.responses", "Response"),
    MODERATIONS: ("openai.types", "ModerationCreateResponse"),
}
_FORBIDDEN_IN_HEADER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_SECRET_HEADER = re.compile(r"auth|key|token|cookie|secret", re.IGNORECASE)


class Headers(Mapping[str, str]):
    """Immutable request headers, checked and encoded once; names are lower-case. The repr hides secrets."""

    __slots__ = ("_items", "encoded")

    def __init__(self, items: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        pairs = items.items() if isinstance(items, Mapping) else items
        self._items: dict[str, str] = {}
        for name, value in pairs:
            if not isinstance(name, str) or not isinstance(value, str):
                raise ConfigError(f"header {name!r} must map a string to a string")
            if not _HEADER_NAME.fullmatch(name) or _FORBIDDEN_IN_HEADER.search(value):
                raise ConfigError(f"header {name!r} holds a character that HTTP forbids")
            self._items[name.lower()] = value.strip()
        lines = [f"{name}: {value}\r\n" for name, value in self._items.items()]
        self.encoded = "".join(lines).encode("utf-8")

    def __getitem__(self, name: str) -> str:
        return self._items[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def merged(self, more: Mapping[str, str]) -> Headers:
        """Give these headers with `more` laid over them."""
        return Headers({**self._items, **{k.lower(): v for k, v in more.items()}}) if more else self

    def __repr__(self) -> str:
        shown = {k: "***" if _SECRET_HEADER.search(k) else v for k, v in self._items.items()}
        return f"Headers({shown})"


NO_HEADERS = Headers()


def _without_secrets(url: str) -> str:
    """The url without user, password and query."""
    return re.sub(r"//[^/]*@", "//", url.split("?", 1)[0])


class HTTPRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP exchange to make: an absolute URL and the whole body. `redirects` says whether some may be followed."""

    url: str
    body: bytes = b""
    headers: Headers = NO_HEADERS
    method: str = "POST"
    redirects: bool = True

    def __repr__(self) -> str:
        return f"<HTTPRequest {self.method} {_without_secrets(self.url)} {len(self.body)} B>"


class HeaderLines(msgspec.Struct, eq=False):
    """The headers of an answer, taken apart when somebody looks, which for most answers nobody does.

    They stand in the first `size` bytes of `data`, and `apart` gives them of it.
    """

    data: bytes
    size: int
    apart: Callable[[bytes], list[tuple[bytes, bytes]]]
    _found: list[tuple[bytes, bytes]] | None = None

    def _pairs(self) -> list[tuple[bytes, bytes]]:
        if self._found is None:
            self._found = self.apart(self.data)
        return self._found

    def search(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Look for something in them as they came."""
        return pattern.search(self.data, 0, self.size)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        return self._pairs()[index]

    def __len__(self) -> int:
        return len(self._pairs())

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._pairs())

    def __eq__(self, other: object) -> bool:
        return self._pairs() == (list(other) if isinstance(other, HeaderLines) else other)

    def __repr__(self) -> str:
        return f"<HeaderLines {self.size} B>"


class HTTPResponse(msgspec.Struct, kw_only=True):
    """A whole HTTP answer; header names are lower-case bytes in the order received, the body is decoded."""

    status: int
    headers: Sequence[tuple[bytes, bytes]] = []
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Give the first header of that lower-case name, or None."""
        wanted = name.encode("latin-1")
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    def __repr__(self) -> str:
        return f"<HTTPResponse {self.status} {len(self.body)} B>"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a dialect sends requests: what a Provider needs to know of an Endpoint. `headers` hold the key, `schemas`
    is what the server takes to have an answer fit a schema: one, the wish for JSON alone, or nothing."""

    base_url: str
    model: str = ""
    headers: Headers = NO_HEADERS
    schemas: Schemas = "json_schema"

    def __repr__(self) -> str:
        return f"<Target {self.model or '?'} at {_without_secrets(self.base_url)}>"


class _Head(msgspec.Struct):
    """The fields of a body that routing and admission need."""

    model: str = ""
    stream: bool | None = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None


_MOST = 2**53  # what a float counts exactly; ledgers are floats
_head = msgspec.json.Decoder(_Head)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One logical call, in OpenAI's shape.

    `path` names the operation as OpenAI's URL does ("/chat/completions"), `body` is the JSON object to send.
    `model` is what routing goes by; `body_model` what the body says now: where the two differ, the model is
    written into the body on the way out. `max_tokens` bounds the answer (0: not said), summed over `n`.
    `sample` numbers independent answers to the same prompt for the cache. `priority` 0 is interactive, 1 batch.
    `timeout` stands in for the engine's where it is given: a Timeout, a number of seconds in total, or None for none.
    `schema` is what the answer must fit; the body says so in its own words, and whoever executes it sees to it.
    `namespace` keeps the answers of groups apart in one engine's cache and among its requests under way; `cache` is
    what this request wants of the cache (None: all that there is).
    """

    path: str = CHAT
    body: bytes
    model: str = ""
    body_model: str = ""
    stream: bool = False
    max_tokens: int = 0
    custom_id: str | None = None
    sample: int = 0
    priority: int = 0
    headers: Headers = NO_HEADERS
    timeout: Timeout | float | UnsetType | None = UNSET
    schema: Schema[Any] | None = None
    namespace: str = ""
    cache: CacheControl | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes):
            raise InvalidRequestError(
                f"body must be JSON as bytes, not of type {type(self.body).__name__}; Request.of(…) takes it as values",
                sent=False,
            )

    @classmethod
    def from_body(cls, body: bytes, *, path: str = CHAT, model: str = "", **more: Any) -> Request:
        """Read what routing needs from a JSON body; `model` overrides the body's. InvalidRequestError if bad."""
        if path not in _OPERATIONS:
            raise InvalidRequestError(f"url {path!r} is not one of {', '.join(sorted(PATHS))}", sent=False)
        try:
            head = _head.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"the request body is not a valid JSON object: {error}", sent=False) from None
        except RecursionError:
            raise InvalidRequestError("the request body is nested too deeply", sent=False) from None
        limit = head.max_completion_tokens or head.max_output_tokens or 0
        if head.max_tokens is not None and head.max_tokens > limit:
            limit = head.max_tokens
        if limit < 0 or limit > _MOST or head.n or head.best_of:
            limit = _all_answers(limit, max(head.n or 1, head.best_of or 1))
        return cls(
            path=path,
            body=body,
            model=model or head.model,
            body_model=head.model,
            stream=bool(head.stream),
            max_tokens=limit,
            **more,
        )

    @classmethod
    def of(cls, fields: Mapping[str, Any], *, path: str = CHAT, model: str = "", **more: Any) -> Request:
        """Build a request from a body given as Python values."""
        return cls.from_body(_written(fields), path=path, model=model, **more)

    def with_fields(self, **changes: Any) -> Request:
        """Give a copy whose body has these fields set, or removed where the value is UNSET."""
        fields = _object.decode(self.body)
        for name, value in changes.items():
            if value is msgspec.UNSET:
                fields.pop(name, None)
            else:
                fields[name] = msgspec.Raw(_written(value))
        model = "" if "model" in changes else self.model
        return self.with_body(msgspec.json.encode(fields), model=model)

    def with_body(self, body: bytes, *, model: str = "") -> Request:
        """Give a copy with another body; `model` overrides that body's."""
        more = {name: getattr(self, name) for name in _BESIDE_THE_BODY}
        return Request.from_body(body, path=self.path, model=model, **more)

    def __repr__(self) -> str:
        return f"<Request {self.path} {self.model or '?'} {len(self.body)} B>"


_BESIDE_THE_BODY = ("custom_id", "sample", "priority", "headers", "timeout", "schema", "namespace", "cache")


def _all_answers(limit: int, answers: int) -> int:
    """Give the most tokens that so many answers may have."""
    if max(limit, answers) > _MOST:
        raise InvalidRequestError(f"max_tokens and n must be at most {_MOST}", sent=False)
    return min(max(0, limit) * max(1, answers), _MOST)


def _written(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the request body cannot be written as JSON: {error}", sent=False) from None


class Response(msgspec.Struct, kw_only=True, eq=False):
    """The answer to one Request, in OpenAI's shape whatever provider gave it.

    `body` is the JSON exactly as it came. Fields read like OpenAI's: `r.choices[0].message.content`, `r.data`,
    `r.output`; `r.text` is the answer's text in any of the shapes. `cached`, `attempts` (0 from a cache),
    `endpoint` (who served it), `latency` in seconds and `request_id` tell how it came about, `history` which attempts
    failed before. `cost` is in USD, 0.0 from a cache, None where the price is not known.
    """

    body: bytes
    path: str = CHAT
    usage: Usage | None = None
    finish_reason: str | None = None
    status_code: int = 200
    request_id: str | None = None
    endpoint: str = ""
    attempts: int = 1
    cached: bool = False
    latency: float = 0.0
    cost: float | None = None
    history: tuple[Tried, ...] = ()
    _payload: Payload | None = None
    _fields: dict[str, Any] | None = None

    @property
    def payload(self) -> Payload:
        """The body as a typed value; decoded at the first access."""
        if self._payload is None:
            self._payload = decode_payload(self.body)
        return self._payload

    @property
    def id(self) -> str:
        return self.payload.id or ""

    @property
    def model(self) -> str:
        return self.payload.model or ""

    @property
    def object(self) -> str:
        return self.payload.object or ""

    @property
    def created(self) -> int:
        return int(self.payload.created or self.payload.created_at or 0)

    @property
    def choices(self) -> list[Choice]:
        return self.payload.choices or []

    @property
    def data(self) -> list[Embedding]:
        return self.payload.data or []

    @property
    def output(self) -> list[Any]:
        """The items of a Responses API answer."""
        return self.payload.output or []

    @property
    def results(self) -> list[Moderation]:
        """What a moderation model says of each input."""
        return self.payload.results or []

    @property
    def text(self) -> str:
        """The text of the first choice or of all output items; "" where there is none."""
        return self.payload.text()

    output_text = text

    @property
    def raw(self) -> bytes:
        """The body, byte for byte as the provider sent it."""
        return self.body

    def to_dict(self) -> dict[str, Any]:
        """Give the whole body as plain Python values."""
        if self._fields is None:
            self._fields = decode_object(self.body)
        return self._fields

    def to_openai(self) -> Any:
        """Give the answer as the official SDK's object (`openai.types.chat.ChatCompletion`, …). Building one costs a
        hundred times what reading a field here does. MissingExtra where the `openai` package is not installed."""
        module, name = _SDK_CLASSES[self.path]
        try:
            cls = getattr(import_module(module), name)
        except ImportError:
            raise MissingExtra("to_openai() needs the official SDK: pip install openai") from None
        return cls.construct(**self.to_dict())

    @property
    def model_extra(self) -> dict[str, Any]:
        """The top-level fields of the body that this class has no name for."""
        known = set(Payload.__struct_fields__)
        return {k: v for k, v in self.to_dict().items() if k not in known}

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are not fields: a provider's own field, such as `system_fingerprint`.
        if not name.startswith("_"):
            with contextlib.suppress(msgspec.DecodeError, KeyError):  # a body that is no JSON object has no fields
                return self.to_dict()[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __repr__(self) -> str:
        how = "cached" if self.cached else f"{self.attempts} attempts, {self.latency:.3f} s"
        return f"<Response {self.path} {len(self.body)} B {self.finish_reason or ''} {how}>"


class ParsedResponse(Response, Generic[T], kw_only=True, eq=False):
    """An answer that fits the schema it was asked with: `parsed` is its value, as is `choices[0].message.parsed`.

    `rejected` are the answers before it that did not fit, oldest first; `attempts` and `cost` count theirs, too.
    """

    parsed: T
    rejected: tuple[Response, ...] = ()


class Chunk(msgspec.Struct, kw_only=True, eq=False):
    """One piece of a streamed answer; `data` is the JSON of one event."""

    data: bytes
    event: str = ""
    _payload: Payload | None = None

    @property
    def payload(self) -> Payload:
        if self._payload is None:
            self._payload = decode_payload(self.data)
        return self._payload

    @property
    def id(self) -> str:
        return self.payload.id or ""

    @property
    def model(self) -> str:
        return self.payload.model or ""

    @property
    def object(self) -> str:
        return self.payload.object or ""

    @property
    def choices(self) -> list[Choice]:
        return self.payload.choices or []

    @property
    def usage(self) -> Usage | None:
        return self.payload.usage

    @property
    def type(self) -> str:
        """The event's type in a Responses API stream."""
        return self.payload.type or self.event

    @property
    def delta(self) -> str:
        """The text this piece adds to the first choice, or to the output; "" where it adds none."""
        return self.payload.delta_text()

    def to_dict(self) -> dict[str, Any]:
        return decode_object(self.data)

    def __repr__(self) -> str:
        return f"<Chunk {self.event or 'data'} {len(self.data)} B>"


class Row(msgspec.Struct, kw_only=True):
    """One line of a job's input: a request, or the error that says why it is none.

    `index` counts rows from 0, `line` is where it stands in the file (from 1, 0 if there is no file), `source`
    the row as it was read, so that a failed row can be written out as valid input again.
    """

    index: int
    request: Request | None = None
    error: LLMError | None = None
    custom_id: str | None = None
    line: int = 0
    source: bytes = b""

    def __repr__(self) -> str:
        return f"<Row {self.index} {self.custom_id or ''}{' bad' if self.error else ''}>"


class Outcome(msgspec.Struct, kw_only=True, eq=False):
    """What became of one request: a response or a typed error, never neither and never a dummy."""

    index: int
    custom_id: str | None = None
    response: Response | None = None
    error: LLMError | None = None
    request: Request | None = None

    @property
    def ok(self) -> bool:
        return self.response is not None

    @property
    def cached(self) -> bool:
        return self.response is not None and self.response.cached

    @property
    def attempts(self) -> int:
        """How many times the provider was asked; 0 from a cache or where nothing was sent."""
        if self.response is not None:
            return self.response.attempts
        return self.error.attempts if self.error is not None else 0

    @property
    def text(self) -> str:
        """The answer's text; raises the row's error where there is no answer."""
        return self.unwrap().text

    @property
    def parsed(self) -> Any:
        """The answer's value, where a schema was asked for, else None; raises the row's error where there is none."""
        response = self.unwrap()
        return response.parsed if isinstance(response, ParsedResponse) else None

    def unwrap(self) -> Response:
        """Give the response or raise the error."""
        if self.response is None:
            raise self.error or LLMError("the outcome holds neither response nor error")
        return self.response

    def __repr__(self) -> str:
        state = f"{self.response!r}" if self.response is not None else type(self.error).__name__
        return f"<Outcome {self.index} {self.custom_id or ''} {state}>"
