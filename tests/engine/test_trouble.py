"""Trouble that is not what it looks like: slow answers among quick errors, late quotas, lost keys, large rows."""

from __future__ import annotations

import asyncio
import random

import pytest

from fastllm.engine.engine import Engine
from fastllm.engine.limiter import CONDEMNED, STARVING, Limiter
from fastllm.errors import (
    APITimeoutError,
    AuthenticationError,
    InternalServerError,
    LimitExceededError,
    LLMError,
    RateLimitError,
    StoppedError,
)
from fastllm.options import Limits, Retry, Timeout
from fastllm.policy.budget import Budget
from fastllm.policy.headers import Hints, Limit
from fastllm.policy.pricing import Price
from fastllm.policy.purse import Purse
from fastllm.policy.tokens import Estimate
from fastllm.testing.clock import VirtualClock, run_virtual
from fastllm.types import HTTPRequest, HTTPResponse
from kits.engine import answer, batch, make_engine, now, refusal, request


def limiter_of(engine: Engine) -> Limiter:
    return engine.router.endpoints[0].limiter


# Breaker


def test_one_quick_error_in_a_hundred_among_slow_answers_is_no_outage() -> None:
    async def scenario() -> None:
        chance, opened = random.Random(1), 0

        async def handler(_: HTTPRequest) -> HTTPResponse:
            nonlocal opened
            opened += limiter_of(engine).breaker.opened
            if chance.random() < 0.01:
                await asyncio.sleep(0.3)
                return refusal(500)
            await asyncio.sleep(10.0 * chance.uniform(0.9, 1.1))
            return answer()

        engine = make_engine(handler, limits=Limits(concurrency=500, adaptive=False))
        assert all(outcome.ok for outcome in await batch(engine, 5000, 500))
        assert opened == 0
        assert now() <= 1.15 * 5000 / 500 * 10.0

    run_virtual(scenario)


@pytest.mark.parametrize("status", [500, 503, 529])
def test_a_batch_that_begins_in_an_outage_waits_for_its_end(status: int) -> None:
    """An answer with a status is somebody who answers (FAULTS 33)."""

    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(status) if now() < 60.0 else answer())
        assert [outcome.ok for outcome in await batch(engine, 50)] == [True] * 50
        assert 60.0 <= now() < 90.0

    run_virtual(scenario)


@pytest.mark.fault(33)
def test_an_outage_longer_than_the_cap_stops_the_job_to_be_resumed() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer() if now() < 1.0 else refusal(502), retry=Retry(park_cap=600.0))
        assert (await batch(engine, 1))[0].ok
        await asyncio.sleep(2.0)
        errors = [outcome.error for outcome in await batch(engine, 20)]
        assert all(isinstance(error, (StoppedError, InternalServerError)) for error in errors)
        assert sum(isinstance(error, StoppedError) for error in errors) >= 19
        assert 600.0 < now() < 640.0

    run_virtual(scenario)


def test_a_bad_request_is_a_sign_of_life() -> None:
    """The provider is back, but every row is bad: no reason to send one in a second and a half."""

    async def scenario() -> None:
        def say(_: HTTPRequest) -> HTTPResponse:
            return answer() if now() < 1.0 else refusal(503) if now() < 20.0 else refusal(400)

        engine = make_engine(say)
        assert (await batch(engine, 1))[0].ok
        await asyncio.sleep(2.0)
        await batch(engine, 300)
        assert now() < 60.0 and not limiter_of(engine).breaker.opened

    run_virtual(scenario)


def test_attempts_that_run_out_of_their_time_are_failures_too() -> None:
    async def scenario() -> None:
        attempts = 0

        async def handler(_: HTTPRequest) -> HTTPResponse:
            nonlocal attempts
            attempts += 1
            if now() > 1.0:
                await asyncio.sleep(1000.0)
            return answer()

        engine = make_engine(handler, timeout=Timeout(attempt=5.0, total=100.0))
        assert (await batch(engine, 1))[0].ok
        await asyncio.sleep(2.0)
        task = asyncio.create_task(batch(engine, 40, 40))
        await asyncio.sleep(30.0)
        assert limiter_of(engine).breaker.opened and attempts < 80
        task.cancel()

    run_virtual(scenario)


