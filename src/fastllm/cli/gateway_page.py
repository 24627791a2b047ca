"""What the dashboard shows of a gateway, on a page of the gateway's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from .. import __version__
from ..dashboard.app import Dashboard
from ..dashboard.board import STEP, Board
from ..dashboard.ended import Ended
from ..dashboard.pages import DATA, ROOT
from ..dashboard.reading import JobState, Reading, reading_of
from ..dashboard.shared import Shared
from ..gateway.app import Gateway
from ..gateway.beside import Beside
from ..gateway.masters import MastersOnly
from ..gateway.tenancy import Tenancy

logger = logging.getLogger("fastllm")

MOST_JOBS = 50


def reading_of_gateway(gateway: Gateway, beside: Beside, tenancy: Tenancy, ended: Ended) -> Reading:
    """Read a gateway: what its clients got, what its engine does, and its batches."""
    engine = gateway.engine
    found = reading_of(engine.snapshot(), engine.router.endpoints, engine.clock.now(), engine.clock.time())
    ended.into(found)
    names = {key.id: f"{key.name} ({key.id})" for key in tenancy.store.list() if key.name}
    found.keys = {names.get(id, id): group for id, group in found.keys.items()}
    if beside.batches is not None:
        found.jobs = [
            JobState(
                id=batch.id,
                name=f"{batch.id} ({batch.endpoint})",
                status=batch.status.replace("_", " "),
                done=batch.completed + batch.failed,
                failed=batch.failed,
                total=batch.total or None,
            )
            for batch in beside.batches.runner.unfinished()[:MOST_JOBS]
        ]
    return found


@asynccontextmanager
async def gateway_dashboard(
    gateway: Gateway, read: Callable[[], Reading], title: str, shared: Shared | None = None
) -> AsyncIterator[None]:
    """Show a gateway on a page of its own, as long as it serves; with `shared`, all processes of it."""
    board = Board(read(), title, __version__)
    dashboard = Dashboard(board)
    gateway.mounts[DATA] = MastersOnly(dashboard)
    gateway.pages[ROOT] = dashboard
    ticking = asyncio.create_task(_tick(board, read, shared), name="fastllm-board")
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])


async def _tick(board: Board, read: Callable[[], Reading], shared: Shared | None) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(due + STEP, loop.time())
        await asyncio.sleep(due - loop.time())
        try:
            reading = read()
            board.tick(reading if shared is None else await asyncio.to_thread(shared.exchange, reading))
        except Exception as error:  # a page is no reason to stop a gateway
            logger.error("the dashboard cannot be drawn: %s", type(error).__name__)
