"""Transport: moves one HTTP exchange, and says of every failure whether the request may have arrived."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Protocol

from ..options import Timeout
from ..types import HTTPRequest, HTTPResponse


class HTTPStream(ABC):
    """An answer whose head has arrived: iterate for decoded body bytes, then (or at any time) `aclose`.

    Closing before the end closes the connection, so that the provider stops working on it.
    """

    status: int
    headers: list[tuple[bytes, bytes]]

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[bytes]: ...

    @abstractmethod
    async def aclose(self) -> None: ...

    def head(self) -> HTTPResponse:
        """Give status and headers as a bodiless HTTPResponse."""
        return HTTPResponse(status=self.status, headers=self.headers)


class Receiver(Protocol):
    """Who hears how an exchange ended, once; an asyncio future is one, which was cancelled where it raises."""

    def set_result(self, answer: HTTPResponse, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


class Exchange(Protocol):
    """What was begun."""

    def forsake(self, receiver: Receiver, /) -> None:
        """Nobody waits for its answer any more: close its connection, unless it has ended."""
        ...


class Line(Protocol):
    """Where requests of one URL with the same headers can be begun."""

    def begin(self, body: bytes, timeout: Timeout, now: float, receiver: Receiver, /) -> Exchange:
        """Send, without waiting for anything, or once there is a connection; `now` is monotonic. The receiver hears of
        the answer, also of one that `send` would follow elsewhere, or of the error. Not before this returns."""
        ...


class Transport(ABC):
    """Sends requests. Wrap one to sign, redact or record every attempt.

    Both calls raise APIConnectionError or a subclass, never a foreign error; `error.sent` is False only where
    the provider cannot have seen the request. An answer of any status is an answer, not an error. A call sends
    once: the code `stale_connection` says that it went out on a reused connection which the server had dropped, and
    that the next call gets a fresh one. Cancelling a call closes its connection.
    """

    @abstractmethod
    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        """Send and read the whole answer."""

    @abstractmethod
    async def open(self, request: HTTPRequest, timeout: Timeout) -> HTTPStream:
        """Send and wait for the answer's head only."""

    def line(self, request: HTTPRequest) -> Line | None:
        """Give the line for requests that are like this one but for their body; None where only `send` will do. It is
        the running loop's."""
        return None

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        return None
