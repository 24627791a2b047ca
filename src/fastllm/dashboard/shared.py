"""Shared: what several processes of one program read, each from a file of its own, added up by each of them."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from .reading import PRESENT, Reading, added

FRESH = 10.0  # seconds after which a process that wrote nothing is taken to do nothing
_decode = msgspec.msgpack.Decoder(Reading).decode


class Shared:
    """The place of process number `index` in a folder. What one before it has counted there still counts."""

    def __init__(self, folder: Path, index: int) -> None:
        self._folder = folder
        self._path = folder / f"{index}.reading"
        before = _read(self._path)
        self._before = Reading() if before is None else _past(before)

    def exchange(self, own: Reading) -> Reading:
        """Write down what this process has read, and give that of all. Works on the disk."""
        own = added([own, self._before])
        part = self._path.with_suffix(".part")
        part.write_bytes(msgspec.msgpack.encode(own))
        part.replace(self._path)
        others = []
        for path in sorted(self._folder.glob("*.reading")):
            if path != self._path and (found := _read(path)) is not None:
                others.append(found if _is_fresh(path) else _past(found))
        return added([own, *others])

    def __repr__(self) -> str:
        return f"<Shared {self._path}>"


def _read(path: Path) -> Reading | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return _decode(path.read_bytes())
    return None


def _is_fresh(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < FRESH
    except OSError:
        return False


def _past(reading: Reading) -> Reading:
    """Give what was counted, without what was so at that moment."""
    counts = {name: 0 if name in PRESENT else count for name, count in reading.counts.items()}
    return msgspec.structs.replace(reading, counts=counts, endpoints=[], jobs=[])