# A day's quota that ends while rows wait


def quota() -> tuple[Engine, list[float]]:
    times: list[float] = []

    async def handler(_: HTTPRequest) -> HTTPResponse:
        times.append(now())
        await asyncio.sleep(1.0)
        left = max(0, 3 - len(times))
        day = {"limit": "3", "remaining": str(left), "reset": "72000"}
        return answer(**{f"x_ratelimit_{part}_requests_day": value for part, value in day.items()})

    return make_engine(handler, limits=Limits(concurrency=1)), times


def test_rows_that_wait_when_a_days_quota_ends_stop_the_job() -> None:
    async def scenario() -> None:
        engine, times = quota()
        found = await batch(engine, 8)
        assert sum(outcome.ok for outcome in found) == len(times) == 3
        assert {type(outcome.error) for outcome in found if not outcome.ok} == {StoppedError}
        assert now() < 5.0

    run_virtual(scenario)


def test_calls_that_wait_when_a_days_quota_ends_fail_at_once_and_say_until_when() -> None:
    async def scenario() -> None:
        engine, _ = quota()
        found = await asyncio.gather(*(engine.execute(request(str(i))) for i in range(6)), return_exceptions=True)
        errors = [error for error in found if isinstance(error, RateLimitError)]
        assert len(errors) == 3 and all("blocked until" in str(error) for error in errors)
        assert now() < 5.0

    run_virtual(scenario)


def test_calls_that_wait_when_a_batch_is_parked_for_long_are_told() -> None:
    async def scenario() -> None:
        async def handler(_: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1.0)
            return refusal(429, retry_after="600")

        engine = make_engine(handler, limits=Limits(concurrency=1))
        row = asyncio.create_task(engine.execute(request("row", priority=1)))
        await asyncio.sleep(0.5)
        with pytest.raises(RateLimitError, match="blocked until"):
            await engine.execute(request("call"))
        assert now() < 2.0 and not row.done()
        row.cancel()

    run_virtual(scenario)


# Money that is held for others


