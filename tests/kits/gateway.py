"""A gateway on a real socket in the running loop, in front of the mock; and a client that speaks bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from fastllm import build
from fastllm.build import EngineOptions
from fastllm.gateway.app import Gateway
from fastllm.gateway.auth import Keys, MasterKey
from fastllm.gateway.catalog import Catalog
from fastllm.gateway.config import GatewayOptions
from fastllm.gateway.exchange import ASGI
from fastllm.gateway.metrics import Metrics
from fastllm.gateway.record import Listener, Record
from fastllm.gateway.server import Server
from fastllm.options import Retry, Timeout
from fastllm.testing import MockConfig, MockServer

KEY = "sk-master-0123456789"
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


class Served:
    """A gateway that listens, and what is behind it."""

    def __init__(self, mock: MockServer, gateway: Gateway, server: Server, records: list[Record]) -> None:
        self.mock = mock
        self.engine = gateway.engine
        self.gateway = gateway
        self.server = server
        self.records = records

    @property
    def base_url(self) -> str:
        return f"{self.server.origin}/v1"

    async def idle(self) -> None:
        """Wait until nothing is under way anywhere: no request, no slot, no task, no upstream."""
        async with asyncio.timeout(5):
            while not self.is_idle:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    @property
    def is_idle(self) -> bool:
        stats = self.engine.stats
        limiters = [endpoint.limiter for endpoint in self.engine.router.endpoints]
        return (
            (self.gateway.under_way, stats.in_flight, stats.waiting, stats.backing_off) == (0, 0, 0, 0)
            and all(limiter.in_flight == limiter.waiting == 0 for limiter in limiters)
            and self.mock.stats.in_flight == 0
        )

    async def ask(self, path: str = CHAT, body: Any = None, **headers: str) -> Answer:
        """POST a body (bytes as they are, anything else as JSON) and read the whole answer."""
        async with connection(self.server.port) as wire:
            return await wire.ask("POST", path, BODY if body is None else body, **headers)

    async def mock_answer(self) -> bytes:
        """Give what the mock answers to BODY."""
        async with connection(self.mock.port) as wire:
            return (await wire.ask("POST", CHAT, BODY)).body

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        async with connection(self.server.port) as wire:
            return await wire.ask(method, path, b"", **headers)


@asynccontextmanager
async def served(
    mock: MockConfig | None = None,
    *,
    key: str | None = None,
    keys: Keys | None = None,
    catalog: Catalog | None = None,
    engine: dict[str, Any] | None = None,
    app: dict[str, Any] | None = None,
    metrics: Metrics | None = None,
    listeners: Sequence[Listener] = (),
    around: Callable[[ASGI], ASGI] | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """Serve the mock. `options` are GatewayOptions, `engine` EngineOptions, `app` what the Gateway takes besides,
    `around` what stands around it."""
    records: list[Record] = []
    async with MockServer(mock) as upstream:
        given = GatewayOptions(**{"port": 0, **options})
        more = {"base_url": upstream.base_url, "api_key": "upstream-key", **(engine or {})}
        more.setdefault("retry", Retry(attempts=3, base=0.01, cap=0.02, reset_base=0.01, retry_after_cap=given.queue))
        more.setdefault("timeout", Timeout(queue=given.queue))
        listeners = [records.append, *listeners]
        if metrics is not None:
            more.setdefault("observers", [metrics.counters.saw])
            listeners.append(metrics.counters)
            app = {"metrics": metrics.scrape, **(app or {})}
        made = build.engine(EngineOptions(**more))
        found = keys or (MasterKey(key) if key is not None else None)
        gateway = Gateway(made, given, keys=found, catalog=catalog, listeners=listeners, **(app or {}))
        if metrics is not None:
            metrics.watch(gateway)
        server = Server(gateway, around(gateway) if around is not None else None)
        running = asyncio.create_task(server.run())
        try:
            yield Served(upstream, gateway, server, records)
        finally:
            await _dropped(server, running)
            await gateway.engine.aclose()


async def _dropped(server: Server, running: asyncio.Task[None]) -> None:
    """End a server without the pauses that it makes for its clients' sake; test_server.py has those."""
    for listener in getattr(server._uvicorn, "servers", ()):
        listener.close()
    for open_one in list(server._uvicorn.server_state.connections):
        open_one.transport.abort()
    running.cancel()
    await asyncio.wait([running])


class Answer(msgspec.Struct):
    """An HTTP answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    reason: str = ""

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def events(self) -> list[bytes]:
        return [event for event in self.body.split(b"\n\n") if event]


class Wire:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Answer:
        await self.send(head_and_body(method, path, body, **headers))
        return await self.answer(method)

    async def head(self) -> Answer:
        """Read the head of an answer."""
        async with asyncio.timeout(10):
            status_line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        _, status, reason = [*status_line.split(" ", 2), ""][:3]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(status), headers, b"", reason)

    async def answer(self, method: str = "POST") -> Answer:
        answer = await self.head()
        async with asyncio.timeout(10):
            if answer.headers.get("transfer-encoding") == "chunked":
                answer.body = b"".join([piece async for piece in self.pieces()])
            elif method != "HEAD":
                answer.body = await self.reader.readexactly(int(answer.headers.get("content-length", "0")))
        return answer

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give the chunks of a body, each as it was written."""
        while size := int(await self.reader.readline(), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)

    async def ends(self) -> bytes:
        """Read until the server closes."""
        async with asyncio.timeout(10):
            return await self.reader.read(-1)


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def head_and_body(method: str, path: str, body: Any = b"", **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if data or method == "POST":
        lines.append(f"content-length: {len(data)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data
