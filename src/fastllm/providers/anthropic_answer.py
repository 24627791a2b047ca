"""Answers between Anthropic's Messages and OpenAI's chat completions, in both directions; as plain values.

Text becomes `content`, thinking `reasoning_content`, tool uses `tool_calls`. Where that is not all that was said
(signatures, citations, blocks of server tools) the blocks themselves stand beside it as `content_blocks`, and go back
as they came when the message is part of the next request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec

from ..answers import content_text
from .checked import object_in, objects_in

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_REASONS_BACK = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ENDS = ("stop", "tool_calls", "function_call")  # which say that the model came to an end
_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
_encode = msgspec.json.encode
_decode = msgspec.json.decode


def finish_reason(stop_reason: Any) -> str | None:
    """Give chat's word for a stop reason; one that is not known stays as it is."""
    return _REASONS.get(stop_reason, stop_reason) if isinstance(stop_reason, str) else None


def stop_reason(reason: str | None, *, called: bool = False) -> str | None:
    """Give Anthropic's word for a finish reason; one that is not known stays as it is. A plain end is `tool_use` where
    tools were `called`: OpenAI says "stop" where the tool was forced."""
    if called and reason in _ENDS:
        return "tool_use"
    return None if reason is None else _REASONS_BACK.get(reason, reason)


def usage_of(usage: Any) -> dict[str, Any] | None:
    """Give chat's counts: the prompt with what was read from and written to the cache, which Anthropic counts apart."""
    if not isinstance(usage, Mapping):
        return None
    fresh, read, written, output = (_count(usage.get(name)) for name in _COUNTS)
    prompt = fresh + read + written
    out: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    if read or written:
        out["prompt_tokens_details"] = {"cached_tokens": read, "cache_write_tokens": written}
    return out


def usage_back(usage: Mapping[str, Any]) -> dict[str, int]:
    """Give Anthropic's counts."""
    details = object_in(usage.get("prompt_tokens_details"))
    read, written = _count(details.get("cached_tokens")), _count(details.get("cache_write_tokens"))
    return {
        "input_tokens": max(0, _count(usage.get("prompt_tokens")) - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": _count(usage.get("completion_tokens")),
    }


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def to_completion(message: Mapping[str, Any]) -> dict[str, Any]:
    """Give the chat completion that a message is."""
    out: dict[str, Any] = {
        "id": message.get("id"),
        "object": "chat.completion",
        "created": 0,  # Anthropic does not tell
        "model": message.get("model"),
        "choices": [
            {
                "index": 0,
                "message": _said(message.get("content")),
                "logprobs": None,
                "finish_reason": finish_reason(message.get("stop_reason")),
            }
        ],
    }
    usage = usage_of(message.get("usage"))
    if usage is not None:
        out["usage"] = usage
    if message.get("stop_sequence") is not None:
        out["choices"][0]["stop_sequence"] = message["stop_sequence"]
    return out


def _said(content: Any) -> dict[str, Any]:
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    texts = [str(block.get("text") or "") for block in blocks if block.get("type") == "text"]
    thoughts = [str(block.get("thinking") or "") for block in blocks if block.get("type") == "thinking"]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    out: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    if not texts and not calls:
        out["content"] = ""
    if thoughts:
        out["reasoning_content"] = "".join(thoughts)
    if calls:
        out["tool_calls"] = calls
    return out | kept_beside(blocks)


def kept_beside(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the field of a chat message that holds its blocks, if they are more than the others say."""
    return {} if all(map(_is_plain, blocks)) else {"content_blocks": blocks}


def _is_plain(block: Mapping[str, Any]) -> bool:
    """Tell whether the fields of a chat message say all that a block says."""
    kind = block.get("type")
    if kind == "text":
        return not block.get("citations")
    return kind == "tool_use"


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    cut_off = block.get("partial_json")  # of a stream that ended within them
    arguments = cut_off or _encode(block.get("input") if block.get("input") is not None else {}).decode()
    return {
        "id": block.get("id"),
        "type": "function",
        "function": {"name": block.get("name"), "arguments": arguments},
    }


def to_message(completion: Mapping[str, Any], *, ended: bool = True) -> dict[str, Any]:
    """Give the message that a chat completion is: its first choice. One that has `ended` has a reason for it."""
    choices = completion.get("choices") or [{}]
    choice = choices[0]
    sequence = choice.get("stop_sequence")
    content = blocks_of(choice.get("message") or {}, whose(completion))
    called = any(block.get("type") == "tool_use" for block in objects_in(content))
    told = choice.get("finish_reason") or ("stop" if ended else None)
    reason = "stop_sequence" if sequence is not None else stop_reason(told, called=called)
    return {
        "id": completion.get("id"),
        "type": "message",
        "role": "assistant",
        "model": completion.get("model"),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage_back(completion.get("usage") or {}),
    }


def whose(completion: Mapping[str, Any]) -> str:
    """Give what tells an answer from others, as far as it says so itself; the chunks of a stream say the same."""
    return f"{completion.get('id')} {completion.get('created')}"


def made_id(answer: str | None, place: int) -> str:
    """Give the id of an answer's call that came without one: results must name it, and another answer's has another."""
    return "toolu_" + hashlib.sha256(f"{answer} {place}".encode()).hexdigest()[:24]


def blocks_of(message: Mapping[str, Any], answer: str | None = None) -> list[dict[str, Any]]:
    """Give the content blocks of an assistant's message."""
    kept = message.get("content_blocks")
    if isinstance(kept, list):
        return kept
    blocks: list[dict[str, Any]] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    thoughts = [("thinking", thought)] if thought else []
    said = list(pieces_of(message.get("content"))) or list(pieces_of(message.get("refusal")))
    for kind, pieces in groupby([*thoughts, *said], key=itemgetter(0)):
        more = {"signature": ""} if kind == "thinking" else {}
        blocks.append({"type": kind, kind: "".join(piece for _, piece in pieces), **more})
    for place, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or {}
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id") or made_id(answer, place),
                "name": function.get("name"),
                "input": _object(function.get("arguments")),
            }
        )
    return blocks


def pieces_of(content: Any) -> Iterator[tuple[str, str]]:
    """Give the thoughts ("thinking") and the text ("text") of a content: Mistral's thoughts are parts of it."""
    if isinstance(content, str) and content:
        yield "text", content
    for part in objects_in(content):
        kind = part.get("type")
        if kind in ("thinking", "text"):
            piece = content_text(part.get(kind))
            if piece:
                yield kind, piece


def _object(arguments: Any) -> Any:
    """Arguments that are no JSON object are kept as text: a message has no other place for them."""
    if isinstance(arguments, dict):
        return arguments  # as some vendors give them
    try:
        given = _decode(arguments or "{}") if isinstance(arguments, str | None) else None
    except (msgspec.DecodeError, RecursionError):
        given = None
    return given if isinstance(given, dict) else {"_arguments": arguments}