def test_waiting_for_money_takes_no_permits() -> None:
    async def scenario() -> None:
        async def handler(_: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(20.0)
            return answer()

        engine = make_engine(handler, limits=Limits(concurrency=50, adaptive=False))
        endpoint = await engine.router.resolve("m")
        price = Price(input=0.0, output=5e3, max_output_tokens=10)  # 5 cents a request at most, 1.5 in the end
        endpoint.purse = Purse(Budget(1.0), price, model="m")
        found = await batch(engine, 40, 40)
        assert sum(outcome.ok for outcome in found) == 40
        assert endpoint.limiter.attempts <= 60, "looks at the purse are no attempts"

    run_virtual(scenario)


def test_a_single_call_waits_for_money_no_longer_than_for_its_turn() -> None:
    async def scenario() -> None:
        async def handler(_: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(20.0)
            return answer()

        engine = make_engine(handler, timeout=Timeout(queue=5.0))
        endpoint = await engine.router.resolve("m")
        price = Price(input=0.0, output=1e5, max_output_tokens=10)
        endpoint.purse = Purse(Budget(1.0), price, model="m")
        first = asyncio.create_task(engine.execute(request("1")))
        await asyncio.sleep(0.1)
        with pytest.raises(RateLimitError, match="held for others") as caught:
            await engine.execute(request("2"))
        assert caught.value.code == "queue_timeout" and 5.0 <= now() < 6.0
        assert (await first).text == "hi" and engine.stats.waiting == 0

    run_virtual(scenario)


# Keys


@pytest.mark.fault(25)
def test_after_a_refused_keys_minute_one_attempt_shows_whether_it_is_still_refused() -> None:
    async def scenario() -> None:
        times: list[float] = []

        async def handler(_: HTTPRequest) -> HTTPResponse:
            times.append(now())
            await asyncio.sleep(1.0)
            return refusal(401)

        engine = make_engine(handler)
        for _ in range(3):
            await asyncio.gather(*(engine.execute(request(str(i))) for i in range(30)), return_exceptions=True)
            await asyncio.sleep(CONDEMNED + 5.0)
        assert len([at for at in times if at > 30.0]) == 2
        good = make_engine(lambda http: refusal(401) if now() < 300.0 else answer())
        with pytest.raises(AuthenticationError):
            await good.execute(request("x"))
        await asyncio.sleep(200.0)
        found = await asyncio.gather(*(good.execute(request(str(i))) for i in range(30)))
        assert len(found) == 30

    run_virtual(scenario)


def test_a_key_that_the_provider_repeats_is_taken_out() -> None:
    async def scenario() -> None:
        key = "0123456789abcdef0123456789abcdef"
        body = b'{"error":{"message":"Incorrect API key provided: %s."}}' % key.encode()
        engine = make_engine(
            lambda http: HTTPResponse(status=401, headers=[], body=body), headers={"authorization": f"Bearer {key}"}
        )
        with pytest.raises(AuthenticationError) as caught:
            await engine.execute(request("x"))
        assert key not in str(caught.value) and "Incorrect API key provided: ***" in str(caught.value)

    run_virtual(scenario)


# Priorities and sizes


def test_small_calls_pass_a_large_row_whose_turn_it_is_but_not_for_ever() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(tpm=10_000, concurrency=50, adaptive=False), VirtualClock())
        waits: dict[str, list[float]] = {"call": [], "row": []}

        async def hold(name: str, need: float, priority: int) -> None:
            began = now()
            permit = await limiter.acquire(Estimate(need, need, 0.0), priority)
            limiter.answered(permit, 0.5)
            waits[name].append(now() - began)
            await asyncio.sleep(0.5)
            permit.release()

        tasks = [asyncio.create_task(hold("row", 3000.0, 1))]
        await asyncio.sleep(1.0)
        tasks.append(asyncio.create_task(hold("row", 9000.0, 1)))
        for _ in range(100):
            await asyncio.sleep(1.0)
            tasks += [asyncio.create_task(hold("call", 50.0, 0)) for _ in range(2)]
        await asyncio.gather(*tasks)
        assert sorted(waits["call"])[len(waits["call"]) // 2] < 1.0
        assert max(waits["row"]) <= 2 * STARVING + 5.0

    run_virtual(scenario)


@pytest.mark.fault(36)
@pytest.mark.parametrize(("name", "body"), [("itpm", {}), ("otpm", {"max_tokens": 5000})])
def test_a_request_larger_than_a_limit_of_input_or_output_is_refused(name: str, body: dict[str, int]) -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(**{name: 1000.0}))
        text = "word " * (2000 if name == "itpm" else 2)
        with pytest.raises(LimitExceededError, match=name):
            await engine.execute(request(text, body=body))

    run_virtual(scenario)


def test_what_waits_is_estimated_again_when_its_turn_comes() -> None:
    """The first answers tell how long they are: what was queued before must not go by the guess."""

    async def scenario() -> None:
        spent = []

        async def handler(_: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(0.5)
            spent.append((now(), 4000))
            found = answer()
            found.body = found.body.replace(b'"completion_tokens":3,"total_tokens":10', b'"completion_tokens":3993')
            return found

        engine = make_engine(handler, limits=Limits(tpm=100_000))
        await batch(engine, 200)
        for at, _ in spent:
            assert sum(tokens for when, tokens in spent if at - 60.0 < when <= at) <= 130_000

    run_virtual(scenario)


# Waking and giving back


def test_a_limit_that_is_raised_lets_the_next_one_in_at_once() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(), VirtualClock())
        told = [Hints(_limits={"requests": Limit(limit=most, remaining=left)}) for most, left in ((2, 0), (100, 98))]
        need = Estimate(10.0, 5.0, 5.0)
        permits = [await limiter.acquire(need), await limiter.acquire(need)]
        limiter.answered(permits[0], 0.1)
        limiter.heard(permits[0], told[0])
        waiting = asyncio.create_task(limiter.acquire(need))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        limiter.heard(permits[1], told[1])
        await asyncio.sleep(0.01)
        assert waiting.done()

    run_virtual(scenario)


def test_a_permit_that_is_given_up_counts_as_nothing() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(rpm=10, rpd=10), VirtualClock())
        permit = await limiter.acquire(Estimate(10.0, 5.0, 5.0))
        permit.cancel()
        assert (limiter.attempts, limiter.in_flight) == (0, 0)
        assert limiter.learner.requests.window.used == limiter._more[0].window.used == 0.0
        blocked = limiter.learner
        blocked._block(now(), None, "")
        await asyncio.sleep(2.0)
        probe = await limiter.acquire(Estimate(10.0, 5.0, 5.0))
        probe.cancel()
        await asyncio.sleep(2.0)
        limiter.try_acquire(Estimate(10.0, 5.0, 5.0))
        assert blocked.blocked, "a probe that was not sent was not let through"

    run_virtual(scenario)


