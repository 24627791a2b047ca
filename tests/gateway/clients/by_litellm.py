"""What litellm makes of a gateway, as JSON: `by_litellm.py BASE_URL KEY`. Its tests read it (test_clients.py)."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

BASE, KEY = sys.argv[1:]
HERE: dict[str, Any] = {"api_base": BASE, "api_key": KEY, "num_retries": 0, "max_retries": 0}
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def whole(model: str = "m", **more: Any) -> dict[str, Any]:
    found = litellm.completion(model=f"openai/{model}", messages=HELLO, **HERE, **more)
    return {**found.choices[0].message.model_dump(), "usage": found.usage.total_tokens}


def streamed(model: str = "m", **more: Any) -> dict[str, Any]:
    chunks = list(litellm.completion(model=f"openai/{model}", messages=HELLO, stream=True, **HERE, **more))
    built = litellm.stream_chunk_builder(chunks, messages=HELLO)
    thought = "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks if c.choices)
    return {**built.choices[0].message.model_dump(), "thought": thought, "chunks": len(chunks)}


def refused(**more: Any) -> dict[str, Any]:
    try:
        litellm.completion(model="openai/m", messages=HELLO, **{**HERE, **more})
    except Exception as error:
        return {"class": type(error).__name__, "status": getattr(error, "status_code", None)}
    return {"class": "none"}


def embedded(**more: Any) -> list[int]:
    found = litellm.embedding(model="openai/e", input=["a", "b"], **HERE, **more)
    return [len(one["embedding"]) for one in found.data]


print(
    json.dumps(
        {
            "whole": whole(extra_body={"later": {"a": 1}}),
            "streamed": streamed(stream_options={"include_usage": True}),
            "thinking": whole("thinker"),
            "thinking_streamed": streamed("thinker"),
            "tools": whole(tools=[TOOL], tool_choice="required")["tool_calls"],
            "tools_streamed": streamed(tools=[TOOL], tool_choice="required")["tool_calls"],
            "by_proxy": litellm.completion(model="litellm_proxy/m", messages=HELLO, **HERE).choices[0].message.content,
            "embedded": embedded(encoding_format="float"),
            "bad_key": refused(api_key="sk-wrong-0123456789"),
            "bad_field": refused(extra_body={"api_base": "http://169.254.169.254"}),
        }
    )
)
