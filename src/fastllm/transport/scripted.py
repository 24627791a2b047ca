"""ScriptedTransport: the shipped fake; a function answers each request, without a socket."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable

from ..options import Timeout
from ..types import HTTPRequest, HTTPResponse
from .base import HTTPStream, Transport

Handler = Callable[[HTTPRequest], HTTPResponse | Awaitable[HTTPResponse]]


class ScriptedTransport(Transport):
    """Answers with what `handler` returns or raises; `requests` counts the calls, `in_flight` the open ones."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.requests = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = False

    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self._handler(request)
            return await answer if inspect.isawaitable(answer) else answer
        finally:
            self.in_flight -= 1

    async def open(self, request: HTTPRequest, timeout: Timeout) -> HTTPStream:
        return _ScriptedStream(await self.send(request, timeout))

    async def aclose(self) -> None:
        self.closed = True

    def __repr__(self) -> str:
        return f"<ScriptedTransport {self.requests} requests, {self.in_flight} in flight>"


class _ScriptedStream(HTTPStream):
    def __init__(self, answer: HTTPResponse) -> None:
        self.status = answer.status
        self.headers = list(answer.headers)
        self._pieces = answer.body.splitlines(keepends=True)
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece

    async def aclose(self) -> None:
        self.closed = True
