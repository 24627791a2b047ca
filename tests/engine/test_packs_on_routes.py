"""Inputs that share requests on a route: each is answered, kept and told of as if it had travelled alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from fastllm import errors as e
from fastllm.cache.base import Cache
from fastllm.cache.memory import InMemoryCache
from fastllm.engine.endpoint import Endpoint
from fastllm.engine.engine import Engine
from fastllm.engine.limiter import Limiter
from fastllm.engine.router import Router
from fastllm.options import Limits, Retry, Route, Upstream
from fastllm.policy.packing import Packing
from fastllm.providers.openai import OpenAIProvider
from fastllm.testing.clock import VirtualClock, run_virtual
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import EMBEDDINGS, HTTPRequest, HTTPResponse, Request, Response, Target
from kits.engine import refusal

TWO = Route(endpoints=["a"], fallbacks=["b"])


class Place:
    """Embeds each input as `mark`; while `down` is set, that is its status. `sizes` are the inputs of each request."""

    def __init__(
        self, mark: float, *, down: int = 0, most: int = 10**6, longest: int = 0, packing: Packing | None = None
    ) -> None:
        self.mark = mark
        self.longest = longest
        self.down = down
        self.most = most
        self.packing = packing or Packing()
        self.sizes: list[int] = []

    def __call__(self, inputs: Sequence[str]) -> HTTPResponse:
        self.sizes.append(len(inputs))
        if self.down:
            return refusal(self.down)
        if self.longest and max(map(len, inputs)) > self.longest:
            return refusal(400, "context_length_exceeded")
        if len(inputs) > self.most:
            error = {"message": f"at most {self.most} inputs"}
            return HTTPResponse(status=400, body=msgspec.json.encode({"error": error}))
        data = [{"index": i, "embedding": [self.mark, float(len(text))]} for i, text in enumerate(inputs)]
        usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
        return HTTPResponse(status=200, body=msgspec.json.encode({"data": data, "model": "x", "usage": usage}))


def make(
    places: dict[str, Place], route: Route = TWO, *, cache: Cache | None = None, retry: Retry | None = None
) -> Engine:
    clock = VirtualClock()

    async def resolve(model: str) -> Endpoint:
        target = Target(base_url=f"http://{model}", model=model)
        return Endpoint(model, OpenAIProvider(), target, Limiter(Limits(), clock), packing=places[model].packing)

    async def find(upstream: Upstream) -> Endpoint:
        return await resolve(upstream.model)

    def handler(http: HTTPRequest) -> HTTPResponse:
        given = msgspec.json.decode(http.body)["input"]
        return places[http.url.split("/")[2]](given if isinstance(given, list) else [given])

    engine = Engine(
        Router(resolve, {"m": route}, find), ScriptedTransport(handler), clock=clock, cache=cache, retry=retry,
        random=lambda: 0.5,
    )  # fmt: skip
    engine.pack()
    return engine


def embedding(text: str) -> Request:
    return Request.of({"model": "m", "input": text}, path=EMBEDDINGS, priority=1)


async def embed(engine: Engine, texts: Sequence[str]) -> list[Response]:
    return await asyncio.gather(*(engine.execute(embedding(text)) for text in texts))


def marks(found: Sequence[Response]) -> set[Any]:
    return {response.data[0].embedding[0] for response in found}


def texts(count: int) -> list[str]:
    return [f"text {i}" for i in range(count)]


def test_an_answer_of_the_fallback_is_kept_as_its_own() -> None:
    async def main() -> None:
        places = {"a": Place(1.0, down=404), "b": Place(2.0)}
        engine = make(places, cache=InMemoryCache())
        first = await embed(engine, texts(10))
        assert marks(first) == {2.0} and not any(response.cached for response in first)
        places["a"].down = 0
        second = await embed(engine, texts(10))
        assert marks(second) == {1.0} and not any(response.cached for response in second)
        third = await embed(engine, texts(10))
        assert marks(third) == {1.0} and all(response.cached for response in third)

    run_virtual(main)


def test_what_the_fallback_has_answered_before_is_not_asked_again() -> None:
    async def main() -> None:
        places = {"a": Place(1.0, down=404), "b": Place(2.0)}
        engine = make(places, cache=InMemoryCache())
        await embed(engine, texts(6))
        again = await embed(engine, texts(8))
        assert marks(again) == {2.0}
        assert [response.cached for response in again] == [True] * 6 + [False] * 2
        assert places["b"].sizes == [6, 2]
        assert engine.stats.ok == 14 and engine.stats.cached == 6 and engine.stats.failed == 0
        await embed(engine, texts(8))
        assert places["b"].sizes == [6, 2]

    run_virtual(main)


def test_each_input_says_who_answered_it_after_which_attempts() -> None:
    async def main() -> None:
        engine = make({"a": Place(1.0, down=500), "b": Place(2.0)})
        for response in await embed(engine, texts(5)):
            assert (response.endpoint, response.attempts) == ("b", 3)
            assert [(tried.endpoint, tried.error) for tried in response.history] == [("a", "InternalServerError")] * 2

    run_virtual(main)


def test_each_error_says_whom_it_comes_from_after_which_attempts() -> None:
    async def main() -> None:
        engine = make({"a": Place(1.0, down=404), "b": Place(2.0, down=404)})
        found = await asyncio.gather(*(engine.execute(embedding(text)) for text in texts(5)), return_exceptions=True)
        for error in found:
            assert isinstance(error, e.NotFoundError)
            assert (error.endpoint, error.attempts) == ("b", 2)
            assert [tried.endpoint for tried in error.history] == ["a", "b"]
        assert len({id(error) for error in found}) == 5
        assert engine.stats.failed == 5

    run_virtual(main)


def test_packs_go_by_turns_as_single_requests_do() -> None:
    async def main() -> None:
        places = {"a": Place(1.0, packing=Packing(10)), "b": Place(2.0, packing=Packing(10))}
        engine = make(places, Route(endpoints=["a", Upstream(model="b", weight=3)]))
        await embed(engine, texts(400))
        assert (len(places["a"].sizes), len(places["b"].sizes)) == (10, 30)
        for text in texts(40):
            await engine.execute(embedding("single " + text))
        assert (len(places["a"].sizes), len(places["b"].sizes)) == (20, 60)

    run_virtual(main)


def test_what_one_place_refuses_is_learnt_of_that_one_alone() -> None:
    async def main() -> None:
        places = {"a": Place(1.0, down=404), "b": Place(2.0, most=10)}
        engine = make(places)
        assert marks(await embed(engine, texts(100))) == {2.0}
        assert places["a"].packing.inputs == Packing().inputs
        assert places["b"].packing.inputs == 10
        assert places["b"].sizes == [100] + [10] * 10
        assert marks(await embed(engine, texts(100))) == {2.0}
        assert places["b"].sizes == [100] + [10] * 20  # what it does not take is not sent any more
        places["a"].down = 0
        places["a"].sizes.clear()
        await embed(engine, texts(100))
        assert places["a"].sizes == [100]
        assert engine.stats.ok == 300 and engine.stats.failed == 0

    run_virtual(main)


def test_an_input_that_is_too_long_goes_to_the_fallback_alone() -> None:
    async def main() -> None:
        places = {"a": Place(1.0, longest=10), "b": Place(2.0, packing=Packing(2))}
        engine = make(places)
        given = [*texts(20), "x" * 11, *texts(20)]
        found = await embed(engine, given)
        assert [response.data[0].embedding for response in found] == [
            [1.0 if len(text) <= 10 else 2.0, float(len(text))] for text in given
        ]
        assert places["b"].sizes == [1]
        assert [tried.error for tried in found[20].history] == ["ContextLengthError"]

    run_virtual(main)


def test_equals_are_sent_what_all_of_them_take() -> None:
    async def main() -> None:
        places = {"a": Place(1.0, packing=Packing(50)), "b": Place(2.0, packing=Packing(20))}
        engine = make(places, Route(endpoints=["a", "b"]))
        await embed(engine, texts(200))
        assert max(places["a"].sizes + places["b"].sizes) == 20

    run_virtual(main)


def test_an_input_that_nobody_waits_for_costs_the_others_nothing_on_the_way_to_a_fallback() -> None:
    async def main() -> None:
        places = {"a": Place(1.0, down=429), "b": Place(2.0)}
        engine = make(places, cache=InMemoryCache(), retry=Retry(base=1.0))
        tasks = [asyncio.create_task(engine.execute(embedding(text))) for text in texts(5)]
        await asyncio.sleep(0.5)
        tasks[2].cancel()
        await asyncio.sleep(0.5)
        places["a"].down = 404
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert marks([response for response in found if isinstance(response, Response)]) == {2.0}
        assert isinstance(found[2], asyncio.CancelledError)
        assert engine.stats.in_flight == 0

    run_virtual(main)
