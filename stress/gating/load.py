"""Open-loop load: requests go out at their times whatever became of those before, and count from when they are due."""

from __future__ import annotations

import asyncio
import json
import time

import msgspec

from fastllm.errors import APIConnectionError
from fastllm.options import Timeout
from fastllm.transport.http import HTTPTransport
from fastllm.types import Headers, HTTPRequest

from .clients import CHAT


class Seen(msgspec.Struct):
    """One answer: its status (0: none came), when it was due, and the seconds until it was there."""

    status: int
    due: float
    seconds: float


class Caller:
    """Sends chat requests to a gateway over as many connections as it takes."""

    def __init__(self, port: int, secret: str) -> None:
        asked = {"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": "x" * 200}]}
        headers = Headers({"content-type": "application/json", "authorization": f"Bearer {secret}"})
        self._request = HTTPRequest(
            url=f"http://127.0.0.1:{port}{CHAT}", body=json.dumps(asked).encode(), headers=headers
        )
        self._transport = HTTPTransport(trust_env=False)
        self._timeout = Timeout(total=60.0)

    async def ask(self, due: float) -> Seen:
        """Send one request; `due` is in the seconds of perf_counter."""
        try:
            status = (await self._transport.send(self._request, self._timeout)).status
        except APIConnectionError:
            status = 0
        return Seen(status, due, time.perf_counter() - due)

    async def at_rate(self, rate: float, seconds: float) -> list[Seen]:
        """Send so many a second, evenly."""
        began, tasks = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            due = began + number / rate
            while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(self.ask(due)))
        return await asyncio.gather(*tasks)

    async def in_turn(self, clients: int, seconds: float) -> list[Seen]:
        """Have so many clients ask one request after another."""
        end, found = time.perf_counter() + seconds, []

        async def client() -> None:
            while (now := time.perf_counter()) < end:
                found.append(await self.ask(now))

        await asyncio.gather(*(client() for _ in range(clients)))
        return found

    async def aclose(self) -> None:
        await self._transport.aclose()


def quantile(values: list[float], share: float) -> float:
    """Give the value below which that share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
