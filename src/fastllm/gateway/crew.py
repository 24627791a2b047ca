"""Crew: several processes of one gateway. They listen on one socket, and one that dies is replaced.

The first process only binds, starts the others and waits. Each of them ends with the socket pair that joins it to the
first, so that none outlives it, whatever becomes of that one. What they keep together lies in files: a lease file for
the limits and the budget of the endpoints, the database for those of keys, a folder for what the dashboard shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import msgspec

from ..errors import ConfigError

MOST_DEATHS = 5  # in a row, none of them a MINUTE after the one before
MINUTE = 60.0
PAUSE = 0.5  # seconds before one that died is replaced
_READY = b"r"


class Member(msgspec.Struct, frozen=True):
    """What a process is told of its place: its number, the descriptors of the listening socket and of its own end of
    the pair, and the folder of all."""

    index: int
    listening: int
    pair: int
    folder: str

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def of(cls, text: str) -> Member:
        """Read it again. ConfigError for what nobody of a crew was told."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            raise ConfigError("--member is what `fastllm serve` tells its own processes: leave it out") from None

    @property
    def leases(self) -> Path:
        return Path(self.folder) / "leases.db"

    def folder_of(self, name: str) -> Path:
        """Give a folder in which each process may have a file of its own."""
        found = Path(self.folder) / name
        found.mkdir(mode=0o700, exist_ok=True)
        return found

    def socket(self) -> socket.socket:
        """Give the listening socket."""
        return socket.socket(fileno=self.listening)

    def ready(self) -> None:
        """Tell the first process that this one serves."""
        with contextlib.suppress(OSError):
            os.write(self.pair, _READY)

    def follow(self, stop: Callable[[], None]) -> None:
        """Call `stop` once the first process is gone."""
        loop = asyncio.get_running_loop()

        def left() -> None:
            try:
                if os.read(self.pair, 16):
                    return
            except BlockingIOError:
                return
            except OSError:  # it ended without having read that we serve
                pass
            loop.remove_reader(self.pair)
            stop()

        os.set_blocking(self.pair, False)
        loop.add_reader(self.pair, left)


class _Process(msgspec.Struct):
    """One of them, as the first one knows it."""

    index: int
    popen: subprocess.Popen[bytes]
    pair: socket.socket


class Crew:
    """`size` processes of `command`, to which each one's Member is added as text. `run` it in the main thread."""

    def __init__(self, command: Sequence[str], size: int, listening: socket.socket, folder: Path) -> None:
        self._command = tuple(command)
        self._size = size
        self._listening = listening
        self._folder = folder
        self._processes: list[_Process] = []
        self._stopping = False
        self._deaths, self._died_at = 0, 0.0

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serve until SIGTERM or SIGINT, which are passed on as SIGHUP is. Gives the exit status: 1 where processes
        died again and again, or one did before it served."""
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, self._heard) for number in handled}
        try:
            for index in range(self._size):
                self._start(index)
            if all(map(_serves, self._processes)) and not self._stopping:
                on_ready()
                while self._processes and self._wait():
                    pass
            return 0 if self._stopping else 1
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            member = Member(index, self._listening.fileno(), theirs.fileno(), str(self._folder))
            popen = subprocess.Popen(
                [*self._command, member.text()],
                pass_fds=(member.listening, member.pair),
                stdin=subprocess.DEVNULL,
                process_group=0,  # a terminal's Ctrl-C comes once, from here: the second one would not wait
            )
        self._processes.append(_Process(index, popen, ours))

    def _wait(self) -> bool:
        """Wait for the next that ends, and replace it unless all are to end. False where that is of no use."""
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        for process in [one for one in self._processes if one.popen.poll() is not None]:
            self._processes.remove(process)
            process.pair.close()
            if self._stopping:
                continue
            now = time.monotonic()
            self._deaths = self._deaths + 1 if now - self._died_at < MINUTE else 1
            self._died_at = now
            if self._deaths >= MOST_DEATHS:
                return False
            time.sleep(PAUSE)
            if not self._stopping:
                self._start(process.index)
        return True

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGHUP:
            self._stopping = True
        for process in self._processes:
            process.popen.send_signal(number)

    def _end(self) -> None:
        """Have all of them leave, and wait for that."""
        for process in self._processes:
            process.pair.close()
        for process in self._processes:
            process.popen.wait()

    def __repr__(self) -> str:
        return f"<Crew of {self._size}: {[process.popen.pid for process in self._processes]}>"


def _serves(process: _Process) -> bool:
    """Wait until a process serves; False where it ended before."""
    select.select([process.pair], [], [])
    try:
        return process.pair.recv(1) == _READY
    except OSError:
        return False
