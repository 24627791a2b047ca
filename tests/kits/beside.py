"""A gateway on a real socket with files, batches and what is passed through, in front of the mock; and its tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import openai

from fastllm import build
from fastllm.build import EngineOptions
from fastllm.gateway.app import Gateway
from fastllm.gateway.auth import Admissions, Tenant
from fastllm.gateway.batches import Batches
from fastllm.gateway.beside import Beside
from fastllm.gateway.catalog import Catalog
from fastllm.gateway.config import GatewayOptions
from fastllm.gateway.database import Database
from fastllm.gateway.keys import KeyStore
from fastllm.gateway.keys_api import KeysAPI
from fastllm.gateway.record import Record
from fastllm.gateway.server import Server
from fastllm.gateway.tenants import Tenants
from fastllm.options import Retry
from fastllm.testing import MockConfig, MockServer

ALICE, BOB, CAROL = "sk-alice-0123456789", "sk-bob-0123456789", "sk-carol-0123456789"


class People:
    """Three keys: Alice's and Bob's may ask for all, Carol's only for what begins with `c`."""

    def __init__(self) -> None:
        self.tenants = {
            ALICE: Tenant(id="alice", namespace="/alice", key="alice"),
            BOB: Tenant(id="bob", namespace="/bob", key="bob"),
            CAROL: Tenant(id="carol", namespace="/carol", key="carol", models=["c*"]),
        }

    def check(self, token: str) -> Tenant | None:
        return self.tenants.get(token)

    def tenant(self, id: str) -> Tenant | None:
        return next((tenant for tenant in self.tenants.values() if tenant.id == id), None)


class Open:
    """A gateway that listens, and what is behind it."""

    def __init__(self, mock: MockServer, gateway: Gateway, server: Server, beside: Beside) -> None:
        self.mock = mock
        self.gateway = gateway
        self.server = server
        self.beside = beside
        self.records: list[Record] = []

    @property
    def batches(self) -> Batches:
        assert self.beside.batches is not None
        return self.beside.batches

    def client(self, key: str = ALICE, **more: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.server.origin}/v1", api_key=key, **{"max_retries": 0, **more})


@asynccontextmanager
async def opened(
    folder: Path,
    mock: MockConfig | None = None,
    *,
    models: tuple[str, ...] = ("*",),
    engine: dict[str, Any] | None = None,
    admissions: Admissions | None = None,
    window: float | None = None,
    **options: Any,
) -> AsyncIterator[Open]:
    """Serve the mock with everything that is mounted. `window` stands for the 24 hours of a batch."""
    async with MockServer(mock) as upstream:
        given = GatewayOptions(**{"port": 0, "data_dir": str(folder), "drain": 1.0, **options})
        more = {"base_url": upstream.base_url, "api_key": "upstream-key", **(engine or {})}
        more.setdefault("retry", Retry(attempts=2, base=0.01, cap=0.02, reset_base=0.01))
        engine_options = EngineOptions(**more)
        made = build.engine(engine_options)
        records: list[Record] = []
        gateway = Gateway(
            made, given, keys=People(), catalog=Catalog(models), admissions=admissions, listeners=[records.append]
        )
        database = Database(folder / "gateway.sqlite3")
        beside = Beside(gateway, engine_options, database)
        store, tenants = KeyStore(database), Tenants(database, thread=False)
        for prefix in ("", "/v1"):
            gateway.mounts[f"{prefix}/keys"] = KeysAPI(store, tenants)
        batches = beside.batches
        assert batches is not None
        batches.runner.grace, batches.runner.poll = 0.05, 0.02
        if window is not None:
            batches.window = window
        await beside.__aenter__()
        server = Server(gateway)
        running = asyncio.create_task(server.run())
        found = Open(upstream, gateway, server, beside)
        found.records = records
        try:
            yield found
        finally:
            for listener in getattr(server._uvicorn, "servers", ()):
                listener.close()
            for one in list(server._uvicorn.server_state.connections):
                one.transport.abort()
            running.cancel()
            await asyncio.wait([running])
            await beside.__aexit__()
            await gateway.engine.aclose()
            tenants.close()
            store.close()
            database.close()


async def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def names_in(folder: Path, pattern: str = "*") -> list[str]:
    """Give the files below a directory."""
    return [str(path.relative_to(folder)) for path in folder.rglob(pattern) if path.is_file()]


async def wire(
    port: int,
    method: str,
    target: str,
    body: bytes | Iterable[bytes] = b"",
    *,
    key: str | None = ALICE,
    headers: Mapping[str, str] = MappingProxyType({}),
    ends: bool = True,
) -> tuple[int, dict[str, str], bytes]:
    """Ask over a connection of its own, with exactly these bytes; a body in pieces is sent in chunks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {target} HTTP/1.1", "host: localhost", "connection: close"]
    lines += [f"authorization: Bearer {key}"] if key is not None else []
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body)}" if isinstance(body, bytes) else "transfer-encoding: chunked"]
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        if isinstance(body, bytes):
            writer.write(body)
        else:
            for piece in body:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n" * ends)
        async with asyncio.timeout(10):
            head, _, rest = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.transport.abort()
    first, *others = head.decode("latin-1").split("\r\n")
    told = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in others)}
    if told.get("transfer-encoding") == "chunked":
        rest = b"".join(_unchunked(rest))
    return int(first.split()[1]), told, rest


def _unchunked(data: bytes) -> Iterator[bytes]:
    while data:
        size, _, data = data.partition(b"\r\n")
        yield data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
