"""The algorithm of the OpenAI cookbook's parallel processor, written anew: one loop begins a task for each request as
the capacity of requests and tokens allows, which time refills; a task posts, and its result is appended to a file."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time

import aiohttp
import common

RPM, TPM = 10_000_000.0, 10_000_000_000.0  # not what bounds it here


class Status:
    """Counters of one run."""

    def __init__(self) -> None:
        self.begun = self.in_progress = self.right = self.failed = 0


async def call(session: aiohttp.ClientSession, url: str, body: dict[str, object], path: str, status: Status) -> None:
    try:
        async with session.post(f"{url}/chat/completions", headers={"authorization": "Bearer k"}, json=body) as answer:
            found = await answer.json()
        with open(path, "a") as file:
            file.write(json.dumps([body, found]) + "\n")
        status.right += common.right(found["choices"][0]["message"]["content"])
    except Exception:
        status.failed += 1
    finally:
        status.in_progress -= 1


async def main() -> None:
    url, count, in_flight = common.given()
    connector = aiohttp.TCPConnector(limit=in_flight)
    with tempfile.NamedTemporaryFile() as out:
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(number: int) -> int:
                status, tasks = Status(), set()
                requests, tokens, updated = RPM, TPM, time.time()
                while status.begun < number or status.in_progress:
                    now = time.time()
                    requests = min(requests + RPM * (now - updated) / 60, RPM)
                    tokens = min(tokens + TPM * (now - updated) / 60, TPM)
                    updated = now
                    cost = len(common.PROMPT) / 4 + 16
                    room = status.in_progress < in_flight and requests >= 1 and tokens >= cost
                    if status.begun < number and room:
                        requests, tokens = requests - 1, tokens - cost
                        status.begun += 1
                        status.in_progress += 1
                        body = {"model": "m", "messages": common.messages()}
                        task = asyncio.create_task(call(session, url, body, out.name, status))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
                        await asyncio.sleep(0)
                    else:
                        await asyncio.sleep(0.001)
                return status.right

            await common.measure(ask, count, in_flight)


asyncio.run(main())
