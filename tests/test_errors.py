"""Each error answer becomes the one class that decides the reaction (PROVIDERS.md section 2, FAULTS 25-32)."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fastllm import errors
from fastllm.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ContentFilterError,
    ContextLengthError,
    InternalServerError,
    LLMError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    RequestTooLargeError,
    UnexpectedStatusError,
    UnprocessableEntityError,
    UnsupportedParameterError,
    classify,
    parse_error_body,
    snake,
    snippet,
)


def answer(status: int, body: Any = b"", **headers: str) -> APIStatusError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify(status, {k.replace("_", "-"): v for k, v in headers.items()}.get, raw)


def error(**fields: Any) -> dict[str, Any]:
    return {"error": {"message": "m", **fields}}


GEMINI_DAY = [
    {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "RequestsPerDayPerProject"}]},
    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12s"},
]
GEMINI_MINUTE = [{"violations": [{"quotaId": "GenerateRequestsPerMinutePerProject"}]}]

# status, body, class, retryable
TABLE: list[tuple[int, Any, type[APIStatusError], bool]] = [
    # FAULTS 25: fatal for the key.
    (401, error(code="invalid_api_key"), AuthenticationError, False),
    (401, b"", AuthenticationError, False),
    (401, error(type="authentication_error"), AuthenticationError, False),
    (403, b"<html>", PermissionDeniedError, False),
    (403, error(type="permission_error"), PermissionDeniedError, False),
    # FAULTS 26: the row's own fault.
    (400, b"", BadRequestError, False),
    (404, error(code="model_not_found"), NotFoundError, False),
    (404, error(type="not_found_error"), NotFoundError, False),
    (413, error(type="request_too_large"), RequestTooLargeError, False),
    (422, {"detail": [{"loc": ["body"]}]}, UnprocessableEntityError, False),
    (400, error(code="context_length_exceeded"), ContextLengthError, False),
    (400, error(message="prompt is too long: 210000 tokens > 200000"), ContextLengthError, False),
    (400, error(type="exceed_context_size_error", code=400), ContextLengthError, False),
    (500, error(message="input (3001 tokens) is too large to process", type="api_error"), ContextLengthError, False),
    # llama_cpp.server, of a field of the request; what its answer lacks is its own fault.
    (500, error(message="1 validation error:\n {'type': 'x', 'loc': ('body', 'x')}"), BadRequestError, False),
    (500, error(message="1 validation error:\n {'loc': ('response', 'body')}"), InternalServerError, True),
    (400, error(code="unsupported_parameter", param="top_k"), UnsupportedParameterError, False),
    (400, error(code="unsupported_value"), UnsupportedParameterError, False),
    (400, error(code="content_filter"), ContentFilterError, False),
    (418, b"", BadRequestError, False),
    # FAULTS 27: try again, except 501 and 505.
    (408, b"", InternalServerError, True),
    (409, error(type="conflict_error"), ConflictError, True),
    (425, b"", ConflictError, True),
    *[(status, b"", InternalServerError, True) for status in (500, 502, 504, 520, 521, 522, 523, 524)],
    (500, error(type="api_error"), InternalServerError, True),
    (504, error(type="timeout_error"), InternalServerError, True),
    (503, b"", OverloadedError, True),
    (503, error(code="server_is_overloaded"), OverloadedError, True),
    (529, error(type="overloaded_error"), OverloadedError, True),
    (501, b"", InternalServerError, False),
    (505, b"", InternalServerError, False),
    # FAULTS 28 and 32: rate limits.
    (429, b"", RateLimitError, True),
    (429, error(code="rate_limit_exceeded", type="tokens"), RateLimitError, True),
    (429, error(code="slow_down"), RateLimitError, True),
    (429, error(type="rate_limit_error"), RateLimitError, True),
    (429, error(code=429, status="RESOURCE_EXHAUSTED", details=GEMINI_MINUTE), RateLimitError, True),
    (429, error(message="INSUFFICIENT QUOTA: per minute"), RateLimitError, True),
    (429, error(message="Request too large for gpt: Limit 30000, Requested 40000"), RateLimitError, False),
    # FAULTS 31: no money left.
    *[
        (429, error(code=code), QuotaExceededError, False)
        for code in (
            "insufficient_quota",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
        )
    ],
    (429, error(type="insufficient_quota", code=None), QuotaExceededError, False),
    (429, error(details={"error_code": "enforced_spend_limit_reached"}), QuotaExceededError, False),
    (429, error(code=429, details=GEMINI_DAY), QuotaExceededError, False),
    (402, b"", QuotaExceededError, False),
    (402, error(type="billing_error"), QuotaExceededError, False),
    (402, error(code=402, metadata={"limit_source": "openrouter_in_flight_budget"}), RateLimitError, True),
    # Everything else that is no answer.
    (302, b"", UnexpectedStatusError, False),
    (204, b"", UnexpectedStatusError, False),
]  # fmt: skip


@pytest.mark.fault(25, 26, 27, 31)
@pytest.mark.parametrize(("status", "body", "cls", "retryable"), TABLE)
def test_an_error_answer_becomes_its_class(status: int, body: Any, cls: type[APIStatusError], retryable: bool) -> None:
    found = answer(status, body)
    assert type(found) is cls and found.retryable is retryable and found.status_code == status
    assert str(found).startswith(f"{status} from the provider: ")


@pytest.mark.fault(25, 31)
def test_only_key_and_money_errors_stop_the_key() -> None:
    stopping = {name for name in vars(errors) if getattr(vars(errors)[name], "fatal_for_key", False)}
    assert stopping == {"AuthenticationError", "PermissionDeniedError", "QuotaExceededError"}


@pytest.mark.fault(30)
@pytest.mark.parametrize(("pushed", "retryable"), [("true", True), ("false", False), (" True", True), ("FALSE", False)])
@pytest.mark.parametrize("status", [400, 429, 500, 501])
def test_x_should_retry_is_obeyed(status: int, pushed: str, retryable: bool) -> None:
    assert answer(status, x_should_retry=pushed).retryable is retryable


@pytest.mark.fault(30)
def test_x_should_retry_revives_neither_an_empty_account_nor_an_oversized_request() -> None:
    assert not answer(429, error(code="insufficient_quota"), x_should_retry="true").retryable
    assert not answer(429, error(message="Request too large"), x_should_retry="true").retryable
    assert answer(500, x_should_retry="maybe").retryable


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": "plain"}, "plain"), ({"message": "top"}, "top"), ({"detail": "fastapi"}, "fastapi"),
        ({"error": {"message": 5}}, "5"), ({"error": {}}, '{"error": {}}'), ({}, "{}"), (b"", "no message"),
        (b"<h1>\nBad\x00 gateway</h1>", "<h1> Bad  gateway</h1>"), (b"\xff\xfe", "\ufffd\ufffd"),
        ({"error": None, "message": None}, '{"error": null, "message": null}'), ([{"error": 1}], '[{"error": 1}]'),
    ],
)  # fmt: skip
def test_bodies_of_every_shape_give_a_message(body: Any, message: str) -> None:
    assert answer(500, body).message == f"500 from the provider: {message}"


def test_flat_error_bodies_keep_type_code_and_param() -> None:
    """vLLM and Mistral put the fields beside the message."""
    found = answer(429, {"object": "error", "message": "m", "type": "t", "code": "insufficient_quota", "param": "p"})
    assert type(found) is QuotaExceededError and (found.type, found.param) == ("t", "p")


@given(status=st.integers(100, 999), body=st.binary(max_size=400) | st.text().map(str.encode))
def test_any_answer_at_all_gives_one_error_with_a_short_printable_message(status: int, body: bytes) -> None:
    found = answer(status, body)
    assert found.message.isprintable() and len(found.message.encode()) < 240


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["violations", "quotaId", "x"]), inner),
)


@given(
    fields=st.dictionaries(st.sampled_from(["message", "type", "code", "param", "details", "metadata"]), json_values)
)
def test_error_objects_with_odd_values_never_raise(fields: dict[str, Any]) -> None:
    assert isinstance(answer(429, {"error": fields}), APIStatusError)


@pytest.mark.parametrize(
    "secret",
    ["sk-proj-abcDEF0123456789", "AIzaSyA0123456789abcdef", "Bearer eyJhbGciOi.x.y12345", "gsk_0123456789abcdef"],
)
def test_a_key_that_the_provider_quotes_is_cut_out(secret: str) -> None:
    for body in (error(message=f"Incorrect key {secret}."), f"bad {secret}".encode(), error(code=secret, param=secret)):
        found = answer(401, body)
        assert secret not in str(found) + repr(found) + json.dumps(found.to_dict()) and "***" in str(found.to_dict())
    long = "x" * 190 + " " + secret
    assert secret[:12] not in snippet(long.encode())


def test_the_text_names_attempts_endpoint_and_request() -> None:
    found = answer(500, error(message="boom"), x_request_id="req_1")
    assert str(found) == "500 from the provider: boom (request req_1)"
    found.attempts, found.endpoint = 3, "openai"
    assert str(found) == "500 from the provider: boom (3 attempts, openai, request req_1)"
    assert str(LLMError("plain")) == "plain"
    assert answer(500, request_id="anthropic").request_id == "anthropic"


def test_an_error_as_json_has_class_code_and_reaction() -> None:
    found = answer(400, error(message="no", code="unsupported_value", param="top_k")).to_dict()
    assert found == {
        "class": "UnsupportedParameterError", "code": "unsupported_value", "message": "400 from the provider: no",
        "param": "top_k", "status_code": 400, "request_id": None, "attempts": 0, "retryable": False,
    }  # fmt: skip
    assert answer(503).to_dict()["code"] == "overloaded_error"


def test_the_tree_lets_callers_catch_by_builtin_and_by_axis() -> None:
    assert issubclass(errors.ConfigError, ValueError) and issubclass(errors.MissingExtra, ImportError)
    assert issubclass(errors.APITimeoutError, TimeoutError) and issubclass(errors.DeadlineExceededError, TimeoutError)
    assert issubclass(QuotaExceededError, RateLimitError) and issubclass(OverloadedError, InternalServerError)
    assert errors.APIConnectionError("x").retryable and not errors.StoppedError("x").retryable
    assert errors.ProtocolError("x", retryable=False).retryable is False


def test_errors_survive_pickling() -> None:
    found = answer(429, error(code="rate_limit_exceeded"), x_request_id="r")
    found.attempts = 4
    again = pickle.loads(pickle.dumps(found))  # noqa: S301  # what a process pool does
    assert type(again) is RateLimitError and again.to_dict() == found.to_dict() and str(again) == str(found)


def test_names_become_snake_case() -> None:
    assert [snake(n) for n in ("RateLimitError", "APIStatusError", "LLMError", "X")] == [
        "rate_limit_error", "api_status_error", "llm_error", "x",
    ]  # fmt: skip


def test_no_error_object_is_none() -> None:
    assert parse_error_body(b'{"choices": []}') is None and parse_error_body(b"not json") is None


@pytest.mark.parametrize(
    ("code", "status"), [(429, 429), ("404", 404), (None, 500), ("x", 500), (200, 500), (True, 500)]
)
def test_an_errors_own_code_is_its_status_where_it_is_one(code: Any, status: int) -> None:
    body = parse_error_body(json.dumps(error(code=code)).encode())
    assert body is not None and body.status_code() == status
