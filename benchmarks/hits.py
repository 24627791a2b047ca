"""Cache hits a second through the whole engine, on one core: `AsyncFastLLM.stream` over what was all asked before.

    python benchmarks/hits.py [--requests 20000] [--repeat 5]

Requests of 600 B, answers of 1 KB, 64 rows at a time. A stand-in transport fills the cache and must not be asked again.
"disk" is a cache that was closed after it was filled: each pass is by a new client. "A CPU second" counts all threads.
Goals, per core: 60,000 hits a second from memory, 30,000 from disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from contenders.work import KEY, cpu
from rounds import client_core, pin
from upstream import ANSWER

from fastllm import AsyncFastLLM, DiskCache, InMemoryCache, Limits
from fastllm.cache.base import Cache
from fastllm.loop import run
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse

IN_FLIGHT = 64
GOALS = {"memory": 60_000, "disk": 30_000}


def answer(_: HTTPRequest) -> HTTPResponse:
    return HTTPResponse(status=200, headers=[(b"content-type", b"application/json")], body=ANSWER.encode())


def bodies(count: int) -> Iterator[bytes]:
    text = b"x" * 520
    for n in range(count):
        yield b'{"model":"m","messages":[{"role":"user","content":"%08d %b"}]}' % (n, text)


async def ask(cache: Cache, count: int, *, cached: bool) -> tuple[float, float]:
    """Give the wall and CPU seconds of a new client that asks everything."""
    transport = ScriptedTransport(answer)
    limits = Limits(concurrency=IN_FLIGHT, adaptive=False)
    client = AsyncFastLLM(base_url="http://stand.in/v1", api_key=KEY, limits=limits, cache=cache, transport=transport)
    async with client:
        began, spent = time.perf_counter(), cpu()
        hits = 0
        async for outcome in client.stream(bodies(count)):
            assert outcome.ok
            hits += outcome.cached
        taken = time.perf_counter() - began, cpu() - spent
    assert (hits, transport.requests) == ((count, 0) if cached else (0, count))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    pin(client_core())
    count = options.requests
    print(f"{'':8} {'hits/s':>9} {'a CPU second':>13} {'goal':>9}   median of {options.repeat}, {count:,} requests")
    with tempfile.TemporaryDirectory() as name:
        memory = InMemoryCache(max_bytes=1 << 30)
        for kind in GOALS:
            caches = (
                memory if kind == "memory" else DiskCache(directory=Path(name)) for _ in range(options.repeat + 1)
            )
            run(ask(next(caches), count, cached=False))
            runs = [run(ask(cache, count, cached=True)) for cache in caches]
            wall, spent = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"{kind:8} {count / wall:9,.0f} {count / spent:13,.0f} {GOALS[kind]:9,}")


if __name__ == "__main__":
    main()
