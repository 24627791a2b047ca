"""engine/stream: what a cancelled, broken or late stream leaves behind; it counts and learns as whole answers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fastllm import errors as e
from fastllm.cache.memory import InMemoryCache
from fastllm.engine.engine import Engine
from fastllm.engine.events import RequestDone
from fastllm.engine.stream import Stream
from fastllm.options import Limits, Retry, Timeout
from fastllm.providers.openai_stream import OpenAIDecoder
from fastllm.testing.clock import run_virtual
from fastllm.transport.base import HTTPStream
from fastllm.types import HTTPResponse, Request
from kits.engine import Source, answer, make_engine, request

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n' + USAGE + b"data: [DONE]\n\n"
LATER = b'data: {"error":{"code":"rate_limit_exceeded","message":"Please try again in 20s"}}\n\n'


def piece(text: str) -> bytes:
    return b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text.encode()


def streaming(*sources: Source | float | Exception, **more: Any) -> Engine:
    """An engine whose streams are these, one after the other; a number is a wait before the next."""
    engine = make_engine(lambda http: answer(), **more)
    left = list(sources)

    async def open(*args: Any) -> HTTPStream:
        while True:
            source = left.pop(0)
            if isinstance(source, Exception):
                raise source
            if isinstance(source, Source):
                return source
            await asyncio.sleep(source)

    engine.transport.open = open  # type: ignore[method-assign]
    return engine


def ask(**more: Any) -> Request:
    return request(body={"stream": True, **more.pop("body", {})}, **more)


def idle(engine: Engine) -> bool:
    limiter = engine.router.endpoints[0].limiter
    return engine.stats.in_flight == limiter.in_flight == limiter.waiting == 0


def test_a_reader_that_is_cancelled_gives_slot_and_connection_back_at_once() -> None:
    async def scenario() -> None:
        source = Source(piece("a"), 1000.0)
        engine = streaming(source, limits=Limits(concurrency=1))
        stream = await engine.stream(ask())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await stream.final()
        assert source.closed and idle(engine)
        assert (await engine.execute(request(timeout=10.0))).text == "hi"

    run_virtual(scenario)


def test_a_decoder_that_breaks_gives_slot_and_connection_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        for broken, error in (("feed", e.ProtocolError), ("response", e.RateLimitError)):
            with monkeypatch.context() as patch:
                source = Source(piece("a"), 1.0, LATER)
                engine = streaming(source, limits=Limits(concurrency=1))
                stream = await engine.stream(ask())

                def fail(*args: Any) -> Any:
                    raise ZeroDivisionError

                patch.setattr(OpenAIDecoder, broken, fail)
                with pytest.raises(error):
                    await stream.final()
                assert source.closed and idle(engine)

    run_virtual(scenario)


def test_a_timeout_of_foreign_code_is_not_taken_for_the_deadline() -> None:
    class Foreign(Source):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield piece("a")
            raise TimeoutError("foreign")

    async def scenario() -> None:
        engine = streaming(Foreign())
        stream = await engine.stream(ask())
        with pytest.raises(TimeoutError, match="foreign"):
            await stream.final()
        assert idle(engine)

    run_virtual(scenario)


def slowly() -> Source:
    return Source(*(step for i in range(200) for step in (piece("a"), 1.0)))


def test_one_deadline_holds_over_all_attempts_of_a_stream_and_its_reading() -> None:
    async def scenario() -> None:
        seen: list[Any] = []
        engine = streaming(55.0, e.APIConnectionError("reset"), slowly(), observers=[seen.append])
        stream = await engine.stream(ask(timeout=60.0))
        with pytest.raises(e.DeadlineExceededError):
            await stream.final()
        assert 60 <= engine.clock.now() < 60.5 and idle(engine)
        done = [event for event in seen if isinstance(event, RequestDone)]
        assert len(done) == 1 and done[0].seconds == engine.clock.now()

    run_virtual(scenario)


def test_the_queue_is_not_held_against_a_batchs_stream() -> None:
    async def scenario() -> None:
        engine = streaming(Source(piece("a"), END), Source(piece("b"), 5.0, END), limits=Limits(rpm=1))
        for text in ("a", "b"):
            stream = await engine.stream(ask(timeout=10.0, priority=1))
            assert (await stream.final()).text == text
        assert engine.clock.now() > 60

    run_virtual(scenario)


def test_an_attempts_bound_ends_a_stream_without_a_first_chunk_and_no_other() -> None:
    async def scenario() -> None:
        silent = Source(1e6)
        engine = streaming(silent, Source(piece("a"), 100.0, END), timeout=Timeout(attempt=10, total=600))
        stream = await engine.stream(ask())
        assert (await stream.final()).text == "a" and stream.attempts == 2 and silent.closed
        assert idle(engine)

    run_virtual(scenario)


@pytest.mark.parametrize(
    "refusal",
    [
        lambda: Source(LATER),
        lambda: Source(LATER.replace(b"20s", b"a while"), retry_after="20"),
    ],
)
def test_an_error_in_place_of_the_first_chunk_says_when_to_come_back(refusal: Callable[[], Source]) -> None:
    async def scenario() -> None:
        engine = streaming(refusal(), Source(piece("a"), END))
        stream = await engine.stream(ask())
        assert 20 <= engine.clock.now() < 22
        assert (await stream.final()).attempts == 2

    run_virtual(scenario)


def test_an_error_in_place_of_the_first_chunk_parks_the_endpoint_for_everyone() -> None:
    async def scenario() -> None:
        engine = streaming(Source(LATER), Source(piece("a"), END))
        stream = asyncio.create_task(engine.stream(ask()))
        await asyncio.sleep(1)
        await engine.execute(request("other"))
        assert engine.clock.now() >= 20
        await (await stream).final()

    run_virtual(scenario)


def test_an_old_head_does_not_park_for_an_error_at_the_end() -> None:
    async def scenario() -> None:
        broken = b'data: {"error":{"code":"server_error","message":"crash"}}\n\n'
        engine = streaming(Source(piece("a"), 100.0, broken, retry_after="50"))
        stream = await engine.stream(ask())
        with pytest.raises(e.InternalServerError) as caught:
            await stream.final()
        assert caught.value.retry_after is None
        began = engine.clock.now()
        await engine.execute(request())
        assert engine.clock.now() == began

    run_virtual(scenario)


@pytest.mark.parametrize(("usage", "booked"), [(b"", None), (USAGE, 7), (None, 0)])
def test_an_error_after_output_books_what_was_used(usage: bytes | None, booked: int | None) -> None:
    """None streamed: nothing. Something streamed: what its usage says, else the estimate."""

    async def scenario() -> None:
        broken = b'data: {"error":{"code":"server_error","type":"x","message":"crash"}}\n\n'
        script = (broken,) if usage is None else (piece("a"), usage, 1.0, broken)
        engine = streaming(Source(*script), limits=Limits(tpm=10_000))
        engine.retry = type(engine.retry)(attempts=1)
        asked = ask(body={"max_tokens": 900})
        with pytest.raises(e.InternalServerError):
            await (await engine.stream(asked)).final()
        limiter = engine.router.endpoints[0].limiter
        assert (
            limiter.learner.tokens.window.used == booked
            if booked is not None
            else limiter.learner.tokens.window.used > 256
        )

    run_virtual(scenario)


def test_a_stream_is_whole_though_the_cache_hangs() -> None:
    class Hangs(InMemoryCache):
        async def put(self, *args: Any) -> None:
            await asyncio.sleep(86400)

    async def scenario() -> None:
        engine = streaming(Source(piece("a"), END), cache=Hangs())
        stream: Stream = await engine.stream(ask(timeout=5.0))
        assert (await stream.final()).text == "a"
        assert engine.clock.now() < 5.1 and engine.stats.ok == 1 and idle(engine)

    run_virtual(scenario)


def test_an_error_status_to_a_stream_is_learned_from_as_ever() -> None:
    async def scenario() -> None:
        body = LATER.removeprefix(b"data: ")
        replies = [HTTPResponse(status=429, body=body), HTTPResponse(status=200, body=piece("a") + END)]
        engine = make_engine(lambda http: replies.pop(0))
        stream = await engine.stream(ask())
        assert 20 <= engine.clock.now() < 22 and (await stream.final()).text == "a"

    run_virtual(scenario)


async def by_break(stream: Any) -> None:
    async for _ in stream:
        break


async def by_break_from_text(stream: Stream) -> None:
    async for _ in stream.text_stream:
        break


async def by_an_error(stream: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async for _ in stream:
            raise ZeroDivisionError


async def by_cancellation(stream: Any) -> None:
    async def read() -> None:
        async for _ in stream:
            await asyncio.sleep(1000)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await read()


async def by_return_from_a_generator(stream: Any) -> None:
    async def pieces() -> AsyncIterator[Any]:
        async for chunk in stream:
            yield chunk

    async for _ in pieces():
        return


LEAVES = [by_break, by_break_from_text, by_an_error, by_cancellation, by_return_from_a_generator]


@pytest.mark.fault(47)
@pytest.mark.parametrize("leave", LEAVES)
def test_leaving_a_loop_closes_the_stream_though_a_variable_holds_it(leave: Any) -> None:
    async def scenario() -> None:
        seen: list[Any] = []
        source = Source(piece("a"), piece("b"), 1000.0)
        engine = streaming(source, limits=Limits(concurrency=1, tpm=10_000), observers=[seen.append])
        stream = await engine.stream(ask(body={"max_tokens": 900}))
        await leave(stream)
        for _ in range(4):
            await asyncio.sleep(0)
        assert source.closed and idle(engine)
        limiter, done = engine.router.endpoints[0].limiter, seen[-1]
        assert 20 < limiter.learner.tokens.window.used < 200  # what was seen, not the 900 that were held
        assert isinstance(done, RequestDone) and done.left and done.error is None
        assert done.response is not None and done.response.text.startswith("a") and done.response.endpoint == "test/m"
        stats = engine.snapshot()
        assert (stats.left, stats.ok, stats.failed, stats.done) == (1, 0, 0, 0)
        for read_on in (stream.final, lambda: anext(stream)):
            with pytest.raises(e.FastLLMError, match="closed before its end"):
                await read_on()
        assert len(seen) == 1

    run_virtual(scenario)


def test_a_stream_can_be_stepped_through_and_then_looped_over() -> None:
    async def scenario() -> None:
        engine = streaming(Source(piece("a"), 1.0, piece("b"), 1.0, END))
        stream = await engine.stream(ask())
        stream.text_stream  # noqa: B018  # looked at by a debugger, say
        iter_only = aiter(stream)
        del iter_only
        assert (await anext(stream)).delta == "a"
        await asyncio.sleep(0)
        assert [text async for text in stream.text_stream] == ["b"]
        assert stream.response.text == "ab" and engine.stats.left == 0 and idle(engine)

    run_virtual(scenario)


def test_a_dropped_stream_and_an_early_close_count_as_left() -> None:
    async def scenario() -> None:
        engine = streaming(Source(piece("a"), 9.0), Source(piece("a") + USAGE, 9.0), limits=Limits(tpm=10_000))
        stream = await engine.stream(ask())
        del stream
        await asyncio.sleep(0)
        assert engine.stats.left == 1
        window = engine.router.endpoints[0].limiter.learner.tokens.window
        before = window.used
        stream = await engine.stream(ask())
        await anext(stream)
        await stream.aclose()
        await stream.aclose()
        assert engine.stats.left == 2 and idle(engine) and window.used - before == 7

    run_virtual(scenario)


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    ("before", "phase", "seconds"),
    [((), "first_byte", 20.0), ((piece("a"),), "between_chunks", 10.0)],
    ids=["before the first chunk", "after it"],
)
def test_comments_without_end_are_no_chunks(before: tuple[bytes, ...], phase: str, seconds: float) -> None:
    """The transport hears bytes and is content; what the reader waits for does not come."""

    async def scenario() -> None:
        sources = [Source(*before, *(step for _ in range(1000) for step in (3.0, b": keep-alive\n\n"))) for _ in "ab"]
        timeout = Timeout(total=None, first_byte=20.0, between_chunks=10.0)
        engine = streaming(*sources, timeout=timeout, retry=Retry(attempts=1), limits=Limits(concurrency=1))
        began = asyncio.get_running_loop().time()
        with pytest.raises(e.APITimeoutError, match=phase) as caught:
            await (await engine.stream(ask())).final()
        assert caught.value.code == f"timeout_{phase}"
        assert seconds <= asyncio.get_running_loop().time() - began <= seconds + 3.0
        assert sources[0].closed and idle(engine)
        assert (caught.value.partial.text if before else "a") == "a"

    run_virtual(scenario)


def test_a_reader_that_takes_its_time_between_chunks_is_not_late() -> None:
    async def scenario() -> None:
        source = Source(piece("a"), 3.0, b": x\n\n", piece("b"), 3.0, b": x\n\n", END)
        engine = streaming(source, timeout=Timeout(total=None, between_chunks=5.0))
        texts = []
        async for chunk in await engine.stream(ask()):
            texts.append(chunk.delta)
            await asyncio.sleep(60)
        assert "".join(texts) == "ab"

    run_virtual(scenario)
