"""Tool calls in streams, as servers really send them: side by side, without an index, all with the same one, without
arguments. Each dialect's own reader must find the same calls in what is written for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.anthropic_reverse import EventEncoder
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.gemini_reverse import AnswerEncoder
from fastllm.providers.sse import written
from fastllm.types import Chunk, Request

ASKED = Request.of({"model": "m", "messages": [], "stream": True})


def chunk(reason: str | None = None, **delta: Any) -> Chunk:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return Chunk(data=json.dumps({"id": "x", "model": "m", "choices": [choice]}).encode())


def piece(index: int | None, name: str | None = None, arguments: str | None = None, **more: Any) -> Chunk:
    function = {"name": name, "arguments": arguments}
    call = {"index": index, "function": {k: v for k, v in function.items() if v is not None}, **more}
    return chunk(tool_calls=[{k: v for k, v in call.items() if v is not None}])


def as_messages(chunks: Iterable[Chunk]) -> list[dict[str, Any]]:
    """Write the chunks as a Messages stream, and see that one block ends before the next begins."""
    encoder = EventEncoder("m")
    events = [event for one in [*chunks, chunk("tool_calls")] for event in encoder.add(one)] + encoder.end()
    found, live = [json.loads(event.data) for event in events], None
    for event in found:
        if event["type"] == "content_block_start":
            assert live is None
            live = event["index"]
        elif event["type"] == "content_block_stop":
            assert live == event["index"]
            live = None
        elif event["type"] == "content_block_delta":
            assert live == event["index"]
    assert live is None and [e["type"] for e in found[-2:]] == ["message_delta", "message_stop"]
    decoder = AnthropicProvider().decoder(ASKED)
    decoder.feed(b"".join(written(event.event, event.data) for event in events))
    decoder.finish()
    return calls_of(decoder.response().to_dict())


def as_gemini(chunks: Iterable[Chunk]) -> list[dict[str, Any]]:
    encoder = AnswerEncoder("m")
    decoder = GeminiProvider().decoder(ASKED)
    decoder.feed(b"".join(encoder.add(one) for one in [*chunks, chunk("tool_calls")]))
    decoder.finish()
    return calls_of(decoder.response().to_dict())


def calls_of(completion: dict[str, Any]) -> list[dict[str, Any]]:
    calls = completion["choices"][0]["message"].get("tool_calls") or []
    return [
        {"id": c["id"], "name": c["function"]["name"], "args": json.loads(c["function"]["arguments"])} for c in calls
    ]


TWO = [{"id": "a", "name": "f", "args": {"x": 1}}, {"id": "b", "name": "g", "args": {"y": 2}}]
STREAMS = {
    "one after the other": [
        piece(0, "f", "", id="a"), piece(0, None, '{"x"'), piece(0, None, ":1}"), piece(1, "g", '{"y":2}', id="b"),
    ],
    "side by side": [
        piece(0, "f", "", id="a"), piece(1, "g", "", id="b"), piece(0, None, '{"x":'), piece(1, None, '{"y":'),
        piece(0, None, "1}"), piece(1, None, "2}"),
    ],
    "without an index": [
        piece(None, "f", "", id="a"), piece(None, None, '{"x":1}'), piece(None, "g", '{"y":', id="b"),
        piece(None, None, "2}"),
    ],
    "all with the same index": [piece(0, "f", '{"x":1}', id="a"), piece(0, "g", '{"y":2}', id="b")],
    "with text before": [
        chunk(content="Let me see."), piece(0, "f", '{"x":1}', id="a"), piece(1, "g", '{"y":2}', id="b"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("how", STREAMS)
@pytest.mark.parametrize("write", [as_messages, as_gemini])
def test_calls_arrive_whole_however_they_are_streamed(how: str, write: Any) -> None:
    assert write(STREAMS[how]) == TWO


def test_text_after_calls_has_a_block_of_its_own() -> None:
    assert as_messages([*STREAMS["side by side"], chunk(content="Done.")]) == TWO


@given(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=40), st.integers(1, 3))
def test_any_interleaving_is_written_block_by_block(order: list[int], size: int) -> None:
    texts = [json.dumps({"n": n, "text": "x" * n}) for n in range(3)]
    chunks = [piece(n, f"f{n}", "", id=f"id{n}") for n in sorted(set(order), key=order.index)]
    at = dict.fromkeys(range(3), 0)
    for n in order:
        chunks.append(piece(n, None, texts[n][at[n] : at[n] + size]))
        at[n] += size
    chunks += [piece(n, None, texts[n][at[n] :]) for n in set(order)]
    wanted = [
        {"id": f"id{n}", "name": f"f{n}", "args": json.loads(texts[n])} for n in sorted(set(order), key=order.index)
    ]
    assert as_messages(chunks) == wanted
    assert sorted(as_gemini(chunks), key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize(("given_", "arguments"), [({}, "{}"), ({"tz": "utc"}, '{"tz":"utc"}')])
def test_arguments_of_which_no_piece_comes_are_told_to_readers_of_chat(given_: Any, arguments: str) -> None:
    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    decoder = AnthropicProvider().decoder(ASKED)
    block = {"type": "tool_use", "id": "t", "name": "now", "input": given_}
    chunks = decoder.feed(
        event("message_start", message={"id": "m", "content": [], "usage": {"input_tokens": 1, "output_tokens": 1}})
        + event("content_block_start", index=0, content_block=block)
        + event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": ""})
        + event("content_block_stop", index=0)
        + event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 5})
        + event("message_stop")
    )
    told = [call for one in chunks for choice in one.choices for call in choice.delta.tool_calls or ()]
    assert "".join(call.function.arguments or "" for call in told if call.function) == arguments
    assert calls_of(decoder.response().to_dict())[0]["args"] == given_
