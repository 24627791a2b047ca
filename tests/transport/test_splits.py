"""An answer means the same however the network cuts it up."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fastllm.errors import ProtocolError
from fastllm.transport.connection import Connection, Context, Outbox
from fastllm.transport.decode import STEP, Decoder
from fastllm.transport.http import HTTPTransport
from fastllm.transport.plain import PlainReader
from fastllm.transport.sweep import Sweeper
from fastllm.types import HTTPResponse
from transport.kit import FAST, answer, chunked

Make = Callable[..., HTTPTransport]


class Wire:
    """What a connection sees of a transport, without a socket."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def get_extra_info(self, name: str) -> Any:
        return self

    def setsockopt(self, *option: int) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Kept:
    """An owner that remembers what came back."""

    def __init__(self) -> None:
        self.released = 0

    def release(self, connection: Connection) -> None:
        self.released += 1

    def lost(self, connection: Connection) -> None: ...


def receive(pieces: list[bytes], *, end: bool = False) -> tuple[HTTPResponse, bool]:
    """Give what one exchange makes of these reads, and whether the connection is kept."""
    loop = asyncio.new_event_loop()
    try:
        connection = Connection(
            Context(loop, Sweeper(loop), 65536, 1_000_000, Outbox(loop), PlainReader(65536, 1_000_000)), "http://test"
        )
        connection.connection_made(Wire())  # type: ignore[arg-type]
        connection.owner = owner = Kept()
        waiter = connection.start(b"", FAST, 0.0)
        for piece in pieces:
            connection.data_received(piece)
        if end:
            connection.eof_received()
        connection._context.sweeper.close()
        assert waiter.done()
        return waiter.result(), bool(owner.released)
    finally:
        loop.close()


PACKED = gzip.compress(b"some text, some text, some text")
REPRESENTATIVE = {
    "length": (answer(b"body", headers=b"X-A: b\r\n"), b"body", True),
    "empty": (answer(b"", status="204 No Content"), b"", True),
    "chunked": (chunked(b"one", b"two" * 20, end=b"0\r\nx-t: v\r\n\r\n"), b"one" + b"two" * 20, True),
    "extension": (chunked(b"one").replace(b"3\r\n", b"3;name=value\r\n"), b"one", True),
    "interim": (b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\n" + answer(b"body"), b"body", True),
    "gzip": (chunked(PACKED, headers=b"content-encoding: gzip\r\n"), b"some text, some text, some text", True),
    "close": (answer(b"body", headers=b"connection: close\r\n"), b"body", False),
    "until eof": (b"HTTP/1.1 200 OK\r\nserver: x\r\n\r\nbody", b"body", False),
    "1.0": (answer(b"body").replace(b"1.1", b"1.0"), b"body", False),
}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_split_at_every_byte(name: str) -> None:
    raw, body, kept = REPRESENTATIVE[name]
    end = name == "until eof"
    whole = receive([raw], end=end)
    assert (whole[0].body, whole[1]) == (body, kept)
    for i in range(1, len(raw)):
        assert receive([raw[:i], raw[i:]], end=end) == whole
    assert receive([raw[i : i + 1] for i in range(len(raw))], end=end) == whole


@settings(max_examples=150)
@given(
    chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    coding=st.sampled_from(["", "gzip", "deflate"]),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
)
def test_chunked_and_compressed_bodies_at_random_splits(chunks: list[bytes], coding: str, cuts: list[int]) -> None:
    plain = b"".join(chunks)
    if coding:
        packed = (gzip.compress if coding == "gzip" else zlib.compress)(plain)
        middle = len(packed) // 2
        raw = chunked(packed[:middle], packed[middle:], headers=f"content-encoding: {coding}\r\n".encode())
    else:
        raw = chunked(*chunks)
    edges = [0, *sorted(cut % len(raw) for cut in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(edges) if a < b]
    got, kept = receive(pieces)
    assert got.body == plain
    assert kept


@settings(max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_end_in_an_answer_or_one_of_our_errors(junk: bytes, with_status: bool) -> None:
    raw = (b"HTTP/1.1 200 OK\r\n" if with_status else b"") + junk
    try:
        receive([raw], end=True)
    except Exception as error:
        assert type(error).__name__ in ("ProtocolError", "APIConnectionError")


@pytest.mark.parametrize("size", [1, STEP - 1, STEP, STEP + 1, 3 * STEP])
def test_decoding_loses_nothing_at_the_edges_of_its_steps(size: int) -> None:
    decoder = Decoder(b"gzip", 4 * STEP)
    assert sum(map(len, decoder.feed(gzip.compress(b"\0" * size)))) == size
    decoder.finish()
    with pytest.raises(ProtocolError):
        list(Decoder(b"gzip", size - 1).feed(gzip.compress(b"\0" * size)))
