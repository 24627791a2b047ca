"""Routes: one name, several endpoints; the caller gets one answer or one typed error, with the attempts listed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fastllm import errors as e
from fastllm.cache.base import Cache
from fastllm.cache.memory import InMemoryCache
from fastllm.engine.endpoint import Endpoint
from fastllm.engine.engine import Engine
from fastllm.engine.limiter import Limiter
from fastllm.engine.router import Router
from fastllm.options import Limits, Retry, Route, Timeout, Upstream
from fastllm.providers.openai import OpenAIProvider
from fastllm.testing.clock import VirtualClock, run_virtual
from fastllm.transport.base import HTTPStream
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse, Request, Target
from kits.engine import Source, answer, batch, now, refusal, request

Script = Callable[[], Any]
TWO = Route(endpoints=["a"], fallbacks=["b"])
CUT_OFF = Source(b'data: {"choices":[{"delta":{"content":"ha"}}]}\n\n')


def make(
    scripts: dict[str, Script],
    route: Route = TWO,
    *,
    retry: Retry | None = None,
    timeout: Timeout | None = None,
    cache: Cache | None = None,
    limits: dict[str, Limits] | None = None,
) -> Engine:
    """An engine with one route "m"; each of its endpoints answers what its script gives, at http://NAME."""
    clock = VirtualClock()

    async def resolve(model: str) -> Endpoint:
        limiter = Limiter((limits or {}).get(model, Limits()), clock)
        return Endpoint(model, OpenAIProvider(), Target(base_url=f"http://{model}", model=model), limiter)

    async def find(upstream: Upstream) -> Endpoint:
        return await resolve(upstream.model)

    async def handler(http: HTTPRequest) -> Any:
        found = scripts[http.url.split("/")[2]]()
        found = await found if asyncio.iscoroutine(found) else found
        if isinstance(found, Exception):
            raise found
        return found

    return Engine(
        Router(resolve, {"m": route}, find), _Transport(handler), clock=clock, cache=cache, retry=retry,
        timeout=timeout, random=lambda: 0.5,
    )  # fmt: skip


class _Transport(ScriptedTransport):
    """Also gives streams whose script says what comes when."""

    async def open(self, request: HTTPRequest, timeout: Timeout) -> HTTPStream:
        found: Any = await self.send(request, timeout)
        return (
            found if isinstance(found, HTTPStream) else Source(found.body) if found.status == 200 else _Refused(found)
        )


class _Refused(Source):
    def __init__(self, refused: HTTPResponse) -> None:
        super().__init__(refused.body)
        self.status, self.headers = refused.status, refused.headers


async def hang() -> HTTPResponse:
    await asyncio.sleep(3600)
    return answer("too late")


def served(engine: Engine) -> dict[str, int]:
    """How many attempts went to each endpoint."""
    return {endpoint.name: endpoint.limiter.attempts for endpoint in engine.router.endpoints}


def idle(engine: Engine) -> bool:
    stats = engine.stats
    limiters = [endpoint.limiter for endpoint in engine.router.endpoints]
    return (stats.in_flight, stats.waiting, stats.backing_off) == (0, 0, 0) and all(
        limiter.in_flight == limiter.waiting == 0 for limiter in limiters
    )


TROUBLE: list[tuple[str, Script, list[tuple[str, int | None]]]] = [
    ("a limit", lambda: refusal(429, retry_after="60"), [("RateLimitError", 429)]),
    ("errors", lambda: refusal(500), [("InternalServerError", 500)] * 2),
    ("too busy", lambda: refusal(529), [("OverloadedError", 529)] * 2),
    ("a hang", hang, [("APITimeoutError", None)]),
    ("cut off", lambda: e.APIConnectionError("reset", code="eof"), [("APIConnectionError", None)] * 2),
    ("nonsense", lambda: HTTPResponse(status=200, body=b"<html>"), [("ProtocolError", 200)] * 2),
    ("a filter", lambda: refusal(400, "content_filter"), [("ContentFilterError", 400)]),
    ("too small", lambda: refusal(400, "context_length_exceeded"), [("ContextLengthError", 400)]),
    ("too large", lambda: refusal(413), [("RequestTooLargeError", 413)]),
    ("no credit", lambda: refusal(429, "insufficient_quota"), [("QuotaExceededError", 429)]),
    ("a wrong key", lambda: refusal(401), [("AuthenticationError", 401)]),
    ("gone", lambda: refusal(404), [("NotFoundError", 404)]),
]


