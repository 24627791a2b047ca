"""A connection the server dropped while it was idle: every send takes a permit and counts, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastllm import APIConnectionError, FastLLM, Limits, Retry
from fastllm.engine.events import AttemptFailed, Event
from fastllm.testing import MockConfig, serve_in_thread
from fastllm.testing.clock import run_virtual
from fastllm.types import HTTPRequest, HTTPResponse
from kits.engine import answer, make_engine, request


def ask(client: FastLLM, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **more)


def counters(client: FastLLM) -> tuple[int, int]:
    stats = client.stats
    return stats.attempts, stats.retries


@pytest.mark.parametrize("max_retries", [0, 2])
@pytest.mark.parametrize("fault", ["reset", "close"])
def test_one_stale_connection_is_free_and_counted(fault: str, max_retries: int) -> None:
    with (
        serve_in_thread(MockConfig()) as server,
        FastLLM(base_url=server.base_url, api_key="k", max_retries=max_retries) as client,
    ):
        ask(client, "a")
        server.script([fault])
        assert ask(client, "b").attempts == 2
        assert counters(client) == (server.stats.requests, 1) == (3, 1)


def test_the_second_is_not_free() -> None:
    with (
        serve_in_thread(MockConfig()) as server,
        FastLLM(base_url=server.base_url, api_key="k", max_retries=0) as client,
    ):
        ask(client, "a")
        server.script(["reset", "reset"])
        with pytest.raises(APIConnectionError) as caught:
            ask(client, "b")
        assert caught.value.attempts == 2 and caught.value.code == "connection_reset"
        assert counters(client)[0] == server.stats.requests == 3


def test_a_stream_likewise() -> None:
    with (
        serve_in_thread(MockConfig()) as server,
        FastLLM(base_url=server.base_url, api_key="k", max_retries=0) as client,
    ):
        list(ask(client, "a", stream=True))
        server.script(["reset"])
        assert list(ask(client, "b", stream=True))
        assert counters(client) == (server.stats.requests, 1) == (3, 1)


def test_rpm_holds() -> None:
    """Two answers, of which the second took two sends: the fourth send must wait for the minute to pass."""
    with (
        serve_in_thread(MockConfig()) as server,
        FastLLM(base_url=server.base_url, api_key="k", max_retries=0, limits=Limits(rpm=3), timeout=3) as client,
    ):
        ask(client, "a")
        server.script(["reset"])
        ask(client, "b")
        with pytest.raises(TimeoutError):
            ask(client, "c")
        assert server.stats.requests == counters(client)[0] == 3


def test_stale_connections_are_no_outage_and_the_free_attempt_does_not_wait() -> None:
    """Twenty in a row, from as many requests, would open the breaker if they counted."""

    async def scenario() -> None:
        sends, known = 0, set[bytes]()
        seen: list[tuple[float | None, float]] = []

        async def handler(http: HTTPRequest) -> HTTPResponse:
            nonlocal sends
            sends += 1
            await asyncio.sleep(0)  # so that all first attempts fail before any second is answered
            if http.body not in known:
                known.add(http.body)
                raise APIConnectionError("dropped", code="stale_connection")
            return answer()

        def observe(event: Event) -> None:
            if isinstance(event, AttemptFailed):
                seen.append((event.delay, engine.router.endpoints[0].limiter.breaker.opened))

        limits = Limits(concurrency=20, adaptive=False)
        engine = make_engine(handler, limits=limits, retry=Retry(attempts=1), observers=[observe])
        await asyncio.sleep(1)  # to the breaker, 0 is no time
        await asyncio.gather(*(engine.execute(request(str(i))) for i in range(20)))
        assert engine.clock.now() == 1
        assert (engine.stats.attempts, engine.stats.retries, sends) == (40, 20, 40)
        assert seen == [(0.0, 0.0)] * 20

    run_virtual(scenario)
