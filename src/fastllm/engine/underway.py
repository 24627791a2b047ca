"""UnderWay: which tasks have a request at the provider, so that whoever stops a run can spare those alone."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ..clock import TASKS


class Crew(Protocol):
    """Tasks of one run, and who wants to know of their requests."""

    def sent(self, task: asyncio.Task[Any]) -> None:
        """The provider may have the task's request, so that its answer must not be lost."""
        ...

    def refused(self, task: asyncio.Task[Any]) -> None:
        """The attempt came to nothing: cancelling the task now loses nothing."""
        ...

    def packed(self, count: int) -> None:
        """So many tasks more (or less) wait for a request that they share with others."""
        return None


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

    def sent(self, task: asyncio.Task[Any] | None = None) -> None:
        """A task's request goes out now: this one's, or another's for whom it asks."""
        if self._crews:
            task = task or TASKS.get(self._loop) or asyncio.current_task()
            crew = self._crews.get(task)
            if crew is not None and task is not None:
                crew.sent(task)

    def packed(self, task: asyncio.Task[Any] | None, count: int) -> None:
        """A task begins (1) or ends (-1) to wait for a request that it shares with others."""
        crew = self._crews.get(task)
        if crew is not None:
            crew.packed(count)

    def failed(self, task: asyncio.Task[Any] | None = None) -> None:
        """It came to nothing."""
        if self._crews:
            task = task or asyncio.current_task()
            crew = self._crews.get(task)
            if crew is not None and task is not None:
                crew.refused(task)

    def __repr__(self) -> str:
        return f"<UnderWay: {len(self._crews)} workers>"
