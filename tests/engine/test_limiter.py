"""engine/limiter: admission in order, under all limits at once, in virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from fastllm.engine.limiter import Limiter
from fastllm.engine.permit import Permit
from fastllm.errors import LimitExceededError
from fastllm.options import Limits
from fastllm.policy.tokens import Estimate
from fastllm.testing.clock import VirtualClock, run_virtual


def need(tokens: float) -> Estimate:
    """A request of which everything is sure."""
    return Estimate(tokens, tokens, tokens)


async def spin(times: int = 3) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def test_no_more_than_the_slots_are_in_flight_and_waiters_are_served_in_order() -> None:
    async def scenario() -> list[int]:
        limiter = Limiter(Limits(concurrency=2), VirtualClock())
        order: list[int] = []

        async def one(i: int) -> None:
            permit = await limiter.acquire(need(1))
            assert limiter.in_flight <= 2
            order.append(i)
            await asyncio.sleep(1)
            permit.release()

        await asyncio.gather(*(one(i) for i in range(20)))
        assert limiter.in_flight == limiter.waiting == 0
        return order

    assert run_virtual(scenario) == list(range(20))


def test_nobody_overtakes_a_large_request_that_waits_for_tokens() -> None:
    async def scenario() -> list[str]:
        clock = VirtualClock()
        limiter = Limiter(Limits(concurrency=None, tpm=100), clock)
        order: list[str] = []

        async def one(name: str, tokens: int) -> None:
            (await limiter.acquire(need(tokens))).release()
            order.append(name)

        async with asyncio.TaskGroup() as group:
            for name, tokens in (("a", 60), ("large", 90), ("small", 1)):
                group.create_task(one(name, tokens))
        assert 60 < clock.now() < 61
        return order

    assert run_virtual(scenario) == ["a", "large", "small"]


@pytest.mark.parametrize("seed", range(5))
def test_no_minute_holds_more_than_the_limits_whatever_the_load(seed: int) -> None:
    """RPM and TPM hold together in every sliding 60 s window, and most of the scarcer one is used."""

    async def scenario() -> tuple[list[tuple[float, float]], float]:
        clock, rng = VirtualClock(), random.Random(seed)
        limiter = Limiter(Limits(concurrency=None, rpm=60, tpm=3000), clock)
        sent: list[tuple[float, float]] = []

        async def one() -> None:
            tokens = min(3000.0, rng.lognormvariate(4, 0.7))
            permit = await limiter.acquire(need(tokens))
            actual = tokens * rng.uniform(0.5, 1.0)
            sent.append((clock.now(), actual))
            await asyncio.sleep(rng.expovariate(1))
            permit.settle(actual)
            permit.release()

        await asyncio.gather(*(one() for _ in range(400)))
        return sent, clock.now()

    sent, elapsed = run_virtual(scenario)
    for start, _ in sent:
        inside = [tokens for at, tokens in sent if start <= at < start + 60]
        assert len(inside) <= 60 and sum(inside) <= 3000
    assert len(sent) == 400
    assert max(400 / 60, sum(t for _, t in sent) / 3000) - 1 <= elapsed / 60 <= 400 / 60 + 2


def test_a_request_over_the_limit_is_refused_at_once_and_others_go_on() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(tpm=100), VirtualClock())
        with pytest.raises(LimitExceededError, match=r"at least 101 tokens, more than the limit of 100 .*tpm"):
            await limiter.acquire(need(101))
        (await limiter.acquire(need(100))).release()

    run_virtual(scenario)


def test_a_permit_gives_its_slot_back_once() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(concurrency=1), VirtualClock())
        permit = await limiter.acquire(need(1))
        permit.release()
        permit.release()
        permit.settle(5)
        permit.refund()
        assert limiter.in_flight == 0

    run_virtual(scenario)


@pytest.mark.fault("tokens-never-refunded")
def test_a_refund_gives_back_request_and_tokens() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(rpm=1, tpm=10), VirtualClock())
        permit = await limiter.acquire(need(10))
        permit.refund()
        permit.release()
        assert limiter.try_acquire(need(10)) is not None

    run_virtual(scenario)


def test_cancelled_waiters_leave_nothing_behind() -> None:
    """Cancelled before, at and after the grant: no slot is lost, and those behind them are served."""

    async def scenario() -> None:
        limiter = Limiter(Limits(concurrency=1), VirtualClock())
        first = await limiter.acquire(need(1))
        tasks = [asyncio.create_task(limiter.acquire(need(1))) for _ in range(1000)]
        await spin()
        for task in tasks[:500]:
            task.cancel()
        await spin()
        first.release()  # grants to tasks[500], which is cancelled before it can run
        tasks[500].cancel()
        await spin()
        permit = await tasks[501]
        assert limiter.in_flight == 1
        for task in tasks[502:]:
            task.cancel()
        await asyncio.gather(*tasks[502:], return_exceptions=True)
        permit.release()
        assert (limiter.in_flight, limiter.waiting) == (0, 0)

    run_virtual(scenario)


def test_a_cancelled_head_lets_the_next_one_in_if_it_fits() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(concurrency=None, tpm=100), VirtualClock())
        (await limiter.acquire(need(50))).release()
        head = asyncio.create_task(limiter.acquire(need(80)))
        small = asyncio.create_task(limiter.acquire(need(10)))
        await spin()
        head.cancel()
        await spin()
        assert small.done()

    run_virtual(scenario)


def test_interactive_requests_go_first_but_batch_ones_do_not_starve() -> None:
    async def scenario() -> list[int]:
        limiter = Limiter(Limits(concurrency=1), VirtualClock())
        order: list[int] = []

        async def one(priority: int) -> None:
            permit = await limiter.acquire(need(1), priority)
            order.append(priority)
            await asyncio.sleep(1)
            permit.release()

        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(one(1))
            for _ in range(40):
                group.create_task(one(0))
        return order

    order = run_virtual(scenario)
    assert order[1:8].count(0) >= 6
    assert 1 <= order[1:30].count(1) <= 5


def test_a_parked_endpoint_admits_nobody_until_its_time() -> None:
    async def scenario() -> float:
        clock = VirtualClock()
        limiter = Limiter(Limits(), clock)
        limiter.park(30)
        assert "parked for 30.0 s" in repr(limiter)
        (await limiter.acquire(need(1))).release()
        return clock.now()

    assert run_virtual(scenario) == pytest.approx(30)


def test_the_repr_says_what_it_does_now() -> None:
    async def scenario() -> str:
        limiter = Limiter(Limits(concurrency=2, rpm=60, tpm=1000), VirtualClock())
        await limiter.acquire(need(100))
        return repr(limiter)

    assert (
        run_virtual(scenario) == "<Limiter 1 of 2 slots, 0 waiting, 1/60 requests a minute, 100/1000 tokens a minute>"
    )


@pytest.mark.fault("waiters-that-poll")
def test_a_decision_takes_one_timer_however_long_the_queue() -> None:
    """With 10,000 waiting there is one timer in the loop, not 10,000."""

    async def scenario() -> None:
        limiter = Limiter(Limits(concurrency=None, rpm=1), VirtualClock())
        (await limiter.acquire(need(1))).release()
        tasks = [asyncio.create_task(limiter.acquire(need(1))) for _ in range(10_000)]
        await spin()
        timers = [t for t in asyncio.get_running_loop()._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
        assert limiter.waiting == 10_000 and len(timers) == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(scenario)


def test_a_permit_is_handed_over_with_its_estimate() -> None:
    async def scenario() -> Permit:
        return await Limiter(Limits(tpm=100), VirtualClock()).acquire(need(7))

    assert run_virtual(scenario).estimate == 7
