"""`AsyncFastLLM.stream`, on uvloop as its command line runs; limits are set and kept account of."""

import uvloop
from work import KEY, Work, bodies

from fastllm import AsyncFastLLM, Limits


async def main(work: Work) -> None:
    limits = Limits(concurrency=work.in_flight, adaptive=False)
    async with AsyncFastLLM(base_url=work.url, api_key=KEY, limits=limits) as client:

        async def run(count: int) -> int:
            good = 0
            async for outcome in client.stream(bodies(count)):
                good += outcome.ok and work.good(outcome.response.text)
            return good

        async def ask(body: dict) -> bool:
            stream = await client.chat.completions.create(**body, stream=True)
            return sum([1 async for _ in stream]) == work.chunks

        await work.measured(lambda count: work.pulled(ask, count) if work.chunks else run(count))


uvloop.run(main(Work.given()))
