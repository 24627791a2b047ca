"""The access log: one line of JSON for each request, without prompts, answers and keys; written by a thread of its own.

A disk that is slow or full does not hold back a request: lines that find no room are dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec

from ..errors import ConfigError
from .record import Record

logger = logging.getLogger("fastllm.gateway")

MOST_WAITING = 100_000  # lines
_encode = msgspec.json.encode


class AccessLog:
    """A Listener. `path` is a file, which is appended to, or - for standard error."""

    def __init__(self, path: str) -> None:
        self.dropped = 0
        self._lines: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        try:
            # Without a buffer: what a full disk did not take must not wait in memory, or fail again at the end.
            self._file: IO[bytes] = sys.stderr.buffer if path == "-" else Path(path).open("ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"cannot write the access log {path!r}: {error.strerror or error}") from None
        self._owned = path != "-"
        self._thread = threading.Thread(target=self._write, name="fastllm-access-log", daemon=True)
        self._thread.start()

    def __call__(self, record: Record) -> None:
        try:
            self._lines.put_nowait(line_of(record))
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        while True:
            lines = [self._lines.get()]
            while not self._lines.empty():
                lines.append(self._lines.get())
            data = b"".join(line for line in lines if line is not None)
            try:
                while data:
                    data = data[self._file.write(data) :]
                self._file.flush()
            except (OSError, ValueError) as error:
                self.dropped += len(lines)
                logger.warning("the access log cannot be written: %s", error)
            if None in lines:
                return

    def close(self) -> None:
        """Write what is waiting, and close the file. Not from a loop's thread: it waits for the disk."""
        self._lines.put(None)
        self._thread.join()
        if self._owned:
            self._file.close()

    def __repr__(self) -> str:
        return f"<AccessLog {self._lines.qsize()} lines waiting, {self.dropped} dropped>"


class _Line(msgspec.Struct, omit_defaults=True):
    time: str
    request_id: str
    method: str
    route: str
    status: int
    ms: float
    tenant: str = ""
    model: str = ""
    endpoint: str = ""
    stream: bool = False
    cached: bool = False
    attempts: int = 0
    first_byte_ms: float | None = None
    overhead_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    error: str = ""
    bytes: int = 0


def line_of(record: Record) -> bytes:
    """Give one line."""
    usage = record.usage
    line = _Line(
        time=datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds"),
        request_id=record.request_id,
        method=record.method[:20],
        route=record.route,
        status=record.status,
        ms=round(record.seconds * 1000, 3),
        tenant=record.tenant,
        model=record.model[:200],
        endpoint=record.endpoint,
        stream=record.stream,
        cached=record.cached,
        attempts=record.attempts,
        first_byte_ms=None if record.first_byte is None else round(record.first_byte * 1000, 3),
        overhead_ms=None if record.overhead is None else round(record.overhead * 1000, 3),
        prompt_tokens=usage.prompt_tokens if usage is not None else None,
        completion_tokens=usage.completion_tokens if usage is not None else None,
        cost_usd=record.cost,
        error=record.error,
        bytes=record.sent_bytes,
    )
    return _encode(line) + b"\n"
