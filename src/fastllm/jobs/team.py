"""Team: further processes that answer rows, for as long as their owner lives; one that dies is replaced.

Each runs an engine of its own (`fastllm.worker`) and talks over a socket pair; it ends with that socket, whatever
becomes of this process. Rows go to whoever has the fewest, or, where answers are cached, equal ones to the same
process, so that they meet in its memory. What limits hold for all of them is the leases' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..engine.engine import Engine
from ..engine.stats import Snapshot, Stats, Tally, sum_of
from ..errors import FastLLMError, StoppedError
from ..schema.base import Schema
from ..types import Request, Response
from .wire import Begin, Define, End, Ended, Message, Outcomes, Report, Said, Unpacker, counts_of, packed

logger = logging.getLogger("fastllm")

MOST_DEATHS = 3  # of processes, none of them a MINUTE after the one before
MINUTE = 60.0
LEAVING = 5.0  # seconds that a process has to close its connections
UNCOUNTED = ""  # what failed before it was an engine's business, among a process's failures


class TeamError(FastLLMError):
    """The processes of a team died again and again; a job that is run again goes on from its journal."""


class Runs(Protocol):
    """A run that rows were sent out for."""

    def came(self, member: Member, found: Outcomes) -> None: ...

    def ended(self, member: Member, why: str | None) -> None: ...

    def lost(self, member: Member) -> None: ...

    def abandoned(self) -> None: ...


class Member(asyncio.Protocol):
    """One process. `rows` is how many rows it has that are not answered yet."""

    def __init__(self, team: Team, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.rows = 0
        self.report: Report | None = None
        self.counts = b""  # as they came with outcomes since that report
        self.cost: float | None = 0.0
        self.came = 0  # outcomes; and how many of them failed, by class
        self.failures: Counter[str] = Counter()
        self.left = asyncio.get_running_loop().create_future()
        self.known: set[int] = set()  # the schemas it was told
        self._team = team
        self._unpacker = Unpacker()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a socket's is one

    def send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(packed(message))

    def data_received(self, data: bytes) -> None:
        for message in self._unpacker.feed(data):
            self._team.heard(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.left.done():
            self.left.set_result(None)
        self._team.lost(self)

    def last_tally(self, *, died: bool) -> Tally:
        """What a process has counted that is gone. If it died, only those rows count whose outcomes came: what else it
        has answered, another one is asked."""
        told = Tally() if self.report is None else self.report.tally
        counts, errors = {**told.counts, **counts_of(self.counts)}, told.errors
        if died:
            errors = dict(self.failures)
            uncounted, unsent = errors.pop(UNCOUNTED, 0), errors.pop(StoppedError.__name__, 0)
            failed = sum(errors.values())
            counts.update(ok=self.came - failed - unsent - uncounted, failed=failed, unsent=unsent)
        counts.update(in_flight=0, waiting=0, backing_off=0, most_in_flight=0)
        return Tally(counts, errors, told.histogram)

    def close(self) -> None:
        """Have the process leave: it ends with its socket."""
        if self._transport is not None:
            self._transport.close()

    def __repr__(self) -> str:
        return f"<Member {self.process.pid}, {self.rows} rows>"


class Team:
    """`size` processes, started by `command` with the number of a file descriptor behind it, which `setup` is sent to
    first. `engine` is this process's own: single requests, and what is known of limits, are its business."""

    def __init__(self, engine: Engine, *, size: int, command: Sequence[str], setup: bytes, sticky: bool) -> None:
        self.engine = engine
        self.size = size
        self.members: list[Member] = []
        self.sticky = sticky  # equal requests go to the same process
        self._command = tuple(command)
        self._setup = setup
        self._runs: dict[int, Runs] = {}
        self._numbers = itertools.count(1)
        self._schemas: dict[int, int] = {}
        self._kept: list[Schema[Any]] = []  # as long as their ids stand for them
        self._before = Stats(0.0)  # what processes counted that are gone, and what they cost
        self._cost_before: float | None = 0.0
        self._most_before = 0  # in flight at once, while they were there
        self._deaths, self._died_at = 0, 0.0
        self._closing = False

    async def execute(self, request: Request) -> Response:
        """Answer one request in this process."""
        return await self.engine.execute(request)

    @property
    def concurrency(self) -> int | None:
        """How many requests may ever be under way at once; None before that is known."""
        one = self.engine.concurrency
        return one and one * self.size

    async def begin(self, run: Runs, concurrency: int) -> int:
        """Give a new run its number, and have every process begin it. The first one starts them."""
        number = next(self._numbers)
        self._runs[number] = run
        try:
            while len(self.members) < self.size:
                await self._start()
        except BaseException:
            del self._runs[number]
            raise
        for member in self.members:
            member.send(Begin(number, max(1, -(-concurrency // self.size))))
        return number

    async def replace(self, number: int, concurrency: int) -> None:
        """Start as many processes as are missing, and have them begin a run. TeamError where they die too often."""
        if self._deaths >= MOST_DEATHS:
            raise TeamError(
                f"{self._deaths} worker processes died, one after the other; see the log for what they said"
            )
        while len(self.members) < self.size:
            member = await self._start()
            member.send(Begin(number, max(1, -(-concurrency // self.size))))

    def forget(self, number: int) -> None:
        """A run has ended."""
        self._runs.pop(number, None)

    async def _start(self) -> Member:
        ours, theirs = socket.socketpair()
        with theirs:
            command, fd = [*self._command, str(theirs.fileno())], theirs.fileno()
            process = await asyncio.to_thread(
                lambda: subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL, env=_environment())
            )
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        _, member = await loop.create_connection(lambda: Member(self, process), sock=ours)
        assert member._transport is not None
        member._transport.write(len(self._setup).to_bytes(4, "little") + self._setup)
        self.members.append(member)
        return member

    def define(self, member: Member, schema: Schema[Any]) -> int:
        """Give the number under which a process knows a schema, and tell it where it does not yet."""
        number = self._schemas.get(id(schema))
        if number is None:
            number = self._schemas[id(schema)] = len(self._schemas) + 1
            self._kept.append(schema)
        if number not in member.known:
            member.known.add(number)
            member.send(Define(number, schema.json_schema, schema.retries))
        return number

    def end(self, number: int, how: str) -> None:
        """No more rows of that run."""
        for member in self.members:
            member.send(End(number, how))

    def heard(self, member: Member, message: Message) -> None:
        if isinstance(message, Outcomes):
            member.rows -= len(message.rows)
            member.came += len(message.rows)
            member.counts, member.cost = message.counts, message.cost
            run = self._runs.get(message.run)
            if run is not None:
                run.came(member, message)
        elif isinstance(message, Report):
            member.report, member.counts, member.cost = message, b"", message.snapshot.cost_usd
        elif isinstance(message, Ended):
            run = self._runs.get(message.run)
            if run is not None:
                run.ended(member, message.why)
        elif isinstance(message, Said):
            logger.log(message.level, "%s", message.text)

    def lost(self, member: Member) -> None:
        """A process is gone; unless the team is closing, that was not asked for."""
        if member in self.members:
            self._most_before = self._most()  # whoever takes its place has its part of the limits, not another one
            self.members.remove(member)
        self._before.add(member.last_tally(died=not self._closing))
        self._cost_before = sum_of([self._cost_before, member.cost])
        member.report = None
        if not self._closing:
            loop = asyncio.get_running_loop()
            self._deaths = self._deaths + 1 if loop.time() - self._died_at < MINUTE else 1
            self._died_at = loop.time()
            loop.run_in_executor(None, _tell_end, member.process)
        for run in list(self._runs.values()):
            run.lost(member)

    def in_flight(self, number: int) -> int:
        """How many requests of a run are at the provider, by the last reports."""
        return sum(member.report.out.get(number, 0) for member in self.members if member.report is not None)

    def snapshot(self) -> Snapshot:
        """Give what all processes counted, this one included, at this moment or a quarter of a second ago."""
        own = self.engine.snapshot()
        reports = [member.report for member in list(self.members) if member.report is not None]
        total = self._total(reports)
        shown = [own, *(report.snapshot for report in reports)]
        cost = sum_of([*(one.cost_usd for one in shown), self._cost_before])
        busy = next((one for one in shown if one.holds), None)
        holds = busy.holds if busy is not None and all(one.holds for one in shown[1:]) else own.holds
        learnt = {name: found for one in shown for name, found in one.learnt.items()}
        limits = {name: text for one in shown for name, text in one.limits.items()}
        made = total.snapshot(own.elapsed, limits, cost=cost, holds=holds, learnt=learnt)
        return msgspec.structs.replace(made, elapsed=own.elapsed)

    def tally(self) -> Tally:
        """Give all that they counted."""
        return self._total([member.report for member in list(self.members) if member.report is not None]).tally()

    def _total(self, reports: Sequence[Report]) -> Stats:
        total = Stats(0.0)
        total.add(self.engine.stats.tally())
        total.add(self._before.tally())
        for report in reports:
            total.add(report.tally)
        total.most_in_flight = self._most()
        return total

    def _most(self) -> int:
        """How many requests were in flight at once, at most: the parts of those who were there at the same time."""
        parts = [member.report.tally.counts["most_in_flight"] for member in list(self.members) if member.report]
        return max(self._most_before, sum(parts, self.engine.stats.most_in_flight))

    @property
    def gone(self) -> Tally:
        """What processes counted that are no more."""
        found = self._before.tally()
        found.counts["most_in_flight"] = max(0, self._most_before - self.engine.stats.most_in_flight)
        return found

    async def aclose(self) -> None:
        """End the processes; each closes its connections. The engine is its owner's."""
        self._closing = True
        members = list(self.members)
        for run in list(self._runs.values()):
            run.abandoned()
        for member in members:
            member.close()
        for member in members:
            await member.left
            await asyncio.to_thread(_wait, member.process)

    def __repr__(self) -> str:
        return f"<Team of {self.size}: {self.members}>"


def _environment() -> dict[str, str]:
    """The processes find the package where this one has found it."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _tell_end(process: subprocess.Popen[bytes]) -> None:
    status = process.wait()
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    logger.warning("worker process %d %s: its rows are given to another", process.pid, how)


def _wait(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LEAVING)
        return
    process.kill()
    process.wait()
