"""The lane over real sockets: what goes wrong on it ends as it does in a task, and no row is asked or told of twice."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from fastllm import AsyncFastLLM, Limits, Outcome, Retry, Timeout
from fastllm.engine.events import RequestDone
from fastllm.engine.lane import Lane
from fastllm.errors import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    DeadlineExceededError,
    StoppedError,
)
from fastllm.jobs.outcomes import outcomes
from fastllm.rows import rows_of
from fastllm.transport.dial import Dialer
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


async def run(made: AsyncFastLLM, count: int) -> dict[int, Outcome]:
    async with made:
        return {outcome.index: outcome async for outcome in made.stream(bodies(count))}


def crowd(made: AsyncFastLLM, rows: Iterator[dict[str, Any]], concurrency: int = 40) -> AsyncGenerator[Outcome, None]:
    """More rows in work than the endpoint has slots."""
    return outcomes(lambda: made._many, rows_of(rows, ""), concurrency=concurrency)


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


async def test_a_parameter_that_is_refused_to_several_at_once_fails_none_of_them(laned: list[int]) -> None:
    """The first refusal is the rule, and the others are about what was sent before."""
    refusal = b'{"error": {"message": "Unsupported parameter: \'seed\'", "code": "unsupported_parameter"}}'

    async def say(peer: Peer, row: int, time: int) -> None:
        await asyncio.sleep(0.02)
        known = b'"seed"' not in peer.requests[-1]
        await peer.say(answer(GOOD) if known else answer(refusal, status="400 Bad"))

    asked = Asked(say)
    async with Hostile(asked) as server, client(server) as made:
        rows = [{**body, "seed": 1} if row >= 20 else body for row, body in enumerate(bodies(60))]
        found = {outcome.index: outcome async for outcome in made.stream(rows)}
    assert [row for row, outcome in found.items() if not outcome.ok] == [] and len(found) == 60
    assert set(range(20, 24)) < set(laned) and sum(asked.times.values()) == 64


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


# More rows than slots


async def test_rows_that_wait_for_slots_take_it_too(laned: list[int]) -> None:
    asked = Asked()
    async with Hostile(asked) as server:
        made = client(server)
        waiting = []
        async with made:
            async for outcome in crowd(made, bodies(200)):
                assert outcome.ok
                waiting.append(made.stats.waiting)
            counts = made.stats
    assert len(laned) > 120 and min(waiting[60:150]) <= 1
    assert asked.times == dict.fromkeys(range(200), 1)
    assert server.most_open <= 4 and (counts.ok, counts.in_flight, counts.waiting) == (200, 0, 0)


async def test_slots_are_found_while_rows_wait_in_it(laned: list[int]) -> None:
    async with Hostile(Asked()) as server:
        made = client(server, limits=Limits(concurrency=64))
        found = await run(made, 1500)
    assert len(found) == 1500 and len(laned) > 600
    assert made.stats.most_in_flight == 64 == server.most_open


async def test_two_runs_share_the_slots_fairly(laned: list[int]) -> None:
    async with Hostile(Asked()) as server, client(server) as made:
        done: list[int] = []

        async def one(which: int) -> None:
            async for outcome in crowd(made, bodies(150)):
                assert outcome.ok
                done.append(which)

        await asyncio.gather(one(0), one(1))
    assert 55 < sum(done[:150]) < 95 and len(done) == 300
    assert made.stats.waiting == 0


async def test_a_run_that_is_closed_while_a_row_waits_leaves_nothing(laned: list[int]) -> None:
    asked = Asked()
    async with Hostile(asked) as server, client(server) as made:
        stream = crowd(made, bodies(200))
        for _ in range(100):
            await anext(stream)
        await stream.aclose()
        assert (made.stats.waiting, made.stats.in_flight) == (0, 0)
        before = dict(asked.times)
        again = [outcome async for outcome in made.stream(bodies(20))]
    assert all(outcome.ok for outcome in again) and sum(before.values()) <= 104


async def test_a_row_that_waits_when_the_client_is_closed_has_its_error_as_the_others(laned: list[int]) -> None:
    late = asyncio.Event()
    found: list[Outcome] = []

    async def say(peer: Peer, row: int, time: int) -> None:
        if row >= 8:
            late.set()
            await asyncio.sleep(30)
        await peer.say(answer(GOOD))

    async with Hostile(Asked(say)) as server, client(server) as made:
        engine = made._many

        async def close() -> None:
            await late.wait()
            await engine.transport.aclose()

        closing = asyncio.create_task(close())
        async for outcome in crowd(made, bodies(13)):
            found.append(outcome)
        await closing
        assert all(endpoint.limiter.in_flight == 0 for endpoint in engine.router.endpoints)
    assert sorted(outcome.index for outcome in found) == list(range(13)) and laned
    assert {outcome.error.code for outcome in found if outcome.error is not None} == {"closed"}


async def test_a_key_that_is_refused_ends_what_waits_too(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        await peer.say(answer(b"{}", status="401 No") if row >= 120 else answer(GOOD))

    asked = Asked(say)
    async with Hostile(asked) as server, client(server) as made:
        found = {outcome.index: outcome async for outcome in crowd(made, bodies(200))}
    assert sum(outcome.ok for outcome in found.values()) == 120 and len(found) == 200
    assert len(asked.times) <= 124 and made.stats.waiting == 0 and laned


async def test_rows_of_another_model_do_not_wait_for_the_slots_of_this_one(laned: list[int]) -> None:
    async def say(peer: Peer, row: int, time: int) -> None:
        if b'"slow"' in peer.requests[-1]:
            await asyncio.sleep(0.3)
        await peer.say(answer(GOOD))

    def mixed() -> Iterator[dict[str, Any]]:
        for row, body in enumerate(bodies(60)):
            yield {**body, "model": "slow" if row % 6 == 1 else "quick"}

    order = []
    async with Hostile(Asked(say)) as server, client(server, limits=Limits(concurrency=2, adaptive=False)) as made:
        async for outcome in crowd(made, mixed()):
            assert outcome.ok
            order.append(outcome.index)
    assert len(order) == 60
    assert sum(row % 6 == 1 for row in order[:20]) <= 2  # the quick ones passed them


# Connections that are made on it


async def test_it_makes_the_connections_it_needs(laned: list[int]) -> None:
    asked = Asked()
    async with Hostile(asked) as server:
        made = client(server, limits=Limits(concurrency=32, adaptive=False))
        found = await run(made, 200)
    assert all(outcome.ok for outcome in found.values()) and len(found) == 200
    assert len(laned) >= 196, "only the row that finds the endpoint is to need a task"
    assert asked.times == dict.fromkeys(range(200), 1) and server.most_open == 32


async def test_the_first_attempt_goes_alone_and_the_others_wait_in_it(laned: list[int]) -> None:
    """Whether a key is any good is found out with one request; whoever waits for that takes no task."""
    at_once: list[int] = []

    async def say(peer: Peer, row: int, time: int) -> None:
        if not at_once:
            at_once.append(0)
            await asyncio.sleep(0.1)
            at_once.append(len(asked.times))
        await peer.say(answer(GOOD))

    asked = Asked(say)
    async with Hostile(asked) as server:
        made = client(server, limits=Limits(concurrency=32))
        found = await run(made, 200)
    assert at_once == [0, 1] and len(found) == 200 and len(laned) >= 190


async def test_nobody_there_ends_as_it_does_in_a_task(laned: list[int]) -> None:
    async with Hostile(Asked()) as server:
        limits = Limits(concurrency=8, adaptive=False)
        made = client(server, retry=Retry(attempts=2, base=0.001), limits=limits, timeout=Timeout(total=0.3))
        await server.__aexit__(None, None, None)
        found = await run(made, 30)
    assert len(found) == 30 and laned
    for outcome in found.values():
        assert isinstance(outcome.error, DeadlineExceededError | APIConnectionError | StoppedError)
    assert made.stats.in_flight == made.stats.waiting == 0


async def test_a_run_that_is_closed_while_it_connects_leaves_nothing(
    laned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = asyncio.Event()
    dial, given_up = Dialer.dial, 0

    async def slow(self: Dialer, *args: Any) -> Any:
        nonlocal given_up
        connecting.set()
        try:
            await asyncio.sleep(30 if len(laned) > 10 else 0)
        except asyncio.CancelledError:
            given_up += 1
            raise
        return await dial(self, *args)

    asked = Asked()
    async with Hostile(asked) as server, client(server, limits=Limits(concurrency=16, adaptive=False)) as made:
        monkeypatch.setattr(Dialer, "dial", slow)
        stream = made.stream(bodies(60))
        await anext(stream)
        await connecting.wait()
        await asyncio.sleep(0.01)
        await stream.aclose()
        assert (made.stats.waiting, made.stats.in_flight) == (0, 0)
        await asyncio.sleep(0)
        assert given_up
        monkeypatch.setattr(Dialer, "dial", dial)
        again = [outcome async for outcome in made.stream(bodies(20))]
    assert len(again) == 20 and all(outcome.ok for outcome in again)
