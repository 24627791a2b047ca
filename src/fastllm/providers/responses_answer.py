"""Chat completions as answers of OpenAI's Responses API, whole and streamed; plain values, without I/O.

The output's order is that of a stream: thoughts, text, tool calls. What the provider wants to see again
(`content_blocks`, `content_parts`) lies packed in a last reasoning item, because a stream knows it only then. Source:
the Responses API's reference and the types of the official SDK, as of November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..answers import content_text
from ..types import Chunk
from .checked import object_in, objects_in
from .responses_request import packed

_KEPT = ("content_blocks", "content_parts")
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED: Mapping[str, Any] = {  # what a response repeats of its request, and what stands there otherwise
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
_NOT_OF_AN_ID = re.compile(r"^(chatcmpl|msg|resp|gen)[-_]|[^A-Za-z0-9_-]")


def to_response(chat: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Give the response that a chat completion is: its first choice. `asked` is the body of the request."""
    bare = _bare(chat.get("id"))
    choice = next(iter(objects_in(chat.get("choices"))), {})
    reason = choice.get("finish_reason")
    why = _INCOMPLETE.get(reason) if isinstance(reason, str) else None
    return {
        **_frame(bare, chat, asked),
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "output": _output(object_in(choice.get("message")), choice.get("logprobs"), bare, cut=why is not None),
        "usage": usage_of(chat.get("usage")),
    }


def usage_of(usage: Any) -> dict[str, Any] | None:
    """Give the counts by their names here; None where the provider tells none."""
    if not isinstance(usage, Mapping):
        return None
    prompt, answer = object_in(usage.get("prompt_tokens_details")), object_in(usage.get("completion_tokens_details"))
    asked, said = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return {
        "input_tokens": asked,
        "input_tokens_details": {
            "cached_tokens": prompt.get("cached_tokens") or 0,
            "cache_write_tokens": prompt.get("cache_write_tokens") or 0,
        },
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": answer.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens") or asked + said,
    }


def _bare(name: Any) -> str:
    return (_NOT_OF_AN_ID.sub("", name) if isinstance(name, str) else "") or "0"


