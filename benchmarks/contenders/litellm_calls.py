"""litellm's `acompletion`: workers that pull from one iterator."""

from __future__ import annotations

import asyncio

import common
import litellm

litellm.telemetry = False
litellm.suppress_debug_info = True


async def main() -> None:
    url, count, in_flight = common.given()

    async def ask(number: int) -> int:
        rows, right = iter(range(number)), 0

        async def work() -> None:
            nonlocal right
            for _ in rows:
                answer = await litellm.acompletion(
                    model="openai/m", messages=common.messages(), api_base=url, api_key="k"
                )
                right += common.right(answer.choices[0].message.content)

        await asyncio.gather(*(work() for _ in range(in_flight)))
        return right

    await common.measure(ask, count, in_flight)


asyncio.run(main())
