"""TLS: certificates are checked, refusals say why, resumption works, and no byte is lost between records."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from fastllm.errors import APIConnectionError, APITimeoutError, ProtocolError
from fastllm.options import Timeout
from fastllm.testing.tls import self_signed
from fastllm.transport.http import HTTPTransport
from fastllm.types import HTTPRequest
from transport.kit import FAST, Hostile, Peer, always, answer, chunked, once, silence, until

Make = Callable[..., HTTPTransport]


@pytest.fixture(scope="module")
def own() -> tuple[ssl.SSLContext, str]:
    return self_signed("127.0.0.1")


def trusting(pem: str) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=pem)


async def refusal(transport: HTTPTransport, server: Hostile, timeout: Timeout = FAST) -> APIConnectionError:
    with pytest.raises(APIConnectionError) as caught:
        await transport.send(server.post(), timeout)
    assert caught.value.sent is False
    return caught.value


async def test_large_bodies_go_both_ways_over_one_connection(make: Make, own: tuple[ssl.SSLContext, str]) -> None:
    body = bytes(range(256)) * 8_000
    for raw in (answer(body), chunked(*[body[:100_000]] * 5)):
        async with Hostile(always(raw), tls=own[0]) as server:
            transport = make(ssl_context=trusting(own[1]))
            for _ in range(3):
                got = await transport.send(server.post(body=body), FAST)
                assert got.body in (body, body[:100_000] * 5)
            assert all(request.endswith(body) for request in server.requests)
            assert len(server.peers) == 1


async def test_streams_pause_and_go_on(make: Make, own: tuple[ssl.SSLContext, str]) -> None:
    async with Hostile(always(answer(b"x" * 5_000_000)), tls=own[0]) as server:
        transport = make(ssl_context=trusting(own[1]))
        for _ in range(2):
            body = await transport.open(server.post(), FAST)
            await asyncio.sleep(0.01)
            assert sum([len(piece) async for piece in body]) == 5_000_000
        assert len(server.peers) == 1


async def test_13_a_self_signed_certificate_is_refused_with_a_way_out(
    make: Make, own: tuple[ssl.SSLContext, str]
) -> None:
    async with Hostile(silence, tls=own[0]) as server:
        error = await refusal(make(), server)
        assert (error.code, error.retryable) == ("tls_certificate", False)
        assert "127.0.0.1" in str(error) and "SSL_CERT_FILE" in str(error) and "self" in str(error)
        await until(lambda: server.open == 0)


async def test_13_ssl_cert_file_is_that_way_out(
    make: Make, own: tuple[ssl.SSLContext, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text(own[1])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with Hostile(always(answer()), tls=own[0]) as server:
        assert (await make().send(server.post(), FAST)).status == 200


@pytest.mark.parametrize(("host", "days", "why"), [("other.example", 1, "match"), ("127.0.0.1", -1, "expired")])
async def test_13_wrong_hosts_and_expired_certificates_are_refused(make: Make, host: str, days: int, why: str) -> None:
    context, pem = self_signed(host, days=days)
    async with Hostile(silence, tls=context) as server:
        error = await refusal(make(ssl_context=trusting(pem)), server)
        assert (error.code, error.retryable) == ("tls_certificate", False)
        assert why in str(error)


async def test_13_a_reset_within_the_handshake_can_be_tried_again(make: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(10)
        peer.reset()

    async with Hostile(script) as server:
        server_url = server.url.replace("http", "https")
        with pytest.raises(APIConnectionError) as caught:
            await make().send(HTTPRequest(url=server_url), FAST)
        assert (caught.value.code, caught.value.retryable, caught.value.sent) == ("connection_reset", True, False)


async def test_13_a_server_without_tls_is_named_as_such(make: Make) -> None:
    async with Hostile(lambda peer: peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        with pytest.raises(APIConnectionError, match="no TLS with 127") as caught:
            await make().send(HTTPRequest(url=server.url.replace("http", "https")), FAST)
        assert (caught.value.code, caught.value.sent) == ("tls", False)


async def test_a_handshake_that_hangs_ends_by_the_tls_timeout(make: Make) -> None:
    async with Hostile(silence) as server:
        with pytest.raises(APITimeoutError, match=r"0\.1 s") as caught:
            await make().send(HTTPRequest(url=server.url.replace("http", "https")), Timeout(tls=0.1))
        assert (caught.value.code, caught.value.sent) == ("timeout_tls", False)
        await until(lambda: server.open == 0)


async def test_5_a_dropped_connection_is_replaced(make: Make, own: tuple[ssl.SSLContext, str]) -> None:
    """Seen in time, it is not used; otherwise the error says what happened, and the next call gets a fresh one."""
    async with Hostile(once(answer()), tls=own[0]) as server:
        transport = make(ssl_context=trusting(own[1]))
        for _ in range(3):
            try:
                given = await transport.send(server.post(), FAST)
            except APIConnectionError as error:
                assert error.code == "stale_connection"
                given = await transport.send(server.post(), FAST)
            assert given.body == b"ok"
        assert len(server.peers) == 3


async def test_the_session_is_resumed_on_the_next_connection(make: Make, own: tuple[ssl.SSLContext, str]) -> None:
    resumed = []

    async def script(peer: Peer) -> None:
        resumed.append(peer.writer.get_extra_info("ssl_object").session_reused)
        await always(answer())(peer)

    async with Hostile(script, tls=own[0]) as server:
        transport = make(ssl_context=trusting(own[1]))
        await transport.send(server.post(), FAST)
        await asyncio.gather(*(transport.send(server.post(), FAST) for _ in range(4)))
    assert resumed == [False, True, True, True]


async def test_7_without_close_notify_a_body_without_length_is_not_whole(
    make: Make, own: tuple[ssl.SSLContext, str]
) -> None:
    """Whoever can cut the wire could cut the answer."""
    raw = b"HTTP/1.1 200 OK\r\n\r\nuntil the end"

    async def polite(peer: Peer) -> None:
        await peer.request()
        await peer.say(raw)
        peer.writer.close()
        await asyncio.sleep(0.05)

    for script, whole in ((once(raw), False), (polite, True)):
        async with Hostile(script, tls=own[0]) as server:
            request, transport = server.post(), make(ssl_context=trusting(own[1]))
            if whole:
                assert (await transport.send(request, FAST)).body == b"until the end"
            else:
                with pytest.raises(ProtocolError):
                    await transport.send(request, FAST)


async def test_12_bytes_after_an_answer_close_the_connection(make: Make, own: tuple[ssl.SSLContext, str]) -> None:
    async with Hostile(always(answer(), answer(b"evil")), tls=own[0]) as server:
        transport = make(ssl_context=trusting(own[1]))
        for i in range(3):
            assert (await transport.send(server.post(), FAST)).body == b"ok"
            await until(lambda: "0 active, 0 idle" in repr(transport))
            assert len(server.peers) == i + 1


async def test_aclose_says_goodbye(make: Make, own: tuple[ssl.SSLContext, str]) -> None:
    """An idle connection is closed with close_notify: asyncio's server reads a clean end."""
    ends: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer())
        ends.append(await peer.reader.read())

    async with Hostile(script, tls=own[0]) as server:
        transport = make(ssl_context=trusting(own[1]))
        await transport.send(server.post(), FAST)
        await transport.aclose()
        await until(lambda: ends == [b""])
