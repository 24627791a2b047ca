"""The OpenAI SDK as it comes, under workers that pull from one iterator."""

import asyncio

import openai
from work import KEY, Work


async def main(work: Work, **options: object) -> None:
    async with openai.AsyncOpenAI(base_url=work.url, api_key=KEY, **options) as client:

        async def ask(body: dict) -> bool:
            answer = await client.chat.completions.create(**body)
            return work.good(answer.choices[0].message.content)

        async def streamed(body: dict) -> bool:
            stream = await client.chat.completions.create(**body, stream=True)
            return sum([1 async for _ in stream]) == work.chunks

        await work.measured(lambda count: work.pulled(streamed if work.chunks else ask, count))


if __name__ == "__main__":
    asyncio.run(main(Work.given()))
