"""The other direction, for servers: Messages bodies as chat bodies, chat chunks as Messages events.

What chat has no word for (thinking, Anthropic's own tools and blocks, `top_k`) is passed on under its own name, so that
a request that goes on to Anthropic arrives as it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from ..answers import Choice, ToolCall
from ..types import Chunk
from .anthropic_answer import made_id, pieces_of, stop_reason, usage_back, whose
from .anthropic_replay import event
from .checked import as_list, as_mapping, objects_in, refused
from .places import Places

_SAME = ("model", "max_tokens", "temperature", "top_p", "stream", "service_tier")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_READ = (*_SAME, "system", "messages", "stop_sequences", "metadata", "tools", "tool_choice", "output_config")
NOTHING: Mapping[str, Any] = MappingProxyType({})
_encode = msgspec.json.encode


def from_messages(body: Mapping[str, Any]) -> dict[str, Any]:
    """Give the chat body of a Messages body. InvalidRequestError where there is none."""
    out: dict[str, Any] = {name: body[name] for name in _SAME if body.get(name) is not None}
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _content(body["system"], "system")})
    for place, turn in enumerate(as_list(body.get("messages"), "messages")):
        messages += _messages(as_mapping(turn, f"messages[{place}]"), f"messages[{place}]")
    out["messages"] = messages
    if body.get("stop_sequences"):
        out["stop"] = body["stop_sequences"]
    metadata = dict(as_mapping(body.get("metadata") or {}, "metadata"))
    if "user_id" in metadata:
        out["user"] = metadata.pop("user_id")
    if metadata:
        out["metadata"] = metadata
    if body.get("tools"):
        out["tools"] = [_tool(as_mapping(tool, "a tool")) for tool in as_list(body["tools"], "tools")]
    out |= _choice(body.get("tool_choice")) | _output(body.get("output_config"))
    if body.get("stream"):
        out["stream_options"] = {"include_usage": True}
    return out | {name: value for name, value in body.items() if name not in _READ and value is not None}


def _messages(turn: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    role, content = turn.get("role"), turn.get("content")
    if role == "assistant":
        yield _said(content, where)
        return
    if role != "user":
        raise refused(f"{where}.role must be user or assistant, not {role!r}")
    if isinstance(content, str):
        yield {"role": "user", "content": content}
        return
    rest = []
    for block in as_list(content, f"{where}.content"):
        if isinstance(block, dict) and block.get("type") == "tool_result":
            yield _result(block, where)
        else:
            rest.append(block)
    if rest:
        yield {"role": "user", "content": _content(rest, where)}


def _said(content: Any, where: str) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    blocks = [dict(as_mapping(block, f"{where}.content[]")) for block in as_list(content, f"{where}.content")]
    out: dict[str, Any] = {"role": "assistant", "content": None}
    texts = [str(block.get("text") or "") for block in blocks if block.get("type") == "text"]
    calls = [block for block in blocks if block.get("type") == "tool_use"]
    if texts:
        out["content"] = "".join(texts)
    if calls:
        out["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": call.get("name"), "arguments": _encode(call.get("input") or {}).decode()},
            }
            for call in calls
        ]
    if any(block.get("type") not in ("text", "tool_use") or block.get("citations") for block in blocks):
        out["content_blocks"] = blocks
    return out


def _result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content")
    out = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": "" if content is None else content}
    if isinstance(content, list):
        out["content"] = _content(content, where)
    return out | {name: block[name] for name in ("is_error", "cache_control") if block.get(name) is not None}


def _content(blocks: Any, where: str) -> str | list[dict[str, Any]]:
    """A single plain text is written as text."""
    if isinstance(blocks, str):
        return blocks
    parts = [_part(as_mapping(block, f"{where}.content[]")) for block in as_list(blocks, where)]
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _part(block: Mapping[str, Any]) -> dict[str, Any]:
    source = block.get("source")
    more = {name: block[name] for name in ("cache_control",) if name in block}
    if block.get("type") == "image" and isinstance(source, dict) and source.get("type") in ("base64", "url"):
        return {"type": "image_url", "image_url": {"url": _url(source)}, **more}
    if block.get("type") == "document" and isinstance(source, dict) and not block.get("citations"):
        name = {"filename": block["title"]} if block.get("title") else {}
        if source.get("type") == "base64":
            return {"type": "file", "file": {**name, "file_data": _url(source)}, **more}
        if source.get("type") == "file":
            return {"type": "file", "file": {"file_id": source.get("file_id")}, **more}
    return dict(block)


def _url(source: Mapping[str, Any]) -> Any:
    if source.get("type") == "url":
        return source.get("url")
    return f"data:{source.get('media_type')};base64,{source.get('data')}"


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if "input_schema" not in tool:
        return dict(tool)  # one of Anthropic's own
    function: dict[str, Any] = {"name": tool.get("name")}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    function["parameters"] = tool["input_schema"]
    more = {name: tool[name] for name in ("cache_control",) if name in tool}
    return {"type": "function", "function": function, **more}


def _choice(choice: Any) -> dict[str, Any]:
    if choice is None:
        return {}
    kind = as_mapping(choice, "tool_choice").get("type")
    out: dict[str, Any] = {}
    if kind == "tool":
        out["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in _CHOICES:
        out["tool_choice"] = _CHOICES[kind]
    else:
        raise refused(f"tool_choice.type must be auto, any, none or tool, not {kind!r}")
    if choice.get("disable_parallel_tool_use"):
        out["parallel_tool_calls"] = False
    return out


def _output(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    out: dict[str, Any] = {}
    shape = as_mapping(config, "output_config").get("format")
    if isinstance(shape, dict) and shape.get("type") == "json_schema":
        out["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": shape.get("schema"), "strict": True},
        }
    if config.get("effort") is not None:
        out["reasoning_effort"] = config["effort"]
    return out


class EventEncoder:
    """Writes the chunks of a chat stream, of its first choice, as the events of a Messages stream.

    There one block ends before the next begins, so what comes of further tool calls is kept until the open one ends:
    at the end of all of them, because a chat stream does not say when one has ended. Text that follows calls ends them
    if their arguments are whole, and waits for the end if not. A call's block begins once its name is known."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._begun = False
        self._open: tuple[str, int] | None = None  # thoughts or text: the kind and the index of the open block
        self._places = Places()
        self._live: _Call | None = None  # the tool call whose block is open, the last one
        self._begun_calls = 0
        self._kept: dict[int, _Call] = {}  # those that wait for its end, or for their name
        self._later: list[tuple[str, str]] = []  # thoughts and text that wait for the end of calls
        self._whose: str | None = None  # of the answer, for the ids of calls that came without
        self._count = 0
        self._stop: str | None = None
        self._usage: dict[str, int] = {}

    def add(self, chunk: Chunk) -> list[Chunk]:
        """Give the events of a chunk."""
        out = [] if self._begun else [self._begin(chunk)]
        told = chunk.to_dict()
        usage = told.get("usage")
        if isinstance(usage, dict):
            self._usage = usage_back(usage)
        if self._whose is None and chunk.choices:
            self._whose = whose(told)
        for choice in chunk.choices:
            if not choice.index:
                out += self._of(choice)
        return out

    def block(self, block: dict[str, Any]) -> list[Chunk]:
        """Give the events of a block that comes whole."""
        return [*self._finish(), self._start(block), event("content_block_stop", index=self._last)]

    def end(self, completion: Mapping[str, Any] = NOTHING) -> list[Chunk]:
        """Give the events of the end; `completion` is the chat completion that the chunks came to, if it is known."""
        choice: dict[str, Any] = next(iter(objects_in(completion.get("choices"))), {})
        sequence = choice.get("stop_sequence")
        told = completion.get("usage")
        usage = usage_back(told) if isinstance(told, dict) else self._usage or usage_back({})
        told_reason = stop_reason(choice.get("finish_reason") or self._stop or "stop", called=bool(self._begun_calls))
        reason = "stop_sequence" if sequence is not None else told_reason
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        ended = [event("message_delta", delta=delta, usage=usage), event("message_stop")]
        return [*self._finish(), *ended]

    def _begin(self, chunk: Chunk) -> Chunk:
        self._begun = True
        message: dict[str, Any] = {
            "id": chunk.id,
            "type": "message",
            "role": "assistant",
            "model": chunk.model or self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_back({}),
        }
        return event("message_start", message=message)

    def _of(self, choice: Choice) -> Iterator[Chunk]:
        delta = choice.delta
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            yield from self._piece("thinking", thought)
        for kind, piece in pieces_of(delta.content or delta.refusal):
            yield from self._piece(kind, piece)
        for call in delta.tool_calls or ():
            yield from self._call(call)
        if choice.finish_reason:
            self._stop = choice.finish_reason

    def _call(self, piece: ToolCall) -> Iterator[Chunk]:
        place = self._places.of(piece)
        if self._live is not None and place == self._live.place:
            arguments = self._live.add(piece)
            if arguments:
                yield _delta(self._last, "input_json_delta", partial_json=arguments)
            return
        kept = self._kept.get(place)
        if kept is None:
            if place < self._begun_calls:
                return  # its arguments were whole
            self._begun_calls = place + 1
            kept = self._kept[place] = _Call(place)
        kept.add(piece)
        if self._live is None and kept.name:
            yield from self._close()
            yield from self._go_on_with(place)

    def _go_on_with(self, place: int) -> Iterator[Chunk]:
        """Open the block of a call, and write what has come of it."""
        call = self._live = self._kept.pop(place)
        named = call.id or made_id(self._whose, place)
        yield self._start({"type": "tool_use", "id": named, "name": call.name, "input": {}})
        if call.arguments:
            yield _delta(self._last, "input_json_delta", partial_json="".join(call.arguments))

    def _piece(self, kind: str, piece: str) -> Iterator[Chunk]:
        if self._later or not self._are_whole():
            self._later.append((kind, piece))
            return
        if self._open is None or self._open[0] != kind:
            yield from self._close()
            yield from self._close_calls()
            empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
            yield self._start({"type": kind, **empty})
            self._open = (kind, self._last)
        yield _delta(self._open[1], f"{kind}_delta", **{kind: piece})

    def _are_whole(self) -> bool:
        """Tell whether nothing more can come of the calls that have begun."""
        return self._live is None or all(call.is_whole for call in (self._live, *self._kept.values()))

    def _start(self, block: dict[str, Any]) -> Chunk:
        self._count += 1
        return event("content_block_start", index=self._last, content_block=block)

    @property
    def _last(self) -> int:
        return self._count - 1

    def _close(self) -> Iterator[Chunk]:
        if self._open is not None:
            index, self._open = self._open[1], None
            yield event("content_block_stop", index=index)

    def _close_calls(self) -> Iterator[Chunk]:
        while self._live is not None:
            yield event("content_block_stop", index=self._last)
            self._live = None
            named = [place for place, call in self._kept.items() if call.name]
            if named:
                yield from self._go_on_with(min(named))

    def _finish(self) -> Iterator[Chunk]:
        """End all blocks, after those of what has waited."""
        yield from self._close()
        yield from self._close_calls()
        for place in sorted(self._kept):  # nobody has named them
            yield from self._go_on_with(place)
            yield from self._close_calls()
        later, self._later = self._later, []
        for kind, piece in later:
            yield from self._piece(kind, piece)
        yield from self._close()


class _Call:
    """What has come of a tool call."""

    __slots__ = ("arguments", "id", "name", "place")

    def __init__(self, place: int) -> None:
        self.place = place
        self.id: str | None = None
        self.name = ""
        self.arguments: list[str] = []

    def add(self, piece: ToolCall) -> str | None:
        """Take in a piece, and give its arguments."""
        self.id = self.id or piece.id
        function = piece.function
        if function is None:
            return None
        self.name = self.name or function.name or ""
        if function.arguments:
            self.arguments.append(function.arguments)
        return function.arguments

    @property
    def is_whole(self) -> bool:
        try:
            return isinstance(msgspec.json.decode("".join(self.arguments)), dict)
        except (msgspec.DecodeError, RecursionError):
            return False


def _delta(index: int, kind: str, **fields: str) -> Chunk:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})
