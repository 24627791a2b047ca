"""Who talks does not wait for a batch's rows to end, and a batch has all the room once nobody talks."""

from __future__ import annotations

import asyncio
import random

from fastllm.engine.limiter import TALK, Limiter
from fastllm.options import Limits
from fastllm.policy.tokens import Estimate
from fastllm.testing.clock import VirtualClock, run_virtual
from kits.engine import now

NEED = Estimate(10.0, 5.0, 5.0)


class Scene:
    """A limiter with a batch that takes all there is, each row for `seconds`."""

    def __init__(self, slots: int, seconds: float, rows: int = 64) -> None:
        self.limiter = Limiter(Limits(concurrency=slots, adaptive=False), VirtualClock())
        self.rows = self.most_rows = 0
        self.tasks = [asyncio.create_task(self._row(seconds)) for _ in range(rows)]

    async def _row(self, seconds: float) -> None:
        while True:
            permit = await self.limiter.acquire(NEED, 1)
            self.rows += 1
            self.most_rows = max(self.most_rows, self.rows)
            self.limiter.answered(permit, seconds)
            try:
                await asyncio.sleep(seconds)
            finally:
                self.rows -= 1
                permit.release()

    async def chat(self, seconds: float) -> float:
        """Talk once; gives how long it waited."""
        began = now()
        permit = await self.limiter.acquire(NEED, 0)
        waited = now() - began
        await asyncio.sleep(seconds)
        permit.release()
        return waited

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert self.limiter.in_flight == self.limiter._talking == self.limiter.waiting == 0


def test_a_chat_finds_a_slot_though_rows_take_long() -> None:
    async def scenario() -> None:
        scene = Scene(8, seconds=20.0)
        await asyncio.sleep(1.0)
        assert scene.rows == 8
        await scene.chat(1.0)  # the first one has to wait for a row's end
        await asyncio.sleep(25.0)
        assert [await scene.chat(1.0) for _ in range(10)] == [0.0] * 10
        assert scene.rows == 7
        await asyncio.sleep(TALK + 25.0)
        assert scene.rows == 8, "nobody talks any more"
        await scene.close()

    run_virtual(scenario)


def test_rows_that_all_end_in_step_hold_up_no_chat() -> None:
    """Fifty chats a second of 50 ms beside 32 slots of rows of 50 ms: about as many at once as eight slots hold."""

    async def scenario() -> None:
        chance = random.Random(7)
        scene = Scene(32, seconds=0.05)
        waits: list[asyncio.Task[float]] = []
        for _ in range(1500):
            await asyncio.sleep(chance.expovariate(50.0))
            waits.append(asyncio.create_task(scene.chat(0.05)))
        late = [wait for task in waits[100:] if (wait := await task) > 0.025]
        assert len(late) <= 0.01 * len(waits)
        assert scene.most_rows >= 24, "a batch keeps three fourths"
        await scene.close()

    run_virtual(scenario)


def test_room_is_kept_for_no_more_than_talk_at_once() -> None:
    async def scenario() -> None:
        scene = Scene(40, seconds=1.0)
        for _ in range(8):
            await scene.chat(0.1)
        await asyncio.sleep(2.0)
        assert scene.rows == 39
        waits = await asyncio.gather(*(scene.chat(0.5) for _ in range(30)))
        assert max(waits) <= 1.5
        await asyncio.sleep(2.0)
        assert scene.limiter.in_flight == 30, "of forty slots a fourth at most"
        await scene.close()

    run_virtual(scenario)


def test_too_few_slots_are_not_divided() -> None:
    async def scenario() -> None:
        scene = Scene(2, seconds=1.0)
        await scene.chat(0.1)
        await asyncio.sleep(3.0)
        assert scene.rows == 2
        await scene.close()

    run_virtual(scenario)


def test_chats_never_wait_behind_a_row_that_waits_for_the_slots_kept_for_them() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(concurrency=16, adaptive=False), VirtualClock())
        waits: list[float] = []

        async def row() -> None:
            permit = await limiter.acquire(NEED, 1)
            limiter.answered(permit, 1.0)
            await asyncio.sleep(300.0)
            permit.release()

        async def chat() -> None:
            began = now()
            permit = await limiter.acquire(NEED, 0)
            waits.append(now() - began)
            await asyncio.sleep(1.0)
            permit.release()

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(chat())
            await asyncio.sleep(0.5)
            for _ in range(40):
                group.create_task(row())
            for _ in range(200):
                await asyncio.sleep(1.0)
                for _ in range(4):
                    group.create_task(chat())
        assert len(waits) == 804 and max(waits) <= 1.0

    run_virtual(scenario)
