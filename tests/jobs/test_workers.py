"""Workers: an Outcome for each row, in bounded memory, whatever the rows, the engine or the consumer do."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from fastllm.errors import ConfigError, InvalidRequestError, LLMError, MissingKeyError, RateLimitError
from fastllm.jobs.collector import PACE, THRESHOLDS
from fastllm.jobs.outcomes import outcomes
from fastllm.jobs.workers import Workers
from fastllm.options import Limits
from fastllm.testing.clock import run_virtual
from fastllm.types import HTTPRequest, HTTPResponse, Outcome, Request, Response, Row
from kits.engine import answer, make_engine, refusal, request

ANSWER = Response(body=b"{}")


class FakeEngine:
    """Answers after what `behave` does; counts what is in flight."""

    concurrency = None

    def __init__(self, behave: Callable[[Request], Any] | None = None) -> None:
        self.behave = behave
        self.calls = self.in_flight = self.most = 0

    async def execute(self, request: Request) -> Response:
        self.calls += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            if self.behave is not None:
                waiting = self.behave(request)
                if waiting is not None:
                    await waiting
        finally:
            self.in_flight -= 1
        return ANSWER


def row(index: int, error: LLMError | None = None) -> Row:
    request = None if error else Request(body=b"{}", custom_id=str(index))
    return Row(index=index, request=request, error=error, custom_id=str(index))


def rows(count: int) -> Iterator[Row]:
    return (row(i) for i in range(count))


async def collect(*args: Any, **options: Any) -> list[Outcome]:
    return [outcome async for outcome in outcomes(*args, **options)]


def workers_left() -> list[asyncio.Task[Any]]:
    return [t for t in asyncio.all_tasks() if t.get_name() == "fastllm-worker"]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_every_row_once(ordered: bool, concurrency: int) -> None:
    """Each row gives one outcome, in order if asked, and never more than `concurrency` are in flight."""
    rng = random.Random(7)
    engine = FakeEngine(lambda _: asyncio.sleep(rng.random()))
    found = run_virtual(lambda: collect(engine, rows(300), concurrency=concurrency, ordered=ordered))
    indexes = [o.index for o in found]
    assert sorted(indexes) == list(range(300))
    assert engine.most == concurrency
    if ordered:
        assert indexes == list(range(300))
    elif concurrency == 50:
        assert indexes != list(range(300))


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_few_rows_make_few_workers(count: int) -> None:
    """No more workers than there are rows in work, and the one that finds the end."""
    made = 0

    class Counting(Workers):
        def _spawn(self) -> None:
            nonlocal made
            made += 1
            super()._spawn()

    workers = Counting(FakeEngine(), rows(count), concurrency=100)
    while not workers.finished:
        await workers.news()
    await workers.aclose()
    assert made <= count + 1


async def test_errors_are_outcomes() -> None:
    """An LLMError, a bad row and a ConfigError are outcomes beside the answers of the others."""

    def behave(request: Request) -> None:
        if request.custom_id == "1":
            raise RateLimitError("slow down")
        if request.custom_id == "2":
            raise MissingKeyError("no key")

    mixed = [row(0), row(1), row(2), row(3, InvalidRequestError("line 4: bad")), Row(index=4)]
    found = await collect(FakeEngine(behave), mixed, concurrency=2, ordered=True)
    assert [type(o.error).__name__ for o in found] == [
        "NoneType",
        "RateLimitError",
        "InvalidRequestError",
        "InvalidRequestError",
        "InvalidRequestError",
    ]
    assert isinstance(found[2].error.__cause__, MissingKeyError)  # type: ignore[union-attr]
    assert "neither" in str(found[4].error)


async def test_a_bug_is_raised_after_the_others_are_delivered() -> None:
    """An exception of `execute` that is no LLMError ends the run, and reaches the consumer."""

    def behave(request: Request) -> Any:
        if request.custom_id == "3":
            raise TypeError("bug")
        return asyncio.sleep(0.001)

    got: list[int] = []
    with pytest.raises(TypeError, match="bug"):
        async for outcome in outcomes(FakeEngine(behave), rows(100), concurrency=4):
            got.append(outcome.index)
    assert {0, 1, 2} <= set(got)
    assert len(got) < 20
    assert not workers_left()


async def test_a_worker_cancelled_by_others_is_an_error_not_a_hang() -> None:
    """Foreign code that cancels the worker's task loses no silence: the consumer hears of it."""

    def behave(request: Request) -> Any:
        if request.custom_id == "2":
            raise asyncio.CancelledError
        return asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="cancelled from outside"):
        await collect(FakeEngine(behave), rows(10), concurrency=2)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_iterator_that_raises(kind: str) -> None:
    """The rows already in work are delivered, then the iterator's exception is raised."""

    def source() -> Iterator[Row]:
        yield from rows(5)
        raise OSError("disk gone")

    async def asource() -> AsyncIterator[Row]:
        for r in source():
            await asyncio.sleep(0)
            yield r

    got = []
    with pytest.raises(OSError, match="disk gone"):
        async for outcome in outcomes(
            FakeEngine(lambda _: asyncio.sleep(0.005)), source() if kind == "sync" else asource(), concurrency=10
        ):
            got.append(outcome.index)
    assert sorted(got) == list(range(5))


