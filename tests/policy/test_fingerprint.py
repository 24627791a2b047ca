"""policy/fingerprint: equal requests have one key, and whatever could change the answer gives another."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from fastllm.errors import ConfigError, InvalidRequestError
from fastllm.policy.fingerprint import SECRET_PARAMETERS, canonical, canonical_url, fingerprint, scope
from fastllm.types import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES, Headers, Request

BODY: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": 'Grüße, "Welt" \\ \u2028'}]},
    ],
    "temperature": 0.2,
    "max_tokens": 200,
    "seed": 7,
    "n": 1,
    "stop": ["\n"],
    "logit_bias": {"50256": -100},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"minimum": 1}}}],
    "service_tier": "flex",
    "provider": {"order": ["a", "b"]},
}
TRANSPORT = {
    "stream": True,
    "stream_options": {"include_usage": True, 'odd"key': '"'},
    "user": 'a "user"',
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "metadata": {"row": "1"},
    "store": False,
}
text = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=12,
)


def key(body: Any = BODY, model: str = "", **more: Any) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return fingerprint(canonical(Request(body=raw, **more), model))


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for name, item in inside for path in paths(item, (*at, name)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = copy.copy(value)
    copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


@pytest.mark.fault("key-of-the-messages", "key-without-parameters")
@pytest.mark.parametrize("path", paths(BODY)[1:], ids=str)
def test_any_semantic_field_changed_or_left_out_gives_another_key(path: tuple[Any, ...]) -> None:
    assert key(changed(BODY, path, "something else")) != key()
    assert key(changed(BODY, path, None)) != key()
    shorter = copy.deepcopy(BODY)
    parent: Any = shorter
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]
    assert key(shorter) != key()


def test_the_order_of_a_list_counts() -> None:
    assert key({**BODY, "messages": BODY["messages"][::-1]}) != key()


@given(values, values)
def test_two_bodies_share_a_key_exactly_if_their_json_values_are_the_same(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key({"x": one}) == key({"x": other})) == same


@pytest.mark.fault("key-by-order")
@given(st.dictionaries(text, values, max_size=5), st.randoms(use_true_random=False), st.booleans())
def test_key_order_white_space_escapes_and_transport_fields_do_not_matter(
    body: dict[str, Any], rng: random.Random, ascii_only: bool
) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, list):
            return [shuffled(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {name: shuffled(value[name]) for name in rng.sample(list(value), len(value))}

    body = {name: value for name, value in body.items() if name not in TRANSPORT}
    other = shuffled({**body, **{name: TRANSPORT[name] for name in rng.sample(list(TRANSPORT), 3)}})
    loose = json.dumps(other, indent=rng.choice([None, 3]), ensure_ascii=ascii_only).encode()
    assert key(loose) == key(msgspec.json.encode(body))
    if b"\\\\" not in loose:
        assert key(loose.replace(b'\\"', b"\\u0022")) == key(loose)


@pytest.mark.parametrize("field", TRANSPORT)
def test_a_transport_field_does_not_matter_but_what_a_responses_answer_quotes_does(field: str) -> None:
    for path in (CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS):
        assert key({**BODY, field: TRANSPORT[field]}, path=path) == key(path=path)
    assert (key({**BODY, field: TRANSPORT[field]}, path=RESPONSES) == key(path=RESPONSES)) == field.startswith("stream")


def test_a_transport_fields_name_counts_anywhere_but_at_the_top() -> None:
    assert key({"messages": [{"user": "a"}]}) != key({"messages": [{"user": "b"}]})


def test_operation_sample_namespace_model_and_version_headers_count_and_other_headers_do_not() -> None:
    found = {
        key(), key(path=RESPONSES), key(sample=1), key(namespace="a"), key(namespace="b"), key(model="gpt-4o"),
        key(headers=Headers({"Anthropic-Beta": "x"})), key(headers=Headers({"anthropic-beta": "y"})),
        key(headers=Headers({"anthropic-version": "x"})), key(headers=Headers({"OpenAI-Beta": "x"})),
    }  # fmt: skip
    assert len(found) == 10
    assert key(headers=Headers({"authorization": "Bearer sk-1", "x-request-id": "2", "cookie": "c"})) == key()
    request = Request(body=b"{}", priority=1, custom_id="c", timeout=3.0, stream=True)
    assert canonical(request) == canonical(Request(body=b"{}"))


def test_the_wire_model_takes_the_place_of_the_bodys() -> None:
    assert key({**BODY, "model": "openai/gpt-4o-mini"}, "gpt-4o-mini") == key() == key(model="gpt-4o-mini")
    without = {name: value for name, value in BODY.items() if name != "model"}
    assert key(without, "gpt-4o-mini") == key() != key(without)
    assert key({**BODY, "model": 'odd"name'}, 'an"other"') == key({**BODY, "model": 'an"other"'})
    assert key({**BODY, "model": None}, "gpt-4o-mini") == key()


def test_one_is_not_one_point_zero_and_large_numbers_keep_every_digit() -> None:
    assert len({key({"x": x}) for x in (1, 1.0, True, "1", 2**70, 2**70 + 1, -(2**70), 0.0, -0.0, None)}) == 10
    assert key(b'{"x":1e2}') == key(b'{"x":100.0}')


def test_texts_are_not_normalised() -> None:
    assert key({"x": "\u00e9"}) != key({"x": "e\u0301"}) and key({"x": "a "}) != key({"x": "a"})


def test_a_key_given_twice_makes_a_body_only_like_itself() -> None:
    """Readers differ on which of the two counts, so no other body may share its answer."""
    twice = [
        b'{"x":1,"x":2}', b'{"x":2,"x":1}', b'{"x":2}', b'{"x":1}', b'{"x":1, "x":2}',
        b'{"y":[{"x":1,"x":2}]}', b'{"y":[{"x":2}]}',
        b'{"user":"a","user":"b","x":2}', b'{"stream":true,"stream":false,"x":2}',
        b'{"z":"\\u0022\\u0022","x":1,"x":2}', b'{"z":"\\u0022\\u0022","x":2}', b'{"\\u0078":1,"x":2}',
    ]  # fmt: skip
    assert len({key(raw) for raw in twice}) == len(twice)
    assert key(twice[0], "m") != key(twice[0])
    assert key(b'{"z":"\\u0022\\u0022","x":2}') == key({"x": 2, "z": '""'})


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", 'q"', "\u00e9"]), st.sampled_from(["1", '"\\u0022"', '"\\""'])), max_size=4
    )
)
def test_repeated_keys_are_always_seen(pairs: list[tuple[str, str]]) -> None:
    raw = "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in pairs) + "}"
    repeats = len({name for name, _ in pairs}) != len(pairs)
    as_it_stands = msgspec.json.decode(canonical(Request(body=raw.encode())))["body"] == raw
    assert as_it_stands == repeats


def test_an_integer_of_very_many_digits_is_refused_where_it_cannot_be_compared() -> None:
    digits = b"1" * 5000
    with pytest.raises(InvalidRequestError):
        canonical(Request(body=b'{"a":"\\u0022","x":' + digits + b"}"))


def test_numbers_beyond_every_float_make_a_body_only_like_itself() -> None:
    assert key(b'{"x":1e400}') == key(b'{"x":1e400}') != key(b'{"x":1e401}')


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b"1", b"null", b'{"x":NaN}', b'{"x":Infinity}', b'{"x":"\xff"}', b'{"x":"\\ud800"}x',
            b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
    ids=lambda raw: raw[:12].decode("latin-1"),
)  # fmt: skip
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not a valid JSON object"):
        canonical(Request(body=raw))


@pytest.mark.fault("key-of-64-bits")
def test_a_fingerprint_is_32_bytes_and_stays_what_it_is() -> None:
    """A change here makes every cache on every disk miss: raise VERSION and know it."""
    text = canonical(Request(body=b'{"b": [1, 2.5], "a": "x", "stream": true}'), "m")
    assert text == b'{"body":{"a":"x","b":[1,2.5],"model":"m"},"path":"/chat/completions","sample":0,"v":2}'
    assert len(fingerprint(text)) == 32 and canonical(Request(body=b"{}")) == (
        b'{"body":{},"path":"/chat/completions","sample":0,"v":2}'
    )


@pytest.mark.fault("key-without-parameters")
def test_scope_keeps_dialects_addresses_versions_and_namespaces_apart() -> None:
    none = Headers()
    found = [
        scope("openai", "https://a/v1", none), scope("anthropic", "https://a/v1", none),
        scope("openai", "https://b/v1", none), scope("openai", "https://a/v2", none),
        scope("openai", "http://a/v1", none), scope("openai", "https://a:8443/v1", none),
        scope("openai", "https://a/v1?api-version=1", none), scope("openai", "https://a/v1?api-version=2", none),
        scope("openai", "https://a/v1", Headers({"openai-beta": "x"})), scope("openai", "https://a/v1", none, "n"),
        scope("openai", "https://a/V1", none),
    ]  # fmt: skip
    assert len(set(found)) == len(found) and {len(s) for s in found} == {16}


def test_scope_knows_no_key_no_cookie_and_not_who_pays() -> None:
    secrets = {"Authorization": "Bearer sk-1", "x-api-key": "k", "cookie": "c", "openai-organization": "o"}
    plain = scope("openai", "https://a/v1", Headers())
    assert scope("openai", "https://a/v1", Headers(secrets)) == plain
    assert scope("openai", "https://user:pass@a/v1", Headers()) == plain
    for name in SECRET_PARAMETERS:
        assert scope("openai", f"https://a/v1?{name}=sk-1", Headers()) == plain


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTPS://API.Example.com:443/v1/", "https://api.example.com/v1"),
        ("http://a:80", "http://a/"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1/"),
        ("https://a/v1?x=1#part", "https://a/v1?x=1"),
    ],
)
def test_spellings_of_one_address_are_one(one: str, other: str) -> None:
    assert canonical_url(one) == canonical_url(other)


@pytest.mark.parametrize("url", ["http://a:99999", "http://[::1", "http://a:b/"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        canonical_url(url)
