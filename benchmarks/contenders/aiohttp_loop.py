"""A bare aiohttp loop: workers that pull from one iterator, JSON encoded and decoded. No limits, no retries."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import common


async def main() -> None:
    url, count, in_flight = common.given()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:

        async def ask(number: int) -> int:
            rows, right = iter(range(number)), 0

            async def work() -> None:
                nonlocal right
                for _ in rows:
                    body = json.dumps({"model": "m", "messages": common.messages()})
                    headers = {"authorization": "Bearer k", "content-type": "application/json"}
                    async with session.post(f"{url}/chat/completions", data=body, headers=headers) as answer:
                        found = json.loads(await answer.read())
                    right += common.right(found["choices"][0]["message"]["content"])

            await asyncio.gather(*(work() for _ in range(in_flight)))
            return right

        await common.measure(ask, count, in_flight)


asyncio.run(main())
