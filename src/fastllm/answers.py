"""OpenAI's answer shapes as typed values: every field optional, unknown ones left to the raw body."""

from __future__ import annotations

import base64
import json
import sys
import types
from array import array
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

MOST_TOKENS = 10_000_000  # of one answer; a count beyond it is a provider's mistake and must not empty a ledger


class TokenDetails(msgspec.Struct):
    """Parts of a token count, where the provider tells them: read from its cache, written to it, reasoning, audio."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens of one answer. `prompt_tokens` includes cached ones, `completion_tokens` includes reasoning.

    The Responses API's names (`input_tokens`, `output_tokens`) are filled in from the others and back.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None

    def __post_init__(self) -> None:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        if 0 < prompt <= MOST_TOKENS and 0 < completion <= MOST_TOKENS and self.total_tokens == prompt + completion:
            self.input_tokens = prompt
            self.output_tokens = completion
            return  # nearly every answer
        prompt = self.prompt_tokens or self.input_tokens
        completion = self.completion_tokens or self.output_tokens
        if not 0 <= prompt <= MOST_TOKENS:
            prompt = 0 if prompt < 0 else MOST_TOKENS
        if not 0 <= completion <= MOST_TOKENS:
            completion = 0 if completion < 0 else MOST_TOKENS
        self.prompt_tokens = self.input_tokens = prompt
        self.completion_tokens = self.output_tokens = completion
        if not 0 < self.total_tokens <= 2 * MOST_TOKENS:
            self.total_tokens = prompt + completion

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details or self.input_tokens_details
        return (details and details.cached_tokens) or 0

    @property
    def reasoning_tokens(self) -> int:
        details = self.completion_tokens_details or self.output_tokens_details
        return (details and details.reasoning_tokens) or 0


class FunctionCall(msgspec.Struct):
    """A function the model wants called; `arguments` is JSON text, as OpenAI gives it."""

    name: str | None = None
    arguments: str | None = None


class CustomCall(msgspec.Struct):
    """A custom tool the model wants called; `input` is free text."""

    name: str | None = None
    input: str | None = None


class ToolCall(msgspec.Struct):
    """One tool call, whole or (in a stream) a piece of the call at `index`. `extra_content` is what the provider wants
    to see again with it: Gemini's thought signature."""

    id: str | None = None
    type: str | None = None
    index: int | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None
    extra_content: Any = None


class Message(msgspec.Struct):
    """An assistant's message, whole or (in a stream) what one chunk adds to it. `parsed` is its content as a schema
    reads it, where one was asked for. What providers want to see again when the message is part of the next request
    (signatures of thoughts, blocks that chat has no word for) is kept in `content_blocks` (Anthropic), `content_parts`
    (Gemini), `reasoning_details` (OpenRouter), `thinking_blocks` and `extra_content`."""

    role: str | None = None
    content: Any = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    annotations: Any = None
    audio: Any = None
    images: Any = None
    content_blocks: Any = None
    content_parts: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None
    extra_content: Any = None
    parsed: Any = None


class Choice(msgspec.Struct):
    """One of `n` answers: `message` in a whole answer, `delta` in a stream, `text` in a plain completion."""

    index: int = 0
    message: Message = msgspec.field(default_factory=Message)
    delta: Message = msgspec.field(default_factory=Message)
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class DeltaCall(ToolCall, forbid_unknown_fields=True):
    """A piece of a tool call that has no field beside these."""


class Delta(Message, forbid_unknown_fields=True):
    """What a chunk adds to a message, where it has no field beside these: so unknown ones are noticed at no cost."""

    tool_calls: list[DeltaCall] | None = None  # type: ignore[assignment]


class _StreamChoice(Choice):
    delta: Delta = msgspec.field(default_factory=Delta)


class Embedding(msgspec.Struct):
    """One input's vector: floats, or base64 text of little-endian float32 where that was asked for."""

    index: int = 0
    embedding: list[float] | str = []
    object: str = "embedding"

    @property
    def floats(self) -> Any:
        """The vector as numbers, however it came: a NumPy array of float32 where NumPy is installed, else an
        `array.array` of the same. ValueError where base64 text is none."""
        if isinstance(self.embedding, str):
            packed = base64.b64decode(self.embedding, validate=True)
        else:
            packed = _little_endian(array("f", self.embedding)).tobytes()
        try:
            return import_module("numpy").frombuffer(packed, dtype="<f4")
        except ImportError:
            return _little_endian(array("f", packed))


