"""Turns a whole answer back into the chunks that OpenAI would have streamed: for answers that come from a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ..types import CHAT, RESPONSES, Chunk, Request, Response
from .checked import object_in, objects_in


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Asked(msgspec.Struct):
    stream_options: _StreamOptions | None = None


_asked = msgspec.json.Decoder(_Asked)


def wants_usage(request: Request) -> bool:
    """True if the request asked for a last chunk with the usage."""
    try:
        options = _asked.decode(request.body).stream_options
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return options is not None and bool(options.include_usage)


def chunks_of(response: Response, request: Request) -> list[Chunk]:
    """Give the chunks of a stream that would have ended in this answer, without the `[DONE]`."""
    whole = response.to_dict()
    if response.path == RESPONSES:
        return list(_numbered(_events(whole)))
    frame = {name: value for name, value in whole.items() if name not in ("choices", "usage", "object")}
    frame["object"] = "chat.completion.chunk" if response.path == CHAT else "text_completion"
    with_usage = wants_usage(request)
    pieces: list[dict[str, Any]] = []
    for choice in objects_in(whole.get("choices")):
        pieces.extend(_of_chat(choice) if response.path == CHAT else _of_text(choice))
    told = {"usage": None} if with_usage else {}
    chunks: list[dict[str, Any]] = [{**frame, "choices": [piece], **told} for piece in pieces]
    if with_usage and whole.get("usage") is not None:
        chunks.append({**frame, "choices": [], "usage": whole["usage"]})
    return [Chunk(data=msgspec.json.encode(chunk)) for chunk in chunks]


def _of_chat(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Role, content and whatever else the message has; each tool call; the finish."""
    index = choice.get("index", 0)
    message = dict(object_in(choice.get("message")))
    calls = objects_in(message.pop("tool_calls", None))
    delta = {k: v for k, v in message.items() if v is not None or k == "content"}
    yield {"index": index, "delta": delta, "logprobs": choice.get("logprobs"), "finish_reason": None}
    for place, call in enumerate(calls):
        yield {"index": index, "delta": {"tool_calls": [{"index": place, **call}]}, "finish_reason": None}
    yield {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")}


def _of_text(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    index, logprobs = choice.get("index", 0), choice.get("logprobs")
    yield {"index": index, "text": choice.get("text") or "", "logprobs": logprobs, "finish_reason": None}
    yield {"index": index, "text": "", "logprobs": None, "finish_reason": choice.get("finish_reason")}


def _numbered(events: Iterator[dict[str, Any]]) -> Iterator[Chunk]:
    for number, event in enumerate(events):
        event["sequence_number"] = number
        yield Chunk(data=msgspec.json.encode(event), event=event["type"])


def _events(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a Responses API stream: created, each output item with its text or arguments, the end."""
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for place, item in enumerate(objects_in(whole.get("output"))):
        yield from _item_events(place, item)
    end = "incomplete" if whole.get("status") == "incomplete" else "completed"
    yield {"type": f"response.{end}", "response": whole}


def _item_events(place: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    emptied = {name: [] if name == "content" else "" for name in ("content", "arguments") if name in item}
    yield {
        "type": "response.output_item.added",
        "output_index": place,
        "item": {**item, **emptied, "status": "in_progress"},
    }
    where = {"item_id": item.get("id"), "output_index": place}
    content = item.get("content")
    if item.get("type") == "message" and isinstance(content, list):
        for number, part in enumerate(content):
            if isinstance(part, dict):
                yield from _part_events({**where, "content_index": number}, part)
    if item.get("type") == "function_call":
        arguments = item.get("arguments")
        yield {"type": "response.function_call_arguments.delta", **where, "delta": arguments}
        yield {"type": "response.function_call_arguments.done", **where, "arguments": arguments}
    yield {"type": "response.output_item.done", "output_index": place, "item": item}


def _part_events(where: dict[str, Any], part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    # An output_text part holds `text`, a refusal part `refusal`; their events are named after them.
    kind = str(part.get("type"))
    field = "refusal" if kind == "refusal" else "text"
    yield {"type": "response.content_part.added", **where, "part": {**part, field: ""}}
    yield {"type": f"response.{kind}.delta", **where, "delta": part.get(field) or ""}
    yield {"type": f"response.{kind}.done", **where, field: part.get(field) or ""}
    yield {"type": "response.content_part.done", **where, "part": part}
