"""Outcomes for rows, from workers of this process or from a team of several."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from ..types import Outcome
from .crew import Crew
from .delivery import Delivery
from .team import Team
from .workers import Executes, Rows, Workers


def delivery(
    engine: Executes,
    rows: Rows,
    *,
    concurrency: int,
    ordered: bool = False,
    window: int | None = None,
    unwritten: Callable[[], int] | None = None,
) -> Delivery:
    """Begin a run on an engine, or on a team of processes."""
    if isinstance(engine, Team):
        return Crew(engine, rows, concurrency=concurrency, ordered=ordered, window=window, unwritten=unwritten)
    return Workers(engine, rows, concurrency=concurrency, ordered=ordered, window=window, unwritten=unwritten)


async def outcomes(
    engine: Executes | Callable[[], Executes],
    rows: Rows,
    *,
    concurrency: int,
    ordered: bool = False,
    window: int | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Give an Outcome for each row, as they finish or in the order of the rows. `engine` may be found at the start.

    A plain iterable is pulled on the loop: one that blocks, blocks the loop; an async one may wait. If it raises, the
    rows already in work are delivered first, then its exception is raised here. An LLMError is an Outcome, and so is a
    ConfigError (as the cause of an InvalidRequestError); any other exception of `execute` is a bug and is raised.
    `window` bounds the rows pulled and not yet consumed. Closing the generator cancels what is in work.
    """
    found = engine() if callable(engine) else engine
    workers = delivery(found, rows, concurrency=concurrency, ordered=ordered, window=window)
    try:
        while True:
            outcome = workers.take()
            if outcome is None:
                if workers.finished:
                    break
                await workers.news()
                continue
            yield outcome
        workers.check()
    finally:
        await workers.aclose()
