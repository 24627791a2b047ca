from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import math
import socket
import ssl
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given, settings, strategies as st

from fastllm.errors import ConfigError
from fastllm.testing import FAULTS, MockConfig, MockServer, checksum_of, run, serve_in_thread, tokens_in
from fastllm.testing.limits import Ledger, SlidingWindow, go_duration
from fastllm.testing.tls import self_signed

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
BODY: dict[str, Any] = {"model": "mock-model", "messages": MESSAGES}


@pytest.fixture
async def server() -> AsyncIterator[MockServer]:
    async with MockServer() as server:
        yield server


@contextlib.asynccontextmanager
async def sdk(server: MockServer, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="sk", max_retries=0, **options) as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is in the server, which has no event for it
            await asyncio.sleep(0.001)


def post(body: dict[str, Any] | bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{lines}content-length: {len(data)}\r\n\r\n".encode() + data


async def talk(server: MockServer, data: bytes, *, within: float = 1.0) -> tuple[bytes, str]:
    """Send raw bytes; give all that comes back within `within` seconds and how it ended: eof, reset or open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    got, ended = b"", "open"
    try:
        async with asyncio.timeout(within):
            while piece := await reader.read(1 << 20):
                got += piece
            ended = "eof"
    except ConnectionResetError:
        ended = "reset"
    except TimeoutError:
        pass
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return got, ended


def split(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


async def ask(
    server: MockServer, body: dict[str, Any] | bytes = b"", path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, dict[str, str], Any]:
    raw, _ = await talk(server, post(body or BODY, path, connection="close", **headers))
    status, found, text = split(raw)
    return status, found, json.loads(text)


# --- answers -----------------------------------------------------------------------------------------------------


async def test_chat_answers_begin_with_the_checksum_of_their_request(server: MockServer) -> None:
    async with sdk(server) as client:
        answer = await client.chat.completions.create(**BODY, temperature=0.7)
    text = answer.choices[0].message.content
    assert text is not None
    assert text.startswith(checksum_of({**BODY, "temperature": 0.7}))
    assert text.endswith("What is the capital of France?")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == tokens_in(MESSAGES[0]["content"])
    assert answer.usage.completion_tokens == tokens_in(text)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_checksum_ignores_key_order_and_transport_fields_only() -> None:
    assert checksum_of({"a": 1, "b": {"c": 2, "d": 3}}) == checksum_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert checksum_of({"a": 1, "stream": True, "stream_options": {}, "mock": {}}) == checksum_of({"a": 1})
    assert checksum_of({"a": 1}) != checksum_of({"a": 2})


async def test_streamed_text_and_usage_equal_the_whole_answer(server: MockServer) -> None:
    async with sdk(server) as client:
        whole = await client.chat.completions.create(**BODY, n=2)
        texts = ["", ""]
        reasons: list[Any] = [None, None]
        usage = None
        async for chunk in await client.chat.completions.create(
            **BODY, n=2, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert reasons == ["stop", "stop"]
    assert usage == whole.usage


async def test_max_tokens_cuts_and_says_so(server: MockServer) -> None:
    async with sdk(server) as client:
        for limit in ({"max_tokens": 9}, {"max_completion_tokens": 9}):
            answer = await client.chat.completions.create(**BODY, **limit)
            assert answer.choices[0].finish_reason == "length"
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 9
            assert len(answer.choices[0].message.content or "") == 36


async def test_equal_requests_get_equal_bytes_unless_vary_is_on() -> None:
    async with MockServer(MockConfig(vary=True)) as varied, MockServer() as plain:
        first, second = await ask(plain), await ask(plain)
        assert first[2] == second[2]
        one, two = await ask(varied), await ask(varied)
        assert one[2]["id"] != two[2]["id"]
        assert one[2]["choices"][0]["message"]["content"] != two[2]["choices"][0]["message"]["content"]
        assert one[2]["choices"][0]["message"]["content"].startswith(checksum_of(BODY))


@pytest.mark.parametrize("size", [1, 10, 100, 5000])
async def test_answer_bytes_is_exact_whatever_the_alphabet(size: int) -> None:
    async with MockServer(MockConfig(answer="héllo wörld ✓", answer_bytes=size)) as server:
        _, _, body = await ask(server)
    assert len(body["choices"][0]["message"]["content"].encode()) == size


async def test_the_seed_changes_the_words_and_not_the_checksum() -> None:
    texts = []
    for seed in (1, 1, 2):
        async with MockServer(MockConfig(seed=seed)) as server:
            texts.append((await ask(server))[2]["choices"][0]["message"]["content"])
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][:32] == texts[2][:32]


async def test_old_completions_answer_several_prompts_whole_and_streamed(server: MockServer) -> None:
    async with sdk(server) as client:
        whole = await client.completions.create(model="m", prompt=["one", "two"])
        stream = await client.completions.create(model="m", prompt=["one", "two"], stream=True)
        texts = ["", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert [choice.text for choice in whole.choices] == texts
    assert texts[0].endswith("one") and texts[1].endswith("two")


async def test_responses_are_served_whole_and_as_typed_events(server: MockServer) -> None:
    async with sdk(server) as client:
        whole = await client.responses.create(model="m", input="Hello there")
        assert whole.output_text.endswith("Hello there")
        async with client.responses.stream(model="m", input="Hello there") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        cut = await client.responses.create(model="m", input="Hello there", max_output_tokens=4)
    assert final.output_text == whole.output_text
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert cut.status == "incomplete"


async def test_embeddings_are_unit_vectors_in_both_encodings(server: MockServer) -> None:
    async with sdk(server) as client:
        packed = await client.embeddings.create(model="e", input=["a", "b"])  # the SDK asks for base64
        floats = await client.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
        short = await client.embeddings.create(model="e", input=[[1, 2, 3]], dimensions=7)
    assert [d.embedding for d in packed.data] == [d.embedding for d in floats.data]
    assert packed.data[0].embedding != packed.data[1].embedding
    assert math.isclose(math.hypot(*packed.data[0].embedding), 1, rel_tol=1e-5)
    assert len(short.data[0].embedding) == 7 and short.usage.prompt_tokens == 3
    _, _, raw = await ask(server, {"model": "e", "input": "a", "encoding_format": "base64"}, "/embeddings")
    assert list(struct.unpack("<256f", base64.b64decode(raw["data"][0]["embedding"]))) == packed.data[0].embedding


async def test_models_and_moderations(server: MockServer) -> None:
    async with sdk(server) as client:
        assert [model.id async for model in client.models.list()] == list(server.config.models)
        assert (await client.models.retrieve("mock-model")).id == "mock-model"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")
        judged = await client.moderations.create(input=["peace", "violence"])
    assert [result.flagged for result in judged.results] == [False, True]


def test_the_sync_sdk_is_served_from_a_thread() -> None:
    with serve_in_thread() as server:
        with openai.OpenAI(base_url=server.base_url, api_key="sk", max_retries=0) as client:
            answer = client.chat.completions.create(**BODY)
            with client.chat.completions.create(**BODY, stream=True) as stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == answer.choices[0].message.content
        assert server.stats.answered == 2
        server.script(["500"])
        server.reset()
    server.close()


# --- wrong requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, None),
        ("/v1/chat/completions", b"[]", 400, None),
        ("/v1/chat/completions", {"messages": MESSAGES}, 400, None),
        ("/v1/chat/completions", {"model": "m"}, 400, None),
        ("/v1/chat/completions", {**BODY, "max_tokens": 0}, 400, "invalid_value"),
        ("/chat/completions", {**BODY, "n": "x"}, 400, "invalid_value"),
        ("/v1/embeddings", {"model": "m", "input": []}, 400, None),
        ("/v1/embeddings", {"model": "m", "input": [""]}, 400, None),
        ("/v1/embeddings", {"model": "m", "input": [True, "a"]}, 400, None),
        ("/v1/embeddings", {"model": "m", "input": [1, "a"]}, 400, None),
        ("/v1/embeddings", {"model": "m", "input": [[1], ["a"]]}, 400, None),
        ("/v1/embeddings", {"model": "m", "input": [1, -1]}, 400, None),
        ("/v1/completions", {"model": "m", "prompt": []}, 400, None),
        ("/v1/responses", {"model": "m"}, 400, "missing_required_parameter"),
        ("/v1/nothing", BODY, 404, "unknown_url"),
        ("/v1/models", BODY, 405, "method_not_supported"),
    ],
)
async def test_wrong_requests_get_openais_error_body(
    server: MockServer, path: str, body: Any, status: int, code: str | None
) -> None:
    got, headers, answer = await ask(server, body, path)
    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == code
    assert headers["x-request-id"].startswith("req_") and "openai-processing-ms" in headers


async def test_key_and_model_are_checked_if_the_config_says_so() -> None:
    async with MockServer(MockConfig(api_key="sk", any_model=False)) as server, sdk(server) as client:
        await client.chat.completions.create(**BODY)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.chat.completions.create(model="other", messages=MESSAGES)
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
        assert server.stats.rejected == 1


async def test_what_is_not_http_or_too_large_is_refused_and_closed() -> None:
    async with MockServer(MockConfig(body_limit=1000)) as server:
        for data, status in (
            (b"hello\r\n\r\n", 400),
            (post(b"x" * 2000), 413),
            (b"GET / HTTP/1.1\r\na: " + b"b" * 1_200_000, 431),
        ):
            raw, ended = await talk(server, data)
            assert (split(raw)[0] if raw else status, ended) in ((status, "eof"), (status, "reset"))
        assert server.stats.in_flight == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency": -1.0},
        {"latency": math.nan},
        {"rpm": 0},
        {"error_rate": 1.5},
        {"errors": ("sideways",)},
        {"port": 70000},
        {"overload_status": 500},
        {"error_rate": 0.1, "errors": ()},
    ],
)
def test_a_wrong_config_is_refused_with_the_name_of_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"sideways" if "sideways" in str(wrong) else next(iter(wrong))):
        MockConfig(**wrong)


async def test_a_port_in_use_is_a_config_error(server: MockServer) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        await MockServer(MockConfig(port=server.port)).start()
    with pytest.raises(ConfigError, match="cannot listen"):
        serve_in_thread(MockConfig(port=server.port)).start()


# --- limits ------------------------------------------------------------------------------------------------------


def test_a_minute_slides_and_a_refusal_says_when() -> None:
    ledger = Ledger(rpm=2, tpm=None)
    assert ledger.judge(0.0, b"k", "m", 5).allowed
    verdict = ledger.judge(20.0, b"k", "m", 5)
    assert verdict.allowed
    assert "x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 1m0s\r\n" in verdict.headers
    refused = ledger.judge(30.0, b"k", "m", 5)
    assert not refused.allowed and "Limit 2, Used 2, Requested 1. Please try again in 30s." in refused.message
    assert "retry-after: 30\r\nretry-after-ms: 30000\r\n" in refused.headers
    assert ledger.judge(30.0, b"other", "m", 5).allowed
    assert ledger.judge(30.0, b"k", "other", 5).allowed
    assert not ledger.judge(59.9, b"k", "m", 5).allowed
    assert ledger.judge(60.0, b"k", "m", 5).allowed
    assert not ledger.judge(60.0, b"k", "m", 5).allowed


def test_tokens_are_limited_and_one_request_over_the_limit_never_passes() -> None:
    ledger = Ledger(rpm=None, tpm=100)
    assert ledger.judge(0.0, b"k", "m", 60).allowed
    refused = ledger.judge(0.0, b"k", "m", 41)
    assert refused.type == "tokens" and "Limit 100, Used 60, Requested 41" in refused.message
    never = ledger.judge(0.0, b"k", "m", 101)
    assert never.message.startswith("Request too large") and "Limit 100, Requested 101" in never.message
    assert "retry-after" not in never.headers
    assert ledger.judge(0.0, b"k", "m", 40).allowed


@settings(max_examples=150)
@given(
    steps=st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 60)), max_size=60),
    rpm=st.integers(1, 8),
    tpm=st.integers(60, 200),
)
def test_no_minute_ever_holds_more_than_the_limits(steps: list[tuple[int, int]], rpm: int, tpm: int) -> None:
    ledger, now, passed = Ledger(rpm=rpm, tpm=tpm), 0, []
    for wait, tokens in steps:
        now += wait  # tenths of a millisecond to three seconds
        if ledger.judge(now / 10_000, b"k", "m", tokens).allowed:
            passed.append((now, tokens))
    for start, _ in passed:
        inside = [tokens for at, tokens in passed if start <= at < start + 600_000]
        assert len(inside) <= rpm and sum(inside) <= tpm


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=40))
def test_the_wait_that_is_told_is_enough_and_not_too_long(bookings: list[tuple[int, int]]) -> None:
    window, now = SlidingWindow(), 0.0
    for wait, amount in bookings:
        now += wait
        window.add(now, amount)
    wait = window.wait(now, 1, max(1, window.used - 1))
    assert window.wait(now + wait - 0.5, 1, max(1, window.used - 1)) > 0
    assert window.wait(now + wait, 1, 1_000_000) == 0
    window.expire(now + wait)
    assert window.peak >= window.used


def test_a_window_is_bounded_in_memory() -> None:
    window = SlidingWindow()
    for i in range(100_000):
        window.add(i / 100_000, 1)
    assert window.used == 100_000 and len(window._times) <= 1001


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.012, "12ms"), (1.5, "1.5s"), (59.9999, "1m0s"), (360, "6m0s"), (3723.25, "1h2m3.25s")],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


async def test_the_server_judges_by_its_injected_clock() -> None:
    now = [1000.0]
    async with MockServer(MockConfig(rpm=2), now=lambda: now[0]) as server, sdk(server) as client:
        raw = await client.chat.completions.with_raw_response.create(**BODY)
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        await client.chat.completions.create(**BODY)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**BODY)
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers["retry-after"] == "60"
        now[0] += 60
        await client.chat.completions.create(**BODY)
        stats = server.stats
    assert (stats.requests, stats.answered, stats.refused_429, stats.most_requests_60s) == (4, 3, 1, 3)


async def test_tokens_are_charged_with_max_tokens_if_given_else_with_the_answer() -> None:
    async with MockServer(MockConfig(tpm=1000, answer="four" * 10), now=lambda: 0.0) as server:
        used = tokens_in(MESSAGES[0]["content"])
        _, headers, _ = await ask(server, {**BODY, "max_tokens": 500})
        assert headers["x-ratelimit-remaining-tokens"] == str(1000 - used - 500)
        _, headers, _ = await ask(server, BODY)
        assert headers["x-ratelimit-remaining-tokens"] == str(500 - 2 * used - 10)
        status, _, body = await ask(server, {**BODY, "max_tokens": 2000})
        assert status == 429 and body["error"]["message"].startswith("Request too large")


@pytest.mark.parametrize("status", [429, 503])
async def test_the_hidden_cap_refuses_what_is_too_much_at_once(status: int) -> None:
    config = MockConfig(max_concurrency=2, latency=0.1, overload_status=status)
    async with MockServer(config) as server:
        got = await asyncio.gather(*[ask(server) for _ in range(4)])
        assert sorted(s for s, _, _ in got) == [200, 200, status, status]
        stats = server.stats
    assert stats.most_in_flight == 3 and stats.in_flight == 0
    assert (stats.refused_429, stats.refused_503) == ((2, 0) if status == 429 else (0, 2))


# --- the connection ----------------------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with MockServer(MockConfig(latency=0.001)) as server:
        bodies = [{**BODY, "user": str(i)} for i in range(100)]
        raw, _ = await talk(server, b"".join(map(post, bodies)), within=0.6)
        found = [raw.find(checksum_of(body).encode(), 0) for body in bodies]
        assert -1 not in found and found == sorted(found)
        assert server.stats.connections_total == 1


async def test_a_request_in_single_bytes_is_read(server: MockServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for i, byte in enumerate(post(BODY, connection="close", expect="100-continue")):
        writer.write(bytes([byte]))
        if i % 16 == 0:
            await writer.drain()
            await asyncio.sleep(0)
    raw = await reader.read()
    writer.close()
    assert raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and checksum_of(BODY).encode() in raw


async def test_a_client_that_leaves_is_noticed_and_leaves_nothing_behind() -> None:
    async with MockServer(MockConfig(latency=30)) as server:
        async with aiohttp.ClientSession() as session:
            waiting = [
                asyncio.create_task(session.post(f"{server.base_url}/chat/completions", json=BODY)) for _ in range(5)
            ]
            await until(lambda: server.stats.in_flight == 5)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await until(lambda: not server.stats.connections_open)
        assert (server.stats.cancelled, server.stats.in_flight, server.stats.answered) == (5, 0, 0)


async def test_a_stream_has_its_rate_and_stops_when_the_client_leaves() -> None:
    async with MockServer(MockConfig(token_rate=200, answer_bytes=400)) as server, sdk(server) as client:
        began = asyncio.get_running_loop().time()
        async for _ in await client.chat.completions.create(**BODY, stream=True):
            pass
        assert 0.4 < asyncio.get_running_loop().time() - began < 2
        stream = await client.chat.completions.create(**BODY, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await until(lambda: server.stats.streams_cancelled == 1)
        assert server.stats.in_flight == 0


async def test_a_stream_waits_for_a_client_that_does_not_read() -> None:
    async with MockServer(MockConfig(answer_bytes=400_000, token_rate=1e9)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        transport = writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(post({**BODY, "stream": True}, connection="close"))
        await asyncio.sleep(0.2)
        assert server.stats.in_flight == 1 and server.stats.answered == 0
        transport.resume_reading()  # type: ignore[attr-defined]
        raw = await reader.read()
        assert raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert server.stats.answered == 1
        writer.close()


async def test_latency_is_log_normal_around_its_median_and_seeded() -> None:
    async def processing() -> list[int]:
        async with MockServer(MockConfig(latency=0.01, latency_sigma=0.6, seed=4)) as server:
            got = [await ask(server) for _ in range(12)]
        return [int(headers["openai-processing-ms"]) for _, headers, _ in got]

    first = await processing()
    assert first == await processing()
    assert len(set(first)) > 3 and 3 < sorted(first)[6] < 30


async def test_stats_are_told_and_reset_over_http(server: MockServer) -> None:
    await ask(server)
    await ask(server, {**BODY, "user": "2"})
    await ask(server)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.origin}/stats") as response:
            stats = await response.json()
        assert (stats["requests"], stats["answered"], stats["distinct_bodies"]) == (3, 3, 2)
        assert stats["most_requests_60s"] == 3 and stats["tokens"] == stats["most_tokens_60s"] > 0
        async with session.post(f"{server.origin}/v1/stats/reset") as response:
            assert (await response.json())["requests"] == 0
        async with session.get(f"{server.origin}/health") as response:
            assert await response.json() == {"status": "ok"}
        async with session.head(f"{server.origin}/health") as response:
            assert response.status == 200


async def test_tls_serves_with_a_certificate_made_on_the_spot() -> None:
    context, pem = self_signed("127.0.0.1")
    async with MockServer(ssl_context=context) as server:
        assert server.base_url.startswith("https://")
        trusting = ssl.create_default_context(cadata=pem)
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{server.base_url}/chat/completions", json=BODY, ssl=trusting) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"{server.origin}/health")


# --- faults ------------------------------------------------------------------------------------------------------


async def fault(server: MockServer, kind: str, *, stream: bool = False, within: float = 2.0) -> tuple[bytes, str]:
    body = {**BODY, "stream": True} if stream else BODY
    return await talk(server, post(body, x_mock_fault=kind), within=within)


@pytest.mark.parametrize(
    ("kind", "code", "header"),
    [
        *[
            (str(status), None, None)
            for status in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)
        ],
        ("429:retry-after=2", "rate_limit_exceeded", ("retry-after", "2")),
        ("429:ms", "rate_limit_exceeded", ("retry-after-ms", "50")),
        ("429:insufficient_quota", "insufficient_quota", None),
        ("400:context_length_exceeded", "context_length_exceeded", None),
        ("400:unsupported_parameter", "unsupported_parameter", None),
        ("503:x-should-retry=false", None, ("x-should-retry", "false")),
    ],
)
async def test_status_faults(server: MockServer, kind: str, code: str | None, header: tuple[str, str] | None) -> None:
    status, headers, body = await ask(server, x_mock_fault=kind)
    assert status == int(kind[:3])
    assert body["error"]["message"]
    assert code is None or body["error"]["code"] == code
    assert ("retry-after" in headers) == (header is not None and header[0] == "retry-after")
    assert header is None or headers[header[0]] == header[1]
    assert server.stats.errors_injected == 1


# kind -> how the connection ends, and what the raw bytes are like; for a whole answer
RAW: dict[str, tuple[str, Any]] = {
    "reset": ("reset", lambda raw, good: raw == b""),
    "reset_mid_body": ("reset", lambda raw, good: good.startswith(raw[-20:]) or 0 < len(raw) < len(good)),
    "close": ("eof", lambda raw, good: raw == b""),
    "hang": ("open", lambda raw, good: raw == b""),
    "slow_body:0.15": ("open", lambda raw, good: 1 < len(split(raw)[2]) < 20),
    "truncated_body": ("eof", lambda raw, good: 0 < len(split(raw)[2]) < int(split(raw)[1]["content-length"])),
    "html": ("open", lambda raw, good: split(raw)[:1] == (200,) and split(raw)[2].startswith(b"<!doctype")),
    "empty": ("open", lambda raw, good: split(raw)[2] == b"" and split(raw)[0] == 200),
    "bad_json": ("open", lambda raw, good: split(raw)[2] == split(good)[2][:-1]),
    "error_in_200": ("open", lambda raw, good: "error" in json.loads(split(raw)[2]) and split(raw)[0] == 200),
    "misfit": ("open", lambda raw, good: b"own words" in raw and b'"usage":{' in raw),
    "null_choices": ("open", lambda raw, good: json.loads(split(raw)[2])["choices"] is None),
    "empty_choices": ("open", lambda raw, good: json.loads(split(raw)[2])["choices"] == []),
    "gzip": ("open", lambda raw, good: gzip.decompress(split(raw)[2]) == split(good)[2]),
    "gzip_bomb:3000000": (
        "open",
        lambda raw, good: len(raw) < 20_000 and len(gzip.decompress(split(raw)[2])) == 3_000_002,
    ),
    "redirect_307_same": (
        "open",
        lambda raw, good: split(raw)[1]["location"] == "/v1/chat/completions?mock-redirected",
    ),
    "redirect_307_cross": ("open", lambda raw, good: split(raw)[1]["location"].startswith("http://localhost:")),
    "huge_headers:100000": ("open", lambda raw, good: len(raw.partition(b"\r\n\r\n")[0]) > 100_000),
    "stale_bytes": ("open", lambda raw, good: raw.endswith(b'{"stale":true}') and len(raw) > len(good)),
    "chunked": ("open", lambda raw, good: raw.endswith(b"0\r\nx-mock-trailer: yes\r\n\r\n")),
    "split": ("open", lambda raw, good: split(raw)[2] == split(good)[2]),
    "stream_truncated": ("eof", lambda raw, good: len(split(raw)[2]) < int(split(raw)[1]["content-length"])),
    "stream_error_event": ("open", lambda raw, good: "error" in json.loads(split(raw)[2])),
    "stream_bad_json": ("open", lambda raw, good: split(good)[2].startswith(split(raw)[2])),
    "stream_stall": ("open", lambda raw, good: 0 < len(split(raw)[2]) < len(split(good)[2])),
    "stream_reset": ("reset", lambda raw, good: len(raw) < len(good)),
    "stream_no_done": ("open", lambda raw, good: split(raw)[2] == split(good)[2]),
}
# the same for a stream, where it differs
ENDED = b"0\r\n\r\n"
STREAMED: dict[str, tuple[str, Any]] = {
    "misfit": ("open", lambda raw, good: split(raw)[2] == split(good)[2]),
    "reset_mid_body": ("reset", lambda raw, good: not raw.endswith(ENDED)),
    "truncated_body": ("eof", lambda raw, good: b"data: " in raw and not raw.endswith(ENDED)),
    "gzip": ("open", lambda raw, good: gzip.decompress(split(raw)[2]).endswith(b"data: [DONE]\n\n")),
    "chunked": ("open", lambda raw, good: b"[DONE]" in raw and raw.endswith(b"x-mock-trailer: yes\r\n\r\n")),
    "split": ("open", lambda raw, good: split(raw)[2] == split(good)[2]),
    "stream_truncated": (
        "open",
        lambda raw, good: raw.endswith(ENDED) and b"DONE" not in raw and b'"finish_reason":"' not in raw,
    ),
    "stream_error_event": ("open", lambda raw, good: b'data: {"error"' in raw and b"DONE" not in raw),
    "stream_bad_json": ("open", lambda raw, good: b'"choices":[{\n\n' in raw and b"DONE" in raw),
    "stream_stall": ("open", lambda raw, good: b"data: " in raw and not raw.endswith(ENDED)),
    "stream_reset": ("reset", lambda raw, good: not raw.endswith(ENDED)),
    "stream_no_done": (
        "open",
        lambda raw, good: raw.endswith(ENDED) and b"DONE" not in raw and b'"finish_reason":"stop"' in raw,
    ),
    "null_choices": ("open", lambda raw, good: json.loads(split(raw)[2])["choices"] is None),
}


def test_every_fault_of_the_table_has_a_test() -> None:
    assert {kind.partition(":")[0] for kind in RAW} == set(FAULTS)


async def test_each_fault_does_what_it_says(server: MockServer) -> None:
    good, _ = await talk(server, post(BODY), within=1.0)
    got = await asyncio.gather(*[fault(server, kind) for kind in RAW])
    for (kind, (ending, check)), (raw, ended) in zip(RAW.items(), got, strict=True):
        assert ended == ending, kind
        assert check(raw, good), (kind, raw[:600])
    assert server.stats.errors_injected == len(RAW) and server.stats.in_flight == 0


async def test_each_stream_fault_does_what_it_says(server: MockServer) -> None:
    good, _ = await talk(server, post({**BODY, "stream": True}), within=1.0)
    assert good.endswith(b"data: [DONE]\n\n\r\n" + ENDED)
    got = await asyncio.gather(*[fault(server, kind, stream=True) for kind in STREAMED])
    for (kind, (ending, check)), (raw, ended) in zip(STREAMED.items(), got, strict=True):
        assert ended == ending, kind
        assert check(raw, good), (kind, raw[-600:])


async def test_a_script_is_played_in_order_and_then_over(server: MockServer) -> None:
    server.script(["500", None, "429:ms"])
    assert [(await ask(server))[0] for _ in range(5)] == [500, 200, 429, 200, 200]
    with pytest.raises(ConfigError, match="sideways"):
        server.script(["sideways"])


async def test_faults_by_predicate_by_body_and_unknown(server: MockServer) -> None:
    server.when(lambda body: body.get("user") == "bad", "503", times=1)
    assert (await ask(server))[0] == 200
    assert [(await ask(server, {**BODY, "user": "bad"}))[0] for _ in range(2)] == [503, 200]
    assert (await ask(server, {**BODY, "mock": {"fault": "502"}}))[0] == 502
    assert (await ask(server, x_mock_fault="sideways"))[2]["error"]["code"] == "unknown_fault"
    assert (await ask(server, x_mock_fault="slow_body:x"))[2]["error"]["code"] == "unknown_fault"


async def test_a_followed_redirect_is_answered(server: MockServer) -> None:
    async with aiohttp.ClientSession() as session:
        for kind in ("redirect_307_same", "redirect_307_cross"):
            url = f"{server.base_url}/chat/completions"
            async with session.post(url, json=BODY, headers={"x-mock-fault": kind}) as response:
                assert response.status == 200 and len(response.history) == 1


async def test_drawn_errors_follow_the_rate_and_the_seed() -> None:
    async def draws(seed: int) -> list[int]:
        config = MockConfig(error_rate=0.3, errors=("500", "503"), seed=seed)
        async with MockServer(config) as server:
            raw, _ = await talk(server, post(BODY) * 200, within=0.4)
            assert server.stats.requests == 200
        return [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]

    first = await draws(1)
    assert first == await draws(1) != await draws(2)
    assert 30 < 200 - first.count(200) < 90 and set(first) == {200, 500, 503}


async def test_run_tells_its_address_serves_and_ends_when_cancelled() -> None:
    addresses: list[str] = []
    running = asyncio.create_task(run(MockConfig(), on_listening=addresses.append))
    await until(lambda: len(addresses) == 1)
    async with aiohttp.ClientSession() as session, session.get(f"{addresses[0]}/models") as response:
        assert response.status == 200
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_closing_drops_every_connection_and_twice_is_harmless() -> None:
    server = await MockServer(MockConfig(latency=30)).start()
    waiting = asyncio.create_task(talk(server, post(BODY), within=5))
    await until(lambda: server.stats.in_flight == 1)
    assert "1 in flight" in repr(server)
    await server.close()
    await server.close()
    raw, ended = await waiting
    assert raw == b"" and ended in ("eof", "reset")
    assert server.stats.connections_open == 0
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
        pass


def test_the_mock_on_the_command_line_hides_its_limits_and_chooses_its_errors() -> None:
    with _mock("--rpm", "9", "--no-headers", "--error-rate", "1", "--error-kinds", "402, 503") as address:
        seen = set()
        for _ in range(8):
            body = json.dumps(BODY).encode()
            asked = urllib.request.Request(address + "/chat/completions", body, {"content-type": "application/json"})
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(asked)
            seen.add(caught.value.code)
            assert not [name for name in caught.value.headers if name.lower().startswith("x-ratelimit")]
            caught.value.close()
        assert seen == {402, 503}
    done = subprocess.run([*_MOCK, "--error-kinds", "500,resett"], capture_output=True, text=True)
    assert done.returncode == 2 and "'resett' is no fault" in done.stderr


_MOCK = [sys.executable, "-m", "fastllm.cli", "mock"]


@contextmanager
def _mock(*args: str) -> Iterator[str]:
    process = subprocess.Popen([*_MOCK, *args], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1].rstrip("/")
    finally:
        process.terminate()
        process.communicate()
