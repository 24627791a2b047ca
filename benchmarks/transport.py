"""CPU microseconds a request costs the client process: our transport beside aiohttp, plain and TLS.

    python benchmarks/transport.py [--requests 20000] [--in-flight 64,512,4096]

The column "floor" is what the kernel, uvloop and (with TLS) OpenSSL take by themselves: the same bytes written and
read over open sockets, with no HTTP, no pool and no time-out. No Python client over asyncio can cost less.

nginx answers after 50 ms (`benchmarks/upstream.py` says how to install it). Where the system can pin processes, client
and server have a core each. Requests are 600 B, answers 1 KB, as a chat model's are. User and system time are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import resource
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import uvloop
from upstream import ANSWER, Latency, upstream

from fastllm.options import Timeout
from fastllm.transport.http import HTTPTransport
from fastllm.types import Headers, HTTPRequest

LATENCY = 0.05
WARM_UP = 6  # rounds, until all connections are made
BODY = b'{"model": "m", "messages": "' + b"x" * 570 + b'"}'
HEADERS = {"authorization": "Bearer sk-bench", "content-type": "application/json"}
Send = Callable[[], Awaitable[Any]]


def pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


async def with_ours(url: str, trust: ssl.SSLContext, measure: Callable[[Send], Awaitable[float]]) -> float:
    transport = HTTPTransport(ssl_context=trust, trust_env=False)
    request, timeout = HTTPRequest(url=url, body=BODY, headers=Headers(HEADERS)), Timeout()

    async def send() -> None:
        answer = await transport.send(request, timeout)
        assert len(answer.body) == len(ANSWER)

    try:
        return await measure(send)
    finally:
        await transport.aclose()


async def with_aiohttp(url: str, trust: ssl.SSLContext, measure: Callable[[Send], Awaitable[float]]) -> float:
    connector = aiohttp.TCPConnector(limit=0, ssl=trust)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:

        async def send() -> None:
            async with session.post(url, data=BODY) as answer:
                assert len(await answer.read()) == len(ANSWER)

        return await measure(send)


class Exchange(asyncio.Protocol):
    """One socket: writes a request, and waits for as many bytes as an answer has."""

    waiter: asyncio.Future[None]

    def connection_made(self, transport: Any) -> None:
        self.write = transport.write
        self.left = 0

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        if not self.left:
            self.waiter.set_result(None)


async def with_sockets(url: str, trust: ssl.SSLContext, measure: Callable[[Send], Awaitable[float]]) -> float:
    loop = asyncio.get_running_loop()
    tls = trust if url.startswith("https") else None
    port = int(url.split("/")[2].rpartition(":")[2])
    fields = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n{fields}content-length: {len(BODY)}\r\n\r\n"
    request = head.encode() + BODY
    size = await _size(port, tls, request)
    idle: list[Exchange] = []
    made: list[asyncio.BaseTransport] = []

    async def send() -> None:
        if idle:
            socket = idle.pop()
        else:
            transport, socket = await loop.create_connection(Exchange, "127.0.0.1", port, ssl=tls)
            made.append(transport)
        socket.waiter, socket.left = loop.create_future(), size
        socket.write(request)
        await socket.waiter
        idle.append(socket)

    try:
        return await measure(send)
    finally:
        for transport in made:
            transport.close()


async def _size(port: int, tls: ssl.SSLContext | None, request: bytes) -> int:
    """How many bytes an answer has, head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return len(head) + len(ANSWER)


async def cpu_each(send: Send, requests: int, in_flight: int) -> float:
    """Send so many requests, so many at a time; give CPU µs for each. Connections are made before."""

    async def work(count: Iterator[int]) -> None:
        for _ in count:
            await send()

    async def run(total: int) -> None:
        count = iter(range(total))
        await asyncio.gather(*(work(count) for _ in range(in_flight)))

    for _ in range(WARM_UP):
        await run(in_flight)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF)
    await run(requests)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return 1e6 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--in-flight", default="64,512,4096")
    parser.add_argument("--only", choices=["fastllm", "aiohttp", "floor"])
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}, {time.strftime('%Y-%m-%d')}; CPU µs a request")
    print(f"{'in flight':>9}  {'':5} {'fastllm':>8} {'aiohttp':>8} {'floor':>8}")
    clients = {"fastllm": with_ours, "aiohttp": with_aiohttp, "floor": with_sockets}
    with upstream(Latency(LATENCY)) as server:
        pin(0)
        trust = ssl.create_default_context(cadata=server.pem)
        for in_flight in map(int, options.in_flight.split(",")):
            for kind, base in (("plain", server.plain), ("TLS", server.tls)):
                row = []
                for name, client in clients.items():
                    if options.only in (None, name):
                        measure = lambda send, n=in_flight: cpu_each(send, options.requests, n)  # noqa: E731
                        url = f"{base}/chat/completions"
                        row.append(f"{uvloop.run(client(url, trust, measure)):8.1f}")
                print(f"{in_flight:>9}  {kind:5} {' '.join(row)}", flush=True)


if __name__ == "__main__":
    main()
