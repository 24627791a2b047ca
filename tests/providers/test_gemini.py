"""providers/gemini: chat as generateContent and back, whole, streamed, both ways, at every split point."""

from __future__ import annotations

import base64
from array import array
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from fastllm import errors as e
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.gemini_answer import to_answer
from fastllm.providers.gemini_request import to_gemini
from fastllm.providers.gemini_reverse import AnswerEncoder, from_gemini
from fastllm.providers.openai_replay import chunks_of
from fastllm.types import CHAT, EMBEDDINGS, MODERATIONS, Headers, HTTPResponse, Request, Response, Target

GEMINI = GeminiProvider()
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
SIGNED = {**CALL, "extra_content": {"google": {"thought_signature": "c2ln"}}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "gemini-2.5-flash", "messages": [USER], **fields}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 7},
            {"temperature": 0.5, "topP": 0.9, "topK": 40, "seed": 7},
        ),
        ({"max_tokens": 5}, {"maxOutputTokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"maxOutputTokens": 6}),
        ({"stop": "x"}, {"stopSequences": ["x"]}),
        ({"stop": ["x", "y"]}, {"stopSequences": ["x", "y"]}),
        ({"n": 2}, {"candidateCount": 2}),
        ({"presence_penalty": 1, "frequency_penalty": 2}, {"presencePenalty": 1, "frequencyPenalty": 2}),
        ({"logprobs": True, "top_logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
        ({"response_format": {"type": "text"}}, None),
        ({"reasoning_effort": "low"}, {"thinkingConfig": {"thinkingBudget": 1024}}),
        ({"reasoning_effort": "none"}, {"thinkingConfig": {"thinkingBudget": 0}}),
        ({"model": "gemini-3-pro", "reasoning_effort": "high"}, {"thinkingConfig": {"thinkingLevel": "high"}}),
        ({"modalities": ["text", "image"]}, {"responseModalities": ["TEXT", "IMAGE"]}),
        ({"generationConfig": {"mediaResolution": "LOW"}, "seed": 1}, {"seed": 1, "mediaResolution": "LOW"}),
        ({"user": "u", "stream": True, "stream_options": {"include_usage": True}, "parallel_tool_calls": True}, None),
    ],
)
def test_parameters(fields: dict[str, Any], expected: dict[str, Any] | None) -> None:
    body = chat(**fields)
    assert to_gemini(body, body["model"]).get("generationConfig") == expected


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"role": "user", "content": "hi"}, [{"text": "hi"}]),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            [{"text": "a"}, {"text": "b"}],
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]},
            [{"inlineData": {"mimeType": "image/png", "data": "aGk="}}],
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://h/a.webp?x=1"}}]},
            [{"fileData": {"mimeType": "image/webp", "fileUri": "https://h/a.webp?x=1"}}],
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk="}}]},
            [{"inlineData": {"mimeType": "application/pdf", "data": "aGk="}}],
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "files/7"}}]},
            [{"fileData": {"fileUri": "files/7"}}],
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": "mp3", "data": "aGk="}}]},
            [{"inlineData": {"mimeType": "audio/mp3", "data": "aGk="}}],
        ),
        ({"role": "user", "content": [{"videoMetadata": {"fps": 1}}]}, [{"videoMetadata": {"fps": 1}}]),
        (
            {"role": "assistant", "content": "ok", "tool_calls": [CALL]},
            [{"text": "ok"}, {"functionCall": {"name": "weather", "args": {"city": "Oslo"}, "id": "c1"}}],
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [SIGNED]},
            [{"functionCall": {"name": "weather", "args": {"city": "Oslo"}, "id": "c1"}, "thoughtSignature": "c2ln"}],
        ),
        (
            {"role": "assistant", "content": "x", "content_parts": [{"executableCode": {"code": "1"}}]},
            [{"executableCode": {"code": "1"}}],
        ),
    ],
)
def test_messages(message: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    (turn,) = to_gemini({"messages": [message]})["contents"]
    assert turn == {"role": "model" if message["role"] == "assistant" else "user", "parts": parts}


def test_a_conversation_with_tools() -> None:
    """System messages go to the top, results find their function's name, and roles in a row are one turn."""
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "be kind"},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"degrees": 3}'},
        {"role": "tool", "tool_call_id": "c2", "content": "cold"},
        USER,
    ]
    tools = [
        {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}},
        {"googleSearch": {}},
    ]
    body = to_gemini(chat(messages=messages, tools=tools, tool_choice="auto"))
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}, {"text": "be kind"}]}
    assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][2]["parts"] == [
        {"functionResponse": {"name": "weather", "response": {"degrees": 3}, "id": "c1"}},
        {"functionResponse": {"name": "weather", "response": {"output": "cold"}, "id": "c2"}},
        {"text": "hi"},
    ]
    declared = {"name": "weather", "description": "d", "parametersJsonSchema": SCHEMA}
    assert body["tools"] == [{"functionDeclarations": [declared]}, {"googleSearch": {}}]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "AUTO"}}
    named = to_gemini(chat(tools=tools, tool_choice={"type": "function", "function": {"name": "weather"}}))
    assert named["toolConfig"]["functionCallingConfig"] == {"mode": "ANY", "allowedFunctionNames": ["weather"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logit_bias": {"5": 1}}, "Gemini has no 'logit_bias'"),
        ({"parallel_tool_calls": False}, "Gemini has no 'parallel_tool_calls'"),
        ({"reasoning_effort": "huge"}, "reasoning_effort must be one of none, minimal, low, medium, high; not|'huge'"),
        ({"response_format": {"type": "grammar"}}, "response_format 'grammar' is nothing that Gemini has"),
        ({"tool_choice": "maybe"}, "tool_choice must be auto, required, none or a function's name, not 'maybe'"),
        ({"messages": "hi"}, "messages must be a list, not str"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\] has the role 'robot'"),
        ({"messages": [{"role": "tool", "tool_call_id": "c9", "content": "x"}]}, "tool call 'c9', which no message"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, r"content\[0\] has the type 'hologram'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "must have a url"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]}, "is not valid JSON"),
    ],
)
def test_what_gemini_has_no_word_for_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(e.InvalidRequestError, match=message) as caught:
        to_gemini(chat(**fields))
    assert not caught.value.sent


TARGET = Target(base_url="https://g.example", model="gemini-2.5-flash", headers=Headers({"x-goog-api-key": "k"}))


@pytest.mark.parametrize(
    ("base", "path", "stream", "url"),
    [
        ("https://g.example", CHAT, False, "https://g.example/v1beta/models/m:generateContent"),
        ("https://g.example/v1", CHAT, False, "https://g.example/v1/models/m:generateContent"),
        (
            "https://g.example/v1beta/?a=b",
            CHAT,
            True,
            "https://g.example/v1beta/models/m:streamGenerateContent?alt=sse&a=b",
        ),
        ("https://g.example", EMBEDDINGS, False, "https://g.example/v1beta/models/m:batchEmbedContents"),
    ],
)
def test_addresses(base: str, path: str, stream: bool, url: str) -> None:
    fields = (
        {"model": "m", "input": "x"} if path == EMBEDDINGS else {"model": "m", "messages": [USER], "stream": stream}
    )
    http = GEMINI.encode(Request.of(fields, path=path), Target(base_url=base, model="m"))
    assert http.url == url
    assert "model" not in msgspec.json.decode(http.body) and "stream" not in msgspec.json.decode(http.body)


def test_other_operations_are_refused() -> None:
    with pytest.raises(e.InvalidRequestError, match="Gemini has no /moderations: give it chat or embeddings"):
        GEMINI.encode(Request.of({"model": "m", "input": "x"}, path=MODERATIONS), TARGET)
    assert dict(GEMINI.auth_headers("k")) == {"x-goog-api-key": "k"} and not GEMINI.auth_headers(None)


# What the API's reference shows of answers, put together into one.
WHOLE: dict[str, Any] = {
    "candidates": [
        {
            "content": {
                "role": "model",
                "parts": [
                    {"text": "hm", "thought": True},
                    {"text": "Oslo is "},
                    {"text": "cold."},
                    {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}, "thoughtSignature": "c2ln"},
                ],
            },
            "finishReason": "STOP",
            "index": 0,
            "safetyRatings": [],
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 10, "cachedContentTokenCount": 4, "candidatesTokenCount": 5, "thoughtsTokenCount": 3,
        "totalTokenCount": 18,
    },
    "modelVersion": "gemini-2.5-flash",
    "responseId": "r1",
}  # fmt: skip
ASK = Request.of({**chat(), "stream_options": {"include_usage": True}})


def decoded(body: Any, status: int = 200) -> Response:
    return GEMINI.decode(ASK, HTTPResponse(status=status, body=msgspec.json.encode(body)))


def test_a_whole_answer() -> None:
    response = decoded(WHOLE)
    message = response.choices[0].message
    assert message.content == "Oslo is cold." and message.reasoning_content == "hm"
    (call,) = response.to_dict()["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'} and call["id"] == "call_r1_0_0"
    assert call["extra_content"] == {"google": {"thought_signature": "c2ln"}}
    assert (response.finish_reason, response.id, response.model) == ("tool_calls", "r1", "gemini-2.5-flash")
    usage = response.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.cached_tokens) == (10, 8, 18, 4)
    assert response.to_dict()["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    again = to_gemini({"messages": [USER, response.to_dict()["choices"][0]["message"]]})
    assert again["contents"][1]["parts"][-1]["thoughtSignature"] == "c2ln"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("RECITATION", "content_filter"),
        ("BLOCKLIST", "content_filter"), ("PROHIBITED_CONTENT", "content_filter"), ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"), ("SOMETHING_NEW", "something_new"),
    ],
)  # fmt: skip
def test_finish_reasons(reason: str, expected: str) -> None:
    body = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": reason}]}
    assert decoded(body).finish_reason == expected


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE"])
def test_a_model_that_failed_is_asked_again(reason: str) -> None:
    body = {"candidates": [{"content": {}, "finishReason": reason}]}
    with pytest.raises(e.InternalServerError, match=reason) as caught:
        decoded(body)
    assert caught.value.retryable
    events = b"data: " + msgspec.json.encode(body) + b"\n\n"
    with pytest.raises(e.InternalServerError, match=reason):
        GEMINI.decoder(ASK).feed(events)


