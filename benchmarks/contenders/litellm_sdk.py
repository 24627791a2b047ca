"""`litellm.acompletion`, under workers that pull from one iterator."""

import asyncio

import litellm
from work import KEY, Work


async def main(work: Work) -> None:
    async def ask(body: dict) -> bool:
        answer = await litellm.acompletion(model="openai/m", messages=body["messages"], api_base=work.url, api_key=KEY)
        return work.good(answer.choices[0].message.content)

    await work.measured(lambda count: work.pulled(ask, count))


asyncio.run(main(Work.given()))
