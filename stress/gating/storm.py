"""The disconnect storm: clients that leave at any moment, in any way."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from .clients import WAYS, connection, leave, message
from .gateway import Opened, Plan, opened
from .provider import Provider, provider

SLOTS = 64  # at the provider: the others wait in the queue
AT_ONCE = 192
PROMISED_MS = 100.0
LONGEST = 0.25  # seconds until a client leaves


class Storm:
    """When each client left, and where it was then."""

    def __init__(self, gateway: Opened, upstream: Provider, seed: int) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.random = random.Random(seed)
        self.left: dict[int, float] = {}
        self.phases: Counter[str] = Counter()

    async def visit(self, number: int) -> None:
        """One client."""
        kind = self.random.choice(("body", "never", "never", "slow", "slow"))
        data = message(self.gateway.secret, f"{'never' if kind == 'body' else kind}-{number}", stream=kind == "slow")
        async with connection(self.gateway.server.port) as (reader, writer):
            if kind == "body":
                writer.write(data[: self.random.randrange(len(data))])
                await asyncio.sleep(self.random.random() * 0.02)
            else:
                writer.write(data)
                await self._stay(reader, kind)
            if number in self.upstream.in_flight:
                self.left[number] = time.perf_counter()
                kind = {"never": "waiting", "slow": "streaming"}[kind]
            elif kind != "body":
                kind = "queued"
            self.phases[kind] += 1
            leave(writer, self.random.choice(WAYS))
            await reader.read()  # until the gateway has closed, too: a half that is closed leaves the other open

    async def _stay(self, reader: asyncio.StreamReader, kind: str) -> None:
        try:
            async with asyncio.timeout(self.random.random() * LONGEST):
                if kind == "slow":
                    await reader.readexactly(self.random.randrange(1, 4000))
                await asyncio.Event().wait()
        except TimeoutError:
            pass


async def run(given: argparse.Namespace) -> bool:
    """Let so many clients come and go; true where nothing of them is left and the provider was told in time."""
    count = given.count or 10_000
    with tempfile.TemporaryDirectory(prefix="fastllm-stress-") as folder:
        async with (
            provider() as upstream,
            opened(Plan(base_url=upstream.base_url, concurrency=SLOTS), Path(folder)) as gateway,
        ):
            storm = Storm(gateway, upstream, given.seed)
            numbers = iter(range(1, count + 1))

            async def visitor() -> None:
                for number in numbers:
                    await storm.visit(number)

            await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))
            held = await gateway.emptied()
            closed = upstream.closed
            late = sorted(1000 * (closed[number] - left) for number, left in storm.left.items() if number in closed)
            never = len(storm.left) - len(late)
            leased = gateway.leased()
    p99 = late[int(0.99 * len(late))]
    told = ", ".join(f"{number} {phase}" for phase, number in sorted(storm.phases.items()))
    print(f"{count} clients left (seed {given.seed}): {told}")
    print(
        f"the provider's connection was closed after {late[len(late) // 2]:.1f} ms (median), {p99:.1f} ms (p99), "
        f"{late[-1]:.1f} ms (most); never: {never} (promised: p99 {PROMISED_MS:.0f} ms)"
    )
    print(
        f"left in the gateway: {held or 'nothing'}; at the provider: {len(upstream.in_flight)} requests; of the budget "
        f"held: {leased:g} USD"
    )
    return p99 <= PROMISED_MS and not never and not held and not upstream.in_flight and not leased
