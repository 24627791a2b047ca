"""What providers and clients send when all is well: the beginnings of what the fuzzer makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.base import Provider
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.openai import OpenAIProvider
from fastllm.types import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES, Request

from .standard import Events, reference

GOLDEN = Path(__file__).parents[2] / "tests" / "providers" / "golden" / "openai"
USER = {"role": "user", "content": "hi"}
USAGE = {"input_tokens": 12, "output_tokens": 7, "cache_read_input_tokens": 3, "cache_creation_input_tokens": None}
CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}


class Specimen(msgspec.Struct, frozen=True):
    """One exchange as it should be: `answer` the whole one, `events` the streamed one."""

    provider: Provider
    request: Request
    answer: Any
    events: Events


def _asked(path: str = CHAT, **more: Any) -> Request:
    return Request.of({"model": "m", "messages": [USER], "stream": True, **more}, path=path)


_WITH_USAGE = _asked(stream_options={"include_usage": True})

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Hello", "citations": [{"type": "char_location", "cited_text": "H"}]},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": [1, None]}},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": USAGE,
}


def _messages_stream() -> Events:
    def event(kind: str, **fields: Any) -> tuple[str, bytes]:
        return kind, msgspec.json.encode({"type": kind, **fields})

    def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> Events:
        begun = event("content_block_start", index=index, content_block=content)
        pieces = [event("content_block_delta", index=index, delta=delta) for delta in deltas]
        return [begun, *pieces, event("content_block_stop", index=index)]

    cited = {"type": "citations_delta", "citation": {"type": "char_location"}}
    return [
        event("message_start", message={**MESSAGE, "content": [], "stop_reason": None}),
        event("ping"),
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "hm"},
            {"type": "signature_delta", "signature": "s"},
        ),
        *block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hel"}, cited),
        *block(
            2,
            {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
            {"type": "input_json_delta", "partial_json": '{"x":'},
            {"type": "input_json_delta", "partial_json": " [1]}"},
        ),
        event("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 9}),
        event("message_stop"),
    ]


def _generated(parts: list[dict[str, Any]], reason: str | None, **more: Any) -> dict[str, Any]:
    candidate = {"index": 0, "content": {"role": "model", "parts": parts}, "finishReason": reason, **more}
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 2, "cachedContentTokenCount": 1}
    return {"responseId": "r", "modelVersion": "gemini", "candidates": [candidate], "usageMetadata": usage}


_LOGPROBS = {
    "chosenCandidates": [{"token": "Hi", "logProbability": -0.5}],
    "topCandidates": [{"candidates": [{"token": "Ho", "logProbability": -1.5}]}],
}
_PARTS: list[dict[str, Any]] = [
    {"text": "hm", "thought": True},
    {"text": "Hi"},
    {"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": "c2ln"},
    {"inlineData": {"mimeType": "image/png", "data": "aGk="}},
]
GENERATED = _generated(_PARTS, "STOP", logprobsResult=_LOGPROBS)
BLOCKED = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3}}
EMBEDDED = {"embeddings": [{"values": [0.5, -1.0]}, {"values": [0.25, 0.125]}]}


def _openai() -> list[Specimen]:
    found = []
    paths = {"embeddings": EMBEDDINGS, "moderations": MODERATIONS, "completion": COMPLETIONS, "responses": RESPONSES}
    for file in sorted(GOLDEN.glob("*.response.json")):
        name = file.name.partition(".")[0]
        stream = file.with_name(f"{name}.stream.sse")
        path = paths.get(name.partition("_")[0], CHAT)
        body = json.loads(file.with_name(f"{name}.request.json").read_bytes())
        events = reference(stream.read_bytes()) if stream.exists() else []
        request = Request.of({**body, "stream": bool(events)}, path=path)
        found.append(Specimen(OpenAIProvider(), request, json.loads(file.read_bytes()), events))
    return found


def specimens() -> list[Specimen]:
    """Give exchanges in all three dialects."""
    anthropic, gemini = AnthropicProvider(), GeminiProvider()
    pieces = [_generated([part], None) for part in _PARTS] + [_generated([], "STOP")]
    streamed: Events = [("", msgspec.json.encode(piece)) for piece in pieces]
    embed = Request.of({"model": "m", "input": ["a", "b"]}, path=EMBEDDINGS)
    packed = Request.of({"model": "m", "input": ["a", "b"], "encoding_format": "base64"}, path=EMBEDDINGS)
    return [
        *_openai(),
        *[Specimen(anthropic, asked, MESSAGE, _messages_stream()) for asked in (_WITH_USAGE, _asked())],
        *[Specimen(gemini, asked, GENERATED, streamed) for asked in (_WITH_USAGE, _asked())],
        Specimen(gemini, _asked(), BLOCKED, []),
        Specimen(gemini, embed, EMBEDDED, []),
        Specimen(gemini, packed, EMBEDDED, []),
    ]


CHAT_BODY: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
                {"type": "file", "file": {"filename": "t.pdf", "file_data": "data:application/pdf;base64,aGk="}},
                {"type": "input_audio", "input_audio": {"format": "wav", "data": "aGk="}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "t1", "content": "9"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    "stop": ["x"],
    "max_tokens": 9,
    "temperature": 0.5,
    "n": 1,
    "reasoning_effort": "low",
    "metadata": {"a": "b"},
    "user": "u",
    "stream": False,
}
EMBEDDINGS_BODY: dict[str, Any] = {"model": "m", "input": ["a", "b"], "dimensions": 8, "encoding_format": "float"}
MESSAGES_BODY: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                {"type": "document", "source": {"type": "file", "file_id": "f"}, "title": "t"},
            ],
        },
        {"role": "assistant", "content": MESSAGE["content"]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [USER]}],
        },
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}, {"type": "web_search"}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["x"],
    "stream": True,
}
GEMINI_BODY: dict[str, Any] = {
    "systemInstruction": {"parts": [{"text": "s"}]},
    "contents": [
        {"role": "user", "parts": [{"text": "a"}, {"inlineData": {"mimeType": "image/png", "data": "aGk="}}]},
        {"role": "user", "parts": [{"fileData": {"mimeType": "image/png", "fileUri": "gs://x"}}]},
        {"role": "model", "parts": _PARTS},
        {"role": "user", "parts": [{"functionResponse": {"id": "c", "name": "f", "response": {"output": "9"}}}]},
    ],
    "tools": [
        {
            "functionDeclarations": [{"name": "f", "parameters": {"type": "OBJECT", "properties": {}}}],
            "google_search": {},
        },
    ],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
    "generationConfig": {
        "temperature": 0.5,
        "stop_sequences": ["x"],
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT"},
        "thinkingConfig": {"thinkingLevel": "LOW"},
        "responseModalities": ["TEXT"],
    },
}
