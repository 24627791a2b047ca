"""Appender: puts bytes at the end of a file, many at a time, and says when they are safe.

Bytes given to `put` are written at once, so that a killed process loses none of them, and are on the disk (fdatasync,
in a thread of its own) within `interval` seconds. What comes while the disk is at work, or soon after it made somebody
wait, is written by the thread, within milliseconds: a write into the system's memory takes 5 µs, less than to wake a
thread for it, but nobody who puts is to wait for a slow disk. The first error is final: after a failed write or sync
nothing more is written, because what a second sync would report is worth nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from ..errors import FastLLMError

_GATHER = 0.002  # seconds between two writes of the thread; what comes meanwhile is written together
_SLOW = 0.005  # seconds that a write may take; after one that took longer
_WARY = 1.0  # the thread writes for so many
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class JournalError(FastLLMError):
    """The journal cannot be written or read: the disk is full or failing. The job stops and can be resumed."""


class Appender:
    """One file, and the thread that syncs it: made at the first `put`, ended by `close`. One thread at a time puts."""

    def __init__(self, fd: int, name: str, interval: float) -> None:
        self._fd = fd
        self._name = name
        self._interval = interval
        self._pending: deque[tuple[bytes, int]] = deque()  # data, and how many of its pieces are marked
        self._tickets: deque[threading.Event] = deque()
        self._bell = threading.Event()
        self._rung = False
        self._busy = threading.Lock()  # held by whoever writes what is pending, or syncs
        self._wary = 0.0  # until when only the thread writes
        self._due: float | None = None  # when what was written has to be synced, where the thread has seen it
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
        """Append; `marked` of the pieces in it are counted. JournalError once anything went wrong."""
        if self.failure is not None:
            raise self.failure
        self._marked += marked
        self.accepted += len(data)
        self._pending.append((data, marked))
        now = time.monotonic()
        if now >= self._wary and self._busy.acquire(blocking=False):
            try:
                self._checked(self._write)
            finally:
                self._busy.release()
            if time.monotonic() > now + _SLOW:
                self._wary = now + _WARY
        if not self._rung and (self._pending or self._due is None):
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
            self._work_until_closed()
        except Exception as error:  # whatever it is: rows wait to be written
            self._fail(error)
            self._tell()
        finally:
            for ticket in self._tickets:
                ticket.set()

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.failure = JournalError(
                f"cannot write {self._name}: {reason}; the job is stopped, run it again to go on"
            )

    def _checked(self, use: Callable[[], None]) -> None:
        """Use the file, holding `_busy`; never again after an error, whatever it is: nobody knows what was written."""
        try:
            if self.failure is None:
                use()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
        if self.failure is not None:
            raise self.failure

    def _tell(self) -> None:
        wrote = self.wrote
        if wrote is not None:
            wrote()

    def _work_until_closed(self) -> None:
        while True:
            if not (self._pending or self._closing or self._tickets):
                self._rung = False  # from now on a put rings
                if not self._pending:
                    self._bell.wait(self._patience())
                self._bell.clear()
                self._rung = True
            if self.failure is not None:
                return
            closing = self._closing
            tickets = [self._tickets.popleft() for _ in range(len(self._tickets))]
            pending = bool(self._pending)  # after the tickets: what they are for was put before them
            try:
                if pending:
                    with self._busy:
                        self._checked(self._write)
                    self._tell()
                patience = self._patience()
                if patience is not None and (closing or tickets or not patience):
                    with self._busy:
                        self._checked(self._sync)
            except BaseException:
                self._tickets.extend(tickets)  # woken when `failure` says why
                raise
            for ticket in tickets:
                ticket.set()
            if closing and not self._pending:
                return
            if pending and not (self._closing or self._tickets):
                time.sleep(_GATHER)  # one wake-up for all that comes meanwhile: each costs the loop's thread its place

    def _patience(self) -> float | None:
        """Give for how many seconds what was written may wait for its sync; None where all is synced."""
        if self.written == self.synced:
            return None
        if self._due is None:
            self._due = time.monotonic() + self._interval
        return max(0.0, self._due - time.monotonic())

    def _write(self) -> None:
        """Hand what is pending to the system."""
        taken = [self._pending.popleft() for _ in range(len(self._pending))]
        if not taken:  # somebody else has written it
            return
        data = memoryview(taken[0][0] if len(taken) == 1 else b"".join([piece for piece, _ in taken]))
        while data:
            done = os.write(self._fd, data)
            self.written += done
            data = data[done:]
        self._marked_written += sum([marked for _, marked in taken])

    def _sync(self) -> None:
        reached = self.written
        _sync(self._fd)
        self.synced, self._due = reached, None

    def __repr__(self) -> str:
        state = "failed" if self.failure else "closed" if self._closing else "open"
        return f"<Appender {state}, {self.accepted - self.written} bytes to write>"
