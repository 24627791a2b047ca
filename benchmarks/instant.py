"""A stand-in for the network: all requests of one turn of the loop are answered in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastllm import HTTPRequest, HTTPResponse, Timeout, Transport
from fastllm.transport.base import HTTPStream, Receiver


class InstantTransport(Transport):
    """Gives everybody the same answer. It is a line of its own."""

    def __init__(self, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._body = body
        self._headers = list(headers)
        self._waiting: list[Receiver] = []

    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        future: asyncio.Future[HTTPResponse] = asyncio.get_running_loop().create_future()
        self.begin(request.body, timeout, 0.0, future)
        return await future

    def line(self, request: HTTPRequest) -> InstantTransport:
        return self

    def begin(self, body: bytes, timeout: Timeout, now: float, receiver: Receiver) -> InstantTransport:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        self._waiting.append(receiver)
        return self

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for receiver in waiting:
            receiver.set_result(HTTPResponse(status=200, headers=self._headers, body=self._body))

    def forsake(self, receiver: Receiver) -> None:
        """Nobody waits any more."""
        self._waiting = [other for other in self._waiting if other is not receiver]

    async def open(self, request: HTTPRequest, timeout: Timeout) -> HTTPStream:
        raise NotImplementedError("nothing is streamed here")
