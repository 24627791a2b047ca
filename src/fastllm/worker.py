"""One process of a team: an engine of its own, and rows that come over a socket. `python -m fastllm.worker FD`.

It ends when the socket does, whatever became of the other side, and heeds no Ctrl-C: that is the other side's business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from . import build
from .build import CacheOption, EngineOptions
from .engine.engine import Engine
from .engine.stats import sum_of
from .errors import ConfigError
from .jobs.team import Team
from .jobs.wire import (
    Answered,
    Begin,
    Define,
    End,
    Ended,
    Message,
    Outcomes,
    Report,
    Rows,
    Said,
    Unpacker,
    failed,
    packed,
    packed_counts,
    request_of,
    told,
)
from .jobs.workers import NOTHING_YET, Workers
from .loop import run as run_loop
from .options import CachePolicy, Limits, Retry, Route, Timeout
from .providers.vendors import BUILT_IN, VENDORS, Vendor
from .schema.base import Schema
from .types import Outcome, Row

COMMAND = (sys.executable, "-m", "fastllm.worker")
REPORTS = 0.2  # seconds between two
MOST_WORKERS = 32  # where there are few cores
WORKERS_PER_CORE = 4  # at most, where there are many
_TALK = 256  # outcomes that a process writes at once


class Setup(msgspec.Struct, kw_only=True):
    """What a process makes its engine from: EngineOptions as plain values, and the vendors that were registered."""

    base_url: str | None = None
    api_key: str | None = None
    default_headers: dict[str, str] = {}
    limits: Limits | None = None
    timeout: Timeout = Timeout()
    retry: Retry = Retry()
    cache: CachePolicy | None = None
    budget: float | None = None
    prices: str | None = None
    unknown_price: str = "refuse"
    unsupported_params: str = "adapt"
    routes: dict[str, Route] = {}
    embeddings_per_request: int | None = None
    vendors: list[Vendor] = []
    leases: str | None = None


def sharing(options: EngineOptions, size: int) -> EngineOptions:
    """Give the options of an engine that is to share with so many processes what it limits, if anything."""
    limited = options.limits is not None or options.budget is not None or bool(options.routes)
    return msgspec.structs.replace(options, own_leases=size > 1 and limited)


def setup_of(options: EngineOptions, cache: CacheOption, leases: str | None = None) -> bytes:
    """Write down the options for other processes. ConfigError names what cannot be shared with them."""
    for name in ("observers", "transport", "clock"):
        if getattr(options, name):
            raise ConfigError(f"{name} cannot be shared with worker processes: leave it out, or workers=1")
    if isinstance(cache, str):
        cache = None if cache == "off" else msgspec.convert({"mode": cache}, CachePolicy)
    if cache is not None and not isinstance(cache, CachePolicy):
        raise ConfigError(
            f"a cache of your own ({type(cache).__name__}) cannot be shared with worker processes: "
            'give cache="disk", cache="memory" or a CachePolicy, or workers=1'
        )
    fields = {name: getattr(options, name) for name in Setup.__struct_fields__ if hasattr(options, name)}
    setup = Setup(
        **{
            **fields,
            "default_headers": dict(options.default_headers),
            "cache": cache,
            "prices": None if options.prices is None else str(options.prices.absolute()),
            "routes": dict(options.routes),
            "leases": leases,
            "vendors": [vendor for name, vendor in VENDORS.items() if name not in BUILT_IN],
        }
    )
    return msgspec.msgpack.encode(setup)


def team(engine: Engine, options: EngineOptions, cache: CacheOption, size: int) -> Team:
    """Give so many processes that are like this engine, which ends them when it is closed. ConfigError where its
    options cannot be shared with them."""
    setup = setup_of(options, cache, None if engine.sharing is None else engine.sharing.where)
    made = Team(engine, size=size, command=COMMAND, setup=setup, sticky=engine.cache is not None)
    engine.on_close(made.aclose)
    return made


def checked_size(workers: object) -> int:
    """Give the number of processes. ConfigError where it is none, or more than could be of use here."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers must be a whole number of at least 1, not {workers!r}")
    cores = os.cpu_count() or 1
    most = max(MOST_WORKERS, WORKERS_PER_CORE * cores)
    if workers > most:  # each is a process of its own: far too many take the machine's memory before the first answer
        shown = "1 core" if cores == 1 else f"{cores} cores"
        raise ConfigError(f"workers must be at most {most} on this machine, which has {shown}; not {workers!r}")
    return workers


def options_of(setup: Setup) -> EngineOptions:
    """Read them again, in the process that they are for."""
    for vendor in setup.vendors:
        VENDORS[vendor.name] = vendor
    fields = {name: getattr(setup, name) for name in EngineOptions.__struct_fields__ if hasattr(setup, name)}
    return build.checked(EngineOptions(**{**fields, "local": False}))


class _Feed:
    """The rows of one run that have come and were not pulled yet."""

    def __init__(self) -> None:
        self.rows: deque[Row] = deque()

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        return self.rows.popleft() if self.rows else NOTHING_YET


