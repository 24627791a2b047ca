"""policy/parameters: what refusals teach, in the vendors' own words, and that it always ends."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, strategies as st

from fastllm.errors import APIStatusError, classify
from fastllm.policy.parameters import DROPPABLE, RENAMED, Parameters
from fastllm.types import Request

NOTHING: dict[str, str | None] = {}


def refused(message: str, *, status: int = 400, **more: object) -> APIStatusError:
    body = msgspec.json.encode({"error": {"message": message, **more}})
    return classify(status, lambda name: None, body)


def asked(**fields: object) -> Request:
    return Request.of({"model": "m", "messages": [], **fields})


@pytest.mark.parametrize(
    ("message", "more", "rules"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            {"code": "unsupported_parameter", "param": "max_tokens"},
            {"max_tokens": "max_completion_tokens"},
        ),
        (
            "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) is supported.",
            {"code": "unsupported_value", "param": "temperature"},
            {"temperature": None},
        ),
        ("temperature: Extra inputs are not permitted", {"type": "invalid_request_error"}, {"temperature": None}),
        ("`top_p` is deprecated for this model.", {}, {"top_p": None}),
        ("property 'seed' is unsupported", {}, {"seed": None}),
        ("Unrecognized request argument supplied: seed", {}, {"seed": None}),
        ("Unrecognized request arguments supplied: seed, top_p", {}, {"seed": None}),  # the other one with the next
        ("seed: Extra inputs are not permitted, top_p: Extra inputs are not permitted", {}, {"seed": None}),
        ("'temperature' is not supported with this model; use another model.", {}, {"temperature": None}),
        (
            "Unsupported value: 'top_p' does not support 1 with this model. Only the default (0.9) value is supported.",
            {},
            {"top_p": None},
        ),
        # What the caller wants stays the caller's business.
        ("Unsupported parameter: 'tools' is not supported with this model.", {}, NOTHING),
        ("Unsupported parameter: 'n' is not supported with this model.", {"param": "n"}, NOTHING),
        ("Unsupported parameter: 'logprobs' is not supported", {"param": "logprobs"}, NOTHING),  # nobody sent it
        ("`temperature` and `top_p` cannot both be specified for this model.", {}, NOTHING),
        ("messages: text content blocks must be non-empty", {}, NOTHING),
        # One value, or a combination, is no parameter.
        (
            "Unsupported value: 'temperature' does not support 0.2 with this model. Supported values are: 1 and 2.",
            {"code": "unsupported_value", "param": "temperature"},
            NOTHING,
        ),
        ("Unsupported value: 'seed' does not support 1 with this model.", {"code": "unsupported_value"}, NOTHING),
        ("'temperature' does not support 0.2 with this model.", {}, NOTHING),
        ("0.2 is not supported here.", {"code": "unsupported_value", "param": "temperature"}, NOTHING),
        ("Function tools with temperature are not supported for gpt-5.4 in /v1/chat/completions.", {}, NOTHING),
        (
            "Unsupported parameter: 'temperature' is not supported with reasoning_effort 'high'; set it to none.",
            {"code": "unsupported_parameter", "param": "temperature"},
            NOTHING,
        ),
        ("This is not supported with tools.", {"code": "unsupported_parameter", "param": "seed"}, NOTHING),
        ("`top_p` must be unset when thinking is enabled.", {}, NOTHING),
        ("`seed` cannot be used together with top_p.", {}, NOTHING),
        ("temperature is not supported with reasoning effort", {}, NOTHING),
        ("With max_tokens, seed is not supported", {}, NOTHING),
        ("max_tokens is too large: 99999. This model supports at most 4096 tokens.", {}, NOTHING),
        ("Unsupported parameter: 'max_tokens'. Use 'temperature' instead.", {}, NOTHING),
    ],
)
def test_what_a_refusal_teaches(message: str, more: dict[str, object], rules: dict[str, str | None]) -> None:
    request = asked(max_tokens=5, temperature=0.2, top_p=1, seed=1, n=2, tools=[])
    parameters = Parameters()
    learnt = parameters.learn(request, refused(message, **more))
    assert (learnt is not None) is bool(rules)
    assert parameters.rules == rules
    body = msgspec.json.decode(parameters.applied(request).body)
    for name, new in rules.items():
        assert name not in body
        if new is not None:
            assert body[new] == 5
    assert "messages" in body and body["tools"] == []


def test_other_errors_teach_nothing() -> None:
    parameters = Parameters()
    for status in (401, 403, 404, 429, 500):
        error = refused("temperature is not supported", status=status)
        assert parameters.learn(asked(temperature=1), error) is None
    assert parameters.learn(asked(temperature=1), refused("temperature is not supported", status=422))
    assert parameters.rules == {"temperature": None}


def test_requests_without_the_parameter_go_out_byte_for_byte() -> None:
    parameters = Parameters()
    parameters.learn(asked(seed=1), refused("seed is not supported"))
    for request in (asked(), asked(note='a "seed" of doubt'), asked(note="\x01 is an escape")):
        assert parameters.applied(request) is request


def test_a_parameter_whose_name_is_written_with_escapes_is_left_out_too() -> None:
    parameters = Parameters()
    body = b'{"model":"m","messages":[],"\\u0074emperature":1,"see\\u0064":2}'
    request = Request(path="/v1/chat/completions", body=body, model="m")
    assert parameters.learn(request, refused("'temperature' is not supported with this model"))
    assert msgspec.json.decode(parameters.applied(request).body) == {"model": "m", "messages": [], "seed": 2}


def test_a_second_request_hears_that_the_rule_is_known() -> None:
    parameters = Parameters()
    error = refused("seed is not supported")
    assert parameters.learn(asked(seed=1), error) == "seed is not supported there and left out"
    assert parameters.learn(asked(seed=1), error) == ""


def test_a_value_under_both_names_is_kept_as_the_new_one_says() -> None:
    parameters = Parameters()
    parameters.learn(asked(max_tokens=5), refused("max_tokens is not supported. Use 'max_completion_tokens' instead."))
    body = msgspec.json.decode(parameters.applied(asked(max_tokens=5, max_completion_tokens=7)).body)
    assert body["max_completion_tokens"] == 7 and "max_tokens" not in body


@given(st.data())
def test_however_a_server_contradicts_itself_it_comes_to_an_end(data: st.DataObject) -> None:
    names = sorted(DROPPABLE | RENAMED.keys())
    request = asked(**dict.fromkeys(names, 1))
    parameters = Parameters()
    for _ in range(2 * len(names) + 2):
        sent = parameters.applied(request)
        left = sorted(msgspec.json.decode(sent.body))
        name, other = data.draw(st.sampled_from(left)), data.draw(st.sampled_from(names))
        learnt = parameters.learn(sent, refused(f"'{name}' is not supported. Use '{other}' instead."))
        if learnt is None:
            return
    pytest.fail(f"it goes round in circles: {parameters}")
