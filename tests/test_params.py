"""params and RequestBatch: what users write as arguments becomes the body that is sent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fastllm import InMemoryCache, RequestBatch
from fastllm.answers import FunctionCall, Message, Payload, ToolCall
from fastllm.batch import RequestBatch as Batch
from fastllm.client import AsyncFastLLM
from fastllm.errors import ConfigError, InvalidRequestError
from fastllm.keywords import OPTIONS
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.gemini import GeminiProvider
from fastllm.sync import FastLLM
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse, Request, Target

ASK = {"role": "user", "content": "x"}
ANSWER = b"""{"choices": [{"finish_reason": "tool_calls", "message": {"role": "assistant", "content": null,
"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}]}"""


def body_of(batch: Batch) -> dict[str, Any]:
    (request,) = batch
    found: dict[str, Any] = json.loads(request.body)
    return found


@pytest.mark.parametrize("messages", ["PROMPT", b"PROMPT", {"role": "user", "content": "PROMPT"}, 5, None])
async def test_what_is_no_list_of_messages_is_refused_with_the_way_out(messages: Any) -> None:
    batch = RequestBatch()
    with pytest.raises(InvalidRequestError, match="messages must be a list of messages, such as") as caught:
        batch.chat.completions.create(model="m", messages=messages)
    assert not caught.value.sent and len(batch) == 0 and "PROMPT" not in str(caught.value)
    async with AsyncFastLLM(api_key="k") as client:
        with pytest.raises(InvalidRequestError, match="messages must be a list of messages, such as"):
            await client.chat.completions.create(model="m", messages=messages)


@pytest.mark.parametrize("message", ["Hello", 5, ["user", "Hello"]])
def test_what_is_no_message_is_refused_with_its_place(message: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[1\] must be"):
        RequestBatch().chat.completions.create(model="m", messages=[ASK, message])


def test_any_iterable_of_messages_will_do() -> None:
    batch = RequestBatch()
    batch.chat.completions.create(model="m", messages=(message for message in [ASK, ASK]))
    assert body_of(batch) == {"model": "m", "messages": [ASK, ASK]}


def test_an_answers_message_goes_back_into_a_conversation_without_its_empty_fields() -> None:
    message = msgspec.json.decode(ANSWER, type=Payload).choices[0].message  # type: ignore[index]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    batch = RequestBatch()
    batch.chat.completions.create(model="m", messages=[ASK, message])
    assert body_of(batch)["messages"] == [ASK, {"role": "assistant", "tool_calls": [call]}]
    batch = RequestBatch()
    batch.chat.completions.create(
        model="m", messages=[{"role": "assistant", "content": None, "tool_calls": message.tool_calls}]
    )
    assert body_of(batch)["messages"] == [{"role": "assistant", "content": None, "tool_calls": [call]}]
    batch = RequestBatch()
    made = Message(role="assistant", tool_calls=[ToolCall(id="c2", function=FunctionCall(name="g", arguments=""))])
    batch.chat.completions.create(model="m", messages=[made])
    calls = [{"id": "c2", "function": {"name": "g", "arguments": ""}}]
    assert body_of(batch)["messages"] == [{"role": "assistant", "tool_calls": calls}]


BLOCKS = [
    {"type": "thinking", "thinking": "hm", "signature": "SIGNED"},
    {"type": "tool_use", "id": "t1", "name": "w", "input": {}},
]
PARTS = [{"text": "ok", "thoughtSignature": "SIGNED"}, {"functionCall": {"name": "w", "args": {}}}]
SIGNED_CALL = [{"functionCall": {"name": "w", "args": {}}, "thoughtSignature": "SIGNED"}]


def gemini(parts: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}]}


def events_of_blocks() -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "m"}}]
    events += [{"type": "content_block_start", "index": i, "content_block": block} for i, block in enumerate(BLOCKS)]
    return [*events, {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}, {"type": "message_stop"}]


