"""gateway: no request hides another one: a corpus of what front ends and back ends are known to read differently, over
raw sockets, with a provider that says what reaches it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastllm.gateway.catalog import Catalog
from kits.gateway import KEY, Served, connection, served

AUTH = f"authorization: Bearer {KEY}\r\n".encode()
OPEN = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n" + AUTH


def body(model: str) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()


GOOD = body("m")
HIDDEN = OPEN + b"content-length: %d\r\n\r\n%b" % (len(body("smuggled")), body("smuggled"))
LAST = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
LENGTH = b"content-length: %d\r\n" % len(GOOD)
CHUNKED = b"transfer-encoding: chunked\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def post(headers: bytes, data: bytes) -> bytes:
    return OPEN + headers + b"\r\n" + data


def hiding(headers: bytes, data: bytes = b"") -> bytes:
    """A request whose body, by the length that it states, holds the hidden one."""
    return OPEN + headers + b"content-length: %d\r\n\r\n" % len(data + HIDDEN) + data + HIDDEN


# Each is refused with one answer, and the connection is closed: what comes behind it is read by nobody.
REFUSED: dict[str, bytes] = {
    "CL.TE": post(b"content-length: %d\r\n" % (5 + len(HIDDEN)) + CHUNKED, b"0\r\n\r\n" + HIDDEN),
    "TE.CL": post(CHUNKED + b"content-length: 4\r\n", chunk(HIDDEN) + b"0\r\n\r\n"),
    "CL.0 and TE": post(b"content-length: 0\r\n" + CHUNKED, chunk(GOOD) + b"0\r\n\r\n" + HIDDEN),
    **{
        f"TE {value!r}": post(b"transfer-encoding:" + value + b"\r\n", chunk(GOOD) + b"0\r\n\r\n" + HIDDEN)
        for value in (
            b" xchunked",
            b" chunked, chunked",
            b" identity, chunked",
            b" chunked, identity",
            b" gzip, chunked",
            b" chunked;q=1",
            b' "chunked"',
            b" chunke",
            b"\x0bchunked",
            b" chunked\x0b",
            b" chu\x00nked",
            b" ",
            b"",
            b" chunked\r\ntransfer-encoding: identity",
            b" identity\r\ntransfer-encoding: chunked",
            b" chunked\r\ntransfer-encoding: x",
            b" ch\xc3\xbcnked",
            b" chunked,",
            b" ,chunked",
            b" deflate",
        )
    },
    "space before the colon": post(b"transfer-encoding : chunked\r\n" + LENGTH, GOOD + HIDDEN),
    "tab before the colon": post(b"transfer-encoding\t: chunked\r\n" + LENGTH, GOOD + HIDDEN),
    "a name in two lines": post(b"transfer-\r\n encoding: chunked\r\n" + LENGTH, GOOD + HIDDEN),
    "obs-fold before TE": post(b"x: a\r\n transfer-encoding: chunked\r\n" + LENGTH, GOOD + HIDDEN),
    "obs-fold in TE": post(b"transfer-encoding:\r\n chunked\r\n" + LENGTH, GOOD + HIDDEN),
    "obs-fold with a tab": post(b"x: a\r\n\tb: c\r\n" + LENGTH, GOOD + HIDDEN),
    "obs-fold of the first header": (
        b"POST /v1/chat/completions HTTP/1.1\r\n x: y\r\nhost: localhost\r\n" + AUTH + LENGTH + b"\r\n" + GOOD + HIDDEN
    ),
    "bare LF after a header": post(b"x: a\n" + CHUNKED, chunk(GOOD) + b"0\r\n\r\n" + HIDDEN),
    "bare CR in a header": post(b"x: a\rtransfer-encoding: chunked\r\n" + LENGTH, GOOD + HIDDEN),
    "CR CR LF": post(b"x: a\r\r\n" + LENGTH, GOOD + HIDDEN),
    "bare LF at the head's end": OPEN + LENGTH + b"\n" + GOOD + HIDDEN,
    "NUL in a name": post(b"x\x00: a\r\n" + LENGTH, GOOD + HIDDEN),
    "NUL in a value": post(b"x: a\x00b\r\n" + LENGTH, GOOD + HIDDEN),
    "no colon": post(b"nonsense\r\n" + LENGTH, GOOD + HIDDEN),
    "no name": post(b": a\r\n" + LENGTH, GOOD + HIDDEN),
    "a name with a space": post(b"content length: 5\r\n" + LENGTH, GOOD + HIDDEN),
    "a name with a bracket": post(b"(x): 5\r\n" + LENGTH, GOOD + HIDDEN),
    "two lengths": post(LENGTH + b"content-length: 5\r\n", GOOD + HIDDEN),
    "twice the same length": post(LENGTH + LENGTH, GOOD + HIDDEN),
    **{
        f"CL {value!r}": post(b"content-length:" + value + b"\r\n", GOOD + HIDDEN)
        for value in (
            b" +5",
            b" -5",
            b" 0x5",
            b" 5 5",
            b" 5, 5",
            b" 5,6",
            b" 5;",
            b" 1e1",
            b" 5.0",
            b"",
            b" ",
            b" five",
            b" 5\x00",
            b" \xef\xbc\x95",
            b" 18446744073709551621",
            b" 99999999999999999999999",
            b" '5'",
            b" 5\x0b",
        )
    },
    **{
        f"chunk {name}": post(CHUNKED, data + HIDDEN)
        for name, data in {
            "size with a minus": b"-5\r\n12345\r\n0\r\n\r\n",
            "size with 0x": b"0x5\r\n12345\r\n0\r\n\r\n",
            "size that overflows": b"10000000000000005\r\n12345\r\n0\r\n\r\n",
            "size of 16 f": b"ffffffffffffffff\r\n12345\r\n0\r\n\r\n",
            "size without digits": b"\r\n12345\r\n0\r\n\r\n",
            "size with a space first": b" 5\r\n12345\r\n0\r\n\r\n",
            "size and bare LF": b"5\n12345\r\n0\r\n\r\n",
            "size and bare CR": b"5\r12345\r\n0\r\n\r\n",
            "data too long": b"5\r\n123456\r\n0\r\n\r\n",
            "data ended by LF": b"5\r\n12345\n0\r\n\r\n",
            "extension with LF": b"5;a=\nb\r\n12345\r\n0\r\n\r\n",
            "extension with CR": b"5;a=\rb\r\n12345\r\n0\r\n\r\n",
            "extension with NUL": b"5;a\x00\r\n12345\r\n0\r\n\r\n",
            "extension quoted over a line": b'5;a="\r\n12345\r\n0\r\n\r\n',
            "size and comma": b"5,5\r\n12345\r\n0\r\n\r\n",
            "trailer without a colon": b"5\r\n12345\r\n0\r\nnonsense\r\n\r\n",
            "trailer that is folded": b"5\r\n12345\r\n0\r\na: b\r\n c\r\n\r\n",
            "trailer with bare LF": b"5\r\n12345\r\n0\r\na: b\n\r\n",
        }.items()
    },
    **{
        f"line {line!r}": line + b"\r\nhost: localhost\r\n" + AUTH + LENGTH + b"\r\n" + GOOD + HIDDEN
        for line in (
            b"POST /v1/chat/completions",
            b"POST /v1/chat/completions HTTP/1.10",
            b"POST /v1/chat/completions HTTP/2.0",
            b"POST /v1/chat/completions HTTP/0.9",
            b"POST /v1/chat/completions http/1.1",
            b"POST  HTTP/1.1",
            b"POST /v1/chat/completions HTTP/1.1 x",
            b"POST /v1/chat\x00/completions HTTP/1.1",
            b"POST /v1/chat completions HTTP/1.1",
            b"POST /v1/chat/completions\rHTTP/1.1",
            b"PO ST / HTTP/1.1",
            b"post /v1/chat/completions HTTP/1.1",
            b"P\x00ST /v1/chat/completions HTTP/1.1",
            b"POST /v1/chat/completions HTTP/1.1\rx: y",
            b"POST /v1/chat/completions XTTP/1.1",
            b"NONSENSE / HTTP/1.1",
            b" POST /v1/chat/completions HTTP/1.1",
            b"CONNECT 169.254.169.254:80 HTTP/1.1",
            b"\x16\x03\x01\x02",
        )
    },
    **{
        f"host {host!r}": b"POST /v1/chat/completions HTTP/1.1\r\n" + host + AUTH + LENGTH + b"\r\n" + GOOD + HIDDEN
        for host in (b"", b"host: localhost\r\nhost: localhost\r\n", b"host: localhost\r\nHost: evil.test\r\n")
    },
}

# Each is one request, to whoever reads it by the rules: the hidden one is a part of its body.
ONE: dict[str, bytes] = {
    "a body that looks like a request": hiding(b""),
    "a name like transfer-encoding": hiding(b"transfer_encoding: chunked\r\n"),
    "a name like content-length": hiding(b"content_length: 0\r\nx-content-length: 0\r\n"),
    "expect, and the body at once": hiding(b"expect: 100-continue\r\n"),
    "an odd expectation": hiding(b"expect: 200-ok\r\n"),
    "a length with zeros before it": post(b"content-length: 00%d\r\n" % len(HIDDEN), HIDDEN),
    "chunks in capital letters": post(b"Transfer-Encoding: CHUNKED\r\n", chunk(HIDDEN) + b"0\r\n\r\n"),
    "tab before chunked": post(b"transfer-encoding:\tchunked\t\r\n", chunk(HIDDEN) + b"0\r\n\r\n"),
    "chunks with extensions": post(CHUNKED, b'%x;a=b;c="d"\r\n%b\r\n0;e\r\n\r\n' % (len(HIDDEN), HIDDEN)),
    "zeros before a size": post(CHUNKED, b"0000%x\r\n%b\r\n0000\r\n\r\n" % (len(HIDDEN), HIDDEN)),
    "trailers that claim a length": post(CHUNKED, chunk(HIDDEN) + b"0\r\ncontent-length: 5\r\nhost: evil\r\n\r\n"),
    "GET with a body": hiding(b"").replace(b"POST /v1/chat/completions", b"GET /v1/models", 1),
    "HEAD with a body": hiding(b"").replace(b"POST /v1/chat/completions", b"HEAD /v1/models", 1),
    "OPTIONS with a body": hiding(b"").replace(b"POST", b"OPTIONS", 1),
    "DELETE with a body": hiding(b"").replace(b"POST", b"DELETE", 1),
    "no such path": hiding(b"").replace(b"/v1/chat/completions", b"/nothing", 1),
    "no key": hiding(b"").replace(AUTH, b"", 1),
    "a wrong key": hiding(b"").replace(KEY.encode(), b"sk-wrong-0123456789", 1),
    "a body in gzip": hiding(b"content-encoding: gzip\r\n"),
    "no body where one is expected": hiding(b"").replace(b"/chat/completions", b"/files", 1),
    "HTTP/1.0": hiding(b"connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "HTTP/1.0 with chunks": post(CHUNKED, chunk(HIDDEN) + b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "an upgrade": hiding(b"connection: upgrade\r\nupgrade: websocket\r\n"),
    "an upgrade to HTTP/2": hiding(b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n"),
}  # fmt: skip


class Behind:
    def __init__(self, gate: Served) -> None:
        self.gate = gate
        self.models: list[Any] = []

    def note(self, asked: Any) -> bool:
        self.models.append(asked.get("model"))
        return False


@asynccontextmanager
async def behind(**more: Any) -> AsyncIterator[Behind]:
    """A gateway, and what reaches its provider."""
    async with served(
        key=KEY, header_seconds=1.0, body_seconds=1.0, catalog=Catalog(("m", "smuggled")), **more
    ) as gate:
        made = Behind(gate)
        gate.mock.when(made.note, "500")
        yield made


@pytest.mark.fault("86")
@pytest.mark.parametrize("name", REFUSED)
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(name: str) -> None:
    async with behind() as found, connection(found.gate.server.port) as wire:
        await wire.send(REFUSED[name] + HIDDEN)
        said = await wire.ends()
        assert said.count(b"HTTP/1.1 ") <= 1 and (not said or said.startswith(b"HTTP/1.1 4")), said
        await found.gate.idle()
        assert not found.models


@pytest.mark.fault("86")
@pytest.mark.parametrize("name", ONE)
async def test_a_body_is_a_body_however_much_it_looks_like_a_request(name: str) -> None:
    async with behind() as found, connection(found.gate.server.port) as wire:
        await wire.send(ONE[name] + LAST)
        said = (await wire.ends()).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"", 1)
        # One answer for it, and one for the last request, unless the connection is closed before that.
        healthy = said.endswith(b'{"status":"ok"}')
        assert said.count(b"HTTP/1.1 ") == 1 + healthy, said
        await found.gate.idle()
        assert not found.models


@pytest.mark.fault("86")
@pytest.mark.parametrize("cut", [1, 7, 50, 200])
@pytest.mark.parametrize("name", ["CL.TE", "TE.CL", "two lengths", "bare LF after a header", "chunk data too long"])
async def test_no_split_of_the_bytes_changes_that(name: str, cut: int) -> None:
    message = REFUSED[name] + HIDDEN
    async with behind() as found, connection(found.gate.server.port) as wire:
        for start in range(0, len(message), cut):
            wire.writer.write(message[start : start + cut])
            await asyncio.sleep(0)
        try:
            said = await wire.ends()
        except ConnectionResetError:  # the connection was closed while there was more to read
            said = b""
        assert said.count(b"HTTP/1.1 ") <= 1 and (not said or said.startswith(b"HTTP/1.1 4"))
        await found.gate.idle()
        assert not found.models


@pytest.mark.fault("86")
async def test_requests_in_a_row_are_each_judged_by_their_own_key() -> None:
    keyed = OPEN + LENGTH + b"\r\n" + GOOD
    bare = HIDDEN.replace(AUTH, b"")
    async with behind() as found, connection(found.gate.server.port) as wire:
        await wire.send(keyed + bare + keyed)
        assert [(await wire.answer()).status for _ in range(3)] == [200, 401, 200]
        assert found.models == ["m", "m"]


@pytest.mark.fault("86")
@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/health/../v1/models", ""), ("/health/%2e%2e/v1/models", ""), ("/health%2f..%2fv1%2fmodels", ""),
        ("/health/live/../../v1/models", ""), ("/health;/../v1/models", ""), ("//health", ""),
        ("/v1/models/health", ""), ("/v1/models", "x-rewrite-url: /health\r\n"),
        ("/v1/models#/health", ""), ("/v1/models?/health", ""), ("/v1/models/../health/../models", ""),
        ("/%76%31/models", ""), ("/v1/models", "x-original-url: /health\r\n"),
        ("/v1/models", "x-http-method-override: OPTIONS\r\n"), ("http://localhost/v1/models", ""),
        ("http://a:b@localhost/v1/models", ""), ("/metrics", "x-forwarded-for: 127.0.0.1\r\n"),
    ],
)  # fmt: skip
async def test_no_spelling_of_a_path_opens_what_wants_a_key(path: str, more: str) -> None:
    async with behind() as found, connection(found.gate.server.port) as wire:
        await wire.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{more}\r\n".encode())
        answer = await wire.answer()
        assert answer.status in (400, 401, 404) and b'"object":"list"' not in answer.body
