"""gateway.passthrough: a provider's whole API under its name, with the server's key; never anywhere else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, strategies as st

from fastllm.build import EngineOptions
from fastllm.errors import BudgetExceededError, ConfigError, RateLimitError
from fastllm.gateway.beside import passed_through
from fastllm.gateway.config import GatewayOptions
from fastllm.gateway.faces import Refusal
from fastllm.gateway.passthrough import sent_headers, told_headers, url_below
from kits.beside import ALICE, CAROL, Open, opened, until, wire
from kits.upstream import OK, Said, Seen, Upstream, upstream

SECRET = "sk-of-the-server-0123456789"


class Gate:
    def __init__(self, gate: Open, provider: Upstream) -> None:
        self.gate = gate
        self.provider = provider
        self.port = gate.server.port

    async def ask(
        self, target: str, method: str = "GET", body: Any = b"", **more: Any
    ) -> tuple[int, dict[str, str], bytes]:
        return await wire(self.port, method, target, body, **more)


@pytest.fixture
def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open a gateway that passes /openai through to a provider of plain bytes."""

    @asynccontextmanager
    async def made(answer: Callable[[Seen], Said] = lambda seen: OK, **more: Any) -> AsyncIterator[Gate]:
        async with upstream(answer) as provider:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.origin}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", SECRET)
            async with opened(tmp_path, engine={"api_key": None}, passthrough=["openai"], **more) as gate:
                yield Gate(gate, provider)

    return made


async def test_path_query_and_body_arrive_as_they_are_and_the_key_is_the_servers(through: Any) -> None:
    async with through() as gate:
        body = b'{"model" :"x", "n": 1.50}'
        headers = {"content-type": "application/json; charset=x", "user-agent": "mine/1", "accept": "text/x"}
        status, told, said = await gate.ask("/openai/v1/images/generations?a=%20b&c", "POST", body, headers=headers)
        assert (status, said) == (200, b'{"ok":true}')
        (seen,) = gate.provider.seen
        assert (seen.line, seen.body) == ("POST /v1/images/generations?a=%20b&c HTTP/1.1", body)
        assert seen.headers["authorization"] == f"Bearer {SECRET}"
        assert {name: seen.headers[name] for name in headers} == headers
        assert seen.headers["host"] == f"127.0.0.1:{gate.provider.port}"
        assert ALICE not in json.dumps(seen.headers)
        assert told["x-fastllm-provider"] == "openai" and told["content-type"] == "application/json"
        assert told["x-content-type-options"] == "nosniff" and "sandbox" in told["content-security-policy"]
        await gate.ask("/openai/vector_stores", "DELETE")
        assert gate.provider.seen[-1].line == "DELETE /v1/vector_stores HTTP/1.1"
        assert "content-type" not in gate.provider.seen[-1].headers


async def test_the_sdk_reaches_what_the_gateway_itself_does_not_serve(through: Any) -> None:
    def answer(seen: Seen) -> bytes:
        body = b'{"id":"vs_1","object":"vector_store","created_at":1,"name":"n","status":"completed"}'
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    async with through(answer) as gate:
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gate.port}/openai/v1", api_key=ALICE, max_retries=0)
        async with client:
            assert (await client.vector_stores.create(name="n")).id == "vs_1"
            await client.containers.files.create("c_1", file=("a.txt", b"abc"))
            seen = gate.provider.seen[-1]
            assert seen.headers["content-type"].startswith("multipart/form-data; boundary=") and b"abc" in seen.body