def test_a_prompt_that_was_refused() -> None:
    body = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3}}
    assert decoded(body).finish_reason == "content_filter"
    decoder = GEMINI.decoder(ASK)
    (chunk,) = decoder.feed(b"data: " + msgspec.json.encode(body) + b"\n\n")
    decoder.finish()
    assert chunk.choices[0].finish_reason == "content_filter" == decoder.response().finish_reason


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"<html>", e.ProtocolError),
        (b"{}", e.ProtocolError),
        (b'{"candidates":[]}', e.ProtocolError),
        (b'{"candidates":[{"content":{"parts":[{"text":"x"', e.ProtocolError),
        (b'{"error":{"code":429,"message":"slow","status":"RESOURCE_EXHAUSTED"}}', e.RateLimitError),
        (b'[{"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}]', e.OverloadedError),
    ],
)
def test_what_is_no_answer(body: bytes, error: type[e.LLMError]) -> None:
    with pytest.raises(error):
        GEMINI.decode(ASK, HTTPResponse(status=200, body=body))
    with pytest.raises(error):
        decoder = GEMINI.decoder(ASK)
        decoder.feed(body)
        decoder.finish()


@pytest.mark.parametrize(
    ("status", "error", "expected", "retryable"),
    [
        (400, {"status": "INVALID_ARGUMENT", "message": "bad"}, e.BadRequestError, False),
        (
            400,
            {"status": "INVALID_ARGUMENT", "message": "API key not valid. Please pass a valid API key."},
            e.AuthenticationError,
            False,
        ),
        (403, {"status": "PERMISSION_DENIED", "message": "no"}, e.PermissionDeniedError, False),
        (404, {"status": "NOT_FOUND", "message": "no model"}, e.NotFoundError, False),
        (429, {"status": "RESOURCE_EXHAUSTED", "message": "slow"}, e.RateLimitError, True),
        (
            429,
            {
                "status": "RESOURCE_EXHAUSTED",
                "message": "day",
                "details": [{"violations": [{"quotaId": "RequestsPerDayPerProject"}]}],
            },
            e.QuotaExceededError,
            False,
        ),
        (500, {"status": "INTERNAL", "message": "oops"}, e.InternalServerError, True),
        (503, {"status": "UNAVAILABLE", "message": "busy"}, e.OverloadedError, True),
        (504, {"status": "DEADLINE_EXCEEDED", "message": "late"}, e.InternalServerError, True),
    ],
)
def test_errors(status: int, error: dict[str, Any], expected: type[e.LLMError], retryable: bool) -> None:
    with pytest.raises(e.LLMError) as caught:
        decoded({"error": {"code": status, **error}}, status)
    assert type(caught.value) is expected and caught.value.retryable is retryable


