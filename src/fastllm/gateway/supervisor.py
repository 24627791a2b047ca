"""Supervisor: several processes of one gateway. They listen on one socket, and one that dies is replaced.

The first process only binds, starts the others and waits. Each of them ends with the socket pair that joins it to the
first, so that none outlives it, whatever becomes of that one. What they keep together lies in files: a lease file for
the limits and the budget of the endpoints, the database for those of keys, a folder for what the dashboard shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
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

logger = logging.getLogger("fastllm.gateway")

MOST_DEATHS = 5  # in a row, none of them a MINUTE after the one before
MINUTE = 60.0
PAUSE = 0.5  # seconds before one that died is replaced
_READY = b"r"
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Place(msgspec.Struct, frozen=True):
    """What a process is told of its place: its number, the descriptors of the listening socket and of its own end of
    the pair, and the folder of all."""

    index: int
    listening: int
    pair: int
    folder: str

    def text(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def of(cls, text: str) -> Place:
        """Read it again. ConfigError for what no process was told."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            raise ConfigError("--place is what `fastllm serve` tells its own processes: leave it out") from None

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
    """One of them, as the first one knows it. Before it `serves` it has no handlers for signals yet, and reads settings
    that are fresh anyway."""

    index: int
    popen: subprocess.Popen[bytes]
    pair: socket.socket
    serves: bool = False


class Supervisor:
    """`size` processes of `command`, to which each one's Place is added as text. `run` it in the main thread."""

    def __init__(
        self,
        command: Sequence[str],
        size: int,
        listening: socket.socket,
        folder: Path,
        *,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_stop = on_stop
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
        signals, told = socket.socketpair()
        told.setblocking(False)
        # A handler may run anywhere, also while a process is being started: signals are only noted, and read below.
        woken = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, _noted) for number in _HANDLED}
        try:
            for index in range(self._size):
                self._start(index)
            return self._watch(signals, on_ready)
        finally:
            for process in self._processes:
                process.pair.close()
            for process in self._processes:
                process.popen.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)
            for end in (signals, told):
                end.close()

    def _watch(self, signals: socket.socket, on_ready: Callable[[], None]) -> int:
        """Hear of signals and of what becomes of the processes, until all have ended."""
        ready = False
        while self._processes:
            heard, _, _ = select.select([signals, *(process.pair for process in self._processes)], [], [])
            if signals in heard:
                for number in signals.recv(256):
                    self._pass_on(number)
            for process in [one for one in self._processes if one.pair in heard]:
                if _says_that_it_serves(process):
                    process.serves = True
                elif not self._ended(process, ready):
                    return 1
            if not ready and not self._stopping and all(process.serves for process in self._processes):
                ready = True
                on_ready()
        return 0

    def _start(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            place = Place(index, self._listening.fileno(), theirs.fileno(), str(self._folder))
            popen = subprocess.Popen(
                [*self._command, place.text()],
                pass_fds=(place.listening, place.pair),
                stdin=subprocess.DEVNULL,
                process_group=0,  # a terminal's Ctrl-C comes once, from here: the second one would not wait
            )
        self._processes.append(_Process(index, popen, ours))

    def _ended(self, process: _Process, ready: bool) -> bool:
        """One is gone: replace it, unless all are to end. False where that is of no use."""
        self._processes.remove(process)
        process.pair.close()
        process.popen.wait()
        if self._stopping:
            return True
        now = time.monotonic()
        self._deaths = self._deaths + 1 if now - self._died_at < MINUTE else 1
        self._died_at = now
        if not ready or self._deaths >= MOST_DEATHS:
            return False
        logger.warning("a process that serves is gone (%s): another one takes its place", process.popen.returncode)
        time.sleep(PAUSE)
        self._start(process.index)
        return True

    def _pass_on(self, number: int) -> None:
        if number not in _HANDLED:
            return
        if number != signal.SIGHUP:
            if not self._stopping:
                self._on_stop()
            self._stopping = True
            self._listening.close()  # nobody is to wait for an answer that will not come
        for process in self._processes:
            if number != signal.SIGHUP or process.serves:
                process.popen.send_signal(number)

    def __repr__(self) -> str:
        return f"<Supervisor of {self._size}: {[process.popen.pid for process in self._processes]}>"


def _noted(number: int, frame: FrameType | None) -> None:
    pass


def _says_that_it_serves(process: _Process) -> bool:
    """Read what a process says; False where it has ended."""
    try:
        return process.pair.recv(1) == _READY
    except OSError:
        return False
