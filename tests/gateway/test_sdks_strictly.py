"""gateway: every answer is all that OpenAI's and Anthropic's SDKs say it is, with their validation on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from fastllm import build
from fastllm.build import EngineOptions
from fastllm.gateway.catalog import Catalog
from fastllm.options import Route, Upstream
from kits.beside import ALICE, opened
from kits.gateway import KEY, Served, served

MESSAGES: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


def strict(gate: Served, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=gate.base_url, api_key=KEY, max_retries=0, _strict_response_validation=True, **more
    )


async def test_openais_answers_are_valid_to_the_last_field() -> None:
    async with served(key=KEY, catalog=Catalog(("m", "*"))) as gate, strict(gate) as client:
        chats, more = client.chat.completions, {"tools": [TOOL], "tool_choice": "required"}
        assert (await chats.create(model="m", messages=MESSAGES, n=2)).choices[1].message.content
        assert (await chats.create(model="m", messages=MESSAGES, **more)).choices[0].message.tool_calls  # type: ignore[call-overload]
        stream: Any = await chats.create(model="m", messages=MESSAGES, stream=True, **more)  # type: ignore[call-overload]
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "tool_calls"
        assert (await client.completions.create(model="m", prompt="hello")).choices[0].text
        # Floats: what is base64 the SDK unpacks after it was validated, and so refuses.
        floats = await client.embeddings.create(model="m", input=[[1, 2], [3]], encoding_format="float")
        assert floats.data[1].embedding
        assert (await client.moderations.create(input="hello")).results
        assert [model.id async for model in client.models.list()] == ["m"]
        assert (await client.models.retrieve("m")).object == "model"


@pytest.mark.parametrize("vendor", ["openai", "mistral"])  # the second one has only chat
async def test_responses_are_streamed_as_the_sdks_own_reader_of_events_wants_them(vendor: str) -> None:
    async with served(key=KEY, catalog=Catalog(("m",))) as gate, strict(gate) as client:
        upstream = Upstream(model=f"{vendor}/m", base_url=gate.mock.base_url, api_key="upstream-key")
        options = EngineOptions(routes={"m": Route(endpoints=[upstream])})
        gate.gateway.reload(build.reloaded(gate.engine, options), gate.gateway.options, gate.gateway.catalog)
        whole = await client.responses.create(model="m", input="hello", instructions="be kind")
        async with client.responses.stream(model="m", input="hello", instructions="be kind") as events:
            kinds = [event.type async for event in events]
            final = await events.get_final_response()
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        assert final.output_text == whole.output_text and final.usage is not None


async def test_the_synchronous_client_streams_and_leaves_early() -> None:
    async with served(key=KEY) as gate:

        def ask() -> None:
            here: Any = {"base_url": gate.base_url, "api_key": KEY, "max_retries": 0}
            with (
                openai.OpenAI(**here) as client,
                client.chat.completions.stream(model="m", messages=MESSAGES) as events,
            ):
                texts = [event.delta for event in events if event.type == "content.delta"]
                assert "".join(texts) == events.get_final_completion().choices[0].message.content
            asked: Any = {"model": "m", "max_tokens": 50, "messages": MESSAGES}
            claude = anthropic.Anthropic(base_url=gate.server.origin, api_key=KEY)
            with claude, claude.messages.stream(**asked) as stream:
                next(iter(stream.text_stream))

        await asyncio.to_thread(ask)
        await gate.idle()


async def test_files_and_batches_are_valid_to_the_last_field(tmp_path: Path) -> None:
    line = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'
    async with opened(tmp_path) as gate, gate.client(ALICE, _strict_response_validation=True) as client:
        made = await client.files.create(file=("in.jsonl", line), purpose="batch")
        assert (await client.files.retrieve(made.id)).id == made.id
        batch = await client.batches.create(
            input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert [one.id async for one in client.batches.list()] == [batch.id]
        await client.batches.retrieve(batch.id)
        assert (await client.files.delete(made.id)).deleted


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("get", "/nothing", 404), ("get", "/chat/completions", 405), ("delete", "/models", 405),
        ("put", "/embeddings", 405), ("get", "/models/", 200), ("post", "/models/m", 405),
    ],
)  # fmt: skip
async def test_paths_and_methods_that_are_none_are_errors_of_openais(method: str, path: str, status: int) -> None:
    async with served(key=KEY) as gate, strict(gate) as client:
        ask: Any = getattr(client, method)
        if status == 200:
            assert await ask(path, cast_to=object)
            return
        with pytest.raises(openai.APIStatusError) as caught:
            await ask(path, cast_to=object)
        error, body = caught.value, caught.value.body
        assert (error.status_code, error.type, set(body)) == (status, "invalid_request_error", {
            "message", "type", "param", "code"
        }) and error.code and error.request_id  # fmt: skip


@pytest.mark.parametrize("size", [2000, 30_000_000])  # more than any buffer between the two holds
async def test_what_is_too_large_is_an_error_of_both_sdks(size: int) -> None:
    async with served(key=KEY, body_bytes=1024) as gate, strict(gate) as client:
        large: Any = [{"role": "user", "content": "x" * size}]
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="m", messages=large)
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
        claude = anthropic.AsyncAnthropic(base_url=gate.server.origin, api_key=KEY, max_retries=0)
        async with claude:
            with pytest.raises(anthropic.RequestTooLargeError) as refused:
                await claude.messages.create(model="m", max_tokens=10, messages=large)
            assert refused.value.body["error"]["type"] == "request_too_large"  # type: ignore[index,call-overload]
            with pytest.raises(anthropic.APIStatusError) as missed:
                await claude.get("/v1/messages/nothing", cast_to=object)
            assert missed.value.status_code in (404, 405)
            assert missed.value.body["type"] == "error"  # type: ignore[index,call-overload]


async def test_anthropics_answers_are_valid_to_the_last_field() -> None:
    async with served(key=KEY) as gate:
        claude = anthropic.AsyncAnthropic(
            base_url=gate.server.origin, api_key=KEY, max_retries=0, _strict_response_validation=True
        )
        async with claude:
            tools: Any = [{"name": "look", "input_schema": TOOL["function"]["parameters"]}]
            asked: Any = {"model": "m", "max_tokens": 200, "messages": MESSAGES, "tools": tools}
            whole = await claude.messages.create(**asked, tool_choice={"type": "any"})
            assert whole.stop_reason == "tool_use"
            async with claude.messages.stream(**asked, tool_choice={"type": "any"}) as stream:
                kinds = [event.type async for event in stream]
                final = await stream.get_final_message()
            assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
            assert final.content[-1].type == "tool_use"
            assert (await claude.messages.count_tokens(model="m", messages=MESSAGES)).input_tokens > 0