@pytest.mark.parametrize(("kind", "script", "history"), TROUBLE, ids=[kind for kind, _, _ in TROUBLE])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_fallback_answers_in_time(
    kind: str, script: Script, history: list[tuple[str, int | None]], stream: bool
) -> None:
    async def scenario() -> None:
        engine = make({"a": script, "b": lambda: answer("b")}, timeout=Timeout(total=30))
        if stream:
            opened = await engine.stream(request())
            async for _ in opened:
                pass
            found: Any = opened
            assert opened.response.text == "b" and opened.response.history == opened.history
        else:
            found = await engine.execute(request())
            assert found.text == "b"
        assert found.endpoint == "b" and found.attempts == len(history) + 1
        assert [(tried.error, tried.status_code) for tried in found.history] == history
        assert {tried.endpoint for tried in found.history} == {"a"}
        assert engine.clock.now() <= 15.6, "half of the time at most"
        assert engine.stats.ok == 1 and engine.stats.failed == 0 and idle(engine)

    run_virtual(scenario)


def test_a_stream_that_dies_before_its_first_chunk_goes_on_elsewhere_and_later_not() -> None:
    async def scenario() -> None:
        for script, text in ((Source(b": nothing\n\n"), "b"), (CUT_OFF, None)):
            engine = make({"a": lambda script=script: script, "b": lambda: answer("b")}, retry=Retry(attempts=8))
            opened = await engine.stream(request())
            if text is None:
                with pytest.raises(e.TruncatedStreamError) as caught:
                    async for _ in opened:
                        pass
                assert caught.value.partial.text == "ha" and caught.value.endpoint == "a"
            else:
                assert "".join([chunk.delta async for chunk in opened]) == text
            assert idle(engine)

    run_virtual(scenario)


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (lambda: refusal(500), e.InternalServerError),
        (lambda: refusal(400), e.BadRequestError),
        (lambda: refusal(401), e.AuthenticationError),
        (hang, e.DeadlineExceededError),
    ],
)
def test_where_nobody_answers_there_is_one_typed_error(second: Script, error: type[e.LLMError]) -> None:
    async def scenario() -> None:
        engine = make({"a": lambda: refusal(503), "b": second}, timeout=Timeout(total=60), retry=Retry(attempts=6))
        with pytest.raises(error) as caught:
            await engine.execute(request())
        assert {tried.endpoint for tried in caught.value.history} == {"a", "b"}
        assert engine.clock.now() <= 60.6
        assert engine.stats.failed == 1 and idle(engine)

    run_virtual(scenario)


def test_the_requests_own_fault_is_nobody_elses() -> None:
    async def scenario() -> None:
        for status in (400, 422):
            engine = make({"a": lambda status=status: refusal(status), "b": lambda: answer()})
            with pytest.raises(e.LLMError):
                await engine.execute(request())
            assert served(engine)["b"] == 0

    run_virtual(scenario)


def test_only_the_reasons_that_were_named_lead_to_a_fallback() -> None:
    async def scenario() -> None:
        route = Route(endpoints=["a"], fallbacks=["b"], on=("context_length",))
        engine = make({"a": lambda: refusal(500), "b": lambda: answer()}, route, retry=Retry(attempts=3))
        with pytest.raises(e.InternalServerError):
            await engine.execute(request())
        assert served(engine) == {"a": 3, "b": 0}

    run_virtual(scenario)


def test_what_a_filter_cut_off_is_the_answer_only_if_there_is_no_other() -> None:
    async def scenario() -> None:
        for other, text in ((lambda: answer("b"), "b"), (lambda: refusal(400), "cut"), (lambda: refusal(401), "cut")):
            engine = make({"a": lambda: answer("cut", finish_reason="content_filter"), "b": other})
            response = await engine.execute(request())
            assert response.text == text and idle(engine)
            assert engine.stats.ok == 1 and engine.stats.failed == 0

    run_virtual(scenario)


def test_equals_share_the_requests_by_weight() -> None:
    async def scenario() -> None:
        route = Route(endpoints=[Upstream(model="a", weight=3), "b"])
        engine = make({"a": lambda: answer(), "b": lambda: answer()}, route)
        for i in range(40):
            await engine.execute(request(str(i)))
        assert served(engine) == {"a": 30, "b": 10}

    run_virtual(scenario)


