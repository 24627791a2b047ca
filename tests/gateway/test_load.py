"""gateway: whoever leaves, stalls or comes in too great a number leaves nothing behind: no slot, task, place or money.

The same at full size, with figures: stress/gateway.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from fastllm.gateway.auth import MasterKey
from fastllm.gateway.tenancy import Tenancy
from fastllm.options import Limits
from fastllm.testing import MockConfig
from kits.gateway import BODY, CHAT, KEY, Served, Wire, connection, head_and_body, served

STREAM = {**BODY, "stream": True}
PRICES = {"providers": {"base_url": {"models": {"m": {"input": 1.0, "output": 2.0}}}}}


class Limited:
    """A gateway with one virtual key that has every limit."""

    def __init__(self, gate: Served, tenancy: Tenancy, secret: str) -> None:
        self.gate = gate
        self.tenancy = tenancy
        self.secret = secret
        self._tasks = len(asyncio.all_tasks())

    def message(self, **fields: Any) -> bytes:
        return head_and_body("POST", CHAT, {**BODY, "max_tokens": 20, **fields}, x_api_key=self.secret)

    async def empty(self) -> None:
        """Wait until nothing is held any more."""
        await self.gate.idle()
        await until(lambda: len(asyncio.all_tasks()) <= self._tasks)
        await until(lambda: not self.gate.server._uvicorn.server_state.connections)
        states = list(self.tenancy.tenants._states.values())
        assert [state.places.taken for state in states] == [0] * len(states)
        assert all(account.held == 0 for state in states for account in state.accounts())

    def spent(self) -> float:
        """Give the dollars of the day. What is booked is what was spent: nothing is reserved or leased any more."""
        self.tenancy.tenants.flush()
        spending = self.tenancy.tenants.spending(self.tenancy.store.list()[0])
        assert spending.day_booked == pytest.approx(spending.day)
        return spending.day


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@asynccontextmanager
async def limited(
    folder: Path, mock: MockConfig | None = None, *, concurrency: int = 1000, budget: float = 100.0, **options: Any
) -> AsyncIterator[Limited]:
    prices = folder / "prices.json"
    prices.write_text(json.dumps(PRICES))
    tenancy = Tenancy(folder / "gateway.db")
    _, secret = tenancy.store.create("all", rpm=1e6, tpm=1e9, parallel=10_000, budget_day=budget)
    limits = Limits(concurrency=concurrency, adaptive=False)
    try:
        async with served(
            mock,
            keys=tenancy.keys(MasterKey(KEY)),
            engine={"limits": limits, "prices": prices},
            app={"admissions": tenancy},
            **options,
        ) as gate:
            yield Limited(gate, tenancy, secret)
    finally:
        tenancy.close()


def leave(wire: Wire, number: int) -> None:
    """Close politely, or only this side's half, or with all that is still to be sent lost."""
    if number % 3 == 0:
        wire.writer.write_eof()
    elif number % 3 == 1:
        wire.writer.close()
    else:
        wire.writer.transport.abort()


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(tmp_path: Path) -> None:
    """In the body, in the queue, while they wait, in mid-stream; more than the provider has slots."""
    chance = random.Random(3)
    async with limited(tmp_path, MockConfig(token_rate=200.0, answer_bytes=2000), concurrency=8) as the:
        the.gate.mock.when(lambda body: body.get("seed", 0) % 2 == 1, "hang")

        async def visit(number: int) -> None:
            data = the.message(seed=number, stream=number % 4 == 2)
            async with connection(the.gate.server.port) as wire:
                if number % 5 == 0:
                    await wire.send(data[: chance.randrange(len(data))])
                else:
                    await wire.send(data)
                    await asyncio.wait([asyncio.ensure_future(wire.reader.read(1))], timeout=0.2 * chance.random())
                leave(wire, number)

        for start in range(0, 200, 40):
            await asyncio.gather(*(visit(number) for number in range(start, start + 40)))
        await the.empty()
        assert the.spent() >= 0.0
        asked = Counter(record.status for record in the.gate.records)
        assert asked[499] > 50, asked


async def test_readers_that_stall_hold_the_provider_back_and_nothing_once_they_left(tmp_path: Path) -> None:
    async with limited(tmp_path, MockConfig(answer_bytes=200_000), budget=1000.0) as the:
        wires = []
        for number in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", the.gate.server.port)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(the.message(stream=True, seed=number, max_tokens=1_000_000))
            wires.append(Wire(reader, writer))
        await until(lambda: the.gate.gateway.under_way == 20)
        await until(lambda: the.gate.mock.stats.in_flight == 20)
        for wire in wires:
            wire.writer.transport.abort()
        await the.empty()
        assert [record.status for record in the.gate.records] == [499] * 20


async def test_what_finds_the_queue_full_is_told_and_everybody_else_is_served(tmp_path: Path) -> None:
    async with limited(tmp_path, MockConfig(latency=0.05), concurrency=2, queue_size=3) as the:
        answers = []

        async def ask(number: int) -> None:
            async with connection(the.gate.server.port) as wire:
                await wire.send(the.message(seed=number))
                answers.append(await wire.answer())

        await asyncio.gather(*(ask(number) for number in range(50)))
        await the.empty()
    served_ones = [answer for answer in answers if answer.status == 200]
    shed = [answer for answer in answers if answer.status == 429]
    assert len(served_ones) == 5 and len(shed) == 45
    assert {answer.json()["error"]["code"] for answer in shed} == {"queue_full"}
    assert all(float(answer.headers["retry-after"]) > 0 for answer in shed)


