"""cache/base and cache/codec: what may be kept, for how long, and that no answer is ever another request's."""

from __future__ import annotations

import logging
import math
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from fastllm import ConfigError, InMemoryCache
from fastllm.answers import Usage
from fastllm.cache import codec
from fastllm.cache.base import SKEW, Cache, Store, StoreStats
from fastllm.cache.memory import MemoryStore
from fastllm.policy.fingerprint import canonical, fingerprint, scope
from fastllm.types import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES, Headers, Request, Response

KEY, ASKED = b"k" * 48, b'{"body":{}}'
CODECS = {"zstd": codec.ZSTD, "zlib": codec.ZLIB}


def answer(**fields: Any) -> Response:
    return Response(**{"body": b'{"choices":[]}', "finish_reason": "stop", **fields})


class Wall:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.mark.parametrize(
    ("path", "reasons"),
    [
        (CHAT, {"stop", "tool_calls", "function_call"}),
        (COMPLETIONS, {"stop", "tool_calls", "function_call"}),
        (RESPONSES, {"stop", "tool_calls", "function_call", "completed"}),
        (EMBEDDINGS, {"stop", "tool_calls", "function_call", "completed", None}),
        (MODERATIONS, {"stop", "tool_calls", "function_call", "completed", None}),
    ],
)
async def test_only_whole_answers_are_kept(path: str, reasons: set[str | None]) -> None:
    """None in the Responses API is an answer still under way, and in a chat one whose end nobody saw."""
    kept = set()
    for reason in ("stop", "tool_calls", "function_call", "completed", None, "length", "content_filter", "error", ""):
        cache = InMemoryCache()
        await cache.put(KEY, ASKED, answer(path=path, finish_reason=reason))
        if await cache.get(KEY, ASKED) is not None:
            kept.add(reason)
    assert kept == reasons


@pytest.mark.fault("errors-cached")
@pytest.mark.parametrize(
    "fields", [{"status_code": 201}, {"status_code": 500}, {"cached": True}, {"body": b""}], ids=str
)
async def test_errors_empty_answers_and_answers_from_a_cache_are_not_kept(fields: dict[str, Any]) -> None:
    cache = InMemoryCache()
    await cache.put(KEY, ASKED, answer(**fields))
    assert await cache.get(KEY, ASKED) is None and (await cache.stats()).entries == 0