@pytest.mark.fault("89")
async def test_no_header_of_a_connection_of_a_key_or_of_a_place_goes_either_way(through: Any) -> None:
    def answer(seen: Seen) -> bytes:
        return (
            b"HTTP/1.1 200 OK\r\nconnection: keep-alive, x-mine\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\n"
            b"set-cookie: a=b\r\nopenai-organization: org-secret\r\nx-ratelimit-remaining-requests: 3\r\n"
            b"cf-ray: 1\r\nserver: x\r\naccess-control-allow-origin: *\r\nx-fastllm-attempts: 7\r\n"
            b"x-request-id: theirs\r\nproxy-authenticate: x\r\ncontent-security-policy: script-src *\r\n"
            b"openai-version: 2020\r\ncontent-length: 2\r\n\r\n{}"
        )

    headers = {
        "cookie": "a=b", "x-api-key": "k", "api-key": "k", "x_api_key": "k", "x-goog-api-key": "k",
        "proxy-authorization": "k", "forwarded": "for=x", "x-forwarded-for": "1.1.1.1", "x-forwarded-host": "evil",
        "x-original-url": "/admin", "x-http-method-override": "DELETE", "te": "trailers", "upgrade": "h2c",
        "x-secret-thing": "1", "x-amz-security-token": "k", "openai-organization": "org", "origin": "http://evil.test",
        "referer": "http://evil.test", "sec-fetch-mode": "cors", "via": "1.1 x", "x-fastllm-request-id": "x",
        "accept-encoding": "br", "expect": "", "x-hop": "1", "x-stays": "1", "Authorization_": "k",
    }  # fmt: skip
    async with through(answer) as gate:
        _, told, _ = await gate.ask("/openai/x", headers={**headers, "keep-alive": "1"})
        seen = gate.provider.seen[-1].headers
        assert seen["x-stays"] == "1" and seen["authorization"] == f"Bearer {SECRET}"
        assert set(seen) <= {
            "x-stays", "x-hop", "authorization", "host", "accept", "user-agent", "accept-encoding", "content-length",
            "connection",
        }  # fmt: skip
        assert seen.get("accept-encoding") != "br"
        assert set(told) == {
            "date", "connection", "content-length", "openai-version", "x-fastllm-provider", "x-request-id",
            "x-fastllm-request-id", "x-content-type-options", "content-security-policy",
        }  # fmt: skip
        assert told["x-request-id"] != "theirs" and "script-src" not in told["content-security-policy"]


def test_what_the_clients_connection_header_names_stays_with_it() -> None:
    pairs = [(b"connection", b"keep-alive, X-Hop"), (b"x-hop", b"1"), (b"x-stays", b"1")]
    assert set(sent_headers(pairs, {}, has_body=False)) == {"x-stays"}
    assert (b"x-hop", b"1") not in told_headers(pairs, 200)


