"""gateway: clients of other people find what they look for: litellm and langchain-openai, in a process and a virtual
environment of their own (scripts/clients). They bring a hundred packages, litellm asks the network for prices when it
is imported, and neither may decide which version of openai's SDK the other tests run with."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm.testing import checksum_of
from fastllm.transport.base import HTTPStream
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse
from kits.gateway import KEY, Served, served

HERE = Path(__file__).parent
VENV = HERE.parent.parent / ".venv-clients"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
THOUGHT = {"role": "assistant", "content": "42", "reasoning_content": "six times seven", "provider_specific_fields": {}}
OF_A_CHAT = {"id": "chatcmpl-1", "created": 1, "model": "thinker"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


@pytest.fixture(autouse=True)
def installed() -> None:
    """Where they are missing a laptop passes them over, and CI does not."""
    if not (VENV / "bin/python").exists():
        assert not os.environ.get("CI"), "run scripts/clients first"
        pytest.skip("run scripts/clients first")


async def said_by(program: str, gate: Served) -> Any:
    """Run a client against the gateway and give what it says it saw."""
    (tokenizers,) = VENV.glob("lib/python*/site-packages/litellm/litellm_core_utils/tokenizers")
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "FASTLLM", "PYTHON"))},
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TIKTOKEN_CACHE_DIR": str(tokenizers),  # a vocabulary that langchain would fetch
        "LANGSMITH_TRACING": "false",
    }
    child = await asyncio.create_subprocess_exec(
        VENV / "bin/python", HERE / "clients" / program, gate.base_url, KEY,
        env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, complaints = await asyncio.wait_for(child.communicate(), 120)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 0, complaints.decode()[-3000:]
    return json.loads(out.splitlines()[-1])


def thought_of(http: HTTPRequest) -> HTTPResponse:
    """Answer as a model that shows its thoughts."""
    if not json.loads(http.body).get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": THOUGHT}
        whole = {**OF_A_CHAT, "object": "chat.completion", "choices": [choice], "usage": USAGE}
        return HTTPResponse(status=200, body=msgspec.json.encode(whole))
    frame = {**OF_A_CHAT, "object": "chat.completion.chunk"}
    deltas: list[dict[str, Any]] = [
        *({"reasoning_content": word} for word in ("six ", "times ", "seven")), {"content": "42"}, {}
    ]  # fmt: skip
    chunks = [
        {**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]}
        for delta in deltas
    ]
    chunks.append({**frame, "choices": [], "usage": USAGE})
    lines = [b"data: %b\n\n" % msgspec.json.encode(chunk) for chunk in chunks]
    return HTTPResponse(status=200, body=b"".join(lines) + b"data: [DONE]\n\n")


@contextmanager
def seen_by_the_provider(gate: Served) -> Iterator[list[dict[str, Any]]]:
    """Give the bodies that go to the provider; the model `thinker` is played here."""
    transport, bodies = gate.engine.transport, []
    thinker = ScriptedTransport(thought_of)

    async def sent(http: HTTPRequest, timeout: Any) -> HTTPResponse:
        bodies.append(json.loads(http.body))
        return await (thinker.send if bodies[-1]["model"] == "thinker" else send)(http, timeout)

    async def opened(http: HTTPRequest, timeout: Any) -> HTTPStream:
        bodies.append(json.loads(http.body))
        return await (thinker.open if bodies[-1]["model"] == "thinker" else open_)(http, timeout)

    send, open_ = transport.send, transport.open
    transport.send, transport.open = sent, opened  # type: ignore[method-assign]
    yield bodies


async def test_litellm_chats_streams_thinks_calls_tools_and_embeds() -> None:
    async with served(key=KEY) as gate:
        with seen_by_the_provider(gate) as bodies:
            found = await said_by("by_litellm.py", gate)
        await gate.idle()
    later = {**HELLO, "later": {"a": 1}}
    assert bodies[0]["later"] == {"a": 1}  # what nobody here knows goes on
    assert found["whole"]["content"].startswith(checksum_of(later)) and found["whole"]["usage"] > 0
    assert found["streamed"]["content"].startswith(checksum_of(HELLO)) and found["streamed"]["chunks"] > 3
    assert found["by_proxy"] == found["streamed"]["content"]
    for name in ("thinking", "thinking_streamed"):
        assert (found[name]["content"], found[name]["reasoning_content"]) == ("42", "six times seven")
    assert found["thinking_streamed"]["thought"] == "six times seven"
    (whole,), (streamed,) = found["tools"], found["tools_streamed"]
    assert whole["function"] == streamed["function"] and whole["function"]["name"] == "look"
    assert len(found["embedded"]) == 2 and found["embedded"][0] > 0
    assert (found["bad_key"]["class"], found["bad_key"]["status"]) == ("AuthenticationError", 401)
    assert (found["bad_field"]["class"], found["bad_field"]["status"]) == ("BadRequestError", 400)


async def test_langchain_invokes_streams_calls_tools_and_embeds_token_ids() -> None:
    async with served(key=KEY) as gate:
        with seen_by_the_provider(gate) as bodies:
            found = await said_by("by_langchain.py", gate)
        await gate.idle()
    text = found["whole"]["text"]
    assert text.startswith(checksum_of(HELLO)) and found["whole"]["usage"]["total_tokens"] > 0
    assert found["awaited"] == text
    assert (found["streamed"]["text"], found["streamed"]["usage"]) == (text, found["whole"]["usage"])
    assert found["streamed"]["pieces"] > 3
    (whole,), (streamed,) = found["tools"], found["tools_streamed"]
    assert whole["name"] == streamed["name"] == "look" and whole["args"] == streamed["args"]
    assert found["responses"] and found["responses"] == found["responses_streamed"]
    tokens = [body for body in bodies if body["model"] == "text-embedding-3-small"]
    assert [body["encoding_format"] for body in tokens] == ["base64", "base64"]
    assert all(isinstance(one, list) and isinstance(one[0], int) for body in tokens for one in body["input"])
    assert found["tokens"] == [found["query"]] * 2 and len(found["texts"]) == 2 and found["query"] > 0