@pytest.mark.parametrize(
    ("provider", "answer", "events", "expected"),
    [
        (AnthropicProvider(), {"content": BLOCKS, "stop_reason": "tool_use"}, events_of_blocks(), BLOCKS),
        (GeminiProvider(), gemini(PARTS), [gemini(PARTS)], PARTS),
        (GeminiProvider(), gemini(SIGNED_CALL), [gemini(SIGNED_CALL)], None),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answers_message_goes_back_with_all_that_its_provider_wants_to_see_again(
    provider: Any, answer: Any, events: Any, expected: Any, streamed: bool
) -> None:
    """As the typed object that the docs say to put into the next messages, from an answer whole or streamed."""
    asked = Request.of({"model": "m", "messages": [ASK], "stream": streamed})
    if streamed:
        decoder = provider.decoder(asked)
        decoder.feed(b"".join(b"data: %b\n\n" % msgspec.json.encode(event) for event in events))
        decoder.finish()
        message = decoder.response().choices[0].message
    else:
        body = msgspec.json.encode(answer)
        message = provider.decode(asked, HTTPResponse(status=200, body=body)).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "1"}
    batch = RequestBatch()
    batch.chat.completions.create(model="m", messages=[ASK, message, result])
    (request,) = batch
    assert b"null" not in request.body and b"parsed" not in request.body
    sent = json.loads(provider.encode(request, Target(base_url="https://p.example")).body)
    said = sent["messages"][1]["content"] if "messages" in sent else sent["contents"][1]["parts"]
    if expected is None:
        assert said[0]["thoughtSignature"] == "SIGNED" and said[0]["functionCall"]["name"] == "w"
    else:
        assert said == expected


def test_what_openai_compatible_vendors_want_to_see_again_goes_back_too() -> None:
    message = {
        "role": "assistant",
        "content": "x",
        "images": [{"type": "image_url", "image_url": {"url": "data:"}}],
        "reasoning_details": [{"type": "reasoning.encrypted", "data": "SIGNED"}],
        "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "SIGNED"}],
        "extra_content": {"google": {"thought_signature": "SIGNED"}},
        "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}],
    }
    typed = msgspec.convert({"choices": [{"message": message}]}, Payload).choices[0].message  # type: ignore[index]
    batch = RequestBatch()
    batch.chat.completions.create(model="m", messages=[typed])
    assert body_of(batch)["messages"] == [message]


async def test_a_batchs_id_is_the_requests_hash_and_begins_its_cache_key_unless_a_prefix_was_cut_off() -> None:
    cache = InMemoryCache()

    def handler(http: HTTPRequest) -> HTTPResponse:
        return HTTPResponse(status=200, body=ANSWER)

    batch = RequestBatch()
    ids = [batch.chat.completions.create(model=model, messages=[ASK]) for model in ("openai/gpt", "gpt", "meta/gpt")]
    assert ids[0] == ids[1] != ids[2]
    for base_url, kept in ((None, {ids[0]}), ("http://x/v1", {ids[1], ids[2]})):
        cache = InMemoryCache()
        transport = ScriptedTransport(handler)
        async with AsyncFastLLM(api_key="k", base_url=base_url, transport=transport, cache=cache) as client:
            found = await client.process(batch)
            assert [o.custom_id for o in found] == ids
            assert kept <= {key[:32].hex() for key in cache.store._entries}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*sorted(OPTIONS - {"timeout"}), "concurrency", "rpm", "tpd"])
async def test_an_option_of_the_client_never_becomes_a_parameter(name: str) -> None:
    """A key above all: in a body it would be at the provider, and in its logs."""
    option: dict[str, Any] = {name: "sk-SECRET"}
    transport = ScriptedTransport(lambda request: HTTPResponse(status=200, body=ANSWER))
    batch = RequestBatch()
    async with AsyncFastLLM(api_key="k", transport=transport) as client, client.with_options() as other:
        sync = FastLLM(api_key="k", transport=transport)
        for call in (
            lambda: client.chat.completions.create(model="m", messages=[ASK], **option),
            lambda: client.completions.create(model="m", prompt="x", **option),
            lambda: client.responses.create(model="m", input="x", **option),
            lambda: other.embeddings.create(model="m", input="x", **option),
            lambda: client.map("{}", ["x"], model="m", **option),
            lambda: client.embed(["x"], model="m", **option),
            lambda: batch.chat.completions.create(model="m", messages=[ASK], **option),
            lambda: sync.chat.completions.create(model="m", messages=[ASK], **option),
            lambda: sync.map("{}", ["x"], model="m", **option),
        ):
            with pytest.raises(
                ConfigError, match=f"a call takes no option {name}; it is an option of the clien"
            ) as caught:
                await call()  # type: ignore[no-untyped-call]
            assert "SECRET" not in str(caught.value)
    assert transport.requests == 0 and len(batch) == 0


async def test_what_is_a_parameter_too_goes_on_and_extra_body_sends_anything() -> None:
    sent: list[dict[str, Any]] = []

    def answer(request: HTTPRequest) -> HTTPResponse:
        sent.append(json.loads(request.body))
        return HTTPResponse(status=200, body=ANSWER)

    async with AsyncFastLLM(api_key="k", transport=ScriptedTransport(answer)) as client:
        more: dict[str, Any] = {"n": 1, "user": "u", "metadata": {"a": "b"}, "top_k": 4, "extra_body": {"cache": "no"}}
        await client.chat.completions.create(model="m", messages=[ASK], timeout=5, **more)
    del more["extra_body"]
    assert sent == [{"model": "m", "messages": [ASK], **more, "cache": "no"}]
