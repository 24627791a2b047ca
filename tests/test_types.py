"""The nouns: bytes first, fields on demand, OpenAI's shape, and no secret in any repr."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from fastllm.answers import Payload, Usage, content_text, decode_payload
from fastllm.errors import ConfigError, InvalidRequestError, LLMError, RateLimitError
from fastllm.types import (
    CHAT,
    EMBEDDINGS,
    NO_HEADERS,
    RESPONSES,
    Chunk,
    Headers,
    HTTPRequest,
    HTTPResponse,
    Outcome,
    Request,
    Response,
    Row,
    Target,
)

SECRET = "sk-verysecret0123456789"


def test_headers_are_lower_case_encoded_once_and_looked_up_in_any_case() -> None:
    headers = Headers({"X-One": " a ", "x-two": "b"})
    assert headers.encoded == b"x-one: a\r\nx-two: b\r\n"
    assert headers["X-ONE"] == "a" and list(headers) == ["x-one", "x-two"] and len(headers) == 2
    assert Headers([("A", "1"), ("a", "2")]) == {"a": "2"} and not NO_HEADERS


def test_headers_merged_are_new_and_the_later_value_wins() -> None:
    headers = Headers({"a": "1", "b": "2"})
    assert headers.merged({"A": "3"}) == {"a": "3", "b": "2"} and headers["a"] == "1"
    assert headers.merged({}) is headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", "x\r\ny: z"), ("a\n", "x"), ("a:b", "x"), ("a b", "x"), ("", "x"), ("a", "\x00"), ("é", "x"),
        ("a\t", "x"), ("a", "\x7f"), ("a", "\ud800"), ("a", 5), (5, "a"), (None, "a"),
    ],
)  # fmt: skip
def test_a_header_that_http_forbids_is_refused_without_showing_its_value(name: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match="header") as caught:
        Headers({name: value})
    assert "y: z" not in str(caught.value)


@given(st.dictionaries(st.text(), st.text()))
def test_headers_either_refuse_or_encode_to_whole_lines(items: dict[str, str]) -> None:
    try:
        headers = Headers(items)
    except ConfigError:
        return
    lines = headers.encoded.split(b"\r\n")
    assert len(lines) == len(headers) + 1 and lines[-1] == b"" and all(b": " in part for part in lines[:-1])


def test_no_repr_shows_a_secret() -> None:
    headers = Headers({"Authorization": f"Bearer {SECRET}", "x-api-key": SECRET, "Cookie": SECRET, "x-title": "app"})
    url = f"https://user:{SECRET}@host/v1/chat?key={SECRET}"
    body = json.dumps({"model": "m", "messages": [{"content": SECRET}]}).encode()
    request = Request.from_body(body, headers=headers)
    shown = [
        repr(thing)
        for thing in (
            headers, HTTPRequest(url=url, body=body, headers=headers), HTTPResponse(status=200, body=body),
            Target(base_url=url, model="m", headers=headers), request, Response(body=body), Chunk(data=body),
            Row(index=1, request=request, source=body), Outcome(index=1, request=request, response=Response(body=body)),
        )
    ]  # fmt: skip
    assert not any(SECRET in text for text in shown)
    assert "x-title" in shown[0] and "https://host/v1/chat " in shown[1] and "at https://host/v1/chat>" in shown[3]


def test_the_first_header_of_a_name_is_found() -> None:
    answer = HTTPResponse(status=200, headers=[(b"a", b"1"), (b"a", b"2"), (b"b", b"\xe9")])
    assert (answer.header("a"), answer.header("b"), answer.header("c")) == ("1", "é", None)


def test_a_request_knows_what_routing_and_admission_need() -> None:
    body = b'{"model": "m", "stream": true, "max_tokens": 50, "n": 3, "unknown": {"x": 1}}'
    request = Request.from_body(body, custom_id="r1", sample=2)
    assert (request.model, request.body_model, request.stream, request.max_tokens) == ("m", "m", True, 150)
    assert (request.custom_id, request.sample, request.body, request.path) == ("r1", 2, body, CHAT)
    assert repr(request) == f"<Request /chat/completions m {len(body)} B>"


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (b"{}", 0), (b'{"max_tokens": null}', 0), (b'{"max_tokens": -5}', 0), (b'{"max_output_tokens": 7}', 7),
        (b'{"max_completion_tokens": 9, "max_tokens": 5}', 9), (b'{"max_tokens": 5, "n": 0}', 5),
    ],
)  # fmt: skip
def test_the_bound_on_the_answer_is_read_in_every_spelling(body: bytes, limit: int) -> None:
    assert Request.from_body(body).max_tokens == limit


def test_a_model_given_beside_the_body_routes_and_the_bodys_is_remembered() -> None:
    request = Request.from_body(b'{"model": "inner"}', model="outer", path=EMBEDDINGS)
    assert (request.model, request.body_model, request.stream) == ("outer", "inner", False)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nope", b"null", b'{"model": 5}', b'{"n": "x"}', b'{"a": ', b'{"model": "\xff"}']
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not a valid JSON object") as caught:
        Request.from_body(body)
    assert caught.value.sent is False


def test_an_unknown_path_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"url '/v9/x' is not one of .*/chat/completions"):
        Request.from_body(b"{}", path="/v9/x")


def test_a_request_is_built_from_python_values() -> None:
    request = Request.of({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, timeout=3.0)
    assert json.loads(request.body)["messages"][0]["content"] == "hi" and request.timeout == 3.0


def test_values_that_json_cannot_hold_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (object(), {1j: 2}, loop, "\ud800"):
        with pytest.raises(InvalidRequestError, match="cannot be written as JSON"):
            Request.of({"x": value})
        with pytest.raises(InvalidRequestError, match="cannot be written as JSON"):
            Request.from_body(b"{}").with_fields(x=value)


def test_changing_fields_keeps_the_others_byte_for_byte_and_everything_beside_the_body() -> None:
    body = b'{"model":"m","temperature":1.10,"stream":true,"user":"u"}'
    request = Request.from_body(body, model="route", custom_id="c", sample=3, priority=1, timeout=9.0)
    changed = request.with_fields(stream=msgspec.UNSET, user="v", missing=msgspec.UNSET)
    assert changed.body == b'{"model":"m","temperature":1.10,"user":"v"}' and not changed.stream
    assert (changed.model, changed.custom_id, changed.sample, changed.priority, changed.timeout) == (
        "route",
        "c",
        3,
        1,
        9,
    )
    assert request.body == body
    assert request.with_fields(model="other").model == "other"


CHAT_BODY = json.dumps(
    {
        "id": "c1", "object": "chat.completion", "created": 5, "model": "m", "system_fingerprint": "fp", "x": {"y": 1},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
    }
).encode()  # fmt: skip


def test_a_response_reads_like_openais() -> None:
    response = Response(body=CHAT_BODY, finish_reason="stop")
    assert response._payload is None  # nothing is decoded before it is asked for
    assert response.choices[0].message.content == response.text == response.output_text == "Paris"
    assert (response.id, response.model, response.object, response.created) == ("c1", "m", "chat.completion", 5)
    assert response.payload is response.payload and response.raw is CHAT_BODY
    assert response.data == [] and response.output == []


def test_fields_without_a_name_of_ours_are_still_there() -> None:
    response = Response(body=CHAT_BODY)
    fields: Any = response
    assert fields.system_fingerprint == "fp" and response.model_extra == {"system_fingerprint": "fp", "x": {"y": 1}}
    assert response.to_dict() == json.loads(CHAT_BODY) and response.to_dict() is response.to_dict()
    assert not hasattr(response, "nothing_like_it") and not hasattr(response, "_hidden")


@pytest.mark.parametrize("body", [b"", b"[1]", b"null", b"<html>"])
def test_a_body_that_is_no_object_has_no_extra_fields(body: bytes) -> None:
    assert not hasattr(Response(body=body), "anything")


def test_an_empty_answer_has_empty_fields() -> None:
    response = Response(body=b"{}")
    assert (response.id, response.model, response.object, response.created, response.text) == ("", "", "", 0, "")
    assert response.choices == [] and response.payload.delta_text() == ""


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"text": "plain"}]}, "plain"),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}, {"x": 1}, 5]}}]}, "ab"),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"output": [{"type": "reasoning"}, {"type": "message", "content": [{"text": "r"}]}, 7]}, "r"),
    ],
)
def test_the_text_is_found_in_every_shape(body: dict[str, Any], text: str) -> None:
    assert Response(body=json.dumps(body).encode(), path=RESPONSES).text == text


def test_one_field_of_an_odd_type_does_not_lose_the_others() -> None:
    payload = decode_payload(b'{"id": "x", "usage": "odd", "created": [], "choices": [{"message": {"content": "y"}}]}')
    assert (payload.id, payload.text(), payload.usage) == ("x", "y", None)
    assert decode_payload(b"[1, 2]") == Payload()
    with pytest.raises(msgspec.DecodeError):
        decode_payload(b"{")


def test_usage_has_both_families_of_names_and_sane_numbers() -> None:
    chat = Usage(prompt_tokens=3, completion_tokens=2)
    assert (chat.input_tokens, chat.output_tokens, chat.total_tokens) == (3, 2, 5)
    new = msgspec.convert(
        {"input_tokens": 4, "output_tokens": 1, "total_tokens": 9, "output_tokens_details": {"reasoning_tokens": 1}},
        Usage,
    )
    assert (new.prompt_tokens, new.completion_tokens, new.total_tokens, new.reasoning_tokens) == (4, 1, 9, 1)
    odd = Usage(prompt_tokens=-5, total_tokens=-1)
    assert (odd.prompt_tokens, odd.total_tokens, odd.cached_tokens, odd.reasoning_tokens) == (0, 0, 0, 0)
    usage = Response(body=CHAT_BODY).payload.usage
    assert usage is not None and usage.cached_tokens == 1


def test_text_of_content_is_joined() -> None:
    assert content_text({"not": "content"}) == "" and content_text("s") == "s"


def test_a_chunk_reads_like_openais() -> None:
    data = b'{"id":"c","model":"m","object":"o","choices":[{"delta":{"content":"Pa"}}],"usage":{"prompt_tokens":1}}'
    chunk = Chunk(data=data)
    assert (chunk.id, chunk.model, chunk.object, chunk.delta, chunk.type) == ("c", "m", "o", "Pa", "")
    assert chunk.choices[0].delta.content == "Pa" and chunk.usage is not None and chunk.usage.prompt_tokens == 1
    assert chunk.to_dict() == json.loads(data) and chunk.payload is chunk.payload
    assert repr(chunk) == f"<Chunk data {len(data)} B>"


def test_events_of_the_responses_api_give_their_text() -> None:
    event = Chunk(data=b'{"type":"response.output_text.delta","delta":"Par"}', event="response.output_text.delta")
    assert (event.delta, event.type) == ("Par", "response.output_text.delta")
    assert Chunk(data=b'{"delta":{"x":1}}', event="other").delta == "" and Chunk(data=b"{}", event="e").type == "e"
    assert Chunk(data=b'{"choices":[{"text":"t"}]}').delta == "t" and Chunk(data=b"{}").choices == []


def test_an_outcome_is_a_response_or_an_error() -> None:
    good = Outcome(index=0, custom_id="a", response=Response(body=CHAT_BODY, cached=True, attempts=0))
    assert good.ok and good.cached and good.attempts == 0 and good.text == "Paris" and good.unwrap() is good.response
    error = RateLimitError("429")
    error.attempts = 5
    bad = Outcome(index=1, error=error)
    assert not bad.ok and not bad.cached and bad.attempts == 5 and "RateLimitError" in repr(bad)
    with pytest.raises(RateLimitError):
        _ = bad.text
    with pytest.raises(LLMError, match="neither"):
        Outcome(index=2).unwrap()
    assert Outcome(index=2).attempts == 0 and "cached" in repr(good)


def test_a_row_is_a_request_or_the_reason_why_not() -> None:
    assert repr(Row(index=3, custom_id="c", error=LLMError("bad"))) == "<Row 3 c bad>"
    assert repr(Row(index=0)) == "<Row 0 >"


@pytest.mark.parametrize(
    "value",
    [
        Headers({"A": "b"}), Request.from_body(b'{"model":"m"}', headers=Headers({"A": "b"})),
        HTTPRequest(url="http://x", headers=Headers({"A": "b"})), HTTPResponse(status=200), Row(index=1),
    ],
)  # fmt: skip
def test_values_copy_and_pickle_to_equal_values(value: Any) -> None:
    for again in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301
        assert again == value and type(again) is type(value)


@pytest.mark.parametrize("touched", [False, True])
def test_answers_copy_and_pickle_with_their_fields(touched: bool) -> None:
    response, chunk = Response(body=CHAT_BODY, attempts=2, endpoint="e"), Chunk(data=b'{"id":"c"}')
    if touched:
        assert response.text and response.to_dict() and chunk.id
    for first, again in ((response, copy.copy(response)), (response, copy.deepcopy(response))):
        assert (again.text, again.attempts, again.endpoint) == (first.text, 2, "e")
    assert pickle.loads(pickle.dumps(response)).text == "Paris"  # noqa: S301
    assert pickle.loads(pickle.dumps(chunk)).id == "c"  # noqa: S301
    outcome = pickle.loads(pickle.dumps(Outcome(index=1, response=response)))  # noqa: S301
    assert outcome.text == "Paris"


def test_requests_are_frozen_values() -> None:
    request = Request.from_body(b"{}")
    with pytest.raises(AttributeError):
        request.model = "x"  # type: ignore[misc]
    assert request == Request.from_body(b"{}")


@pytest.mark.parametrize("digits", [17, 400, 5000])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n"])
def test_numbers_beyond_what_is_counted_are_refused(name: str, digits: int) -> None:
    """A count that no ledger could hold is an invalid request, not an overflow further down."""
    with pytest.raises(InvalidRequestError, match=r"at most|not a valid JSON object"):
        Request.from_body(b'{"%s":%s}' % (name.encode(), b"9" * digits))
    assert Request.from_body(b'{"max_tokens":9007199254740992,"n":9007199254740992}').max_tokens == 2**53


def test_a_body_of_any_depth_is_read_or_refused() -> None:
    for depth in (10, 500, *range(980, 1010), 3000):
        try:
            Request.from_body(b'{"messages":' + b"[" * depth + b"]" * depth + b"}")
        except InvalidRequestError as error:
            assert "deep" in error.message


@pytest.mark.parametrize("body", [{"messages": "SECRET"}, '{"messages": "SECRET"}', None])
def test_a_body_that_is_not_bytes_is_refused_where_the_request_is_made(body: Any) -> None:
    """It was a TypeError from deep inside, once the request was to be sent."""
    with pytest.raises(InvalidRequestError, match=r"body must be JSON as bytes, not of type .*; Request.of") as caught:
        Request(body=body, model="m")
    assert not caught.value.sent and "SECRET" not in str(caught.value)