def test_an_endpoint_that_is_listed_twice_has_both_weights() -> None:
    async def scenario() -> None:
        route = Route(endpoints=["a", Upstream(model="a", weight=2), "b"])
        engine = make({"a": lambda: answer(), "b": lambda: answer()}, route)
        for i in range(40):
            await engine.execute(request(str(i)))
        assert served(engine) == {"a": 30, "b": 10}

    run_virtual(scenario)


def test_the_least_loaded_is_who_has_the_most_room() -> None:
    async def slow() -> HTTPResponse:
        await asyncio.sleep(5)
        return answer()

    async def scenario() -> None:
        route = Route(endpoints=["a", "b"], choose="least_loaded")
        limits = {"a": Limits(concurrency=9, adaptive=False), "b": Limits(concurrency=3, adaptive=False)}
        engine = make({"a": slow, "b": slow}, route, limits=limits)
        await asyncio.gather(*(engine.execute(request(str(i))) for i in range(12)))
        assert served(engine) == {"a": 9, "b": 3}
        assert engine.clock.now() == pytest.approx(5)

    run_virtual(scenario)


def test_what_begins_alike_goes_to_one_place_while_it_has_room() -> None:
    async def scenario() -> None:
        route = Route(endpoints=["a", "b", "c"], sticky=True)
        names = {name: (lambda name=name: answer(name)) for name in "abc"}
        engine = make(names, route)
        who: dict[str, Counter[str]] = {}
        for i in range(60):
            body = {"prompt_cache_key": f"tenant {i % 6}"}
            response = await engine.execute(request(str(i), body=body))
            who.setdefault(body["prompt_cache_key"], Counter())[response.text] += 1
        assert all(len(counted) == 1 for counted in who.values())
        assert len({next(iter(counted)) for counted in who.values()}) > 1
        shared = "You are a helpful assistant. " * 60
        places = {(await engine.execute(request(shared + str(i)))).text for i in range(10)}
        assert len(places) == 1
        # A full one passes requests on instead of keeping them waiting.
        limits = {name: Limits(concurrency=1, adaptive=False) for name in "abc"}

        async def slow() -> HTTPResponse:
            await asyncio.sleep(1)
            return answer()

        crowded = make(dict.fromkeys("abc", slow), route, limits=limits)
        await asyncio.gather(*(crowded.execute(request(shared + str(i))) for i in range(3)))
        assert served(crowded) == {"a": 1, "b": 1, "c": 1}

    run_virtual(scenario)


def test_two_keys_are_as_fast_as_both() -> None:
    """A batch over two endpoints of 60 requests a minute each; its retries and waits move to whoever is free."""

    async def scenario() -> None:
        limits = {name: Limits(rpm=60) for name in "ab"}
        route = Route(endpoints=["a", "b"])
        engine = make({"a": lambda: answer(), "b": lambda: answer()}, route, limits=limits)
        found = await batch(engine, 360)
        assert all(outcome.ok for outcome in found) and len(found) == 360
        assert served(engine) == {"a": 180, "b": 180}
        assert engine.clock.now() < 2 * 60.25 * 1.03

    run_virtual(scenario)


def test_who_wants_nobody_for_a_minute_is_not_waited_for() -> None:
    async def scenario() -> None:
        refused = iter([refusal(429, retry_after="60")])
        scripts: dict[str, Script] = {"a": lambda: next(refused, answer("a")), "b": lambda: answer("b")}
        engine = make(scripts, Route(endpoints=["a", "b"]))
        found = await batch(engine, 100, concurrency=20)
        assert all(outcome.ok for outcome in found)
        assert engine.clock.now() < 1.0 and served(engine)["a"] <= 20

    run_virtual(scenario)


def test_a_batch_waits_for_its_model_rather_than_pay_for_another() -> None:
    async def scenario() -> None:
        refused = iter([refusal(429, retry_after="60")])
        engine = make({"a": lambda: next(refused, answer("a")), "b": lambda: answer("b")})
        found = await batch(engine, 20, concurrency=5)
        assert {outcome.text for outcome in found} == {"a"} and served(engine)["b"] == 0
        assert 60 <= engine.clock.now() < 70

    run_virtual(scenario)


