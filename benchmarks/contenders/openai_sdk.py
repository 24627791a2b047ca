"""The official OpenAI SDK: workers that pull from one iterator. With `aiohttp` as fourth argument, on its aiohttp back
end."""

from __future__ import annotations

import asyncio
import sys

import common
from openai import AsyncOpenAI, DefaultAioHttpClient


async def main() -> None:
    url, count, in_flight = common.given()
    more = {"http_client": DefaultAioHttpClient()} if sys.argv[4:] == ["aiohttp"] else {}
    async with AsyncOpenAI(base_url=url, api_key="k", **more) as client:

        async def ask(number: int) -> int:
            rows, right = iter(range(number)), 0

            async def work() -> None:
                nonlocal right
                for _ in rows:
                    answer = await client.chat.completions.create(model="m", messages=common.messages())
                    right += common.right(answer.choices[0].message.content)

            await asyncio.gather(*(work() for _ in range(in_flight)))
            return right

        await common.measure(ask, count, in_flight)


asyncio.run(main())
