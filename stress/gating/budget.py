"""The budget race: parallel requests on the last cent of a key's budget."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from pathlib import Path

from fastllm.policy.purse import OVERHEAD

from .clients import answer, connection, message
from .gateway import PRICES, Plan, opened
from .provider import provider

CENT = 0.01


async def run(given: argparse.Namespace) -> bool:
    """Send so many at once; true where what was spent exceeds the budget by no more than one request can cost."""
    count = given.count or 1000
    with tempfile.TemporaryDirectory(prefix="fastllm-stress-") as folder:
        async with (
            provider(0.02) as upstream,
            opened(Plan(base_url=upstream.base_url, budget_day=CENT), Path(folder)) as gateway,
        ):
            data = message(gateway.secret, "whole-0")

            async def ask() -> int:
                async with connection(gateway.server.port) as (reader, writer):
                    writer.write(data)
                    return (await answer(reader))[0]

            statuses = Counter(await asyncio.gather(*(ask() for _ in range(count))))
            held = await gateway.emptied()
            leased = gateway.leased()
            spent = gateway.tenancy.tenants.spending(gateway.tenancy.store.list()[0]).day
    price = PRICES["providers"]["base_url"]["models"]["m"]
    size = len(data.partition(b"\r\n\r\n")[2]) + OVERHEAD  # a token has a byte at least
    bound = (size * price["input"] + 20 * price["output"]) / 1e6
    print(f"{count} requests at once on {CENT} USD: {dict(statuses)}; each costs {bound:.6f} USD at most")
    print(
        f"{upstream.answered} were answered; spent {spent:.6f} USD, {max(0.0, spent - CENT):.6f} too much (promised: "
        f"{bound:.6f} at most); held at the end: {held or 'nothing'}, {leased:g} USD"
    )
    return spent - CENT <= bound and 0 < statuses[200] < count and not held and not leased
