"""async-batch-llm: `process_prompts` with the strategy for servers that speak as OpenAI's."""

import asyncio

from async_batch_llm import llm, process_prompts
from work import KEY, MODEL, Work, prompts


async def main(work: Work) -> None:
    async def run(count: int) -> int:
        strategy = llm(f"openai-compatible:{MODEL}", base_url=work.url, api_key=KEY)
        batch = await process_prompts(strategy, list(prompts(count)), concurrency=work.in_flight)
        return sum(result.success and work.good(result.output) for result in batch.results)

    await work.measured(run)


asyncio.run(main(Work.given()))
