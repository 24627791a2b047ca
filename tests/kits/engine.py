"""An engine over a scripted transport in virtual time: no socket, no wall clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec

from fastllm.cache.base import Cache
from fastllm.engine.endpoint import Endpoint
from fastllm.engine.engine import Engine
from fastllm.engine.limiter import Limiter
from fastllm.engine.router import Router
from fastllm.jobs.outcomes import outcomes
from fastllm.options import Limits, Retry, Timeout
from fastllm.policy.packing import Packing
from fastllm.policy.parameters import Parameters
from fastllm.providers.openai import OpenAIProvider
from fastllm.testing.clock import VirtualClock
from fastllm.transport.base import HTTPStream
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import Headers, HTTPRequest, HTTPResponse, Outcome, Request, Row, Target


def request(text: str = "hello", **more: Any) -> Request:
    fields = {"model": "m", "messages": [{"role": "user", "content": text}], **more.pop("body", {})}
    return Request.of(fields, **more)


def rows(count: int) -> Iterator[Row]:
    """Batch rows, each with a prompt of its own."""
    for index in range(count):
        yield Row(index=index, custom_id=str(index), request=request(f"row {index}", priority=1))


async def batch(engine: Engine, count: int, concurrency: int = 1000) -> list[Outcome]:
    return [outcome async for outcome in outcomes(engine, rows(count), concurrency=concurrency)]


def now() -> float:
    """Give the running loop's time."""
    return asyncio.get_running_loop().time()


class Source(HTTPStream):
    """Gives bytes, and pauses where a number stands."""

    def __init__(self, *script: bytes | float, **headers: str) -> None:
        self.status = 200
        self.headers = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        self.script = script
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for step in self.script:
            if isinstance(step, bytes):
                yield step
            else:
                await asyncio.sleep(step)

    async def aclose(self) -> None:
        self.closed = True


def answer(text: str = "hi", *, finish_reason: str = "stop", tokens: int = 10, **headers: str) -> HTTPResponse:
    body = {
        "id": "x",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": tokens - 3, "completion_tokens": 3, "total_tokens": tokens},
    }
    found = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return HTTPResponse(status=200, headers=found, body=msgspec.json.encode(body))


def refusal(status: int, code: str | None = None, **headers: str) -> HTTPResponse:
    found = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    body = msgspec.json.encode({"error": {"message": f"no {status}", "code": code, "type": None}})
    return HTTPResponse(status=status, headers=found, body=body)


def make_engine(
    handler: Callable[[HTTPRequest], Any],
    *,
    limits: Limits | None = None,
    cache: Cache | None = None,
    retry: Retry | None = None,
    timeout: Timeout | None = None,
    observers: Any = (),
    headers: dict[str, str] | None = None,
    packing: Packing | None = None,
    parameters: Parameters | None = None,
) -> Engine:
    """Make an engine on the running virtual loop whose provider is `handler`."""
    clock = VirtualClock()

    async def resolve(model: str) -> Endpoint:
        limiter = Limiter(limits or Limits(), clock)
        target = Target(base_url="http://test", model=model, headers=Headers(headers or {}))
        return Endpoint(f"test/{model}", OpenAIProvider(), target, limiter, packing=packing, parameters=parameters)

    return Engine(
        Router(resolve),
        ScriptedTransport(handler),
        clock=clock,
        cache=cache,
        retry=retry,
        timeout=timeout,
        observers=observers,
        random=lambda: 0.5,
    )