def test_a_time_out_says_which() -> None:
    async def scenario() -> None:
        async def handler(_: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1000.0)
            return answer()

        engine = make_engine(handler, timeout=Timeout(attempt=5.0), retry=Retry(attempts=2))
        with pytest.raises(APITimeoutError, match=r"timeout\.attempt"):
            await engine.execute(request("x"))

    run_virtual(scenario)


def test_errors_keep_their_class_through_the_queue() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(401), limits=Limits(concurrency=1))
        found = await asyncio.gather(*(engine.execute(request(str(i))) for i in range(5)), return_exceptions=True)
        assert all(isinstance(error, LLMError) for error in found)
        assert sum(isinstance(error, AuthenticationError) for error in found) == 1

    run_virtual(scenario)


# Refusals and headers that are not what they seem


@pytest.mark.parametrize(("begin", "end"), [(0.0, 45.0), (1.0, 46.0)])
def test_refusals_that_pass_are_no_limit_a_minute(begin: float, end: float) -> None:
    """45 seconds of 429s without a word, and then a provider that takes 100 a second."""

    async def scenario() -> None:
        async def handler(_: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(0.2)
            return refusal(429) if begin <= now() < end else answer()

        engine = make_engine(handler, limits=Limits(concurrency=20))
        assert all(outcome.ok for outcome in await batch(engine, 3000, 512))
        assert now() < end + 150.0

    run_virtual(scenario)


@pytest.mark.parametrize("name", ["requests", "tokens"])
def test_a_remaining_that_is_always_nothing_is_not_believed_for_long(name: str) -> None:
    async def scenario() -> None:
        async def handler(_: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(1.0)
            return answer(**{f"x_ratelimit_limit_{name}": "100000", f"x_ratelimit_remaining_{name}": "0"})

        engine = make_engine(handler)
        await batch(engine, 300, 100)
        assert now() < 60.0

    run_virtual(scenario)


@pytest.mark.fault(34)
def test_a_server_of_four_slots_with_long_answers_loses_no_row_to_time_outs() -> None:
    """FAULTS 34: more in flight than can be answered within first_byte only makes all of them late."""

    async def scenario() -> None:
        slots = asyncio.Semaphore(4)

        async def handler(_: HTTPRequest) -> HTTPResponse:
            try:
                async with asyncio.timeout(120.0), slots:
                    await asyncio.sleep(20.0)
            except TimeoutError:
                raise APITimeoutError("no first byte", code="timeout_first_byte") from None
            return answer()

        engine = make_engine(handler)
        assert all(outcome.ok for outcome in await batch(engine, 300))
        assert engine.stats.attempts < 600
        assert now() < 1.2 * 300 / 4 * 20.0

    run_virtual(scenario)


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    "names", [("tokens", "day"), ("requests", "hour"), ("tokens", "hour")], ids=["tpd", "rph", "tph"]
)
def test_nothing_left_of_any_limit_that_is_told_is_believed(names: tuple[str, str]) -> None:
    async def scenario() -> None:
        sent = 0
        header = f"x_ratelimit_remaining_{names[0]}_{names[1]}"

        async def handler(_: HTTPRequest) -> HTTPResponse:
            nonlocal sent
            sent += 1
            await asyncio.sleep(0.1)
            return answer(**{header: "0", header.replace("remaining", "reset"): "90"})

        engine = make_engine(handler, limits=Limits(concurrency=4))
        task = asyncio.create_task(batch(engine, 30, 30))
        await asyncio.sleep(60.0)
        assert sent <= 5
        task.cancel()

    run_virtual(scenario)


def test_a_pace_of_next_to_nothing_is_none() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(x_ratelimit_limit_req_second="0.000000001"))
        await batch(engine, 20)
        assert now() < 5.0

    run_virtual(scenario)


