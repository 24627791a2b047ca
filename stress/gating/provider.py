"""A provider for the stress scripts: it answers at once, late, never, or without end, as a request's `user` says, and
notes when each of its connections was closed. How late, differs by half either way: of equal latencies all slots would
be free in the same moment, and none in between."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_WANT = re.compile(rb'"user": ?"([a-z]+)-(\d+)"')
_USAGE = b'"usage":{"prompt_tokens":300,"completion_tokens":20,"total_tokens":320}'
_ANSWER = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"%b"},"finish_reason":"stop"}],%b}' % (b"y" * 400, _USAGE)
)
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_ANSWER), _ANSWER)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"content":"token "},"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
TICK = 0.01  # seconds between the events of a slow stream
BURST = 64  # events that an endless stream writes at once


class Provider:
    """Counts. `closed` has the moment at which the connection of a request under way was lost, by its number."""

    def __init__(self, latency: float, spread: float) -> None:
        self.latency = latency
        self.spread = spread
        self.random = random.Random(7)
        self.in_flight: set[int] = set()
        self.connections = 0
        self.requests = 0
        self.answered = 0
        self.closed: dict[int, float] = {}
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class _Connection(asyncio.Protocol):
    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self._number: int | None = None
        self._paused = False
        self._endless = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._provider.connections += 1

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if found and length is not None and len(body) >= int(length[1]):
            self._data = b""
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        provider = self._provider
        provider.requests += 1
        want = _WANT.search(body)
        kind, number = (want[1], int(want[2])) if want is not None else (b"whole", -provider.requests)
        self._number = number
        provider.in_flight.add(number)
        if kind == b"never":
            return
        if kind in (b"slow", b"endless"):
            self._endless = kind == b"endless"
            self._transport.write(_HEAD + _CHUNK)
            self._go_on()
        elif provider.latency:
            seconds = provider.latency * provider.random.uniform(1.0 - provider.spread, 1.0 + provider.spread)
            self._timer = self._loop.call_later(seconds, self._whole)
        else:
            self._whole()

    def _whole(self) -> None:
        self._transport.write(_WHOLE)
        self._provider.answered += 1
        self._provider.in_flight.discard(self._number or 0)
        self._number = None

    def _go_on(self) -> None:
        if self._number is None:
            return
        if self._endless:
            while not self._paused and not self._transport.is_closing():
                self._transport.write(_CHUNK * BURST)
        else:
            if not self._paused:
                self._transport.write(_CHUNK)
            self._timer = self._loop.call_later(TICK, self._go_on)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._endless:
            self._loop.call_soon(self._go_on)

    def connection_lost(self, exc: Exception | None) -> None:
        self._provider.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
        if self._number is not None:
            self._provider.in_flight.discard(self._number)
            self._provider.closed[self._number] = time.perf_counter()
            self._number = None


@asynccontextmanager
async def provider(latency: float = 0.0, spread: float = 0.5) -> AsyncIterator[Provider]:
    """Serve on a free loopback port until the block ends."""
    made = Provider(latency, spread)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(made), "127.0.0.1", 0, backlog=4096)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
