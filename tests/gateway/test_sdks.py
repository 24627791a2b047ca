"""gateway: the official SDKs of OpenAI and Anthropic find in it what they find at home."""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import Callable
from typing import Any, TypeVar

import anthropic
import openai
import pytest

from fastllm.options import Timeout
from fastllm.testing import MockConfig, checksum_of
from kits.gateway import KEY, Served, served

T = TypeVar("T")
MESSAGES: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


def opened(gate: Served, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=gate.base_url, api_key=KEY, **more)


def claude(gate: Served, **more: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=gate.server.origin, api_key=KEY, **more)


async def in_thread(ask: Callable[[], T]) -> T:
    return await asyncio.to_thread(ask)


async def test_openai_chats_whole_and_streamed() -> None:
    async with served(key=KEY) as gate, opened(gate) as client:
        whole = await client.chat.completions.create(model="m", messages=MESSAGES)
        text = whole.choices[0].message.content
        assert text is not None and text.startswith(checksum_of({"model": "m", "messages": MESSAGES}))
        assert whole._request_id is not None and whole._request_id.startswith("req_")
        chunks = [
            chunk async for chunk in await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        ]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        options: Any = {"include_usage": True}
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options=options)
        last = [chunk async for chunk in stream][-1]
        assert last.choices == [] and last.usage is not None and last.usage.total_tokens > 0


async def test_the_synchronous_openai_client_and_its_other_operations() -> None:
    async with served(key=KEY) as gate:

        def ask() -> None:
            with openai.OpenAI(base_url=gate.base_url, api_key=KEY) as client:
                text = client.completions.create(model="m", prompt="hello").choices[0].text
                assert text
                pieces = client.completions.create(model="m", prompt="hello", stream=True)
                assert "".join(piece.choices[0].text for piece in pieces) == text
                response = client.responses.create(model="m", input="hello")
                assert response.output_text
                events = list(client.responses.create(model="m", input="hello", stream=True))
                assert events[0].type == "response.created" and events[-1].type == "response.completed"
                assert client.moderations.create(input="hello").results
                assert [model.id for model in client.models.list()] == []
                assert client.models.retrieve("a/b").id == "a/b"

        await in_thread(ask)
        await gate.idle()


async def test_openai_calls_tools_whole_and_streamed() -> None:
    async with served() as gate, opened(gate) as client:
        more: Any = {"tools": [TOOL], "tool_choice": "required"}
        whole = await client.chat.completions.create(model="m", messages=MESSAGES, **more)
        calls = whole.choices[0].message.tool_calls
        assert calls is not None and calls[0].type == "function" and calls[0].function.name == "look"
        stream = client.chat.completions.stream(model="m", messages=MESSAGES, **more)
        async with stream as events:
            final = await events.get_final_completion()
        streamed = final.choices[0].message.tool_calls
        assert streamed is not None and streamed[0].function.arguments == calls[0].function.arguments


@pytest.mark.parametrize("input", ["hello", ["a", "b"], [1, 2, 3], [[1, 2], [3]]])
async def test_openai_embeds_texts_and_tokens_as_floats_and_as_base64(input: Any) -> None:
    count = len(input) if isinstance(input, list) and not isinstance(input[0], int) else 1
    async with served() as gate, opened(gate) as client:
        packed = await client.embeddings.create(model="e", input=input)  # asks for base64, unpacks it itself
        floats = await client.embeddings.create(model="e", input=input, encoding_format="float")
        raw = await client.embeddings.with_raw_response.create(model="e", input=input, encoding_format="base64")
        assert len(packed.data) == len(floats.data) == count
        first: Any = raw.http_response.json()["data"][0]["embedding"]
        assert array("f", base64.b64decode(first)).tolist() == pytest.approx(packed.data[0].embedding)
        assert packed.data[0].embedding == pytest.approx(floats.data[0].embedding, rel=1e-5)


