"""Messages requests as they came to Anthropic, and through the chat of everybody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from fastllm import AsyncFastLLM, errors as e
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.anthropic_answer import to_message
from fastllm.providers.base import Provider
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.messages_by_chat import MessagesByChat, to_plain_chat
from fastllm.providers.openai import OpenAIProvider
from fastllm.providers.responses_request import packed
from fastllm.providers.sse import written
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import CHAT, MESSAGES, Chunk, Headers, HTTPRequest, HTTPResponse, Request, Response, Target

GOLDEN = Path(__file__).parent / "golden"
NATIVE = AnthropicProvider()
BY_CHAT: dict[str, Provider] = {
    "gemini": MessagesByChat(GeminiProvider()),
    "openai": MessagesByChat(OpenAIProvider()),
}
ANSWERS = sorted((GOLDEN / "anthropic").glob("*.answer.json"))
CHATS = sorted(
    path
    for name in BY_CHAT
    for path in (GOLDEN / name).glob("*.stream.sse")
    if not path.name.startswith(("completion", "responses"))
)
TARGET = Target(base_url="https://host.example", model="m")
USER = {"role": "user", "content": "6 times 7?"}
_events: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def asked(**body: Any) -> Request:
    return Request.of({"model": "m", "max_tokens": 9, "messages": [USER], **body}, path=MESSAGES)


def streamed(provider: Provider, *pieces: bytes, **body: Any) -> tuple[list[Chunk], Response]:
    decoder = provider.decoder(asked(stream=True, **body))
    chunks = [chunk for piece in pieces for chunk in decoder.feed(piece)]
    return chunks + decoder.finish(), decoder.response()


def wire(chunks: list[Chunk]) -> bytes:
    return b"".join(written(chunk.event, chunk.data) for chunk in chunks)


def checked(chunks: list[Chunk]) -> None:
    """The official SDK knows these events, and they come in the order that it wants."""
    kinds = [chunk.event for chunk in chunks if chunk.event != "ping"]
    for chunk in chunks:
        if chunk.event != "ping":
            assert _events.validate_json(chunk.data).type == chunk.event
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop")


# To Anthropic


def test_a_request_goes_out_byte_for_byte_with_the_callers_versions() -> None:
    body = b'{ "model":"m", "max_tokens": 9,"messages":[],"odd":[1.0, {"x" : null}]}'
    headers = Headers({"anthropic-version": "2026-10-21", "anthropic-beta": "a,b"})
    target = Target(base_url="https://host.example", model="m", headers=NATIVE.headers("k", {}))
    sent = NATIVE.encode(Request.from_body(body, path=MESSAGES, headers=headers), target)
    assert (sent.body, sent.url) == (body, "https://host.example/v1/messages")
    assert (sent.headers["anthropic-version"], sent.headers["anthropic-beta"]) == ("2026-10-21", "a,b")
    assert sent.headers["x-api-key"] == "k"
    other = NATIVE.encode(Request.from_body(body, path=MESSAGES, model="anthropic/m"), TARGET)
    assert other.body == body
    renamed = NATIVE.encode(Request.from_body(body.replace(b'"m"', b'"anthropic/m"'), path=MESSAGES), TARGET)
    assert msgspec.json.decode(renamed.body) == msgspec.json.decode(body)


def test_thoughts_of_other_models_do_not_go_to_anthropic() -> None:
    """It verifies signatures, and answers 400 to those that we made up for a model of another provider."""
    made = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": packed({"a": 1})},
    ]
    own = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]
    text = {"type": "text", "text": "42"}
    turns = [
        USER,
        {"role": "assistant", "content": [made[0], text, made[1]]},
        USER,
        {"role": "assistant", "content": made},
        USER,
        {"role": "assistant", "content": [*own, text]},
    ]
    sent = msgspec.json.decode(NATIVE.encode(asked(messages=turns, temperature=0.5), TARGET).body)
    rest = [USER, {"role": "assistant", "content": [text]}, USER, USER, {"role": "assistant", "content": [*own, text]}]
    assert sent == {"model": "m", "max_tokens": 9, "temperature": 0.5, "messages": rest}


@pytest.mark.parametrize(
    "messages",
    [
        b'[{"role":"user", "content":"fastllm:1: and \\"signature\\":\\"\\""}]',
        b'[{"role":"user", "content":[{"type":"text", "text":"x", "signature" : ""}]}]',
        b'[{"role":"assistant", "content":[{"type":"thinking", "thinking":"x", "signature" : "s"}]}]',
        b'[{"role":"assistant", "content":[{"type":"tool_use", "id":"c", "name":"f", "input":{"signature": ""}}]}]',
        b'["fastllm:1:", {"content":["fastllm:1:"]}]',
        b'"fastllm:1:"',
        b'["fastllm:1:"',
    ],
)
def test_a_request_without_such_thoughts_goes_out_byte_for_byte(messages: bytes) -> None:
    body = b'{ "model":"m","messages":' + messages + b' ,"x": 1.0}'
    assert NATIVE.encode(Request(path=MESSAGES, body=body), Target(base_url="https://x", model="")).body == body


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.name)
def test_an_answer_comes_back_byte_for_byte_and_is_counted(path: Path) -> None:
    body = path.read_bytes()
    found = NATIVE.decode(asked(), HTTPResponse(status=200, body=body))
    as_chat = NATIVE.decode(msgspec.structs.replace(asked(), path=CHAT), HTTPResponse(status=200, body=body))
    assert (found.body, found.path) == (body, MESSAGES)
    assert (found.usage, found.finish_reason) == (as_chat.usage, as_chat.finish_reason)


@pytest.mark.parametrize("path", sorted((GOLDEN / "anthropic").glob("*.stream.sse")), ids=lambda path: path.name)
def test_a_streams_events_come_as_they_came_at_every_split(path: Path) -> None:
    body = path.read_bytes()
    chunks, response = streamed(NATIVE, body)
    assert wire(chunks) == body
    whole = msgspec.json.decode(Path(str(path).replace(".stream.sse", ".answer.json")).read_bytes())
    assert msgspec.json.decode(response.body) == whole
    for cut in range(1, len(body)):
        assert wire(streamed(NATIVE, body[:cut], body[cut:])[0]) == body


@pytest.mark.parametrize("path", ANSWERS, ids=lambda path: path.name)
def test_a_kept_answer_is_played_back_as_a_stream_of_itself(path: Path) -> None:
    body = path.read_bytes()
    chunks = NATIVE.replay(Response(body=body, path=MESSAGES), asked(stream=True))
    checked(chunks)
    _, response = streamed(NATIVE, wire(chunks))
    assert msgspec.json.decode(response.body) == msgspec.json.decode(body)


def test_a_whole_answer_in_place_of_a_stream_is_played_as_one() -> None:
    body = (GOLDEN / "anthropic" / "tools.answer.json").read_bytes()
    chunks, response = streamed(NATIVE, body)
    checked(chunks)
    assert response.body.strip() == body.strip() and response.path == MESSAGES


def test_errors_are_typed_whole_and_in_a_stream() -> None:
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    with pytest.raises(e.OverloadedError):
        NATIVE.decode(asked(), HTTPResponse(status=529, body=error))
    with pytest.raises(e.OverloadedError):
        streamed(NATIVE, b"event: error\ndata: " + error + b"\n\n")
    with pytest.raises(e.TruncatedStreamError):
        streamed(NATIVE, b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n')


# Through chat


@pytest.mark.parametrize("path", CHATS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_chat_stream_is_a_messages_stream_at_every_split(path: Path) -> None:
    provider, body = BY_CHAT[path.parent.name], path.read_bytes()
    chunks, response = streamed(provider, body)
    checked(chunks)
    assert response.path == MESSAGES
    message = Message.model_validate_json(response.body)
    assert message.role == "assistant"
    _, again = streamed(NATIVE, wire(chunks))
    assert again.to_dict() == response.to_dict()
    for cut in range(1, len(body), 7):
        assert wire(streamed(provider, body[:cut], body[cut:])[0]) == wire(chunks)


@pytest.mark.parametrize("name", BY_CHAT)
def test_a_whole_chat_answer_is_a_message(name: str) -> None:
    paths = sorted((GOLDEN / name).glob("*.answer.json" if name == "gemini" else "chat*.response.json"))
    assert paths
    for path in paths:
        found = BY_CHAT[name].decode(asked(), HTTPResponse(status=200, body=path.read_bytes()))
        Message.model_validate_json(found.body)
        checked(BY_CHAT[name].replay(found, asked(stream=True)))


def test_hints_are_left_out_and_a_budget_becomes_an_effort() -> None:
    marked = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    chat = to_plain_chat(
        {
            "model": "m", "max_tokens": 9, "system": [marked], "thinking": {"type": "enabled", "budget_tokens": 4096},
            "context_management": {"edits": []}, "metadata": {"user_id": "u"}, "top_k": 4, "stop_sequences": ["x"],
            "messages": [
                {"role": "user", "content": [marked]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"},
                                                  {"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "is_error": True,
                                              "content": [marked]}]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}]},
            ],
            "tools": [{"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral"}}],
        }
    )  # fmt: skip
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    part = {"type": "text", "text": "a"}
    assert chat == {
        "model": "m", "max_tokens": 9, "top_k": 4, "stop": ["x"], "user": "u", "reasoning_effort": "medium",
        "messages": [
            {"role": "system", "content": [part]},
            {"role": "user", "content": [part]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": [part]},
            {"role": "assistant", "content": ""},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }  # fmt: skip


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def results(*contents: Any) -> list[dict[str, Any]]:
    """Give the turns of a conversation whose tools gave these results, and of a user who says something with them."""
    uses = [{"type": "tool_use", "id": f"c{n}", "name": "f", "input": {}} for n in range(len(contents))]
    given = [{"type": "tool_result", "tool_use_id": f"c{n}", "content": told} for n, told in enumerate(contents)]
    told = {"role": "user", "content": [*given, {"type": "text", "text": "Well?"}]}
    return [USER, {"role": "assistant", "content": uses}, told]


def test_images_of_results_follow_all_results_where_tool_messages_take_text_only() -> None:
    """OpenAI refuses them in tool messages, and whatever stands between an assistant's calls and their results."""
    document = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="}}
    turns = results([{"type": "text", "text": "a"}, IMAGE], [IMAGE], [IMAGE, document], "b")
    sent = msgspec.json.decode(BY_CHAT["openai"].encode(asked(messages=turns), TARGET).body)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    file = {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk="}}
    assert sent["messages"][2:] == [
        {"role": "tool", "tool_call_id": "c0", "content": "a"},
        {"role": "tool", "tool_call_id": "c1", "content": "see the image that follows"},
        {"role": "tool", "tool_call_id": "c2", "content": "see the 2 files that follow"},
        {"role": "tool", "tool_call_id": "c3", "content": "b"},
        {"role": "user", "content": [image, image, image, file]},
        {"role": "user", "content": "Well?"},
    ]


def test_images_of_results_stand_beside_them_where_the_dialect_takes_them() -> None:
    sent = msgspec.json.decode(BY_CHAT["gemini"].encode(asked(messages=results([IMAGE])), TARGET).body)
    first, second, third = sent["contents"][2]["parts"]
    assert first["functionResponse"]["id"] == "c0"
    assert (second, third) == ({"inlineData": {"mimeType": "image/png", "data": "aGk="}}, {"text": "Well?"})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "run by Anthropic itself"),
        ({"mcp_servers": [{"url": "https://x"}]}, "'mcp_servers' is nothing that this provider has"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "'search_result' is nothing"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "'server_tool_use' is"),
        ({"messages": 1}, "messages must be a list"),
    ],
)
def test_what_only_anthropic_has_is_named(body: dict[str, Any], words: str) -> None:
    with pytest.raises(e.InvalidRequestError, match=words):
        BY_CHAT["openai"].encode(asked(**body), TARGET)


