"""Transport: moves one HTTP exchange, and says of every failure whether the request may have arrived."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

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

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        return None
