"""gateway: the HTTP of it: bounds on heads, bodies and times, and messages of ambiguous length, by raw sockets."""

from __future__ import annotations

import asyncio
import gzip

import msgspec
import pytest

from fastllm.gateway.inbound import MOST_AHEAD
from fastllm.testing import MockConfig
from kits.gateway import BODY, CHAT, connection, head_and_body, served

JSON = msgspec.json.encode(BODY)
LENGTH = f"content-length: {len(JSON)}\r\n".encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(JSON), JSON)


def post(headers: bytes, body: bytes, line: bytes = b"POST /v1/chat/completions HTTP/1.1\r\n") -> bytes:
    return line + b"host: localhost\r\n" + headers + b"\r\n" + body


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.fault("86")
@pytest.mark.parametrize(
    "message",
    [
        post(LENGTH + b"transfer-encoding: chunked\r\n", CHUNKED),
        post(b"transfer-encoding: chunked\r\n" + LENGTH, CHUNKED),
        post(LENGTH + b"content-length: 5\r\n", JSON),
        post(LENGTH + LENGTH, JSON),
        post(LENGTH.replace(b": ", b": +"), JSON),
        post(b"content-length: 0x10\r\n", JSON),
        post(b"content-length: -1\r\n", JSON),
        post(b"content-length: 10, 10\r\n", JSON),
        post(b"content-length: 99999999999999999999999999\r\n", JSON),
        post(b"content-length: \r\n", JSON),
        post(b"transfer-encoding: xchunked\r\n", CHUNKED),
        post(b"transfer-encoding: chunked, identity\r\n", CHUNKED),
        post(b"transfer-encoding: gzip\r\n", CHUNKED),
        post(b"transfer-encoding : chunked\r\n", CHUNKED),
        post(b"transfer-encoding: chunked\r\n", b"5;a=\n\r\n12345\r\n0\r\n\r\n"),
        post(b"transfer-encoding: chunked\r\n", b"-5\r\n12345\r\n0\r\n\r\n"),
        post(b"transfer-encoding: chunked\r\n", b"fffffffffffffffff\r\n12345\r\n0\r\n\r\n"),
        post(b"x-a: 1\r\n b: folded\r\n" + LENGTH, JSON),
        post(b"x-a: 1\n" + LENGTH, JSON),
        post(b"x-a\x00: 1\r\n" + LENGTH, JSON),
        post(b"x-a: 1\x00\r\n" + LENGTH, JSON),
        post(b"x a: 1\r\n" + LENGTH, JSON),
        post(b": 1\r\n" + LENGTH, JSON),
        b"POST /v1/chat/completions HTTP/3.7\r\nhost: localhost\r\n" + LENGTH + b"\r\n" + JSON,
        b"POST /v1/chat/completions\r\nhost: localhost\r\n" + LENGTH + b"\r\n" + JSON,
        b"NONSENSE /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_a_message_of_ambiguous_length_or_form_is_refused_and_nothing_after_it_is_read(message: bytes) -> None:
    async with served() as gateway, connection(gateway.server.port) as wire:
        await wire.send(message + SMUGGLED)
        said = await wire.ends()
        assert said.startswith(b"HTTP/1.1 4") and said.count(b"HTTP/1.1 ") == 1, said
        assert b"connection: close" in said and b'{"error":{"message":' in said
        await gateway.idle()
        assert gateway.mock.stats.requests == 0


async def test_without_a_host_and_with_two_a_request_is_refused() -> None:
    async with served() as gateway:
        for host in (b"", b"host: localhost\r\nhost: evil.test\r\n"):
            async with connection(gateway.server.port) as wire:
                await wire.send(b"GET /v1/models HTTP/1.1\r\n" + host + b"\r\n")
                assert (await wire.head()).status == 400


@pytest.mark.fault("86")
async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with served() as gateway, connection(gateway.server.port) as wire:
        for number in range(3):
            wire.writer.write(head_and_body("POST", CHAT, BODY, x_request_id=f"r{number}"))
        for number in range(3):
            assert (await wire.answer()).headers["x-request-id"] == f"r{number}"


async def test_a_chunked_body_and_one_that_waits_to_be_wanted_are_read() -> None:
    async with served() as gateway:
        async with connection(gateway.server.port) as wire:
            await wire.send(post(b"transfer-encoding: chunked\r\n", CHUNKED))
            assert (await wire.answer()).status == 200
            for byte in post(b"transfer-encoding: chunked\r\n", CHUNKED):
                await wire.send(bytes([byte]))
            assert (await wire.answer()).status == 200
            await wire.send(post(LENGTH + b"expect: 100-continue\r\n", b""))
            assert (await wire.head()).status == 100
            await wire.send(JSON)
            assert (await wire.answer()).status == 200
        async with connection(gateway.server.port) as wire:
            await wire.send(post(LENGTH, JSON, b"POST /v1/chat/completions HTTP/1.0\r\n"))
            assert (await wire.answer()).headers["connection"] == "close"
            assert await wire.ends() == b""


@pytest.mark.fault("86")
async def test_an_absolute_address_is_taken_for_its_path_alone() -> None:
    async with served() as gateway, connection(gateway.server.port) as wire:
        await wire.send(post(LENGTH, JSON, b"POST http://169.254.169.254/v1/chat/completions HTTP/1.1\r\n"))
        assert (await wire.answer()).status == 200
        assert gateway.mock.stats.requests == 1


@pytest.mark.fault("85")
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_bound_is_refused_before_it_is_read(chunked: bool) -> None:
    async with served(body_bytes=100_000) as gateway, connection(gateway.server.port) as wire:
        if chunked:
            await wire.send(post(b"transfer-encoding: chunked\r\n", b"fffffff\r\n" + b"x" * 200_000))
        else:
            await wire.send(post(b"content-length: 100001\r\nexpect: 100-continue\r\n", b""))
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert answer.json()["error"]["code"] == "request_too_large"
        assert gateway.mock.stats.requests == 0


@pytest.mark.fault("85")
async def test_a_body_that_came_whole_is_refused_beyond_the_bound_too() -> None:
    async with served(body_bytes=1024) as gateway, connection(gateway.server.port) as wire:
        await wire.send(post(b"transfer-encoding: chunked\r\n", b"401\r\n" + b" " * 1025 + b"\r\n0\r\n\r\n"))
        answer = await wire.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert gateway.mock.stats.requests == 0


async def test_a_compressed_body_is_refused() -> None:
    async with served() as gateway, connection(gateway.server.port) as wire:
        answer = await wire.ask("POST", CHAT, gzip.compress(JSON), content_encoding="gzip")
        assert answer.status == 415


@pytest.mark.fault("85")
async def test_a_head_beyond_the_bound_is_refused() -> None:
    async with served(header_bytes=2000) as gateway:
        for head in (
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-a: " + b"a" * 3000,
            b"GET /" + b"a" * 3000,
            b"GET /v1/models HTTP/1.1\r\n" + b"".join(b"x%d: 1\r\n" % number for number in range(500)),
        ):
            async with connection(gateway.server.port) as wire:
                await wire.send(head)
                answer = await wire.answer()
                assert (answer.status, answer.json()["error"]["code"]) == (431, "head_too_large")
                assert await wire.ends() == b""


@pytest.mark.fault("85")
@pytest.mark.parametrize(
    "start", [b"", b"POST /v1/chat/comp", b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\nGET /"]
)
async def test_a_head_that_does_not_come_is_not_waited_for(start: bytes) -> None:
    async with served(header_seconds=0.2) as gateway, connection(gateway.server.port) as wire:
        await wire.send(start)
        said = await wire.ends()
        assert b"HTTP/1.1 408 Request Timeout" in said
        assert not gateway.server._uvicorn.server_state.connections


async def test_a_head_in_good_time_leaves_the_answer_all_the_time_it_needs() -> None:
    async with served(header_seconds=0.1) as gateway, connection(gateway.server.port) as wire:
        gateway.mock.when(lambda body: True, "slow_body:0.001")
        for _ in range(2):
            assert (await wire.ask("POST", CHAT, BODY)).status == 200


@pytest.mark.fault("85")
async def test_a_body_that_stops_coming_is_not_waited_for() -> None:
    async with served(body_seconds=0.1) as gateway, connection(gateway.server.port) as wire:
        await wire.send(post(LENGTH, JSON[:10]))
        answer = await wire.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (408, "body_timeout")


async def test_a_connection_that_is_idle_is_closed() -> None:
    async with served(idle_seconds=1) as gateway, connection(gateway.server.port) as wire:
        assert (await wire.ask("GET", "/health")).status == 200
        assert await wire.ends() == b""


@pytest.mark.fault("85")
async def test_json_that_is_deep_or_absurd_is_refused_at_once() -> None:
    async with served() as gateway:
        for body in (
            b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"model":"m","max_tokens":' + b"9" * 100_000 + b"}",
            b'{"model":["m"]}',
            b'{"model":"m","max_tokens":1e999}',
            b"[]", b"null", b"\xff", b'{"model":"\xff"}', b"",
        ):  # fmt: skip
            answer = await gateway.ask(body=body)
            assert answer.status == 400 and "error" in answer.json(), body[:50]
        assert gateway.mock.stats.requests == 0


async def test_an_upgrade_is_not_taken_and_hides_nothing() -> None:
    async with served() as gateway, connection(gateway.server.port) as wire:
        upgrade = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n"
        await wire.send(b"GET /v1/realtime HTTP/1.1\r\nhost: localhost\r\n" + upgrade + b"\r\n" + SMUGGLED)
        assert (await wire.answer()).status == 404
        assert await wire.ends() == b""


GET = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.fault("85")
async def test_of_requests_that_come_at_once_only_some_are_taken_in_and_all_are_answered() -> None:
    """Each would hold kilobytes, whether it comes with others in one read or not."""
    bad = post(b"transfer-encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n")
    async with served(MockConfig(latency=0.3)) as gateway, connection(gateway.server.port) as wire:
        wire.writer.write(head_and_body("POST", CHAT, BODY) + (GET * 3 + bad) * 1000)
        while not gateway.mock.stats.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        (inbound,) = gateway.server._uvicorn.server_state.connections
        most = 0
        for expected in [200, *[200, 200, 200, 400] * 1000]:
            most = max(most, len(inbound._ahead))
            assert (await wire.answer()).status == expected
        assert MOST_AHEAD <= most < 4 * MOST_AHEAD


async def test_a_head_that_we_do_not_read_on_ourselves_is_not_late() -> None:
    async with served(MockConfig(latency=0.6), header_seconds=0.2) as gateway, connection(gateway.server.port) as wire:
        await wire.send(head_and_body("POST", CHAT, BODY))
        while not gateway.mock.stats.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await wire.send(GET * MOST_AHEAD + GET[:8])
        for _ in range(1 + MOST_AHEAD):
            assert (await wire.answer()).status == 200
        await wire.send(GET[8:] + GET[:8])
        assert (await wire.answer()).status == 200
        assert (await wire.answer()).status == 408
