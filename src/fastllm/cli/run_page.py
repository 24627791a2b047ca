"""What the dashboard shows of a run, on a page for this machine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .. import __version__
from ..dashboard.board import Board
from ..dashboard.reading import JobState, Reading, reading_of
from ..dashboard.server import Server
from ..engine.engine import Engine
from ..engine.stats import Snapshot
from ..jobs.runner import Job
from ..jobs.team import Team
from ..progress.base import Meter
from .say import say


@contextmanager
def run_dashboard(
    port: int, title: str, engine: Engine | Team, job: Job, snapshot: Callable[[], Snapshot]
) -> Iterator[None]:
    """Show a run until the context ends."""
    meter = Meter(snapshot, lambda: job.total, already_done=lambda: job.kept)

    def read() -> Reading:
        seen = snapshot()
        if isinstance(engine, Engine):
            found = reading_of(seen, engine.router.endpoints, engine.clock.now(), engine.clock.time())
            found.latency = engine.stats.latencies.counts()
        else:
            found = reading_of(seen, (), seen.elapsed, 0.0)
            found.latency = engine.tally().histogram
        state = JobState(
            id="job",
            name=title,
            status="running",
            done=job.kept + seen.done,
            failed=seen.failed,
            total=job.total,
            left=meter.view().eta,
        )
        found.jobs = [state]
        return found

    server = Server(Board(read(), title, __version__), read, port)
    say(f"dashboard: {server.address}")
    try:
        yield
    finally:
        server.close()