def test_a_batch_goes_to_the_fallback_where_the_day_is_over_and_where_the_key_is_refused() -> None:
    async def scenario() -> None:
        for trouble in (
            lambda: refusal(429, retry_after="86400"),
            lambda: refusal(401),
            lambda: refusal(429, "insufficient_quota"),
        ):
            engine = make({"a": trouble, "b": lambda: answer("b")})
            found = await batch(engine, 50, concurrency=10)
            assert {outcome.text for outcome in found} == {"b"}, [outcome.error for outcome in found]
            assert served(engine)["a"] <= 10 and engine.clock.now() < 10

    run_virtual(scenario)


def test_a_dead_endpoint_is_left_alone_but_for_a_probe() -> None:
    async def scenario() -> None:
        dead = [True]
        scripts: dict[str, Script] = {
            "a": lambda: e.APIConnectionError("refused", code="connection_refused") if dead else answer("a"),
            "b": lambda: answer("b"),
        }
        engine = make(scripts, Route(endpoints=["a", "b"]))
        answers = Counter[str]()
        for i in range(600):
            answers[(await engine.execute(request(str(i)))).text] += 1
            await asyncio.sleep(0.1)
        assert answers == {"b": 600}
        assert served(engine)["a"] < 8 + 60 / 5
        dead.clear()
        await asyncio.sleep(20)
        for i in range(100):
            answers[(await engine.execute(request(f"again {i}"))).text] += 1
            await asyncio.sleep(0.1)
        assert answers["a"] > 40, "it has its share again"

    run_virtual(scenario)


def test_answers_are_kept_for_the_equals_together_and_for_a_fallback_alone() -> None:
    async def scenario() -> None:
        asked: list[str] = []

        def says(name: str) -> Script:
            return lambda: asked.append(name) or answer(name)

        cache = InMemoryCache()
        engine = make({"a": says("a"), "b": says("b")}, Route(endpoints=["a", "b"]), cache=cache)
        first = [await engine.execute(request(str(i))) for i in range(4)]
        again = [await engine.execute(request(str(i))) for i in range(4)]
        assert len(asked) == 4 and all(found.cached for found in again)
        assert [found.text for found in first] == [found.text for found in again]

        small = make(
            {"a": lambda: refusal(400, "context_length_exceeded"), "b": says("b")},
            cache=InMemoryCache(),
            timeout=Timeout(),
        )
        asked.clear()
        assert (await small.execute(request())).text == "b"
        again_b = await small.execute(request())
        assert again_b.cached and again_b.text == "b" and asked == ["b"]
        # The fallback's answer is not the first endpoint's.
        direct = Request.of({"model": "b", "messages": [{"role": "user", "content": "hello"}]})
        assert (await small.execute(direct)).cached
        assert small.stats.ok == 3 and small.stats.cached == 2

    run_virtual(scenario)


def test_equal_requests_at_once_are_one() -> None:
    async def scenario() -> None:
        async def slow() -> HTTPResponse:
            await asyncio.sleep(1)
            return answer("once")

        engine = make({"a": slow, "b": slow}, Route(endpoints=["a", "b"]), cache=InMemoryCache())
        found = await asyncio.gather(*(engine.execute(request()) for _ in range(20)))
        assert {response.text for response in found} == {"once"} and sum(served(engine).values()) == 1

    run_virtual(scenario)


def test_it_ends_whatever_the_endpoints_do() -> None:
    """Two equals and two fallbacks that fail in turn, in every pair of kinds, whole: one outcome each, nothing left."""

    async def scenario() -> None:
        route = Route(endpoints=["a", "b"], fallbacks=["c", "d"])
        for _, first, _ in TROUBLE:
            for _, second, _ in TROUBLE:
                scripts = {"a": first, "b": second, "c": first, "d": second}
                engine = make(scripts, route, timeout=Timeout(total=40), retry=Retry(attempts=5))
                began = now()
                found = await asyncio.gather(
                    *(engine.execute(request(str(i))) for i in range(4)), return_exceptions=True
                )
                assert all(isinstance(error, e.LLMError) for error in found), found
                assert idle(engine) and now() - began <= 40.6
                assert all(len(error.history) >= error.attempts for error in found)  # type: ignore[union-attr]

    run_virtual(scenario)
