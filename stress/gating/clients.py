"""Clients: requests as bytes, answers as they come, and ways to leave."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHAT = "/v1/chat/completions"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
WAYS = ("close", "reset", "half")


def message(secret: str, want: str, *, stream: bool = False, max_tokens: int = 20, size: int = 200) -> bytes:
    """Give a whole request. `want` is what the provider is to do with it (provider.py)."""
    asked = {
        "model": "m",
        "user": want,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "x" * size}],
    }
    body = json.dumps({**asked, "stream": True} if stream else asked).encode()
    lines = (
        f"POST {CHAT} HTTP/1.1",
        "host: localhost",
        f"authorization: Bearer {secret}",
        f"content-length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one whole answer: its status and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length[1])) if length is not None else b""


def leave(writer: asyncio.StreamWriter, way: str) -> None:
    """Go away: politely, with a reset, or deaf on one side."""
    if way == "half":
        writer.write_eof()
        return
    if way == "reset":
        found: socket.socket = writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