@pytest.mark.fault("96")
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("400", openai.BadRequestError), ("404", openai.NotFoundError), ("422", openai.UnprocessableEntityError),
        ("429:insufficient_quota", openai.RateLimitError), ("500", openai.InternalServerError),
        ("hang", openai.InternalServerError),
    ],
)  # fmt: skip
async def test_openais_errors_are_their_own_classes_and_are_not_multiplied(fault: str, error: type) -> None:
    """Two retries of the SDK on top of two of the gateway would be nine requests: it is three at most."""
    async with served(engine={"timeout": Timeout(first_byte=0.1, queue=1.0)}) as gate, opened(gate) as client:
        gate.mock.script([fault] * 20)
        with pytest.raises(error) as caught:
            await client.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.body["message"] and caught.value.request_id
        assert gate.mock.stats.requests <= 3
        await gate.idle()


async def test_openais_own_errors_of_keys_and_paths() -> None:
    async with served(key=KEY) as gate:
        async with openai.AsyncOpenAI(base_url=gate.base_url, api_key="sk-wrong-0123456789") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.models.list()
            assert caught.value.code == "invalid_api_key"
        async with opened(gate) as client:
            with pytest.raises(openai.NotFoundError):
                await client.get("/nothing", cast_to=object)


async def test_openai_sees_an_error_in_the_middle_of_a_stream() -> None:
    async with served() as gate, opened(gate) as client:
        gate.mock.script(["stream_reset"])
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
        await gate.idle()


async def test_a_stream_of_openais_that_is_closed_early_ends_upstream() -> None:
    async with served(MockConfig(token_rate=20.0)) as gate, opened(gate) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await gate.idle()
        assert gate.mock.stats.streams_cancelled == 1


async def test_azures_client_finds_its_paths_and_header() -> None:
    async with served(key=KEY) as gate:
        client = openai.AsyncAzureOpenAI(azure_endpoint=gate.server.origin, api_key=KEY, api_version="2026-01-01")
        async with client:
            answer = await client.chat.completions.create(model="dep", messages=MESSAGES)
            assert answer.model == "dep"


async def test_anthropic_writes_messages_whole_and_streamed() -> None:
    async with served(key=KEY) as gate, claude(gate) as client:
        whole = await client.messages.create(model="m", max_tokens=100, messages=MESSAGES)
        assert whole.content[0].type == "text" and whole.usage.output_tokens > 0
        assert whole._request_id is not None and whole._request_id.startswith("req_")
        async with client.messages.stream(model="m", max_tokens=100, messages=MESSAGES) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        assert text == whole.content[0].text and final.stop_reason == whole.stop_reason
        assert (await client.beta.messages.create(model="m", max_tokens=10, messages=MESSAGES)).type == "message"
        assert (await client.messages.count_tokens(model="m", messages=MESSAGES)).input_tokens > 0
        assert (await client.models.retrieve("x")).type == "model"


async def test_the_synchronous_anthropic_client_calls_tools_and_may_bring_its_key_as_a_bearer() -> None:
    async with served(key=KEY) as gate:

        def ask() -> None:
            with anthropic.Anthropic(base_url=gate.server.origin, api_key=None, auth_token=KEY) as client:
                tools: Any = [{"name": "look", "input_schema": TOOL["function"]["parameters"]}]
                answer = client.messages.create(
                    model="m", max_tokens=200, messages=MESSAGES, tools=tools, tool_choice={"type": "any"}
                )
                assert answer.stop_reason == "tool_use" and answer.content[-1].type == "tool_use"

        await in_thread(ask)


@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        ("400", anthropic.BadRequestError, "invalid_request_error"),
        ("404", anthropic.NotFoundError, "not_found_error"),
        ("429:insufficient_quota", anthropic.RateLimitError, "rate_limit_error"),
        ("500", anthropic.InternalServerError, "api_error"),
        ("529", anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_anthropics_errors_are_their_own_classes(fault: str, error: type, kind: str) -> None:
    async with served() as gate, claude(gate) as client:
        gate.mock.script([fault] * 20)
        with pytest.raises(error) as caught:
            await client.messages.create(model="m", max_tokens=10, messages=MESSAGES)
        assert caught.value.body["error"]["type"] == kind
        assert gate.mock.stats.requests <= 3
