"""Sharing: limiters and budgets of two engines on one lease file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st

from fastllm.clock import Clock
from fastllm.engine.limiter import Limiter
from fastllm.engine.sharing import Sharing
from fastllm.errors import BudgetExceededError
from fastllm.leases.base import Ask, Share
from fastllm.leases.sqlite import SQLiteLeases
from fastllm.options import Limits
from fastllm.policy.budget import Budget
from fastllm.policy.tokens import Estimate
from fastllm.testing.clock import VirtualClock, run_virtual

ONE = Estimate(100.0, 10.0, 50.0)


class Process:
    """What one process has: an engine's sharing and one limiter."""

    def __init__(self, path: Path, clock: Clock, limits: Limits, budget: float | None = None) -> None:
        self.budget = None if budget is None else Budget(budget, shared=True)
        self.sharing = Sharing(SQLiteLeases(path), clock, self.budget)
        self.limiter = self.sharing.limiter(limits, b"place", ceiling=4096)


@asynccontextmanager
async def two(path: Path, limits: Limits, budget: float | None = None) -> AsyncIterator[tuple[Clock, Process, Process]]:
    clock = VirtualClock()
    both = [Process(path / "l", clock, limits, budget) for _ in range(2)]
    await clock.sleep(1)
    yield clock, both[0], both[1]
    for one in both:
        await one.sharing.aclose()


def admitted(limiter: Limiter) -> int:
    """Take as many permits as there are."""
    count = 0
    while limiter.try_acquire(ONE) is not None:
        count += 1
    return count


def test_requests_a_minute_are_divided_and_go_where_they_are_wanted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path, Limits(rpm=30, adaptive=False)) as (clock, one, other):
            first = admitted(one.limiter)
            assert first == 15
            waiting = [asyncio.ensure_future(one.limiter.acquire(ONE)) for _ in range(20)]
            await clock.sleep(2)
            came = sum(task.done() for task in waiting)
            assert first + came >= 28  # the other wants none
            assert first + came + admitted(other.limiter) == 30
            for task in waiting:
                task.cancel()

    run_virtual(scenario)


def test_a_single_slot_goes_from_hand_to_hand(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path, Limits(concurrency=1)) as (clock, one, other):
            held, queue = 0, {}
            turns: list[str] = []

            async def use(name: str, limiter: Limiter) -> None:
                nonlocal held
                for _ in range(5):
                    permit = await limiter.acquire(ONE)
                    held += 1
                    assert held == 1
                    turns.append(name)
                    await clock.sleep(0.3)
                    held -= 1
                    permit.release()

            queue = {name: asyncio.ensure_future(use(name, p.limiter)) for name, p in (("a", one), ("b", other))}
            for _ in range(60):
                await clock.sleep(0.25)
                if all(task.done() for task in queue.values()):
                    break
            await asyncio.gather(*queue.values())
            assert sorted(turns) == ["a"] * 5 + ["b"] * 5
            assert "".join(turns) not in ("aaaaabbbbb", "bbbbbaaaaa")  # nobody had to wait for the other's end

    run_virtual(scenario)


def test_every_kind_of_limit_is_shared(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path, Limits(tpm=1000, itpm=800, otpm=800, rpd=9, tpd=5000, adaptive=False)) as (
            clock,
            one,
            other,
        ):
            names = [part.name for part in one.limiter.parts]
            assert names == ["tokens/60", "input/60", "output/60", "requests/86400", "tokens/86400"]
            tasks = [asyncio.ensure_future(p.limiter.acquire(ONE)) for p in (one, other) for _ in range(20)]
            await clock.sleep(2.5)
            assert sum(task.done() for task in tasks) <= 9
            for place, part in enumerate(one.limiter.parts):
                assert part.cap + other.limiter.parts[place].cap <= part.total * (1 + 1e-6)
            for task in tasks:
                task.cancel()

    run_virtual(scenario)


def test_money_goes_where_it_is_wanted_and_is_never_spent_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path, Limits(), 1.0) as (clock, one, other):
            assert one.budget is not None and other.budget is not None
            spent = 0
            for budget in (one.budget, other.budget, one.budget, other.budget) * 4:
                while True:
                    try:
                        budget.reserve(0.09).settle(0.09)
                        spent += 1
                    except BudgetExceededError as error:
                        if not error.passing:
                            break
                        await clock.sleep(0.5)
            assert spent == 11  # 0.99 of 1.00
            with pytest.raises(BudgetExceededError) as raised:
                other.budget.reserve(0.09)
            assert not raised.value.passing

    run_virtual(scenario)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400), st.integers(0, 400)), min_size=4, max_size=14))
@settings(max_examples=40, deadline=None)
def test_whoever_waits_for_money_gets_it_or_hears_that_there_is_none(asked: list[tuple[bool, int, int]]) -> None:
    """Both wait at once, for amounts that are no whole fractions; (whose, most, what of that is given back)."""

    async def scenario() -> None:
        with TemporaryDirectory() as folder:
            async with two(Path(folder), Limits(), 1.0) as (clock, one, other):
                spent = 0.0

                async def use(process: Process, amounts: list[tuple[int, int]]) -> None:
                    nonlocal spent
                    assert process.budget is not None
                    for most, back in amounts:
                        for _ in range(60):
                            try:
                                held = process.budget.reserve(most / 1000)
                            except BudgetExceededError as error:
                                if not error.passing:
                                    break
                                await clock.sleep(0.5)
                                continue
                            await clock.sleep(0.2)
                            cost = max(0, most - back) / 1000
                            held.settle(cost)
                            spent += cost
                            break
                        else:
                            raise AssertionError(f"{most} waited for half a minute: {one.budget} {other.budget}")

                mine = [(most, back) for whose, most, back in asked if whose]
                theirs = [(most, back) for whose, most, back in asked if not whose]
                await asyncio.gather(use(one, mine), use(other, theirs))
                assert spent <= 1.0 + 1e-9

    run_virtual(scenario)


def test_what_cannot_be_told_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        class Broken:
            caps = 5.0

            async def exchange(self, asks: Mapping[bytes, Ask]) -> dict[bytes, Share]:
                if self.caps > 5:
                    raise OSError("disk full")
                return {key: Share(self.caps) for key in asks}

            async def aclose(self) -> None:
                pass

        clock, leases = VirtualClock(), Broken()
        sharing = Sharing(leases, clock)
        limiter = sharing.limiter(Limits(rpm=30, adaptive=False), b"place", ceiling=10)
        await clock.sleep(1)
        assert [part.cap for part in limiter.parts] == [5]
        leases.caps = 6.0
        with caplog.at_level(logging.WARNING):
            await clock.sleep(5)
        assert [part.cap for part in limiter.parts] == [5]
        assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
        assert "disk full" in caplog.records[0].message
        await sharing.aclose()

    run_virtual(scenario)


def test_one_place_has_one_limiter() -> None:
    async def scenario() -> None:
        sharing = Sharing(_Nothing(), VirtualClock())
        first = sharing.limiter(Limits(rpm=3), b"place", ceiling=10)
        assert sharing.limiter(Limits(rpm=3), b"place", ceiling=10) is first
        assert sharing.limiter(Limits(rpm=4), b"place", ceiling=10) is not first
        assert sharing.limiter(Limits(rpm=3), b"other", ceiling=10) is not first
        await sharing.aclose()

    run_virtual(scenario)


class _Nothing:
    async def exchange(self, asks: Mapping[bytes, Ask]) -> dict[bytes, Share]:
        return {key: Share(0.0) for key in asks}

    async def aclose(self) -> None:
        pass
