"""Judges whole answers in OpenAI's dialect: what must be known of one is read, all else stays bytes.

An answer is only an answer if it says something: a good status over HTML, an error, broken JSON or no choice is an
error here, because every other room trusts what this one lets through.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import msgspec

from ..answers import Usage, lenient
from ..errors import APIStatusError, InternalServerError, ProtocolError, classify, parse_error_body, snippet
from ..types import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES, HeaderLines, HTTPResponse, Request
from .vectors import count_of, vectors_of

_NOT_JSON = (msgspec.DecodeError, ValueError, RecursionError)  # bad UTF-8 and endless integers are ValueErrors
_NULL = msgspec.Raw(b"null")
_FILLED = re.compile(rb"\s*\[\s*[^\]\s]")  # a list of at least one
NO_ERROR = frozenset((b"null", b"{}", b"[]", b'""', b"false", b"0"))
_CALL = re.compile(rb'"type"\s*:\s*"(?:function|custom_tool)_call"')
_REQUEST_ID = re.compile(rb"\r\n(?i:x-request-id):([^\r]*+)\r\n")
_REQUEST_IDS = frozenset((b"request-id", b"apim-request-id"))  # where there is no x-request-id
_GOOD_REASONS = frozenset(("stop", "tool_calls", "function_call"))
# The key that carries the answer: given twice, readers would disagree on what was answered.
_CARRIER = {CHAT: b'"choices"', COMPLETIONS: b'"choices"', EMBEDDINGS: b'"data"', RESPONSES: b'"output"'}


class _Message(msgspec.Struct):
    content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    audio: Any = None
    images: Any = None

    def is_empty(self) -> bool:
        """True if it says nothing in any form; an empty string is something: the model had nothing to say."""
        if self.content is not None and self.content != []:
            return False
        return all(getattr(self, name) in (None, [], {}) for name in self.__struct_fields__)


class _Choice(msgspec.Struct):
    finish_reason: Any = None
    message: _Message | None = None
    text: str | None = None
    error: msgspec.Raw = _NULL


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class Envelope(msgspec.Struct):
    """What must be known of an answer."""

    error: msgspec.Raw = _NULL
    choices: list[_Choice] | None = None
    data: msgspec.Raw = _NULL
    results: msgspec.Raw = _NULL
    output: msgspec.Raw = _NULL
    status: Any = None
    incomplete_details: _Incomplete | None = None
    usage: Usage | None = None


class _Loose(Envelope):
    """The same where a provider's usage is not what OpenAI's is."""

    usage: Any = None


class _PlainMessage(msgspec.Struct):
    content: str


class _PlainChoice(msgspec.Struct):
    finish_reason: Literal["stop", "length"]
    message: _PlainMessage


class _Plain(msgspec.Struct):
    """Nearly every answer: one text, and nothing to look at more closely."""

    choices: tuple[_PlainChoice]
    usage: Usage | None = None
    error: None = None


_plain = msgspec.json.Decoder(_Plain)
_envelope = msgspec.json.Decoder(Envelope)
_loose = msgspec.json.Decoder(_Loose)


def judge(path: str, answer: HTTPResponse) -> tuple[str | None, Usage | None]:
    """Give finish reason and usage of a whole answer under a good status, or raise what it really is."""
    body = answer.body
    if path == CHAT:
        try:
            plain = _plain.decode(body)
        except _NOT_JSON:
            pass
        else:
            _check_text(answer, b'"choices"')
            return plain.choices[0].finish_reason, _counted(plain.usage)
    try:
        found = _envelope.decode(body)
    except msgspec.ValidationError:
        found = _read_loosely(answer)
    except _NOT_JSON:
        raise nonsense(answer, "is not JSON" if body.strip() else "is empty") from None
    _check_text(answer, _CARRIER.get(path))
    if found.error is not _NULL and bytes(found.error).strip() not in NO_ERROR:
        raise error_inside(body, answer)
    if path in (CHAT, COMPLETIONS):
        reason = _choices_reason(path, found.choices, answer)
    else:
        reason = _other_reason(path, found, answer)
    return reason, _counted(found.usage)


def _counted(usage: Usage | None) -> Usage | None:
    """All zero is how some servers say that they did not count."""
    return usage if usage is not None and usage.total_tokens else None


def check_vectors(request: Request, answer: HTTPResponse) -> None:
    """Raise ProtocolError unless an embeddings answer has one vector for each input."""
    count = count_of(request.body)
    if count:
        try:
            vectors_of(answer.body, count)
        except ValueError as error:
            raise nonsense(answer, str(error)) from None


def request_id_of(answer: HTTPResponse) -> str | None:
    """Give the id under which the provider knows this answer."""
    headers: object = answer.headers
    if type(headers) is HeaderLines:
        line = headers.search(_REQUEST_ID)
        if line is not None:
            return line[1].strip(b" \t").decode("latin-1")
    found = None
    for name, value in answer.headers:
        if name == b"x-request-id":
            return value.strip(b" \t").decode("latin-1")
        if found is None and name in _REQUEST_IDS:
            found = value.strip(b" \t").decode("latin-1")
    return found


def error_inside(body: bytes, answer: HTTPResponse) -> APIStatusError:
    """Classify an error under a good status: its code decides where that means a status; else it is the server's."""
    found = parse_error_body(body)
    return classify(found.status_code() if found is not None else 500, answer.header, body)


