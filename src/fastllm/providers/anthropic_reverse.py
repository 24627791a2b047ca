"""The other direction, for servers: Messages bodies as chat bodies, chat chunks as Messages events.

What chat has no word for (thinking, Anthropic's own tools and blocks, `top_k`) is passed on under its own name, so that
a request that goes on to Anthropic arrives as it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..answers import Choice, ToolCall
from ..types import Chunk
from .anthropic_answer import stop_reason, usage_back
from .checked import as_list, as_mapping, refused

_SAME = ("model", "max_tokens", "temperature", "top_p", "stream", "service_tier")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_READ = (*_SAME, "system", "messages", "stop_sequences", "metadata", "tools", "tool_choice", "output_config")
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
    """Writes the chunks of a chat stream as the events of a Messages stream."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._begun = False
        self._open: tuple[str, int] | None = None  # kind of the open block, and which call it is
        self._index = -1
        self._stop: str | None = None
        self._usage: dict[str, int] = {}

    def add(self, chunk: Chunk) -> bytes:
        """Give the events of a chunk."""
        out = [] if self._begun else [self._begin(chunk)]
        usage = chunk.to_dict().get("usage")
        if isinstance(usage, dict):
            self._usage = usage_back(usage)
        for choice in chunk.choices[:1]:
            out += self._of(choice)
        return b"".join(out)

    def end(self) -> bytes:
        """Give the events of the end."""
        delta = {"stop_reason": stop_reason(self._stop), "stop_sequence": None}
        out = [*self._close(), _event("message_delta", delta=delta, usage=self._usage or usage_back({}))]
        return b"".join([*out, _event("message_stop")])

    def _begin(self, chunk: Chunk) -> bytes:
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
        return _event("message_start", message=message)

    def _of(self, choice: Choice) -> Iterator[bytes]:
        delta = choice.delta
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            yield from self._piece("thinking", "thinking_delta", thinking=thought)
        text = delta.content if isinstance(delta.content, str) else delta.refusal
        if text:
            yield from self._piece("text", "text_delta", text=text)
        for call in delta.tool_calls or ():
            yield from self._call(call)
        if choice.finish_reason:
            self._stop = choice.finish_reason

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        place = call.index or 0
        if self._open != ("tool_use", place):
            name = call.function.name if call.function is not None else None
            block: dict[str, Any] = {"type": "tool_use", "id": call.id, "name": name, "input": {}}
            yield from self._start(("tool_use", place), block)
        if call.function is not None and call.function.arguments:
            yield self._delta("input_json_delta", partial_json=call.function.arguments)

    def _piece(self, kind: str, delta: str, **fields: str) -> Iterator[bytes]:
        if self._open != (kind, 0):
            empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
            yield from self._start((kind, 0), {"type": kind, **empty})
        yield self._delta(delta, **fields)

    def _start(self, opened: tuple[str, int], block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._open = opened
        self._index += 1
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, **fields: str) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **fields})

    def _close(self) -> Iterator[bytes]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._index)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))
