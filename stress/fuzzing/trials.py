"""What may become of damaged input: a valid typed value or one of FastLLM's errors, at every split the same.

Each trial takes a source of random numbers, tries one case, and gives the word under which it is counted. It raises
AssertionError where a promise is broken; any exception that is none of FastLLM's is such a breach, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import msgspec

from fastllm.errors import LLMError
from fastllm.policy.headers import _PLACES, body_hints, parse_duration, parse_reset, read_hints
from fastllm.providers.anthropic_reverse import EventEncoder, from_messages
from fastllm.providers.base import Provider
from fastllm.providers.gemini_reverse import AnswerEncoder, from_gemini
from fastllm.providers.sse import SSEDecoder, written as event_written
from fastllm.types import CHAT, EMBEDDINGS, Chunk, HTTPRequest, HTTPResponse, Request, Response, Target

from .mutations import changed, damaged, pieces, shuffled, wire, written
from .specimens import CHAT_BODY, EMBEDDINGS_BODY, GEMINI_BODY, MESSAGES_BODY, Specimen, specimens
from .standard import reference

ALL = specimens()
STREAMED = [specimen for specimen in ALL if specimen.events]
TARGET = Target(base_url="https://p.example/v1", model="other")
_LINES = (
    b"data", b"event", b"id", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"data: ", b"data:{}\n\n", b"x", b"\x00",
    b"\xe2\x80\xa8", b"\xff", b"\xef\xbb\xbf", b": c\n", b"event: e\n", b"data: a\n\n", b"data\n\n", b"datax: 1\n",
    b"event: e\ndata: a\n\n", b"eventx\n",
)  # fmt: skip


_WAITS = (
    b"1.5", b"6m0s", b"12ms", b"1h2m3.5s", b"Wed, 21 Oct 2026 07:28:00 GMT", b"2026-11-24T02:00:00Z", b"1700000000",
    b"1700000000123", b"nan", b"-1", b"1e999", b"-inf", b"5, 3", b"0x10", b"\xb5s", b"9" * 70, b"", b"1_000", b"\xb2",
    b"99999999999999999999s", b"Wed, 21 Oct 99999 07:28:00 GMT", b"9999-12-31T23:59:59-23:59", b"5,", b",",
)  # fmt: skip


def sse(random: Random) -> str:
    """The decoder reads what the standard says, at any split."""
    data = b"".join(random.choices(_LINES, k=random.randrange(30))) * random.choice((1, 1, 1, 1, 1, 60))
    expected = reference(data)
    for way in ([data], pieces(data, random)):
        decoder = SSEDecoder()
        assert [event for piece in way for event in decoder.feed(piece)] == expected, (data, way)
    return "events" if expected else "no events"


def whole(random: Random) -> str:
    """A damaged answer is an answer that can be read, or an error."""
    specimen = random.choice(ALL)
    body = _damaged_json(specimen.answer, random)
    status = random.choice((200, 200, 200, 201, 299))
    try:
        response = specimen.provider.decode(_unstreamed(specimen.request), HTTPResponse(status=status, body=body))
    except LLMError as error:
        return _counted(error)
    _check_response(response, body)
    _replayed(specimen.provider, response, specimen.request)
    return "answer"


def refused(random: Random) -> str:
    """A status that is not good is an error, whatever stands below it, and its wait is a number of seconds."""
    error = {"message": "Please try again in 1.5s", "type": "t", "code": 429, "status": "x", "param": None}
    delay = [{"@type": "x/RetryInfo", "retryDelay": "5s"}, {"violations": [{"quotaId": "PerDay"}]}]
    body = _damaged_json(random.choice(({"error": error}, [{"error": {**error, "details": delay}}])), random)
    answer = HTTPResponse(status=random.randrange(300, 600), headers=_headers(random), body=body)
    specimen = random.choice(ALL)
    try:
        specimen.provider.decode(specimen.request, answer)
    except LLMError as found:
        _check_seconds(found.retry_after)
        _check_seconds(body_hints(body).retry_after)
        return _counted(found)
    raise AssertionError(f"status {answer.status} was taken for an answer: {body!r}")


def stream(random: Random) -> str:
    """A damaged stream is an answer or an error, and the same one however its bytes come."""
    specimen = random.choice(STREAMED)
    events = specimen.events
    for _ in range(random.randrange(3)):
        events = shuffled(events, random) if events else events
    data = wire(events, random)
    for _ in range(random.randrange(2)):
        data = damaged(data, random)
    if random.random() < 0.05:
        data = _damaged_json(specimen.answer, random)  # a whole answer in place of a stream
    at_once, cut = _streamed(specimen, [data]), _streamed(specimen, pieces(data, random))
    assert at_once == cut, (data, at_once, cut)
    return str(at_once[0])


def truncated(random: Random) -> str:
    """A stream that was cut off is an error unless nothing of the answer is missing."""
    specimen = random.choice(STREAMED)
    data = wire(specimen.events, random)
    data = data[: random.randrange(len(data))]
    kind, body, reason, _ = _streamed(specimen, pieces(data, random))
    if kind != "answer":
        return str(kind)
    _, full, full_reason, _ = _streamed(specimen, [wire(specimen.events, random)])
    assert (_said(body), reason) == (_said(full), full_reason), (data, body)
    return "answer"


def asked(random: Random) -> str:
    """A damaged request is written in every dialect, or refused."""
    path, body = random.choice(((CHAT, CHAT_BODY), (CHAT, CHAT_BODY), (EMBEDDINGS, EMBEDDINGS_BODY)))
    specimen = random.choice(ALL)
    try:
        request = Request.from_body(_damaged_json(body, random), path=path)
        sent = specimen.provider.encode(request, TARGET)
    except LLMError as error:
        return _counted(error)
    assert isinstance(sent, HTTPRequest)
    return "request"


def reverse(random: Random) -> str:
    """A client's request in another dialect becomes one of ours, or is refused."""
    kind, body = random.choice(((from_messages, MESSAGES_BODY), (lambda found: from_gemini(found, "m"), GEMINI_BODY)))
    try:
        given = msgspec.json.decode(_damaged_json(body, random))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return "not JSON"
    if not isinstance(given, dict):
        return "not an object"
    try:
        request = Request.of(kind(given))
    except LLMError as error:
        return _counted(error)
    assert isinstance(request.body, bytes)
    return "request"


