"""UnderWay: which tasks have a request at the provider, so that whoever stops a run can spare those alone."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ..clock import TASKS


class Crew(Protocol):
    """Tasks of one run, and who wants to know of their requests."""

    out: set[asyncio.Task[Any]]
    """Tasks whose request the provider may have, so that its answer must not be lost."""

    def refused(self, task: asyncio.Task[Any]) -> None:
        """The attempt came to nothing: cancelling the task now loses nothing."""
        ...


class UnderWay:
    """The crews of one engine. `sent` and `failed` are called by the engine, in the task that makes the attempt."""

    __slots__ = ("_crews", "_loop")

    def __init__(self) -> None:
        self._crews: dict[asyncio.Task[Any] | None, Crew] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def enrol(self, task: asyncio.Task[Any], crew: Crew) -> None:
        self._crews[task] = crew
        self._loop = task.get_loop()

    def leave(self, task: asyncio.Task[Any]) -> None:
        self._crews.pop(task, None)

    def sent(self) -> None:
        """This task's request goes out now."""
        if self._crews:
            task = TASKS.get(self._loop) or asyncio.current_task()
            crew = self._crews.get(task)
            if crew is not None and task is not None:
                crew.out.add(task)

    def failed(self) -> None:
        """It came to nothing."""
        if self._crews:
            task = asyncio.current_task()
            crew = self._crews.get(task)
            if crew is not None and task is not None:
                crew.refused(task)

    def __repr__(self) -> str:
        return f"<UnderWay: {len(self._crews)} workers>"
