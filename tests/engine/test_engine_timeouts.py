"""engine/engine: one deadline over the whole request, a call's own Timeout, the bound of one attempt, closing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastllm import errors as e
from fastllm.answers import TokenDetails, Usage
from fastllm.cache.base import Cache
from fastllm.cache.memory import InMemoryCache
from fastllm.engine.events import RequestDone
from fastllm.engine.stats import Stats
from fastllm.options import Limits, Retry, Timeout
from fastllm.params import to_request
from fastllm.policy.fingerprint import canonical
from fastllm.testing.clock import run_virtual
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import CHAT, HTTPRequest, HTTPResponse, Request
from kits.engine import answer, make_engine, refusal, request


async def after(seconds: float, response: HTTPResponse) -> HTTPResponse:
    await asyncio.sleep(seconds)
    return response


class Hangs(InMemoryCache):
    """A cache whose `where` takes a day."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    async def get(self, *args: Any) -> Any:
        if self.where == "get":
            await asyncio.sleep(86400)
        return await super().get(*args)

    async def put(self, *args: Any) -> None:
        if self.where == "put":
            await asyncio.sleep(86400)
        await super().put(*args)


def test_a_store_that_hangs_on_reading_ends_at_the_deadline() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), cache=Hangs("get"))
        for ask in (engine.execute, engine.stream):
            began = engine.clock.now()
            with pytest.raises(e.DeadlineExceededError) as caught:
                await ask(request(timeout=5.0))  # type: ignore[operator]
            assert engine.clock.now() - began < 5.1 and caught.value.endpoint == "test/m"
        assert not engine._flights

    run_virtual(scenario)


def test_a_store_that_hangs_on_writing_loses_no_answer() -> None:
    async def scenario() -> None:
        seen: list[Any] = []
        engine = make_engine(lambda http: answer(), cache=Hangs("put"), observers=[seen.append])
        leader, follower = await asyncio.gather(*(engine.execute(request(timeout=t)) for t in (5.0, 50.0)))
        assert leader.text == follower.text == "hi" and engine.clock.now() < 5.1
        assert engine.stats.ok == 2 and engine.stats.failed == 0 and not engine._flights
        assert [event.error for event in seen] == [None, None]

    run_virtual(scenario)


def test_a_route_that_is_long_in_the_making_ends_an_interactive_request_and_not_a_row() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer())
        resolve = engine.router._resolve

        async def loading(model: str) -> Any:
            await asyncio.sleep(100)
            return await resolve(model)

        engine.router._resolve = loading
        row = asyncio.create_task(engine.execute(request(priority=1, timeout=5.0)))
        with pytest.raises(e.DeadlineExceededError):
            await engine.execute(request(timeout=5.0))
        assert engine.clock.now() < 5.1
        assert (await row).text == "hi"

    run_virtual(scenario)


class Records(ScriptedTransport):
    def __init__(self) -> None:
        super().__init__(lambda http: answer())
        self.seen: list[Timeout] = []

    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        self.seen.append(timeout)
        return await super().send(request, timeout)


PHASES = Timeout(first_byte=2.0, connect=1.0)


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        ({}, Timeout(total=77)),
        ({"timeout": None}, Timeout.of(None)),
        ({"timeout": 9}, Timeout.of(9)),
        ({"timeout": PHASES}, PHASES),
    ],
)
def test_a_calls_own_timeout_reaches_the_transport_in_all_its_phases(given: Any, effective: Timeout) -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), timeout=Timeout(total=77))
        transport = engine.transport = Records()
        asked = to_request(CHAT, "m", {"messages": []}, given, stream=False)
        await engine.execute(asked)
        assert transport.seen == [effective]
        assert canonical(asked) == canonical(to_request(CHAT, "m", {"messages": []}, {}, stream=False))
        assert asked.with_fields(seed=1).timeout == asked.timeout

    run_virtual(scenario)


def test_a_call_without_a_timeout_of_its_own_may_take_a_day() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: after(86400, answer()), timeout=Timeout(total=5))
        assert (await engine.execute(request(timeout=None))).text == "hi"
        with pytest.raises(e.DeadlineExceededError):
            await engine.execute(request())

    run_virtual(scenario)


def test_an_attempt_that_takes_too_long_is_followed_by_the_next() -> None:
    async def scenario() -> None:
        replies = [after(1e6, answer()), after(2, answer("second"))]
        engine = make_engine(
            lambda http: replies.pop(0), limits=Limits(concurrency=1, rpm=1), timeout=Timeout(total=600, attempt=10)
        )
        response = await engine.execute(request())
        assert response.text == "second" and response.attempts == 2
        # From its permit: the wait of a minute for the second permit is not part of the second attempt.
        assert 60 < engine.clock.now() < 64 and engine.stats.in_flight == 0

    run_virtual(scenario)


def test_attempts_that_all_take_too_long_end_with_their_number_or_with_the_total() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: after(1e6, answer()), retry=Retry(attempts=2))
        with pytest.raises(e.APITimeoutError, match=r"test/m within 10 s \(timeout.attempt\)") as caught:
            await engine.execute(request(timeout=Timeout(attempt=10)))
        assert (caught.value.code, caught.value.attempts) == ("timeout_attempt", 2)
        with pytest.raises(e.DeadlineExceededError, match=r"timeout.attempt"):
            await engine.execute(request(timeout=Timeout(attempt=10, total=15)))
        with pytest.raises(e.DeadlineExceededError):
            await engine.execute(request(timeout=Timeout(attempt=10, total=10)))
        limiter = engine.router.endpoints[0].limiter
        assert engine.stats.in_flight == limiter.in_flight == 0
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0

    run_virtual(scenario)


