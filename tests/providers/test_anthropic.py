"""providers/anthropic: chat requests and answers as Messages has them, whole and streamed, at every split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm import errors as e
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.anthropic_answer import to_completion, to_message
from fastllm.providers.anthropic_request import MAX_TOKENS, to_messages
from fastllm.providers.openai import OpenAIProvider
from fastllm.providers.sse import written
from fastllm.types import EMBEDDINGS, HTTPResponse, Request, Response, Target

PROVIDER = AnthropicProvider()
USER = {"role": "user", "content": "hi"}
PNG = "data:image/png;base64,aGk="


def sent(**chat: Any) -> dict[str, Any]:
    return to_messages({"model": "m", "messages": [USER], **chat})


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = to_messages({"messages": list(messages)})["messages"]
    return found


def test_a_plain_question() -> None:
    assert sent() == {"model": "m", "max_tokens": MAX_TOKENS, "messages": [USER]}


def test_where_and_with_which_headers() -> None:
    headers = PROVIDER.headers("sk-ant", {})
    target = Target(base_url="https://api.anthropic.com/v1", model="claude-x", headers=headers)
    out = PROVIDER.encode(Request.of({"model": "anthropic/claude-x", "messages": [USER], "stream": True}), target)
    assert out.url == "https://api.anthropic.com/v1/messages"
    assert out.headers is headers
    names = {name.lower(): value for name, value in headers.items()}
    assert (names["x-api-key"], names["anthropic-version"]) == ("sk-ant", "2023-06-01")
    assert json.loads(out.body) == {"model": "claude-x", "max_tokens": MAX_TOKENS, "messages": [USER], "stream": True}
    with pytest.raises(e.InvalidRequestError, match="has no /embeddings"):
        PROVIDER.encode(Request.of({"input": "x"}, path=EMBEDDINGS, model="m"), target)


@pytest.mark.parametrize(
    ("chat", "field", "value"),
    [
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, "max_tokens", 6),
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"stop": "x"}, "stop_sequences", ["x"]),
        ({"stop": ["x", "y"]}, "stop_sequences", ["x", "y"]),
        ({"user": "u", "metadata": {"a": "b"}}, "metadata", {"a": "b", "user_id": "u"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking", {"type": "enabled", "budget_tokens": 9}),
        ({"top_k": 3}, "top_k", 3),
        ({"reasoning_effort": "high"}, "output_config", {"effort": "high"}),
        ({"reasoning_effort": "minimal"}, "output_config", {"effort": "low"}),
        ({"reasoning_effort": "none"}, "thinking", {"type": "disabled"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            "output_config",
            {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        ),
        ({"tool_choice": "auto"}, "tool_choice", {"type": "auto"}),
        ({"tool_choice": "required"}, "tool_choice", {"type": "any"}),
        ({"tool_choice": "none"}, "tool_choice", {"type": "none"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            {"type": "tool", "name": "f"},
        ),
        (
            {"parallel_tool_calls": False, "tools": [{"type": "function", "function": {"name": "f"}}]},
            "tool_choice",
            {"type": "auto", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_parameters(chat: dict[str, Any], field: str, value: Any) -> None:
    assert sent(**chat)[field] == value


@pytest.mark.parametrize(
    "chat",
    [{"n": 1}, {"logprobs": False}, {"seed": None}, {"stream_options": {"include_usage": True}}, {"store": True}],
)
def test_what_asks_for_nothing_is_left_out(chat: dict[str, Any]) -> None:
    assert sent(**chat) == sent()


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ({"n": 2}, "has no 'n'"),
        ({"seed": 1}, "has no 'seed'"),
        ({"logit_bias": {"1": 2}}, "has no 'logit_bias'"),
        ({"response_format": {"type": "json_object"}}, "response_format 'json_object'"),
        ({"tool_choice": "any"}, "tool_choice must be"),
        ({"messages": None}, "messages must be a list, not null"),
        ({"messages": ["x"]}, r"messages\[0\] must be an object, not str"),
        ({"messages": [{"role": "function", "content": "x"}]}, r"messages\[0\] has the role 'function'"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, r"content\[0\] is audio"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "must have a url"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x,y"}}]}]},
            "data URL without ;base64,",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments is not valid JSON",
        ),
    ],
)
def test_what_messages_has_no_word_for_is_named(chat: dict[str, Any], words: str) -> None:
    with pytest.raises(e.InvalidRequestError, match=words):
        sent(**chat)


def test_system_messages_stand_apart() -> None:
    system, developer = {"role": "system", "content": "a"}, {"role": "developer", "content": "b"}
    assert to_messages({"messages": [system, USER]})["system"] == "a"
    cached = [{"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}]
    out = to_messages({"messages": [system, developer, {"role": "system", "content": cached}, USER]})
    assert out["system"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, *cached]
    assert out["messages"] == [USER]


def test_turns_of_one_role_are_one() -> None:
    said = {"role": "assistant", "content": "ok"}
    first, second = {"type": "text", "text": "hi"}, {"type": "text", "text": "there"}
    assert turns(USER, {"role": "user", "content": "there"}, said, {"role": "user", "content": ""}) == [
        {"role": "user", "content": [first, second]},
        said,
    ]


def test_images_and_documents() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
        {"type": "file", "file": {"file_id": "file_1"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
    ]
    (turn,) = turns({"role": "user", "content": parts})
    assert turn["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        parts[-1],
    ]


def test_tools_and_their_results() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    other = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}}
    found = turns(
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, other]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
        {"role": "user", "content": "and?"},
    )
    assert found[1]["content"] == [
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    assert found[2] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
            {"type": "tool_result", "tool_use_id": "c2", "content": [image]},
            {"type": "text", "text": "and?"},
        ],
    }
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    native = {"type": "web_search_20250305", "name": "web_search"}
    assert sent(tools=[tool, native])["tools"] == [
        {"name": "f", "description": "d", "input_schema": {"type": "object"}},
        native,
    ]


WHOLE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "Hm, é.", "signature": "c2ln"},
        {"type": "text", "text": "Let me see: 日本."},
        {"type": "tool_use", "id": "toolu_1", "name": "get", "input": {"city": "Oslo", "n": [1, 2]}},
        {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 20,
        "output_tokens": 7,
    },
}


def answered(message: Any, status: int = 200, **headers: str) -> Response:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return PROVIDER.decode(Request.of({"messages": [USER]}), HTTPResponse(status=status, headers=pairs, body=body))


def test_a_whole_answer() -> None:
    found = answered(WHOLE, request_id="req_1")
    assert (found.id, found.model, found.text, found.finish_reason) == (
        *("msg_1", "claude-x", "Let me see: 日本."),
        "tool_calls",
    )
    message = found.choices[0].message
    assert message.reasoning_content == "Hm, é."
    calls = [(call.id, call.function and call.function.name) for call in message.tool_calls or ()]
    assert calls == [("toolu_1", "get"), ("toolu_2", "now")]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo", "n": [1, 2]}  # type: ignore[index, union-attr, arg-type]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.cached_tokens) == (35, 7, 20)
    assert found.request_id == "req_1"


def test_an_answer_goes_back_as_it_came() -> None:
    """The next request holds the thinking with its signature, as the API wants it."""
    message = answered(WHOLE).to_dict()["choices"][0]["message"]
    (turn,) = turns(message)
    assert turn == {"role": "assistant", "content": WHOLE["content"]}
    assert to_message(to_completion(WHOLE)) == WHOLE


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("stop_sequence", "stop"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
    ],
)
def test_reasons_to_stop(stop: str, reason: str) -> None:
    text = [{"type": "text", "text": "x"}]
    assert answered({**WHOLE, "content": text, "stop_reason": stop}).finish_reason == reason


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "bad"}}, e.BadRequestError),
        (
            400,
            {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}},
            e.ContextLengthError,
        ),
        (401, {"type": "error", "error": {"type": "authentication_error", "message": "k"}}, e.AuthenticationError),
        (413, {"type": "error", "error": {"type": "request_too_large", "message": "k"}}, e.RequestTooLargeError),
        (429, {"type": "error", "error": {"type": "rate_limit_error", "message": "k"}}, e.RateLimitError),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "k"}}, e.OverloadedError),
        (200, {"type": "error", "error": {"type": "overloaded_error", "message": "k"}}, e.OverloadedError),
        (200, b"<html>", e.ProtocolError),
        (200, b"", e.ProtocolError),
        (200, {"type": "message"}, e.ProtocolError),
        (200, {"type": "message", "content": [], "stop_reason": "end_turn"}, None),
        (200, {"type": "message", "content": [], "stop_reason": None}, e.ProtocolError),
        (
            200,
            {"type": "message", "content": [{"type": "text", "text": "x"}], "stop_reason": "tool_use"},
            e.ProtocolError,
        ),
        (200, {"type": "message", "content": [1], "stop_reason": "end_turn"}, e.ProtocolError),
        (
            200,
            b'{"content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn", "content": []}',
            e.ProtocolError,
        ),
    ],
)
def test_errors(status: int, body: Any, kind: type[Exception] | None) -> None:
    if kind is None:
        assert answered(body, status).text == ""
        return
    with pytest.raises(kind):
        answered(body, status)


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, ensure_ascii=False)}\n\n".encode()


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


STREAM = b"".join(
    [
        event(
            "message_start",
            message={
                **WHOLE,
                "content": [],
                "stop_reason": None,
                "usage": {**WHOLE["usage"], "output_tokens": 1},  # type: ignore[dict-item]
            },
        ),
        event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        b'event: ping\ndata: {"type": "ping"}\n\n',
        delta(0, "thinking_delta", thinking="Hm, "),
        delta(0, "thinking_delta", thinking="é."),
        delta(0, "signature_delta", signature="c2ln"),
        event("content_block_stop", index=0),
        event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
        delta(1, "text_delta", text="Let me see"),
        delta(1, "text_delta", text=": 日本."),
        delta(1, "something_new", text="?"),
        event("content_block_stop", index=1),
        event(
            "content_block_start",
            index=2,
            content_block={"type": "tool_use", "id": "toolu_1", "name": "get", "input": {}},
        ),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"city": "Os'),
        delta(2, "input_json_delta", partial_json='lo", "n": [1, 2]}'),
        event("content_block_stop", index=2),
        event(
            "content_block_start",
            index=3,
            content_block={"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
        ),
        event("content_block_stop", index=3),
        event("something_new", index=9),
        event("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 7}),
        event("message_stop"),
    ]
)
ASKED = Request.of({"messages": [USER], "stream": True, "stream_options": {"include_usage": True}})


def read(*pieces: bytes) -> tuple[list[Any], Response]:
    decoder = PROVIDER.decoder(ASKED)
    chunks = [chunk for piece in pieces for chunk in decoder.feed(piece)]
    chunks += decoder.finish()
    assert decoder.done
    return chunks, decoder.response()


def test_a_stream_comes_to_what_the_whole_answer_is() -> None:
    chunks, response = read(STREAM)
    assert response.to_dict() == answered(WHOLE).to_dict()
    assert (response.finish_reason, response.usage) == ("tool_calls", answered(WHOLE).usage)
    assert "".join(chunk.delta for chunk in chunks) == "Let me see: 日本."
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(one.reasoning_content or "" for one in deltas) == "Hm, é."
    calls = [call for one in deltas for call in one.tool_calls or ()]
    assert [(call.index, call.id) for call in calls if call.id] == [(0, "toolu_1"), (1, "toolu_2")]
    arguments = "".join(call.function.arguments or "" for call in calls if call.index == 0 and call.function)
    assert json.loads(arguments) == {"city": "Oslo", "n": [1, 2]}
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 42
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"


@pytest.mark.parametrize("name", ["thinking", "results", "documents", "tools"])
def test_a_stream_tells_readers_of_chat_all_that_the_whole_answer_does(name: str) -> None:
    """Signatures and citations must go back with the next request: they come in one chunk before the end, if at all."""
    golden = Path(__file__).parent / "golden" / "anthropic"
    decoder = PROVIDER.decoder(Request.of({"messages": [], "stream": True}))
    chunks = decoder.feed((golden / f"{name}.stream.sse").read_bytes())
    whole = msgspec.json.decode((golden / f"{name}.completion.json").read_bytes())["choices"][0]["message"]
    told = [choice.delta.content_blocks for chunk in chunks for choice in chunk.choices]
    assert [blocks for blocks in told if blocks] == ([whole["content_blocks"]] if "content_blocks" in whole else [])
    assert chunks[-1].choices[0].finish_reason
    reader = OpenAIProvider().decoder(Request.of({"messages": [], "stream": True}))
    reader.feed(b"".join(written("", chunk.data) for chunk in chunks) + b"data: [DONE]\n\n")
    read = reader.response().to_dict()["choices"][0]["message"]
    assert {k: v for k, v in whole.items() if v is not None} == {k: v for k, v in read.items() if v is not None}


def test_every_split_gives_the_same() -> None:
    chunks, response = read(STREAM)
    told = [chunk.data for chunk in chunks]
    for cut in range(1, len(STREAM)):
        pieces, other = read(STREAM[:cut], STREAM[cut:])
        assert [chunk.data for chunk in pieces] == told
        assert other.body == response.body
    pieces, other = read(*(STREAM[i : i + 1] for i in range(len(STREAM))))
    assert [chunk.data for chunk in pieces] == told


def test_a_stream_that_ends_early_is_no_answer() -> None:
    for cut in range(len(STREAM) - 1):
        decoder = PROVIDER.decoder(ASKED)
        decoder.feed(STREAM[:cut])
        if not decoder.done:
            with pytest.raises(e.TruncatedStreamError):
                decoder.finish()
        assert isinstance(decoder.response().text, str)


def test_an_error_inside_a_stream() -> None:
    decoder = PROVIDER.decoder(ASKED)
    decoder.feed(STREAM[: STREAM.rindex(b"event: ", 0, STREAM.index(b"something_new"))])
    with pytest.raises(e.OverloadedError):
        decoder.feed(event("error", error={"type": "overloaded_error", "message": "Overloaded"}))
    assert decoder.response().text == "Let me see: 日本."
    with pytest.raises(e.ProtocolError, match="not a JSON object"):
        PROVIDER.decoder(ASKED).feed(b"data: {no\n\n")


def test_a_whole_answer_in_place_of_a_stream() -> None:
    chunks, response = read(b"  " + json.dumps(WHOLE).encode()[:50], json.dumps(WHOLE).encode()[50:])
    assert response.to_dict() == answered(WHOLE).to_dict()
    assert "".join(chunk.delta for chunk in chunks) == "Let me see: 日本."
    asked = Request.of({"messages": [USER], "stream": True})
    assert PROVIDER.decode(asked, HTTPResponse(status=200, body=STREAM)).to_dict() == response.to_dict()


def test_arguments_that_were_cut_off() -> None:
    """What came is kept: the caller sees why the call cannot be made."""
    cut = STREAM[: STREAM.index(b'lo\\", \\"n')] + b'"}}\n\n'
    _, response = read(
        cut,
        event("message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 7}),
        event("message_stop"),
    )
    calls = response.choices[0].message.tool_calls or ()
    assert [call.function and call.function.arguments for call in calls] == ['{"city": "Os']
    assert response.finish_reason == "length"


def test_what_a_stream_has_used_is_not_known_before_it_says_so() -> None:
    """The start counts one token of the answer: whoever was billed by that would leave streams for nothing."""
    decoder = AnthropicProvider().decoder(Request.of({"model": "m", "messages": [], "stream": True}))
    decoder.feed(
        event("message_start", message={**WHOLE, "content": [], "usage": {"input_tokens": 9, "output_tokens": 1}})
    )
    decoder.feed(event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
    decoder.feed(delta(0, "text_delta", text="many words"))
    seen = decoder.response()
    assert (seen.text, seen.usage, seen.to_dict().get("usage")) == ("many words", None, None)
    decoder.feed(event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}))
    usage = decoder.response().usage
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens) == (9, 7)
