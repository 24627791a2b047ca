"""lm-deluge's client."""

from __future__ import annotations

import asyncio
import os

import common
from lm_deluge import Conversation, LLMClient
from lm_deluge.models import register_model

os.environ["BENCH_KEY"] = "k"


async def main() -> None:
    url, count, in_flight = common.given()
    register_model(id="bench", name="m", api_base=url, api_key_env_var="BENCH_KEY", api_spec="openai", regions=[])
    client = LLMClient(
        "bench",
        max_requests_per_minute=10_000_000,
        max_tokens_per_minute=10_000_000_000,
        max_concurrent_requests=in_flight,
        progress="manual",
    )

    async def ask(number: int) -> int:
        prompts = [Conversation().user(common.PROMPT) for _ in range(number)]
        answers = await client.process_prompts_async(prompts, show_progress=False)
        return sum(common.right(answer.completion if answer else None) for answer in answers)

    await common.measure(ask, count, in_flight)


asyncio.run(main())
