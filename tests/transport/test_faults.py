"""Faults of the network and of servers: each ends in the error the catalogue names, and in a closed connection."""

from __future__ import annotations

import asyncio
import errno
import gzip
import socket
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from fastllm.errors import APIConnectionError, APITimeoutError, ProtocolError
from fastllm.options import Timeout
from fastllm.transport.dial import Dialer, _interleaved
from fastllm.transport.http import HTTPTransport
from fastllm.types import Headers, HTTPRequest
from transport.kit import FAST, Hostile, Peer, always, answer, chunked, once, silence, until

Make = Callable[..., HTTPTransport]


async def fails(transport: HTTPTransport, request: HTTPRequest, timeout: Timeout = FAST) -> APIConnectionError:
    with pytest.raises(APIConnectionError) as caught:
        await transport.send(request, timeout)
    return caught.value


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# 1-4, 15: connecting


async def test_1_connect_refused(make: Make) -> None:
    error = await fails(make(), HTTPRequest(url=f"http://127.0.0.1:{closed_port()}/"))
    assert (error.code, error.sent, error.retryable) == ("connection_refused", False, True)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the resolver answers: addresses, or the error to raise; `asked` counts the queries."""
    table: dict[str, Any] = {"asked": 0}

    async def getaddrinfo(host: str, port: int) -> list[Any]:
        table["asked"] += 1
        await asyncio.sleep(10 if host == "slow.test" else 0.005)
        if isinstance(table[host], Exception):
            raise table[host]
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, port)) for a in table[host]]

    monkeypatch.setattr("fastllm.transport.dial._getaddrinfo", lambda loop, host, port: getaddrinfo(host, port))
    return table


@pytest.mark.parametrize(("number", "retryable"), [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)])
async def test_2_an_unknown_name_is_final_and_a_resolver_in_trouble_is_not(
    make: Make, names: dict[str, Any], number: int, retryable: bool
) -> None:
    names["api.test"] = socket.gaierror(number, "what the resolver says")
    error = await fails(make(), HTTPRequest(url="http://api.test/"))
    assert (error.code, error.sent, error.retryable) == ("dns", False, retryable)
    assert "api.test" in str(error)


async def test_2_a_name_is_asked_once_for_many_requests_and_slow_answers_hit_the_connect_timeout(
    make: Make, names: dict[str, Any]
) -> None:
    names["api.test"] = ["127.0.0.1"]
    async with Hostile(always(answer())) as server:
        transport = make()
        request = HTTPRequest(url=f"http://api.test:{server.port}/")
        await asyncio.gather(*(transport.send(request, FAST) for _ in range(20)))
        assert names["asked"] == 1
    slow = await fails(make(), HTTPRequest(url="http://slow.test/"), Timeout(connect=0.001))
    assert slow.code == "timeout_connect"


async def test_3_the_name_is_asked_again_after_no_address_took_a_connection(make: Make, names: dict[str, Any]) -> None:
    async with Hostile(always(answer())) as server:
        names["api.test"] = ["127.0.0.2"]
        transport = make()
        request = HTTPRequest(url=f"http://api.test:{server.port}/")
        assert (await fails(transport, request)).code == "connection_refused"
        names["api.test"] = ["127.0.0.1"]
        assert (await transport.send(request, FAST)).status == 200


async def test_3_15_a_dead_address_costs_less_than_300_ms(
    make: Make, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address swallows everything, the second refuses, the third answers."""
    names["api.test"] = ["::1", "127.0.0.2", "127.0.0.1"]
    lost = asyncio.Event()
    real = Dialer._open

    async def open_(self: Dialer, address: tuple[str, int], build: Callable[[], Any]) -> Any:
        if address[0] == "::1":
            try:
                await asyncio.sleep(10)
            finally:
                lost.set()
        return await real(self, address, build)

    monkeypatch.setattr(Dialer, "_open", open_)
    async with Hostile(always(answer())) as server:
        began = time.monotonic()
        assert (await make().send(HTTPRequest(url=f"http://api.test:{server.port}/"), FAST)).status == 200
        assert 0.2 < time.monotonic() - began < 0.4
        assert lost.is_set()


