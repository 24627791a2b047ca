"""The retry budget, in virtual time: failures are not multiplied, a batch waits, and limits are not its business."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from fastllm import errors as e
from fastllm.engine.engine import Engine
from fastllm.jobs.outcomes import outcomes
from fastllm.options import Limits, Retry, Timeout
from fastllm.testing.clock import run_virtual
from fastllm.types import HTTPRequest, HTTPResponse
from kits.engine import answer, make_engine, now, refusal, request, rows

USED_UP = "not tried again, because the retry budget of test/m is used up"
PLENTY = Limits(concurrency=100_000, adaptive=False)


class Coin:
    """Answers after 50 ms; of each four attempts two fail, so that the breaker stays closed: it is another matter."""

    def __init__(self, code: str = "500", seed: int = 1) -> None:
        self.code = code
        self.random = random.Random(seed)
        self.next: list[bool] = []
        self.attempts = 0

    async def __call__(self, _: HTTPRequest) -> HTTPResponse:
        self.attempts += 1
        self.next = self.next or self.random.sample([True, True, False, False], 4)
        fails = self.next.pop()
        await asyncio.sleep(0.05)
        if fails and self.code != "500":
            raise e.APIConnectionError("cut", code=self.code)
        return refusal(500) if fails else answer()


class HalfFail:
    """Of three requests one fails not at all, one once and one twice: half of all attempts."""

    def __init__(self, failure: HTTPResponse) -> None:
        self.failure = failure
        self.left: dict[bytes, int] = {}
        self.attempts = 0

    async def __call__(self, http: HTTPRequest) -> HTTPResponse:
        self.attempts += 1
        await asyncio.sleep(0.05)
        left = self.left.setdefault(http.body, len(self.left) % 3)
        self.left[http.body] = max(0, left - 1)
        return self.failure if left else answer()


async def interactive(engine: Engine, rate: float, seconds: float) -> list[Any]:
    """So many requests a second, evenly, each in a task of its own."""
    tasks = []
    for i in range(int(rate * seconds)):
        tasks.append(asyncio.create_task(engine.execute(request(str(i)))))
        await asyncio.sleep(1 / rate)
    return await asyncio.gather(*tasks, return_exceptions=True)


def idle(engine: Engine) -> bool:
    stats, limiter = engine.stats, engine.router.endpoints[0].limiter
    return (stats.in_flight, stats.waiting, stats.backing_off, limiter.in_flight, limiter.waiting) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("rate", [20.0, 200.0])
@pytest.mark.parametrize("code", ["500", "connection_reset", "timeout_first_byte"])
def test_interactive_requests_of_which_half_fail_are_not_multiplied(rate: float, code: str) -> None:
    async def scenario() -> None:
        provider = Coin(code)
        engine = make_engine(provider, limits=PLENTY)
        found = await interactive(engine, rate, 60.0)
        assert provider.attempts <= 1.2 * len(found) + 10.0 * (now() + 10.0)
        refused = [error for error in found if isinstance(error, e.LLMError)]
        told = [error for error in refused if USED_UP in str(error)]
        if rate > 100:
            assert 0.2 * len(found) < len(told) and all(type(error) is type(refused[0]) for error in told)
            assert provider.attempts > 1.2 * len(found), "the budget is also used"
        assert idle(engine)

    run_virtual(scenario)


def test_a_small_user_never_hears_of_it() -> None:
    """Nine attempts a second that fail, and now and then fifty at once."""

    async def scenario() -> None:
        engine = make_engine(Coin(), limits=PLENTY)
        found = await interactive(engine, 8.0, 60.0)
        await asyncio.sleep(10)
        found += await asyncio.gather(*(engine.execute(request(f"x {i}")) for i in range(50)), return_exceptions=True)
        assert not [error for error in found if USED_UP in str(error)]

    run_virtual(scenario)


@pytest.mark.parametrize("status", [500, 503])
def test_a_batch_of_which_half_fails_loses_no_row_and_hardly_waits(status: int) -> None:
    """Its retries take the place of its next rows: as many as there are requests are no load that was not there."""

    async def scenario() -> None:
        provider = HalfFail(refusal(status))
        engine = make_engine(provider, limits=PLENTY, timeout=Timeout(total=10.0))
        found = [outcome async for outcome in outcomes(engine, rows(1000), concurrency=1000)]
        assert [outcome.error for outcome in found if outcome.error is not None] == []
        assert len(found) == 1000 and provider.attempts == 1999
        assert now() < 10.0 and idle(engine)

    run_virtual(scenario)


def test_a_batch_that_waits_for_the_budget_can_be_stopped() -> None:
    async def scenario() -> None:
        turn = itertools.count(1)
        engine = make_engine(lambda http: refusal(500) if next(turn) % 7 else answer(), limits=PLENTY)
        tasks = [asyncio.create_task(engine.execute(request(str(i), priority=1))) for i in range(2000)]
        await asyncio.sleep(5.0)
        assert engine.stats.backing_off > 200 and engine.stats.in_flight < 20
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert idle(engine) and len(asyncio.all_tasks()) == 1

    run_virtual(scenario)


def test_refusals_by_a_limit_and_an_outage_draw_on_nothing() -> None:
    async def scenario() -> None:
        began = now()
        provider = HalfFail(refusal(429))
        engine = make_engine(provider, limits=Limits(concurrency=100_000, adaptive=False))
        found = await asyncio.gather(*(engine.execute(request(str(i))) for i in range(1000)), return_exceptions=True)
        assert not [error for error in found if isinstance(error, BaseException)] and now() - began < 5.0

        down = False
        engine = make_engine(lambda http: refusal(500) if down else answer(), limits=PLENTY)
        await engine.execute(request())
        down = True
        tasks = [asyncio.create_task(engine.execute(request(str(i), priority=1))) for i in range(1000)]
        await asyncio.sleep(30.0)
        down = False
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in found if isinstance(error, BaseException)]
        assert engine.router.endpoints[0].retries._retries < 20

    run_virtual(scenario)


def test_an_error_that_would_not_have_been_tried_again_does_not_speak_of_it() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(500), limits=PLENTY, retry=Retry(attempts=1))
        for i in range(300):
            with pytest.raises(e.InternalServerError) as caught:
                await engine.execute(request(str(i)))
            assert "budget" not in str(caught.value)

    run_virtual(scenario)
