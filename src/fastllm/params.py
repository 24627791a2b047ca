"""The parameters of each operation, for type checkers and editors, and the one place where they become a Request.

At run time any other keyword is passed on as it is, because providers add their own; in typed code those go into
`extra_body`. A parameter that is not given is never sent; None is sent as null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import msgspec

from .answers import Message
from .errors import ConfigError, InvalidRequestError
from .keywords import refuse_of_client
from .options import Timeout
from .schema.base import Schema, is_schema
from .schema.tool import Tool, plain_tools
from .types import Headers, Request

ResponseFormat = Mapping[str, Any] | type[Any] | Schema[Any]
Messages = Iterable[Mapping[str, Any] | Message]


class CallOptions(TypedDict, total=False):
    """What every call takes beside its body. `timeout` in seconds in total, as a Timeout with its phases, or None for
    no limit; `sample` numbers independent answers to the same prompt where a cache is on."""

    timeout: float | Timeout | None
    extra_headers: Mapping[str, str]
    extra_body: Mapping[str, Any]
    sample: int
    custom_id: str | None


MODERATOR = "omni-moderation-latest"  # OpenAI's own default, which routing needs to know


class RowSampling(TypedDict, total=False):
    """What completions of either kind take, in a call and for the rows of a file."""

    frequency_penalty: float | None
    logit_bias: Mapping[str, int] | None
    max_tokens: int | None
    n: int | None
    presence_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    temperature: float | None
    top_p: float | None
    user: str


class RowChat(RowSampling, total=False):
    """What chat completions take, in a call and for the rows of a file."""

    audio: Mapping[str, Any] | None
    logprobs: bool | None
    max_completion_tokens: int | None
    metadata: Mapping[str, str] | None
    modalities: Sequence[str] | None
    parallel_tool_calls: bool
    prediction: Mapping[str, Any] | None
    prompt_cache_key: str
    reasoning_effort: str | None
    safety_identifier: str
    schema_retries: int
    service_tier: str | None
    store: bool | None
    tool_choice: str | Mapping[str, Any]
    tools: Iterable[Mapping[str, Any] | Tool[Any, Any]]
    top_logprobs: int | None
    verbosity: str | None


class PlainChatParams(CallOptions, RowChat, total=False):
    """Parameters of `chat.completions.parse`, and of `create` but for the `response_format`."""

    stream_options: Mapping[str, Any] | None


class ChatParams(PlainChatParams, total=False):
    """Parameters of `chat.completions.create`. A `response_format` in OpenAI's own form is passed on as it is; a type,
    a JSON schema or a Schema is what the answer must fit, and `schema_retries` how often it is asked for again."""

    response_format: ResponseFormat


class CompletionParams(CallOptions, RowSampling, total=False):
    """Parameters of `completions.create`."""

    best_of: int | None
    echo: bool | None
    logprobs: int | None
    stream_options: Mapping[str, Any] | None
    suffix: str | None


class EmbeddingParams(CallOptions, total=False):
    """Parameters of `embeddings.create`."""

    dimensions: int
    encoding_format: Literal["float", "base64"]
    user: str


class PlainResponsesParams(CallOptions, total=False):
    """Parameters of `responses.parse`, and of `create` but for the `text_format`."""

    background: bool | None
    include: Sequence[str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: Mapping[str, str] | None
    parallel_tool_calls: bool | None
    previous_response_id: str | None
    reasoning: Mapping[str, Any] | None
    schema_retries: int
    service_tier: str | None
    store: bool | None
    temperature: float | None
    text: Mapping[str, Any]
    tool_choice: str | Mapping[str, Any]
    tools: Iterable[Mapping[str, Any]]
    top_logprobs: int | None
    top_p: float | None
    truncation: str | None
    user: str


class ResponsesParams(PlainResponsesParams, total=False):
    """Parameters of `responses.create`. `text_format` is what the answer must fit: a type, a JSON schema, a Schema."""

    text_format: ResponseFormat


_OPTIONS = frozenset(CallOptions.__annotations__) | {"schema_retries", "text_format"}


def to_request(path: str, model: str, fields: dict[str, Any], params: Mapping[str, Any], *, stream: bool) -> Request:
    """Build the Request of one call. InvalidRequestError names what cannot be sent."""
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(f"model must be a name such as 'openai/gpt-4o-mini', not {model!r}", sent=False)
    more, options = call_options(params)
    body = {"model": model, **fields, **more}
    if stream:
        body["stream"] = True
    return Request.of(body, path=path, **options)


def messages_of(messages: Any) -> list[Any]:
    """Give the messages of a chat as a list that can be written. Messages of answers (`choices[0].message`) go in as
    they are: what they leave open is left out, because providers refuse nulls where they expect a list."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise InvalidRequestError(
            f'messages must be a list of messages, such as [{{"role": "user", "content": "Hello"}}], '
            f"not of type {type(messages).__name__}",
            sent=False,
        )
    found = list(messages)
    for i, message in enumerate(found):
        if isinstance(message, Mapping):
            if any(isinstance(value, list | tuple | msgspec.Struct) for value in message.values()):
                found[i] = {name: _plain(value) for name, value in message.items()}
        elif isinstance(message, msgspec.Struct):
            found[i] = _plain(message)
        elif message is None or isinstance(message, str | bytes | int | float | list | tuple):
            raise InvalidRequestError(
                f'messages[{i}] must be a mapping such as {{"role": "user", "content": "Hello"}}, '
                f"not of type {type(message).__name__}",
                sent=False,
            )
    return found


def _plain(value: Any) -> Any:
    """The value with our own structs as dicts, without the fields that are None, nor what was made of the content."""
    if isinstance(value, msgspec.Struct):
        names = (name for name in value.__struct_fields__ if not (name == "parsed" and isinstance(value, Message)))
        fields = ((name, getattr(value, name)) for name in names)
        return {name: _plain(item) for name, item in fields if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def call_options(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keywords into fields of the body and fields of the Request. ConfigError for an option of the client."""
    refuse_of_client(params)
    body: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in params.items():
        if name not in _OPTIONS:
            if value is not msgspec.UNSET:
                body[name] = value
        elif value is not None:
            options[name] = value
    _shape(body, options)
    body.update(options.pop("extra_body", {}))
    if "extra_headers" in options:
        options["headers"] = Headers(options.pop("extra_headers"))
    timeout = params.get("timeout", msgspec.UNSET)
    if timeout is not msgspec.UNSET:  # here None is a value: no limit
        options["timeout"] = Timeout.of(timeout)
    sample = options.get("sample", 0)
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise InvalidRequestError(f"sample must be a whole number of at least 0, not {sample!r}", sent=False)
    return body, options


def _shape(body: dict[str, Any], options: dict[str, Any]) -> None:
    """Turn what an answer must fit into a Schema of the Request and its wire form in the body; Tools likewise."""
    if "tools" in body:
        body["tools"] = plain_tools(body["tools"])
    retries, text_format = options.pop("schema_retries", None), options.pop("text_format", None)
    wanted: Any = body.get("response_format")
    if text_format is not None:
        schema = Schema.of(text_format, retries=retries)
        body["text"] = {**body.get("text", {}), **schema.text_format}
    elif is_schema(wanted):
        schema = Schema.of(wanted, retries=retries)
        body["response_format"] = schema.response_format
    elif retries is not None:
        raise ConfigError(
            "schema_retries is for a schema: give response_format a type, a JSON schema or a Schema; OpenAI's own form "
            "of it is passed on as it is, and answers are not looked into"
        )
    else:
        return
    options["schema"] = schema
