"""Answers between Gemini's generateContent and OpenAI's chat completions, in both directions; as plain values.

Text becomes `content`, thoughts `reasoning_content`, function calls `tool_calls` (with an id of ours where Gemini gives
none). Parts that a chat message has no field for (images, code, thought signatures of text) stand beside it whole, as
`content_parts`, and go back as they came when the message is part of the next request.
"""

from __future__ import annotations

import base64
import re
from array import array
from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import InternalServerError
from .checked import object_in, objects_in

_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(
        ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
         "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
        "content_filter",
    ),
}  # fmt: skip
_FAILED = frozenset(  # the model's own failures, which another try may not have
    ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE", "TOO_MANY_TOOL_CALLS", "IMAGE_OTHER",
     "MISSING_THOUGHT_SIGNATURE", "NO_IMAGE")
)  # fmt: skip
_REASONS_BACK = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
_NO_ID = re.compile(r"[^A-Za-z0-9-]+")
_encode = msgspec.json.encode


def finish_reason(reason: Any, *, calls: bool = False) -> str | None:
    """Give chat's word for a finish reason; one that is not known stays as it is. InternalServerError where it says
    that the model failed."""
    if not isinstance(reason, str) or reason == "FINISH_REASON_UNSPECIFIED":
        return None
    if reason in _FAILED:
        raise InternalServerError(
            f"the model failed: its answer ended with {reason}", status_code=500, code=reason.lower()
        )
    if reason == "STOP" and calls:
        return "tool_calls"
    return _REASONS.get(reason, reason.lower())


def usage_of(usage: Any) -> dict[str, Any] | None:
    """Give chat's counts: the prompt with what a tool brought, the answer with its thoughts."""
    if not isinstance(usage, Mapping):
        return None
    prompt = _count(usage, "promptTokenCount") + _count(usage, "toolUsePromptTokenCount")
    thoughts = _count(usage, "thoughtsTokenCount")
    answer = _count(usage, "candidatesTokenCount") + thoughts
    out: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    if cached := _count(usage, "cachedContentTokenCount"):
        out["prompt_tokens_details"] = {"cached_tokens": cached}
    if thoughts:
        out["completion_tokens_details"] = {"reasoning_tokens": thoughts}
    return out


def usage_back(usage: Mapping[str, Any]) -> dict[str, int]:
    """Give Gemini's counts."""
    thoughts = _count(object_in(usage.get("completion_tokens_details")), "reasoning_tokens")
    prompt, answer = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    out = {"promptTokenCount": prompt, "candidatesTokenCount": max(0, answer - thoughts)}
    if thoughts:
        out["thoughtsTokenCount"] = thoughts
    if cached := _count(object_in(usage.get("prompt_tokens_details")), "cached_tokens"):
        out["cachedContentTokenCount"] = cached
    return {**out, "totalTokenCount": prompt + answer}