def events_of(*answers: dict[str, Any], end: bytes = b"\r\n\r\n") -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(answer) + end for answer in answers)


def parts(*given: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(given)}, "index": 0}
    if reason:
        candidate["finishReason"] = reason
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "r1", **more}


STREAM = events_of(
    parts({"text": "hm", "thought": True}, usageMetadata={"promptTokenCount": 10}),
    parts({"text": "Oslo "}),
    parts({"text": "is "}, {"text": "cöld."}),
    parts({"functionCall": {"name": "weather", "args": {"city": "Oslo"}}, "thoughtSignature": "c2ln"}),
    parts({"text": ""}, reason="STOP", usageMetadata={**WHOLE["usageMetadata"]}),
)


def read(*pieces: bytes) -> tuple[list[dict[str, Any]], Response]:
    decoder = GEMINI.decoder(ASK)
    chunks = [chunk for piece in pieces for chunk in decoder.feed(piece)]
    assert not decoder.done
    chunks += decoder.finish()
    assert decoder.done
    return [chunk.to_dict() for chunk in chunks], decoder.response()


def test_a_stream_at_every_split_point() -> None:
    chunks, response = read(STREAM)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Oslo is cöld." == response.text
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "hm"
    assert response.finish_reason == "tool_calls" and chunks[-1]["usage"]["total_tokens"] == 18
    assert response.usage is not None and response.usage.cached_tokens == 4
    for cut in range(1, len(STREAM)):
        assert read(STREAM[:cut], STREAM[cut:])[0] == chunks


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_a_stream_in_any_pieces(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(places)]
    assert read(*pieces)[1].body == read(STREAM)[1].body


