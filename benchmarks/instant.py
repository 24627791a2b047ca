"""A stand-in for the network: all requests of one turn of the loop are answered in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastllm import HTTPRequest, HTTPResponse, Timeout, Transport
from fastllm.transport.base import HTTPStream


class InstantTransport(Transport):
    """Gives everybody the same answer."""

    def __init__(self, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._body = body
        self._headers = list(headers)
        self._waiting: list[asyncio.Future[HTTPResponse]] = []

    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._answer)
        future: asyncio.Future[HTTPResponse] = loop.create_future()
        self._waiting.append(future)
        return await future

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.set_result(HTTPResponse(status=200, headers=self._headers, body=self._body))

    async def open(self, request: HTTPRequest, timeout: Timeout) -> HTTPStream:
        raise NotImplementedError("nothing is streamed here")
