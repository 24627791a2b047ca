"""FastLLM's `client.stream`, limits and statistics on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import common
from fastllm import AsyncFastLLM, Limits
from fastllm.loop import run


def bodies(count: int) -> Iterator[dict[str, Any]]:
    return ({"model": "m", "messages": common.messages()} for _ in range(count))


async def main() -> None:
    url, count, in_flight = common.given()
    limits = Limits(concurrency=in_flight, rpm=100_000_000, tpm=100_000_000_000, adaptive=False)
    async with AsyncFastLLM(base_url=url, api_key="k", limits=limits) as client:

        async def ask(number: int) -> int:
            right = 0
            async for outcome in client.stream(bodies(number)):
                right += common.right(outcome.text)
            return right

        await common.measure(ask, count, in_flight)


run(main())
