"""Requests with odd values in them are refused by name, in each dialect; found by stress/fuzz.py."""

from __future__ import annotations

from typing import Any

import pytest

from fastllm.errors import InvalidRequestError
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.anthropic_reverse import from_messages
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.gemini_reverse import from_gemini
from fastllm.types import Request, Target

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [USER], "reasoning_effort": []},
        {"messages": [USER, {"role": "tool", "tool_call_id": {}, "content": "9"}]},
        {"messages": [{"role": "assistant", "tool_calls": 1}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": {}, "function": 1}]}]},
    ],
)
def test_an_odd_request_is_refused_for_gemini(body: Any) -> None:
    with pytest.raises(InvalidRequestError):
        GeminiProvider().encode(Request.of({"model": "m", **body}), Target(base_url="https://g.example"))


def test_an_odd_request_is_refused_for_anthropic() -> None:
    with pytest.raises(InvalidRequestError, match="reasoning_effort must be text"):
        AnthropicProvider().encode(
            Request.of({"model": "m", "messages": [USER], "reasoning_effort": ["low"]}),
            Target(base_url="https://a.example"),
        )


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