def reencoded(random: Random) -> str:
    """Whatever chunks our decoders let through can be written as the other dialects' events."""
    specimen = random.choice(STREAMED)
    decoder = specimen.provider.decoder(specimen.request)
    try:
        chunks = decoder.feed(wire(shuffled(specimen.events, random), random))
    except LLMError as error:
        return _counted(error)
    messages, answers = EventEncoder("m"), AnswerEncoder("m")
    events = [*(event for chunk in chunks for event in messages.add(chunk)), *messages.end()]
    out = b"".join(
        [*(event_written(event.event, event.data) for event in events), *(answers.add(chunk) for chunk in chunks)]
    )
    for _, data in reference(out):
        assert isinstance(msgspec.json.decode(data), dict), out
    return "events"


def headers(random: Random) -> str:
    """No header is too odd to read, and every wait is a number of seconds."""
    hints = read_hints(_headers(random), random.choice((0.0, 1.7e9, 1.8e9)))
    _check_seconds(hints.retry_after)
    for limit in hints.limits.values():
        for number in (limit.limit, limit.remaining, limit.reset_seconds):
            _check_seconds(number)
    text = _value(random).decode("latin-1")
    _check_seconds(parse_duration(text))
    _check_seconds(parse_reset(text, 1.7e9))
    return "hints" if hints.retry_after is not None or hints.limits else "nothing"


TRIALS: dict[str, tuple[int, Callable[[Random], str]]] = {  # with the share of cases that each has
    "sse": (2, sse), "whole": (3, whole), "refused": (1, refused), "stream": (3, stream), "truncated": (1, truncated),
    "asked": (2, asked), "reverse": (2, reverse), "reencoded": (1, reencoded), "headers": (3, headers),
}  # fmt: skip


def tried(name: str, cases: int, seed: int, found: Callable[[int, BaseException], None]) -> Counter[str]:
    """Try so many cases and count how they ended. Each has a seed of its own, so that one can be tried again alone."""
    _, trial = TRIALS[name]
    counts: Counter[str] = Counter()
    for case in range(cases):
        try:
            counts[trial(Random(f"{seed}/{name}/{case}"))] += 1
        except Exception as error:
            counts["BROKEN"] += 1
            found(case, error)
    return counts


def _damaged_json(value: Any, random: Random) -> bytes:
    what = random.random()
    body = written(changed(value, random) if what < 0.8 else value)
    return damaged(body, random) if what > 0.75 else body


def _unstreamed(request: Request) -> Request:
    return msgspec.structs.replace(request, stream=False)


def _counted(error: LLMError) -> str:
    assert type(error).__module__ == "fastllm.errors", error
    assert str(error) and repr(error)
    return type(error).__name__


def _check_response(response: Response, sent: bytes) -> None:
    assert isinstance(response, Response)
    assert response.finish_reason is None or isinstance(response.finish_reason, str), sent
    usage = response.usage
    assert usage is None or all(0 <= count <= 2 * 10**7 for count in (usage.prompt_tokens, usage.total_tokens)), sent
    assert isinstance(response.to_dict(), dict), sent
    assert isinstance(response.text, str), sent
    assert isinstance(response.choices, list) and isinstance(response.data, list), sent


def _replayed(provider: Provider, response: Response, request: Request) -> None:
    assert all(isinstance(chunk, Chunk) for chunk in provider.replay(response, request)), response.body


def _streamed(specimen: Specimen, way: Iterable[bytes]) -> tuple[Any, ...]:
    """Give how a stream ended: with an answer and its chunks, or with an error."""
    decoder = specimen.provider.decoder(specimen.request)
    chunks: list[Chunk] = []
    try:
        for piece in way:
            chunks += decoder.feed(piece)
        chunks += decoder.finish()
    except LLMError as error:
        assert isinstance(decoder.response(), Response)  # what came before it
        return _counted(error), b"", error.code, ()
    response = decoder.response()
    _check_response(response, b"")
    for chunk in chunks:
        assert isinstance(chunk.to_dict(), dict) and isinstance(chunk.delta, str)
    return "answer", response.body, response.finish_reason, tuple(chunk.data for chunk in chunks)


def _said(body: bytes) -> Any:
    fields = msgspec.json.decode(body, type=dict[str, Any])
    return fields.get("choices"), fields.get("output")


def _check_seconds(seconds: float | None) -> None:
    assert seconds is None or (0 <= seconds < math.inf), seconds


def _value(random: Random) -> bytes:
    value = random.choice(_WAITS)
    for _ in range(random.choice((0, 0, 1, 2))):
        value = damaged(value, random)
    return value


def _headers(random: Random) -> list[tuple[bytes, bytes]]:
    names = (*_NAMES, b"date", b"x-request-id", b"retry-after", b"retry-after-ms")
    return [(random.choice(names), _value(random)) for _ in range(random.randrange(6))]


_NAMES = tuple(_PLACES)