async def test_an_answer_streams_on_event_by_event(through: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    events = [b"data: %d\n\n" % number for number in range(3)]
    pieces = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    async with through(lambda seen: [head + pieces[0], pieces[1], pieces[2] + b"0\r\n\r\n"]) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(f"GET /openai/x HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ALICE}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            for event in events:
                await reader.readuntil(event)  # and the next one was not sent yet
                gate.provider.let()
            assert await reader.readuntil(b"0\r\n\r\n")
        writer.transport.abort()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_ends_it_at_the_provider(through: Any, begun: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
    async with through(lambda seen: [head, b""] if begun else [b""]) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(f"GET /openai/x HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ALICE}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            if begun:
                await reader.readuntil(b"abc")
                gate.provider.let()
            await until(lambda: gate.provider.open == 1)
        writer.transport.abort()
        await until(lambda: gate.provider.open == 0 and not gate.gate.gateway.under_way)
        assert gate.gate.records[-1].status == 499


async def test_an_answer_that_breaks_off_is_seen_to_break_off(through: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
    async with through(lambda seen: [head, b"nonsense\r\n"]) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(f"GET /openai/x HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ALICE}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"abc\r\n")).startswith(b"HTTP/1.1 200")
            gate.provider.let()
            assert await reader.read(-1) == b""
        writer.transport.abort()


@pytest.mark.fault("88")
async def test_a_redirect_is_told_and_never_followed(through: Any) -> None:
    async with upstream() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            answer = f"HTTP/1.1 {status} Gone\r\nlocation: {elsewhere.origin}/x\r\ncontent-length: 0\r\n\r\n".encode()
            async with through(lambda seen, answer=answer: answer) as gate:
                found, told, _ = await gate.ask("/openai/x")
                assert (found, told["location"]) == (status, f"{elsewhere.origin}/x")
        assert not elsewhere.seen and not elsewhere.connections


HOSTILE = [
    "/openai/../x", "/openai/..", "/openai/a/../../x", "/openai/./x", "/openai/%2e%2e/x", "/openai/%2E./x",
    "/openai/.%2e/x", "/openai/%252e%252e/x", "/openai/a%2f..%2fb", "/openai/a%2Fb", "/openai//x",
    "/openai//evil.test/x",
    "/openai/a//b", "/openai/a%5c..%5cb", "/openai/a\\b", "/openai/..;/x", "/openai/..;a=b/x", "/openai/%2e%2e;/x",
    "/openai/%c0%ae%c0%ae/x", "/openai/%c0%af", "/openai/@evil.test/x", "/openai@evil.test/x",
    "/openai:80@evil.test/x",
    "/openai/a%40b", "/openai/a%00", "/openai/a%0d%0aHost:%20evil.test", "/openai/a%3fb", "/openai/a%23b", "/openai/a%",
    "/openai/a%zz", "/openai/%2e%2e%20/x", "/openai%2f..%2fx", "/openai%2fx", "/%6fpenai/x", "/openai/é",
    "/openai/{a}", "/openai/a|b", "/openai/a`b", "/openai/[::1]/x", "/openai.evil.test/x", "/openaix",
]  # fmt: skip


@pytest.mark.fault("88")
@pytest.mark.parametrize("target", HOSTILE)
async def test_no_path_means_another_host_or_directory_to_anybody(through: Any, target: str) -> None:
    async with through() as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        line = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ALICE}\r\n\r\n"
        writer.write(line.encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n")
        writer.transport.abort()
        assert head.split()[1] in (b"400", b"404"), head
        assert not gate.provider.seen


@pytest.mark.fault("86", "88")
@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://evil.test/openai/x", "localhost"), ("http://evil.test:1/openai/x", "localhost"),
        ("http://a:b@evil.test/openai/x", "localhost"), ("/openai/x", "evil.test"), ("/openai/x", "169.254.169.254"),
        ("/openai/x?url=http://evil.test&host=evil.test&base_url=http://evil.test", "localhost"),
        ("/openai/x?a=b#/../../evil", "localhost"), ("/openai/x?@evil.test/", "localhost"),
    ],
)  # fmt: skip
async def test_whatever_a_request_says_it_goes_to_the_operators_address(through: Any, target: str, host: str) -> None:
    async with through() as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        more = (
            "x-forwarded-host: evil.test\r\nx-original-url: /evil\r\nx-host: evil.test\r\nforwarded: host=evil.test\r\n"
        )
        line = f"GET {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {ALICE}\r\n{more}\r\n"
        writer.write(line.encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n")
        writer.transport.abort()
        assert head.split()[1] in (b"200", b"400", b"404"), head
        for seen in gate.provider.seen:
            assert seen.target.startswith("/v1/x") and "#" not in seen.target
            assert seen.headers["host"] == f"127.0.0.1:{gate.provider.port}"
            assert not {"x-forwarded-host", "x-original-url", "forwarded"} & set(seen.headers)


@given(rest=st.binary(max_size=40), query=st.binary(max_size=20))
def test_any_bytes_give_a_url_below_the_address_or_a_refusal(rest: bytes, query: bytes) -> None:
    try:
        url = url_below("http://host.test:81/base/v1?api-version=1", b"/" + rest, query)
    except Refusal:
        return
    assert url.isascii() and url.isprintable() and "#" not in url and " " not in url
    path, _, asked = url.removeprefix("http://host.test:81").partition("?")
    assert path.startswith("/base/v1") and not {"..", "."} & set(path.split("/"))
    assert asked.split("&")[0] == "api-version=1"


def test_a_key_or_a_parameter_of_the_address_is_not_the_clients_to_say() -> None:
    url = url_below("http://h/v1?api-version=1", b"/x", b"key=a&api_key=b&%6bey=c&Api-Version=2&%61pi-version=3&d=4&")
    assert url == "http://h/v1/x?api-version=1&d=4"


@pytest.mark.parametrize("key", [CAROL, None, "sk-nobody-0123456789"])
async def test_only_keys_that_may_ask_for_every_model_get_through(through: Any, key: str | None) -> None:
    async with through() as gate:
        status, _, said = await gate.ask("/openai/x", key=key)
        assert status == (403 if key == CAROL else 401)
        assert json.loads(said)["error"]["code"]
        assert not gate.provider.seen


class Limits:
    """Admits three requests, none without a bound of its cost if there is a budget."""

    def __init__(self, *, budget: bool = False) -> None:
        self.left, self.out, self.settled, self.budget = 3, 0, 0, budget

    def admit(self, key: Any, tokens: float, cost_bound: float | None) -> Any:
        if self.budget and cost_bound is None:
            raise BudgetExceededError("no price", code="budget_exceeded", sent=False)
        if not self.left:
            raise RateLimitError("no more", status_code=429, retry_after=1.0, sent=False)
        assert tokens > 0
        self.left -= 1
        self.out += 1
        return self

    def settle(self, usage: Any, cost: Any) -> None:
        self.settled += 1
        self.out -= 1

    def release(self) -> None:
        """Only the first of the two calls counts, and here each one is settled."""

    def lines(self, key: Any = None) -> bytes:
        return b"x-ratelimit-limit-requests: 3\r\n"


async def test_requests_count_against_the_limits_of_their_key(through: Any) -> None:
    limits = Limits()
    async with through(admissions=limits) as gate:
        assert [(await gate.ask("/openai/x"))[0] for _ in range(4)] == [200, 200, 200, 429]
        status, told, _ = await gate.ask("/openai/x")
        assert (status, told["x-ratelimit-limit-requests"]) == (429, "3")
        assert len(gate.provider.seen) == 3 and (limits.settled, limits.out) == (3, 0)


async def test_a_key_with_a_budget_gets_nothing_whose_price_nobody_knows(through: Any) -> None:
    async with through(admissions=Limits(budget=True)) as gate:
        status, _, said = await gate.ask("/openai/x")
        assert (status, json.loads(said)["error"]["code"]) == (429, "budget_exceeded")
        assert not gate.provider.seen


async def test_a_key_that_the_provider_refuses_is_ours_and_is_not_told(through: Any) -> None:
    body = f'{{"error":{{"message":"Incorrect API key provided: {SECRET}"}}}}'.encode()
    said = b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with through(lambda seen: said) as gate:
        status, told, body = await gate.ask("/openai/x")
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_authentication")
        assert SECRET not in body.decode() and "www-authenticate" not in told


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PROPFIND"])
async def test_other_methods_are_refused(through: Any, method: str) -> None:
    async with through() as gate:
        status, told, _ = await gate.ask("/openai/x", method)
        assert status == 405 and "GET" in told["allow"] and not gate.provider.seen


async def test_a_body_that_is_too_large_or_compressed_is_refused(through: Any) -> None:
    async with through(body_bytes=1024) as gate:
        assert (await gate.ask("/openai/x", "POST", b"x" * 2000))[0] == 413
        assert (await gate.ask("/openai/x", "POST", b"x", headers={"content-encoding": "gzip"}))[0] == 415
        assert not gate.provider.seen


async def test_a_provider_that_is_not_there_gives_an_error_without_the_key(through: Any) -> None:
    async with through() as gate:
        gate.provider.answer = lambda seen: b"nonsense\r\n\r\n"
        status, _, said = await gate.ask("/openai/x")
        assert status == 502 and SECRET not in said.decode()


async def test_it_is_closed_unless_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    async with upstream() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.origin}/v1")
        async with opened(tmp_path) as gate:
            assert (await wire(gate.server.port, "GET", "/openai/x"))[0] == 404
        assert not provider.seen


@pytest.mark.parametrize("name", ["nobody", "local", "files"])
def test_a_name_that_is_none_is_said_at_the_start(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        passed_through(GatewayOptions(passthrough=[name]), EngineOptions(), {})
