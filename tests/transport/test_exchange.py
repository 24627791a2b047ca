"""One exchange: what is written, what comes back, and which connection it takes."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Callable

import pytest

from fastllm.errors import APIConnectionError, InvalidRequestError, ProtocolError
from fastllm.transport.descriptors import connection_limit
from fastllm.transport.http import HTTPTransport
from fastllm.types import Headers
from transport.kit import FAST, Hostile, Peer, always, answer, chunked, once, silence, until

Make = Callable[..., HTTPTransport]


async def test_status_headers_and_body_come_back_as_received(make: Make) -> None:
    raw = b"HTTP/1.1 418 Tea\r\nX-One: 1\r\nset-cookie: a\r\nSet-Cookie: b\r\nContent-Length: 4\r\n\r\n\x00\xff\r\n"
    async with Hostile(always(raw)) as server:
        got = await make().send(server.post(), FAST)
    assert (got.status, got.body) == (418, b"\x00\xff\r\n")
    assert got.headers == [(b"x-one", b"1"), (b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"content-length", b"4")]


async def test_the_request_is_written_byte_by_byte_as_it_should_be(make: Make) -> None:
    async with Hostile(always(answer())) as server:
        transport = make()
        await transport.send(server.post("/v1/chat?a=b#c", b"body", Headers({"Authorization": "Bearer x"})), FAST)
        await transport.send(server.post("", b"", method="GET"), FAST)
        await transport.send(server.post("", b"", Headers({"host": "other", "accept-encoding": "gzip"})), FAST)
        host = b"host: 127.0.0.1:%d\r\n" % server.port
        identity = b"accept-encoding: identity\r\n"
        assert server.requests == [
            b"POST /v1/chat?a=b HTTP/1.1\r\n%b%bauthorization: Bearer x\r\ncontent-length: 4\r\n\r\nbody"
            % (host, identity),
            b"GET / HTTP/1.1\r\n%b%b\r\n" % (host, identity),
            b"POST / HTTP/1.1\r\nhost: other\r\naccept-encoding: gzip\r\ncontent-length: 0\r\n\r\n",
        ]


@pytest.mark.parametrize(
    "raw", [answer(b""), answer(b"x" * 300_000), chunked(b"a", b"bc"), answer(b"", status="204 No")]
)
async def test_a_whole_answer_leaves_the_connection_for_the_next_request(make: Make, raw: bytes) -> None:
    async with Hostile(always(raw)) as server:
        transport = make()
        first = await transport.send(server.post(), FAST)
        assert await transport.send(server.post(), FAST) == first
        assert (len(server.peers), transport.connections_opened, transport.requests) == (1, 1, 2)
        assert "0 active, 1 idle" in repr(transport)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_that_has_no_body_by_its_status_is_whole_at_once(make: Make, status: str) -> None:
    async with Hostile(always(answer(status=status).removesuffix(b"ok"))) as server:
        assert (await make().send(server.post(), FAST)).body == b""


async def test_the_connection_used_last_is_used_first_and_old_idle_ones_are_closed(make: Make) -> None:
    async with Hostile(always(answer())) as server:
        transport = make(idle_expiry=0.03)
        await asyncio.gather(*(transport.send(server.post(), FAST) for _ in range(3)))
        for _ in range(3):
            await transport.send(server.post(), FAST)
        assert sorted(len(peer.requests) for peer in server.peers) == [1, 1, 4]
        await asyncio.sleep(0.05)
        await transport.send(server.post(), FAST)
        assert len(server.peers) == 4
        await until(lambda: server.open == 1)


@pytest.mark.parametrize("limit", [1, 3])
async def test_max_connections_holds_and_those_who_wait_are_served_in_order(make: Make, limit: int) -> None:
    async with Hostile(always(answer())) as server:
        transport = make(max_connections=limit)
        await asyncio.gather(*(transport.send(server.post(f"/{i}"), FAST) for i in range(50)))
        assert server.most_open == limit
        for peer in server.peers:
            numbers = [int(request.split()[1][1:]) for request in peer.requests]
            assert numbers == sorted(numbers)


async def test_no_more_than_connect_ramp_connects_are_under_way(make: Make) -> None:
    async with Hostile(always(answer())) as server:
        transport = make(connect_ramp=3)
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, *(pool.dialing for pool in transport._pools.values()), 0)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(transport.send(server.post(), FAST) for _ in range(40)))
        watching.cancel()
        assert most == 3


async def test_a_large_body_is_written_as_the_server_takes_it(make: Make) -> None:
    """Also where the server pauses, and memory holds no second copy in the loop's buffer."""
    body = bytes(range(256)) * 40_000

    async def script(peer: Peer) -> None:
        await asyncio.sleep(0.03)
        await peer.request()
        await peer.say(answer())

    async with Hostile(script) as server:
        assert (await make().send(server.post(body=body), FAST)).status == 200
        assert server.requests[0].endswith(body)


