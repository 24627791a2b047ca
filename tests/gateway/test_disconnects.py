"""gateway: a client that goes away takes its request at the provider with it, and everything that was held for it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastllm.answers import Usage
from fastllm.gateway.auth import Tenant
from fastllm.loop import new_event_loop
from fastllm.options import Limits, Retry, Timeout
from fastllm.testing import MockConfig
from kits.gateway import BODY, CHAT, Wire, connection, head_and_body, served

STREAM = {**BODY, "stream": True}
SLOW = MockConfig(latency=30.0)


class Held:
    """An admission that notes how it ended."""

    def __init__(self, ends: list[Any]) -> None:
        self.ends = ends

    def settle(self, usage: Usage | None, cost: float | None) -> None:
        self.ends.append(usage)

    def release(self) -> None:
        self.ends.append("released")

    def lines(self, key: Any = None) -> bytes:
        return b""


class Tenants:
    def __init__(self) -> None:
        self.ends: list[Any] = []
        self.admitted = 0

    def check(self, token: str) -> Tenant:
        return Tenant(id=token, key=token)

    def admit(self, key: Any, tokens: float, cost_bound: float | None) -> Held:
        self.admitted += 1
        return Held(self.ends)


async def until(true: Any) -> float:
    """Wait until something is true, and give how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return time.monotonic() - began


def leave(wire: Wire, how: str) -> None:
    if how == "reset":
        found = wire.writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        wire.writer.transport.abort()
    elif how == "half":
        wire.writer.write_eof()
    else:
        wire.writer.close()


@pytest.mark.fault("82")
@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_a_client_that_leaves_before_the_answer_ends_its_request_upstream(how: str, body: Any) -> None:
    tenants = Tenants()
    async with served(
        SLOW, keys=tenants, app={"admissions": tenants}, engine={"limits": Limits(concurrency=1)}
    ) as gate:
        async with connection(gate.server.port) as wire:
            await wire.send(head_and_body("POST", CHAT, body, authorization="Bearer a"))
            await until(lambda: gate.mock.stats.in_flight == 1)
            leave(wire, how)
            await until(lambda: gate.mock.stats.cancelled == 1)
            await gate.idle()
        (paid,) = tenants.ends  # the provider has read the prompt; what else it bills nobody knows
        assert tenants.admitted == 1 and paid.prompt_tokens > 0 and paid.completion_tokens == 0
        record = gate.records[-1]
        assert (record.status, record.error, record.tenant) == (499, "client_closed", "a")


async def test_what_a_provider_refused_or_never_got_costs_its_key_nothing_and_what_it_may_have_done_is_booked() -> None:
    tenants = Tenants()
    engine: dict[str, Any] = {"retry": Retry(attempts=1), "timeout": Timeout(first_byte=0.1, queue=1.0)}
    async with served(keys=tenants, app={"admissions": tenants}, engine=engine) as gate:
        for kind, ends in (("400", "released"), ("429", "released"), ("hang", None), ("reset", None)):
            gate.mock.script([kind])
            assert (await gate.ask(authorization="Bearer a")).status >= 400
            assert tenants.ends.pop() == ends, kind


@pytest.mark.fault("82")
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
async def test_a_client_that_leaves_a_stream_ends_it_upstream_and_pays_for_what_had_come(path: str) -> None:
    body = {**STREAM, "max_tokens": 100, "input": "hello"}
    if path == "/v1/responses":
        body = {"model": "m", "stream": True, "input": "hello"}
    elif path == CHAT:
        del body["input"]
    tenants = Tenants()
    async with served(
        MockConfig(token_rate=50.0, answer_bytes=4000), keys=tenants, app={"admissions": tenants}
    ) as gate:
        async with connection(gate.server.port) as wire:
            await wire.send(head_and_body("POST", path, body, authorization="Bearer a"))
            await wire.head()
            await anext(wire.pieces())
            leave(wire, "close")
            await until(lambda: gate.mock.stats.cancelled == 1)
            await gate.idle()
        (usage,) = tenants.ends
        assert usage.prompt_tokens > 0
        assert gate.records[-1].status == 499


@pytest.mark.fault("82")
async def test_a_client_that_leaves_the_queue_is_forgotten() -> None:
    async with served(SLOW, engine={"limits": Limits(concurrency=1)}) as gate:
        port = gate.server.port
        async with connection(port) as first, connection(port) as second:
            await first.send(head_and_body("POST", CHAT, BODY))
            await until(lambda: gate.mock.stats.in_flight == 1)
            await second.send(head_and_body("POST", CHAT, {**BODY, "n": 2}))
            await until(lambda: gate.engine.stats.waiting == 1)
            leave(second, "close")
            await until(lambda: gate.engine.stats.waiting == 0)
            assert gate.mock.stats.requests == 1
            leave(first, "close")
            await gate.idle()


