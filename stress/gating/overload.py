"""Overload: five times as many requests as the provider can take; those that find the queue full are told at once."""

from __future__ import annotations

import argparse
from collections import Counter

from .gateway import Plan, serving
from .load import Caller, quantile
from .provider import provider

SLOTS, LATENCY = 16, 0.04  # 400 requests a second
QUEUE = 32  # requests
TIMES = 5
GOODPUT, SHED_MS = 0.9, 5.0  # what is promised
EDGE = 0.5  # seconds in which the queue fills


async def run(given: argparse.Namespace) -> bool:
    """Find the peak with patient clients, then send five times as much; true where goodput holds and sheds are quick."""
    seconds = given.seconds
    async with provider(LATENCY) as upstream:
        with serving(Plan(base_url=upstream.base_url, concurrency=SLOTS, queue_size=QUEUE)) as gateway:
            caller = Caller(gateway.port, gateway.secret)
            await caller.in_turn(SLOTS, 0.5)
            peak = len(await caller.in_turn(SLOTS + QUEUE // 2, seconds)) / seconds
            seen = await caller.at_rate(TIMES * peak, seconds + EDGE)
            await caller.aclose()
    first = seen[0].due + EDGE
    seen = [one for one in seen if one.due >= first]
    good = sum(one.status == 200 for one in seen) / seconds
    sheds = [1000 * one.seconds for one in seen if one.status == 429]
    others = Counter(one.status for one in seen if one.status not in (200, 429))
    median, p99 = quantile(sheds, 0.5), quantile(sheds, 0.99)
    print(
        f"peak {peak:.0f} good answers a second; with {TIMES * peak:.0f} requests a second {good:.0f} ({good / peak:.0%}; "
        f"promised: {GOODPUT:.0%})"
    )
    print(f"{len(sheds)} were shed, after {median:.2f} ms (median), {p99:.2f} ms (p99) (promised: {SHED_MS:g} ms)")
    print(f"other answers: {dict(others) or 'none'}")
    return good >= GOODPUT * peak and p99 <= SHED_MS and not others
