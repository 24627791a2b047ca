"""Dialer: makes connections: names to addresses, addresses raced, tunnels through proxies, TLS."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_address
from itertools import zip_longest
from typing import Any

import httptools
import msgspec

from ..errors import APIConnectionError, APITimeoutError
from ..options import Timeout
from .connection import Connection, Context
from .proxy import Proxy
from .sweep import NEVER
from .tls import TLSConnection, default_ssl_context

Address = tuple[str, int]
STAGGER = 0.25  # RFC 8305, 8: the next address gets its try, while the first goes on
NAMES_TTL = 30.0  # seconds; short, for services that fail over by DNS
MAX_NAMES = 1024
SCARCE = "no_descriptors", "no_ports"  # codes of errors that mean: make do with the connections there are

# errno -> (code, what happened)
_REFUSALS = {
    errno.ECONNREFUSED: ("connection_refused", "refused the connection"),
    errno.ECONNRESET: ("connection_reset", "reset the connection"),
    errno.EHOSTUNREACH: ("unreachable", "cannot be reached"),
    errno.ENETUNREACH: ("unreachable", "cannot be reached"),
    errno.ETIMEDOUT: ("timeout_connect", "does not answer"),
    errno.EMFILE: (SCARCE[0], "cannot be connected: this process may not open more files (ulimit -n)"),
    errno.ENFILE: (SCARCE[0], "cannot be connected: the system cannot open more files"),
    errno.EADDRNOTAVAIL: (SCARCE[1], "cannot be connected: no local port is free"),
}


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go: scheme, host and port, and the proxy on the way."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None = None

    @property
    def name(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Dialer:
    """Makes connections for one transport. Nothing it raises was sent."""

    def __init__(self, context: Context, trust: ssl.SSLContext | None) -> None:
        self._context = context
        self._trust = trust
        self._names = Names(context.loop)
        self._tries: set[_Try] = set()

    async def dial(self, origin: Origin, timeout: Timeout, session: ssl.SSLSession | None) -> Connection:
        """Give a connection that is ready for its first request."""
        connection = await self._connect_within(origin, timeout.connect, session)
        if isinstance(connection, TLSConnection):
            try:
                await connection.handshake(timeout.tls)
            except BaseException:
                connection.abort()
                raise
        if connection.closed:
            text = f"{origin.name} closed the connection at once"
            raise APIConnectionError(text, code="connection_reset", sent=False)
        return connection

    async def _connect_within(
        self, origin: Origin, seconds: float | None, session: ssl.SSLSession | None
    ) -> Connection:
        """Connect in a task of its own, so that the sweeper can end it."""
        attempt = _Try(self._context.loop.create_task(self._connect(origin, session)))
        self._tries.add(attempt)
        sweeper = self._context.sweeper
        if seconds is not None:
            sweeper.entries.add(attempt)
            sweeper.watch(attempt, time.monotonic(), seconds)
        try:
            return await attempt.task
        except asyncio.CancelledError:
            if attempt.task.done() and not attempt.task.cancelled() and attempt.task.exception() is None:
                attempt.task.result().abort()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if attempt.expired:
                text = f"no connection to {_next_hop(origin)} within {seconds:g} s (connect)"
                raise APITimeoutError(text, code="timeout_connect", sent=False) from None
            raise closed_error() from None
        finally:
            sweeper.entries.discard(attempt)
            self._tries.discard(attempt)

    async def _connect(self, origin: Origin, session: ssl.SSLSession | None) -> Connection:
        def make() -> Connection:
            if origin.scheme == "http":
                return Connection(self._context, origin.name)
            if self._trust is None:
                self._trust = default_ssl_context()  # 20 ms: only where TLS is used at all
            return TLSConnection(self._context, origin.name, origin.host, self._trust, session)

        proxy = origin.proxy
        if proxy is None:
            direct: Connection = await self._reach(origin.host, origin.port, make)
            return direct
        if origin.scheme == "http":
            relayed: Connection = await self._reach(proxy.host, proxy.port, make)
            return relayed
        tunnel = await self._reach(proxy.host, proxy.port, lambda: Tunnel(self._context.loop, proxy))
        try:
            await tunnel.ask(origin)
        except BaseException:
            tunnel.transport.abort()
            raise
        connection = make()
        tunnel.transport.set_protocol(connection)
        connection.connection_made(tunnel.transport)
        return connection

    async def _reach(self, host: str, port: int, make: Callable[[], Any]) -> Any:
        addresses = await self._names.look_up(host, port)
        errors: list[OSError] = []
        try:
            if len(addresses) > 1:
                return await self._race(addresses, make, errors)
            return await self._open(addresses[0], make)
        except OSError as error:
            errors.append(error)
        self._names.forget(host, port)
        raise _refused(f"{host}:{port}", errors)

    async def _race(self, addresses: list[Address], make: Callable[[], Any], errors: list[OSError]) -> Any:
        """Happy eyeballs: try the addresses in turn, each with a head start; the first connection wins."""
        running: set[asyncio.Task[Any]] = set()
        try:
            for later, address in zip(range(len(addresses) - 1, -1, -1), addresses, strict=True):
                running.add(self._context.loop.create_task(self._open(address, make)))
                while running:
                    patience = STAGGER if later else None
                    done, _ = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        running.discard(task)
                        error = task.exception()
                        if error is None:
                            return task.result()
                        if not isinstance(error, OSError):
                            raise error
                        errors.append(error)
                    if later:
                        break
        finally:
            await _discard(running)
        raise errors.pop()

    async def _open(self, address: Address, make: Callable[[], Any]) -> Any:
        _, protocol = await self._context.loop.create_connection(make, *address)
        return protocol

    def close(self) -> None:
        """Give up what is under way."""
        for attempt in self._tries:
            attempt.task.cancel()
        self._names.close()


class _Try:
    """A connect that the sweeper may end."""

    def __init__(self, task: asyncio.Task[Connection]) -> None:
        self.task = task
        self.due = NEVER
        self.expired = False

    def expire(self) -> None:
        self.due = NEVER
        self.expired = True
        self.task.cancel()


class Names:
    """Looks up addresses off the loop; one query at a time for a name, kept for NAMES_TTL."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._known: dict[Address, tuple[float, list[Address]]] = {}
        self._queries: dict[Address, tuple[asyncio.Task[list[Address]], list[None]]] = {}

    async def look_up(self, host: str, port: int) -> list[Address]:
        """Give the addresses in the order to try them."""
        key = host, port
        expires, addresses = self._known.get(key, (0.0, []))
        if expires > time.monotonic():
            return addresses
        if _is_address(host):
            return self._keep(key, NEVER, [key])
        query, users = self._queries.get(key, (None, []))
        if query is None:
            query = self._loop.create_task(self._ask(host, port))
            self._queries[key] = query, users
        users.append(None)
        try:
            return await asyncio.shield(query)
        finally:
            users.pop()
            if not users:
                query.cancel()  # no effect on one that is done
                del self._queries[key]

    async def _ask(self, host: str, port: int) -> list[Address]:
        try:
            found = await _getaddrinfo(self._loop, host, port)
        except socket.gaierror as error:
            unknown = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            what = "is not known to the DNS" if unknown else f"cannot be looked up: {error.strerror}"
            text = f"the host name {host!r} {what}"
            raise APIConnectionError(text, code="dns", retryable=not unknown, sent=False) from error
        except UnicodeError as error:  # a label that is empty or too long
            text = f"{host!r} is not a host name"
            raise APIConnectionError(text, code="dns", retryable=False, sent=False) from error
        addresses = _interleaved([(family, sockaddr[:2]) for family, _, _, _, sockaddr in found])
        return self._keep((host, port), time.monotonic() + NAMES_TTL, addresses)

    def _keep(self, key: Address, until: float, addresses: list[Address]) -> list[Address]:
        if len(self._known) >= MAX_NAMES:
            self._known.clear()
        self._known[key] = until, addresses
        return addresses

    def forget(self, host: str, port: int) -> None:
        """None of its addresses took a connection: ask again next time."""
        self._known.pop((host, port), None)

    def close(self) -> None:
        for query, _ in self._queries.values():
            query.cancel()


