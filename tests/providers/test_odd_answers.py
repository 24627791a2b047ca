"""Answers with odd values in them: what is good is kept, what is none is an error; found by stress/fuzz.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastllm.errors import ProtocolError
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.anthropic_reverse import EventEncoder
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.gemini_reverse import AnswerEncoder
from fastllm.providers.openai import OpenAIProvider
from fastllm.types import CHAT, EMBEDDINGS, RESPONSES, Chunk, HTTPResponse, Request, Response

USER = {"role": "user", "content": "hi"}


def asked(path: str = CHAT, **more: Any) -> Request:
    return Request.of({"model": "m", "messages": [USER], **more}, path=path)


def generated(**candidate: Any) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": "hi"}]}
    return {"candidates": [{"content": content, "finishReason": "STOP", **candidate}]}


@pytest.mark.parametrize(
    "answer",
    [
        generated(logprobsResult={"chosenCandidates": 1}),
        generated(logprobsResult={"chosenCandidates": ["x"]}),
        generated(logprobsResult={"topCandidates": True, "chosenCandidates": [{"token": "x"}]}),
        generated(logprobsResult={"topCandidates": ["x"]}),
        generated(logprobsResult={"topCandidates": [{"candidates": ["x"]}], "chosenCandidates": [{"token": "x"}]}),
    ],
)
def test_oddities_beside_an_answer_do_not_lose_it(answer: Any) -> None:
    found = GeminiProvider().decode(asked(), HTTPResponse(status=200, body=json.dumps(answer).encode()))
    assert found.text == "hi"


@pytest.mark.parametrize(
    ("provider", "path", "answer"),
    [
        (GeminiProvider(), CHAT, {"candidates": 1}),
        (GeminiProvider(), EMBEDDINGS, {"embeddings": 1}),
        (OpenAIProvider(), CHAT, {"choices": [{"finish_reason": {}, "message": {}}]}),
    ],
)
def test_what_is_no_answer_is_an_error(provider: Any, path: str, answer: Any) -> None:
    request = Request.of({"model": "m", "input": "x", "messages": [USER]}, path=path)
    with pytest.raises(ProtocolError):
        provider.decode(request, HTTPResponse(status=200, body=json.dumps(answer).encode()))


def test_a_vector_beyond_floats_is_an_error() -> None:
    request = Request.of({"model": "m", "input": "x", "encoding_format": "base64"}, path=EMBEDDINGS)
    body = b'{"embeddings":[{"values":[1%b]}]}' % (b"0" * 400)
    with pytest.raises(ProtocolError):
        GeminiProvider().decode(request, HTTPResponse(status=200, body=body))


def test_a_number_beyond_floats_in_an_unknown_field_does_not_lose_the_answer() -> None:
    body = b'{"created":"x","odd":1e999,"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
    found = OpenAIProvider().decode(asked(), HTTPResponse(status=200, body=body))
    assert found.text == "hi"
    assert found.to_dict()["odd"] == float("inf")


@pytest.mark.parametrize("odd", [b"NaN", b"-Infinity"])
def test_what_no_json_has_is_an_error_in_streams_beside_a_number_beyond_floats_too(odd: bytes) -> None:
    with pytest.raises(ProtocolError, match="is not JSON"):
        OpenAIProvider().decoder(asked(stream=True)).feed(
            b'data: {"created":1e999,"odd":%b,"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n' % odd
        )


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"choices": 1}),
        (CHAT, {"choices": [1, {"message": "x"}]}),
        (CHAT, {"choices": [{"message": {"content": "hi", "tool_calls": 1}}]}),
        (CHAT, {"choices": [{"message": {"content": "hi", "tool_calls": ["x"]}}]}),
        (RESPONSES, {"output": 1}),
    ],
)
def test_any_answer_can_be_replayed(path: str, fields: Any) -> None:
    chunks = OpenAIProvider().replay(Response(body=json.dumps(fields).encode(), path=path), asked(path))
    assert all(isinstance(chunk, Chunk) for chunk in chunks)


def test_bad_utf8_in_a_field_that_nobody_reads_is_an_error_in_streams_too() -> None:
    decoder = OpenAIProvider().decoder(asked(stream=True))
    with pytest.raises(ProtocolError, match="is not UTF-8"):
        decoder.feed(b'data: {"x\xff":1,"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')


def messages_stream(*events: dict[str, Any]) -> Response:
    decoder = AnthropicProvider().decoder(asked(stream=True))
    for event in (*events, {"type": "message_stop"}):
        decoder.feed(b"data: %b\n\n" % json.dumps(event).encode())
    decoder.finish()
    return decoder.response()


@pytest.mark.parametrize(
    ("block", "delta", "usage"),
    [
        ({"type": "text", "text": ""}, {"type": "text_delta", "text": "hi"}, "x"),
        ({"type": "text", "text": 1}, {"type": "text_delta", "text": "hi"}, {}),
        ({"type": "text", "text": "hi", "citations": 1}, {"type": "citations_delta", "citation": {"a": 1}}, {}),
    ],
)
def test_odd_values_in_a_messages_stream_are_passed_over(block: Any, delta: Any, usage: Any) -> None:
    answer = messages_stream(
        {"type": "message_start", "message": {"id": "m", "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    )
    assert answer.text == "hi"


def test_odd_candidates_in_a_gemini_stream_are_passed_over() -> None:
    decoder = GeminiProvider().decoder(asked(stream=True))
    events = [{"candidates": 1}, {"candidates": {"a": 1}}, generated()]
    decoder.feed(b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events))
    decoder.finish()
    assert decoder.response().text == "hi"


@pytest.mark.parametrize("name", ["prompt_tokens_details", "completion_tokens_details"])
def test_odd_usage_is_written_in_the_other_dialects(name: str) -> None:
    chunk = Chunk(data=json.dumps({"choices": [], "usage": {"prompt_tokens": 3, name: "x"}}).encode())
    assert b'"promptTokenCount":3' in AnswerEncoder("m").add(chunk)
    encoder = EventEncoder("m")
    encoder.add(chunk)
    assert b'"input_tokens":3' in encoder.end()[0].data
