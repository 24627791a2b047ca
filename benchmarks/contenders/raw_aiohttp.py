"""aiohttp by itself: workers that pull from one iterator, JSON encoded and decoded, no limits, no retries."""

import asyncio
import json

import aiohttp
from work import KEY, Work


async def main(work: Work) -> None:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    url = f"{work.url}/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def ask(body: dict) -> bool:
            async with session.post(url, data=json.dumps(body).encode()) as answer:
                read = json.loads(await answer.read())
            return answer.status == 200 and work.good(read["choices"][0]["message"]["content"])

        await work.measured(lambda count: work.pulled(ask, count))


if __name__ == "__main__":
    asyncio.run(main(Work.given()))
