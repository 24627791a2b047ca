"""The error tree: what went wrong, whose fault it is, and whether trying again can help.

FastLLMError
├── ConfigError                     the caller's mistake, found before anything is sent (exit status 2)
│   ├── MissingExtra                an optional package is not installed; the message has the pip command
│   ├── MissingKeyError             no API key for this endpoint
│   ├── UnknownProviderError        no such provider
│   └── JobConflictError            the output or journal belongs to another job, or is in use
└── LLMError                        one request failed; carries attempts, endpoint, status_code, request_id
    ├── InvalidRequestError         a request or row that cannot be sent (malformed, duplicate id, …)
    ├── LimitExceededError          larger than a limit, so it could never be sent
    ├── DeadlineExceededError       the total time ran out over all attempts
    ├── InvalidAnswerError          answered, but the answer does not fit its schema; `response` has it
    ├── StoppedError                not sent, because the job or the key was stopped; run again to go on
    │   └── BudgetExceededError     not sent, because it might cost more than is left of the budget
    ├── APIConnectionError          no answer, or not a whole one
    │   ├── APITimeoutError         connect, first byte or between chunks
    │   ├── ProtocolError           an answer that is not HTTP, not JSON or not what the dialect promises
    │   └── TruncatedStreamError    the stream ended without its terminator
    └── APIStatusError              the provider said no
        ├── BadRequestError 400     ── ContextLengthError, UnsupportedParameterError, ContentFilterError
        ├── AuthenticationError 401
        ├── PermissionDeniedError 403
        ├── NotFoundError 404
        ├── ConflictError 409       (retried)
        ├── RequestTooLargeError 413
        ├── UnprocessableEntityError 422
        ├── RateLimitError 429      ── QuotaExceededError (also 402): no credit left, never retried
        ├── UnexpectedStatusError   redirects and everything else that is not an answer
        └── InternalServerError 5xx ── OverloadedError (503 busy, 529)

Every class decides the reaction by three attributes: `retryable`, `fatal_for_key` and `fault`. Messages never
hold a secret and at most 200 bytes of a foreign body.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import msgspec

Fault = Literal["ours", "theirs", "caller's"]
SNIPPET_BYTES = 200
# Providers quote the key they refuse; what looks like one is cut from their text.
_SECRET = re.compile(r"\b((?:sk|pk|rk|gsk|csk|xai|nvapi|pplx|hf|r8)[-_]|AIza|Bearer\s+)[A-Za-z0-9_.*\-]{8,}")
# llama_cpp.server answers 500 to a request with a field that it cannot take; in the next try it can take it no better.
_REFUSED_FIELD = re.compile(r"\bvalidation errors?:.{0,200}?'loc': \('body'", re.DOTALL)


class FastLLMError(Exception):
    """Base of every error that FastLLM raises on purpose."""


class ConfigError(FastLLMError, ValueError):
    """Say which setting is wrong, with which value, and what would be right."""


class MissingExtra(ConfigError, ImportError):
    """An optional package is missing; the message holds the command that installs it."""


class MissingKeyError(ConfigError):
    """No API key was given or found in the environment."""


class UnknownProviderError(ConfigError):
    """The named provider is not registered."""


class JobConflictError(ConfigError):
    """The output or the journal belongs to another job, or another process holds it."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that brought no answer: who was asked, and the error's class, status and code. On a route it may also
    be an endpoint that was passed over without an attempt, as its key was refused or it is blocked for long."""

    endpoint: str
    error: str
    status_code: int | None = None
    code: str | None = None


def let_go(error: BaseException) -> None:
    """Take the tracebacks off an error and what it came from, for good.

    Their frames hold request and answer (up to 64 MiB) as long as the error lives, often in a cycle: until the
    collector runs, which it seldom does during a run. (Emptying the frames would end those of other tasks that raised
    it, too.)
    """
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__


class LLMError(FastLLMError):
    """One request failed.

    Attributes: `message`; `status_code`, `request_id`, `code`, `type`, `param` as the provider gave them (else
    None); `retry_after` in seconds; `attempts` made so far; `endpoint` that was asked last; `sent`, False only
    where the provider cannot have seen the request; `partial`, the Response as far as a stream had come; `response`,
    the whole one where there is one, which is of no use but was paid for; `history`, the attempts that failed, this one
    the last.
    """

    history: tuple[Tried, ...] = ()
    partial: Any = None
    response: Any = None
    retryable: bool = False
    fatal_for_key: ClassVar[bool] = False
    fault: ClassVar[Fault] = "theirs"

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        request_id: str | None = None,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.request_id = request_id
        self.code = code
        self.type = type
        self.param = param
        self.retry_after = retry_after
        self.sent = sent
        self.attempts = 0
        self.endpoint = ""
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        notes = []
        if self.attempts > 1:
            notes.append(f"{self.attempts} attempts")
        if self.endpoint:
            notes.append(self.endpoint)
        if self.request_id:
            notes.append(f"request {self.request_id}")
        return f"{self.message} ({', '.join(notes)})" if notes else self.message

    def to_dict(self) -> dict[str, Any]:
        """Give the error as plain JSON values, without secrets or prompts."""
        return {
            "class": self.__class__.__name__,
            "code": self.code or self.type or snake(self.__class__.__name__),
            "message": self.message,
            "param": self.param,
            "status_code": self.status_code,
            "request_id": self.request_id,
            "attempts": self.attempts,
            "retryable": self.retryable,
        }


class InvalidRequestError(LLMError, ValueError):
    """A request or row that cannot be sent as it is."""

    fault = "caller's"


class LimitExceededError(LLMError):
    """One request needs more than a limit ever allows; waiting would not help."""

    fault = "caller's"


class DeadlineExceededError(LLMError, TimeoutError):
    """The total time for one request, over all attempts and waits, ran out."""


class InvalidAnswerError(LLMError, ValueError):
    """The answer does not fit its schema, however often it was asked for.

    `response` is the last answer, `rejected` those before it. `retryable` is False where another question is of no use:
    the answer was cut off at its longest, or refused.
    """

    retryable = True
    rejected: tuple[Any, ...] = ()


class StoppedError(LLMError):
    """The request was not sent, because its job or its key was stopped."""


class BudgetExceededError(StoppedError):
    """The request was not sent, because it might have cost more than is left of the budget; it stops a job.

    `passing` is True where only the money held for requests under way is missing: once they are settled, it may fit.
    """

    fault = "caller's"
    passing: bool = False


class APIConnectionError(LLMError):
    """No whole answer came back: refused, reset, unresolved, or cut off."""

    retryable = True


class APITimeoutError(APIConnectionError, TimeoutError):
    """A connect, first-byte or between-chunks timeout of one attempt."""


class ProtocolError(APIConnectionError):
    """An answer came that is not HTTP, not JSON or not what the dialect promises."""


class TruncatedStreamError(APIConnectionError):
    """A stream ended without its terminator; what came before it is in `partial`."""


class APIStatusError(LLMError):
    """The provider answered with an error status or an error body."""


class BadRequestError(APIStatusError):
    """The provider cannot make sense of the request (400, and others that say so); the same again would fail again."""

    fault = "caller's"


class ContextLengthError(BadRequestError):
    """The prompt is longer than the model's context."""


