"""Hooks: every call by which a process changes the files of a folder, numbered over all threads, before it happens.

FastLLM changes a job's files by functions of `os` only, and by one buffered file, so replacing those is enough; that
nothing goes past is checked against strace (see points.py). `hook` is called in a process that was forked for it.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fastllm.jobs import appender


class Call(msgspec.Struct, array_like=True):
    """One call. `target` is a rename's; `at` and `data` are a write's, `at` a truncation's size, too."""

    name: str
    path: str  # within the folder; "" is the folder itself
    target: str = ""
    at: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        return f"{self.name} {self.path or 'the folder'}"


Perform = Callable[..., Any]  # makes the call; of a write, `perform(part)` makes it with so much of its bytes
Watcher = Callable[[Call, Perform], Any]


def hook(folder: Path, watcher: Watcher) -> None:
    """From now on call `watcher(call, perform)` instead of each call that changes something in the folder."""
    root = os.path.realpath(folder)
    lock = threading.RLock()  # one call at a time: their numbers and their order are exact
    real: dict[str, Any] = {
        name: getattr(os, name)
        for name in ("open", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "unlink", "replace", "fdopen")
    }

    def inside(path: Any) -> str | None:
        whole = os.path.realpath(os.path.dirname(os.path.abspath(path)))  # noqa: PTH100, PTH120
        name = os.path.basename(path)  # noqa: PTH119
        if os.path.join(whole, name) == root:  # noqa: PTH118
            return ""
        return name if whole == root else None

    def opened(fd: int) -> str | None:
        try:
            return inside(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        except OSError:
            return None

    def seen(call: Call, perform: Perform) -> Any:
        with lock:
            return watcher(call, perform)

    def hooked_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        name = inside(path) if flags & os.O_CREAT and not os.path.lexists(path) else None
        if name is None:
            fd: int = real["open"](path, flags, *args, **kwargs)
        else:
            fd = seen(Call("create", name), lambda: real["open"](path, flags, *args, **kwargs))
        return fd

    def hooked_write(fd: int, data: Any) -> int:
        name = opened(fd)
        if name is None:
            return int(real["write"](fd, data))
        at = os.lseek(fd, 0, os.SEEK_CUR)
        return int(seen(Call("write", name, at=at, data=bytes(data)), lambda part=data: real["write"](fd, part)))

    def hooked_pwrite(fd: int, data: Any, at: int) -> int:
        name = opened(fd)
        if name is None:
            return int(real["pwrite"](fd, data, at))
        return int(seen(Call("write", name, at=at, data=bytes(data)), lambda part=data: real["pwrite"](fd, part, at)))

    def syncing(kind: str) -> Callable[[int], None]:
        def hooked(fd: int) -> None:
            name = opened(fd)
            seen(Call("sync", name), lambda: real[kind](fd)) if name is not None else real[kind](fd)

        return hooked

    def hooked_ftruncate(fd: int, size: int) -> None:
        name = opened(fd)
        if name is None:
            real["ftruncate"](fd, size)
        else:
            seen(Call("truncate", name, at=size), lambda: real["ftruncate"](fd, size))

    def hooked_unlink(path: Any, **kwargs: Any) -> None:
        name = inside(path) if os.path.lexists(path) else None
        if name is None:
            real["unlink"](path, **kwargs)
        else:
            seen(Call("unlink", name), lambda: real["unlink"](path, **kwargs))

    def hooked_replace(source: Any, target: Any) -> None:
        name = inside(source)
        if name is None:
            real["replace"](source, target)
        else:
            seen(Call("rename", name, target=inside(target) or ""), lambda: real["replace"](source, target))

    def hooked_fdopen(fd: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" not in mode or opened(fd) is None:
            return real["fdopen"](fd, mode, *args, **kwargs)
        return io.BufferedWriter(_Raw(fd), kwargs["buffering"])

    hooked = {
        "open": hooked_open,
        "write": hooked_write,
        "pwrite": hooked_pwrite,
        "fsync": syncing("fsync"),
        "fdatasync": syncing("fdatasync"),
        "ftruncate": hooked_ftruncate,
        "unlink": hooked_unlink,
        "replace": hooked_replace,
        "fdopen": hooked_fdopen,
    }
    for name, function in hooked.items():
        setattr(os, name, function)
    appender._sync = hooked["fdatasync"]


class _Raw(io.RawIOBase):
    """What io.FileIO does, by `os.write`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)