async def test_parallel_requests_on_the_last_cent_of_a_budget_spend_no_more_than_it_has(tmp_path: Path) -> None:
    async with limited(tmp_path, MockConfig(latency=0.02), budget=0.005) as the:
        statuses: Counter[int] = Counter()

        async def ask(number: int) -> None:
            async with connection(the.gate.server.port) as wire:
                await wire.send(the.message(seed=number))
                statuses[(await wire.answer()).status] += 1

        await asyncio.gather(*(ask(number) for number in range(200)))
        await the.empty()
        assert statuses[200] and statuses[429] and statuses.total() == 200, statuses
        assert 0.0 < the.spent() <= 0.005


async def test_a_request_leaves_nothing_that_only_the_collector_could_free(tmp_path: Path) -> None:
    """Cycles of thousands of requests a second would stop everything for 50 ms, again and again."""
    async with limited(tmp_path) as the, connection(the.gate.server.port) as wire:
        for name in ("warm", "measured"):
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for number in range(20):
                    await wire.send(the.message(seed=number, user=name))
                    assert (await wire.answer()).status == 200
                    await wire.send(head_and_body("POST", CHAT, BODY, x_api_key="wrong"))
                    assert (await wire.answer()).status == 401
                await the.gate.idle()
                gc.collect()
                found = Counter(type(one).__name__ for one in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
        assert not any(found[name] for name in ("Turn", "Exchange", "Task", "coroutine", "Record")), found


# The server


async def test_who_leaves_is_told_of_without_a_task_that_waits_for_it() -> None:
    async with served() as gate:
        gate.mock.when(lambda body: True, "hang")
        tasks = len(asyncio.all_tasks())
        async with connection(gate.server.port) as wire:
            await wire.send(head_and_body("POST", CHAT, BODY))
            await until(lambda: gate.mock.stats.in_flight == 1)
            turns = [task for task in asyncio.all_tasks() if "Turn.run" in repr(task)]
            assert len(turns) == 1 and not any("watch" in task.get_name() for task in asyncio.all_tasks())
        await until(lambda: gate.mock.stats.cancelled == 1)
        await gate.idle()
        await until(lambda: len(asyncio.all_tasks()) <= tasks)


@pytest.mark.parametrize("stream", [False, True])
async def test_under_another_server_requests_are_answered_and_who_leaves_is_noticed_too(stream: bool) -> None:
    """The app is ASGI: here on uvicorn's own protocol."""
    async with served(MockConfig(latency=0.05, token_rate=100.0, answer_bytes=400)) as gate:
        config = uvicorn.Config(gate.gateway, port=0, ws="none", lifespan="off", log_config=None, http="httptools")
        other = uvicorn.Server(config)
        other.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
        running = asyncio.create_task(other.serve())
        await until(lambda: other.started)
        port = other.servers[0].sockets[0].getsockname()[1]
        async with connection(port) as wire:
            answer = await wire.ask("POST", CHAT, {**BODY, "stream": stream})
            assert answer.status == 200 and (b"[DONE]" in answer.body) is stream
            gate.mock.when(lambda body: True, "stream_stall" if stream else "hang")
            await wire.send(head_and_body("POST", CHAT, {**BODY, "stream": stream}))
            if stream:
                await wire.head()
            await until(lambda: gate.mock.stats.in_flight == 1)
        await gate.idle()
        assert gate.records[-1].status == 499
        other.should_exit = True
        await running


async def test_more_requests_ahead_than_are_taken_at_once_are_answered_in_their_order() -> None:
    async with served() as gate, connection(gate.server.port) as wire:
        for number in range(30):
            wire.writer.write(head_and_body("GET", "/health", x_request_id=f"r{number}"))
        for number in range(30):
            assert (await wire.answer()).headers["x-request-id"] == f"r{number}"
        assert gate.server._uvicorn.server_state.total_requests == 30


async def test_an_answer_that_is_held_goes_out_before_the_connection_is_closed() -> None:
    async with served() as gate, connection(gate.server.port) as wire:
        await wire.send(head_and_body("GET", "/health") + head_and_body("GET", "/health", connection="close"))
        said = await wire.ends()
        assert said.count(b"HTTP/1.1 200 OK") == 2 and said.count(b'{"status":"ok"}') == 2
        assert said.count(b"\r\ndate: ") == 2


@pytest.mark.parametrize("flood", [b"1;%b\r\nx\r\n" % (b"e" * 600_000), b"0\r\n" + b"x-a: 1\r\n" * 60_000])
async def test_what_is_no_body_does_not_go_on_for_ever(flood: bytes) -> None:
    """Extensions of chunks and trailers share the bound of a head."""
    async with served(header_bytes=2000) as gate, connection(gate.server.port) as wire:
        await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        await until(lambda: gate.gateway.under_way == 1)
        with contextlib.suppress(ConnectionError):  # it is closed before all of it is sent
            for start in range(0, len(flood), 5000):
                await wire.send(flood[start : start + 5000])
                await until(lambda: not gate.gateway.under_way or not wire.writer.transport.get_write_buffer_size())
            await wire.ends()
        await gate.idle()
        assert gate.records[-1].status == 499 and gate.mock.stats.requests == 0
