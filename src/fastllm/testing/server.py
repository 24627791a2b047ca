"""The model server as an object: it listens, says where, and leaves nothing behind when closed.

async with MockServer(MockConfig(latency=0.1)) as server:
    client = openai.AsyncOpenAI(base_url=server.base_url, api_key="any")

with serve_in_thread(MockConfig(rpm=60)) as server:      # for code without an event loop
    client = openai.OpenAI(base_url=server.base_url, api_key="any")
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import threading
import time
from collections.abc import Callable, Iterable

from ..errors import ConfigError
from ..loop import new_event_loop, own_process
from .app import App, Predicate
from .config import MockConfig
from .connection import Connection
from .stats import MockStats

_BACKLOG = 4096
_CLOSE_ROUNDS = 100


class _Controls:
    """What a test does with a server, whichever thread it runs in."""

    def __init__(
        self,
        config: MockConfig | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = MockConfig() if config is None else config
        self._ssl = ssl_context if certfile is None else _context(certfile, keyfile)
        self._app = App(self.config, now, scheme="http" if self._ssl is None else "https")

    @property
    def port(self) -> int:
        """The port it listens on; 0 before it does."""
        return self._app.port

    @property
    def origin(self) -> str:
        """`http://host:port`, without a path."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'http' if self._ssl is None else 'https'}://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What clients take as base_url."""
        return f"{self.origin}/v1"

    @property
    def stats(self) -> MockStats:
        """The counters as they are now; a copy."""
        return self._app.recorder.snapshot()

    def reset(self) -> None:
        """Forget everything seen: counters, used limits, scripts, rules and draws. Connections stay."""
        self._app.restart()

    def script(self, kinds: Iterable[str | None]) -> None:
        """Queue faults for the next requests, in order; None is a good answer. See testing.faults for the kinds."""
        self._app.script(kinds)

    def when(self, predicate: Predicate, fault: str, *, times: float = math.inf) -> None:
        """Apply a fault, `times` times, to every request whose body the predicate accepts."""
        self._app.when(predicate, fault, times=times)

    def __repr__(self) -> str:
        live = self._app.recorder.live
        where = self.origin if self.port else "not listening"
        return f"<{type(self).__name__} {where}, {live.connections_open} connections, {live.in_flight} in flight>"


class MockServer(_Controls):
    """A model server in the running loop; an async context manager.

    `now` replaces the clock of the rate limits, so that tests of them need not wait.
    """

    _server: asyncio.Server | None = None

    async def start(self) -> MockServer:
        """Listen; raise ConfigError where that is not possible."""
        loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self._app, self._connections, loop),
                self.config.host,
                self.config.port,
                ssl=self._ssl,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {self.config.host}:{self.config.port}: {error}") from error
        self._app.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Stop listening and drop every connection; again is harmless."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._connections):
            connection.abort()
        for _ in range(_CLOSE_ROUNDS):  # of the loop, until each of them has heard of it
            if self._connections:
                await asyncio.sleep(0)
        if not self._connections:
            await server.wait_closed()

    async def __aenter__(self) -> MockServer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class ThreadedMockServer(_Controls):
    """The same server with a loop of its own in a thread; a context manager."""

    _thread: threading.Thread | None = None
    _failure: BaseException | None = None

    def start(self) -> ThreadedMockServer:
        """Listen; return when it does."""
        listening = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(listening,), name="fastllm-mock", daemon=True)
        self._thread.start()
        listening.wait()
        self._complain()
        return self

    def _complain(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _serve(self, listening: threading.Event) -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(self._until_closed(listening))
        except BaseException as error:  # handed to the thread that waits in start()
            self._failure = error
        finally:
            listening.set()

    async def _until_closed(self, listening: threading.Event) -> None:
        self._closing = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        server = MockServer(self.config, ssl_context=self._ssl)
        server._app = self._app
        async with server:
            listening.set()
            await self._closing.wait()

    def close(self) -> None:
        """Drop every connection and end the thread; again is harmless."""
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop ended between the question and the call
                self._loop.call_soon_threadsafe(self._closing.set)
            thread.join()

    def __enter__(self) -> ThreadedMockServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def serve_in_thread(
    config: MockConfig | None = None,
    *,
    ssl_context: ssl.SSLContext | None = None,
    now: Callable[[], float] = time.monotonic,
) -> ThreadedMockServer:
    """Give a server for a `with` statement in code without an event loop."""
    return ThreadedMockServer(config, ssl_context=ssl_context, now=now)


async def run(
    config: MockConfig | None = None,
    *,
    on_listening: Callable[[str], None] | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
) -> None:
    """Serve until cancelled, as a process of its own: with all the file descriptors it may have, and a lazier gc.

    `on_listening` is told the base_url once requests are taken.
    """
    with own_process():
        async with MockServer(config, certfile=certfile, keyfile=keyfile) as server:
            if on_listening is not None:
                on_listening(server.base_url)
            await asyncio.Event().wait()


def _context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use certfile {certfile!r}: {error}") from error
    return context