class UnsupportedParameterError(BadRequestError):
    """The model does not take a parameter that was sent; `param` names it."""


class ContentFilterError(BadRequestError):
    """The provider refused the prompt by its content policy."""


class AuthenticationError(APIStatusError):
    """The key is missing, wrong or no longer good (401)."""

    fatal_for_key = True
    fault = "caller's"


class PermissionDeniedError(APIStatusError):
    """The key is good, but not for this model, project or place (403)."""

    fatal_for_key = True
    fault = "caller's"


class NotFoundError(APIStatusError):
    """There is no such model, or nothing at this address (404)."""

    fault = "caller's"


class ConflictError(APIStatusError):
    """The provider was busy with the same thing (409); it is tried again."""

    retryable = True


class RequestTooLargeError(APIStatusError):
    """The request has more bytes than the provider takes (413)."""

    fault = "caller's"


class UnprocessableEntityError(APIStatusError):
    """The request is well-formed, and a value in it cannot be (422)."""

    fault = "caller's"


class RateLimitError(APIStatusError):
    """Too many requests or tokens for now (429); it is tried again, after the wait that was asked for."""

    retryable = True
    fault: ClassVar[Fault] = "ours"


class QuotaExceededError(RateLimitError):
    """No credit or spending limit is left for this key; trying again only costs time."""

    retryable = False
    fatal_for_key = True
    fault = "caller's"


