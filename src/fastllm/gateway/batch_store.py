"""BatchStore: what is known of batches, on the disk: a directory for each, its tenant's above it.

`batch.json` is written whole or not at all, and only by the process that runs batches, but for the first time. Which
ones are not ended yet says a directory of their names, so that nobody has to look at all the others.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..jobs.replacing import replacing
from .auth import Tenant
from .file_store import folder_name, private_folder

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Ending = Literal["completed", "expired", "cancelled", "failed"]
_CANCELLABLE = frozenset(("validating", "in_progress"))
ENDED = frozenset(("completed", "failed", "expired", "cancelled"))
_ID = re.compile(r"batch_[0-9a-f]{24}")
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_BATCH, _CANCEL, _OPEN = "batch.json", "cancel", "open"


class Flaw(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with an input, as OpenAI tells it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(msgspec.Struct, kw_only=True):
    """A batch. Times are wall times; `times` has when it came into each status. `input_id` is the client's file, `asks`
    are the first models of its requests, `kept_seconds` for how long its output is kept (None: always). `ending` is how
    it ends, once that is known, and the ids of its files are made up before there is a file, so that a killed process
    makes the same ones again."""

    id: str
    tenant: str
    namespace: str
    models: list[str] | None
    is_master: bool
    endpoint: str
    input_id: str
    completion_window: str
    created: float
    expires: float
    status: Status = "validating"
    times: dict[str, float] = {}
    metadata: dict[str, str] | None = None
    kept_seconds: int | None = None
    ending: Ending | None = None
    output_id: str | None = None
    error_id: str | None = None
    flaws: list[Flaw] = []
    asks: list[str] = []
    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def cancels(self) -> bool:
        """Tell whether it is to be cancelled."""
        return self.status == "cancelling"

    def owner(self) -> Tenant:
        """Give its tenant as it was when the batch was made, without its limits."""
        return Tenant(id=self.tenant, models=self.models, is_master=self.is_master, namespace=self.namespace)

    def shown(self) -> dict[str, Any]:
        """Give it as OpenAI does."""
        times = {f"{name}_at": int(self.times[name]) if name in self.times else None for name in _TIMES}
        ended = self.ended
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.flaws} if self.flaws else None,
            "input_file_id": self.input_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_id if ended else None,
            "error_file_id": self.error_id if ended else None,
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            **times,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }


_decode = msgspec.json.Decoder(Batch).decode


def new_id() -> str:
    """Make an id for a batch."""
    return "batch_" + secrets.token_hex(12)


class BatchStore:
    """Batches below a directory. Every call works on the disk: not for a loop's thread."""

    def __init__(self, root: Path) -> None:
        self.root = private_folder(root)
        self._open = private_folder(root / _OPEN)

    def folder(self, batch: Batch) -> Path:
        """Give where everything of a batch lies."""
        return self.root / folder_name(batch.tenant) / batch.id

    def add(self, batch: Batch) -> None:
        """Take in a new batch, whose directory has its input already."""
        self.save(batch)
        (self._open / batch.id).write_text(folder_name(batch.tenant))

    def save(self, batch: Batch) -> None:
        with replacing(self.folder(batch) / _BATCH, 0o600) as file:
            file.write(msgspec.json.encode(batch))

    def close(self, batch: Batch) -> None:
        """Save a batch that has ended, and remove what it was made with."""
        self.save(batch)
        (self._open / batch.id).unlink(missing_ok=True)
        for path in self.folder(batch).iterdir():
            if path.name != _BATCH:
                with contextlib.suppress(OSError):
                    path.unlink()

    def find(self, tenant: str, id: str) -> Batch | None:
        """Give a batch of this tenant."""
        return self._read(self.root / folder_name(tenant) / id) if _ID.fullmatch(id) else None

    def all(self, tenant: str) -> list[Batch]:
        """Give the batches of this tenant, the newest first."""
        folder = self.root / folder_name(tenant)
        folders = list(folder.iterdir()) if folder.is_dir() else []
        found = [self._read(one) for one in folders if _ID.fullmatch(one.name)]
        return sorted((one for one in found if one is not None), key=lambda one: (one.created, one.id), reverse=True)

    def unfinished(self, known: Mapping[str, object]) -> list[Batch]:
        """Give the batches that have not ended and are not known yet."""
        found = []
        for mark in list(self._open.iterdir()):
            if mark.name in known or not _ID.fullmatch(mark.name):
                continue
            with contextlib.suppress(OSError):
                batch = self._read(self.root / mark.read_text() / mark.name)
                if batch is not None and batch.ended:  # it was closed, but for this
                    self.close(batch)
                elif batch is not None:
                    found.append(batch)
        return found

    def ask_to_cancel(self, batch: Batch) -> None:
        """Leave word for whoever runs it that it is to be cancelled."""
        (self.folder(batch) / _CANCEL).touch(0o600)

    def is_to_be_cancelled(self, batch: Batch) -> bool:
        return (self.folder(batch) / _CANCEL).exists()

    def drop(self, batch: Batch) -> None:
        """Remove the directory of a batch that was never taken in."""
        shutil.rmtree(self.folder(batch), ignore_errors=True)

    def _read(self, folder: Path) -> Batch | None:
        try:
            batch = _decode((folder / _BATCH).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None
        if batch.status in _CANCELLABLE:
            with contextlib.suppress(OSError):  # nobody left word; else who runs it has yet to write that down
                batch.times = {**batch.times, "cancelling": (folder / _CANCEL).stat().st_mtime}
                batch.status = "cancelling"
        return batch

    def __repr__(self) -> str:
        return f"<BatchStore {self.root}>"
