"""Puts the chunks of an OpenAI stream together into the whole answer: pieces lie in lists and are joined once.

Fields that OpenAI's own chunks have not are put together by general rules (`merging`), so that the whole answer has
what a vendor adds, and wants to see again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..answers import Choice, CustomCall, FunctionCall, Message, Payload, ToolCall, Usage, decode_object, lenient
from ..errors import ProtocolError
from ..types import CHAT, RESPONSES, HTTPResponse, Response
from .checked import object_in, objects_in
from .merging import Fields
from .openai_answer import judge, worst_reason
from .places import Places

_ADDED = ("images", "content_blocks", "content_parts", "reasoning_details", "thinking_blocks", "extra_content")
_KNOWN = frozenset((*Message.__struct_fields__, "tool_calls"))
_KNOWN_OF_CALLS = frozenset(ToolCall.__struct_fields__)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Assembly:
    """What a stream has said so far; `response` gives it in the shape of a whole answer."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.whole: Response | None = None  # set where the answer was not streamed at all
        self._first = b""  # the event that names the answer
        self._with_usage = b""  # the last event with a usage: counts are cumulative
        self._usage: Usage | None = None
        self._choices: dict[int, _Parts] = {}
        self._final: msgspec.Raw | None = None
        self._text: list[str] = []

    def add(self, payload: Payload, data: bytes, more: bool) -> None:
        """Take in an event; `more` says that its data may have fields that the payload has not."""
        if payload.usage is not None and payload.usage.total_tokens:
            self._usage, self._with_usage = payload.usage, data
        if self.path == RESPONSES:
            self._add_event(payload, data)
            return
        if not self._first or not self._choices:
            self._first = data
        for choice in payload.choices or ():
            parts = self._choices.get(choice.index)
            if parts is None:
                parts = self._choices[choice.index] = _Parts()
            parts.add(choice)
        if more:
            self._add_unknown(data)

    def _add_unknown(self, data: bytes) -> None:
        for choice in objects_in(decode_object(data).get("choices")):
            index = choice.get("index")
            parts = self._choices.get(index if isinstance(index, int) else 0)
            if parts is not None:
                parts.add_unknown(object_in(choice.get("delta")))

    def _add_event(self, payload: Payload, data: bytes) -> None:
        if payload.response is not None:
            final = _object.decode(data)["response"]
            _fields_of(final)  # raises before it is kept: `response` gives what came before
            self._final = final
        text = payload.delta_text()
        if text:
            self._text.append(text)

    @property
    def is_empty(self) -> bool:
        return not self._choices

    @property
    def is_finished(self) -> bool:
        """True if every choice seen has a finish reason: then the end of bytes is the end of the answer."""
        return bool(self._choices) and all(parts.finish_reason for parts in self._choices.values())

    def check(self) -> None:
        """Raise the error that a Responses API end event carries."""
        judge(self.path, HTTPResponse(status=200, body=self._response_body()))

    def response(self) -> Response:
        if self.whole is not None:
            return self.whole
        if self.path == RESPONSES:
            return self._responses()
        body: dict[str, Any] = {"id": None, "object": "chat.completion", "created": 0, "model": None}
        body |= _object.decode(self._first) if self._first else {}
        body["object"] = "chat.completion" if self.path == CHAT else "text_completion"
        choices = sorted(self._choices.items())
        body["choices"] = [parts.choice(index, self.path) for index, parts in choices]
        body.pop("usage", None)
        if self._with_usage:
            body["usage"] = _object.decode(self._with_usage)["usage"]
        reason = worst_reason([parts.finish_reason for _, parts in choices]) if choices else None
        return Response(body=msgspec.json.encode(body), path=self.path, usage=self._usage, finish_reason=reason)

    def _response_body(self) -> bytes:
        """The response object of the last event that had one, with the text that came as deltas where it has none."""
        fields = _fields_of(self._final)
        if self._text and fields.get("output") in (None, []):
            text = {"type": "output_text", "text": "".join(self._text), "annotations": []}
            fields["output"] = [{"type": "message", "role": "assistant", "content": [text]}]
            return msgspec.json.encode(fields)
        return bytes(self._final) if self._final is not None else msgspec.json.encode(fields)

    def _responses(self) -> Response:
        body = self._response_body()
        fields = _fields_of(msgspec.Raw(body))
        details = fields.get("incomplete_details")
        reason = {"completed": "stop", "incomplete": "length"}.get(str(fields.get("status")))
        if reason == "length" and isinstance(details, dict) and details.get("reason") == "content_filter":
            reason = "content_filter"
        output = fields.get("output")
        if reason == "stop" and isinstance(output, list) and any(_is_call(item) for item in output):
            reason = "tool_calls"
        found = fields.get("usage")
        usage = lenient(found, Usage) if isinstance(found, dict) else self._usage
        return Response(body=body, path=self.path, usage=usage, finish_reason=reason)

    def __repr__(self) -> str:
        return f"<Assembly of {len(self._choices)} choices>"


def _fields_of(raw: msgspec.Raw | None) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(raw) if raw is not None else {}
    except msgspec.DecodeError as error:  # sound JSON, but a number in it is out of range
        text = f"the answer's last event cannot be read: {error}"
        raise ProtocolError(text, status_code=200, code="not_an_answer") from None
    return fields if isinstance(fields, dict) else {}


def _is_call(item: Any) -> bool:
    return isinstance(item, dict) and str(item.get("type")) in ("function_call", "custom_tool_call")