def _check_text(answer: HTTPResponse, carrier: bytes | None) -> None:
    """Raise ProtocolError for what the decoder passes over: it looks only into what it was asked for."""
    body = answer.body
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            raise nonsense(answer, "is not UTF-8") from None
    if carrier is not None and body.count(carrier) > 1:
        check_once(answer, carrier)


def _read_loosely(answer: HTTPResponse) -> Envelope:
    try:
        found = _loose.decode(answer.body)
    except msgspec.ValidationError:
        raise nonsense(answer, "has not the shape of an answer") from None
    except _NOT_JSON:
        raise nonsense(answer, "is not JSON") from None
    found.usage = lenient(found.usage, Usage) if isinstance(found.usage, dict) else None
    return found


def check_once(answer: HTTPResponse, carrier: bytes) -> None:
    """Raise ProtocolError where an object gives a key twice: of two answers, readers would take different ones.
    Looked for only where the key that carries the answer stands there more than once."""
    if answer.body.count(carrier) < 2:
        return

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise nonsense(answer, "gives a key twice")
        return fields

    try:
        json.loads(answer.body, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise nonsense(answer, "is not JSON") from None


def _other_reason(path: str, found: Envelope, answer: HTTPResponse) -> str | None:
    if path == EMBEDDINGS and not _FILLED.match(found.data):
        raise nonsense(answer, "has no data")
    if path == MODERATIONS and not _FILLED.match(found.results):
        raise nonsense(answer, "has no results")
    if path == RESPONSES:
        return _responses_reason(found, answer)
    return None


def _choices_reason(path: str, choices: list[_Choice] | None, answer: HTTPResponse) -> str | None:
    if not choices:
        raise nonsense(answer, "has no choices")
    first = choices[0]
    message = first.message
    if first.finish_reason == "stop" and message is not None and type(message.content) is str and len(choices) == 1:
        return "stop"  # nearly every answer
    said = False
    for choice in choices:
        if choice.finish_reason == "error":  # OpenRouter: the model's provider failed after the answer had begun
            raise error_inside(b'{"error":%b}' % bytes(choice.error), answer)
        said = said or _says_something(path, choice)
    if not said:
        raise nonsense(answer, "has no choice with content")
    return worst_reason([choice.finish_reason for choice in choices])


def worst_reason(reasons: list[Any]) -> str | None:
    """Give one finish reason for all choices: the first that is not a natural end, else the first choice's."""
    texts = [reason if isinstance(reason, str) else None for reason in reasons]
    return next((text for text in texts if text is not None and text not in _GOOD_REASONS), texts[0])


def _says_something(path: str, choice: _Choice) -> bool:
    if path == COMPLETIONS:
        return choice.text is not None
    if choice.message is None:
        return False
    # A limit or a filter may leave nothing; a natural end without content is a fault.
    reason = choice.finish_reason
    natural = not isinstance(reason, str) or reason in _GOOD_REASONS
    return not (natural and choice.message.is_empty())


def _responses_reason(found: Envelope, answer: HTTPResponse) -> str | None:
    if found.status == "failed":
        raise InternalServerError(
            f"the response failed, and the provider does not say why: {snippet(answer.body)}",
            status_code=500,
            request_id=request_id_of(answer),
            code="response_failed",
        )
    if found.status == "incomplete":
        reason = found.incomplete_details.reason if found.incomplete_details is not None else None
        return "content_filter" if reason == "content_filter" else "length"
    if found.status in ("queued", "in_progress"):  # asked for in the background: an answer, only not yet the end
        return None
    if not _FILLED.match(found.output):
        raise nonsense(answer, "has no output")
    if found.status in ("completed", None):
        return "tool_calls" if _CALL.search(found.output) else "stop"
    return found.status if isinstance(found.status, str) else None


def nonsense(answer: HTTPResponse, what: str) -> ProtocolError:
    """Say what is wrong with an answer that came under a good status."""
    return ProtocolError(
        f"status {answer.status}, but the answer {what}: {snippet(answer.body) or 'no body'}",
        status_code=answer.status,
        request_id=request_id_of(answer),
        code="not_an_answer",
    )