def _little_endian(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values


class Moderation(msgspec.Struct):
    """What a moderation model says of one input; `category_applied_input_types` tells which of its parts led to it."""

    flagged: bool = False
    categories: dict[str, bool | None] = {}
    category_scores: dict[str, float | None] = {}
    category_applied_input_types: dict[str, list[str]] | None = None


class Payload(msgspec.Struct):
    """Any OpenAI answer or stream event, all operations in one."""

    id: str | None = None
    object: str | None = None
    type: str | None = None
    created: float | None = None
    created_at: float | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    data: list[Embedding] | None = None
    output: list[Any] | None = None
    results: list[Moderation] | None = None
    delta: Any = None
    response: Any = None
    usage: Usage | None = None

    def text(self) -> str:
        """The text of the first choice, or of all output items joined; "" where there is none."""
        if self.choices:
            first = self.choices[0]
            return first.text if first.text is not None else content_text(first.message.content)
        parts = []
        for item in self.output or []:
            if isinstance(item, dict) and item.get("type") == "message":
                parts.append(content_text(item.get("content")))
        return "".join(parts)

    def delta_text(self) -> str:
        """The text that a stream event adds to the first choice or to the output."""
        if self.choices:
            first = self.choices[0]
            return first.text if first.text is not None else content_text(first.delta.content)
        return self.delta if isinstance(self.delta, str) and self.type == "response.output_text.delta" else ""


class _StreamPayload(Payload):
    choices: list[_StreamChoice] | None = None  # type: ignore[assignment]


_payload = msgspec.json.Decoder(Payload)
_stream_payload = msgspec.json.Decoder(_StreamPayload).decode
_object = msgspec.json.Decoder(dict[str, Any]).decode


def decode_payload(body: bytes) -> Payload:
    """Read an answer; a field of an unexpected type is left out instead of losing the others."""
    try:
        return _payload.decode(body)
    except msgspec.ValidationError:
        payload = lenient(_decode_any(body), Payload)
        return payload if payload is not None else Payload()


def decode_event(data: bytes) -> tuple[Payload, bool]:
    """Read an event of a stream, and tell whether it may have fields that are lost in what is given."""
    try:
        return _stream_payload(data), False
    except msgspec.ValidationError:
        return decode_payload(data), True


def decode_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object as plain values; msgspec.ValidationError where it is none."""
    try:
        return _object(body)
    except msgspec.ValidationError:
        return msgspec.convert(_decode_any(body), dict[str, Any])


def _decode_any(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.ValidationError:
        # A number beyond every float, which is no number at all to msgspec.
        return json.loads(body, parse_constant=_no_number)


def _no_number(text: str) -> Any:
    raise msgspec.DecodeError(f"JSON has no {text}")


def lenient(value: Any, kind: Any) -> Any:
    """Convert JSON values to a type as far as they go: what does not fit becomes None or the field's default.

    An object where text belongs (some vendors' tool arguments) becomes its JSON text, 12.0 the whole number 12.
    """
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        pass
    plain = _without_none(kind)
    if isinstance(value, list) and get_origin(plain) is list:
        found = [lenient(item, get_args(plain)[0]) for item in value]
        return [item for item in found if item is not None]
    if isinstance(value, dict) and isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        hints = get_type_hints(plain)
        fields = {n: lenient(value[n], hints[n]) for n in plain.__struct_fields__ if value.get(n) is not None}
        return plain(**{n: v for n, v in fields.items() if v is not None})
    if plain is str and isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    if plain is int and isinstance(value, float) and abs(value) < 2**53:
        return int(value)
    return None


def _without_none(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        rest = [k for k in get_args(kind) if k is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def content_text(content: Any) -> str:
    """Join the text of a message's content, be it a string, a list of parts or None."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and _is_text(part))
    return ""


def _is_text(part: dict[str, Any]) -> bool:
    return isinstance(part.get("text"), str)
