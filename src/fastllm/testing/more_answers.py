"""Answers of the other endpoints: responses, embeddings, moderations."""

from __future__ import annotations

import base64
import hashlib
import math
import sys
from array import array
from collections.abc import Iterator
from typing import Any

from .answers import CREATED, Answer, Ask, compose, cut, number, portions, stream_of, texts_in, tokens_in
from .reply import Refused, Reply, encode, event

_CATEGORIES = [
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
]


# --- responses -------------------------------------------------------------------------------------------------


def responses(ask: Ask) -> Answer:
    """Answer the Responses API: one output message with one text."""
    given = ask.body.get("input")
    if not isinstance(given, str | list) or not given:
        raise Refused(400, "Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    limit = number(ask.body, "max_output_tokens", most=1 << 31)
    said, size = _asked(given)
    prompt = max(1, (size + sum(len(text.encode()) for text in texts_in(ask.body.get("instructions")))) // 4)
    text, completion, reason = cut(compose(ask, said), limit)
    done = _response(ask, text, prompt, completion, reason)
    reply = stream_of(list(_response_events(done, text))) if ask.stream else Reply(encode(done))
    return Answer(reply, prompt, completion, prompt + (completion if limit is None else limit))


def _asked(given: Any) -> tuple[str, int]:
    items = given if isinstance(given, list) else [{"role": "user", "content": given}]
    users = [item for item in items if isinstance(item, dict) and item.get("role") == "user"]
    said = "\n".join(texts_in(users[-1])) if users else ""
    return said, sum(len(text.encode()) for text in texts_in(items))


def _response(ask: Ask, text: str, prompt: int, completion: int, reason: str) -> dict[str, Any]:
    whole = reason == "stop"
    return {
        "id": ask.id("resp"),
        "object": "response",
        "created_at": CREATED,
        "status": "completed" if whole else "incomplete",
        "error": None,
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
        "instructions": ask.body.get("instructions"),
        "metadata": ask.body.get("metadata") or {},
        "model": ask.model,
        "output": [_message(ask.id("msg"), text, "completed" if whole else "incomplete")],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        },
    }


def _message(id: str, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def _response_events(done: dict[str, Any], text: str) -> Iterator[bytes]:
    message = done["output"][0]
    id = message["id"]
    empty = {"type": "output_text", "text": "", "annotations": []}
    here = {"item_id": id, "output_index": 0, "content_index": 0}
    begun = {**done, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    last = "response.completed" if done["status"] == "completed" else "response.incomplete"
    steps: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": _message(id, None, "in_progress")}),
        ("response.content_part.added", {**here, "part": empty}),
        *[("response.output_text.delta", {**here, "delta": part, "logprobs": []}) for part in portions(text)],
        ("response.output_text.done", {**here, "text": text, "logprobs": []}),
        ("response.content_part.done", {**here, "part": message["content"][0]}),
        ("response.output_item.done", {"output_index": 0, "item": message}),
        (last, {"response": done}),
    ]
    for i, (name, fields) in enumerate(steps):
        yield event({"type": name, "sequence_number": i, **fields}, name)


# --- embeddings ------------------------------------------------------------------------------------------------


def embeddings(ask: Ask) -> Answer:
    """Give unit vectors that follow from model and input alone."""
    given = ask.body.get("input")
    one = isinstance(given, str) or _are_tokens(given)
    inputs: list[Any] = [given] if one else given if isinstance(given, list) else []
    if not inputs or any(not item or not (isinstance(item, str) or _are_tokens(item)) for item in inputs):
        text = "'$.input' is invalid: it must be a non-empty string, or an array of such or of tokens."
        raise Refused(400, text, param="input")
    if len(inputs) > ask.config.max_inputs:
        most = f"Expected an array with maximum length {ask.config.max_inputs}, but got one with length {len(inputs)}."
        raise Refused(400, f"Invalid 'input': array too long. {most}", param="input", code="array_above_max_length")
    form = ask.body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise Refused(400, "Invalid 'encoding_format': it must be 'float' or 'base64'.", param="encoding_format")
    size = number(ask.body, "dimensions", most=65_536) or ask.config.dimensions
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(ask, item, size, form == "base64")}
        for i, item in enumerate(inputs)
    ]
    prompt = sum(tokens_in(item) if isinstance(item, str) else len(item) for item in inputs)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    body = encode({"object": "list", "data": data, "model": ask.model, "usage": usage})
    return Answer(Reply(body), prompt, 0, prompt)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value) and value != []


_LEVELS = [(level - 127.5) / 127.5 for level in range(256)]
_SQUARES = [level * level for level in _LEVELS]


def _vector(ask: Ask, item: Any, size: int, packed: bool) -> str | list[float]:
    raw = hashlib.shake_256(encode([ask.config.seed, ask.model, item])).digest(size)
    scale = 1 / math.sqrt(sum(map(_SQUARES.__getitem__, raw)))
    levels = [level * scale for level in _LEVELS]
    values = array("f", map(levels.__getitem__, raw))
    if not packed:
        return values.tolist()
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()


# --- moderations -----------------------------------------------------------------------------------------------


def moderations(ask: Ask) -> Answer:
    """Flag exactly the inputs that contain the word "violence"."""
    given = ask.body.get("input")
    inputs = given if isinstance(given, list) else [given]
    if not inputs or any(not isinstance(item, str | dict) for item in inputs):
        raise Refused(400, "Invalid 'input': it must be a string or an array.", param="input")
    texts = ["\n".join(texts_in(item)) for item in inputs]
    results = [_judged("violence" in text) for text in texts]
    body = encode({"id": ask.id("modr"), "model": ask.model, "results": results})
    prompt = sum(map(tokens_in, texts))
    return Answer(Reply(body), prompt, 0, prompt)


def _judged(flagged: bool) -> dict[str, Any]:
    categories = {name: flagged and name == "violence" for name in _CATEGORIES}
    scores = {name: 0.99 if bad else 0.01 for name, bad in categories.items()}
    applied = {name: ["text"] for name in categories}
    return {
        "flagged": flagged,
        "categories": categories,
        "category_scores": scores,
        "category_applied_input_types": applied,
    }