class Tunnel(asyncio.Protocol):
    """Asks an HTTP proxy for a way through (CONNECT); afterwards the transport is another protocol's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, proxy: Proxy) -> None:
        self.transport: Any = None
        self._proxy = proxy
        self._answer: asyncio.Future[int] = loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._room = 64 * 1024

    async def ask(self, origin: Origin) -> None:
        """Return once the way is open."""
        target = origin.name.partition("//")[2].encode()
        request = b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (target, target, self._proxy.authorization)
        self.transport.write(request)
        status = await self._answer
        if not 200 <= status < 300:
            raise proxy_refused(self._proxy, status)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._room -= len(data)
        try:
            if self._room < 0:
                raise httptools.HttpParserError("its answer does not end")
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"does not answer in HTTP: {error}")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self._answer.done():
            self._answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("closed the connection")

    def _fail(self, what: str) -> None:
        if not self._answer.done():
            error = APIConnectionError(f"the proxy {self._proxy.name} {what}", code="proxy", sent=False)
            self._answer.set_exception(error)


def proxy_refused(proxy: Proxy, status: int) -> APIConnectionError:
    """The error for a proxy that answers for itself."""
    why = "it wants another user name and password" if status == 407 else "it does not connect us"
    text = f"the proxy {proxy.name} answered {status}: {why}"
    return APIConnectionError(text, code="proxy", status_code=status, retryable=status >= 500, sent=False)


def closed_error() -> APIConnectionError:
    """The error for requests that find the transport closed."""
    return APIConnectionError("the transport is closed", code="closed", retryable=False, sent=False)


async def _discard(losers: set[asyncio.Task[Any]]) -> None:
    for task in losers:
        task.cancel()
    for result in await asyncio.gather(*losers, return_exceptions=True):
        if not isinstance(result, BaseException):
            result.transport.abort()


def _refused(where: str, errors: list[OSError]) -> APIConnectionError:
    error = errors[0]
    code, what = _REFUSALS.get(error.errno or 0, ("connect", f"cannot be connected: {error.strerror or error}"))
    others = f" (nor do its {len(errors) - 1} other addresses)" if len(errors) > 1 else ""
    refused = APIConnectionError(f"{where} {what}{others}", code=code, sent=False)
    refused.__cause__ = error
    return refused


def _next_hop(origin: Origin) -> str:
    return f"{origin.name} through {origin.proxy.name}" if origin.proxy else origin.name


async def _getaddrinfo(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Any]:
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _interleaved(found: list[tuple[int, Any]]) -> list[Address]:
    """The resolver's order, but families in turn (RFC 8305, 4), so that broken IPv6 costs one head start."""
    first = [a for family, a in found if family == found[0][0]]
    others = [a for family, a in found if family != found[0][0]]
    turns = zip_longest(first, others)
    return list(dict.fromkeys(a for pair in turns for a in pair if a is not None))
