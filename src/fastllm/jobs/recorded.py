"""Recorded: a journal that is only read, without its lock; also one that is being written, as far as it is."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..formats.files import Closing
from .frames import END, FAILED, OK, Frames, Scan
from .journal import (
    _OPEN_END,
    Entry,
    Identity,
    JournalError,
    _differences,
    _existing_layout,
    _identity,
    _same_job,
    _unpack,
)


class Recorded(Closing):
    """What a journal holds; a context manager. `total` is the number of the input's rows once that is known.

    Raises ConfigError where it cannot be read, JobConflictError where it is newer or no journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total: int | None = None
        self.damaged = 0
        self.identity: Identity | None = None
        self._states = bytearray()
        self._offsets = array("q")
        self._checks = array("I")
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
        try:
            self._layout = _existing_layout(path, self.fd, False)
            self._frames = None if self._layout is None else Frames(self.fd, self._layout)
            self._end = os.fstat(self.fd).st_size
            self._scan()
        except OSError as error:
            os.close(self.fd)
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
        except BaseException:
            os.close(self.fd)
            raise

    def _scan(self) -> None:
        if self._layout is None:
            return
        try:
            self.identity = _identity.decode(self._layout.identity)
        except msgspec.DecodeError:
            raise ConfigError(f"the header of {self.path} cannot be read") from None
        scan = Scan(self.fd, self._layout, self._end)
        states, offsets = self._states, self._offsets
        for offset, index, state, check, _ in scan:
            if state == END:
                self.total = None if index == _OPEN_END else index
                continue
            if index >= len(states):
                more = index + 1 + len(states) // 8 + 64 - len(states)
                states.extend(bytes(more))
                offsets.frombytes(bytes(8 * more))
                self._checks.frombytes(bytes(4 * more))
            states[index] = OK if state == OK else FAILED
            offsets[index] = offset
            self._checks[index] = check
        self.damaged = scan.damaged

    @property
    def rows(self) -> int:
        """As many rows as there may be anything of."""
        return len(self._states) if self.total is None else self.total

    @property
    def ok(self) -> int:
        return self._states.count(OK, 0, self.rows)

    @property
    def failed(self) -> int:
        return self._states.count(FAILED, 0, self.rows)

    @property
    def states(self) -> bytearray:
        """The states of all rows, a byte each."""
        return self._states

    def state(self, index: int) -> int:
        return self._states[index] if index < len(self._states) else 0

    def check(self, index: int) -> int:
        """Give the checksum of a done row's source."""
        return self._checks[index]

    def read(self, index: int) -> Entry:
        """Give back what was recorded of a done row. JournalError if it is damaged."""
        try:
            found = self._frames.read(self._offsets[index]) if self._frames is not None else None
            if found is not None and found[0] == index:
                return _unpack(found[2])
        except (OSError, msgspec.DecodeError):
            pass
        raise JournalError(f"{self.path} is damaged at row {index}; run the job again: that row is asked anew")

    def counts_for(self, job: Identity, *, force: bool = False) -> bool:
        """Tell whether a run of this job would go on with it; False where it would start anew. JobConflictError where
        it is another's, as the run would say."""
        if self._layout is None or (not self.ok and _differences(self._layout, job)):
            return False
        if not force:
            _same_job(self.path, self._layout, job)
        return True

    def as_finished(self) -> Iterator[int]:
        """Give the rows in the order in which they got their last outcome."""
        if self._layout is not None:
            for offset, index, state, *_ in Scan(self.fd, self._layout, self._end):
                if state != END and self.state(index) and self._offsets[index] == offset:
                    yield index

    def close(self) -> None:
        os.close(self.fd)

    def __repr__(self) -> str:
        return f"<Recorded {self.path.name}: {self.ok} ok, {self.failed} failed>"
