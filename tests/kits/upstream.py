"""A provider in plain bytes: it notes each request as it came, and sends what it is told to, as it stands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec


class Seen(msgspec.Struct):
    """A request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]


OK = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ok":true}'
Said = bytes | list[bytes]


class Upstream:
    """`answer` gives what is sent for a request: bytes, or pieces, each of which waits until `let` is called. A piece
    that is empty is waited at for ever."""

    def __init__(self, answer: Callable[[Seen], Said]) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self._let = asyncio.Semaphore(0)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def let(self) -> None:
        self._let.release()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                seen = Seen(first, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
                self.seen.append(seen)
                said = self.answer(seen)
                for piece in [said] if isinstance(said, bytes) else said:
                    if piece:
                        writer.write(piece)
                        await writer.drain()
                    if isinstance(said, list):
                        waiting = asyncio.ensure_future(self._let.acquire() if piece else asyncio.Event().wait())
                        gone = asyncio.ensure_future(reader.read(1))
                        await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
                        waiting.cancel()
                        if gone.done():
                            return
                        gone.cancel()
                        await asyncio.wait([gone])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()


@asynccontextmanager
async def upstream(answer: Callable[[Seen], Said] = lambda seen: OK) -> AsyncIterator[Upstream]:
    """Listen on loopback."""
    made = Upstream(answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=2**24)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