def test_a_request_that_cannot_be_written_is_no_attempt_and_says_for_whom_it_was() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer())
        with pytest.raises(e.InvalidRequestError) as caught:
            await engine.execute(Request(body=b"nonsense", model="m"))
        assert (caught.value.attempts, caught.value.endpoint, caught.value.sent) == (0, "test/m", False)
        assert engine.snapshot().attempts == 0 and engine.snapshot().failed == 1

    run_virtual(scenario)


def test_a_request_over_a_limit_says_whose_limit() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(tpm=1000))
        with pytest.raises(e.LimitExceededError) as caught:
            await engine.execute(request(body={"max_tokens": 5000}))
        assert (caught.value.attempts, caught.value.endpoint) == (0, "test/m")

    run_virtual(scenario)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (Usage(prompt_tokens=10, prompt_tokens_details=TokenDetails(cached_tokens=8)), 8),
        (Usage(input_tokens=10, input_tokens_details=TokenDetails(cached_tokens=8)), 8),
        (Usage(prompt_tokens=10, prompt_tokens_details=TokenDetails(cached_tokens=-99999999999)), 0),
        (Usage(prompt_tokens=10, prompt_tokens_details=TokenDetails(cached_tokens=99999999999)), 10),
        (Usage(prompt_tokens=10, prompt_tokens_details=TokenDetails()), 0),
    ],
)
def test_cached_tokens_are_counted_in_either_shape_and_are_part_of_the_prompt(usage: Usage, counted: int) -> None:
    stats = Stats(0.0)
    stats.answered(1.0, usage)
    assert stats.cached_tokens == counted


def test_one_closer_that_fails_keeps_no_other_from_closing() -> None:
    async def scenario() -> None:
        closed: list[str] = []

        class Broken(Cache):
            async def aclose(self) -> None:
                raise OSError("disk full")

        async def fails() -> None:
            raise ValueError("server")

        async def works() -> None:
            closed.append("first")

        engine = make_engine(lambda http: answer(), cache=Broken(InMemoryCache().store))
        engine.on_close(works)
        engine.on_close(fails)
        with pytest.raises(OSError, match="disk full"):
            await engine.aclose()
        assert closed == ["first"] and engine.transport.closed  # type: ignore[attr-defined]

    run_virtual(scenario)


def test_seconds_count_from_the_request_and_latency_from_the_attempt() -> None:
    async def scenario() -> None:
        seen: list[Any] = []
        replies = [after(5, refusal(503)), after(1, answer())]
        engine = make_engine(lambda http: replies.pop(0), observers=[seen.append])
        response = await engine.execute(request())
        done = [event for event in seen if isinstance(event, RequestDone)]
        assert response.latency == 1 and done[0].seconds == pytest.approx(6.25)

    run_virtual(scenario)


# timeout.queue: how long a single call may wait for its turn


def test_a_wait_that_is_known_to_be_too_long_is_refused_at_once_with_when_to_come_back() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(rpm=2), timeout=Timeout(queue=5.0))
        for i in range(2):
            await engine.execute(request(str(i)))
        before = engine.clock.now()
        with pytest.raises(e.RateLimitError) as caught:
            await engine.execute(request("one too many"))
        assert engine.clock.now() == before and engine.transport.requests == 2  # type: ignore[attr-defined]
        error = caught.value
        assert error.code == "queue_timeout" and not error.sent and not error.retryable
        assert error.retry_after is not None and 5.0 < error.retry_after <= 65.0
        await asyncio.sleep(error.retry_after)
        assert (await engine.execute(request("in time"))).text == "hi"
        assert engine.stats.in_flight == engine.stats.waiting == 0

    run_virtual(scenario)


def test_a_wait_of_unknown_length_ends_when_the_time_for_it_is_up() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(30.0)
            return answer()

        engine = make_engine(slow, limits=Limits(concurrency=1), timeout=Timeout(queue=2.0))
        first = asyncio.create_task(engine.execute(request("first")))
        await asyncio.sleep(0)
        with pytest.raises(e.RateLimitError, match=r"timeout\.queue"):
            await engine.execute(request("second"))
        assert 2.0 <= engine.clock.now() < 2.2 and engine.stats.waiting == 0
        assert (await first).text == "hi"
        assert engine.stats.in_flight == engine.stats.waiting == 0

    run_virtual(scenario)


def test_a_batch_waits_in_the_queue_for_as_long_as_it_takes() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(rpm=2), timeout=Timeout(queue=5.0))
        done = await asyncio.gather(*(engine.execute(request(str(i), priority=1)) for i in range(5)))
        assert len(done) == 5 and engine.clock.now() > 60.0

    run_virtual(scenario)


def test_the_total_time_and_a_cancellation_are_not_taken_for_the_queues() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(30.0)
            return answer()

        engine = make_engine(slow, limits=Limits(concurrency=1), timeout=Timeout(queue=10.0, total=60.0))
        first = asyncio.create_task(engine.execute(request("first")))
        await asyncio.sleep(0)
        with pytest.raises(e.DeadlineExceededError):
            await engine.execute(request("second", timeout=Timeout(queue=10.0, total=1.0)))
        third = asyncio.create_task(engine.execute(request("third")))
        await asyncio.sleep(1.0)
        third.cancel()
        with pytest.raises(asyncio.CancelledError):
            await third
        await first
        assert engine.stats.in_flight == engine.stats.waiting == 0

    run_virtual(scenario)
