"""The other direction: a Messages request as a chat request and back, a chat stream as a Messages stream and back."""

from __future__ import annotations

from typing import Any

import pytest

from fastllm import errors as e
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.anthropic_request import to_messages
from fastllm.providers.anthropic_reverse import EventEncoder, from_messages
from fastllm.providers.openai_replay import chunks_of
from fastllm.providers.sse import written
from fastllm.types import Request, Response

USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "aGk="}
TURNS: list[list[dict[str, Any]]] = [
    [USER],
    [USER, {"role": "assistant", "content": "ok"}, USER],
    [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}],
    [{"role": "user", "content": [{"type": "document", "source": PDF, "title": "t.pdf"}]}],
    [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}],
    [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}],
    [
        USER,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"x": [1]}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "9", "is_error": True}]},
    ],
    [
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "x"},
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}},
            ],
        },
    ],
]
MORE: list[dict[str, Any]] = [
    {},
    {"system": "s"},
    {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
    {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop_sequences": ["x"], "service_tier": "auto"},
    {"metadata": {"user_id": "u"}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}}},
    {
        "tools": [
            {"name": "f", "description": "d", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    },
    {"tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"}},
    {"tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "none"}},
]


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("more", MORE)
def test_there_and_back_is_the_same_request(turns: list[dict[str, Any]], more: dict[str, Any]) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": turns, **more}
    assert to_messages(from_messages(body)) == body


def test_what_a_stream_asks_for() -> None:
    """Messages always tells the usage; chat must be asked for it."""
    chat = from_messages({"model": "m", "max_tokens": 9, "messages": [USER], "stream": True})
    assert (chat["stream"], chat["stream_options"]) == (True, {"include_usage": True})


def test_results_come_before_what_the_user_says() -> None:
    content = [{"type": "text", "text": "and?"}, {"type": "tool_result", "tool_use_id": "c", "content": [IMAGE]}]
    assert from_messages({"messages": [{"role": "user", "content": content}]})["messages"] == [
        {
            "role": "tool",
            "tool_call_id": "c",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}],
        },
        {"role": "user", "content": "and?"},
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages must be a list"),
        ({"messages": [1]}, r"messages\[0\] must be an object"),
        ({"messages": [{"role": "system", "content": "x"}]}, r"messages\[0\]\.role must be user or assistant"),
        ({"messages": [{"role": "user", "content": 1}]}, r"messages\[0\]\.content must be a list"),
        ({"messages": [], "tool_choice": {"type": "auto?"}}, r"tool_choice\.type must be"),
        ({"messages": [], "tools": {}, "system": 1}, "system must be a list"),
    ],
)
def test_what_is_no_request_is_named(body: dict[str, Any], words: str) -> None:
    with pytest.raises(e.InvalidRequestError, match=words):
        from_messages(body)


def test_a_chat_stream_is_a_messages_stream() -> None:
    """Read again by the decoder, it is the answer that it was made of."""
    body = (
        b'{"id":"c1","object":"chat.completion","created":0,"model":"m","choices":[{"index":0,"message":{'
        b'"role":"assistant","content":"Let me see.","refusal":null,"tool_calls":[{"id":"t1","type":"function",'
        b'"function":{"name":"f","arguments":"{\\"x\\":1}"}},{"id":"t2","type":"function","function":{"name":"g",'
        b'"arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":30,'
        b'"completion_tokens":5,"total_tokens":35,"prompt_tokens_details":{"cached_tokens":20,"cache_write_tokens":0}}}'
    )
    whole = Response(body=body)
    asked = Request.of({"messages": [USER], "stream": True, "stream_options": {"include_usage": True}})
    encoder = EventEncoder("m")
    events = [*(event for chunk in chunks_of(whole, asked) for event in encoder.add(chunk)), *encoder.end()]
    wire = b"".join(written(event.event, event.data) for event in events)
    decoder = AnthropicProvider().decoder(asked)
    decoder.feed(wire)
    decoder.finish()
    assert decoder.response().to_dict() == whole.to_dict()
    kinds = [line[7:].decode() for line in wire.split(b"\n") if line.startswith(b"event: ")]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