@pytest.mark.parametrize("size", [0, 5000, 200_000])
async def test_a_hit_is_the_answer_as_it_came_marked_as_cached(size: int) -> None:
    cache = InMemoryCache()
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    body = b'{"id":"x","n":"' + b"answer " * (size // 7) + b'"}'
    kept = answer(body=body, usage=usage, request_id="r", endpoint="e", attempts=3, latency=2.0, path=RESPONSES)
    await cache.put(KEY, ASKED, kept)
    hit = await cache.get(KEY, ASKED)
    assert hit is not None and (hit.cached, hit.attempts, hit.latency, hit.status_code) == (True, 0, 0.0, 200)
    assert (hit.body, hit.usage, hit.path, hit.finish_reason) == (body, usage, RESPONSES, "stop")
    assert (hit.request_id, hit.endpoint, hit.id) == ("r", "e", "x")
    assert (cache.hits, cache.misses, cache.errors) == (1, 0, 0)


async def test_an_entry_of_another_request_under_the_same_key_is_a_miss(caplog: pytest.LogCaptureFixture) -> None:
    """A forged collision: 384 bits agree, the requests do not. The stored request is compared, and the entry goes."""
    cache = InMemoryCache()
    await cache.put(KEY, b"what is asked by one", answer())
    assert await cache.get(KEY, b"what is asked by another") is None
    assert (await cache.stats()).entries == 0 and cache.errors == 1
    assert "of another request" in caplog.text


async def test_an_entry_that_a_store_gives_for_another_key_is_a_miss() -> None:
    """The same request at another endpoint or of another namespace: only the key says so."""
    cache = InMemoryCache()
    await cache.put(KEY, ASKED, answer())
    value = await cache.store.get(KEY)
    assert value is not None
    await cache.store.put(b"l" * 48, value)
    assert await cache.get(b"l" * 48, ASKED) is None
    assert await cache.get(KEY, ASKED) is not None


async def test_an_entry_is_good_for_its_ttl_and_not_longer(wall: Wall) -> None:
    cache = InMemoryCache(ttl=60, wall=wall)
    await cache.put(KEY, ASKED, answer())
    wall.now += 59.9
    assert await cache.get(KEY, ASKED) is not None
    wall.now += 0.1
    assert await cache.get(KEY, ASKED) is None


async def test_the_readers_shorter_ttl_counts_for_older_entries(wall: Wall) -> None:
    store = MemoryStore(wall=wall)
    await Cache(store, wall=wall).put(KEY, ASKED, answer())
    wall.now += 100
    assert await Cache(store, ttl=60, wall=wall).get(KEY, ASKED) is None
    assert await Cache(store, ttl=101, wall=wall).get(KEY, ASKED) is not None


async def test_no_entry_outlives_its_ttl_because_the_clock_was_set_back(wall: Wall) -> None:
    cache = InMemoryCache(ttl=3600, wall=wall)
    await cache.put(KEY, ASKED, answer())
    wall.now -= SKEW
    assert await cache.get(KEY, ASKED) is not None
    wall.now -= 86_400
    assert await cache.get(KEY, ASKED) is None
    wall.now += 86_400 + SKEW
    assert await cache.get(KEY, ASKED) is not None and cache.errors == 0
    wall.now += 86_400
    assert await cache.get(KEY, ASKED) is None


class Broken(Store):
    """Every operation fails."""

    async def get(self, key: bytes) -> bytes | None:
        raise OSError("no disk")

    async def put(self, key: bytes, value: bytes, expires_at: float | None = None) -> None:
        raise OSError("no disk")

    async def delete(self, key: bytes) -> None:
        raise OSError("no disk")

    async def clear(self) -> int:
        return 0

    async def prune(self) -> int:
        return 0

    async def stats(self) -> StoreStats:
        return StoreStats(entries=0, bytes=0)


class Odd(Broken):
    """Gives what is not bytes."""

    def __init__(self, value: Any) -> None:
        self.value = value

    async def get(self, key: bytes) -> bytes | None:
        return self.value  # type: ignore[no-any-return]


async def test_a_store_that_fails_costs_hits_one_warning_a_kind_and_a_sum_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = Cache(Broken())
    for _ in range(5):
        assert await cache.get(KEY, ASKED) is None
        await cache.put(KEY, ASKED, answer())
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2 and cache.errors == 10
    await cache.aclose()
    await cache.aclose()
    assert [r.getMessage() for r in caplog.records[2:]] == ["the cache failed 10 times in all"]
    assert (cache.hits, cache.misses) == (0, 5)


@pytest.mark.parametrize("value", [b"", b"x", "text", 5, [], b"FLC" + bytes(9), bytes(100), memoryview(b"")], ids=repr)
async def test_a_store_that_gives_nonsense_is_a_miss(value: Any) -> None:
    cache = Cache(Odd(value))
    assert await cache.get(KEY, ASKED) is None and cache.errors >= 1


@pytest.mark.parametrize("size", [10, 8000])
async def test_damage_at_any_byte_and_any_length_is_a_miss(size: int) -> None:
    value = codec.pack(KEY, ASKED, 1.0, answer(body=bytes(i * 7 % 251 for i in range(size))))
    assert codec.unpack(KEY, ASKED, value) is not None
    for at in range(0, len(value), max(1, len(value) // 300)):
        flipped = bytearray(value)
        flipped[at] ^= 0x40
        assert codec.unpack(KEY, ASKED, bytes(flipped)) is None
        assert codec.unpack(KEY, ASKED, value[:at]) is None
    assert codec.unpack(KEY, ASKED, value + b"x") is None


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([0, 1, 2, 3, 255]))
def test_bytes_with_a_good_checksum_but_no_entry_in_them_are_a_miss(data: bytes, kind: int) -> None:
    value = codec._HEAD.pack(b"FLC", codec.VERSION, kind, zlib.crc32(data)) + data
    assert codec.unpack(KEY, ASKED, value) is None


async def test_a_future_version_is_a_miss_and_goes() -> None:
    cache = InMemoryCache()
    value = bytearray(codec.pack(KEY, ASKED, 1.0, answer()))
    value[3] += 1
    await cache.store.put(KEY, bytes(value))
    assert await cache.get(KEY, ASKED) is None and (await cache.stats()).entries == 0


@pytest.mark.parametrize("writes", CODECS)
def test_what_any_codec_wrote_is_read_and_small_entries_are_not_compressed(
    writes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if writes == "zstd" and codec.zstd is None:
        pytest.skip("no zstd here")
    with monkeypatch.context() as patch:
        if writes == "zlib":
            patch.setattr(codec, "zstd", None)
        large = codec.pack(KEY, ASKED, 1.0, answer(body=b"large " * 2000))
        small = codec.pack(KEY, ASKED, 1.0, answer(body=b"small " * 100))
    assert (large[4], small[4]) == (CODECS[writes], codec.RAW) and len(large) < 2000
    for value, word in ((large, b"large"), (small, b"small")):
        found = codec.unpack(KEY, ASKED, value)
        assert found is not None and found.body.startswith(word)


@pytest.mark.parametrize("kind", CODECS.values(), ids=CODECS)
def test_an_entry_that_unpacks_to_more_than_any_answer_is_a_miss(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == codec.ZSTD and codec.zstd is None:
        pytest.skip("no zstd here")
    monkeypatch.setattr(codec, "MOST_BYTES", 10_000)
    bomb = bytes(1_000_000)
    data = zlib.compress(bomb) if kind == codec.ZLIB else codec.zstd.compress(bomb)
    assert codec.unpack(KEY, ASKED, codec._HEAD.pack(b"FLC", codec.VERSION, kind, zlib.crc32(data)) + data) is None


async def test_what_is_kept_holds_no_header_and_no_key() -> None:
    """The canary: an API key in headers, address and options is nowhere in key or value."""
    headers = Headers({"authorization": "Bearer sk-canary", "x-api-key": "sk-canary", "cookie": "sk-canary"})
    request = Request(body=b'{"model":"m","messages":[]}', headers=headers)
    text = canonical(request, "m")
    key = fingerprint(text) + scope("openai", "https://u:sk-canary@a/v1?key=sk-canary", headers)
    store = MemoryStore()
    await Cache(store).put(key, text, answer())
    assert len(key) == 48 and len(store._entries) == 1
    for kept, (value, _) in store._entries.items():
        assert b"canary" not in kept + value and b"Bearer" not in value


def test_values_are_msgpack_and_nothing_in_them_is_run() -> None:
    value = codec.pack(KEY, ASKED, 1.0, answer())
    assert msgspec.msgpack.decode(value[codec._HEAD.size :])[:3] == [KEY, ASKED, 1.0]


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, "1", True])
def test_a_ttl_that_is_none_is_told(ttl: Any) -> None:
    with pytest.raises(ConfigError, match="ttl"):
        InMemoryCache(ttl=ttl)


def test_a_cache_needs_a_store() -> None:
    with pytest.raises(ConfigError, match="Store"):
        Cache("memory")  # type: ignore[arg-type]


async def test_clear_and_prune_and_stats_reach_the_store(wall: Wall) -> None:
    cache = InMemoryCache(ttl=10, wall=wall)
    await cache.put(KEY, ASKED, answer())
    wall.now += 10
    assert (await cache.stats()).expired == 1 and await cache.prune() == 1
    await cache.put(KEY, ASKED, answer())
    assert await cache.clear() == 1 and "0 hits" in repr(cache)
