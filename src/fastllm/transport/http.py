"""HTTPTransport: sends requests over pooled HTTP/1.1 connections.

The usual case is one dict look-up for the URL, one for the head, one write and one future. No request has a timer
or a task of its own, and nothing here is linear in the number of connections or of those who wait.

Nothing is sent twice here: a connection that the server had dropped while it was idle is an error like any other
(`stale_connection`), because whoever sends again must take a permit and count an attempt for it.

Compressed answers are not asked for: at 1 KB, gzip saves no packet and costs 10 µs, half of what the whole exchange
costs. A caller who names `accept-encoding` gets what he asked for, decoded.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..errors import InvalidRequestError
from ..options import Timeout
from ..types import Headers, HTTPRequest, HTTPResponse
from .base import Exchange, HTTPStream, Receiver, Transport
from .connection import Connection, Context, Outbox
from .descriptors import connection_limit
from .dial import Dialer, Origin, closed_error, proxy_refused
from .plain import PlainReader
from .pool import Dialing, Pool
from .proxy import Proxies
from .stream import Body
from .sweep import Sweeper

CLOSING_TURNS = 10  # of the loop, until it has told every connection that it is closed
MAX_ROUTES = 1024
MAX_HEADS = 256  # for one URL
_NOT_IN_URL = re.compile(r"[^\x21-\x7e]")
_METHOD = re.compile(r"[A-Z]+")
# What frames the request is ours to write; the others would change the meaning of the answer's framing.
_RESERVED = ("connection", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade")
_FOLLOWED = (307, 308)  # those that keep method and body (RFC 9110, 15.4)


class HTTPTransport(Transport):
    """One for each event loop; any number of tasks. `max_connections` counts for each origin."""

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        idle_expiry: float = 15.0,  # proxies before models keep 60 s and more; what is dropped sooner costs an attempt
        max_header_bytes: int = 64 * 1024,
        max_body_bytes: int = 64 * 1024 * 1024,
        connect_ramp: int = 256,
        ssl_context: ssl.SSLContext | None = None,
        trust_env: bool = True,
        max_redirects: int = 3,
    ) -> None:
        self._max_connections = max_connections or connection_limit()
        self._idle_expiry = idle_expiry
        self._max_header_bytes = max_header_bytes
        self._max_body_bytes = max_body_bytes
        self._ramp = connect_ramp
        self._trust = ssl_context
        self._proxies = Proxies(trust_env=trust_env)
        self._max_redirects = max_redirects
        self._closed = False
        self._thread = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: Sweeper | None = None
        self._dialer: Dialer | None = None
        self._context: Context | None = None
        self._routes: dict[str, _Route] = {}
        self._pools: dict[Origin, Pool] = {}
        self.requests = 0

    @property
    def connections_opened(self) -> int:
        return sum(pool.opened for pool in self._pools.values())

    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        route, data = self._prepare(request)
        now = time.monotonic()
        connection = route.pool.pop(now)
        if connection is None:
            connection = await route.pool.acquire(timeout)
            now = time.monotonic()
        waiter = connection.start(data, timeout, now)
        del data  # a request's size less, for each in flight
        try:
            answer: HTTPResponse = await waiter
        except BaseException:
            connection.forsake(waiter)
            raise
        if answer.status < 300:
            return answer
        return await self._weigh(route, request, timeout, answer)

    def line(self, request: HTTPRequest) -> _Line | None:
        if type(self).send is not HTTPTransport.send or request.method != "POST":
            return None  # whoever sends in its own way sees every request
        self._check_loop()
        route = self._route(request.url)
        return _Line(self, route.pool, route.head(request))

    async def open(self, request: HTTPRequest, timeout: Timeout) -> HTTPStream:
        for _ in range(self._max_redirects):
            route, body = await self._open(request, timeout)
            further = self._redirected(route, request, body.status, body.headers)
            if further is None:
                return body
            body.close()
            request = further
        _, body = await self._open(request, timeout)
        return body

    async def _open(self, request: HTTPRequest, timeout: Timeout) -> tuple[_Route, Body]:
        route, data = self._prepare(request)
        connection = route.pool.pop(time.monotonic()) or await route.pool.acquire(timeout)
        body: Body = await self._exchange(connection, data, timeout, stream=True)
        return route, body

    async def _exchange(self, connection: Connection, data: bytes, timeout: Timeout, *, stream: bool = False) -> Any:
        waiter = connection.start(data, timeout, time.monotonic(), stream=stream)
        try:
            return await waiter
        except BaseException:
            connection.forsake(waiter)
            raise

    async def _weigh(self, route: _Route, request: HTTPRequest, timeout: Timeout, answer: HTTPResponse) -> HTTPResponse:
        """Follow the redirects that may be followed."""
        for _ in range(self._max_redirects):
            further = self._redirected(route, request, answer.status, answer.headers)
            if further is None:
                break
            request = further
            route, data = self._prepare(request)
            connection = route.pool.pop(time.monotonic()) or await route.pool.acquire(timeout)
            answer = await self._exchange(connection, data, timeout)
        return answer

    def _redirected(
        self, route: _Route, request: HTTPRequest, status: int, headers: Sequence[tuple[bytes, bytes]]
    ) -> HTTPRequest | None:
        """Where the answer sends us to, if we go there: never to another origin, never with another method."""
        proxy = route.pool.origin.proxy
        if status == 407 and proxy is not None:
            raise proxy_refused(proxy, status)
        if status not in _FOLLOWED or not request.redirects:
            return None
        location = next((value.decode("latin-1") for name, value in headers if name == b"location"), None)
        if location is None:
            return None
        try:
            further = HTTPRequest(
                url=urljoin(request.url, location), body=request.body, headers=request.headers, method=request.method
            )
            same = self._origin(further.url)[0] == route.pool.origin
        except (InvalidRequestError, ValueError):
            return None
        return further if same else None

    def _prepare(self, request: HTTPRequest) -> tuple[_Route, bytes]:
        """Give the pool to send through and the bytes to send."""
        self._check_loop()
        self.requests += 1
        route = self._route(request.url)
        head = route.head(request)
        body = request.body
        if not body and request.method != "POST":
            return route, head + b"\r\n"
        return route, b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    def _check_loop(self) -> None:
        loop = self._loop
        # The same question as `get_running_loop() is loop`, which costs 400 ns in Python 3.11.
        if loop is None or self._closed or not loop.is_running() or threading.get_ident() != self._thread:
            self._bind()

    def _bind(self) -> None:
        """Take the running loop as ours; a loop that was closed took its connections with it."""
        running = asyncio.get_running_loop()
        if self._closed:
            raise closed_error()
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(f"{self!r} belongs to another event loop; make one transport for each loop")
        self._loop = running
        self._thread = threading.get_ident()
        self._routes.clear()
        self._pools.clear()
        self._sweeper = Sweeper(running)
        bounds = self._max_header_bytes, self._max_body_bytes
        context = Context(running, self._sweeper, *bounds, Outbox(running), PlainReader(*bounds))
        self._dialer = Dialer(context, self._trust)

    def _route(self, url: str) -> _Route:
        route = self._routes.get(url)
        return self._add_route(url) if route is None else route

    def _add_route(self, url: str) -> _Route:
        origin, target = self._origin(url)
        pool = self._pools.get(origin)
        if pool is None:
            assert self._dialer is not None
            pool = Pool(
                origin, self._dialer, limit=self._max_connections, ramp=self._ramp, idle_expiry=self._idle_expiry
            )
            self._pools[origin] = pool
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        route = self._routes[url] = _Route(pool, target)
        return route

    def _origin(self, url: str) -> tuple[Origin, str]:
        """Split a URL into where to connect to and what to ask for. Its query may hold a key: it is never quoted."""
        if _NOT_IN_URL.search(url):
            raise InvalidRequestError(
                "the URL holds a space, a control character or a character outside ASCII: percent-encode it", sent=False
            )
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise InvalidRequestError(f"the URL cannot be read: {error}", sent=False) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequestError("the URL must begin with http://host or https://host", sent=False)
        if parts.username is not None:
            raise InvalidRequestError("the URL holds a user name: put it into an authorization header", sent=False)
        host = parts.hostname
        proxy = self._proxies.find(parts.scheme, host, port)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Origin(scheme=parts.scheme, host=host, port=port, proxy=proxy), target

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._loop is None or self._dialer is None or self._sweeper is None:
            return
        self._dialer.close()
        self._sweeper.close()
        for pool in self._pools.values():
            pool.close()
        for _ in range(CLOSING_TURNS):
            if any(pool.used for pool in self._pools.values()):
                await asyncio.sleep(0)

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<HTTPTransport{state} {self.requests} requests, {list(self._pools.values())}>"


class _Route:
    """What is known of a URL: its pool, and the heads already written for it."""

    __slots__ = ("_target", "heads", "pool")

    def __init__(self, pool: Pool, target: str) -> None:
        self.pool = pool
        self._target = target
        self.heads: dict[tuple[str, bytes], bytes] = {}

    def head(self, request: HTTPRequest) -> bytes:
        """Give all of the head but the body's length."""
        head = self.heads.get((request.method, request.headers.encoded))
        return self.add_head(request.method, request.headers) if head is None else head

    def add_head(self, method: str, headers: Headers) -> bytes:
        """Write all of the head but the body's length, for every request to come with the same headers."""
        if not _METHOD.fullmatch(method) or method in ("HEAD", "CONNECT"):
            raise InvalidRequestError(f"the method {method!r} is not one this transport sends", sent=False)
        for name in _RESERVED:
            if name in headers:
                raise InvalidRequestError(f"the header {name!r} is written by the transport itself", sent=False)
        origin = self.pool.origin
        authority = _authority(origin)
        target, more = self._target, b""
        if origin.proxy is not None and origin.scheme == "http":
            target = f"http://{authority}{target}"
            more = origin.proxy.authorization
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"host: {authority}"] * ("host" not in headers)
        lines += ["accept-encoding: identity"] * ("accept-encoding" not in headers)
        head = "\r\n".join([*lines, ""]).encode("ascii") + more + headers.encoded
        if len(self.heads) >= MAX_HEADS:
            self.heads.clear()
        self.heads[method, headers.encoded] = head
        return head


class _Line:
    """A pool, and the head of all that is to be sent through it."""

    __slots__ = ("_head", "_pool", "_transport")

    def __init__(self, transport: HTTPTransport, pool: Pool, head: bytes) -> None:
        self._transport = transport
        self._pool = pool
        self._head = head

    def begin(self, body: bytes, timeout: Timeout, now: float, receiver: Receiver) -> Exchange:
        self._transport.requests += 1
        data = b"%bcontent-length: %d\r\n\r\n%b" % (self._head, len(body), body)
        connection = self._pool.pop(now)
        if connection is None:
            return Dialing(self._pool, data, timeout, receiver)
        connection.start(data, timeout, now, receiver=receiver)
        return connection


def _authority(origin: Origin) -> str:
    name = origin.name.partition("//")[2]
    return name.removesuffix(":443" if origin.scheme == "https" else ":80")
