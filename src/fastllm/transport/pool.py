"""Pool: the connections to one origin, and the queue of requests that wait for one."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import OrderedDict
from itertools import takewhile

from ..errors import APIConnectionError
from ..options import Timeout
from .base import Receiver
from .connection import Connection
from .dial import SCARCE, Dialer, Origin, closed_error
from .tls import TLSConnection

RELAX = 1.0  # seconds until more connections are tried for, after the system had no more to give
MAX_AGE = 600.0  # seconds; a service that moves to other addresses is followed by then


class Pool:
    """Hands out connections, the last used first, so that what is not needed grows old and is closed.

    Invariants: while somebody waits, no connection is idle; `used` counts the connections there are and those
    under way, never more than `limit`; each waiter is woken once, with a connection or (None) with the right to
    dial, which is counted in `used` and `dialing` already.
    """

    def __init__(self, origin: Origin, dialer: Dialer, *, limit: int, ramp: int, idle_expiry: float) -> None:
        self.origin = origin
        self.limit = self._full_limit = limit
        self.used = 0
        self.dialing = 0
        self.opened = 0
        self.closed = False
        self.connections: set[Connection] = set()
        self.idle: dict[Connection, None] = {}  # in the order of release
        self._dialer = dialer
        self._ramp = ramp
        self._idle_expiry = idle_expiry
        self._waiters: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._relaxing: asyncio.TimerHandle | None = None
        self._session: ssl.SSLSession | None = None

    def pop(self, now: float) -> Connection | None:
        """Give an idle connection, if there is one to be trusted."""
        idle = self.idle
        while idle:
            connection, _ = idle.popitem()
            if connection.closed:
                continue
            if connection.expires > now:
                return connection
            connection.shutdown()
        return None

    async def acquire(self, timeout: Timeout) -> Connection:
        """Dial, or wait until a connection is free or may be dialled. Waiting has no time limit here."""
        first = False
        while True:
            if self.closed:
                raise closed_error()
            if self._may_dial() and (first or not self._waiters):
                self.used += 1
                self.dialing += 1
            else:
                connection = await self._wait(first)
                if connection is not None:
                    if not connection.closed:
                        return connection
                    first = True  # it was closed on its way to us: we do not lose our place
                    continue
            try:
                return await self._dial(timeout)
            except APIConnectionError as error:
                if error.code not in SCARCE or not self.used:
                    raise
                # The system has no more to give: live with what there is instead of failing requests.
                self._tighten()
                first = True

    def _may_dial(self) -> bool:
        if self.used >= self.limit and self.idle:
            self.shrink(1)
        return self.used < self.limit and self.dialing < self._ramp

    async def _wait(self, first: bool) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        if first:
            self._waiters.move_to_end(waiter, last=False)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())
            self._waiters.pop(waiter, None)
            raise

    def _give_back(self, granted: Connection | None) -> None:
        if granted is None:
            self.used -= 1
            self.dialing -= 1
            self._wake()
        elif not granted.closed:
            self.release(granted)

    async def _dial(self, timeout: Timeout) -> Connection:
        """Connect; the right to do so is counted already, and is given back here if it fails."""
        connection = None
        try:
            connection = await self._dialer.dial(self.origin, timeout, self._session)
        finally:
            self.dialing -= 1
            if connection is None:
                self._session = None  # perhaps it was what the server did not like
                self.used -= 1
            self._wake()
        connection.owner = self
        connection.retires = time.monotonic() + MAX_AGE
        self.connections.add(connection)
        self.opened += 1
        if self.closed:
            connection.abort()
            raise closed_error()
        return connection

    def release(self, connection: Connection) -> None:
        """A connection is free: the first who waits gets it."""
        if connection.requests == 1 and isinstance(connection, TLSConnection):
            self._session = connection.session
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return
        connection.idle_since = now = time.monotonic()
        connection.expires = min(now + self._idle_expiry, connection.retires)
        self.idle[connection] = None

    def stale(self, connection: Connection) -> None:
        """The server dropped this connection while it was idle; what has been idle for longer goes the same way."""
        older = list(takewhile(lambda other: other.idle_since <= connection.idle_since, self.idle))
        for other in older:
            del self.idle[other]
            if not other.closed:
                other.shutdown()

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self.idle.pop(connection, None)
        self.used -= 1
        self._wake()

    def _wake(self) -> None:
        """Let those who wait dial, as far as there is room."""
        while self._waiters and self.used < self.limit and self.dialing < self._ramp:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                self.used += 1
                self.dialing += 1
                waiter.set_result(None)

    def shrink(self, count: int) -> None:
        """Close so many idle connections, the oldest first."""
        while count and self.idle:
            connection = next(iter(self.idle))
            del self.idle[connection]
            connection.shutdown()
            count -= 1

    def _tighten(self) -> None:
        """The system has no descriptor or port left: stay at the number there is, and try for more by and by."""
        self.limit = max(1, len(self.connections))
        if self._relaxing is None:
            self._relaxing = asyncio.get_running_loop().call_later(RELAX, self._relax)

    def _relax(self) -> None:
        self.limit = min(self._full_limit, 2 * self.limit)
        more = self.limit < self._full_limit
        self._relaxing = asyncio.get_running_loop().call_later(RELAX, self._relax) if more else None
        self._wake()

    def close(self) -> None:
        """Close every connection and fail every request."""
        self.closed = True
        if self._relaxing is not None:
            self._relaxing.cancel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(closed_error())
        self._waiters.clear()
        for connection in list(self.connections):
            if connection.busy:
                connection.fail(closed_error())
            else:
                connection.shutdown()
        self.idle.clear()

    def __repr__(self) -> str:
        idle = len(self.idle)
        active = len(self.connections) - idle
        return (
            f"<Pool {self.origin.name}: {active} active, {idle} idle, {self.dialing} dialing,"
            f" {len(self._waiters)} waiting, limit {self.limit}>"
        )


class Dialing:
    """An exchange that has to wait for a connection first."""

    __slots__ = ("_connection", "_task")

    def __init__(self, pool: Pool, data: bytes, timeout: Timeout, receiver: Receiver) -> None:
        self._connection: Connection | None = None
        self._task = asyncio.get_running_loop().create_task(self._begin(pool, data, timeout, receiver))

    async def _begin(self, pool: Pool, data: bytes, timeout: Timeout, receiver: Receiver) -> None:
        try:
            connection = await pool.acquire(timeout)
        except Exception as error:  # not when it is forsaken, for nobody wants to hear of that
            receiver.set_exception(error)
            return
        self._connection = connection
        connection.start(data, timeout, time.monotonic(), receiver=receiver)

    def forsake(self, receiver: Receiver) -> None:
        """Give it up, unless it has ended."""
        if self._connection is None:
            self._task.cancel()
        else:
            self._connection.forsake(receiver)

    def __repr__(self) -> str:
        return f"<Dialing {'under way' if self._connection is None else 'done'}>"
