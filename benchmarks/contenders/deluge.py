"""lm-deluge: `LLMClient.process_prompts_async`, with limits that do not bind."""

import asyncio
import os

from lm_deluge import LLMClient
from lm_deluge.models import register_model
from work import KEY, MODEL, Work, prompts


async def main(work: Work) -> None:
    os.environ["BENCH_KEY"] = KEY
    register_model(id=MODEL, name=MODEL, api_base=work.url, api_key_env_var="BENCH_KEY")
    client = LLMClient(
        MODEL,
        max_requests_per_minute=100_000_000,
        max_tokens_per_minute=1_000_000_000_000,
        max_concurrent_requests=work.in_flight,
    )

    async def run(count: int) -> int:
        answers = await client.process_prompts_async(list(prompts(count)), show_progress=False)
        return sum(work.good(answer.completion) for answer in answers)

    await work.measured(run)


asyncio.run(main(Work.given()))
