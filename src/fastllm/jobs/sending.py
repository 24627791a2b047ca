"""Sending: a Transport that knows which tasks have a request at the provider, so that a stop can spare those alone."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ..clock import TASKS
from ..options import Timeout
from ..transport.base import HTTPStream, Transport
from ..types import HTTPRequest, HTTPResponse


class Crew(Protocol):
    """Who wants to know of its tasks' requests."""

    out: set[asyncio.Task[Any]]
    """Tasks whose request the provider may have, so that its answer must not be lost."""

    def refused(self, task: asyncio.Task[Any]) -> None:
        """The attempt came to nothing: cancelling the task now loses nothing."""
        ...


class Sending(Transport):
    """Passes everything on; keeps the crew's `out` up to date, and tells the crew of an attempt that failed."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._crews: dict[asyncio.Task[Any] | None, Crew] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def of(cls, engine: object) -> Sending | None:
        """Give the engine's own, put before its transport at the first call. None where it has no transport."""
        transport = getattr(engine, "transport", None)
        if isinstance(transport, cls) or not isinstance(transport, Transport):
            return transport if isinstance(transport, cls) else None
        made = engine.transport = cls(transport)  # type: ignore[attr-defined]
        return made

    def enrol(self, task: asyncio.Task[Any], crew: Crew) -> None:
        self._crews[task] = crew
        self._loop = task.get_loop()

    def leave(self, task: asyncio.Task[Any]) -> None:
        self._crews.pop(task, None)

    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        task = TASKS.get(self._loop) or asyncio.current_task()
        crew = self._crews.get(task)
        if task is None or crew is None:
            return await self._inner.send(request, timeout)
        crew.out.add(task)
        try:
            answer = await self._inner.send(request, timeout)
        except BaseException:
            crew.refused(task)
            raise
        if not 200 <= answer.status < 300:
            crew.refused(task)
        return answer

    async def open(self, request: HTTPRequest, timeout: Timeout) -> HTTPStream:
        return await self._inner.open(request, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def __repr__(self) -> str:
        return f"<Sending {self._inner!r} of {len(self._crews)} workers>"
