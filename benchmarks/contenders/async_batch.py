"""async-batch-llm's `process_prompts`."""

from __future__ import annotations

import asyncio

import common
from async_batch_llm import llm, process_prompts


async def main() -> None:
    url, count, in_flight = common.given()

    async def ask(number: int) -> int:
        strategy = llm("openai:m", base_url=url, api_key="k", max_connections=in_flight, api_surface="chat_completions")
        batch = await process_prompts(strategy, [common.PROMPT] * number, concurrency=in_flight)
        return sum(common.right(result.output) for result in batch.results)

    await common.measure(ask, count, in_flight)


asyncio.run(main())
