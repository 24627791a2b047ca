"""Bench: a job's folder, a model server that remembers, and processes that run `fastllm run` and may be killed.

A process is forked from this one, in which everything is imported and no thread runs, so that a state costs 0.1 s and
not the start of an interpreter. It calls the command line's own `main`.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from fastllm import cli
from fastllm.errors import FastLLMError
from fastllm.formats.output import failures_path
from fastllm.jobs.frames import OK
from fastllm.jobs.recorded import Recorded

from .findings import Findings, normal

CONCURRENCY = 8
LATENCY = 0.01  # seconds
PATIENCE = 60.0  # seconds after which a run counts as hanging
_WARM = ("cli.run", "jobs.runner", "formats.jsonl", "transport.http", "progress.line", "providers.openai", "cache.disk")


class Bench:
    """A folder with an input of `rows` questions; a context manager that ends the server and removes the folder."""

    def __init__(self, rows: int, *, latency: float = LATENCY, durability: str = "normal") -> None:
        self.rows = rows
        self._root = Path(tempfile.mkdtemp(prefix="fastllm-crash-"))
        self.folder = self._root / "job"
        self.source = self._root / "in.jsonl"
        self.output = self.folder / "out.jsonl"
        self.said = self._root / "said"
        self._log = self._root / "received"
        self._log.touch()
        self._read = 0
        self._latency = latency
        self._durability = durability
        self._expected: bytes | None = None
        self.source.write_text(
            "".join(f'{{"custom_id":"q{i}","prompt":"q{i} {"why " * (i % 7)}"}}\n' for i in range(rows))
        )
        self.clear()
        for name in _WARM:
            importlib.import_module(f"fastllm.{name}")

    def __enter__(self) -> Self:
        server = [sys.executable, str(Path(__file__).with_name("server.py")), str(self._log), str(self._latency)]
        self._server = subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        self.base_url = self._server.stdout.readline().strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()
        shutil.rmtree(self._root, ignore_errors=True)

    @property
    def arguments(self) -> list[str]:
        """What `fastllm` is called with."""
        own = ["run", str(self.source), "--output", str(self.output), "--model", "mock-model", "--prompt", "{prompt}"]
        own += ["--base-url", self.base_url, "--concurrency", str(CONCURRENCY), "--progress", "none"]
        return [*own, "--durability", self._durability]

    def clear(self) -> None:
        """Begin with no job."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def start(self, prepare: Callable[[], None] | None = None, *more: str) -> int:
        """Start the job in a process of its own; give its id. `prepare` is called there first."""
        arguments = ["fastllm", *self.arguments, *more]

        def work() -> None:
            sys.argv = arguments
            if prepare is not None:
                prepare()
            cli.main()

        return forked(work, self.said)

    def run(self, prepare: Callable[[], None] | None = None, *more: str) -> int:
        """Run the job to its end; give the exit status, or the negative number of the signal that ended it."""
        return ended(self.start(prepare, *more))

    def expected(self) -> bytes:
        """Give the output of a run that nothing interrupts."""
        if self._expected is None:
            self.clear()
            status = self.run()
            if status:
                raise SystemExit(f"the uninterrupted run ended with {status}: {self.said.read_text()}")
            self._expected = self.output.read_bytes()
            self.clear()
            self.received()
        return self._expected

    def received(self) -> list[tuple[str, float]]:
        """Give the rows that the server was asked since the last call, and when."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            lines = log.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._read += sum(map(len, whole))
        return [(name.decode(), float(when)) for name, when in (line.split() for line in whole)]

    def recorded(self) -> set[str]:
        """Give the rows whose answer the journal has."""
        path = self.output.with_name(self.output.name + ".journal")
        if not path.exists():
            return set()
        try:
            with Recorded(path) as journal:
                return {f"q{index}" for index in range(self.rows) if journal.state(index) == OK}
        except FastLLMError:
            return set()

    def look(self, findings: Findings, where: str) -> set[str]:
        """Look at the files that an interrupted run left: an output is whole or not there. Give the answered rows."""
        if self.output.exists() and normal(self.output.read_bytes()) != normal(self.expected()):
            findings.torn += 1
            findings.complain(f"{where}: an output that is not whole has its name")
        if failures_path(self.output).exists():
            findings.wrong += 1
            findings.complain(f"{where}: a file of failures, though nothing failed")
        return self.recorded()

    def finish(self, findings: Findings, where: str, kept: set[str], *more: str) -> None:
        """Run the job again, uninterrupted: it goes on exactly, and its output is as if nothing had happened."""
        self.received()
        status = self.run(None, *more)
        self.check_asked(findings, where, kept)
        if status:
            findings.wrong += 1
            findings.complain(f"{where}: the resumed run ended with {status}: {self.said.read_text()[-300:]}")
        findings.compare(self.expected(), self.output, where)
        if self.output.exists():
            findings.check_manifest(self.output, where)
        left = [path.name for path in self.folder.iterdir() if path.name.endswith(".partial")]
        if left:
            findings.wrong += 1
            findings.complain(f"{where}: left behind: {', '.join(left)}")

    def check_asked(self, findings: Findings, where: str, kept: set[str]) -> list[tuple[str, float]]:
        """No row that has its answer is asked again. Give what was asked."""
        asked = self.received()
        twice = [name for name, _ in asked if name in kept]
        if twice:
            findings.asked_twice += len(twice)
            findings.complain(f"{where}: asked though answered: {', '.join(twice[:5])}")
        return asked


def forked(work: Callable[[], None], said: Path) -> int:
    """Do something in a process of its own, which says what it says into a file; give its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        os.dup2(2, 1)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - the parent's may be a test's capture
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Wait until a process ended; give its status, or the negative number of the signal. One that hangs is killed."""
    until = time.monotonic() + PATIENCE
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise SystemExit(f"process {pid} did not end within {PATIENCE:g} s")
        time.sleep(0.002)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for very many small files, in memory where the system has one."""
    shared = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="fastllm-crash-", dir=shared if os.access(shared, os.W_OK) else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
