"""Hedging over real sockets: the loser's connection is closed at once, and nothing is counted twice."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fastllm import AsyncFastLLM, Retry
from fastllm.testing import MockConfig, MockServer

LATENCY = 0.02
WARM = 200  # three hedges
PATIENCE = 5.0


async def ask(client: AsyncFastLLM, text: str, **more: Any) -> Any:
    return await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **more)


async def warm(client: AsyncFastLLM, **more: Any) -> int:
    """Have it know what is usual; give the hedges that this took."""

    async def whole(text: str) -> None:
        answer = await ask(client, text, **more)
        if more:
            await answer.final()

    await asyncio.gather(*(whole(f"warm {i}") for i in range(WARM)))
    hedging = client._engine.router.endpoints[0].hedging
    assert hedging is not None
    hedging.budget._retries = 0.0  # a machine that stumbles may have needed some already
    return client.stats.hedges


async def gone(server: MockServer, cancelled: int) -> float:
    """Wait until the server has seen so many clients leave; give the seconds that took."""
    began = time.monotonic()
    while server.stats.cancelled < cancelled or server.stats.in_flight:
        assert time.monotonic() - began < 5.0
        await asyncio.sleep(0.002)
    return time.monotonic() - began


@pytest.mark.parametrize(("fault", "stream"), [("hang", False), ("slow_body:0.5", False), ("hang", True)])
async def test_the_losers_connection_is_closed_within_100_ms(fault: str, stream: bool) -> None:
    more = {"stream": True} if stream else {}
    async with (
        MockServer(MockConfig(latency=LATENCY)) as server,
        AsyncFastLLM(base_url=server.base_url, api_key="k", retry=Retry(hedge=0.99), timeout=PATIENCE) as client,
    ):
        before = await warm(client, **more)
        cancelled = server.stats.cancelled
        server.script([fault])
        answer = await ask(client, "late", **more)
        assert await gone(server, cancelled + 1) < 0.1
        if stream:
            answer = await answer.final()
        stats = client.stats
        assert answer.attempts == 2 and (stats.hedges - before, stats.ok, stats.in_flight) == (1, WARM + 1, 0)
        assert stats.attempts == server.stats.requests == WARM + before + 2


async def test_a_caller_who_goes_away_closes_both() -> None:
    async with (
        MockServer(MockConfig(latency=LATENCY)) as server,
        AsyncFastLLM(base_url=server.base_url, api_key="k", retry=Retry(hedge=0.99), timeout=PATIENCE) as client,
    ):
        before = await warm(client)
        cancelled = server.stats.cancelled
        server.script(["hang", "hang"])
        task = asyncio.create_task(ask(client, "late"))
        while client.stats.hedges == before:  # noqa: ASYNC110 -- there is no event for it
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await gone(server, cancelled + 2) < 0.1
        assert client.stats.in_flight == 0 and client.stats.hedges == before + 1
        assert (await ask(client, "next")).attempts == 1