def test_the_body_must_be_an_object_and_versions_of_anthropics_go_to_nobody_else() -> None:
    with pytest.raises(e.InvalidRequestError, match="not a valid JSON object"):
        BY_CHAT["openai"].encode(Request(path=MESSAGES, body=b"[]"), TARGET)
    headers = Headers({"anthropic-version": "1", "anthropic-beta": "b", "x-more": "m"})
    sent = BY_CHAT["openai"].encode(msgspec.structs.replace(asked(), headers=headers), TARGET)
    assert sent.url.endswith("/chat/completions") and dict(sent.headers) == {"x-more": "m"}


def test_what_a_provider_wants_to_see_again_goes_there_and_back() -> None:
    """A thought signature of Gemini's stands beside its tool call; a message has no place for it but a block."""
    part = {"functionCall": {"name": "f", "args": {"x": 1}, "id": "c1"}, "thoughtSignature": "c2ln"}
    answer = {"candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}]}
    provider = BY_CHAT["gemini"]
    found = provider.decode(asked(), HTTPResponse(status=200, body=msgspec.json.encode(answer)))
    content = found.to_dict()["content"]
    assert [block["type"] for block in content] == ["tool_use", "redacted_thinking"]
    turn = {"role": "assistant", "content": content}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "ok"}]}
    sent = msgspec.json.decode(provider.encode(asked(messages=[USER, turn, result]), TARGET).body)
    assert sent["contents"][1]["parts"][0]["thoughtSignature"] == "c2ln"
    chunks, whole = streamed(provider, b"data: " + msgspec.json.encode(answer) + b"\n\n")
    checked(chunks)
    assert [block["type"] for block in whole.to_dict()["content"]] == ["tool_use", "redacted_thinking"]


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}


