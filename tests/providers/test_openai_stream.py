"""providers/openai streams: terminators, errors inside, replay (FAULTS 40-46)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from fastllm import errors as e
from fastllm.providers import openai_stream
from fastllm.types import CHAT, COMPLETIONS, RESPONSES, HTTPResponse, Request, Response
from kits.streams import DONE, PROVIDER, STOP, event, piece, read, read_for, request, without_nulls

GOLDEN = Path(__file__).parent / "golden" / "openai"
STREAMS = sorted(path.name.split(".")[0] for path in GOLDEN.glob("*.stream.sse"))
PATHS = {"completion": COMPLETIONS, "responses": RESPONSES}


def golden(name: str) -> tuple[Request, bytes, dict[str, Any]]:
    path = PATHS.get(name.split("_")[0], CHAT)
    asked = Request.from_body((GOLDEN / f"{name}.request.json").read_bytes(), path=path)
    stream = (GOLDEN / f"{name}.stream.sse").read_bytes()
    return asked, stream, msgspec.json.decode((GOLDEN / f"{name}.response.json").read_bytes())


# Golden streams


@pytest.mark.parametrize("name", STREAMS)
def test_a_golden_stream_gives_the_whole_answer_at_every_split(name: str) -> None:
    asked, stream, whole = golden(name)
    chunks, response = read_for(asked, stream)
    assert without_nulls(msgspec.json.decode(response.body)) == without_nulls(whole)
    judged = PROVIDER.decode(asked, HTTPResponse(status=200, body=response.body))
    assert (response.finish_reason, response.usage) == (judged.finish_reason, judged.usage)
    data = [(chunk.event, chunk.data) for chunk in chunks]
    for cut in range(len(stream) + 1):
        parts, again = read_for(asked, stream[:cut], stream[cut:])
        assert [(chunk.event, chunk.data) for chunk in parts] == data
        assert again.body == response.body
    parts, again = read_for(asked, *[stream[i : i + 1] for i in range(len(stream))])
    assert [(chunk.event, chunk.data) for chunk in parts] == data and again.body == response.body


@pytest.mark.fault(40, "silent-end")
@pytest.mark.parametrize("name", STREAMS)
def test_a_golden_stream_that_breaks_off_before_its_end_is_truncated(name: str) -> None:
    """FAULTS 40; litellm reports finish_reason "stop", the OpenAI SDK ends silently."""
    asked, stream, _ = golden(name)
    final = max(stream.rfind(b'"finish_reason":"'), stream.rfind(b"event: response."))
    for cut in range(final):
        decoder = PROVIDER.decoder(asked)
        decoder.feed(stream[:cut])
        with pytest.raises(e.TruncatedStreamError) as caught:
            decoder.finish()
        assert caught.value.retryable
        decoder.response()  # what came so far can be had


@pytest.mark.parametrize("name", STREAMS)
def test_a_golden_answer_replayed_as_a_stream_is_the_same_answer(name: str) -> None:
    asked, _, whole = golden(name)
    kept = Response(body=msgspec.json.encode(whole), path=asked.path)
    chunks = PROVIDER.replay(kept, asked)
    stream = b"".join(event(chunk.data, chunk.event) for chunk in chunks)
    again, response = read_for(asked, stream + (b"" if asked.path == RESPONSES else DONE))
    assert without_nulls(msgspec.json.decode(response.body)) == without_nulls(whole)
    assert [chunk.data for chunk in again] == [chunk.data for chunk in chunks]
    assert "".join(chunk.delta for chunk in chunks if not chunk.choices or not chunk.choices[0].index) == kept.text


# The end


@pytest.mark.parametrize(
    "ending", [DONE, b"data:[DONE]\r\n\r\n", b"data: [DONE] \n\n", b"data: [DONE]\n", b"data: [DONE]"]
)
def test_done_ends_a_stream_even_without_its_blank_line(ending: bytes) -> None:
    assert read(piece(content="hi") + ending)[1].text == "hi"


@pytest.mark.fault(40)
def test_a_finish_reason_and_then_the_end_of_bytes_is_a_whole_answer() -> None:
    chunks, response = read(piece(content="hi"), STOP)
    assert (len(chunks), response.text, response.finish_reason) == (2, "hi", "stop")


def test_one_of_two_choices_without_an_end_is_truncated() -> None:
    with pytest.raises(e.TruncatedStreamError):
        read(piece(content="a"), piece(index=1, content="b"), STOP)


@pytest.mark.fault(46)
def test_what_comes_after_the_end_is_ignored() -> None:
    """FAULTS 46."""
    chunks, response = read(piece(content="hi") + DONE + piece(content="no") + DONE, piece(content="no"), b"garbage")
    assert (len(chunks), response.text) == (1, "hi")


@pytest.mark.parametrize(
    "stream", [b"", b"\n\n", b": keep-alive\n\n: x\n\n", b"data:\n\ndata: \n\n", b"\xef\xbb\xbf", b"\xef"]
)
def test_a_stream_of_nothing_is_truncated(stream: bytes) -> None:
    """FAULTS 45: comments make no chunks, so that the clock between chunks goes on."""
    decoder = PROVIDER.decoder(request())
    assert [chunk for i in range(len(stream)) for chunk in decoder.feed(stream[i : i + 1])] == []
    with pytest.raises(e.TruncatedStreamError):
        decoder.finish()


def test_done_without_any_choice_is_a_protocol_error() -> None:
    with pytest.raises(e.ProtocolError, match="without any choice") as caught:
        read(event({"id": "x", "choices": []}) + DONE)
    assert caught.value.retryable


def test_a_responses_stream_ends_with_its_own_event_only() -> None:
    delta = event({"type": "response.output_text.delta", "delta": "par"})
    for ending in (DONE, b""):
        with pytest.raises(e.TruncatedStreamError):
            read(delta + ending, path=RESPONSES)


def test_blank_lines_before_the_first_event_are_kept_alive_lines() -> None:
    assert read(*[b"\n"] * 1000, b"\r\n", piece(content="hi"), STOP)[1].text == "hi"
    assert read(b"\xef", b"\xbb\xbf", b"\n\n", piece(content="hi"), STOP)[1].text == "hi"


# Errors inside


@pytest.mark.fault(41, 43, "bad-json-in-a-stream")
@pytest.mark.parametrize(
    ("bad", "cls", "status", "retryable"),
    [
        (event({"error": {"message": "m", "type": "server_error"}}), e.InternalServerError, 500, True),
        (event({"error": {"message": "m", "code": 429}}), e.RateLimitError, 429, True),
        (event({"error": {"message": "m", "type": "invalid_request_error"}}), e.BadRequestError, 400, False),
        (event({"error": "text"}), e.InternalServerError, 500, True),
        (event({"message": "m", "code": "insufficient_quota"}, "error"), e.QuotaExceededError, 429, False),
        (event({"type": "error", "code": "server_error", "message": "m"}), e.InternalServerError, 500, True),
        (event({}, "error"), e.InternalServerError, 500, True),
        (
            event({"error": {"code": 502, "message": "m"}, "choices": [{"delta": {}, "finish_reason": "error"}]}),
            e.InternalServerError,
            502,
            True,
        ),
        (piece("error"), e.InternalServerError, 500, True),
        (event(b"{"), e.ProtocolError, 200, True),
        (event(b'{"choices":[{\n'), e.ProtocolError, 200, True),
        (event(b"5"), e.ProtocolError, 200, True),
        (event(b'"text"'), e.ProtocolError, 200, True),
        (event(b"null"), e.ProtocolError, 200, True),
        (event(b'{"id":"\xff"}'), e.ProtocolError, 200, True),
        (event(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), e.ProtocolError, 200, True),
        (event({"x": {}}, "error"), e.InternalServerError, 500, True),
    ],
)
def test_an_error_in_a_stream_is_typed_and_what_came_before_is_kept(
    bad: bytes, cls: type, status: int, retryable: bool
) -> None:
    """FAULTS 41 and 43; the OpenAI SDK raises a bare JSONDecodeError for the bad JSON."""
    decoder = PROVIDER.decoder(request())
    decoder.feed(piece(content="par") + piece(content="tial"))
    with pytest.raises(e.LLMError) as caught:
        decoder.feed(bad)
    assert type(caught.value) is cls
    assert (caught.value.status_code, caught.value.retryable) == (status, retryable)
    assert not decoder.done
    assert decoder.response().text == "partial" and decoder.response().finish_reason is None


@pytest.mark.parametrize("more", [{"error": None}, {"error": {}}, {"note": "error"}, {"x": {"error": 1}}])
def test_the_word_error_alone_is_no_error(more: dict[str, Any]) -> None:
    first = event({"id": "x", "choices": [{"delta": {"content": "hi"}}], **more})
    assert read(first, STOP)[1].text == "hi"


def test_a_failed_response_event_is_its_error() -> None:
    failed = {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "m"}, "output": []}
    with pytest.raises(e.RateLimitError):
        read(event({"type": "response.failed", "response": failed}, "response.failed"), path=RESPONSES)
    with pytest.raises(e.InternalServerError):
        read(event({"type": "response.failed", "response": {**failed, "error": None}}), path=RESPONSES)
    with pytest.raises(e.ProtocolError, match="no output"):
        read(event({"type": "response.completed"}), path=RESPONSES)


# A whole answer where a stream was asked for


WHOLE = {"id": "x", "choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}


def test_a_whole_answer_in_place_of_a_stream_is_taken_as_if_streamed() -> None:
    body = b"\xef\xbb\xbf\r\n " + msgspec.json.encode({**WHOLE, "usage": {"prompt_tokens": 3}})
    for pieces in ([body], [body[i : i + 1] for i in range(len(body))]):
        chunks, response = read(*pieces)
        assert "".join(chunk.delta for chunk in chunks) == response.text == "hi"
        assert response.finish_reason == "stop" and response.usage is not None
        assert response.body == body[6:]


@pytest.mark.parametrize(
    ("body", "cls"),
    [
        (b'{"error":{"code":401,"message":"m"}}', e.AuthenticationError),
        (b'{"choices":[]}', e.ProtocolError),
        (msgspec.json.encode(WHOLE)[:-1], e.ProtocolError),
        (b"<html>log in</html>", e.ProtocolError),
        (b'[{"error":{"code":429,"message":"m"}}]', e.ProtocolError),
        (b'"text"', e.ProtocolError),
    ],
)
def test_an_error_or_nonsense_in_place_of_a_stream_is_judged_like_any_body(body: bytes, cls: type) -> None:
    with pytest.raises(cls):
        read(body)


def test_a_whole_answer_in_place_of_a_stream_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_stream, "MOST_BYTES", 1000)
    with pytest.raises(e.ProtocolError, match="larger than 1000 bytes"):
        read(b'{"a":"', *[b"x" * 100] * 20)


def test_a_stream_where_a_whole_answer_was_awaited_is_put_together() -> None:
    asked, stream, whole = golden("chat")
    answer = HTTPResponse(status=200, headers=[(b"x-request-id", b"r")], body=stream)
    response = PROVIDER.decode(asked, answer)
    assert without_nulls(msgspec.json.decode(response.body)) == without_nulls(whole)
    assert response.request_id == "r"
    with pytest.raises(e.TruncatedStreamError):
        PROVIDER.decode(asked, HTTPResponse(status=200, body=stream[:300]))


# Replay


def test_a_replay_has_a_usage_chunk_only_where_it_was_asked_for() -> None:
    kept = Response(body=msgspec.json.encode({**WHOLE, "usage": {"prompt_tokens": 3}}))
    plain = [chunk.to_dict() for chunk in PROVIDER.replay(kept, request())]
    assert [chunk["object"] for chunk in plain] == ["chat.completion.chunk"] * 2
    assert not any("usage" in chunk for chunk in plain)
    asked = request(stream_options={"include_usage": True})
    with_usage = [chunk.to_dict() for chunk in PROVIDER.replay(kept, asked)]
    assert [chunk["usage"] for chunk in with_usage] == [None, None, {"prompt_tokens": 3}]
    assert with_usage[-1]["choices"] == []
    without = Response(body=msgspec.json.encode(WHOLE))
    assert len(PROVIDER.replay(without, asked)) == 2
    broken = msgspec.structs.replace(asked, body=b'{"stream_options": 5}')
    assert len(PROVIDER.replay(kept, broken)) == 2


def test_a_replayed_response_has_the_events_that_openai_sends() -> None:
    part = {"type": "refusal", "refusal": "no"}
    output = [{"type": "message", "id": "m", "content": [part, "odd"]}, "odd", {"type": "reasoning", "id": "t"}]
    whole = {"id": "r", "status": "incomplete", "output": output}
    chunks = PROVIDER.replay(Response(body=msgspec.json.encode(whole), path=RESPONSES), request(RESPONSES))
    assert [chunk.type.removeprefix("response.") for chunk in chunks] == [
        "created", "in_progress", "output_item.added", "content_part.added", "refusal.delta", "refusal.done",
        "content_part.done", "output_item.done", "output_item.added", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert [chunk.to_dict()["sequence_number"] for chunk in chunks] == list(range(len(chunks)))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.uuids().map(str),
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": TEXTS.filter(bool), "arguments": TEXTS}),
        }
    ),
    min_size=1,
    max_size=3,
)
CHOICES = st.lists(
    st.tuples(TEXTS | st.none(), st.none() | CALLS, st.sampled_from(["stop", "length", "tool_calls"])),
    min_size=1,
    max_size=3,
)


@given(CHOICES, st.booleans(), st.integers(1, 50))
def test_any_answer_survives_replay_and_reading(choices: list[Any], usage: bool, size: int) -> None:
    said = [
        {"index": i, "message": {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})},
         "finish_reason": reason}
        for i, (text, calls, reason) in enumerate(choices)
    ]  # fmt: skip
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": said}
    if usage:
        whole["usage"] = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    asked = request(stream_options={"include_usage": True})
    chunks = PROVIDER.replay(Response(body=msgspec.json.encode(whole)), asked)
    stream = b"".join(event(chunk.data) for chunk in chunks) + DONE
    _, response = read_for(asked, *[stream[i : i + size] for i in range(0, len(stream), size)])
    assert without_nulls(msgspec.json.decode(response.body)) == without_nulls(whole)


@given(
    st.lists(
        st.sampled_from([piece(content="é"), STOP, DONE, b"\n", b"\r\n", b": x\n\n", b"data: ", b'{"error":', b"{"])
        | st.binary(max_size=6),
        max_size=8,
    ),
    st.sampled_from([CHAT, COMPLETIONS, RESPONSES]),
)
def test_whatever_is_streamed_ends_in_an_answer_or_a_typed_error(pieces: list[bytes], path: str) -> None:
    decoder = PROVIDER.decoder(request(path))
    try:
        for data in pieces:
            decoder.feed(data)
        decoder.finish()
    except e.LLMError:
        assert isinstance(decoder.response().text, str)
        return
    assert decoder.done and decoder.response().choices


def test_reading_and_putting_together_costs_linear_time() -> None:
    def seconds(count: int) -> float:
        stream = piece(content="word ") * count + STOP
        began = time.process_time()
        read(*[stream[i : i + 4096] for i in range(0, len(stream), 4096)])
        return time.process_time() - began

    small = min(seconds(1000) for _ in range(5))
    assert min(seconds(16_000) for _ in range(3)) < small * 16 * 8, "squares would be 256 times as much"