class _Parts:
    """The pieces of one choice."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._role = "assistant"
        self._content: list[str] = []  # the usual case has a list of its own; the others share a dict
        self._text: dict[str, list[str]] = {}
        self._lists: dict[str, list[Any]] = {}
        self._audio: dict[str, Any] = {}
        self._calls = _Calls()
        self._function: _Call | None = None
        self._logprobs: dict[str, list[Any]] = {}
        self._more = Fields()  # whatever else was said

    def add(self, choice: Choice) -> None:
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
        if choice.text:
            self._content.append(choice.text)
        if choice.logprobs:
            _extend(self._logprobs, choice.logprobs)
        delta = choice.delta
        content = delta.content
        if type(content) is str:
            self._content.append(content)
        elif isinstance(content, list):
            _extend(self._lists, {"content": [*self._text_part(), *content]})
            self._content = []
        if delta.role:
            self._role = delta.role
        if delta.refusal is not None:
            self._text.setdefault("refusal", []).append(delta.refusal)
        if delta.reasoning_content is not None:
            self._text.setdefault("reasoning_content", []).append(delta.reasoning_content)
        if delta.reasoning is not None:
            self._text.setdefault("reasoning", []).append(delta.reasoning)
        if delta.tool_calls:
            for call in delta.tool_calls:
                self._calls.add(call)
        if delta.function_call is not None:
            self._function = self._function or _Call(ToolCall())
            self._function.add(delta.function_call)
        if delta.annotations is not None:
            _extend(self._lists, {"annotations": delta.annotations})
        if isinstance(delta.audio, dict):
            self._add_audio(delta.audio)
        if (
            delta.images is not None
            or delta.content_blocks is not None
            or delta.content_parts is not None
            or delta.reasoning_details is not None
            or delta.thinking_blocks is not None
            or delta.extra_content is not None
        ):
            self._more.add({name: getattr(delta, name) for name in _ADDED})

    def _text_part(self) -> list[dict[str, Any]]:
        """Give the text since the last list of parts, as a part: some begin with the one and go on with the other."""
        text = "".join(self._content)
        return [{"type": "text", "text": text}] if text else []

    def add_unknown(self, delta: dict[str, Any]) -> None:
        """Take in the fields that `add` has not seen."""
        self._more.add({name: value for name, value in delta.items() if name not in _KNOWN})
        for call in objects_in(delta.get("tool_calls")):
            self._calls.add_unknown(call)

    def _add_audio(self, piece: dict[str, Any]) -> None:
        for name, value in piece.items():
            if name in ("data", "transcript") and isinstance(value, str):
                self._audio.setdefault(name, []).append(value)
            else:
                self._audio[name] = value

    def choice(self, index: int, path: str) -> dict[str, Any]:
        out: dict[str, Any] = {"index": index, "finish_reason": self.finish_reason}
        if self._logprobs:
            out["logprobs"] = self._logprobs
        content = "".join(self._content)
        if path != CHAT:
            return {**out, "text": content}
        message: dict[str, Any] = {"role": self._role, "content": content if self._content else None}
        message |= self._more.whole() | self._lists
        if "content" in self._lists:
            message["content"] = [*self._lists["content"], *self._text_part()]
        message |= {name: "".join(pieces) for name, pieces in self._text.items()}
        if self._audio:
            message["audio"] = {k: "".join(v) if isinstance(v, list) else v for k, v in self._audio.items()}
        calls = self._calls.whole()
        if calls:
            message["tool_calls"] = calls
        if self._function is not None:
            message["function_call"] = self._function.whole()["function"]
        return {**out, "message": message}


def _extend(lists: dict[str, list[Any]], more: Any) -> None:
    """Lay lists of the same name end to end; anything else of that name is not part of a list and is left out."""
    if isinstance(more, dict):
        for name, items in more.items():
            if isinstance(items, list):
                lists.setdefault(name, []).extend(items)


class _Calls:
    """The tool calls of one choice, by index."""

    def __init__(self) -> None:
        self._places = Places()
        self._calls: list[_Call] = []

    def add(self, piece: ToolCall) -> None:
        place = self._places.of(piece)
        if place == len(self._calls):
            self._calls.append(_Call(piece))
        call = self._calls[place]
        call.id = call.id or piece.id
        call.add(piece.function or FunctionCall())
        if piece.custom is not None or piece.extra_content is not None:
            call.add_more(piece)

    def add_unknown(self, piece: dict[str, Any]) -> None:
        """Take in the fields that `add` has not seen in this piece."""
        place = self._places.known(piece.get("index"))
        if place is not None:
            more = {name: value for name, value in piece.items() if name not in _KNOWN_OF_CALLS}
            self._calls[place].more.add(more)

    def whole(self) -> list[dict[str, Any]]:
        calls = zip(self._places.indices, self._calls, strict=True)
        return [call.whole() for _, call in sorted(calls, key=lambda found: found[0])]


class _Call:
    """The pieces of one tool call."""

    def __init__(self, first: ToolCall) -> None:
        self.id = first.id
        self._type = first.type or ("function" if first.custom is None else "custom")
        self._name: list[str] = []
        self._arguments: list[str] = []
        self.more = Fields()

    def add(self, function: FunctionCall) -> None:
        # Some vendors repeat the whole name with every piece of the arguments.
        if function.name and self._name != [function.name]:
            self._name.append(function.name)
        if function.arguments:
            self._arguments.append(function.arguments)

    def add_more(self, piece: ToolCall) -> None:
        custom = piece.custom or CustomCall()
        told = {"custom": {"name": custom.name, "input": custom.input}} if piece.custom is not None else {}
        self.more.add({**told, "extra_content": piece.extra_content})

    def whole(self) -> dict[str, Any]:
        out: dict[str, Any] = {"id": self.id, "type": self._type}
        if self._type != "custom" or self._name or self._arguments:
            out["function"] = {"name": "".join(self._name), "arguments": "".join(self._arguments)}
        return out | self.more.whole()
