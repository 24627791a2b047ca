"""Faces: how errors look in the dialect of the route that they happen on, whole and inside a stream.

An error of a provider keeps its status, except where that would mislead: a refused key is the gateway's and not the
client's (502), a wait that ran out is 504, a connection that broke 502. `x-should-retry` tells SDKs whether trying
again can help: not where the gateway has just done so, and not where the wait is longer than they would wait.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from ..errors import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BudgetExceededError,
    DeadlineExceededError,
    FastLLMError,
    InvalidRequestError,
    LimitExceededError,
    LLMError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    RequestTooLargeError,
    StoppedError,
)

Pairs = list[tuple[bytes, bytes]]


def pairs_of(lines: bytes) -> Pairs:
    """Give headers as pairs from lines of a head: each with its CRLF, good as they are, their names in lower case."""
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n")[:-1])]


LONGEST_RETRY = 60.0  # seconds: the official SDKs wait for no longer, but by a back-off of their own
_encode = msgspec.json.encode
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# status -> OpenAI's and Anthropic's word for it
_TYPES: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("invalid_request_error", "authentication_error"),
    402: ("insufficient_quota", "billing_error"),
    403: ("invalid_request_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("timeout_error", "timeout_error"),
    409: ("conflict_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    422: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    503: ("overloaded_error", "overloaded_error"),
    504: ("timeout_error", "timeout_error"),
    529: ("overloaded_error", "overloaded_error"),
}
_SERVER = ("server_error", "api_error")
# What only Anthropic says: `invalid_request_error` is OpenAI's word for nearly everything, too.
_ANTHROPICS = frozenset(kind for _, kind in _TYPES.values()) - {"invalid_request_error"}
_STATUSES: tuple[tuple[type[LLMError], int], ...] = (  # of errors that no provider sent
    (InvalidRequestError, 400),
    (BadRequestError, 400),
    (PermissionDeniedError, 403),
    (NotFoundError, 404),
    (RequestTooLargeError, 413),
)


class Refusal(FastLLMError):
    """What the gateway itself says no with, before a provider is asked."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.headers = headers
        self.close = close  # the connection, because the rest of the request was not read


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """An error as it is told: the same facts for every dialect."""

    status: int
    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    again: bool | None = None  # whether trying again can help, where that is known
    headers: Mapping[str, str] = _NO_HEADERS
    close: bool = False


def fault_of(error: FastLLMError, most_attempts: int = 1) -> Fault:
    """Give what a client is told of an error."""
    if isinstance(error, Refusal):
        again = None if error.retry_after is None else error.retry_after <= LONGEST_RETRY
        return Fault(
            status=error.status,
            message=error.message,
            code=error.code,
            param=error.param,
            retry_after=error.retry_after,
            again=again,
            headers=error.headers,
            close=error.close,
        )
    if not isinstance(error, LLMError):  # a model that cannot be routed; why is the operator's business
        return Fault(status=404, message="this model is not served here", code="model_not_found", param="model")
    status, code = _status(error)
    after = error.retry_after if status in (429, 503, 529) else None
    return Fault(
        status=status,
        message=error.message,
        type=error.type,
        code=code,
        param=error.param,
        retry_after=after,
        again=_again(error, status, after, most_attempts),
    )


def _status(error: LLMError) -> tuple[int, str | None]:
    code, status = error.code, error.status_code
    if isinstance(error, BudgetExceededError):
        return 429, code or "budget_exceeded"
    if isinstance(error, StoppedError):
        cause = error.__cause__
        if isinstance(cause, AuthenticationError):
            return 502, "upstream_authentication"
        return (429, code) if isinstance(cause, RateLimitError) else (503, code)
    if isinstance(error, AuthenticationError):
        return 502, "upstream_authentication"
    if isinstance(error, DeadlineExceededError | APITimeoutError):
        return 504, code or "timeout"
    if isinstance(error, APIConnectionError):
        return 502, code or "upstream_connection"
    if isinstance(error, LimitExceededError):
        return 413, code or "request_too_large"
    if isinstance(error, QuotaExceededError):
        return 429, code or "insufficient_quota"
    if isinstance(error, RateLimitError):
        return 429, code or "rate_limit_exceeded"
    if status is None or not 400 <= status < 600:
        return next((known for kind, known in _STATUSES if isinstance(error, kind)), 502), code
    return status, code


def _again(error: LLMError, status: int, after: float | None, most_attempts: int) -> bool | None:
    if isinstance(error, BudgetExceededError | QuotaExceededError | AuthenticationError):
        return False
    if status == 429:
        # Nobody was asked, or the time to come back is known: that is worth it, if not too far away.
        return after <= LONGEST_RETRY if after is not None else error.attempts < most_attempts
    if status >= 500:
        return False if error.attempts >= most_attempts > 1 or not error.retryable else None
    return None


class Face:
    """One dialect of errors. `named` are the headers in which its clients look for a request's id: the %."""

    named = b"x-request-id: %\r\nx-fastllm-request-id: %\r\n"

    def body(self, fault: Fault, request_id: str) -> bytes:
        """Give the body of an answer."""
        raise NotImplementedError

    def event(self, fault: Fault, request_id: str) -> bytes:
        """Give the event that ends a stream."""
        raise NotImplementedError

    def lines(self, fault: Fault) -> bytes:
        """Give what an answer's head says of an error."""
        lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in fault.headers.items())
        if fault.retry_after is not None and math.isfinite(fault.retry_after):
            lines += b"retry-after: %d\r\n" % max(1, math.ceil(fault.retry_after))
            lines += b"retry-after-ms: %d\r\n" % math.ceil(fault.retry_after * 1000)
        if fault.again is not None:
            lines += b"x-should-retry: true\r\n" if fault.again else b"x-should-retry: false\r\n"
        if fault.close:
            lines += b"connection: close\r\n"
        return lines


class OpenAIFace(Face):
    """`{"error": {message, type, param, code}}`."""

    def body(self, fault: Fault, request_id: str) -> bytes:
        kind = fault.type or _TYPES.get(fault.status, _SERVER)[0]
        return _encode({"error": {"message": fault.message, "type": kind, "param": fault.param, "code": fault.code}})

    def event(self, fault: Fault, request_id: str) -> bytes:
        return b"data: %b\n\n" % self.body(fault, request_id)


class ResponsesFace(OpenAIFace):
    """As OpenAI's; in a stream it is an event with a name."""

    def event(self, fault: Fault, request_id: str) -> bytes:
        kind = fault.code or fault.type or _TYPES.get(fault.status, _SERVER)[0]
        body = {"type": "error", "code": kind, "message": fault.message, "param": fault.param, "sequence_number": 0}
        return b"event: error\ndata: %b\n\n" % _encode(body)


class AnthropicFace(Face):
    """`{"type": "error", "error": {type, message}, "request_id"}`; an error of Anthropic's keeps its own type."""

    named = b"request-id: %\r\n" + Face.named

    def body(self, fault: Fault, request_id: str) -> bytes:
        kind = fault.type if fault.type in _ANTHROPICS else _TYPES.get(fault.status, _SERVER)[1]
        error = {"type": kind, "message": fault.message}
        return _encode({"type": "error", "error": error, "request_id": request_id})

    def event(self, fault: Fault, request_id: str) -> bytes:
        return b"event: error\ndata: %b\n\n" % self.body(fault, request_id)


OPENAI, RESPONSES_FACE, ANTHROPIC = OpenAIFace(), ResponsesFace(), AnthropicFace()