class _Run:
    """One run in this process."""

    def __init__(self, worker: Worker, number: int, concurrency: int) -> None:
        self.number = number
        self._worker = worker
        self._feed = _Feed()
        self._left = 0  # rows that came and have no outcome yet
        self._ending = False
        self.workers = Workers(worker.engine, self._feed, concurrency=concurrency, window=1 << 40)
        self.task = asyncio.get_running_loop().create_task(self._tell())

    def add(self, message: Rows) -> None:
        schemas = self._worker.schemas
        self._feed.rows.extend(Row(index=row.turn, request=request_of(row, schemas)) for row in message.rows)
        self._left += len(message.rows)
        self.workers.fed(len(message.rows))

    def end(self, how: str) -> None:
        if how == "cancel":
            self._left = 0
            self.workers.cancel()
        elif how == "drain":
            self._left = 0
            self.workers.drain()
        else:
            self._ending = True
            self._stop_if_done()

    def _stop_if_done(self) -> None:
        """Workers that are told to stop pull nothing more: not before the last row was pulled and answered."""
        if self._ending and not self._left:
            self.workers.stop()

    async def _tell(self) -> None:
        why = None
        try:
            while True:
                found = self._taken()
                if found:
                    engine = self._worker.engine
                    cost = sum_of([endpoint.cost for endpoint in engine.router.endpoints])
                    self._worker.send(Outcomes(self.number, found, packed_counts(engine.stats), cost))
                    self._left -= len(found)
                    self._stop_if_done()
                elif self.workers.finished:
                    break
                else:
                    await self.workers.news()
            self.workers.check()
        except Exception as error:
            why = f"a worker process failed: {type(error).__name__}: {error}"
        await self.workers.aclose()
        self._worker.over(self.number, why)

    def _taken(self) -> list[Answered]:
        found: list[Answered] = []
        while len(found) < _TALK:
            outcome = self.workers.take()
            if outcome is None:
                break
            found.append(_answered(outcome))
        return found


def _answered(outcome: Outcome) -> Answered:
    if outcome.response is not None:
        return Answered(outcome.index, told(outcome.response))
    assert outcome.error is not None
    return Answered(outcome.index, None, failed(outcome.error))


class Worker(asyncio.Protocol):
    """The process's end of the socket."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.schemas: dict[int, Schema[Any]] = {}
        self.gone = asyncio.get_running_loop().create_future()
        self._runs: dict[int, _Run] = {}
        self._unpacker = Unpacker()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._unpacker.feed(data):
            self._heed(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    def send(self, message: Message) -> None:
        self._transport.write(packed(message))

    def _heed(self, message: Message) -> None:
        if isinstance(message, Rows):
            self._runs[message.run].add(message)
        elif isinstance(message, Begin):
            self._runs[message.run] = _Run(self, message.run, message.concurrency)
        elif isinstance(message, Define):
            self.schemas[message.number] = Schema.of(message.schema, retries=message.retries)
        elif isinstance(message, End) and message.run in self._runs:
            self._runs[message.run].end(message.how)

    def over(self, number: int, why: str | None) -> None:
        """Nothing of a run is left here."""
        del self._runs[number]
        self.report()
        self.send(Ended(number, why))

    def report(self) -> None:
        engine = self.engine
        out = {number: run.workers.in_flight for number, run in self._runs.items()}
        self.send(Report(engine.stats.tally(), engine.snapshot(), out))

    async def reports(self) -> None:
        while True:
            await asyncio.sleep(REPORTS)
            if self._runs:
                self.report()

    async def close(self) -> None:
        for run in list(self._runs.values()):
            run.task.cancel()
            await run.workers.aclose()
        await self.engine.aclose()


class _Forward(logging.Handler):
    """Has the other side log what this process would."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.WARNING)
        self._worker = worker
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        message = Said(record.levelno, record.getMessage())
        self._loop.call_soon_threadsafe(self._worker.send, message)


async def _main(fd: int) -> None:
    connection = socket.socket(fileno=fd)
    (length,) = struct.unpack("<I", _exactly(connection, 4))
    setup = msgspec.msgpack.decode(_exactly(connection, length), type=Setup)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    worker = Worker()
    worker.engine = build.engine(options_of(setup))
    logger = logging.getLogger("fastllm")
    logger.addHandler(_Forward(worker, loop))
    logger.propagate = False
    await loop.create_connection(lambda: worker, sock=connection)
    reports = loop.create_task(worker.reports())
    await worker.gone
    reports.cancel()
    await worker.close()


def _exactly(connection: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length:
        piece = connection.recv(length - len(found))
        if not piece:
            raise SystemExit(0)  # the other side is gone
        found += piece
    return found


def main() -> None:
    """Serve the socket whose descriptor is the one argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run_loop(_main(int(sys.argv[1])))


if __name__ == "__main__":
    main()
