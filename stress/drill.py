"""The fault drill: many requests against a server that spoils three attempts in ten, in every way that it knows.

    python stress/drill.py [--requests 100000] [--seed 1] [--concurrency 256] [--fixed]

Whole answers, streams and embeddings that share requests, mixed. Each answer carries a checksum of its question and the
question itself, each vector is compared with that of an untroubled server. What must come out: for each request one
outcome, the right answer or a typed error; nobody waits beyond its deadline; no slot, task or connection is left.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec

from fastllm import AsyncFastLLM, Limits, Request, Retry, Timeout
from fastllm.errors import FastLLMError, LLMError
from fastllm.testing import MockConfig, checksum_of, serve_in_thread
from fastllm.types import CHAT, EMBEDDINGS, Outcome

RATE = 0.3  # of the attempts are spoiled
# All but those that stop a key for good (401, 402, 403, insufficient_quota): they would, as they must, end the drill.
KINDS = (
    "400", "400:context_length_exceeded", "400:content_filter", "408", "409", "413", "422", "425",
    "429:ms", "429:retry-after=0", "429:retry-after=nan", "429:retry-after=-5", "500", "500:x-should-retry=true", "502",
    "503:retry-after=0", "503:x-should-retry=false", "504", "529",
    "reset", "reset_mid_body", "close", "hang", "slow_body:0.0002", "truncated_body", "html", "empty", "bad_json",
    "error_in_200", "null_choices", "empty_choices", "stream_truncated", "stream_error_event", "stream_bad_json",
    "stream_stall", "stream_reset", "stream_no_done", "gzip", "gzip_bomb:16777216", "redirect_307_same",
    "redirect_307_cross", "huge_headers:400000", "stale_bytes", "chunked", "split",
)  # fmt: skip
TIMEOUT = Timeout(total=300.0, first_byte=0.5, between_chunks=0.5)
STREAMED, EMBEDDED = 8, 4  # one request in so many


class Drill(msgspec.Struct):
    """What came out. `wrong` are the findings, which must be none."""

    requests: int
    ok: int = 0
    failed: Counter[str] = msgspec.field(default_factory=Counter)
    wrong: list[str] = msgspec.field(default_factory=list)
    attempts: int = 0
    spoiled: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        classes = ", ".join(f"{name} {count}" for name, count in self.failed.most_common())
        return (
            f"{self.requests} requests in {self.seconds:.0f} s: {self.ok} right answers, {self.failed.total()} typed "
            f"errors ({classes})\n{self.attempts} attempts, {self.spoiled} of them spoiled in {len(KINDS)} ways "
            f"({self.spoiled / max(1, self.attempts):.1%})\n{len(self.wrong)} lost, duplicate, corrupt, hung or untyped"
        )


def question(index: int) -> str:
    return f"question {index} {'é' * (index % 5)} " + "word " * (index % 17) + f"end {index * 7919}"


def body_of(index: int) -> dict[str, Any]:
    return {"model": "mock-model", "messages": [{"role": "user", "content": question(index)}]}


def requests_of(indices: Sequence[int]) -> Iterator[Request]:
    """Chats, and every EMBEDDED-th a text to embed, all for `client.stream`."""
    for index in indices:
        if index % EMBEDDED == 0:
            fields: dict[str, Any] = {"model": "mock-embedding", "input": question(index)}
            yield Request.of(fields, path=EMBEDDINGS, custom_id=str(index))
        else:
            yield Request.of(body_of(index), path=CHAT, custom_id=str(index))


def is_right(index: int, text: str) -> bool:
    """Tell whether an answer is the whole one to this question."""
    said = re.escape(question(index)[:200])
    return re.fullmatch(rf"{checksum_of(body_of(index))} \w+ \w+ \w+: {said}", text) is not None


async def drill(
    requests: int, *, seed: int = 1, concurrency: int = 256, adaptive: bool = True, most_seconds: float = 7200.0
) -> Drill:
    """Run it. What takes longer than `most_seconds` altogether hangs. Without `adaptive` a 503 slows nothing down."""
    found = Drill(requests=requests)
    streamed = range(1, requests, STREAMED)
    others = sorted(set(range(requests)).difference(streamed))
    began = time.monotonic()
    config = MockConfig(error_rate=RATE, errors=KINDS, seed=seed, dimensions=16)
    with serve_in_thread(config) as server, serve_in_thread(MockConfig(seed=seed, dimensions=16)) as untroubled:
        async with AsyncFastLLM(base_url=untroubled.base_url, api_key="k") as plain:
            texts = [question(i) for i in others if i % EMBEDDED == 0]
            embedded = await plain.embed(texts, model="mock-embedding", encoding_format="float")
        vectors = {int(text.split()[1]): vector.tolist() for text, vector in zip(texts, embedded, strict=True)}
        client = AsyncFastLLM(
            base_url=server.base_url,
            api_key="k",
            limits=Limits(concurrency=concurrency, adaptive=adaptive),
            timeout=TIMEOUT,
            retry=Retry(attempts=12, base=0.02, cap=0.5),
        )
        async with client:
            try:
                async with asyncio.timeout(most_seconds):
                    await asyncio.gather(
                        _batch(client, others, vectors, found), _streams(client, streamed, found, concurrency // 4)
                    )
            except TimeoutError:
                found.wrong.append(f"hung: not at its end after {most_seconds:g} s")
            stats = client.stats
            if stats.in_flight or stats.waiting or stats.backing_off:
                found.wrong.append(f"left behind: {stats.in_flight} in flight, {stats.waiting} waiting")
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            found.wrong.append(f"left behind: {len(left)} tasks")
        found.attempts, found.spoiled = stats.attempts, server.stats.errors_injected
    found.seconds = time.monotonic() - began
    return found


async def _batch(client: AsyncFastLLM, indices: Sequence[int], vectors: dict[int, list[float]], found: Drill) -> None:
    seen: set[int] = set()
    async for outcome in client.stream(requests_of(indices)):
        index = int(outcome.custom_id or -1)
        if index in seen:
            found.wrong.append(f"twice: {index}")
        seen.add(index)
        _judge(index, outcome, vectors, found)
    lost = set(indices) - seen
    found.wrong += [f"lost: {index}" for index in sorted(lost)]


def _judge(index: int, outcome: Outcome, vectors: dict[int, list[float]], found: Drill) -> None:
    if outcome.response is None:
        _failed(index, outcome.error, found)
    elif index in vectors:
        vector = outcome.response.data[0].floats.tolist()
        _count(index, vector == vectors[index] and len(outcome.response.data) == 1, found)
    else:
        _count(index, is_right(index, outcome.response.text), found)


async def _streams(client: AsyncFastLLM, indices: Sequence[int], found: Drill, workers: int) -> None:
    """Interactive streams, so many at a time."""
    left = iter(indices)

    async def work() -> None:
        for index in left:
            try:
                stream = await client.chat.completions.create(stream=True, **body_of(index))
                text = "".join([piece async for piece in _text(stream)])
            except Exception as error:
                _failed(index, error, found)
            else:
                _count(index, is_right(index, text), found)

    await asyncio.gather(*[work() for _ in range(max(1, workers))])


async def _text(stream: Any) -> AsyncIterator[str]:
    async with stream:
        async for piece in stream.text_stream:
            yield piece


def _count(index: int, right: bool, found: Drill) -> None:
    found.ok += right
    if not right:
        found.wrong.append(f"corrupt: {index}")


def _failed(index: int, error: BaseException | None, found: Drill) -> None:
    if not isinstance(error, LLMError):
        word = "a" if isinstance(error, FastLLMError) else "no"
        found.wrong.append(f"untyped: {index}: {word} FastLLMError: {error!r}")
    found.failed[type(error).__name__] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--fixed", action="store_true", help="always so many at once, whatever the server says")
    given = parser.parse_args()
    drilled = drill(given.requests, seed=given.seed, concurrency=given.concurrency, adaptive=not given.fixed)
    found = asyncio.run(drilled)
    print(f"seed {given.seed}: {found}")
    for line in found.wrong[:20]:
        print(f"  {line}")
    return 1 if found.wrong or found.ok + found.failed.total() != given.requests else 0


if __name__ == "__main__":
    raise SystemExit(main())
