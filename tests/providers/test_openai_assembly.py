"""providers/openai streams: how chunks become the whole answer (FAULTS 46)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastllm.errors import ProtocolError
from fastllm.types import RESPONSES
from kits.streams import DONE, PROVIDER, STOP, event, piece, read, request, without_nulls


def call(index: int | None = None, id: str | None = None, name: str | None = None, arguments: Any = None) -> bytes:
    found = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return piece(tool_calls=[without_nulls(found)])


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    "pieces",
    [
        [call(0, "a", "f", ""), call(0, None, None, '{"x"'), call(0, None, None, ":1}"), call(1, "b", "g", "{}")],
        # Gaps and disorder.
        [call(7, "b", "g", "{"), call(3, "a", "f", '{"x"'), call(7, None, None, "}"), call(3, None, None, ":1}")],
        # The name and the id with every piece.
        [call(0, "a", "f", '{"x"'), call(0, "a", "f", ":1}"), call(1, "b", "g", "{}"), call(1, "b", "g", "")],
        # A new id with every piece, as an old vLLM did.
        [call(0, "a", "f", ""), call(0, "zz", None, '{"x":1}'), call(1, "b", "g", "{}")],
        # No index at all: whole calls, or pieces that follow their call.
        [call(None, "a", "f", '{"x":1}'), call(None, "b", "g", "{}")],
        [call(None, "a", "f", '{"x"'), call(None, None, None, ":1}"), call(None, "b", "g", "{}")],
        # One index for all.
        [call(0, "a", "f", '{"x":1}'), call(0, "b", "g", "{}")],
        # Arguments as an object.
        [call(0, "a", "f", {"x": 1}), call(1, "b", "g", {})],
    ],
)
def test_tool_calls_are_put_together_by_index(pieces: list[bytes]) -> None:
    """FAULTS 46."""
    _, response = read(*pieces, piece("tool_calls"), DONE)
    calls = response.choices[0].message.tool_calls or []
    found = [(c.id, c.function and c.function.name, c.function and c.function.arguments) for c in calls]
    assert found == [("a", "f", '{"x":1}'), ("b", "g", "{}")]
    assert response.finish_reason == "tool_calls"


def test_every_kind_of_delta_is_kept() -> None:
    _, response = read(
        piece(role="assistant", content=None, reasoning="h", refusal="n"),
        piece(reasoning="m", refusal="o", annotations=[{"url": 1}], function_call={"name": "f", "arguments": "{"}),
        piece(function_call={"arguments": "}"}, annotations=[{"url": 2}], audio={"id": "a", "data": "x"}),
        piece(audio={"data": "y", "expires_at": 1}, content=[{"type": "text", "text": "t"}]),
        STOP,
    )
    message = msgspec.json.decode(response.body)["choices"][0]["message"]
    assert message == {
        "role": "assistant", "content": [{"type": "text", "text": "t"}], "reasoning": "hm", "refusal": "no",
        "annotations": [{"url": 1}, {"url": 2}], "function_call": {"name": "f", "arguments": "{}"},
        "audio": {"id": "a", "data": "xy", "expires_at": 1},
    }  # fmt: skip


def said(*pieces: bytes, reason: str = "stop") -> dict[str, Any]:
    _, response = read(*pieces, piece(reason), DONE)
    found: dict[str, Any] = msgspec.json.decode(response.body)["choices"][0]["message"]
    return found


def test_a_signature_stays_with_its_tool_call() -> None:
    """As Google's OpenAI-compatible endpoint gives it, and OpenAI's custom tools."""
    google = {"google": {"thought_signature": "SIGNED"}}
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    custom = {"index": 1, "id": "b", "type": "custom", "custom": {"name": "sql", "input": "SEL"}}
    pieces = [
        piece(tool_calls=[{**first, "extra_content": google}]),
        piece(tool_calls=[custom]),
        piece(tool_calls=[{"index": 1, "custom": {"input": "ECT 1"}, "extra_content": google}]),
        piece(tool_calls=[{"index": 0, "extra_content": google, "odd": {"a": "x"}}]),
        piece(tool_calls=[{"index": 0, "odd": {"a": "y"}}]),
    ]
    assert said(*pieces, reason="tool_calls")["tool_calls"] == [
        {"id": "a", "type": "function", "function": first["function"], "extra_content": google, "odd": {"a": "xy"}},
        {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}, "extra_content": google},
    ]


def test_reasoning_details_are_put_together_by_index_and_type() -> None:
    """OpenRouter gives blocks of different types the same index; a signature comes without text, after it."""
    pieces = [
        piece(content="", reasoning="Le", reasoning_details=[{"type": "reasoning.text", "text": "Le", "index": 0}]),
        piece(content="", reasoning="t", reasoning_details=[{"type": "reasoning.text", "text": "t", "index": 0}]),
        piece(reasoning_details=[{"type": "reasoning.text", "signature": "SIGNED", "index": 0, "id": None}]),
        piece(reasoning_details=[{"type": "reasoning.encrypted", "data": "A", "index": 0}]),
        piece(reasoning_details=[{"type": "reasoning.encrypted", "data": "B", "index": 0}]),
        piece(content="x", reasoning_details=[]),
    ]
    assert said(*pieces) == {
        "role": "assistant",
        "content": "x",
        "reasoning": "Let",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "Let", "index": 0, "signature": "SIGNED"},
            {"type": "reasoning.encrypted", "data": "A", "index": 0},
            {"type": "reasoning.encrypted", "data": "B", "index": 0},
        ],
    }


def test_fields_that_nobody_knows_are_put_together() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    pieces = [
        piece(content="x", images=[image], new_text="a", new_list=[1], new={"n": 1, "text": "c", "id": "i"}),
        piece(content="y", images=[image], new_text="b", new_list=[{"b": 2}], new={"n": 2, "text": "d", "id": "i"}),
        piece(new_text=None, new_flag=True, new_list=None, new={"more": [{"index": 1, "t": "p"}]}),
        piece(new={"more": [{"index": 0, "t": "o"}, {"index": 1, "t": "q"}]}),
    ]
    assert said(*pieces) == {
        "role": "assistant",
        "content": "xy",
        "images": [image, image],
        "new_text": "ab",
        "new_list": [1, {"b": 2}],
        "new_flag": True,
        "new": {"n": 2, "text": "cd", "id": "i", "more": [{"index": 1, "t": "pq"}, {"index": 0, "t": "o"}]},
    }


def test_each_choice_has_its_own_and_a_changing_type_costs_only_itself() -> None:
    both = {"choices": [{"index": i, "delta": {"content": "x", "new": f"{i}"}} for i in (1, 0)]}
    _, response = read(event(both), event(both), piece("stop"), piece("stop", 1))
    assert [c["message"]["new"] for c in response.to_dict()["choices"]] == ["00", "11"]
    pieces = [piece(new="a", content="x"), piece(new=["b"]), piece(new={"c": "d"}), piece(new=5)]
    for count, expected in ((1, "a"), (2, ["b"]), (3, {"c": "d"}), (4, 5)):
        assert said(*pieces[:count])["new"] == expected


def test_what_is_nested_deeply_is_kept_or_an_error() -> None:
    for depth in (5, 30, 300, 900, 100_000):
        deep = b"[" * depth + b"]" * depth
        data = event(b'{"choices":[{"index":0,"delta":{"content":"x","new":%b}}]}' % deep)
        try:
            assert said(data, data)["content"] == "xx"
        except ProtocolError:
            assert depth > 100


def test_many_pieces_of_an_unknown_field_are_joined_in_linear_time() -> None:
    decoder = PROVIDER.decoder(request())
    data = piece(new="0123456789", deep={"a": "0123456789"}) * 1000
    for _ in range(50):
        decoder.feed(data)
    decoder.feed(piece("stop", content="x"))
    message = decoder.response().to_dict()["choices"][0]["message"]
    assert len(message["new"]) == len(message["deep"]["a"]) == 500_000


def test_logprobs_are_laid_end_to_end() -> None:
    def with_logprobs(token: str, **more: Any) -> bytes:
        found = {"content": [{"token": token}], "refusal": None}
        return event({"choices": [{"index": 0, "delta": {"content": token}, "logprobs": found, **more}]})

    _, response = read(with_logprobs("a"), with_logprobs("b", finish_reason="stop"))
    assert response.choices[0].logprobs == {"content": [{"token": "a"}, {"token": "b"}]}


def test_the_frame_comes_from_the_first_choice_and_the_usage_from_the_last_that_has_one() -> None:
    first = event({"id": "", "model": "", "choices": [], "prompt_filter_results": []})  # Azure
    named = {"id": "x", "created": 5, "model": "m", "service_tier": "flex", "object": "chat.completion.chunk"}
    second = event({**named, "choices": [{"index": 0, "delta": {"content": "hi"}}], "usage": {"prompt_tokens": 1}})
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "cost": 0.5}
    last = event({"id": "y", "choices": [], "usage": usage})
    _, response = read(first, second, STOP, last, event({"id": "z", "choices": [], "usage": {}}))
    fields = msgspec.json.decode(response.body)
    assert fields["usage"] == usage
    assert (fields["id"], fields["service_tier"], fields["object"]) == ("x", "flex", "chat.completion")
    assert response.usage is not None and response.usage.total_tokens == 5


def test_a_field_of_an_odd_type_costs_only_itself() -> None:
    odd = event({"created": [], "choices": [{"index": 0, "delta": {"content": "hi", "tool_calls": 5, "role": 7}}]})
    end = event({"choices": [{"index": 0.0, "delta": None, "finish_reason": "stop"}, None]})
    _, response = read(odd, end)
    assert (response.text, response.finish_reason) == ("hi", "stop")


def test_the_text_of_a_response_comes_from_its_deltas_where_the_end_has_none() -> None:
    delta = event({"type": "response.output_text.delta", "delta": "hi"})
    done = {"id": "r", "status": "completed", "output": [], "usage": {"input_tokens": 2, "output_tokens": 1}}
    _, response = read(delta, event({"type": "response.completed", "response": done}), path=RESPONSES)
    assert (response.text, response.finish_reason) == ("hi", "stop")
    assert response.usage is not None and response.usage.total_tokens == 3


def test_a_filtered_response_stream_says_so() -> None:
    found = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []}
    _, response = read(event({"type": "response.incomplete", "response": found}), path=RESPONSES)
    assert response.finish_reason == "content_filter"


def test_half_a_response_shows_its_text() -> None:
    decoder = PROVIDER.decoder(request(RESPONSES))
    decoder.feed(event({"type": "response.output_text.delta", "delta": "par"}))
    assert decoder.response().text == "par" and decoder.response().finish_reason is None
    assert "reading" in repr(decoder)


@pytest.mark.parametrize("kind", ["response.completed", "response.failed"])
def test_a_number_that_is_out_of_range_in_the_last_event_is_a_protocol_error(kind: str) -> None:
    end = b'{"type":"%b","response":{"id":"r","output":[],"usage":{"input_tokens":1e999}}}' % kind.encode()
    with pytest.raises(ProtocolError, match="out of range"):
        read(event(end), path=RESPONSES)
