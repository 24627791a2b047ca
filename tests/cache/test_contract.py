"""cache: what every Store promises, the shipped ones and one of somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fastllm.cache.base import Cache, Store, StoreStats
from fastllm.cache.disk import SQLiteStore
from fastllm.cache.memory import MemoryStore
from fastllm.types import Response

K1, K2, K3 = (bytes([n]) * 48 for n in (1, 2, 255))


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class ForeignStore(Store):
    """As little as a third party may implement."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._kept: dict[bytes, tuple[bytes, float]] = {}

    async def get(self, key: bytes) -> bytes | None:
        value, end = self._kept.get(key, (None, 0.0))
        return value if end > self._wall() else None

    async def put(self, key: bytes, value: bytes, expires_at: float | None = None) -> None:
        self._kept[key] = (value, expires_at if expires_at is not None else 1e300)

    async def delete(self, key: bytes) -> None:
        self._kept.pop(key, None)

    async def clear(self) -> int:
        removed = len(self._kept)
        self._kept.clear()
        return removed

    async def prune(self) -> int:
        gone = [key for key, (_, end) in self._kept.items() if end <= self._wall()]
        for key in gone:
            del self._kept[key]
        return len(gone)

    async def stats(self) -> StoreStats:
        expired = sum(end <= self._wall() for _, end in self._kept.values())
        size = sum(len(value) for value, _ in self._kept.values())
        return StoreStats(entries=len(self._kept), bytes=size, expired=expired)


STORES: dict[str, Callable[[Path, Wall], Store]] = {
    "memory": lambda path, wall: MemoryStore(wall=wall),
    "disk": lambda path, wall: SQLiteStore(path / "cache", wall=wall),
    "foreign": lambda path, wall: ForeignStore(wall),
}


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path, wall: Wall) -> AsyncIterator[Store]:
    made = STORES[request.param](tmp_path, wall)
    yield made
    await made.aclose()


async def test_what_was_put_is_there_at_once_and_nothing_else_is(store: Store) -> None:
    assert await store.get(K1) is None
    await store.put(K1, b"one")
    await store.put(K2, b"")
    assert (await store.get(K1), await store.get(K2), await store.get(K3)) == (b"one", b"", None)


async def test_the_last_put_wins(store: Store) -> None:
    await store.put(K1, b"old", 1.0)
    await store.put(K1, b"new")
    assert await store.get(K1) == b"new"
    assert (await store.stats()).entries == 1
    await store.put(K1, b"newer")
    assert await store.get(K1) == b"newer"


async def test_what_was_deleted_is_gone_at_once_and_deleting_nothing_is_fine(store: Store) -> None:
    await store.put(K1, b"one")
    assert (await store.stats()).entries == 1
    await store.delete(K1)
    await store.delete(K2)
    assert await store.get(K1) is None
    assert (await store.stats()).entries == 0


async def test_an_entry_lives_until_it_expires_and_prune_removes_only_what_has(store: Store, wall: Wall) -> None:
    await store.put(K1, b"short", wall.now + 10)
    await store.put(K2, b"long", wall.now + 1000)
    await store.put(K3, b"ever")
    wall.now += 9.99
    assert await store.get(K1) == b"short"
    wall.now += 0.01
    assert (await store.get(K1), await store.get(K2)) == (None, b"long")
    assert ((await store.stats()).entries, (await store.stats()).expired) == (3, 1)
    assert (await store.get(K1), await store.prune(), await store.prune()) == (None, 1, 0)
    assert (await store.get(K2), await store.get(K3)) == (b"long", b"ever")


async def test_clear_removes_everything_and_says_how_many(store: Store) -> None:
    for key in (K1, K2, K3):
        await store.put(key, b"x" * 1000)
    assert (await store.stats()).bytes >= 3000
    assert await store.clear() == 3
    assert await store.clear() == 0
    assert ((await store.stats()).entries, await store.get(K1)) == (0, None)


@pytest.mark.parametrize("size", [1, 4095, 4096, 100_000, 3_000_000])
async def test_values_come_back_byte_for_byte_at_any_size(store: Store, size: int) -> None:
    value = bytes(range(256)) * (size // 256 + 1)
    await store.put(K1, value[:size])
    await store.stats()
    assert await store.get(K1) == value[:size]


async def test_closing_twice_is_fine_and_a_closed_store_opens_again(store: Store) -> None:
    await store.put(K1, b"one")
    await store.aclose()
    await store.aclose()
    assert await store.get(K1) == b"one"
    await store.put(K2, b"two")
    assert await store.get(K2) == b"two"


async def test_many_tasks_at_once_read_what_they_wrote(store: Store) -> None:
    async def work(n: int) -> None:
        for turn in range(20):
            key = bytes([n]) * 47 + bytes([turn])
            await store.put(key, key * 3)
            await asyncio.sleep(0)
            assert await store.get(key) == key * 3

    async with asyncio.TaskGroup() as group:
        for n in range(20):
            group.create_task(work(n))
    assert (await store.stats()).entries == 400


async def test_it_works_from_one_loop_after_the_other(store: Store) -> None:
    await store.put(K1, b"one")

    async def elsewhere() -> bytes | None:
        await store.put(K2, b"two")
        return await store.get(K1)

    assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) == b"one"
    assert await store.get(K2) == b"two"


async def test_its_repr_and_stats_say_what_it_is_doing(store: Store) -> None:
    await store.put(K1, b"a secret prompt")
    assert "secret" not in repr(store) and "Store" in repr(store)
    found = await store.stats()
    assert found.max_bytes is None or found.bytes <= found.max_bytes


async def test_a_cache_over_any_store_gives_the_answer_back_and_no_other(store: Store, wall: Wall) -> None:
    cache = Cache(store, ttl=60, wall=wall)
    answer = Response(body=b'{"choices": []}', finish_reason="stop")
    await cache.put(K1, b"request", answer)
    hit = await cache.get(K1, b"request")
    assert hit is not None and (hit.body, hit.cached, hit.attempts, hit.latency) == (answer.body, True, 0, 0.0)
    assert await cache.get(K2, b"request") is None
    wall.now += 60
    assert await cache.get(K1, b"request") is None


operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "delete", "wait", "close", "prune"]), st.integers(0, 3), st.integers(1, 9)
    ),
    max_size=25,
)


@pytest.mark.parametrize("name", ["memory", "disk"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=operations)
def test_any_sequence_of_operations_is_that_of_the_simplest_store(
    name: str, steps: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def run() -> None:
        wall = Wall()
        store, model = STORES[name](tmp_path_factory.mktemp("model"), wall), ForeignStore(wall)
        for step, (what, which, amount) in enumerate(steps):
            key = bytes([which]) * 48
            if what == "put":
                end = wall.now + amount if amount < 6 else None
                for kept in (store, model):
                    await kept.put(key, b"%d" % step, end)
            elif what == "delete":
                for kept in (store, model):
                    await kept.delete(key)
            elif what == "close":
                await store.aclose()
            elif what == "prune":
                assert await store.prune() == await model.prune()
            elif what == "wait":
                wall.now += amount
            assert await store.get(key) == await model.get(key)
        await store.aclose()

    asyncio.run(run())