async def test_an_answer_before_the_request_is_all_written_ends_the_connection(make: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(answer(status="413 Too Large"))
        await peer.until_gone()

    async with Hostile(script) as server:
        transport = make()
        got = await transport.send(server.post(body=b"x" * 30_000_000), FAST)
        assert got.status == 413
        await until(lambda: server.peers[0].gone.is_set())


@pytest.mark.fault(24)
async def test_307_and_308_of_the_same_origin_are_followed_with_method_and_body(make: Make) -> None:
    async def script(peer: Peer) -> None:
        for location in (b"/b", b"c?d"):
            await peer.request()
            await peer.say(answer(status="307 T", headers=b"location: %b\r\n" % location))
        await peer.request()
        await peer.say(answer(b"there"))

    async with Hostile(script) as server:
        assert (await make().send(server.post("/a", b"body"), FAST)).body == b"there"
        assert [request.split(b" ")[1] for request in server.requests] == [b"/a", b"/b", b"/c?d"]
        assert all(request.startswith(b"POST") and request.endswith(b"body") for request in server.requests)


@pytest.mark.fault(24, "redirect-elsewhere")
@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
async def test_redirects_to_elsewhere_and_endless_ones_are_given_as_they_are(make: Make, status: str) -> None:
    async with Hostile(always(answer(status=status + " X", headers=b"location: http://example.org/\r\n"))) as server:
        assert (await make().send(server.post(), FAST)).status == int(status)
        assert len(server.requests) == 1
        (body := await make().open(server.post(), FAST)).__aiter__()
        assert body.status == int(status)
        await body.aclose()
    async with Hostile(always(answer(status=status + " X", headers=b"location: /\r\n"))) as server:
        assert (await make().send(server.post(), FAST)).status == int(status)
        assert len(server.requests) == (4 if status in ("307", "308") else 1)


@pytest.mark.parametrize(
    "url",
    [
        "http://h/a b",
        "http://h/a\r\nx: y",
        "http://h\n/",
        "ftp://h/",
        "http:///x",
        "h/x",
        "http://h:x/",
        "http://u:pw@h/",
        "http://h/ü",
    ],
)
async def test_urls_that_could_smuggle_or_make_no_sense_are_refused(make: Make, url: str) -> None:
    async with Hostile(silence) as server:
        request = server.post()
        request = type(request)(url=url)
        with pytest.raises(InvalidRequestError) as caught:
            await make().send(request, FAST)
        assert caught.value.sent is False
        assert "pw" not in str(caught.value)


async def test_headers_and_methods_that_would_change_the_framing_are_refused(make: Make) -> None:
    async with Hostile(silence) as server:
        for name in ("Content-Length", "transfer-encoding", "connection", "expect", "upgrade"):
            with pytest.raises(InvalidRequestError, match=name.lower()):
                await make().send(server.post(headers=Headers({name: "1"})), FAST)
        for method in ("HEAD", "CONNECT", "GET\r\n", "get"):
            with pytest.raises(InvalidRequestError):
                await make().send(server.post(method=method), FAST)


async def test_use_from_another_loop_is_refused(make: Make) -> None:
    async with Hostile(always(answer())) as server:
        transport = make()
        await transport.send(server.post(), FAST)
        found: list[BaseException] = []

        def other() -> None:
            try:
                asyncio.run(transport.send(server.post(), FAST))
            except RuntimeError as error:
                found.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "another event loop" in str(found[0])


def test_after_its_loop_was_closed_a_transport_serves_the_next_one() -> None:
    transport = HTTPTransport(trust_env=False)

    async def use() -> int:
        async with Hostile(once(answer(headers=b"connection: close\r\n"))) as server:
            return (await transport.send(server.post(), FAST)).status

    assert [asyncio.run(use()), asyncio.run(use())] == [200, 200]


async def test_aclose_closes_everything_and_fails_what_is_under_way(make: Make) -> None:
    async with Hostile(silence) as server:
        transport = make(max_connections=2)
        tasks = [asyncio.create_task(transport.send(server.post(), FAST)) for _ in range(5)]
        await until(lambda: server.open == 2)
        await transport.aclose()
        await transport.aclose()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, APIConnectionError)
            assert result.code == "closed"
        await until(lambda: server.open == 0)
        with pytest.raises(APIConnectionError, match="closed"):
            await transport.send(server.post(), FAST)


async def test_aclose_while_connecting_fails_the_request(make: Make) -> None:
    async with Hostile(silence) as server:
        transport = make()
        task = asyncio.create_task(transport.send(server.post(), FAST))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await transport.aclose()
        with pytest.raises(APIConnectionError, match="closed"):
            await task


async def test_a_body_without_length_ends_with_the_connection(make: Make) -> None:
    raw = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end"
    async with Hostile(once(raw)) as server:
        transport = make()
        assert (await transport.send(server.post(), FAST)).body == b"until the end"
        await until(lambda: "0 active, 0 idle" in repr(transport))
    async with Hostile(once(raw, reset=True)) as server:
        with pytest.raises(ProtocolError):
            await make().send(server.post(), FAST)


async def test_connection_close_is_obeyed(make: Make) -> None:
    async with Hostile(always(answer(headers=b"connection: close\r\n"))) as server:
        transport = make()
        for _ in range(2):
            await transport.send(server.post(), FAST)
        assert len(server.peers) == 2


def test_the_limit_on_open_files_is_raised_and_leaves_a_reserve() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        limit = connection_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256 or hard <= 256
        assert 1 <= limit < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
