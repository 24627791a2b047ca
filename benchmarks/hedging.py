"""Hedging over real sockets: latencies and extra attempts of a provider that is slow now and then.

A model server in this process answers in 0.1 s (log-normal, sigma 0.2), but one request in 66 only after some 3 s.
1,200 requests at 50 a second, of which the first 200 are left out. Run: python benchmarks/hedging.py [--hedge 0.95]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time

from fastllm import AsyncFastLLM, Retry
from fastllm.testing import MockConfig, MockServer

REQUESTS, LEFT_OUT, RATE = 1200, 200, 50.0
SLOW = 0.015


async def measure(hedge: float | None, seed: int) -> None:
    draw = random.Random(seed)
    config = MockConfig(latency=0.1, latency_sigma=0.2, answer_bytes=300, seed=seed)
    async with (
        MockServer(config) as server,
        AsyncFastLLM(base_url=server.base_url, api_key="k", retry=Retry(hedge=hedge)) as client,
    ):
        server.script(["slow_body:0.005" if draw.random() < SLOW else None for _ in range(2 * REQUESTS)])
        took: list[float] = []

        async def ask(i: int) -> None:
            began = time.perf_counter()
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(i)}])
            if i >= LEFT_OUT:
                took.append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as group:
            for i in range(REQUESTS):
                group.create_task(ask(i))
                await asyncio.sleep(1.0 / RATE)
        took.sort()
        p50, p95, p99 = (took[int(len(took) * share)] for share in (0.5, 0.95, 0.99))
        stats = client.stats
        print(
            f"hedge={hedge}: p50 {p50:.3f}  p95 {p95:.3f}  p99 {p99:.3f}  longest {took[-1]:.3f} s; "
            f"{stats.attempts} attempts, {stats.hedges} hedges ({stats.hedges / REQUESTS:.1%}), "
            f"{server.stats.cancelled} seen to be cancelled, {server.stats.in_flight} left"
        )


async def main(hedges: list[float | None], seed: int) -> None:
    for hedge in hedges:
        await measure(hedge, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hedge", type=float, action="append", help="quantile; may be given more than once")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    asyncio.run(main([None, *(given.hedge or [0.95, 0.98])], given.seed))
