"""The Responses API over dialects that have only chat: requests, whole answers, and streams event by event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.responses import Response as SDKResponse, ResponseStreamEvent
from pydantic import TypeAdapter

from fastllm import AsyncFastLLM, errors as e
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.base import Provider
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.openai import OpenAIProvider
from fastllm.providers.responses_by_chat import ResponsesByChat
from fastllm.providers.responses_request import packed, to_chat
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import RESPONSES, Chunk, HTTPRequest, HTTPResponse, Request, Response, Target

GOLDEN = Path(__file__).parent / "golden"
CHATS: dict[str, Provider] = {
    "anthropic": AnthropicProvider(), "gemini": GeminiProvider(), "openai": OpenAIProvider()
}  # fmt: skip
STREAMS = sorted(
    path for path in GOLDEN.glob("*/*.stream.sse") if not path.name.startswith(("completion", "responses"))
)
_events: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TARGET = Target(base_url="https://host.example", model="m")
TIMES = {"type": "function", "name": "times", "parameters": {"type": "object", "properties": {}}, "strict": True}


def asked(**body: Any) -> Request:
    return Request.of({"model": "m", "input": "Six times seven?", **body}, path=RESPONSES)


def chat(**body: Any) -> dict[str, Any]:
    return to_chat({"model": "m", "input": "Hi", **body})


def streamed(provider: Provider, request: Request, *pieces: bytes) -> tuple[list[Chunk], Response]:
    decoder = provider.decoder(request)
    chunks = [chunk for piece in pieces for chunk in decoder.feed(piece)]
    return chunks + decoder.finish(), decoder.response()


# Requests


def test_a_conversation_becomes_messages() -> None:
    """Items of one answer are one message, results are tool messages, instructions stand first."""
    found = chat(
        instructions="Be short.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "6x7?"}]},
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "c1", "name": "times", "arguments": '{"a":6}'},
            {"type": "function_call", "call_id": "c2", "name": "times", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "none"}]},
            {"role": "developer", "content": "Answer now."},
        ],
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "times", "arguments": '{"a":6}'}},
        {"id": "c2", "type": "function", "function": {"name": "times", "arguments": "{}"}},
    ]
    said = {"role": "assistant", "content": "Let me see.", "reasoning_content": "hm", "tool_calls": calls}
    assert found["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "6x7?"},
        said,
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "tool", "tool_call_id": "c2", "content": "none"},
        {"role": "developer", "content": "Answer now."},
    ]


def test_parameters_go_by_their_names_in_chat() -> None:
    found = chat(
        max_output_tokens=9,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
        tools=[TIMES, {"type": "custom", "name": "patch", "format": {"type": "text"}}],
        tool_choice={"type": "function", "name": "times"},
        parallel_tool_calls=False,
        top_logprobs=2,
        stream=True,
        temperature=0,
        truncation="disabled",
        store=False,
        seed=4,
    )
    assert found == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 9,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "verbosity": "low",
        "tools": [
            {"type": "function", "function": {k: TIMES[k] for k in ("name", "parameters", "strict")}},
            {"type": "custom", "custom": {"name": "patch", "format": {"type": "text"}}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "times"}},
        "parallel_tool_calls": False,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "store": False,
        "seed": 4,
    }


@pytest.mark.parametrize("name", CHATS)
def test_images_of_results_follow_them_where_tool_messages_take_text_only(name: str) -> None:
    shown = [{"type": "input_image", "image_url": "data:image/png;base64,aGk="}]
    call = {"type": "function_call", "call_id": "c1", "name": "see", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": shown}
    http = ResponsesByChat(CHATS[name]).encode(asked(input=[call, output]), TARGET)
    sent = msgspec.json.decode(http.body)
    if name == "gemini":
        assert [next(iter(part)) for part in sent["contents"][-1]["parts"]] == ["functionResponse", "inlineData"]
    elif name == "anthropic":
        (result,) = sent["messages"][-1]["content"]
        assert (result["type"], result["content"][0]["type"]) == ("tool_result", "image")
    else:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
        assert sent["messages"][1:] == [
            {"role": "tool", "tool_call_id": "c1", "content": "see the image that follows"},
            {"role": "user", "content": [image]},
        ]


def test_pictures_and_files_become_parts() -> None:
    content = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "https://host.example/a.png", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
        {"type": "input_file", "file_url": "https://host.example/b.pdf"},
    ]
    (message,) = chat(input=[{"role": "user", "content": content}])["messages"]
    assert message["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://host.example/a.png", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
        {"type": "file", "file": {"file_data": "https://host.example/b.pdf"}},
    ]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"include": ["file_search_call.results"]}, "file_search_call.results"),
        ({"input": [{"type": "computer_call_output"}]}, "computer_call_output"),
        ({"input": [{"role": "king", "content": "x"}]}, "king"),
        ({"input": 7}, "input must be a list"),
        ({"input": [7]}, r"input\[0\]"),
        ({"text": {"format": {"type": "xml"}}}, "xml"),
        ({"tool_choice": {"type": "mcp"}}, "mcp"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "image_url"),
        ({"input": [{"type": "reasoning", "encrypted_content": "fastllm:1:#"}]}, "encrypted_content"),
    ],
)
def test_what_chat_has_no_word_for_is_named(body: dict[str, Any], named: str) -> None:
    with pytest.raises(e.InvalidRequestError, match=named):
        chat(**body)


def test_thoughts_that_only_openai_can_read_are_left_out() -> None:
    thought = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    found = chat(input=[thought, {"role": "user", "content": "x"}])
    assert found["messages"] == [{"role": "user", "content": "x"}]


# Answers

THINKS = {
    "id": "msg_01",
    "content": [
        {"type": "thinking", "thinking": "six sevens", "signature": "sig"},
        {"type": "text", "text": "I multiply."},
        {"type": "tool_use", "id": "c", "name": "times", "input": {"a": 6}},
    ],
    "stop_reason": "tool_use",
    "model": "claude",
    "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 7},
}


def decoded(answer: dict[str, Any], request: Request | None = None, dialect: str = "anthropic") -> Response:
    provider = ResponsesByChat(CHATS[dialect])
    return provider.decode(request or asked(), HTTPResponse(status=200, body=msgspec.json.encode(answer)))


def test_an_answer_is_a_response_that_the_sdk_knows() -> None:
    request = asked(tools=[TIMES], max_output_tokens=50, instructions="Be short.")
    found = decoded(THINKS, request)
    told = SDKResponse.model_validate(found.to_dict())
    assert [item.type for item in told.output] == ["reasoning", "message", "function_call", "reasoning"]
    assert told.status == "completed" and told.id == "resp_01" and told.model == "claude"
    assert told.instructions == "Be short." and told.max_output_tokens == 50 and told.tools[0].type == "function"
    assert told.usage is not None and (told.usage.input_tokens, told.usage.output_tokens) == (8, 7)
    assert told.usage.input_tokens_details.cached_tokens == 3
    assert found.text == told.output_text == "I multiply." and found.finish_reason == "tool_calls"
    assert found.usage is not None and found.usage.total_tokens == 15 and found.path == RESPONSES


def test_signed_thoughts_go_back_as_they_came() -> None:
    """Anthropic wants its thinking blocks back, signature and all, where tools are used."""
    output = decoded(THINKS).to_dict()["output"]
    result = {"type": "function_call_output", "call_id": "c", "output": "42"}
    request = asked(input=[{"role": "user", "content": "6x7?"}, *output, result], tools=[TIMES])
    sent = msgspec.json.decode(ResponsesByChat(CHATS["anthropic"]).encode(request, TARGET).body)
    assert sent["messages"][1] == {"role": "assistant", "content": THINKS["content"]}
    assert sent["messages"][2]["content"][0]["tool_use_id"] == "c"


def test_what_was_packed_is_unpacked_as_it_was() -> None:
    kept = {"content_blocks": [{"type": "text", "text": "ä"}]}
    found = chat(input=[{"type": "reasoning", "encrypted_content": packed(kept)}])
    assert found["messages"][0]["content_blocks"] == kept["content_blocks"]


@pytest.mark.parametrize(("stop", "reason"), [("max_tokens", "max_output_tokens"), ("refusal", "content_filter")])
def test_an_answer_that_was_cut_is_incomplete(stop: str, reason: str) -> None:
    found = decoded({**THINKS, "stop_reason": stop})
    told = SDKResponse.model_validate(found.to_dict())
    assert told.status == "incomplete" and told.incomplete_details is not None
    assert told.incomplete_details.reason == reason


def test_an_error_stays_the_error_it_is() -> None:
    answer = HTTPResponse(status=529, body=b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}')
    with pytest.raises(e.OverloadedError):
        ResponsesByChat(CHATS["anthropic"]).decode(asked(), answer)


# Streams


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_stream_is_one_of_responses_whatever_its_splits(path: Path) -> None:
    """Each event is one that the official SDK knows, they are numbered, and what they say is what the end says."""
    provider, request, data = ResponsesByChat(CHATS[path.parent.name]), asked(stream=True), path.read_bytes()
    events, whole = streamed(provider, request, data)
    told = [_events.validate_python(msgspec.json.decode(event.data)) for event in events]
    assert [event.sequence_number for event in told] == list(range(len(told)))
    assert [told[0].type, told[1].type] == ["response.created", "response.in_progress"]
    final = told[-1]
    assert final.type in ("response.completed", "response.incomplete")
    done = [event.item for event in told if event.type == "response.output_item.done"]
    assert done == final.response.output and done
    text = "".join(event.delta for event in told if event.type == "response.output_text.delta")
    assert text == final.response.output_text == whole.text
    for place, item in enumerate(done):
        if item.type == "function_call":
            pieces = [event for event in told if event.type == "response.function_call_arguments.delta"]
            assert "".join(event.delta for event in pieces if event.output_index == place) == item.arguments
    assert whole.to_dict()["usage"] == msgspec.json.decode(events[-1].data)["response"]["usage"]
    for split in range(0, len(data), 1 + len(data) // 200):
        again, _ = streamed(provider, request, data[:split], data[split:])
        assert [event.data for event in again] == [event.data for event in events]


def test_a_stream_that_breaks_off_gives_what_came_as_a_response() -> None:
    data = (GOLDEN / "anthropic" / "chat.stream.sse").read_bytes()
    decoder = ResponsesByChat(CHATS["anthropic"]).decoder(asked(stream=True))
    decoder.feed(data[: data.index(b"content_block_stop") - 7])
    with pytest.raises(e.TruncatedStreamError):
        decoder.finish()
    found = decoder.response()
    assert found.path == RESPONSES and found.text


async def test_the_client_serves_it_whole_streamed_and_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (GOLDEN / "anthropic" / "chat.stream.sse").read_bytes()
    sent: list[HTTPRequest] = []

    def handler(http: HTTPRequest) -> HTTPResponse:
        sent.append(http)
        if msgspec.json.decode(http.body).get("stream"):
            return HTTPResponse(status=200, body=data, headers=[(b"content-type", b"text/event-stream")])
        return HTTPResponse(status=200, body=msgspec.json.encode({**THINKS, "stop_reason": "end_turn"}))

    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    async with AsyncFastLLM(transport=ScriptedTransport(handler), cache="memory") as client:
        stream = await client.responses.create(model="anthropic/claude", input="Hi", stream=True)
        types = [event.type async for event in stream]
        assert types[-1] == "response.completed" and "response.output_text.delta" in types
        assert all(http.url.endswith("/v1/messages") for http in sent)
        whole = await client.responses.create(model="anthropic/claude", input="Hello")
        again = await client.responses.create(model="anthropic/claude", input="Hello")
        assert again.cached and again.raw == whole.raw and len(sent) == 2
