"""Chat beside a batch that takes every slot there is: who talks does not wait for it."""

from __future__ import annotations

import argparse
import asyncio
import json

from .clients import CHAT, answer, connection
from .gateway import Plan, serving
from .load import Caller, quantile
from .provider import provider

SLOTS, LATENCY = 32, 0.05
RATE = 50.0  # chats a second
PROMISED = 1.5
_BOUNDARY = "stress"


async def run(given: argparse.Namespace) -> bool:
    """Compare chat's p99 alone with that beside the batch, where latencies vary and where slots come free in step; true
    where it is at most half as much again."""
    kept = [await _compared(given.seconds, spread) for spread in (0.5, 0.0)]
    return all(kept)


async def _compared(seconds: float, spread: float) -> bool:
    print(
        f"answers take {LATENCY * (1 - spread):g} to {LATENCY * (1 + spread):g} s"
        if spread
        else f"answers take {LATENCY:g} s"
    )
    async with provider(LATENCY, spread) as upstream:
        with serving(Plan(base_url=upstream.base_url, concurrency=SLOTS, beside=True)) as gateway:
            caller = Caller(gateway.port, gateway.secret)
            await caller.at_rate(RATE, 1.0)
            alone = [one.seconds for one in await caller.at_rate(RATE, seconds) if one.status == 200]
            rows = int(2 * SLOTS / LATENCY * (seconds + 5.0))
            await _begin(gateway.port, gateway.secret, rows)
            while len(upstream.in_flight) < SLOTS * 3 // 4:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            before = upstream.answered
            together = [one.seconds for one in await caller.at_rate(RATE, seconds) if one.status == 200]
            done = upstream.answered - before - len(together)
            busy = len(upstream.in_flight)
            await caller.aclose()
    first, second = 1000 * quantile(alone, 0.99), 1000 * quantile(together, 0.99)
    asked = int(RATE * seconds)
    print(
        f"{len(alone)} and {len(together)} of {asked} chats were answered; the batch had {done / seconds:.0f} rows a "
        f"second (at most {SLOTS / LATENCY:.0f} fit), {busy} of {SLOTS} slots were in use at the end"
    )
    print(
        f"chat p50 {1000 * quantile(alone, 0.5):.1f} ms alone, {1000 * quantile(together, 0.5):.1f} ms beside the batch"
    )
    print(
        f"chat p99 {first:.1f} ms alone, {second:.1f} ms beside the batch: {second / first:.2f} times "
        f"(promised: {PROMISED})"
    )
    return second <= PROMISED * first and len(alone) == len(together) == asked and done > 0


async def _begin(port: int, secret: str, rows: int) -> None:
    """Upload a file of requests and begin a batch of it."""
    body = {"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": "x" * 200}]}
    lines = (
        json.dumps({"custom_id": str(n), "method": "POST", "url": CHAT, "body": {**body, "seed": n}})
        for n in range(rows)
    )
    form = (
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{_BOUNDARY}\r\n'
        'content-disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
        + "\n".join(lines)
        + f"\r\n--{_BOUNDARY}--\r\n"
    )
    made = await _post(port, secret, "/v1/files", form.encode(), f"multipart/form-data; boundary={_BOUNDARY}")
    batch = {"input_file_id": made["id"], "endpoint": CHAT, "completion_window": "24h"}
    await _post(port, secret, "/v1/batches", json.dumps(batch).encode(), "application/json")


async def _post(port: int, secret: str, path: str, body: bytes, kind: str) -> dict[str, str]:
    async with connection(port) as (reader, writer):
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secret}\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status, said = await answer(reader)
        if status != 200:
            raise SystemExit(f"{path}: {status} {said[:300]!r}")
        found: dict[str, str] = json.loads(said)
        return found
