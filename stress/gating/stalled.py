"""Stalled readers: clients that open an endless stream and read nothing."""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack

from .clients import connection, message
from .gateway import Plan, Serving, serving
from .provider import provider

MOST_MIB = 300.0
STEP = 50  # that come at once
LONGEST = 120.0  # seconds until all are held


async def run(given: argparse.Namespace) -> bool:
    """Hold so many of them for some seconds; true where memory stays within the promise, and all ends with them."""
    count = given.count or 1000
    async with provider() as upstream:
        with serving(Plan(base_url=upstream.base_url)) as gateway:
            alone, peak, first = gateway.memory(), 0.0, time.monotonic()
            async with AsyncExitStack() as clients:
                for start in range(0, count, STEP):
                    await asyncio.gather(*(_open(clients, gateway, start + number) for number in range(STEP)))
                    peak = max(peak, gateway.memory())
                began = time.monotonic()
                while time.monotonic() - began < given.seconds:
                    await asyncio.sleep(0.1)
                    peak = max(peak, gateway.memory())
                    if len(upstream.in_flight) < count and time.monotonic() < first + LONGEST:
                        began = time.monotonic()  # what the sockets take of each comes first
                held = len(upstream.in_flight)
            each = 1024 * (peak - alone) / count
            print(f"{count} stalled readers, {held} streams held at the provider")
            print(f"{alone:.0f} MiB alone, {peak:.0f} MiB at most: {each:.0f} KiB each (promised: {MOST_MIB:.0f} MiB)")
            for _ in range(100):
                await asyncio.sleep(0.05)
                if not upstream.in_flight:
                    break
            left = len(upstream.in_flight)
            print(f"after they left: {left} streams at the provider, {gateway.memory():.0f} MiB")
    return held == count and peak <= MOST_MIB and not left


async def _open(clients: AsyncExitStack, gateway: Serving, number: int) -> None:
    _, writer = await clients.enter_async_context(connection(gateway.port))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(message(gateway.secret, f"endless-{number}", stream=True))
