"""A gateway with a virtual key that has every limit, in this process (`opened`) or in one of its own (`serving`).

Its endpoint takes as much as it is told to at once: what is learnt of a provider is not what these scripts look at.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from fastllm import build, loop
from fastllm.build import EngineOptions
from fastllm.gateway.app import Gateway
from fastllm.gateway.auth import MasterKey
from fastllm.gateway.beside import Beside
from fastllm.gateway.config import GatewayOptions
from fastllm.gateway.record import Record
from fastllm.gateway.server import Server
from fastllm.gateway.tenancy import Tenancy
from fastllm.options import Limits, Retry, Timeout

MASTER = "sk-stress-0123456789abcdef"
HERE = Path(__file__).parent
# Dollars per million tokens; a request of `message` costs some 0.0001 USD at most.
PRICES = {"providers": {"base_url": {"models": {"m": {"input": 1.0, "output": 2.0}}}}}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What differs from one script to the next."""

    base_url: str
    concurrency: int = 4096
    queue: float = 30.0
    queue_size: int = 100_000
    budget_day: float | None = None
    beside: bool = False  # files and batches


class Opened:
    """A gateway that listens in this process, and all that it must leave empty."""

    def __init__(self, gateway: Gateway, server: Server, tenancy: Tenancy, secret: str, records: list[Record]) -> None:
        self.gateway = gateway
        self.server = server
        self.tenancy = tenancy
        self.secret = secret
        self.records = records
        self._tasks = len(asyncio.all_tasks())

    def left(self) -> dict[str, int]:
        """What is still held, by its name: only what is not zero."""
        stats = self.gateway.engine.stats
        limiters = [endpoint.limiter for endpoint in self.gateway.engine.router.endpoints]
        states = list(self.tenancy.tenants._states.values())
        found = {
            "requests": self.gateway.under_way,
            "slots": stats.in_flight + sum(limiter.in_flight for limiter in limiters),
            "waiting": stats.waiting + stats.backing_off + sum(limiter.waiting for limiter in limiters),
            "places": sum(state.places.taken for state in states),
            "held money": sum(account.held for state in states for account in state.accounts()),
            "connections": len(self.server._uvicorn.server_state.connections),
            "tasks": len(asyncio.all_tasks()) - self._tasks,
        }
        return {name: count for name, count in found.items() if count}

    async def emptied(self, seconds: float = 5.0) -> dict[str, int]:
        """Wait until nothing is held, for so long at most; gives what still is."""
        for _ in range(int(seconds / 0.01)):
            if not self.left():
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # until the provider has heard of it, too
        return self.left()

    def leased(self) -> float:
        """Give the dollars that are booked for the key and not spent."""
        tenants, key = self.tenancy.tenants, self.tenancy.store.list()[0]
        tenants.flush()  # what was leased for the moment is given back at the second time
        spending = tenants.spending(key)
        return round(spending.day_booked - spending.day, 9)


@asynccontextmanager
async def opened(plan: Plan, folder: Path) -> AsyncIterator[Opened]:
    """Serve in this process until the block ends."""
    prices = folder / "prices.json"
    prices.write_text(json.dumps(PRICES))
    options = EngineOptions(
        base_url=plan.base_url,
        api_key="sk-provider",
        limits=Limits(concurrency=plan.concurrency, adaptive=False),
        retry=Retry(attempts=3, cap=8.0, patient=True),
        timeout=Timeout(queue=plan.queue),
        prices=prices,
    )
    engine = build.engine(options)
    tenancy = Tenancy(folder / "db")
    limits = {"rpm": 1e9, "tpm": 1e12, "parallel": 1_000_000, "budget_day": plan.budget_day or 1e6}
    _, secret = tenancy.store.create("stress", **limits)
    records: list[Record] = []
    gateway = Gateway(
        engine,
        GatewayOptions(port=0, queue=plan.queue, queue_size=plan.queue_size, drain=1.0, data_dir=str(folder / "data")),
        keys=tenancy.keys(MasterKey(MASTER)),
        admissions=tenancy,
        listeners=[tenancy.add, records.append],
    )
    server = Server(gateway)
    running = asyncio.create_task(server.run())
    beside = Beside(gateway, options) if plan.beside else None
    try:
        if beside is not None:
            await beside.__aenter__()
        await asyncio.sleep(0.05)
        yield Opened(gateway, server, tenancy, secret, records)
    finally:
        if beside is not None:
            await beside.__aexit__()
        server.stop()
        await running
        await engine.aclose()
        tenancy.close()


class Serving(msgspec.Struct):
    """A gateway in a process of its own."""

    port: int
    secret: str
    pid: int

    def memory(self) -> float:
        """The memory that it occupies, in MiB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@contextmanager
def serving(plan: Plan) -> Iterator[Serving]:
    """Run it until the block ends: the process ends with its standard input."""
    command = [sys.executable, "-m", "gating.gateway", msgspec.json.encode(plan).decode()]
    with subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield msgspec.json.decode(process.stdout.readline(), type=Serving)
        finally:
            process.stdin.close()
            process.wait()


async def _main(plan: Plan) -> None:
    with tempfile.TemporaryDirectory(prefix="fastllm-stress-") as folder:
        async with opened(plan, Path(folder)) as gateway:
            gateway.gateway.listeners = gateway.gateway.listeners[:1]  # no list that grows
            told: dict[str, Any] = {"port": gateway.server.port, "secret": gateway.secret, "pid": _pid()}
            print(json.dumps(told), flush=True)
            await asyncio.to_thread(sys.stdin.read)


def _pid() -> int:
    return int(Path("/proc/self").resolve().name)


if __name__ == "__main__":
    with loop.own_process():
        loop.run(_main(msgspec.json.decode(sys.argv[1], type=Plan)))