def _count(counts: Mapping[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def to_completion(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Give the chat completion that an answer is. InternalServerError where the model failed."""
    name = answer.get("responseId")
    given = objects_in(answer.get("candidates"))
    choices = [_choice(candidate, place, name) for place, candidate in enumerate(given)]
    if not choices and is_blocked(answer):
        message = {"role": "assistant", "content": "", "refusal": None}
        choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "content_filter"}]
    out: dict[str, Any] = {
        "id": answer.get("responseId"),
        "object": "chat.completion",
        "created": 0,
        "model": answer.get("modelVersion"),
        "choices": choices,
    }
    usage = usage_of(answer.get("usageMetadata"))
    if usage is not None:
        out["usage"] = usage
    return out


def is_blocked(answer: Mapping[str, Any]) -> bool:
    """Tell whether the prompt was refused."""
    feedback = answer.get("promptFeedback")
    return isinstance(feedback, Mapping) and bool(feedback.get("blockReason"))


def _choice(candidate: Mapping[str, Any], place: int, answer: Any) -> dict[str, Any]:
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, Mapping) else None
    given = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    index = candidate.get("index")
    message = said(given, index if isinstance(index, int) else place, answer)
    if not given and candidate.get("finishReason") == "STOP":
        message["content"] = None  # a natural end of nothing is a fault
    return {
        "index": index if isinstance(index, int) else place,
        "message": message,
        "logprobs": _logprobs(candidate.get("logprobsResult")),
        "finish_reason": finish_reason(candidate.get("finishReason"), calls="tool_calls" in message),
    }


def said(parts: list[dict[str, Any]], choice: int = 0, answer: Any = None) -> dict[str, Any]:
    """Give the message that these parts are; `answer` is the id of the answer that they came in."""
    texts = [str(part["text"]) for part in parts if "text" in part and not part.get("thought")]
    thoughts = [str(part["text"]) for part in parts if "text" in part and part.get("thought")]
    calls = [part for part in parts if isinstance(part.get("functionCall"), dict)]
    out: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    if not texts and not calls:
        out["content"] = ""
    if thoughts:
        out["reasoning_content"] = "".join(thoughts)
    if calls:
        out["tool_calls"] = [call_of(part, place, choice, answer) for place, part in enumerate(calls)]
    if any(not _is_plain(part) for part in parts):
        out["content_parts"] = parts
    return out


def _is_plain(part: Mapping[str, Any]) -> bool:
    """Tell whether the fields of a chat message say all that a part says."""
    return bool(part.keys() <= {"text", "thought"} or part.keys() <= {"functionCall", "thoughtSignature"})


def call_of(part: Mapping[str, Any], place: int, choice: int = 0, answer: Any = None) -> dict[str, Any]:
    """Give the tool call that a part is. An id of ours is another one in every answer: a conversation has several."""
    call = part["functionCall"]
    whose = f"{_NO_ID.sub('-', answer)}_" if isinstance(answer, str) and answer else ""
    function = {"name": call.get("name"), "arguments": _encode(call.get("args") or {}).decode()}
    out: dict[str, Any] = {
        "id": call.get("id") or f"call_{whose}{choice}_{place}",
        "type": "function",
        "function": function,
    }
    if part.get("thoughtSignature"):
        out["extra_content"] = {"google": {"thought_signature": part["thoughtSignature"]}}
    return out


def _logprobs(result: Any) -> dict[str, Any] | None:
    if not isinstance(result, Mapping):
        return None
    tops = [objects_in(top.get("candidates")) for top in objects_in(result.get("topCandidates"))]
    content = []
    for place, chosen in enumerate(objects_in(result.get("chosenCandidates"))):
        others = tops[place] if place < len(tops) else []
        content.append({**_token(chosen), "top_logprobs": [_token(other) for other in others]})
    return {"content": content, "refusal": None}


def _token(candidate: Mapping[str, Any]) -> dict[str, Any]:
    token = str(candidate.get("token") or "")
    return {"token": token, "logprob": candidate.get("logProbability"), "bytes": list(token.encode())}


def to_embeddings(answer: Mapping[str, Any], model: str, *, packed: bool) -> dict[str, Any]:
    """Give the embeddings that an answer has, in OpenAI's shape; `packed` as base64 of 32-bit floats."""
    data = []
    for index, embedding in enumerate(objects_in(answer.get("embeddings"))):
        values = embedding.get("values")
        vector: Any = values or []
        if packed:
            vector = base64.b64encode(array("f", vector).tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    out: dict[str, Any] = {"object": "list", "data": data, "model": model}
    usage = usage_of(answer.get("usageMetadata"))
    return out if usage is None else {**out, "usage": usage}


def to_answer(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Give the generateContent answer that a chat completion is."""
    candidates = []
    for choice in completion.get("choices") or ():
        parts = parts_of(choice.get("message") or {})
        candidates.append(
            {
                "index": choice.get("index", 0),
                "content": {"role": "model", "parts": parts},
                "finishReason": reason_back(choice.get("finish_reason")),
            }
        )
    out: dict[str, Any] = {"candidates": candidates, "modelVersion": completion.get("model")}
    if completion.get("id"):
        out["responseId"] = completion["id"]
    return {**out, "usageMetadata": usage_back(completion.get("usage") or {})}


def reason_back(reason: Any) -> str | None:
    """Give Gemini's word for a finish reason."""
    return None if reason is None else _REASONS_BACK.get(reason, "OTHER")


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the parts of an assistant's message."""
    kept = message.get("content_parts")
    if isinstance(kept, list):
        return kept
    parts: list[dict[str, Any]] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought:
        parts.append({"text": thought, "thought": True})
    text = message.get("content") or message.get("refusal")
    if text:
        parts.append({"text": text})
    return parts + [part_of_call(call) for call in message.get("tool_calls") or ()]


def part_of_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Give the part of a tool call. Arguments that are no JSON object are kept as text."""
    function = call.get("function") or {}
    try:
        given = msgspec.json.decode(function.get("arguments") or "{}")
    except (msgspec.DecodeError, RecursionError):
        given = None
    args = given if isinstance(given, dict) else {"_arguments": function.get("arguments")}
    part: dict[str, Any] = {"functionCall": {"id": call.get("id"), "name": function.get("name"), "args": args}}
    signature = ((call.get("extra_content") or {}).get("google") or {}).get("thought_signature")
    return {**part, "thoughtSignature": signature} if signature else part