# What it cost


def test_what_answers_cost_is_told_where_price_and_usage_are_known() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(tokens=1003))
        assert engine.snapshot().cost_usd == 0.0
        (await engine.router.resolve("m")).price = Price(input=1.0, output=10.0)
        await engine.execute(request("a"))
        await engine.execute(request("b"))
        assert engine.snapshot().cost_usd == pytest.approx(2 * (1000 * 1.0 + 3 * 10.0) / 1e6)
        other = await engine.router.resolve("unknown")
        assert engine.snapshot().cost_usd is not None, "nothing was asked there yet"
        await engine.execute(request("c", model="unknown"))
        assert other.cost is None and engine.snapshot().cost_usd is None

    run_virtual(scenario)


# What is given back, and what is kept


def test_a_grant_that_was_cancelled_before_it_was_used_is_given_back() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(concurrency=1, rpm=10, tpm=1000, adaptive=False), VirtualClock())
        need = Estimate(10.0, 5.0, 5.0)
        first = await limiter.acquire(need)
        limiter.answered(first, 0.1)
        waiting = asyncio.create_task(limiter.acquire(need))
        await asyncio.sleep(0.1)
        first.release()  # grants the waiting one, whose task has not run yet
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (limiter.in_flight, limiter.attempts) == (0, 1)
        assert limiter.learner.requests.window.used == 1.0 and limiter.learner.tokens.window.used == 10.0

    run_virtual(scenario)


@pytest.mark.fault(25)
def test_refusals_that_may_concern_one_request_count_only_in_a_row() -> None:
    async def scenario() -> None:
        said = iter([403, 403, 200, 403, 403, 200, 403, 403, 403, 200])

        def handler(_: HTTPRequest) -> HTTPResponse:
            status = next(said)
            return answer() if status == 200 else refusal(status)

        engine = make_engine(handler)
        for _ in range(8):
            await asyncio.gather(engine.execute(request("x")), return_exceptions=True)
        assert limiter_of(engine)._condemned is None
        await asyncio.gather(engine.execute(request("x")), return_exceptions=True)
        assert limiter_of(engine)._condemned is not None, "three in a row"

    run_virtual(scenario)


@pytest.mark.fault(38)
def test_an_attempt_that_was_cancelled_may_have_been_billed() -> None:
    async def scenario() -> None:
        async def handler(_: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(10.0)
            return answer()

        engine = make_engine(handler)
        budget = Budget(1.0)
        endpoint = await engine.router.resolve("m")
        endpoint.purse = Purse(budget, Price(input=1.0, output=10.0, max_output_tokens=100), model="m")
        task = asyncio.create_task(engine.execute(request("x")))
        await asyncio.sleep(1.0)
        held = budget.reserved
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert held > 0.0 and budget.spent == pytest.approx(held) and budget.reserved == 0.0

    run_virtual(scenario)


def test_an_answer_that_broke_off_costs_what_its_usage_says() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer())
        budget = Budget(1.0)
        endpoint = await engine.router.resolve("m")
        endpoint.purse = Purse(budget, Price(input=1.0, output=10.0, max_output_tokens=1000), model="m")
        permit = await endpoint.limiter.acquire(Estimate(500.0, 100.0, 50.0))
        endpoint.reserve(request("x"), permit)
        error = InternalServerError("broke off", status_code=500)
        error.partial = endpoint.provider.decode(request("x"), answer(tokens=103))
        endpoint.ended(permit, error)
        assert budget.spent == pytest.approx((100 * 1.0 + 3 * 10.0) / 1e6) and budget.reserved == 0.0
        assert endpoint.limiter.learner.tokens.window.used == 103.0

    run_virtual(scenario)
