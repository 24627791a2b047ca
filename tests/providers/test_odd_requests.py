"""Requests with odd values in them are refused by name, in each dialect; found by stress/fuzz.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from fastllm.errors import InvalidRequestError
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.anthropic_reverse import from_messages
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.gemini_reverse import from_gemini
from fastllm.types import Request, Target

USER = {"role": "user", "content": "hi"}
ODD = (None, True, 0, -1, 1.5, "x", "", [], ["x"], [None], [[]], [1], {}, {"x": 1}, {"type": []}, {"role": {}}, 10**30)
CALL = {
    "id": "c",
    "type": "function",
    "function": {"name": "f", "arguments": "{}"},
    "extra_content": {"google": {"thought_signature": "s"}},
}
CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                {"type": "file", "file": {"filename": "a", "file_data": "data:application/pdf;base64,AA"}},
                {"type": "file", "file": {"file_id": "x"}},
                {"type": "refusal", "refusal": "no"},
            ],
        },
        {"role": "assistant", "content": "a", "refusal": "r", "thinking_blocks": [{"type": "x"}], "tool_calls": [CALL]},
        {
            "role": "tool",
            "tool_call_id": "c",
            "content": [{"type": "text", "text": "r"}],
            "name": "f",
            "is_error": True,
        },
        {"role": "assistant", "content": "x", "content_blocks": [{"type": "x"}], "content_parts": [{"text": "x"}]},
    ],
    "max_tokens": 5,
    "stop": ["a"],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": True,
    "user": "u",
    "metadata": {"a": "b"},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "reasoning_effort": "low",
    "output_config": {"effort": "x"},
    "generationConfig": {"a": 1},
    "modalities": ["text"],
    "stream_options": {"include_usage": True},
    "n": 1,
}
MESSAGES = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "r"}]},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A"}},
                {"type": "document", "title": "t", "source": {"type": "file", "file_id": "f"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "x", "name": "f", "input": {}},
                {"type": "text", "text": "t", "citations": []},
            ],
        },
    ],
    "stop_sequences": ["a"],
    "metadata": {"user_id": "u"},
    "tools": [{"name": "f", "input_schema": {}}],
    "tool_choice": {"type": "tool", "name": "f"},
    "output_config": {"format": {"type": "json_schema", "schema": {}}, "effort": "low"},
    "stream": True,
}
GENERATE = {
    "contents": [
        {
            "role": "user",
            "parts": [
                {"text": "x"},
                {"inlineData": {"mimeType": "image/png", "data": "A"}, "mediaResolution": {"level": "x"}},
                {"fileData": {"mimeType": "image/png", "fileUri": "u"}},
            ],
        },
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}, "id": "x"}, "thoughtSignature": "s"}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"output": "x"}, "id": "x"}}]},
    ],
    "systemInstruction": {"parts": [{"text": "s"}]},
    "tools": [{"functionDeclarations": [{"name": "f", "description": "d", "parameters": {"type": "OBJECT"}}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
    "generationConfig": {
        "thinkingConfig": {"thinkingLevel": "LOW"},
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT"},
        "responseModalities": ["TEXT"],
        "mediaResolution": "x",
    },
}


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the way to each value within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inner:
        yield (*before, name)
        yield from places(item, (*before, name))


def odd_ones(body: Any) -> Iterator[Any]:
    """Give the body with each value replaced by each odd one."""
    for place in places(body):
        for odd in ODD:
            changed = copy.deepcopy(body)
            inner = changed
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = odd
            yield changed


@pytest.mark.parametrize("provider", [AnthropicProvider(), GeminiProvider()])
def test_each_value_replaced_by_an_odd_one_is_written_or_refused(provider: Any) -> None:
    refusals = 0
    for body in odd_ones(CHAT):
        try:
            provider.encode(Request.of({"model": "m", **body}), Target(base_url="https://p.example"))
        except InvalidRequestError as error:
            assert not error.sent
            refusals += 1
    assert refusals > 300


@pytest.mark.parametrize(("read", "body"), [(from_messages, MESSAGES), (lambda b: from_gemini(b, "m"), GENERATE)])
def test_each_value_of_a_clients_request_replaced_by_an_odd_one_is_read_or_refused(read: Any, body: Any) -> None:
    refusals = 0
    for given in odd_ones(body):
        try:
            read(given)
        except InvalidRequestError:
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [USER], "reasoning_effort": []},
        {"messages": [USER, {"role": "tool", "tool_call_id": {}, "content": "9"}]},
        {"messages": [{"role": "assistant", "tool_calls": 1}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": {}, "function": 1}]}]},
        {"messages": [USER, {"role": "assistant", "content_parts": [1]}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}, "extra_content": "x"}]}]},
    ],
)
def test_an_odd_request_is_refused_for_gemini(body: Any) -> None:
    with pytest.raises(InvalidRequestError):
        GeminiProvider().encode(Request.of({"model": "m", **body}), Target(base_url="https://g.example"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [USER], "reasoning_effort": ["low"]}, "reasoning_effort must be text"),
        ({"messages": [{"role": "assistant", "content_blocks": ["x"]}]}, r"messages\[0\]\.content_blocks\[0\] must be"),
        (
            {"messages": [{"role": "assistant", "thinking_blocks": "x"}]},
            r"messages\[0\]\.thinking_blocks must be a list",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, r"messages\[0\]\.tool_calls must be a list"),
    ],
)
def test_an_odd_request_is_refused_for_anthropic(body: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        AnthropicProvider().encode(Request.of({"model": "m", **body}), Target(base_url="https://a.example"))


@pytest.mark.parametrize(
    "body",
    [
        {"contents": [], "toolConfig": {"functionCallingConfig": {"mode": []}}},
        {"contents": [], "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": True}}},
        {"contents": [], "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": {"a": 1}}}},
        {"contents": [], "tools": [{"functionDeclarations": 0.5}]},
        {"contents": [], "tools": [{"functionDeclarations": [1]}]},
        {"contents": [], "generationConfig": {"responseModalities": 1}},
    ],
)
def test_an_odd_gemini_body_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequestError):
        from_gemini(body, "m")


def test_an_odd_messages_body_is_refused_or_read() -> None:
    with pytest.raises(InvalidRequestError, match=r"tool_choice\.type"):
        from_messages({"messages": [], "tool_choice": {"type": []}})
    said = {"role": "assistant", "content": [{"type": "text", "text": 0.5}]}
    assert from_messages({"messages": [said]})["messages"][0]["content"] == "0.5"
