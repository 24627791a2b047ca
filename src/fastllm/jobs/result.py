"""JobResult: how a run of a job ended."""

from __future__ import annotations

from pathlib import Path

import msgspec


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. `done` = `ok` + `failed` rows of `total` (None while the input was not read to its end).

    `skipped` were answered by earlier runs, `passed` have no answer and were not to be asked by this one, `cached` came
    from the cache in this one. `interrupted` by `stop()`; `stopped` says why the job gave up by itself. Where neither
    is set, `output` is whole, and `failures` is the file of the rows that failed (None: none did); `reasons` has the
    first message of each class of this run's failures, and `may_pass` tells whether some may succeed when they are
    tried again. `damaged` places of the journal were skipped and their rows run again. Of
    `without_source` rows no column could be kept: the input has them no more. `rewritten`: every row had its answer,
    and the output was made anew, such as in another shape.
    """

    total: int | None = None
    done: int = 0
    ok: int = 0
    failed: int = 0
    skipped: int = 0
    passed: int = 0
    cached: int = 0
    interrupted: bool = False
    stopped: str | None = None
    output: Path
    failures: Path | None = None
    reasons: dict[str, str] = {}
    may_pass: bool = False
    journal: Path
    damaged: int = 0
    without_source: int = 0
    rewritten: bool = False
    elapsed: float = 0.0

    @property
    def finished(self) -> bool:
        return not self.interrupted and self.stopped is None

    @property
    def nothing_to_do(self) -> bool:
        """True if every row was answered by earlier runs."""
        return self.finished and bool(self.total) and self.skipped + self.passed == self.total