def test_a_stream_that_was_cut_off() -> None:
    ends = [place + 4 for place in range(len(STREAM)) if STREAM[place : place + 4] == b"\r\n\r\n"]
    for cut in range(ends[-2] + 1):
        decoder = GEMINI.decoder(ASK)
        decoder.feed(STREAM[:cut])
        with pytest.raises(e.TruncatedStreamError):
            decoder.finish()
        assert decoder.response().text in "Oslo is cöld."


def test_an_error_within_a_stream() -> None:
    error = {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}
    decoder = GEMINI.decoder(ASK)
    with pytest.raises(e.OverloadedError):
        decoder.feed(events_of(parts({"text": "a"}), error))
    assert decoder.response().text == "a"


def test_several_candidates() -> None:
    def one(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {"index": index, "content": {"parts": [{"text": text}]}}
        return {**found, "finishReason": reason} if reason else found

    stream = events_of(
        {"candidates": [one(0, "a"), one(1, "b")]},
        {"candidates": [one(1, "d", "STOP")]},
        {"candidates": [one(0, "c", "STOP")]},
    )
    response = read(stream)[1]
    assert [choice.message.content for choice in response.choices] == ["ac", "bd"]


def test_embeddings() -> None:
    request = Request.of(
        {"model": "m", "input": ["a", "b"], "dimensions": 2, "encoding_format": "base64"}, path=EMBEDDINGS
    )
    body = msgspec.json.decode(GEMINI.encode(request, TARGET).body)
    assert body["requests"][1] == {
        "model": "models/gemini-2.5-flash", "content": {"parts": [{"text": "b"}]}, "outputDimensionality": 2,
    }  # fmt: skip
    answer = HTTPResponse(status=200, body=b'{"embeddings":[{"values":[1,0.5]},{"values":[0,2]}]}')
    packed = GEMINI.decode(request, answer).data
    assert packed[0].embedding == base64.b64encode(array("f", [1, 0.5]).tobytes()).decode()
    plain = GEMINI.decode(Request.of({"model": "m", "input": ["a", "b"]}, path=EMBEDDINGS), answer)
    assert [(one.index, one.embedding) for one in plain.data] == [(0, [1, 0.5]), (1, [0, 2])]
    with pytest.raises(e.InvalidRequestError, match="Gemini takes no tokens"):
        GEMINI.encode(Request.of({"model": "m", "input": [1, 2]}, path=EMBEDDINGS), TARGET)
    for bad in (b"{}", b'{"embeddings":[]}', b"<html>", b""):
        with pytest.raises(e.ProtocolError):
            GEMINI.decode(request, HTTPResponse(status=200, body=bad))


# The other direction


@pytest.mark.parametrize(
    "body",
    [
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
        {
            "contents": [
                {"role": "user", "parts": [{"text": "a"}, {"inlineData": {"mimeType": "image/png", "data": "aGk="}}]},
                {
                    "role": "model",
                    "parts": [{"functionCall": {"id": "c", "name": "f", "args": {"x": 1}}, "thoughtSignature": "s"}],
                },
                {"role": "user", "parts": [{"functionResponse": {"id": "c", "name": "f", "response": {"y": 2}}}]},
            ],
            "systemInstruction": {"parts": [{"text": "be"}]},
            "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": SCHEMA}]}, {"googleSearch": {}}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
            "safetySettings": [{"category": "c", "threshold": "t"}],
            "generationConfig": {
                "temperature": 0.1, "topP": 0.2, "topK": 3, "maxOutputTokens": 4, "stopSequences": ["z"],
                "candidateCount": 2,
                "responseMimeType": "application/json", "responseJsonSchema": SCHEMA, "seed": 5,
                "thinkingConfig": {"thinkingBudget": 7},
            },
        },
    ],
)  # fmt: skip
def test_a_request_there_and_back(body: dict[str, Any]) -> None:
    assert to_gemini(from_gemini(body, "m"), "m") == body