def _frame(bare: str, chat: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    echoed = {name: usual if asked.get(name) is None else asked[name] for name, usual in _ECHOED.items()}
    return {
        "id": f"resp_{bare}",
        "object": "response",
        "created_at": chat.get("created") or 0,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": chat.get("model") or asked.get("model"),
        "output": [],
        "usage": None,
        **echoed,
    }


def _output(message: Mapping[str, Any], logprobs: Any, bare: str, *, cut: bool) -> list[dict[str, Any]]:
    status = "incomplete" if cut else "completed"
    items: list[dict[str, Any]] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        items.append(_thought(bare, thought))
    text = content_text(message.get("content"))
    refusal = message.get("refusal")
    calls = objects_in(message.get("tool_calls"))
    if text or refusal or not (calls or items):
        parts = [_text_part(text, logprobs)] if text or not refusal else []
        if isinstance(refusal, str) and refusal:
            parts.append({"type": "refusal", "refusal": refusal})
        items.append({**_message(bare), "status": status, "content": parts})
    items += [{**_call(bare, place, call), "status": status} for place, call in enumerate(calls)]
    kept = {name: message[name] for name in _KEPT if message.get(name)}
    if kept:
        items.append({"id": f"rs_{bare}_kept", "type": "reasoning", "summary": [], "encrypted_content": packed(kept)})
    return items


def _thought(bare: str, text: str) -> dict[str, Any]:
    return {"id": f"rs_{bare}", "type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def _message(bare: str) -> dict[str, Any]:
    return {"id": f"msg_{bare}", "type": "message", "role": "assistant", "status": "in_progress", "content": []}


def _text_part(text: str, logprobs: Any = None) -> dict[str, Any]:
    tokens = objects_in(object_in(logprobs).get("content"))
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}


def _call(bare: str, place: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """Give the item of a tool call, without its status."""
    more = {"extra_content": call["extra_content"]} if call.get("extra_content") is not None else {}
    if call.get("type") == "custom":
        custom = object_in(call.get("custom"))
        told = {"type": "custom_tool_call", "name": custom.get("name"), "input": custom.get("input") or ""}
    else:
        function = object_in(call.get("function"))
        told = {"type": "function_call", "name": function.get("name"), "arguments": function.get("arguments") or ""}
    return {"id": f"fc_{bare}_{place}", "call_id": call.get("id"), **told, **more}


class EventWriter:
    """Writes the chunks of a chat stream as the events of a Responses stream: `add` each, then `end` with the whole
    chat completion that they came to. Items stand in the order in which the model began them; tool calls may be
    written side by side, so they stay open until the end."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._asked = asked
        self._number = 0
        self._bare = ""
        self._items: list[_Item] = []
        self._open: _Item | None = None  # thoughts or text
        self._calls: dict[Any, _Item] = {}  # by the index that the chunks give

    def add(self, chunk: Chunk) -> list[Chunk]:
        """Give the events of a chunk."""
        said = chunk.to_dict()
        out = [] if self._number else self._begin(said)
        for choice in objects_in(said.get("choices")):
            if not choice.get("index"):  # a response has one answer
                out += self._of(object_in(choice.get("delta")), choice.get("logprobs"))
        return out

    def end(self, chat: Mapping[str, Any]) -> list[Chunk]:
        """Give the events of the end."""
        whole = to_response(chat, self._asked)
        out = [] if self._number else self._begin(chat)
        out += self._close(whole["status"])
        for opened in self._calls.values():
            out += self._done(opened, whole["status"])
        for item in whole["output"]:  # what only the whole has: kept blocks, an answer without a word
            if item.get("encrypted_content") or not self._items:
                opened = self._added("whole", item)
                out += [self._at(opened, f"output_item.{how}", item=item) for how in ("added", "done")]
        whole |= {"id": f"resp_{self._bare}", "output": [opened.item for opened in self._items]}
        return [*out, self._event(f"response.{whole['status']}", response=whole)]

    def _begin(self, said: Mapping[str, Any]) -> list[Chunk]:
        self._bare = _bare(said.get("id"))
        begun = _frame(self._bare, said, self._asked)
        return [self._event(f"response.{how}", response=begun) for how in ("created", "in_progress")]

    def _of(self, delta: Mapping[str, Any], logprobs: Any) -> Iterator[Chunk]:
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            yield from self._piece("summary_text", thought)
        text = content_text(delta.get("content"))
        if text:
            yield from self._piece("output_text", text, logprobs)
        refusal = delta.get("refusal")
        if isinstance(refusal, str) and refusal:
            yield from self._piece("refusal", refusal)
        for call in objects_in(delta.get("tool_calls")):
            yield from self._call(call)

    def _piece(self, kind: str, text: str, logprobs: Any = None) -> Iterator[Chunk]:
        opened = self._open
        thinks = kind == "summary_text"
        if opened is None or opened.kind != kind:
            yield from self._close("completed")
            nth = sum(other.item["type"] == ("reasoning" if thinks else "message") for other in self._items)
            bare = f"{self._bare}_{nth}" if nth else self._bare
            item = {"id": f"rs_{bare}", "type": "reasoning", "summary": []} if thinks else _message(bare)
            opened = self._open = self._added(kind, item)
            yield self._at(opened, "output_item.added", item=item)
            part = "reasoning_summary_part" if thinks else "content_part"
            yield self._within(opened, f"{part}.added", part=opened.part(""))
        opened.pieces.append(text)
        more = {}
        if kind == "output_text":
            more["logprobs"] = tokens = objects_in(object_in(logprobs).get("content"))
            opened.logprobs += tokens
        yield self._within(opened, f"{opened.event}.delta", delta=text, **more)

    def _call(self, call: Mapping[str, Any]) -> Iterator[Chunk]:
        place = call.get("index", len(self._calls))
        opened = self._calls.get(place)
        if opened is None:
            yield from self._close("completed")
            item = {**_call(self._bare, len(self._calls), call), "status": "in_progress"}
            kind = "input" if item["type"] == "custom_tool_call" else "arguments"
            opened = self._calls[place] = self._added(kind, item)
            piece, item[kind] = item[kind], ""
            yield self._at(opened, "output_item.added", item=item)
        else:
            told = object_in(call.get("function") or call.get("custom"))
            piece = told.get("arguments") or told.get("input") or ""
            if call.get("extra_content") is not None:
                opened.item["extra_content"] = call["extra_content"]
        if piece:
            opened.pieces.append(piece)
            yield self._within(opened, f"{opened.event}.delta", delta=piece)

    def _close(self, status: str) -> list[Chunk]:
        opened, self._open = self._open, None
        return [] if opened is None else list(self._done(opened, status))

    def _done(self, opened: _Item, status: str) -> Iterator[Chunk]:
        text = "".join(opened.pieces)
        field = {"arguments": "arguments", "input": "input", "refusal": "refusal"}.get(opened.kind, "text")
        more = {"logprobs": opened.logprobs} if opened.kind == "output_text" else {}
        yield self._within(opened, f"{opened.event}.done", **{field: text}, **more)
        if opened.is_call:
            opened.item |= {opened.kind: text, "status": status}
        else:
            part = opened.part(text)
            thinks = opened.kind == "summary_text"
            opened.item |= {"summary": [part]} if thinks else {"content": [part], "status": status}
            name = "reasoning_summary_part" if thinks else "content_part"
            yield self._within(opened, f"{name}.done", part=part)
        yield self._at(opened, "output_item.done", item=opened.item)

    def _added(self, kind: str, item: dict[str, Any]) -> _Item:
        opened = _Item(kind, item, len(self._items))
        self._items.append(opened)
        return opened

    def _within(self, opened: _Item, kind: str, **fields: Any) -> Chunk:
        where = {"summary_index": 0} if opened.kind == "summary_text" else {"content_index": 0}
        return self._at(opened, kind, item_id=opened.item["id"], **({} if opened.is_call else where), **fields)

    def _at(self, opened: _Item, kind: str, **fields: Any) -> Chunk:
        return self._event(f"response.{kind}", output_index=opened.place, **fields)

    def _event(self, kind: str, **fields: Any) -> Chunk:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return Chunk(data=data, event=kind)


_EVENTS = {
    "summary_text": "reasoning_summary_text",
    "arguments": "function_call_arguments",
    "input": "custom_tool_call_input",
}


class _Item:
    """An output item that a stream has begun. `kind` is its part's type, or the field of a call that is written."""

    def __init__(self, kind: str, item: dict[str, Any], place: int) -> None:
        self.kind = kind
        self.item = item
        self.place = place
        self.event = _EVENTS.get(kind, kind)
        self.is_call = kind in ("arguments", "input")
        self.pieces: list[str] = []
        self.logprobs: list[dict[str, Any]] = []

    def part(self, text: str) -> dict[str, Any]:
        """Give the part of its content that has this text."""
        if self.kind == "output_text":
            return {**_text_part(text), "logprobs": self.logprobs}
        return {"type": self.kind, "refusal" if self.kind == "refusal" else "text": text}