def test_async_rows() -> None:
    """Rows that come one by one from an async source are worked on at once; only one pull is ever under way."""
    pulling = 0

    async def source() -> AsyncIterator[Row | None]:
        nonlocal pulling
        for i in range(200):
            pulling += 1
            assert pulling == 1
            await asyncio.sleep(0.01 if i % 3 else 0)
            pulling -= 1
            if i % 50 == 0:
                yield None  # nothing yet
            yield row(i)

    engine = FakeEngine(lambda _: asyncio.sleep(1))
    found = run_virtual(lambda: collect(engine, source(), concurrency=20))
    assert sorted(o.index for o in found) == list(range(200))
    assert engine.most == 20


async def test_a_slow_consumer_stalls_the_workers() -> None:
    """No more than the window is pulled ahead of the consumer."""
    pulled = 0

    def source() -> Iterator[Row]:
        nonlocal pulled
        for r in rows(1000):
            pulled += 1
            yield r

    taken = 0
    async for _ in outcomes(FakeEngine(), source(), concurrency=5):
        taken += 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pulled - taken <= 10
    assert taken == 1000


def test_a_slow_row_bounds_the_reordering() -> None:
    """In order, the rows behind a slow one stall at the window instead of piling up."""
    engine = FakeEngine(lambda r: asyncio.sleep(100 if r.custom_id == "0" else 1))

    async def scenario() -> None:
        seen = 0
        async for outcome in outcomes(engine, rows(1000), concurrency=4, ordered=True, window=20):
            if seen == 0:
                assert engine.calls <= 20
            assert outcome.index == seen
            seen += 1
        assert seen == 1000

    run_virtual(scenario)


async def test_many_rows_in_bounded_memory() -> None:
    """A generator of 200,000 rows of 2 KB each never has more than the window alive."""
    alive = most = 0

    class Big(bytes):
        def __new__(cls) -> Big:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, 2000)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Engine(FakeEngine):
        async def execute(self, request: Request) -> Response:
            return Response(body=Big())

    count = 0
    async for _ in outcomes(Engine(), rows(200_000), concurrency=64):
        count += 1
    assert count == 200_000
    assert most <= 2 * 64 + 2


async def test_leaving_early_cancels_what_is_in_work() -> None:
    """Breaking out of the loop leaves no task and nothing in flight."""
    engine = FakeEngine(lambda r: asyncio.sleep(0 if r.custom_id == "0" else 60))
    stream = outcomes(engine, rows(100), concurrency=8)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    assert engine.in_flight == 0
    assert not workers_left()


async def test_a_cancelled_consumer_leaves_nothing() -> None:
    """Cancelling the task that consumes cancels the workers, also one that waits for an async source."""

    async def never() -> AsyncIterator[Row]:
        yield row(0)
        await asyncio.sleep(60)

    for source in (rows(100), never()):
        engine = FakeEngine(lambda _: asyncio.sleep(60))
        task = asyncio.create_task(collect(engine, source, concurrency=8))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.in_flight == 0
        assert not workers_left()


def test_stop_lets_the_rows_in_work_finish() -> None:
    """After `stop` nothing more is pulled; after `cancel` what is in work is given up."""

    async def scenario(hard: bool) -> int:
        engine = FakeEngine(lambda _: asyncio.sleep(1))
        workers = Workers(engine, rows(100), concurrency=5)
        await asyncio.sleep(0.5)
        assert "5 rows in work" in repr(workers) or "rows in work" in repr(workers)
        workers.stop()
        if hard:
            workers.cancel()
        while not workers.finished:
            await workers.news()
        count = 0
        while workers.take() is not None:
            count += 1
        workers.check()
        await workers.aclose()
        await workers.aclose()
        assert engine.calls == 5
        return count

    assert run_virtual(scenario, False) == 5
    assert run_virtual(scenario, True) == 0