def test_names_in_snake_case_and_types_in_capitals() -> None:
    body = {
        "contents": [{"parts": [{"inline_data": {"mime_type": "image/png", "data": "aGk="}}]}],
        "system_instruction": {"parts": [{"text": "be"}]},
        "tools": [
            {
                "function_declarations": [
                    {"name": "f", "parameters": {"type": "OBJECT", "properties": {"x": {"type": "STRING"}}}}
                ]
            }
        ],
        "tool_config": {"function_calling_config": {"mode": "ANY", "allowed_function_names": ["f"]}},
        "generation_config": {"max_output_tokens": 4, "thinking_config": {"thinking_level": "LOW"}},
    }
    found = from_gemini(body, "m")
    assert found["messages"][0] == {"role": "system", "content": "be"} and found["max_tokens"] == 4
    assert found["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {"x": {"type": "string"}}}
    assert found["tool_choice"]["function"]["name"] == "f" and found["reasoning_effort"] == "low"
    assert found["messages"][1]["content"][0]["image_url"]["url"] == "data:image/png;base64,aGk="


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "contents must be a list, not null"),
        ({"contents": [{"role": "robot", "parts": []}]}, r"contents\[0\].role must be user or model, not 'robot'"),
        ({"contents": [{"parts": "x"}]}, r"contents\[0\].parts must be a list"),
    ],
)
def test_a_request_that_is_none(body: dict[str, Any], message: str) -> None:
    with pytest.raises(e.InvalidRequestError, match=message):
        from_gemini(body, "m")


def test_a_completion_there_and_back() -> None:
    whole = decoded(WHOLE).to_dict()
    answer = to_answer(whole)
    assert answer["usageMetadata"] == WHOLE["usageMetadata"]
    again = decoded(answer).to_dict()
    assert (
        again["choices"][0]["message"]["content"] == "Oslo is cold."
        and again["choices"][0]["finish_reason"] == "tool_calls"
    )
    encoder = AnswerEncoder("gemini-2.5-flash")
    stream = b"".join(encoder.add(chunk) for chunk in chunks_of(decoded(WHOLE), ASK))
    found = read(stream)[1].to_dict()
    assert found["choices"][0]["message"]["content"] == "Oslo is cold."
    assert found["choices"][0]["message"]["reasoning_content"] == "hm"
    assert found["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"city":"Oslo"}'
    assert found["usage"]["total_tokens"] == 18
