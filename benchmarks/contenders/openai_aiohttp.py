"""The OpenAI SDK with its aiohttp back end."""

import asyncio

import openai
from openai_sdk import main
from work import Work


async def run(work: Work) -> None:
    limits = {"limits": openai.DEFAULT_CONNECTION_LIMITS}
    async with openai.DefaultAioHttpClient(**limits) as client:
        await main(work, http_client=client)


asyncio.run(run(Work.given()))