async def test_one_who_leaves_does_not_take_the_answer_from_another_who_asked_the_same() -> None:
    async with served(MockConfig(latency=0.3), engine={"cache": "memory"}) as gate:
        async with connection(gate.server.port) as leader, connection(gate.server.port) as follower:
            await leader.send(head_and_body("POST", CHAT, BODY))
            await until(lambda: gate.mock.stats.in_flight == 1)
            await follower.send(head_and_body("POST", CHAT, BODY))
            await until(lambda: gate.gateway.under_way == 2)
            leave(leader, "reset")
            answer = await follower.answer()
            assert answer.status == 200
        await gate.idle()


async def test_a_body_that_breaks_off_is_nobodys_request() -> None:
    async with served() as gate:
        async with connection(gate.server.port) as wire:
            await wire.send(head_and_body("POST", CHAT, BODY)[:-10])
            await until(lambda: gate.gateway.under_way == 1)
            leave(wire, "close")
            await gate.idle()
        assert gate.records[-1].status == 499 and gate.mock.stats.requests == 0


@pytest.mark.fault("82")
async def test_hundreds_of_clients_that_leave_at_any_byte_leave_nothing_behind() -> None:
    """Streams are left at different points; afterwards there is no slot, task, connection or token in use."""
    async with served(MockConfig(token_rate=300.0, answer_bytes=800)) as gate:
        tasks = len(asyncio.all_tasks())

        async def visit(number: int) -> None:
            async with connection(gate.server.port) as wire:
                await wire.send(head_and_body("POST", CHAT, {**STREAM, "seed": number}))
                if number % 4:
                    await wire.reader.readexactly(7 * number % 1500 + 1)
                leave(wire, ("close", "reset", "half")[number % 3])

        for start in range(0, 300, 50):
            await asyncio.gather(*(visit(number) for number in range(start, start + 50)))
        await gate.idle()
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert not gate.server._uvicorn.server_state.connections
        assert len(gate.records) == 300


@pytest.mark.fault("83")
async def test_a_reader_that_stalls_stops_the_provider_and_is_dropped_in_the_end() -> None:
    async with served(MockConfig(answer_bytes=300_000), write_seconds=0.5) as gate:
        async with connection(gate.server.port) as wire:
            wire.writer.transport.pause_reading()
            await wire.send(head_and_body("POST", CHAT, STREAM))
            await until(lambda: gate.gateway.under_way == 1)
            await gate.idle()
        assert gate.records[-1].status == 499
        assert gate.records[-1].sent_bytes < 8_000_000


@asynccontextmanager
async def deaf(port: int, data: bytes) -> AsyncIterator[None]:
    """A client that sends this and reads nothing, nor does its kernel take much for it."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        await asyncio.get_running_loop().sock_sendall(client, data)
        yield


LARGE = head_and_body("POST", "/v1/embeddings", {"model": "m", "input": ["a"] * 500})


@pytest.mark.fault("83")
@pytest.mark.parametrize(
    "data",
    [LARGE, LARGE * 3, LARGE.replace(b"HTTP/1.1", b"HTTP/1.0")],
    ids=["one", "the next one waits", "closed behind it"],
)
async def test_who_does_not_read_whole_answers_is_dropped_too(data: bytes) -> None:
    async with served(write_seconds=0.3) as gate, deaf(gate.server.port, data):
        connections = gate.server._uvicorn.server_state.connections
        await until(lambda: gate.records)
        await until(lambda: not connections)
        await gate.idle()


async def test_who_reads_slowly_gets_a_whole_answer_however_long_that_takes() -> None:
    """Patience is asked for what is read in `write_seconds`, not for all of an answer."""
    async with served(write_seconds=0.2) as gate, connection(gate.server.port) as wire:
        wire.writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await wire.send(LARGE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        answer = await wire.head()
        size = int(answer.headers["content-length"])
        wire.reader._limit = 1024  # it stops reading beyond twice that
        step = size // 20 + 1
        for start in range(0, size, step):
            await asyncio.sleep(0.05)
            await wire.reader.readexactly(min(step, size - start))
        assert await wire.ends() == b""


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, new_event_loop], ids=["asyncio", "ours"])
def test_who_only_ends_what_it_sends_gets_the_answer_that_is_ready(new_loop: Any) -> None:
    async def scenario() -> None:
        async with served(SLOW) as gate:
            get = head_and_body("GET", "/health/live")
            for data in (get, get + head_and_body("POST", CHAT, BODY)):
                for _ in range(5):
                    async with connection(gate.server.port) as wire:
                        wire.writer.write(data)
                        wire.writer.write_eof()
                        assert (await wire.ends()).count(b"HTTP/1.1 200 OK") == 1
            await gate.idle()
            await until(lambda: not gate.server._uvicorn.server_state.connections)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())
