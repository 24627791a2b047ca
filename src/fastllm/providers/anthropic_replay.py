"""Turns a whole message back into the events that Anthropic would have streamed, and events into bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..types import Chunk
from .checked import objects_in

_encode = msgspec.json.encode
_PIECES = {"text": "text_delta", "thinking": "thinking_delta"}  # of a block: the field of that name is streamed


def event(kind: str, **fields: Any) -> Chunk:
    """Give one event of a Messages stream."""
    return Chunk(data=_encode({"type": kind, **fields}), event=kind)


def events_of(message: Mapping[str, Any]) -> list[Chunk]:
    """Give the events of a stream that would have ended in this message."""
    begun = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    out = [event("message_start", message=begun)]
    for index, block in enumerate(objects_in(message.get("content"))):
        out += _block_events(index, block)
    end = {"stop_reason": message.get("stop_reason"), "stop_sequence": message.get("stop_sequence")}
    return [*out, event("message_delta", delta=end, usage=message.get("usage") or {}), event("message_stop")]


def _block_events(index: int, block: dict[str, Any]) -> Iterator[Chunk]:
    emptied = dict(block)
    deltas: list[dict[str, Any]] = []
    kind = str(block.get("type"))
    if kind in _PIECES:
        deltas.append({"type": _PIECES[kind], kind: block.get(kind) or ""})
        emptied[kind] = ""
    if kind == "thinking" and block.get("signature"):
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
        emptied["signature"] = ""
    if kind in ("tool_use", "server_tool_use"):
        deltas.append({"type": "input_json_delta", "partial_json": _encode(block.get("input") or {}).decode()})
        emptied["input"] = {}
    for citation in objects_in(emptied.pop("citations", None)):
        deltas.append({"type": "citations_delta", "citation": citation})
    yield event("content_block_start", index=index, content_block=emptied)
    for delta in deltas:
        yield event("content_block_delta", index=index, delta=delta)
    yield event("content_block_stop", index=index)