def test_15_families_take_turns() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(six, ("a", 1)), (six, ("b", 1)), (four, ("1", 1)), (four, ("2", 1)), (four, ("2", 1))]
    assert [host for host, _ in _interleaved(found)] == ["a", "1", "b", "2"]


async def test_4_a_connect_that_nobody_answers_ends_by_the_connect_timeout(make: Make) -> None:
    """A listener whose queue is full drops the SYN, as a black hole does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fill = [socket.socket() for _ in range(3)]
        for sock in fill:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        began = time.monotonic()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        error = await fails(make(), HTTPRequest(url=url), Timeout(connect=0.15, first_byte=9))
        for sock in fill:
            sock.close()
        assert isinstance(error, APITimeoutError)
        assert (error.code, error.sent) == ("timeout_connect", False)
        assert "0.15 s" in str(error)
        assert 0.15 <= time.monotonic() - began < 0.25


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL])
async def test_56_57_without_descriptors_or_ports_requests_wait_for_the_connections_there_are(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, left = Dialer._open, 3

    async def open_(self: Dialer, address: tuple[str, int], build: Callable[[], Any]) -> Any:
        nonlocal left
        if left == 0:
            raise OSError(number, "no more")
        left -= 1
        return await real(self, address, build)

    monkeypatch.setattr(Dialer, "_open", open_)
    async with Hostile(always(answer())) as server:
        transport = make()
        answers = await asyncio.gather(
            *(transport.send(server.post(), FAST) for _ in range(100)), return_exceptions=True
        )
        assert [a for a in answers if isinstance(a, APIConnectionError) and a.sent] == []
        assert sum(not isinstance(a, BaseException) for a in answers) >= 3
        later = await asyncio.gather(*(transport.send(server.post(), FAST) for _ in range(100)))
        assert {a.status for a in later} == {200}
        assert len(server.peers) == 3


async def test_9_a_peer_that_vanished_is_noticed_by_the_kernel(make: Make) -> None:
    async with Hostile(always(answer())) as server:
        transport = make()
        await transport.send(server.post(), FAST)
        (connection,) = next(iter(transport._pools.values())).connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


# 5-12: the connection goes away


async def twice(peer: Peer) -> None:
    """Answer once; drop the connection at the second request."""
    await peer.request()
    await peer.say(answer())
    await peer.request()
    peer.reset()


async def test_5_a_reset_before_any_byte_on_a_reused_connection_is_an_error_that_says_so(make: Make) -> None:
    async with Hostile(twice) as server:
        transport = make()
        for n in range(1, 4):
            assert (await transport.send(server.post(), FAST)).body == b"ok"
            error = await fails(transport, server.post())
            assert (error.code, error.sent, error.retryable) == ("stale_connection", True, True)
            assert (len(server.peers), len(server.requests)) == (n, 2 * n)
        body = await transport.open(server.post(), FAST)
        assert [piece async for piece in body] == [b"ok"]
        with pytest.raises(APIConnectionError) as caught:
            await transport.open(server.post(), FAST)
        assert caught.value.code == "stale_connection" and len(server.requests) == 8


async def test_5_what_was_idle_for_longer_goes_with_it_and_what_was_released_later_stays(make: Make) -> None:
    """Three rest; the last released is dropped: the two older are closed, and one dialled meanwhile is kept."""
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        place = server.peers.index(peer)
        await peer.request()
        await peer.say(answer())
        await peer.request()
        if place == last:
            await gate.wait()
            peer.reset()
        await peer.say(answer(b"again"))
        await peer.until_gone()

    last = -1
    async with Hostile(script) as server:
        transport = make()
        await asyncio.gather(*(transport.send(server.post(), FAST) for _ in range(3)))
        (pool,) = transport._pools.values()
        newest = list(pool.idle)[-1]
        ports = [peer.writer.get_extra_info("peername")[1] for peer in server.peers]
        last = ports.index(newest.transport.get_extra_info("sockname")[1])
        task = asyncio.create_task(fails(transport, server.post()))
        await until(lambda: len(server.requests) == 4)
        later = (await transport.send(server.post(), FAST)).body  # on the second: released after the first was sent
        assert later == b"again" and len(pool.idle) == 2
        gate.set()
        assert (await task).code == "stale_connection"
        assert len(pool.idle) == 1 and (await until(lambda: pool.used == 1)) is None


async def test_5_on_the_fresh_connection_after_it_a_reset_is_a_reset(make: Make) -> None:
    async def script(peer: Peer) -> None:
        if server.peers.index(peer) == 0:
            await twice(peer)
        await peer.request()
        peer.reset()

    async with Hostile(script) as server:
        transport = make()
        await transport.send(server.post(), FAST)
        assert (await fails(transport, server.post())).code == "stale_connection"
        assert (await fails(transport, server.post())).code == "connection_reset"
        assert len(server.requests) == 3


@pytest.mark.parametrize(("reset", "code"), [(True, "connection_reset"), (False, "eof")])
async def test_6_on_a_fresh_connection_it_is_an_error_that_says_sent(make: Make, reset: bool, code: str) -> None:
    async with Hostile(once(reset=reset)) as server:
        error = await fails(make(), server.post())
        assert (error.code, error.sent, error.retryable) == (code, True, True)
        assert len(server.requests) == 1


CUT = {
    "in the status line": b"HTTP/1.1 20",
    "in the head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "in the body": answer(b"whole")[:-1],
    "in a chunk": chunked(b"whole")[:-8],
    "before the last chunk": chunked(b"whole", end=b""),
    "in the trailers": chunked(b"whole", end=b"0\r\nx: y\r\n"),
    "in a gzip body without length": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(b"x")[:-4],
}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("where", CUT)
async def test_7_an_answer_that_is_cut_off_is_never_given_as_whole(make: Make, where: str, reset: bool) -> None:
    async with Hostile(once(CUT[where], b"", reset=reset)) as server:
        transport = make()
        error = await fails(transport, server.post())
        # A reset may overtake the bytes sent before it.
        assert isinstance(error, ProtocolError) or reset
        assert (error.sent, error.retryable) == (True, True)
        assert error.code in ("eof", "connection_reset")
        await until(lambda: "0 active, 0 idle" in repr(transport))


async def test_8_a_byte_now_and_then_does_not_reset_what_is_counted_between_chunks(make: Make) -> None:
    async with Hostile(always(*[bytes([b]) for b in answer(b"slow")], pause=0.005)) as server:
        assert (await make().send(server.post(), FAST)).body == b"slow"
    async with Hostile(always(*[bytes([b]) for b in answer(b"slow")], pause=0.2)) as server:
        error = await fails(make(), server.post(), Timeout(between_chunks=0.1))
        assert error.code == "timeout_between_chunks"
        assert "0.1 s" in str(error)


async def test_10_a_server_that_says_nothing_ends_by_the_first_byte_timeout_not_early_not_late(make: Make) -> None:
    async with Hostile(silence) as server:
        transport = make()
        began = time.monotonic()
        errors = await asyncio.gather(
            *(fails(transport, server.post(), Timeout(first_byte=s)) for s in (0.1, 0.15, 0.1))
        )
        assert 0.15 <= time.monotonic() - began < 0.25
        assert {(error.code, error.sent, type(error)) for error in errors} == {
            ("timeout_first_byte", True, APITimeoutError)
        }
        assert "0.1 s" in str(errors[0])
        await until(lambda: server.open == 0)


async def test_10_after_an_interim_answer_the_first_byte_is_still_waited_for(make: Make) -> None:
    early = b"HTTP/1.1 103 Early\r\n\r\n"
    async with Hostile(always(early, answer(), pause=0.1)) as server:
        assert (await make().send(server.post(), Timeout(first_byte=1, between_chunks=0.03))).status == 200
    async with Hostile(always(early)) as server:
        error = await fails(make(), server.post(), Timeout(first_byte=0.05))
        assert error.code == "timeout_first_byte"


async def test_10_an_answer_that_came_while_the_loop_was_blocked_is_not_timed_out(make: Make) -> None:
    async with Hostile(always(answer())) as server:
        transport = make()
        await transport.send(server.post(), FAST)
        task = asyncio.create_task(transport.send(server.post(), Timeout(first_byte=0.05)))
        await until(lambda: len(server.requests) == 2)
        time.sleep(0.2)  # noqa: ASYNC251 - that is the point
        assert (await task).status == 200


async def test_11_a_connection_closed_while_idle_is_not_used(make: Make) -> None:
    async with Hostile(once(answer())) as server:
        transport = make()
        for i in range(3):
            await transport.send(server.post(), FAST)
            await until(lambda: "0 active, 0 idle" in repr(transport))
            assert len(server.peers) == i + 1


SURPLUS = {
    "a second answer": answer(b"evil"),
    "half a status line": b"HTTP/1.1 2",
    "garbage": b"garbage\r\n\r\n",
    "zeros": b"\0" * 100,
}


@pytest.mark.parametrize("pause", [None, 0.01])
@pytest.mark.parametrize("what", SURPLUS)
async def test_12_bytes_after_an_answer_never_reach_another_request(make: Make, what: str, pause: float | None) -> None:
    pieces = [answer() + SURPLUS[what]] if pause is None else [answer(), SURPLUS[what]]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(*pieces, pause=pause or 0)
        await peer.request()
        await peer.say(answer(b"desync"))

    async with Hostile(script) as server:
        transport = make()
        for _ in range(3):
            assert (await transport.send(server.post(), FAST)).body == b"ok"
            await until(lambda: "0 active, 0 idle" in repr(transport))  # what comes later is the next one's answer
        assert len(server.peers) == 3


async def test_12_a_connection_handed_to_one_who_waits_is_replaced_if_surplus_bytes_killed_it(make: Make) -> None:
    async with Hostile(always(answer() + b"X")) as server:
        transport = make(max_connections=1)
        answers = await asyncio.gather(*(transport.send(server.post(), FAST) for _ in range(20)))
        assert {a.body for a in answers} == {b"ok"}
        assert server.most_open <= 2  # the server learns of a close a moment later


# 21-23, 44: bounds

MIB = 1024 * 1024


@pytest.mark.fault(21, "gzip-bomb")
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_21_a_compression_bomb_stops_at_the_cap(make: Make, coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress
    bomb = pack(b"\0" * (64 * MIB))
    async with Hostile(always(answer(bomb, headers=f"content-encoding: {coding}\r\n".encode()))) as server:
        transport = make(max_body_bytes=4 * MIB)
        tracemalloc.start()
        error = await fails(transport, server.post())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (error.code, error.retryable) == ("body_too_large", False)
        assert most < 12 * MIB
        await until(lambda: "0 active, 0 idle" in repr(transport))


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    "raw",
    [
        answer(b"x" * 1001),
        chunked(*[b"x" * 100] * 11),
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001,
    ],
)
async def test_44_a_body_above_the_cap_is_refused_and_one_at_the_cap_is_not(make: Make, raw: bytes) -> None:
    async with Hostile(once(raw)) as server:
        assert (await fails(make(max_body_bytes=1000), server.post())).code == "body_too_large"
        await make(max_body_bytes=1100).send(server.post(), FAST)


@pytest.mark.fault(44)
async def test_44_endless_chunk_extensions_and_trailers_are_cut_off(make: Make) -> None:
    for start in (b"1;" + b"e" * 1000, b"0\r\n" + b"t" * 1000, b"0\r\n" + b"t: v\r\n" * 200):
        async with Hostile(always(chunked(end=start), *[b"x" * 1000] * 70)) as server:
            assert isinstance(await fails(make(), server.post()), ProtocolError)


@pytest.mark.fault(21)
@pytest.mark.parametrize(
    ("codings", "body"),
    [
        (b"content-encoding: gzip\r\n", b"not gzip at all"),
        (b"content-encoding: gzip\r\n", gzip.compress(b"x" * 100)[:-6]),
        (b"content-encoding: gzip\r\n", gzip.compress(b"x" * 100) + b"tail"),
        (b"content-encoding: deflate\r\n", b"\xff\xff\xff"),
        (b"content-encoding: gzip, gzip\r\n", gzip.compress(gzip.compress(b"x"))),
        (b"content-encoding: gzip\r\ncontent-encoding: gzip\r\n", gzip.compress(gzip.compress(b"x"))),
        (b"content-encoding: br\r\n", b"x"),
    ],
)
async def test_21_corrupt_nested_and_unknown_encodings_are_protocol_errors(
    make: Make, codings: bytes, body: bytes
) -> None:
    async with Hostile(always(answer(body, headers=codings))) as server:
        assert isinstance(await fails(make(), server.post()), ProtocolError)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(b"text")),
        (b"GZIP ", gzip.compress(b"te") + gzip.compress(b"xt")),
        (b"x-gzip", gzip.compress(b"text")),
        (b"deflate", zlib.compress(b"text")),
        (b"deflate", zlib.compress(b"text", wbits=-15)),
        (b"identity", b"text"),
    ],
)
async def test_21_a_compressed_answer_is_decoded(make: Make, coding: bytes, body: bytes) -> None:
    async with Hostile(always(answer(body, headers=b"content-encoding: %b\r\n" % coding))) as server:
        got = await make().send(server.post(headers=Headers({"accept-encoding": "gzip, deflate"})), FAST)
        assert got.body == b"text"


LINE = b"x-filler: " + b"y" * 88 + b"\r\n"  # 100 bytes


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    "pieces",
    [
        [answer(headers=LINE * 700)],
        [answer(headers=b"a:b\r\n" * 20_000)],
        [b"HTTP/1.1 200 OK\r\nx: ", *[b"y" * 1000] * 80],
        [b"HTTP/1.1 200 OK\r\n", *[LINE * 10] * 80],
        [b"HTTP/1.1 200 " + b"y" * 70_000],
    ],
)
async def test_22_a_head_above_the_bound_is_refused(make: Make, pieces: list[bytes]) -> None:
    async with Hostile(always(*pieces)) as server:
        error = await fails(make(), server.post())
        assert (type(error), error.code) == (ProtocolError, "head_too_large")


async def test_22_a_head_within_the_bound_is_not_counted_together_with_its_body(make: Make) -> None:
    async with Hostile(always(answer(b"b" * 200_000, headers=LINE * 600))) as server:
        assert len((await make().send(server.post(), FAST)).headers) == 601


NOT_HTTP = {
    "folded": b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "nul": b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
    "bare cr": b"HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 0\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\nx : a\r\ncontent-length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "length and chunks": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    "coded transfer": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "bad chunk size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "an upgrade": b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.fault(22)
@pytest.mark.parametrize("what", NOT_HTTP)
async def test_22_what_is_not_http_is_a_protocol_error_and_closes_the_connection(make: Make, what: str) -> None:
    async with Hostile(always(NOT_HTTP[what])) as server:
        error = await fails(make(), server.post())
        assert isinstance(error, ProtocolError)
        assert error.sent
        await until(lambda: server.open == 0)


@pytest.mark.fault(23)
async def test_23_interim_answers_and_trailers_are_skipped_but_floods_are_not(make: Make) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\ncontent-encoding: br\r\n\r\n"
    raw = b"HTTP/1.1 100 Continue\r\n\r\n" + early + chunked(b"ok", end=b"0\r\nx-after: 1\r\n\r\n")
    async with Hostile(always(raw)) as server:
        transport = make()
        for _ in range(2):
            got = await transport.send(server.post(), FAST)
            assert (got.status, got.body, got.headers) == (200, b"ok", [(b"transfer-encoding", b"chunked")])
        assert len(server.peers) == 1
    async with Hostile(always(early * 1000)) as server:
        assert isinstance(await fails(make(), server.post()), ProtocolError)
