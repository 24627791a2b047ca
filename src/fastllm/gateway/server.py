"""The gateway's server: uvicorn listens, counts connections and stops; each connection is an `Inbound`, ours.

Of uvicorn only its `Server` is used, and of that no more than `inbound.py` lists: its protocol takes a third of what a
request costs, and tells of a client that left only those who wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ConfigError, MissingExtra
from .app import Gateway
from .exchange import ASGI
from .inbound import Inbound
from .outbox import Shared

try:
    import uvicorn
except ImportError:
    raise MissingExtra(
        "the gateway needs uvicorn: pip install 'fastllm[gateway]' ('fastllm[gateway,local]' for a local model)"
    ) from None

BACKLOG = 4096
LAST_WORDS = 2.0  # seconds that requests have to end, once they are told to


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the loop's, see `run`


class Server:
    """Listens for one gateway, on a socket of its own or a given one; `run` it until `stop`. ConfigError at once where
    its address cannot be had. `app` stands around the gateway, where something does."""

    def __init__(self, gateway: Gateway, app: ASGI | None = None, *, listening: socket.socket | None = None) -> None:
        options = gateway.options
        self.gateway = gateway
        self._app = app or gateway
        self._limits = options
        self._socket = listening or bound(options.host, options.port)
        self.port = int(self._socket.getsockname()[1])
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                self._app,
                http=self._inbound,  # type: ignore[arg-type]  # a maker of protocols is called as their class is
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(options.drain),
            )
        )
        self._shared = Shared(self._uvicorn.server_state)
        self._stopping: asyncio.Task[None] | None = None

    def _inbound(self, *, server_state: Any, **_: Any) -> Inbound:
        return Inbound(self._app, self._limits, self._shared, server_state=server_state)

    @property
    def origin(self) -> str:
        """`http://host:port`."""
        return origin_of(self.gateway.options.host, self.port)

    async def run(self, on_listening: Callable[[str], None] | None = None) -> None:
        """Serve until `stop`, then let requests under way end."""
        if on_listening is not None:
            on_listening(self.origin)
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            self._socket.close()
            tasks = self._uvicorn.server_state.tasks
            if tasks:
                await asyncio.wait(set(tasks), timeout=LAST_WORDS)
            self._shared.flush()

    def stop(self) -> None:
        """Begin to stop: not ready at once, deaf after `lead` seconds. The second call does not wait for anybody."""
        if self._stopping is not None:
            self._uvicorn.force_exit = True
            self._uvicorn.should_exit = True
            for task in list(self._uvicorn.server_state.tasks):
                task.cancel("the gateway stops at once")
            return
        self.gateway.draining = True
        self._stopping = asyncio.get_running_loop().create_task(self._lead_out(), name="fastllm-lead-out")

    async def _lead_out(self) -> None:
        await asyncio.sleep(self.gateway.options.lead)
        self._uvicorn.should_exit = True

    def on_signals(self, reload: Callable[[], Any], tell: Callable[[], None] | None = None) -> None:
        """Stop on SIGTERM and SIGINT, and `tell` so at the first one; `reload` on SIGHUP."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if tell is not None and self._stopping is None:
                tell()
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, reload)

    def __repr__(self) -> str:
        return f"<Server {self.origin} {len(self._uvicorn.server_state.connections)} connections>"


def origin_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def bound(host: str, port: int) -> socket.socket:
    """Give a listening socket. ConfigError where the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    found.setblocking(False)
    return found
