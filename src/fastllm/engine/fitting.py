"""Asks until the answer fits its schema, over whatever executes requests; the answers that do not fit are kept.

Each question is a request like any other: admitted, paid for, cached and counted by itself, with its own time. The
cache holds every answer as it came, because what fits is looked at above it. Nothing that was paid for is lost: an
InvalidAnswerError carries the last answer, and so it does where asking again fails for another reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ..answers import Choice, Message, content_text
from ..errors import InvalidAnswerError, InvalidRequestError, LLMError
from ..schema.base import Misfit, Schema
from ..types import RESPONSES, ParsedResponse, Request, Response
from .stats import Stats

Execute = Callable[[Request], Awaitable[Response]]
_TOLD = tuple(name for name in Response.__struct_fields__ if not name.startswith("_"))
_CUT = frozenset({"length", "max_tokens", "max_output_tokens"})


class _Asked(msgspec.Struct):
    messages: list[msgspec.Raw] = []
    input: str | list[msgspec.Raw] = []


_asked = msgspec.json.Decoder(_Asked)


async def fitting(
    execute: Execute,
    request: Request,
    *,
    stats: Stats | None = None,
    may_ask: Callable[[], bool] = lambda: True,
) -> ParsedResponse[Any]:
    """Get an answer that fits `request.schema`, asking again where it does not, as often as the schema allows.

    Raises InvalidAnswerError once the bound is reached or `may_ask` says that nothing more is to be sent.
    """
    schema = request.schema
    assert schema is not None
    asked = request
    rejected: list[Response] = []
    attempts = 0
    misfit: InvalidAnswerError | None = None
    while True:
        try:
            response = await execute(asked)
        except LLMError as error:
            if misfit is None:
                raise
            if stats is not None:
                stats.unfail(error)
            misfit.message += f"; asking again failed: {error.message}"
            raise _final(misfit, rejected, attempts + error.attempts, stats) from error
        attempts += response.attempts
        try:
            found = fitted(response, schema)
        except InvalidAnswerError as error:
            if stats is not None:
                stats.misfit()
            misfit = error
        else:
            found.rejected, found.attempts = tuple(rejected), attempts
            found.cached = response.cached and not attempts
            costs = [answer.cost for answer in (*rejected, response)]
            found.cost = sum(cost for cost in costs if cost is not None) if None not in costs else None
            return found
        if not misfit.retryable or len(rejected) >= schema.retries or not may_ask():
            raise _final(misfit, rejected, attempts, stats)
        rejected.append(response)
        try:
            asked = asked_again(request, response, misfit)
        except InvalidRequestError as error:
            misfit.message += f"; it cannot be asked for again: {error.message}"
            raise _final(misfit, rejected, attempts, stats) from error


def _final(
    error: InvalidAnswerError, rejected: list[Response], attempts: int, stats: Stats | None
) -> InvalidAnswerError:
    error.rejected = tuple(answer for answer in rejected if answer is not error.response)
    error.attempts = attempts
    asked = len(error.rejected) + 1
    if asked > 1:
        error.message += f" (asked {asked} times)"
    error.args = (error.message,)
    if stats is not None:
        stats.failure(error)
    return error


def fitted(response: Response, schema: Schema[Any]) -> ParsedResponse[Any]:
    """Give the answer with its value; of several choices each must fit. InvalidAnswerError where one does not.

    A choice that calls tools and says nothing has no value: `parsed` is None, and it is as it should be.
    """
    # The typed form is made anew, because whoever shares this answer may have asked without a schema.
    found: ParsedResponse[Any] = ParsedResponse(**{name: getattr(response, name) for name in _TOLD}, parsed=None)
    try:
        choices = found.choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = f"the answer cannot be read, so that it cannot fit the schema {schema.name}"
        raise _invalid(response, text, "unreadable", again=False) from error
    for choice in choices:
        choice.message.parsed = _value(schema, content_text(choice.message.content), response, choice)
    found.parsed = choices[0].message.parsed if choices else _value(schema, found.text, response, Choice())
    return found


def _value(schema: Schema[Any], text: str, response: Response, choice: Choice) -> Any:
    message = choice.message
    if not text and (message.tool_calls or message.function_call or _calls_tools(response)):
        return None
    try:
        return schema.validate(text)
    except Misfit as error:
        raise _misfit(schema, error, response, message, choice.finish_reason or response.finish_reason) from error


def _calls_tools(response: Response) -> bool:
    return any(isinstance(item, dict) and str(item.get("type")).endswith("_call") for item in response.output)


def _misfit(
    schema: Schema[Any], error: Misfit, response: Response, message: Message, reason: str | None
) -> InvalidAnswerError:
    code, text, again = "schema_mismatch", f"the answer does not fit the schema {schema.name}: {error}", True
    if reason in _CUT:
        code, again = "truncated", False
        text = f"the answer was cut off at its longest, before it fits the schema {schema.name}: allow more tokens"
    elif message.refusal or reason == "content_filter":
        code, again = "refusal", False
        text = f"the model refused to answer by the schema {schema.name}"
    return _invalid(response, text, code, again=again)


def _invalid(response: Response, text: str, code: str, *, again: bool) -> InvalidAnswerError:
    made = InvalidAnswerError(
        text, code=code, status_code=response.status_code, request_id=response.request_id, retryable=again
    )
    made.response, made.endpoint, made.attempts = response, response.endpoint, response.attempts
    return made


def asked_again(request: Request, response: Response, error: InvalidAnswerError) -> Request:
    """Give the request that continues the conversation: the answer that did not fit, and what is wrong with it.

    The schema is said once more, because a server that heeded it would not have answered so.
    """
    schema = request.schema
    assert schema is not None
    complaint = f"That is no valid answer: {error.__cause__}. {schema.instruction}"
    said = [{"role": "user", "content": complaint}]
    if response.text:  # an empty message is refused by some
        said.insert(0, {"role": "assistant", "content": response.text})
    try:
        asked = _asked.decode(request.body)
    except (msgspec.DecodeError, RecursionError) as cause:
        raise InvalidRequestError(f"the conversation cannot be continued: {cause}") from None
    if request.path != RESPONSES:
        return request.with_fields(messages=[*asked.messages, *said])
    before = asked.input if isinstance(asked.input, list) else [{"role": "user", "content": asked.input}]
    return request.with_fields(input=[*before, *({"type": "message", **message} for message in said)])