def completed(message: dict[str, Any], reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": reason}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def answered(message: dict[str, Any], reason: str | None) -> dict[str, Any]:
    body = msgspec.json.encode(completed(message, reason))
    return BY_CHAT["openai"].decode(asked(), HTTPResponse(status=200, body=body)).to_dict()


def streamed_of(*deltas: dict[str, Any], reason: str | None = "stop") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Give the events of a chat stream of these deltas, and the message; its events, read again, are that message."""
    frame = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    choices = [*({"index": 0, "delta": delta} for delta in deltas), {"index": 0, "delta": {}, "finish_reason": reason}]
    pieces = [b"data: " + msgspec.json.encode({**frame, "choices": [choice]}) + b"\n\n" for choice in choices]
    chunks, response = streamed(BY_CHAT["openai"], *pieces, b"data: [DONE]\n\n")
    checked(chunks)
    _, again = streamed(NATIVE, wire(chunks))
    assert again.to_dict() == response.to_dict()
    return [msgspec.json.decode(chunk.data) for chunk in chunks], response.to_dict()


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "function_call"])
def test_an_answer_with_calls_ends_with_tool_use(reason: str) -> None:
    """OpenAI ends with "stop" where the tool was forced; agents of Anthropic's run tools after "tool_use" only."""
    assert answered({"tool_calls": [CALL]}, reason)["stop_reason"] == "tool_use"
    events, message = streamed_of({"tool_calls": [{"index": 0, **CALL}]}, reason=reason)
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"] == "tool_use"


def test_other_reasons_stand_beside_calls_and_without_calls_nothing_changes() -> None:
    assert answered({"tool_calls": [CALL]}, "length")["stop_reason"] == "max_tokens"
    assert answered({"content": "42"}, "stop")["stop_reason"] == "end_turn"
    events, message = streamed_of({"tool_calls": [{"index": 0, **CALL}]}, reason="length")
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("delta", "reason"), [({"content": "42"}, "end_turn"), ({"tool_calls": [{"index": 0, **CALL}]}, "tool_use")]
)
def test_a_stream_that_ends_without_a_reason_is_given_one(delta: dict[str, Any], reason: str) -> None:
    """Some servers write [DONE] and never said why."""
    events, message = streamed_of(delta, reason=None)
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"] == reason