def test_drain_waits_only_for_what_is_at_the_provider() -> None:
    """Rows that wait for a slot or to try again are given up at once; an attempt that fails then is not repeated, and
    an answer that came before the stop is delivered."""

    async def scenario() -> tuple[list[str | None], int, float]:
        sent: list[bytes] = []

        async def provider(http: HTTPRequest) -> HTTPResponse:
            sent.append(http.body)
            if b"refused" in http.body:
                await asyncio.sleep(0.5)
                return refusal(429, retry_after="50")
            await asyncio.sleep(10)
            return refusal(500) if b"fails" in http.body else answer()

        engine = make_engine(provider, limits=Limits(concurrency=4))
        texts = ["refused", "good 1", "fails", "good 2", "fails too", "good 3"]
        made = [Row(index=i, request=request(t, custom_id=t, priority=1)) for i, t in enumerate(texts)]
        made = [msgspec.structs.replace(row, custom_id=texts[row.index]) for row in made]
        workers = Workers(engine, made, concurrency=6)
        await asyncio.sleep(1)
        began, before = engine.clock.now(), len(sent)
        in_flight = workers.in_flight
        assert in_flight == engine.stats.in_flight == before - 1
        workers.drain()
        while not workers.finished:
            await workers.news()
        found = []
        while (outcome := workers.take()) is not None:
            found.append(outcome.custom_id)
        await workers.aclose()
        assert len(sent) == before and engine.stats.in_flight == engine.stats.waiting == engine.stats.backing_off == 0
        assert sorted(found) == [t for t in texts if t.startswith("good") and any(t.encode() in b for b in sent)]
        return found, in_flight, engine.clock.now() - began

    found, in_flight, seconds = run_virtual(scenario)
    assert 1 <= len(found) < in_flight == 3
    assert seconds == pytest.approx(9, abs=0.3)  # the first row went a quarter of a second before the others


async def test_stop_does_not_wait_for_a_row_that_may_never_come() -> None:
    async def pausing() -> AsyncIterator[Row]:
        yield row(0)
        await asyncio.Event().wait()

    workers = Workers(FakeEngine(), pausing(), concurrency=4)
    async with asyncio.timeout(5):
        await workers.news()
        assert workers.take() is not None
        asyncio.get_running_loop().call_later(0.01, workers.stop)
        await workers.news()
    assert workers.finished
    workers.check()
    await workers.aclose()


async def test_none_gives_the_loop_a_turn() -> None:
    """A source that has to think may give None: the loop goes on meanwhile."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    def source() -> Iterator[Row | None]:
        for _ in range(50):
            yield None
        yield row(0)

    ticking = asyncio.create_task(tick())
    assert len(await collect(FakeEngine(), source(), concurrency=1)) == 1
    ticking.cancel()
    assert ticks >= 50


async def test_concurrency_is_checked() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        await collect(FakeEngine(), rows(1), concurrency=0)


async def test_the_collector_is_restored() -> None:
    """Thresholds are changed during runs, nested ones included, and put back after the last."""
    before = gc.get_threshold()
    outer = outcomes(FakeEngine(), rows(10), concurrency=1)
    async for _ in outer:
        assert gc.get_threshold() == THRESHOLDS
        assert await collect(FakeEngine(), rows(3), concurrency=1)
        assert gc.get_threshold() == THRESHOLDS
        assert "1 runs" in repr(PACE)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_what_others_set_of_the_collector_stays() -> None:
    """A collector that is off stays off, thresholds set meanwhile and a freeze made before are kept."""
    before = gc.get_threshold()
    try:
        gc.set_threshold(0)
        gc.freeze()
        with PACE:
            assert gc.get_threshold()[0] == 0
        assert gc.get_freeze_count() > 0
        gc.unfreeze()
        gc.set_threshold(*before)
        with PACE:
            gc.set_threshold(123, 4, 5)
        assert gc.get_threshold() == (123, 4, 5)
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


async def test_no_more_rows_are_asked_than_may_be_lost() -> None:
    """A row stays ahead until its record is written, though its outcome was taken: asked and not written are never
    more than the window, and a write, from whatever thread, lets the next ones go."""
    engine, unwritten = FakeEngine(), 0
    workers = Workers(engine, rows(20), concurrency=4, window=4, unwritten=lambda: unwritten)
    taken = written = 0
    while True:
        while (outcome := workers.take()) is not None:
            assert outcome.ok
            taken += 1
            unwritten += 1
        assert engine.calls - written <= 4
        if workers.finished:
            break
        if unwritten:
            for _ in range(5):
                await asyncio.sleep(0)  # nobody goes on before they are written
            assert engine.calls == taken == written + unwritten
            written, unwritten = taken, 0
            await asyncio.to_thread(workers.written_from_thread)
        else:
            await workers.news()
    assert taken == 20
    workers.check()
    await workers.aclose()


async def test_a_record_written_before_anybody_waits_is_noticed() -> None:
    """Between the look and the wait of a worker, the last record may be written; there is no further write."""
    looks = iter([4, 0, 0, 0])
    workers = Workers(FakeEngine(), rows(2), concurrency=4, window=4, unwritten=lambda: next(looks, 0))
    taken = 0
    async with asyncio.timeout(5):
        while not workers.finished:
            taken += workers.take() is not None
            if not workers.finished:
                await asyncio.sleep(0)
    assert taken == 2
    await workers.aclose()


async def test_what_is_not_recorded_does_not_stop_the_others() -> None:
    """Outcomes that are taken and never written (held back, or of no request) make room as they are taken."""
    workers = Workers(FakeEngine(), rows(50), concurrency=2, window=2, unwritten=lambda: 0)
    taken = 0
    async with asyncio.timeout(5):
        while True:
            if workers.take() is not None:
                taken += 1
            elif workers.finished:
                break
            else:
                await workers.news()
    assert taken == 50
    await workers.aclose()
