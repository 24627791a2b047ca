"""The lane over real sockets: what goes wrong on it ends as it does in a task, and no row is asked or told of twice."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from fastllm import AsyncFastLLM, Limits, Outcome, Retry, Timeout
from fastllm.engine.events import RequestDone
from fastllm.engine.lane import Lane
from fastllm.errors import AuthenticationError, BadRequestError, DeadlineExceededError
from fastllm.transport.http import HTTPTransport
from fastllm.types import HTTPRequest, HTTPResponse
from transport.kit import Hostile, Peer, answer

GOOD = (
    b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],'
    b' "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}'
)
Say = Callable[[Peer, int, int], Awaitable[None]]  # to a row's request, and how often it was asked for


class Asked:
    """A provider that counts how often each row is asked for, and answers as `say` does."""

    def __init__(self, say: Say | None = None) -> None:
        self.times: dict[int, int] = {}
        self._say = say

    async def __call__(self, peer: Peer) -> None:
        while True:
            body = await peer.request()
            found = re.search(rb"row (\d+)", body)
            assert found is not None
            row = int(found[1])
            self.times[row] = self.times.get(row, 0) + 1
            await asyncio.sleep(0.002)
            if self._say is None:
                await peer.say(answer(GOOD))
            else:
                await self._say(peer, row, self.times[row])


def bodies(count: int) -> Iterator[dict[str, Any]]:
    for k in range(count):
        yield {"model": "m", "messages": [{"role": "user", "content": f"row {k} of them"}]}


@pytest.fixture
def laned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that went into a lane, by turn."""
    turns: list[int] = []
    launch = Lane.launch

    def watched(self: Lane, turn: int, row: Any) -> bool:
        taken = launch(self, turn, row)
        if taken:
            turns.append(turn)
        return taken

    monkeypatch.setattr(Lane, "launch", watched)
    return turns


def client(server: Hostile, **options: Any) -> AsyncFastLLM:
    limits = options.pop("limits", Limits(concurrency=4, adaptive=False))
    return AsyncFastLLM(base_url=server.url, api_key="k", limits=limits, **options)


async def run(made: AsyncFastLLM, count: int, **options: Any) -> dict[int, Outcome]:
    async with made:
        return {outcome.index: outcome async for outcome in made.stream(bodies(count), **options)}


async def test_plain_rows_take_the_lane_and_each_is_asked_once(laned: list[int]) -> None:
    asked = Asked()
    async with Hostile(asked) as server:
        made = client(server)
        found = await run(made, 60)
        counts = made.stats
    assert len(laned) > 40
    assert all(outcome.ok and outcome.text == "yes" and outcome.attempts == 1 for outcome in found.values())
    assert asked.times == dict.fromkeys(range(60), 1)
    assert (counts.ok, counts.in_flight, counts.prompt_tokens, counts.completion_tokens) == (60, 0, 300, 120)
    assert all(outcome.response is not None and outcome.response.latency > 0.001 for outcome in found.values())
    assert server.most_open <= 4


async def test_in_order_they_come_in_order(laned: list[int]) -> None:
    async with Hostile(Asked()) as server, client(server) as made:
        found = [outcome.index for outcome in await made.process(bodies(60))]
    assert found == list(range(60)) and laned


