"""Appender: puts bytes at the end of a file from a thread of its own, many at a time, and says when they are safe.

Bytes given to `put` are written at once, or within a few milliseconds where many come, so that a killed process loses
next to nothing, and are on the disk (fdatasync) within `interval` seconds. The first error is final: after a failed
write or sync nothing more is written, because what a second sync would report is worth nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from ..errors import FastLLMError

_GATHER = 0.002  # seconds between two writes; what comes meanwhile is written together
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class JournalError(FastLLMError):
    """The journal cannot be written or read: the disk is full or failing. The job stops and can be resumed."""


class Appender:
    """One thread that writes one file; made at the first `put`, ended by `close`."""

    def __init__(self, fd: int, name: str, interval: float) -> None:
        self._fd = fd
        self._name = name
        self._interval = interval
        self._pending: deque[bytes] = deque()
        self._tickets: deque[threading.Event] = deque()
        self._bell = threading.Event()
        self._rung = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self.accepted = 0  # bytes put; `written` of them are with the system
        self.written = 0
        self.synced = 0  # … and of them on the disk
        self._marked = self._marked_written = 0
        self.failure: JournalError | None = None
        self.wrote: Callable[[], object] | None = None  # called from the thread after a write, and after a failure

    def unwritten(self) -> int:
        """Tell how many of the marked pieces are not with the system yet; none after a failure, as none will be."""
        return self._marked - self._marked_written if self.failure is None else 0

    def put(self, data: bytes, *, marked: int = 0) -> None:
        """Append, without waiting; `marked` of the pieces in it are counted. JournalError once anything went wrong."""
        if self.failure is not None:
            raise self.failure
        self._pending.append(data)
        self._marked += marked
        self.accepted += len(data)
        if not self._rung:
            self._rung = True
            self._bell.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fastllm-journal", daemon=True)
                self._thread.start()

    def sync(self) -> None:
        """Wait until everything put so far is on the disk. Raises JournalError if it is not."""
        if self._thread is not None and self.failure is None:
            ticket = threading.Event()
            self._tickets.append(ticket)
            self._bell.set()
            while not ticket.wait(0.5) and self._thread.is_alive():
                pass
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Sync and end the thread. Never raises; `failure` tells."""
        self._closing = True
        self._bell.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            self._write_until_closed()
        except Exception as error:  # whatever it is: rows wait to be written
            reason = getattr(error, "strerror", None) or error
            self.failure = JournalError(
                f"cannot write {self._name}: {reason}; the job is stopped, run it again to go on"
            )
            self._tell()
        finally:
            for ticket in self._tickets:
                ticket.set()

    def _tell(self) -> None:
        wrote = self.wrote
        if wrote is not None:
            wrote()

    def _write_until_closed(self) -> None:
        due: float | None = None  # when what was written has to be synced
        while True:
            if not (self._pending or self._closing or self._tickets):
                self._rung = False  # from now on a put rings
                if not self._pending:
                    self._bell.wait(None if due is None else max(0.0, due - time.monotonic()))
                self._bell.clear()
                self._rung = True
            closing = self._closing
            tickets = [self._tickets.popleft() for _ in range(len(self._tickets))]
            try:
                wrote = bool(self._pending)
                if wrote:
                    self._write()
                    due = time.monotonic() + self._interval if due is None else due
                if due is not None and (closing or tickets or time.monotonic() >= due):
                    reached = self.written
                    _sync(self._fd)
                    self.synced = reached
                    due = None
            except BaseException:
                self._tickets.extend(tickets)  # woken when `failure` says why
                raise
            for ticket in tickets:
                ticket.set()
            if closing and not self._pending:
                return
            if wrote and not (self._closing or self._tickets):
                time.sleep(_GATHER)  # one wake-up for all that comes meanwhile: each costs the loop's thread its place

    def _write(self) -> None:
        marked = self._marked  # what is counted is among what is pending
        data = memoryview(b"".join([self._pending.popleft() for _ in range(len(self._pending))]))
        while data:
            done = os.write(self._fd, data)
            self.written += done
            data = data[done:]
        self._marked_written = marked
        self._tell()

    def __repr__(self) -> str:
        state = "failed" if self.failure else "closed" if self._closing else "open"
        return f"<Appender {state}, {self.accepted - self.written} bytes to write>"
