"""Streams: pieces as they come, back-pressure, and a connection that is closed as soon as nobody reads."""

from __future__ import annotations

import asyncio
import gc
import gzip
from collections.abc import Callable

import pytest

from fastllm.errors import APIConnectionError, APITimeoutError, ProtocolError
from fastllm.options import Timeout
from fastllm.transport.http import HTTPTransport
from fastllm.transport.stream import HIGH_WATER, SIP, Body
from fastllm.types import Headers
from transport.kit import FAST, Hostile, Peer, always, answer, chunked, once, until

Make = Callable[..., HTTPTransport]
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def endless(peer: Peer) -> None:
    """An event every 2 ms, until the client closes."""
    await peer.request()
    peer.writer.write(HEAD)
    watching = asyncio.create_task(peer.until_gone())
    while not watching.done():
        await peer.say(b"4\r\ntick\r\n")
        await asyncio.sleep(0.002)


async def test_pieces_come_as_they_are_sent(make: Make) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD + b"3\r\none\r\n")
        await go_on.wait()
        await peer.say(b"3\r\ntwo\r\n0\r\n\r\n")
        await peer.request()

    async with Hostile(script) as server:
        body = await make().open(server.post(), FAST)
        assert (body.status, body.headers) == (200, [(b"transfer-encoding", b"chunked")])
        pieces = aiter(body)
        assert await anext(pieces) == b"one"
        go_on.set()
        assert [piece async for piece in pieces] == [b"two"]
        await body.aclose()


@pytest.mark.parametrize("raw", [answer(b"whole"), chunked(b"wh", b"ole"), answer(b"")])
async def test_after_its_end_the_connection_is_used_again_read_or_not(make: Make, raw: bytes) -> None:
    async with Hostile(always(raw)) as server:
        transport = make()
        unread = [await transport.open(server.post(), FAST)]
        for _ in range(3):
            body = await transport.open(server.post(), FAST)
            assert b"".join([piece async for piece in body]) in (b"whole", b"")
            assert [piece async for piece in body] == []
        assert b"".join([piece async for piece in unread[0]]) in (b"whole", b"")
        assert len(server.peers) == 1


async def test_compressed_streams_are_decoded_as_they_come(make: Make) -> None:
    packed = gzip.compress(b"event" * 1000)
    raw = chunked(packed[:20], packed[20:], headers=b"content-encoding: gzip\r\n")
    async with Hostile(always(raw)) as server:
        body = await make().open(server.post(headers=Headers({"accept-encoding": "gzip"})), FAST)
        assert b"".join([piece async for piece in body]) == b"event" * 1000


@pytest.mark.fault(47)
async def test_47_closing_before_the_end_closes_the_connection_within_100_ms(make: Make) -> None:
    async with Hostile(endless) as server:
        body = await make().open(server.post(), FAST)
        async for piece in body:
            assert piece.startswith(b"tick")
            break
        await body.aclose()
        await body.aclose()
        await until(lambda: server.open == 0, 0.1)
        assert [piece async for piece in body] == []


@pytest.mark.fault(47)
async def test_47_a_forgotten_stream_closes_its_connection(make: Make) -> None:
    async with Hostile(endless) as server:
        body = await make().open(server.post(), FAST)
        await anext(aiter(body))
        del body
        gc.collect()
        await until(lambda: server.open == 0, 0.1)


@pytest.mark.fault(47)
async def test_47_a_cancelled_reader_closes_its_connection(make: Make) -> None:
    async with Hostile(endless) as server:
        body = await make().open(server.post(), FAST)

        async def read() -> None:
            async for _ in body:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.open == 0, 0.1)


async def test_what_nobody_reads_is_left_with_the_server(make: Make) -> None:
    """At most 256 KiB and one read wait in memory; the rest waits in the kernels."""
    written = 0

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.request()
        peer.writer.write(answer(b"x" * 40_000_000).removesuffix(b"x" * 40_000_000))
        for _ in range(400):
            await peer.say(b"x" * 100_000)
            written += 100_000
        await peer.request()

    async with Hostile(script) as server:
        body = await make().open(server.post(), FAST)
        await asyncio.sleep(0.05)
        stalled = written
        await asyncio.sleep(0.05)
        assert written == stalled < 20_000_000
        assert body._sink.size < 256 * 1024 + 300_000  # type: ignore[attr-defined]
        size = 0
        async for piece in body:
            size += len(piece)
        assert size == 40_000_000
        assert [p async for p in body] == []


@pytest.mark.fault(48)
async def test_48_a_stall_ends_by_the_time_between_chunks_and_what_came_is_kept(make: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD + b"4\r\npart\r\n")
        await peer.until_gone()

    async with Hostile(script) as server:
        body = await make().open(server.post(), Timeout(between_chunks=0.05))
        got = []
        with pytest.raises(APITimeoutError, match=r"0\.05 s") as caught:
            async for piece in body:
                await asyncio.sleep(0.08)  # a slow reader is not the server's fault
                got.append(piece)
        assert got == [b"part"]
        assert caught.value.code == "timeout_between_chunks"
        await until(lambda: server.open == 0, 0.1)


@pytest.mark.fault(40)
async def test_40_a_cut_off_stream_gives_its_pieces_and_then_the_error(make: Make) -> None:
    for reset in (False, True):
        async with Hostile(once(HEAD + b"4\r\npart\r\n", b"", b"", reset=reset)) as server:
            body = await make().open(server.post(), FAST)
            got = []
            with pytest.raises(ProtocolError):
                async for piece in body:
                    got.append(piece)
            assert got == [b"part"]
            with pytest.raises(ProtocolError):
                await anext(aiter(body))


@pytest.mark.fault(44)
async def test_44_an_endless_stream_is_cut_off_at_the_cap(make: Make) -> None:
    async with Hostile(always(HEAD, *[b"100\r\n" + b"x" * 256 + b"\r\n"] * 50)) as server:
        body = await make(max_body_bytes=10_000).open(server.post(), FAST)
        size = 0
        with pytest.raises(ProtocolError):
            async for piece in body:
                size += len(piece)
        assert size <= 10_000


async def test_an_error_before_the_head_is_raised_by_open(make: Make) -> None:
    async with Hostile(once(b"HTTP/1.1 200")) as server:
        with pytest.raises(ProtocolError):
            await make().open(server.post(), FAST)


async def test_aclose_of_the_transport_ends_streams_with_an_error(make: Make) -> None:
    async with Hostile(endless) as server:
        transport = make()
        body = await transport.open(server.post(), FAST)
        await transport.aclose()
        with pytest.raises(APIConnectionError, match="closed"):
            async for _ in body:
                pass
        await until(lambda: server.open == 0, 0.1)


async def test_what_nobody_takes_is_held_by_the_provider_and_not_here(make: Make) -> None:
    """A provider that sends megabytes fills a sink to its mark and one sip beyond it, whatever the kernel has."""

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(HEAD + b"800000\r\n" + b"x" * 0x800000 + b"\r\n0\r\n\r\n")
        await peer.until_gone()

    async with Hostile(script) as server:
        body = await make().open(server.post(), FAST)
        assert isinstance(body, Body)
        await until(lambda: body._source._read_paused)  # type: ignore[attr-defined]
        assert HIGH_WATER < body._sink.size <= HIGH_WATER + SIP
        pieces = [piece async for piece in body]
        assert sum(map(len, pieces)) == 0x800000 and max(map(len, pieces)) <= SIP
        await body.aclose()
