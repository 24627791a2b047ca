"""providers/openai: whole answers are judged by their body, whatever the status says (FAULTS 17-20, 37, 39)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

import fastllm
from fastllm import errors as e
from fastllm.providers.openai import OpenAIProvider
from fastllm.types import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES, HTTPResponse, Request

PROVIDER = OpenAIProvider()
GOLDEN = Path(__file__).parent / "golden" / "openai"
PATHS = {"completion": COMPLETIONS, "embeddings": EMBEDDINGS, "moderations": MODERATIONS, "responses": RESPONSES}
NAMES = sorted(path.name.split(".")[0] for path in GOLDEN.glob("*.response.json"))
MESSAGES = [{"role": "user", "content": "hi"}]


def path_of(name: str) -> str:
    return PATHS.get(name.split("_")[0], CHAT)


def request(path: str = CHAT, **more: Any) -> Request:
    return Request.of({"model": "m", "messages": MESSAGES}, path=path, **more)


def answered(body: Any, path: str = CHAT, status: int = 200, **headers: str) -> fastllm.Response:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    found = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return PROVIDER.decode(request(path), HTTPResponse(status=status, headers=found, body=raw))


def choice(finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}


def chat(*choices: Any, **more: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion", "choices": list(choices or [choice(content="hi")]), **more}


# Whole answers


@pytest.mark.parametrize("name", NAMES)
def test_golden_answers_are_read_and_kept_byte_for_byte(name: str) -> None:
    body = (GOLDEN / f"{name}.response.json").read_bytes()
    asked = Request.from_body((GOLDEN / f"{name}.request.json").read_bytes(), path=path_of(name))
    answer = HTTPResponse(status=200, headers=[(b"date", b"x"), (b"x-request-id", b"req-1")], body=body)
    response = PROVIDER.decode(asked, answer)
    assert response.body is body and response.path == path_of(name)
    assert (response.status_code, response.request_id) == (200, "req-1")
    if name != "moderations":
        assert response.usage is not None and response.usage.prompt_tokens > 0
    reasons = {"tools": "tool_calls", "responses_tools": "tool_calls", "embeddings": None, "moderations": None}
    lengths = {"two_choices", "no_done", "completion", "responses_length"}
    assert response.finish_reason == reasons.get(name, "length" if name in lengths else "stop")


@pytest.mark.fault(18)
@pytest.mark.parametrize("name", NAMES)
def test_a_golden_answer_cut_anywhere_is_never_an_answer(name: str) -> None:
    body = (GOLDEN / f"{name}.response.json").read_bytes().rstrip()
    for end in range(len(body)):
        with pytest.raises(e.ProtocolError):
            answered(body[:end], path_of(name))


@pytest.mark.fault(17)
def test_html_under_200_is_a_protocol_error_to_retry() -> None:
    """FAULTS 17; the OpenAI SDK gives the HTML as a string."""
    with pytest.raises(e.ProtocolError) as caught:
        answered(b"<html>" + b"Please log in. " * 100, content_type="text/html", x_request_id="r")
    assert caught.value.retryable and caught.value.request_id == "r" and caught.value.status_code == 200
    assert "Please log in" in caught.value.message and len(caught.value.message) < 300


@pytest.mark.fault(20)
@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("body", [b"", b" \r\n", b"\n\n\n"])
def test_an_empty_body_is_a_protocol_error_to_retry(status: int, body: bytes) -> None:
    """FAULTS 20; the OpenAI SDK raises a JSONDecodeError."""
    with pytest.raises(e.ProtocolError, match="is empty") as caught:
        answered(body, status=status)
    assert caught.value.retryable


@pytest.mark.fault(18)
@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"message":{"content":"x"}}]',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":NaN}',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"x":Infinity}',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}{}',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"choices":[]}',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"choices":'
        b'[{"message":{"content":"y"},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"x":"\xff"}',
        b'{"choices":[{"message":{"content":"\xff"},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":"\\ud800"},"finish_reason":"stop"}]}',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"x":'
        + b"[" * 100_000
        + b"]" * 100_000
        + b"}",
        b'{"choices":{}}',
        b'{"choices":"x"}',
        b'{"choices":[1]}',
        b'"text"',
        b"[]",
        b"null",
        b"12",
    ],
)
def test_broken_json_is_never_read_in_part(body: bytes) -> None:
    """FAULTS 18: cut off, NaN, a key twice, not UTF-8, too deep, of another shape."""
    with pytest.raises(e.ProtocolError) as caught:
        answered(body)
    assert caught.value.retryable


def test_a_key_that_only_looks_like_twice_is_an_answer() -> None:
    assert answered(chat(choice(content="x"), note="choices")).text == "x"


def test_endless_integers_beside_a_doubtful_key_are_no_crash() -> None:
    with pytest.raises(e.ProtocolError):
        answered(b'{"n":' + b"1" * 5000 + b',"choices":[{"message":{"content":"x"}}],"note":"choices"}')


@pytest.mark.fault(19)
@pytest.mark.parametrize("choices", [None, [], msgspec.UNSET])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_null_or_empty_choices_are_a_protocol_error(choices: Any, path: str) -> None:
    """FAULTS 19; the OpenAI SDK gives an object whose choices are None."""
    body = {"id": "x"} if choices is msgspec.UNSET else {"id": "x", "choices": choices}
    with pytest.raises(e.ProtocolError, match="no choices"):
        answered(body, path)


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    "nothing",
    [
        choice(content=None),
        choice(),
        choice(content=[]),
        choice(None, content=None),
        choice("tool_calls", content=None, tool_calls=[]),
        choice(content=None, refusal=None, tool_calls=None, audio=None),
        {"index": 0, "finish_reason": "stop"},
        {"index": 0, "message": None, "finish_reason": "length"},
    ],
)
def test_a_natural_end_without_any_content_is_a_protocol_error(nothing: Any) -> None:
    with pytest.raises(e.ProtocolError, match="no choice with content"):
        answered(chat(nothing))


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (choice(content=""), "stop"),
        (choice(content=[{"type": "text", "text": "x"}]), "stop"),
        (choice("length", content=None), "length"),
        (choice("content_filter", content=None), "content_filter"),
        (choice(content=None, refusal="no"), "stop"),
        (choice(content=None, reasoning_content="hm"), "stop"),
        (choice(content=None, reasoning="hm"), "stop"),
        (choice(content=None, audio={"id": "a", "data": ""}), "stop"),
        (choice("tool_calls", content=None, tool_calls=[{"id": "c"}]), "tool_calls"),
        (choice("stop", content=None, tool_calls=[{"id": "c"}]), "stop"),
        (choice("function_call", content=None, function_call={"name": "f"}), "function_call"),
        (choice(None, content="x"), None),
        (choice(7, content="x"), None),
    ],
)
def test_refusals_filters_lengths_and_tool_calls_are_answers(said: Any, reason: str | None) -> None:
    """FAULTS 39."""
    assert answered(chat(said)).finish_reason == reason


def test_of_several_choices_one_may_be_empty_and_the_worst_end_counts() -> None:
    response = answered(chat(choice(content="x"), choice("length", content="y"), choice(content=None)))
    assert response.finish_reason == "length"
    assert answered(chat(choice("tool_calls", content="x"), choice(content="y"))).finish_reason == "tool_calls"


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    ("error", "cls", "status", "retryable"),
    [
        ({"code": 429, "message": "slow"}, e.RateLimitError, 429, True),
        ({"code": "429", "message": "slow"}, e.RateLimitError, 429, True),
        ({"code": 400, "message": "bad"}, e.BadRequestError, 400, False),
        ({"code": 402, "message": "money"}, e.QuotaExceededError, 402, False),
        ({"code": 502, "message": "down", "metadata": {}}, e.InternalServerError, 502, True),
        ({"code": "insufficient_quota"}, e.QuotaExceededError, 429, False),
        ({"code": "context_length_exceeded"}, e.ContextLengthError, 400, False),
        ({"type": "invalid_request_error", "code": None}, e.BadRequestError, 400, False),
        ({"type": "authentication_error"}, e.AuthenticationError, 401, False),
        ({"type": "overloaded_error"}, e.OverloadedError, 529, True),
        ({"code": 1, "status": "RESOURCE_EXHAUSTED"}, e.RateLimitError, 429, True),
        ({"message": "who knows"}, e.InternalServerError, 500, True),
        ({"code": 99999999999, "message": "?"}, e.InternalServerError, 500, True),
        ("just text", e.InternalServerError, 500, True),
        (True, e.InternalServerError, 500, True),
    ],
)
def test_an_error_under_200_is_classified_by_its_body(error: Any, cls: type, status: int, retryable: bool) -> None:
    """FAULTS 19; the OpenAI SDK gives an object whose choices are None."""
    for body in ({"error": error}, {"error": error, "choices": None}, chat(error=error)):
        with pytest.raises(e.APIStatusError) as caught:
            answered(body, x_request_id="r")
        assert type(caught.value) is cls
        assert (caught.value.status_code, caught.value.retryable) == (status, retryable)
        assert caught.value.request_id == "r"


@pytest.mark.parametrize("error", [None, {}, "", False, []])
def test_an_empty_error_beside_choices_is_an_answer(error: Any) -> None:
    assert answered(chat(error=error)).text == "hi"


def test_a_choice_that_ends_in_an_error_is_that_error() -> None:
    broken = {**choice("error", content="par"), "error": {"code": 502, "message": "upstream went away"}}
    with pytest.raises(e.InternalServerError, match="upstream went away") as caught:
        answered(chat(broken))
    assert caught.value.status_code == 502
    with pytest.raises(e.InternalServerError):
        answered(chat(choice("error", content="x")))


@pytest.mark.fault(20)
def test_right_json_under_a_wrong_content_type_is_an_answer() -> None:
    """FAULTS 20."""
    assert answered(chat(), content_type="text/html").text == "hi"


@pytest.mark.parametrize(
    ("status", "cls"),
    [(400, e.BadRequestError), (401, e.AuthenticationError), (404, e.NotFoundError), (413, e.RequestTooLargeError),
     (429, e.RateLimitError), (500, e.InternalServerError), (503, e.OverloadedError), (529, e.OverloadedError),
     (307, e.UnexpectedStatusError)],
)  # fmt: skip
def test_another_status_is_its_typed_error_whatever_the_body(status: int, cls: type) -> None:
    for body in (b"", b"<html>", b'{"error":{"message":"m"}}', msgspec.json.encode(chat())):
        with pytest.raises(cls):
            answered(body, status=status)


@pytest.mark.parametrize(("path", "key"), [(EMBEDDINGS, "data"), (MODERATIONS, "results")])
@pytest.mark.parametrize("value", [None, [], " [ ]", msgspec.UNSET, {}, "x"])
def test_lists_of_results_must_not_be_empty(path: str, key: str, value: Any) -> None:
    body = {} if value is msgspec.UNSET else {key: msgspec.Raw(value.encode()) if value == " [ ]" else value}
    with pytest.raises(e.ProtocolError, match=f"no {key}"):
        answered(body, path)


# Usage (FAULTS 37)


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, (5, 2, 7)),
        ({"prompt_tokens": 5, "completion_tokens": 2}, (5, 2, 7)),
        ({"prompt_tokens": 5.0, "completion_tokens": "2", "total_tokens": None}, (5, 2, 7)),
        ({"prompt_tokens": -5, "completion_tokens": 2, "total_tokens": -3}, (0, 2, 2)),
        ({"prompt_tokens": 10**30, "completion_tokens": 2, "total_tokens": 10**30}, (10**7, 2, 10**7 + 2)),
        ({"prompt_tokens": 5, "completion_tokens": [], "prompt_tokens_details": "x"}, (5, 0, 5)),
        ({"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}, (5, 2, 7)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({}, None),
        (None, None),
        ([], None),
        ("many", None),
        (7, None),
    ],
)
def test_odd_usage_is_clamped_and_costs_no_answer(usage: Any, counts: tuple[int, int, int] | None) -> None:
    found = answered(chat(usage=usage)).usage
    assert (found and (found.prompt_tokens, found.completion_tokens, found.total_tokens)) == counts


# Responses API


def response(status: Any = "completed", output: Any = None, **more: Any) -> dict[str, Any]:
    items = [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}] if output is None else output
    return {"id": "r", "object": "response", "status": status, "error": None, "output": items, **more}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (response(), "stop"),
        (response(None), "stop"),
        (response(output=[{"type": "function_call", "name": "f"}]), "tool_calls"),
        (response(output=[{"type": "custom_tool_call", "name": "f"}]), "tool_calls"),
        (response("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (response("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
        (response("incomplete", [], incomplete_details=None), "length"),
        (response("queued", []), None),
        (response("in_progress", []), None),
        (response("cancelled"), "cancelled"),
        (response(7), None),
    ],
)
def test_a_responses_status_becomes_a_finish_reason(body: Any, reason: str | None) -> None:
    assert answered(body, RESPONSES).finish_reason == reason


def test_a_failed_response_is_its_error() -> None:
    with pytest.raises(e.RateLimitError):
        answered(response("failed", error={"code": "rate_limit_exceeded", "message": "m"}), RESPONSES)
    with pytest.raises(e.InternalServerError) as caught:
        answered(response("failed"), RESPONSES, x_request_id="r")
    assert caught.value.retryable and caught.value.request_id == "r"


@pytest.mark.parametrize("body", [response(output=[]), {"status": "completed"}, {"id": "r"}])
def test_a_response_without_output_is_a_protocol_error(body: Any) -> None:
    with pytest.raises(e.ProtocolError, match="no output"):
        answered(body, RESPONSES)


# Whatever comes

KEYS = st.sampled_from(
    [
        "choices",
        "message",
        "content",
        "error",
        "code",
        "usage",
        "prompt_tokens",
        "data",
        "results",
        "output",
        "status",
        "finish_reason",
        "incomplete_details",
        "text",
        "tool_calls",
        "type",
        "x",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@given(
    st.dictionaries(KEYS, JSON, max_size=6).map(msgspec.json.encode) | st.binary(max_size=50),
    st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES]),
    st.sampled_from([200, 200, 200, 204, 302, 400, 429, 500]),
)
def test_whatever_comes_is_an_answer_or_a_typed_error(body: bytes, path: str, status: int) -> None:
    try:
        found = answered(body, path, status)
    except e.LLMError:
        return
    assert found.body == body
    assert isinstance(found.text, str)
    assert found.usage is None or 0 < found.usage.total_tokens <= 2 * 10**7


def test_geminis_list_of_one_error_is_read() -> None:
    """Gemini's OpenAI endpoint wraps the error of a bad status into a list."""
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Too much", "details": []}
    with pytest.raises(e.RateLimitError, match="429 from the provider: Too much"):
        answered([{"error": error}], status=429)
    daily = {**error, "details": [{"violations": [{"quotaId": "RequestsPerDayPerProject"}]}]}
    with pytest.raises(e.QuotaExceededError):
        answered([{"error": daily}], status=429)
    with pytest.raises(e.RateLimitError):
        answered([], status=429)