async def test_what_fails_on_it_is_tried_again_in_a_task(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        bad = row % 5 == 4 and time == 1
        await peer.say(answer(b"{}", status="500 Oops") if bad else answer(GOOD))

    asked = Asked(say)
    async with Hostile(asked) as server:
        found = await run(client(server, retry=Retry(base=0.001)), 60)
    assert len(laned) > 20
    assert all(outcome.ok for outcome in found.values())
    assert {row: outcome.attempts for row, outcome in found.items()} == asked.times
    assert asked.times == {row: 2 if row % 5 == 4 else 1 for row in range(60)}
    assert all(len(found[row].unwrap().history) == 1 for row in range(4, 60, 5))


async def test_a_final_error_is_the_rows_own(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        await peer.say(answer(b'{"error": {"message": "no"}}', status="400 Bad") if row == 30 else answer(GOOD))

    asked = Asked(say)
    async with Hostile(asked) as server:
        made = client(server)
        found = await run(made, 60)
    assert [row for row, outcome in found.items() if not outcome.ok] == [30] and 30 in laned
    assert isinstance(found[30].error, BadRequestError) and found[30].error.attempts == 1
    assert asked.times[30] == 1 and made.stats.failed == 1 and made.stats.in_flight == 0


async def test_a_connection_that_was_dropped_while_idle_costs_no_attempt_of_the_retries(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        if row == 30 and time == 1:
            peer.reset()
        else:
            await peer.say(answer(GOOD))

    asked = Asked(say)
    async with Hostile(asked) as server:
        found = await run(client(server, retry=Retry(attempts=2, base=0.001)), 60)
    assert all(outcome.ok for outcome in found.values()) and 30 in laned
    assert asked.times == {row: 2 if row == 30 else 1 for row in range(60)}


async def test_bytes_after_an_answer_are_nobodys(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        await peer.say(answer(GOOD) + (answer(GOOD.replace(b"yes", b"evil")) if row % 3 == 0 else b""))

    async with Hostile(Asked(say)) as server:
        found = await run(client(server), 60)
    assert {outcome.text for outcome in found.values()} == {"yes"} and laned


async def test_a_redirect_is_followed_in_tasks_from_then_on(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        away = row >= 30 and b"POST /elsewhere" not in peer.requests[-1]
        await peer.say(answer(b"", status="307 Go", headers=b"location: /elsewhere\r\n") if away else answer(GOOD))

    async with Hostile(Asked(say)) as server:
        made = client(server)
        found = await run(made, 60)
    assert all(outcome.ok for outcome in found.values()) and len(found) == 60
    assert 20 < len(laned) < 40 and made.stats.in_flight == 0


async def test_the_time_of_a_request_runs_out_on_it_too(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        if row == 30:
            await peer.until_gone()
        else:
            await peer.say(answer(GOOD))

    asked = Asked(say)
    async with Hostile(asked) as server:
        made = client(server, timeout=Timeout(total=0.4))
        found = await run(made, 60)
    error = found[30].error
    assert 30 in laned and isinstance(error, DeadlineExceededError) and error.attempts == 1
    assert sum(outcome.ok for outcome in found.values()) == 59
    assert made.stats.in_flight == 0 and made.stats.failed == 1


async def test_a_run_that_is_closed_early_closes_what_is_on_its_way(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        if row < 20:
            await peer.say(answer(GOOD))
        else:
            await peer.until_gone()

    async with Hostile(Asked(say)) as server, client(server) as made:
        stream = made.stream(bodies(60))
        for _ in range(20):
            await anext(stream)
        await asyncio.sleep(0.02)
        assert made.stats.in_flight == 4
        await stream.aclose()
        async with asyncio.timeout(2):
            await asyncio.gather(*(peer.gone.wait() for peer in server.peers))
        assert made.stats.in_flight == 0
        # and the client goes on as if nothing had been
        again = [outcome async for outcome in made.stream(bodies(10))]
    assert all(outcome.ok for outcome in again) and max(laned) >= 20


async def test_a_key_that_is_refused_ends_all(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        await peer.say(answer(b"{}", status="401 No") if row >= 30 else answer(GOOD))

    asked = Asked(say)
    async with Hostile(asked) as server:
        found = await run(client(server), 60)
    assert sum(outcome.ok for outcome in found.values()) == 30 and len(found) == 60
    assert any(isinstance(outcome.error, AuthenticationError) for outcome in found.values())
    assert len(asked.times) <= 34 and laned


async def test_observers_hear_of_every_request(laned: list[int]) -> None:
    events: list[RequestDone] = []

    def observe(event: Any) -> None:
        if isinstance(event, RequestDone):
            events.append(event)

    async with Hostile(Asked()) as server:
        found = await run(client(server, observers=[observe]), 60)
    assert len(found) == 60 == len(events) and laned
    assert all(event.response is not None and event.seconds > 0 for event in events)


class Signing(HTTPTransport):
    """A user's own, which sees every request."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        self.seen += 1
        return await super().send(request, timeout)


async def test_a_transport_that_sends_in_its_own_way_is_not_passed_by(laned: list[int]) -> None:
    signing = Signing()
    async with Hostile(Asked()) as server:
        found = await run(client(server, transport=signing), 60)
    assert signing.seen == 60 == len(found) and not laned


async def test_what_asks_for_more_than_an_attempt_does_not_take_it(laned: list[int]) -> None:
    async with Hostile(Asked()) as server:
        for options in ({"cache": "memory"}, {"retry": Retry(hedge=0.98)}, {"timeout": Timeout(attempt=5)}):
            found = await run(client(server, **options), 20)
            assert all(outcome.ok for outcome in found.values())
    assert not laned


async def test_limits_hold_on_it(laned: list[int]) -> None:
    asked = Asked()
    async with Hostile(asked) as server, client(server, limits=Limits(concurrency=4, adaptive=False, rpm=30)) as made:
        stream = made.stream(bodies(60))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                async for _ in stream:
                    pass
        await stream.aclose()
    assert 25 <= sum(asked.times.values()) <= 30 and laned
