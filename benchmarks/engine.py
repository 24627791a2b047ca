"""The engine's own cost: everything but the transport, in CPU µs a request.

A stand-in transport answers each request one turn of the loop later with a 1 KB chat answer, so that what is measured
is routing, admission, encoding, decoding, settling and counting, plus the future and the task switch that any
transport needs. Run: python benchmarks/engine.py [--requests N] [--limits] [--cache memory]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator

import msgspec
from instant import InstantTransport

from fastllm import loop
from fastllm.build import EngineOptions, engine
from fastllm.jobs.runner import outcomes
from fastllm.options import Limits, Timeout
from fastllm.types import HTTPRequest, Request, Row

ANSWER = msgspec.json.encode(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x" * 800},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300},
    }
)
HEADERS = [
    (b"content-type", b"application/json"),
    (b"date", b"Mon, 23 Nov 2026 00:00:00 GMT"),
    (b"x-request-id", b"req_1"),
    (b"content-length", b"1000"),
]


def bodies(count: int) -> Iterator[bytes]:
    text = b"word " * 100
    for i in range(count):
        yield b'{"model":"m","messages":[{"role":"user","content":"%d %b"}],"max_tokens":200}' % (i, text)


def rows(count: int) -> Iterator[Row]:
    for i, body in enumerate(bodies(count)):
        yield Row(index=i, request=Request.from_body(body, priority=1))


async def bare(count: int, in_flight: int) -> float:
    """The transport and the input alone under the same number of tasks: what is subtracted."""
    transport, texts = InstantTransport(ANSWER, HEADERS), bodies(count)

    timeout = Timeout()

    async def worker() -> None:
        for body in texts:
            await transport.send(HTTPRequest(url="http://test", body=body), timeout)

    began = time.process_time()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return (time.process_time() - began) / count * 1e6


async def measured(count: int, in_flight: int, limits: bool, cache: str | None) -> float:
    ceiling = Limits(concurrency=in_flight, rpm=1e9 if limits else None, tpm=1e12 if limits else None, adaptive=False)
    made = engine(
        EngineOptions(base_url="http://test", limits=ceiling, transport=InstantTransport(ANSWER, HEADERS), cache=cache)
    )
    began = time.process_time()
    done = 0
    async for outcome in outcomes(made, rows(count), concurrency=in_flight):
        assert outcome.ok
        done += 1
    spent = time.process_time() - began
    assert done == count
    await made.aclose()
    return spent / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limits", action="store_true", help="with RPM and TPM ledgers")
    parser.add_argument("--cache", choices=["memory", "disk"])
    args = parser.parse_args()
    medians = {}
    print(f"{'in flight':>9}  {'bare':>6}  {'engine':>7}  {'own cost':>8}   CPU µs a request, median of {args.repeat}")
    for in_flight in (256, 4096):
        runs = [
            (
                loop.run(bare(args.requests, in_flight)),
                loop.run(measured(args.requests, in_flight, args.limits, args.cache)),
            )
            for _ in range(args.repeat)
        ]
        without, whole = (statistics.median(column) for column in itertools.islice(zip(*runs, strict=True), 2))
        medians[in_flight] = whole - without
        print(f"{in_flight:>9}  {without:>6.1f}  {whole:>7.1f}  {whole - without:>8.1f}")
    print(f"4,096 in flight costs {medians[4096] / medians[256]:.2f} times what 256 does")


if __name__ == "__main__":
    main()
