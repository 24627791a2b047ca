"""Disk: what may be found after a power loss, by the calls that were made and those that were made safe.

Rules, stricter than any file system in use. What was written to a file since its last fsync may be there or not, in any
order, torn at the edges of sectors; what is missing below something that is there reads as zeros. A name's change may
be lost or there until the folder's fsync, each one for itself; a rename is whole or not at all. A file's fsync makes
its content safe and not its name.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from .hooks import Call

T = TypeVar("T")


class Inode(msgspec.Struct):
    """A file: what is safe of it, and the writes (or truncations: no data) that are not."""

    safe: bytes = b""
    pending: list[Call] = []

    def latest(self) -> bytes:
        return _applied(self.safe, self.pending)


class Disk:
    """Takes the calls one after the other; `crash` draws what a power loss now may leave."""

    def __init__(self) -> None:
        self._names: dict[str, Inode] = {}
        self._safe_names: dict[str, Inode] = {}
        self._changes: list[tuple[Call, Inode]] = []

    def take(self, call: Call) -> None:
        """A call was made."""
        if call.name == "sync" and not call.path:
            self._safe_names, self._changes = _renamed(self._safe_names, self._changes), []
        elif call.name == "sync":
            inode = self._names[call.path]
            inode.safe, inode.pending = inode.latest(), []
        elif call.name in ("write", "truncate"):
            self._names[call.path].pending.append(call)
        else:
            inode = Inode() if call.name == "create" else self._names[call.path]
            self._changes.append((call, inode))
            self._names = _renamed(self._names, self._changes[-1:])

    @property
    def is_settled(self) -> bool:
        """Tell whether there is only one end that a power loss now could have."""
        return not self._changes and not any(inode.pending for inode in self._names.values())

    def safe(self, name: str) -> bytes | None:
        """Give what is safe of a file; None where its name is not."""
        inode = self._safe_names.get(name)
        return None if inode is None else inode.safe

    def crash(self, rng: random.Random, sector: int) -> dict[str, bytes]:
        """Give the files that are found afterwards."""
        names = _renamed(self._safe_names, _kept(rng, self._changes))
        drawn: dict[int, bytes] = {}
        for inode in names.values():
            if id(inode) not in drawn:
                drawn[id(inode)] = _drawn(rng, inode, sector)
        return {name: drawn[id(inode)] for name, inode in names.items()}


def _renamed(names: dict[str, Inode], changes: Sequence[tuple[Call, Inode]]) -> dict[str, Inode]:
    found = dict(names)
    for call, inode in changes:
        if call.name == "create":
            found[call.path] = inode
            continue
        if found.get(call.path) is inode:
            del found[call.path]
        if call.name == "rename":
            found[call.target] = inode
    return found


def _kept(rng: random.Random, items: Sequence[T]) -> list[T]:
    """Draw which of some changes reached the disk: none, all, the first ones, or any."""
    how = rng.randrange(10)
    if how < 2:
        return list(items) if how else []
    if how < 5:
        return list(items[: rng.randint(0, len(items))])
    share = rng.random()
    return [item for item in items if rng.random() < share]


def _drawn(rng: random.Random, inode: Inode, sector: int) -> bytes:
    how = rng.randrange(10)
    if how == 0:
        return inode.safe
    if how == 1:
        return inode.latest()
    pieces = [piece for call in inode.pending for piece in _sectors(call, sector)]
    content = _applied(inode.safe, _kept(rng, pieces))
    if rng.random() < 0.5:  # the size was safe sooner than the content
        content += bytes(max(0, len(inode.latest()) - len(content)))
    return content


def _sectors(call: Call, sector: int) -> list[Call]:
    """Cut a write at the edges of sectors."""
    if call.name == "truncate":
        return [call]
    edges = [0, *range(sector - call.at % sector, len(call.data), sector), len(call.data)]
    return [
        Call("write", call.path, at=call.at + begin, data=call.data[begin:end])
        for begin, end in itertools.pairwise(edges)
    ]


def _applied(content: bytes, calls: Sequence[Call]) -> bytes:
    found = bytearray(content)
    for call in calls:
        if call.name == "truncate":
            del found[call.at :]
            found += bytes(call.at - len(found))
            continue
        found += bytes(max(0, call.at - len(found)))
        found[call.at : call.at + len(call.data)] = call.data
    return bytes(found)
