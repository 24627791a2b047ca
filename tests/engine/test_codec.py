"""engine/codec: a Provider whose code fails costs its request and nothing else (FAULTS 63)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastllm import errors as e
from fastllm.cache.memory import InMemoryCache
from fastllm.engine.engine import Engine
from fastllm.jobs.outcomes import outcomes
from fastllm.options import Limits
from fastllm.providers.openai import OpenAIProvider
from fastllm.providers.openai_stream import OpenAIDecoder
from fastllm.testing.clock import run_virtual
from fastllm.types import EMBEDDINGS, HTTPResponse, Outcome, Request, Row
from kits.engine import Source, answer, batch, make_engine, request

PIECE = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def fail(*args: Any) -> Any:
    raise KeyError("the prompt")


def fail_for_row_1(method: Any) -> Any:
    def wrapped(self: Any, request: Request, other: Any) -> Any:
        if b"row 1" in request.body:
            fail()
        return method(self, request, other)

    return wrapped


def idle(engine: Engine) -> bool:
    limiter = engine.router.endpoints[0].limiter
    return engine.stats.in_flight == limiter.in_flight == limiter.waiting == 0


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_a_provider_whose_code_fails_costs_one_row(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAIProvider, method, fail_for_row_1(getattr(OpenAIProvider, method)))

    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(concurrency=2))
        found = {outcome.index: outcome for outcome in await batch(engine, 4, concurrency=2)}
        error = found.pop(1).error
        assert len(found) == 3 and all(outcome.error is None for outcome in found.values())
        assert isinstance(error, e.InvalidRequestError if method == "encode" else e.ProtocolError)
        assert error.sent == (method == "decode") and error.code == "provider_failed"
        assert "openai" in str(error) and "KeyError" in str(error) and "prompt" not in str(error)
        assert isinstance(error.__cause__, KeyError)
        assert idle(engine)

    run_virtual(scenario)


@pytest.mark.parametrize("method", ["feed", "finish", "response"])
def test_a_decoder_whose_code_fails_ends_its_stream(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAIDecoder, method, fail)

    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(concurrency=1))
        sources = [Source(PIECE, b"" if method == "finish" else END) for _ in range(9)]

        async def open(*args: Any) -> Source:
            return sources.pop()

        engine.transport.open = open  # type: ignore[assignment]
        with pytest.raises(e.ProtocolError, match="raised KeyError"):
            await (await engine.stream(request(body={"stream": True}))).final()
        assert idle(engine)

    run_virtual(scenario)


@pytest.mark.parametrize("way", ["left", "broken"])
def test_what_came_so_far_cannot_be_read_and_the_slot_is_free_nonetheless(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(concurrency=1))
        source = Source(PIECE, 1.0, b'data: {"error":{"message":"x","code":429}}\n\n')

        async def open(*args: Any) -> Source:
            return source

        engine.transport.open = open  # type: ignore[assignment]
        stream = await engine.stream(request(body={"stream": True}))
        monkeypatch.setattr(OpenAIDecoder, "response", fail)
        if way == "left":
            await stream.aclose()
        else:
            with pytest.raises(e.RateLimitError) as found:
                await stream.final()
            assert found.value.partial is None
        await asyncio.sleep(0.1)
        assert source.closed and idle(engine)

    run_virtual(scenario)


@pytest.mark.parametrize("method", ["decoder", "replay"])
def test_other_code_of_a_provider_that_fails_is_an_error_too(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), cache=InMemoryCache(), limits=Limits(concurrency=1))
        if method == "replay":
            await engine.execute(request())
        monkeypatch.setattr(OpenAIProvider, method, fail)
        with pytest.raises(e.ProtocolError, match="code of openai raised KeyError"):
            await engine.stream(request())
        assert idle(engine)

    run_virtual(scenario)


def test_vectors_that_a_provider_has_not_looked_at_cost_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastllm.providers.openai.check_vectors", lambda request, answer: None)

    async def scenario() -> list[Outcome]:
        body = b'{"data":[{"index":0,"embedding":[1.0]}]}'
        engine = make_engine(lambda http: HTTPResponse(status=200, body=body))
        engine.pack()
        asked = [Request.of({"model": "m", "input": f"{i}"}, path=EMBEDDINGS, priority=1) for i in range(3)]
        rows = [Row(index=i, custom_id=str(i), request=one) for i, one in enumerate(asked)]
        return [outcome async for outcome in outcomes(engine, rows, concurrency=3)]

    assert [type(outcome.error) for outcome in run_virtual(scenario)] == [e.ProtocolError] * 3
