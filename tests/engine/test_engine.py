"""engine/engine: the one page, in virtual time: cache, single-flight, permits, retries, deadline, streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fastllm import errors as e
from fastllm.cache.memory import InMemoryCache
from fastllm.engine.events import AttemptFailed, RequestDone
from fastllm.engine.stream import Stream
from fastllm.options import CacheControl, Limits, Retry, Timeout
from fastllm.policy.pricing import Price
from fastllm.testing.clock import run_virtual
from fastllm.transport.base import HTTPStream
from fastllm.types import HTTPRequest, HTTPResponse
from kits.engine import answer, make_engine, refusal, request


def idle(engine: Any) -> bool:
    """True if nothing is left behind: no slot, no waiter, nothing counted as under way."""
    stats = engine.stats
    limiters = [endpoint.limiter for endpoint in engine.router.endpoints]
    return (stats.in_flight, stats.waiting, stats.backing_off) == (0, 0, 0) and all(
        limiter.in_flight == limiter.waiting == 0 for limiter in limiters
    )


def test_an_answer_says_who_served_it_and_after_how_many_attempts() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer("Paris", x_request_id="r1"))
        response = await engine.execute(request())
        assert response.choices[0].message.content == "Paris"
        assert (response.attempts, response.endpoint, response.cached, response.request_id) == (
            1,
            "test/m",
            False,
            "r1",
        )
        assert engine.snapshot().ok == 1 and engine.snapshot().completion_tokens == 3
        assert idle(engine)

    run_virtual(scenario)


@pytest.mark.fault("retry-holding-the-slot", "retry-after-the-first-pass")
def test_what_may_pass_is_tried_again_without_holding_the_slot_meanwhile() -> None:
    async def scenario() -> None:
        answers = [refusal(500), refusal(503), answer()]
        engine = make_engine(lambda http: answers.pop(0), limits=Limits(concurrency=1))
        task = asyncio.create_task(engine.execute(request()))
        await asyncio.sleep(0.01)
        assert engine.stats.backing_off == 1 and engine.router.endpoints[0].limiter.in_flight == 0
        assert engine.snapshot().backing_off == 1
        response = await task
        assert response.attempts == 3 and engine.stats.retries == 2
        assert engine.clock.now() == pytest.approx(0.25 + 0.5)
        assert idle(engine)

    run_virtual(scenario)


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, None, e.BadRequestError),
        (400, "context_length_exceeded", e.ContextLengthError),
        (401, "invalid_api_key", e.AuthenticationError),
        (403, None, e.PermissionDeniedError),
        (404, None, e.NotFoundError),
        (413, None, e.RequestTooLargeError),
        (422, None, e.UnprocessableEntityError),
        (429, "insufficient_quota", e.QuotaExceededError),
        (501, None, e.InternalServerError),
    ],
)
def test_what_cannot_get_better_is_sent_once(status: int, code: str | None, error: type[e.LLMError]) -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(status, code, x_request_id="r9"))
        with pytest.raises(error) as caught:
            await engine.execute(request())
        assert (caught.value.attempts, caught.value.status_code, caught.value.request_id) == (1, status, "r9")
        assert engine.transport.requests == 1  # type: ignore[attr-defined]
        assert engine.snapshot().errors == {error.__name__: 1}
        assert idle(engine)

    run_virtual(scenario)


def test_attempts_end_at_their_number() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(500), retry=Retry(attempts=3))
        with pytest.raises(e.InternalServerError) as caught:
            await engine.execute(request())
        assert caught.value.attempts == 3 and "3 attempts" in str(caught.value)
        assert idle(engine)

    run_virtual(scenario)


@pytest.mark.fault(29)
def test_retry_after_parks_the_endpoint_for_everyone() -> None:
    async def scenario() -> None:
        answers = [refusal(429, retry_after="20"), answer(), answer()]
        engine = make_engine(lambda http: answers.pop(0))
        first = asyncio.create_task(engine.execute(request("a")))
        await asyncio.sleep(1)
        await engine.execute(request("b"))
        assert engine.clock.now() >= 20
        assert (await first).attempts == 2
        assert engine.stats.rate_limited == 1 and idle(engine)

    run_virtual(scenario)


@pytest.mark.fault(29, "retry-after-a-day")
def test_retry_after_beyond_the_cap_says_until_when_and_is_not_hammered() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(429, retry_after="86400"))
        with pytest.raises(e.RateLimitError, match=r"test/m is blocked until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"):
            await engine.execute(request())
        assert engine.clock.now() == 0 and engine.transport.requests == 1  # type: ignore[attr-defined]

    run_virtual(scenario)


def test_the_wait_in_the_body_is_honoured_where_there_is_no_header() -> None:
    async def scenario() -> None:
        gone = HTTPResponse(
            status=429, body=b'{"error":{"message":"Please retry in 7.5s.","code":"rate_limit_exceeded"}}'
        )
        answers = [gone, answer()]
        engine = make_engine(lambda http: answers.pop(0))
        await engine.execute(request())
        assert 7.5 <= engine.clock.now() < 9

    run_virtual(scenario)


def test_one_deadline_holds_over_all_attempts_and_waits() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(429), timeout=Timeout(total=30))
        with pytest.raises(e.DeadlineExceededError, match=r"no answer within 30 s .*429") as caught:
            await engine.execute(request())
        assert 30 <= engine.clock.now() <= 31 and caught.value.attempts > 3
        assert idle(engine)

    run_virtual(scenario)


def test_a_request_may_bring_its_own_deadline() -> None:
    async def scenario() -> None:
        async def never(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1e6)
            return answer()

        engine = make_engine(never)
        with pytest.raises(e.DeadlineExceededError):
            await engine.execute(request(timeout=2.0))
        assert engine.clock.now() < 2.1 and idle(engine)

    run_virtual(scenario)


def test_the_queue_of_a_batch_is_not_held_against_its_deadline() -> None:
    """With 2 requests a minute the tenth waits 4 minutes for its turn, although each has 60 s in all."""

    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(rpm=2), timeout=Timeout(total=60))
        done = await asyncio.gather(*(engine.execute(request(str(i), priority=1)) for i in range(10)))
        assert len(done) == 10 and engine.clock.now() > 240
        with pytest.raises(e.DeadlineExceededError):
            await asyncio.gather(*(engine.execute(request(str(i))) for i in range(10)))

    run_virtual(scenario)


def test_cancelled_requests_leave_nothing_behind_at_any_point() -> None:
    """1,000 requests cancelled while sending, waiting and backing off: no slot, waiter or task is left."""

    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(0.5)
            return refusal(500)

        engine = make_engine(slow, limits=Limits(concurrency=300, rpm=600))
        tasks = [asyncio.create_task(engine.execute(request(str(i)))) for i in range(1000)]
        for step in range(10):
            await asyncio.sleep(0.13)
            for task in tasks[step::10]:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results)
        assert idle(engine)
        assert engine.transport.in_flight == 0 and len(asyncio.all_tasks()) == 1  # type: ignore[attr-defined]

    run_virtual(scenario)


def test_a_request_over_the_token_limit_is_refused_at_once_and_the_others_go_on() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(tpm=1000))
        with pytest.raises(e.LimitExceededError, match="tpm"):
            await engine.execute(request(body={"max_tokens": 5000}))
        assert (await engine.execute(request(body={"max_tokens": 5}))).text == "hi"
        assert engine.clock.now() == 0 and idle(engine)

    run_virtual(scenario)


@pytest.mark.fault(37, "tokens-never-refunded")
def test_tokens_are_settled_from_usage() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(tokens=40), limits=Limits(tpm=1000))
        await engine.execute(request(body={"max_tokens": 900}))
        limiter = engine.router.endpoints[0].limiter
        assert limiter.learner.tokens.window.used == 40

    run_virtual(scenario)


def test_a_request_that_never_left_is_not_booked() -> None:
    async def scenario() -> None:
        def refuse(http: HTTPRequest) -> HTTPResponse:
            raise e.APIConnectionError("refused", code="connection_refused", sent=False)

        engine = make_engine(refuse, limits=Limits(tpm=1000, rpm=10), retry=Retry(attempts=1, patient=False))
        with pytest.raises(e.APIConnectionError):
            await engine.execute(request())
        limiter = engine.router.endpoints[0].limiter
        assert limiter.learner.tokens.window.used == limiter.learner.requests.window.used == 0

    run_virtual(scenario)


def test_a_thousand_equal_requests_are_one_with_a_cache_and_a_thousand_without() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1)
            return answer()

        for cache, expected in ((InMemoryCache(), 1), (None, 1000)):
            engine = make_engine(slow, cache=cache)
            done = await asyncio.gather(*(engine.execute(request()) for _ in range(1000)))
            assert engine.transport.requests == expected  # type: ignore[attr-defined]
            assert sum(r.cached for r in done) == 1000 - expected
            assert engine.stats.ok == 1000 and engine.stats.joined == 1000 - expected
            assert not engine._flights and idle(engine)

    run_virtual(scenario)


def test_a_hit_is_not_sent_and_says_so() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), cache=InMemoryCache())
        first, second = await engine.execute(request()), await engine.execute(request())
        assert (first.cached, first.attempts) == (False, 1)
        assert (second.cached, second.attempts, second.text) == (True, 0, "hi")
        assert engine.snapshot().cache_hit_ratio == 0.5
        third = await engine.execute(request(sample=1))
        assert not third.cached and engine.transport.requests == 2  # type: ignore[attr-defined]

    run_virtual(scenario)


def test_groups_share_neither_kept_answers_nor_requests_under_way() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1)
            return answer()

        engine = make_engine(slow, cache=InMemoryCache())
        asked = [request(namespace=name) for name in ("a", "b", "", "a")]
        done = await asyncio.gather(*(engine.execute(one) for one in asked))
        assert [r.cached for r in done] == [False, False, False, True]
        assert [(await engine.execute(one)).cached for one in asked] == [True] * 4
        assert engine.transport.requests == 3  # type: ignore[attr-defined]

    run_virtual(scenario)


def test_a_request_may_want_no_kept_answer_no_old_one_or_not_to_be_kept() -> None:
    async def scenario() -> None:
        wall = [1000.0]
        engine = make_engine(lambda http: answer(), cache=InMemoryCache(wall=lambda: wall[0]))

        async def is_cached(**wish: Any) -> bool:
            return (await engine.execute(request(cache=CacheControl(**wish)))).cached

        assert not await is_cached(write=False)
        assert not await is_cached(), "the one before was not kept"
        assert not await is_cached(read=False)
        wall[0] += 10
        assert await is_cached(max_age=11)
        assert not await is_cached(max_age=10) and await is_cached(max_age=10), "it was asked again and kept"
        assert not await is_cached(read=False, write=False)
        assert not await is_cached(max_age=0)

    run_virtual(scenario)


@pytest.mark.fault("errors-cached")
def test_only_whole_successes_are_kept() -> None:
    async def scenario() -> None:
        for bad in (answer(finish_reason="length"), answer(finish_reason="content_filter"), refusal(500), refusal(400)):
            replies = [bad, answer("good")]
            engine = make_engine(lambda http, r=replies: r.pop(0), cache=InMemoryCache(), retry=Retry(attempts=1))
            try:
                await engine.execute(request())
            except e.LLMError:
                pass
            assert (await engine.execute(request())).text == "good"

    run_virtual(scenario)


def test_a_cancelled_leader_hands_the_lead_over() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1)
            return answer()

        engine = make_engine(slow, cache=InMemoryCache())
        tasks = [asyncio.create_task(engine.execute(request())) for _ in range(5)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.sleep(0)
        tasks[1].cancel()  # has just been given the lead
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(d, asyncio.CancelledError) for d in done] == [True, True, True, False, False]
        assert not engine._flights and idle(engine)

    run_virtual(scenario)


def test_a_leader_that_is_cancelled_alone_leaves_no_flight() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1)
            return answer()

        engine = make_engine(slow, cache=InMemoryCache())
        task = asyncio.create_task(engine.execute(request()))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine._flights and idle(engine)
        assert (await engine.execute(request())).text == "hi"

    run_virtual(scenario)


def test_a_leaders_error_reaches_every_follower_as_its_own_object() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1)
            return refusal(400)

        engine = make_engine(slow, cache=InMemoryCache())
        done = await asyncio.gather(*(engine.execute(request()) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(d, e.BadRequestError) for d in done)
        assert len({id(d) for d in done}) == 5 and engine.transport.requests == 1  # type: ignore[attr-defined]
        assert engine.stats.failed == 5

    run_virtual(scenario)


def test_a_follower_waits_no_longer_than_its_own_time() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(100)
            return answer()

        engine = make_engine(slow, cache=InMemoryCache())
        leader = asyncio.create_task(engine.execute(request()))
        await asyncio.sleep(1)
        with pytest.raises(e.DeadlineExceededError, match="within 5 s") as caught:
            await engine.execute(request(timeout=5.0))
        assert 6 <= engine.clock.now() <= 6.1 and caught.value.attempts == 0
        assert (await leader).text == "hi" and idle(engine)

    run_virtual(scenario)


def test_a_cache_that_is_cancelled_while_writing_still_lands_the_paid_answer() -> None:
    class Slow(InMemoryCache):
        async def put(self, *args: Any, **kwargs: Any) -> None:
            await asyncio.sleep(10)

    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), cache=Slow())
        leader = asyncio.create_task(engine.execute(request()))
        follower = asyncio.create_task(engine.execute(request()))
        await asyncio.sleep(1)
        leader.cancel()
        assert (await follower).text == "hi"
        assert engine.transport.requests == 1 and not engine._flights  # type: ignore[attr-defined]

    run_virtual(scenario)


def test_observers_see_each_failed_attempt_and_each_end_and_cannot_break_a_request() -> None:
    async def scenario() -> None:
        seen: list[Any] = []

        def broken(event: Any) -> None:
            raise RuntimeError("observer")

        answers = [refusal(500), answer(), refusal(400)]
        engine = make_engine(lambda http: answers.pop(0), observers=[broken, seen.append])
        await engine.execute(request())
        with pytest.raises(e.BadRequestError):
            await engine.execute(request())
        assert [type(event) for event in seen] == [AttemptFailed, RequestDone, AttemptFailed, RequestDone]
        assert seen[0].delay == 0.25 and seen[1].response is not None and seen[3].error is not None

    run_virtual(scenario)


def test_a_model_that_cannot_be_routed_fails_everyone_who_asked_and_can_be_asked_again() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer())
        calls = 0
        resolve = engine.router._resolve

        async def flaky(model: str) -> Any:
            nonlocal calls
            calls += 1
            await asyncio.sleep(1)
            if calls == 1:
                raise e.MissingKeyError("no key")
            return await resolve(model)

        engine.router._resolve = flaky
        failed = await asyncio.gather(*(engine.execute(request()) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(f, e.MissingKeyError) for f in failed) and calls == 1
        assert (await engine.execute(request())).text == "hi"

    run_virtual(scenario)


def test_options_can_change_while_connections_cache_and_counters_stay() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(500), cache=InMemoryCache())
        other = engine.with_options(retry=Retry(attempts=1))
        with pytest.raises(e.InternalServerError) as caught:
            await other.execute(request())
        assert caught.value.attempts == 1 and engine.stats.failed == 1
        assert other.cache is engine.cache and other.router is engine.router

    run_virtual(scenario)


# Streams


def events(*pieces: str, end: bool = True) -> bytes:
    lines = [f'data: {{"id":"x","choices":[{{"index":0,"delta":{{"content":"{p}"}}}}]}}\n\n' for p in pieces]
    if end:
        lines.append('data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
        lines.append('data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n')
        lines.append("data: [DONE]\n\n")
    return "".join(lines).encode()


def streamed(body: bytes) -> HTTPResponse:
    return HTTPResponse(status=200, headers=[(b"content-type", b"text/event-stream")], body=body)


def test_a_stream_gives_chunks_and_then_the_whole_answer() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: streamed(events("Par", "is")))
        stream = await engine.stream(request(body={"stream": True}))
        assert engine.stats.in_flight == 1
        assert [text async for text in stream.text_stream] == ["Par", "is"]
        assert stream.response.text == "Paris" and stream.response.usage.total_tokens == 7  # type: ignore[union-attr]
        assert stream.response.endpoint == "test/m" and engine.stats.completion_tokens == 2
        assert idle(engine)

    run_virtual(scenario)


@pytest.mark.fault(48)
def test_a_stream_is_retried_before_its_first_chunk_and_never_after() -> None:
    async def scenario() -> None:
        answers = [refusal(503), streamed(b""), streamed(events("ok"))]
        engine = make_engine(lambda http: answers.pop(0))
        stream = await engine.stream(request(body={"stream": True}))
        assert stream.attempts == 3 and (await stream.final()).text == "ok"
        answers.append(streamed(events("half", end=False)))
        stream = await engine.stream(request(body={"stream": True}))
        with pytest.raises(e.TruncatedStreamError) as caught:
            await stream.final()
        assert caught.value.partial.text == "half"
        assert engine.stats.failed == 1 and idle(engine)

    run_virtual(scenario)


@pytest.mark.fault(47)
def test_leaving_a_stream_early_gives_everything_back() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: streamed(events("a", "b", "c")))
        async with await engine.stream(request(body={"stream": True})) as stream:
            async for _ in stream:
                break
        assert idle(engine)
        stream = await engine.stream(request(body={"stream": True}))
        assert engine.stats.in_flight == 1
        del stream  # no collector needed: nothing refers back to it
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert idle(engine)

    run_virtual(scenario)


@pytest.mark.fault(48)
def test_a_stream_that_stalls_ends_at_its_deadline_with_what_came_so_far() -> None:
    class Stalls(HTTPStream):
        status, headers = 200, [(b"content-type", b"text/event-stream")]

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield events("half", end=False)
            await asyncio.sleep(1e6)

        async def aclose(self) -> None:
            self.closed = True

    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), timeout=Timeout(total=30))
        source = Stalls()

        async def open(*args: Any) -> HTTPStream:
            return source

        engine.transport.open = open  # type: ignore[method-assign]
        stream = await engine.stream(request(body={"stream": True}))
        with pytest.raises(e.DeadlineExceededError) as caught:
            await stream.final()
        assert caught.value.partial.text == "half" and source.closed
        assert engine.clock.now() < 31 and idle(engine)

    run_virtual(scenario)


def test_a_streamed_answer_is_kept_and_replayed_as_a_stream_and_as_a_whole() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: streamed(events("Par", "is")), cache=InMemoryCache())
        options = {"stream": True, "stream_options": {"include_usage": True}}
        first: Stream = await engine.stream(request(body=options))
        assert (await first.final()).text == "Paris" and not first.cached
        again = await engine.stream(request(body=options))
        assert again.cached and [text async for text in again.text_stream] == ["Paris"]
        assert again.response.usage is not None and again.response.usage.total_tokens == 7
        assert (await engine.execute(request())).cached
        assert engine.transport.requests == 1 and idle(engine)  # type: ignore[attr-defined]

    run_virtual(scenario)


def test_a_stream_may_want_no_kept_answer_and_not_to_be_kept() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: streamed(events("Par", "is")), cache=InMemoryCache())

        async def is_cached(**wish: Any) -> bool:
            stream = await engine.stream(request(body={"stream": True}, cache=CacheControl(**wish)))
            await stream.final()
            return stream.cached

        assert not await is_cached(write=False)
        assert not await is_cached() and await is_cached()
        assert not await is_cached(read=False)

    run_virtual(scenario)


def test_an_error_status_to_a_stream_is_the_typed_error() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(401, "invalid_api_key"))
        with pytest.raises(e.AuthenticationError):
            await engine.stream(request(body={"stream": True}))
        assert idle(engine)

    run_virtual(scenario)


def test_closing_closes_what_was_handed_over() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), cache=InMemoryCache())
        closed: list[int] = []

        async def close(n: int) -> None:
            closed.append(n)

        engine.on_close(lambda: close(1))
        engine.on_close(lambda: close(2))
        await engine.aclose()
        await engine.aclose()
        assert closed == [2, 1] and engine.transport.closed  # type: ignore[attr-defined]

    run_virtual(scenario)


def test_an_answer_says_what_it_cost() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda _: answer(tokens=1_000_003))
        endpoint = await engine.router.resolve("m")
        assert (await engine.execute(request("no price is known"))).cost is None
        endpoint.price = Price(provider="openai", model="m", input=2.0, output=10.0)
        endpoint.cost = 0.0
        found = await engine.execute(request("one million in, three out"))
        assert found.cost == pytest.approx(2.0 + 3 * 10.0 / 1e6)
        assert endpoint.cost == found.cost
        await engine.aclose()

    run_virtual(scenario)