class UnexpectedStatusError(APIStatusError):
    """A status that no API answers with: a redirect that is not followed, a stray 2xx, …"""


class InternalServerError(APIStatusError):
    """The provider failed (5xx, or 408); it is tried again."""

    retryable = True


class OverloadedError(InternalServerError):
    """The provider is out of capacity; it is not your rate limit."""


# Rules for statuses stand in tables; what a body says about itself is weighed in `classify`.
_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: QuotaExceededError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: InternalServerError,
    409: ConflictError,
    413: RequestTooLargeError,
    422: UnprocessableEntityError,
    425: ConflictError,
    429: RateLimitError,
    503: OverloadedError,
    529: OverloadedError,
}
_NOT_RETRIED_5XX = frozenset({501, 505})

# OpenAI's and Anthropic's names for "no money left" (shared facts: PROVIDERS.md section 2).
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "enforced_spend_limit_reached",
        "billing_error",
    }
)
_BY_CODE: dict[str, type[APIStatusError]] = {
    "context_length_exceeded": ContextLengthError,
    "exceed_context_size_error": ContextLengthError,  # llama.cpp
    "unsupported_parameter": UnsupportedParameterError,
    "unsupported_value": UnsupportedParameterError,
    "content_filter": ContentFilterError,
    "content_policy_violation": ContentFilterError,
    "invalid_api_key": AuthenticationError,
    "authentication_error": AuthenticationError,
    "permission_error": PermissionDeniedError,
    "not_found_error": NotFoundError,
    "model_not_found": NotFoundError,
    "rate_limit_exceeded": RateLimitError,
    "rate_limit_error": RateLimitError,
    "overloaded_error": OverloadedError,
    "server_is_overloaded": OverloadedError,
    "slow_down": RateLimitError,
    "api_error": InternalServerError,
    "server_error": InternalServerError,
}


# The status that goes with a name, for errors inside a 200 or a stream, where the name is all there is.
_STATUS_BY_NAME: dict[str, int] = {
    **dict.fromkeys(("invalid_request_error", "context_length_exceeded", "unsupported_parameter"), 400),
    **dict.fromkeys(("unsupported_value", "content_filter", "content_policy_violation", "INVALID_ARGUMENT"), 400),
    **dict.fromkeys(("invalid_api_key", "authentication_error", "UNAUTHENTICATED"), 401),
    **dict.fromkeys(("billing_error", "credit_balance_exhausted"), 402),
    **dict.fromkeys(("permission_error", "PERMISSION_DENIED"), 403),
    **dict.fromkeys(("not_found_error", "model_not_found", "NOT_FOUND"), 404),
    "request_too_large": 413,
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "slow_down", "RESOURCE_EXHAUSTED"), 429),
    "insufficient_quota": 429,
    **dict.fromkeys(("server_is_overloaded", "UNAVAILABLE"), 503),
    **dict.fromkeys(("timeout_error", "DEADLINE_EXCEEDED"), 504),
    "overloaded_error": 529,
}


class ErrorBody(msgspec.Struct):
    """What providers put under `error`; Anthropic's and llama.cpp's shapes included."""

    message: Any = None
    type: Any = None
    code: Any = None
    param: Any = None
    status: Any = None
    details: Any = None
    metadata: Any = None

    def status_code(self) -> int:
        """The HTTP status that the error's own code or name means, for errors that came under a good one; else 500."""
        for value in (self.code, self.status, self.type):
            text = str(value)
            if text.isdecimal() and len(text) == 3 and 400 <= int(text) < 600:
                return int(text)
            if text in _STATUS_BY_NAME:
                return _STATUS_BY_NAME[text]
        return 500


class _Envelope(msgspec.Struct):
    error: ErrorBody | str | None = None
    message: Any = None
    detail: Any = None
    type: Any = None
    code: Any = None
    param: Any = None


_envelope = msgspec.json.Decoder(_Envelope)
_envelopes = msgspec.json.Decoder(list[_Envelope])