THOUGHT: dict[str, Any] = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
SAID = {"type": "text", "text": "4"}


def test_content_in_parts_becomes_blocks() -> None:
    """Mistral's reasoning models answer so."""
    blocks = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "42"}]
    reference = {"type": "reference", "reference_ids": [1]}
    said: list[Any] = [THOUGHT, SAID, reference, {"type": "text", "text": "2"}]
    assert answered({"content": said}, "stop")["content"] == blocks
    assert answered({"reasoning_content": "hm", "content": said[1:]}, "stop")["content"] == blocks
    assert answered({"content": [], "refusal": "no"}, "stop")["content"] == [{"type": "text", "text": "no"}]


@pytest.mark.parametrize("rest", ["42", [SAID, {"type": "text", "text": "2"}]])
def test_content_that_streams_in_parts_becomes_blocks(rest: Any) -> None:
    half: dict[str, Any] = {"type": "thinking", "thinking": "h"}
    events, message = streamed_of(
        {"role": "assistant", "content": ""},
        {"content": [half]},
        {"content": [{**half, "thinking": [{"type": "text", "text": "m"}]}]},
        {"content": rest},
    )
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "42"},
    ]
    assert [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"][:2] == [
        "thinking_delta",
        "thinking_delta",
    ]


def test_a_streamed_call_begins_once_its_name_is_known() -> None:
    pieces: list[dict[str, Any]] = [
        {"index": 0, "type": "function", "function": {"arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x"'}},
        {"index": 0, "id": "c1", "function": {"name": "f"}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]
    _, message = streamed_of(*({"tool_calls": [piece]} for piece in pieces))
    assert message["content"] == [{"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}]


def test_a_call_without_an_id_is_given_one_the_same_whole_and_streamed() -> None:
    bare = [{"type": "function", "function": {"name": name, "arguments": "{}"}} for name in "fg"]
    _, message = streamed_of(*({"tool_calls": [{"index": n, **call}]} for n, call in enumerate(bare)))
    first, second = (block["id"] for block in message["content"])
    assert first.startswith("toolu_") and first != second
    assert answered({"tool_calls": bare}, "stop")["content"] == message["content"]


def test_arguments_may_come_as_an_object() -> None:
    call = {**CALL, "function": {"name": "f", "arguments": {"x": 1}}}
    use = {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}
    assert answered({"tool_calls": [call]}, "stop")["content"] == [use]
    _, message = streamed_of({"tool_calls": [{"index": 0, **call}]})
    assert message["content"] == [use]


def test_text_within_a_call_waits_for_its_end_and_text_behind_it_does_not() -> None:
    def kinds(*deltas: dict[str, Any]) -> list[str]:
        encoder = BY_CHAT["openai"].decoder(asked(stream=True))
        bodies = [{"id": "x", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        end = {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
        lines = [b"data: " + msgspec.json.encode(body) + b"\n\n" for body in [*bodies, end]]
        chunks = [chunk for line in [*lines, b"data: [DONE]\n\n"] for chunk in encoder.feed(line)]
        checked(chunks)
        content = streamed(NATIVE, wire(chunks))[1].to_dict()["content"]
        return [block.get("text") or msgspec.json.encode(block["input"]).decode() for block in content]

    begun = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"x"'}}]}
    other = {"tool_calls": [{"index": 1, "id": "d", "function": {"name": "f", "arguments": "{"}}]}
    rest = {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}
    ended = {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]}
    a, b = {"content": "a"}, {"content": "b"}
    assert kinds(begun, a, rest, b) == ['{"x":1}', "ab"]
    assert kinds(begun, rest, a, b) == ['{"x":1}', "ab"]
    assert kinds(a, begun, rest, other, a, ended, b) == ["a", '{"x":1}', "{}", "ab"]
    assert kinds(begun, rest, a, other, ended, b) == ['{"x":1}', "a", "{}", "b"]


# Through the engine


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "gemini", "mistral"])
async def test_every_vendor_answers_messages(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{vendor.upper()}_API_KEY", "k")
    chat = {"choices": [{"message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}]}
    answers: dict[str, Any] = {
        "gemini": {"candidates": [{"content": {"parts": [{"text": "42"}]}, "finishReason": "STOP"}]},
        "anthropic": to_message(chat),
    }
    sent: list[HTTPRequest] = []

    def handler(http: HTTPRequest) -> HTTPResponse:
        sent.append(http)
        return HTTPResponse(status=200, body=msgspec.json.encode(answers.get(vendor, chat)))

    async with AsyncFastLLM(transport=ScriptedTransport(handler), max_retries=0) as client:
        response = await client.engine.execute(msgspec.structs.replace(asked(), model=f"{vendor}/m"))
    assert response.path == MESSAGES and response.to_dict()["content"][0] == {"type": "text", "text": "42"}
    assert sent[0].url.endswith("/v1/messages") == (vendor == "anthropic")