def parse_error_body(body: bytes) -> ErrorBody | None:
    """Read an error object from a body in any of the usual shapes; None where there is none."""
    try:
        # Gemini's OpenAI endpoint answers with a list of one.
        envelope = next(iter(_envelopes.decode(body)), _Envelope()) if body[:1] == b"[" else _envelope.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(envelope.error, ErrorBody):
        return envelope.error
    text = envelope.error or envelope.message or envelope.detail
    if not text:
        return None
    return ErrorBody(message=text, type=envelope.type, code=envelope.code, param=envelope.param)


def classify(status: int, header: Callable[[str], str | None], body: bytes) -> APIStatusError:
    """Turn an error answer into the one error that decides the reaction.

    `header` looks up one response header by lower-case name. The order of the rules: codes that mean "no
    money left" win over everything, then codes that name a class, then the status; `x-should-retry` decides
    last whether to retry, but never revives an empty account.
    """
    found = parse_error_body(body) or ErrorBody()
    code, kind = _text(found.code), _text(found.type)
    message = _text(found.message) or snippet(body) or "no message"
    cls = _class_for(status, code, kind, message, found)
    retryable = cls.retryable and status not in _NOT_RETRIED_5XX
    if not issubclass(cls, QuotaExceededError):
        pushed = (header("x-should-retry") or "").strip().lower()
        if pushed in ("true", "false"):
            retryable = pushed == "true"
        if cls is RateLimitError and "request too large" in message.lower():
            retryable = False  # one request over the whole limit never passes
    return cls(
        f"{status} from the provider: {snippet(message.encode('utf-8', 'replace'))}",
        status_code=status,
        request_id=header("x-request-id") or header("request-id"),
        code=_short(code),
        type=_short(kind),
        param=_short(_text(found.param)),
        retryable=retryable,
    )


def _class_for(status: int, code: str | None, kind: str | None, message: str, found: ErrorBody) -> type[APIStatusError]:
    names = [name for name in (code, kind) if name]
    if isinstance(found.details, dict) and isinstance(found.details.get("error_code"), str):
        names.append(found.details["error_code"])
    if status == 400 and message.startswith("API key not valid"):  # Gemini
        return AuthenticationError
    if _QUOTA_CODES.intersection(names) or _daily_quota(found.details):
        return QuotaExceededError
    if isinstance(found.metadata, dict) and found.metadata.get("limit_source") == "openrouter_in_flight_budget":
        return RateLimitError  # a 402 that passes as soon as requests in flight are answered
    if status == 500 and "too large to process" in message:  # llama.cpp, of an input to embed
        return ContextLengthError
    if status == 500 and _REFUSED_FIELD.search(message):
        return BadRequestError
    for name in names:
        if name in _BY_CODE:
            return _BY_CODE[name]
    if status in (400, 413) and (
        "prompt is too long" in message or "context length" in message or "context size" in message
    ):
        return ContextLengthError
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return InternalServerError
    return BadRequestError if 400 <= status < 500 else UnexpectedStatusError


def _daily_quota(details: Any) -> bool:
    """Gemini names the quota that ran out; a day's is not waited for, even where it sends a short retryDelay."""
    return isinstance(details, list) and any("quotaId" in (text := str(item)) and "PerDay" in text for item in details)


def snippet(body: bytes) -> str:
    """Give the start of a foreign body, printable, at most 200 bytes, with keys cut out."""
    # Keys go before the cut, which could leave half a key that no longer looks like one.
    text = _SECRET.sub(r"\1***", body[: 4 * SNIPPET_BYTES].decode("utf-8", "replace"))
    text = "".join(c if c.isprintable() else " " for c in text).strip()
    return text.encode("utf-8", "replace")[:SNIPPET_BYTES].decode("utf-8", "ignore")


def snake(name: str) -> str:
    """`RateLimitError` -> `rate_limit_error`; runs of capitals stay together."""
    out: list[str] = []
    for i, c in enumerate(name):
        starts_word = c.isupper() and i > 0 and (not name[i - 1].isupper() or name[i + 1 : i + 2].islower())
        out.append("_" + c.lower() if starts_word else c.lower())
    return "".join(out)


def _short(text: str | None) -> str | None:
    return snippet(text.encode("utf-8", "replace")) if text else text


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else None
