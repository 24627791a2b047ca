"""Packs: inputs of a batch share requests, and each gets its own answer or error, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from fastllm import errors as e
from fastllm.answers import Usage
from fastllm.cache.memory import InMemoryCache
from fastllm.engine.engine import Engine
from fastllm.engine.events import AttemptFailed, Event, RequestDone
from fastllm.engine.packs import shares_of
from fastllm.jobs.outcomes import outcomes
from fastllm.jobs.workers import MOST_PACKED, Workers
from fastllm.options import Limits, Retry
from fastllm.policy.packing import Packing
from fastllm.testing.clock import run_virtual
from fastllm.types import EMBEDDINGS, HTTPRequest, HTTPResponse, Outcome, Request, Row
from kits.engine import answer, make_engine, refusal, request


class Vendor:
    """Embeds words as their lengths and hash; refuses what it is told to. `sizes` are the inputs of each request."""

    def __init__(self, *, most: int = 10**6, bad: Sequence[str] = (), words: str = "", shuffled: bool = True) -> None:
        self.most = most
        self.bad = frozenset(bad)
        self.words = words or f"at most {most} inputs"
        self.shuffled = shuffled
        self.sizes: list[int] = []
        self.seen: Counter[str] = Counter()

    def __call__(self, http: HTTPRequest) -> HTTPResponse:
        body = msgspec.json.decode(http.body)
        given = body["input"]
        inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        self.sizes.append(len(inputs))
        if len(inputs) > self.most:
            return said(400, self.words)
        if any(isinstance(text, str) and text in self.bad for text in inputs):
            return said(400, "an input is invalid")
        self.seen.update(map(str, inputs))
        data = [{"object": "embedding", "index": i, "embedding": vector(text)} for i, text in enumerate(inputs)]
        if self.shuffled:
            data.reverse()
        tokens = sum(len(str(text)) for text in inputs)
        found = {
            "object": "list",
            "data": data,
            "model": "m",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return HTTPResponse(status=200, body=msgspec.json.encode(found))


def said(status: int, message: str) -> HTTPResponse:
    return HTTPResponse(status=status, body=msgspec.json.encode({"error": {"message": message}}))


def vector(text: Any) -> list[float]:
    return [float(len(str(text))), float(sum(str(text).encode()))]


def embedding(text: Any, **more: Any) -> Request:
    return Request.of({"model": "m", "input": text, **more.pop("body", {})}, path=EMBEDDINGS, priority=1, **more)


def packing_engine(vendor: Callable[[HTTPRequest], Any], most: int = 0, **options: Any) -> Engine:
    engine = make_engine(vendor, packing=Packing(most), **options)
    engine.pack()
    return engine


async def embed(engine: Engine, texts: Sequence[Any], concurrency: int = 8, **more: Any) -> list[Outcome]:
    rows = (Row(index=i, custom_id=str(i), request=embedding(text)) for i, text in enumerate(texts))
    return [found async for found in outcomes(engine, rows, concurrency=concurrency, ordered=True, **more)]


def check(found: Sequence[Outcome], texts: Sequence[Any], bad: Sequence[str] = ()) -> None:
    assert [outcome.index for outcome in found] == list(range(len(texts)))
    for outcome, text in zip(found, texts, strict=True):
        if text in bad:
            assert isinstance(outcome.error, e.BadRequestError)
        else:
            assert outcome.response is not None, outcome.error
            assert [item.embedding for item in outcome.response.data] == [vector(text)]
            assert outcome.response.data[0].index == 0


def test_many_inputs_share_a_few_requests_and_come_back_in_order() -> None:
    texts = [f"text {i} {'x' * (i % 13)}" for i in range(1000)]

    async def main() -> None:
        vendor = Vendor()
        engine = packing_engine(vendor, 100)
        found = await embed(engine, texts)
        check(found, texts)
        assert vendor.sizes == [100] * 10
        assert engine.stats.ok == 1000
        assert engine.stats.attempts == 10
        used = [outcome.response.usage for outcome in found if outcome.response is not None]
        assert sum(usage.prompt_tokens for usage in used if usage is not None) == sum(map(len, texts))
        assert engine.stats.prompt_tokens == sum(map(len, texts))

    run_virtual(main)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abcdef ", min_size=1, max_size=8) | st.lists(st.integers(0, 9), min_size=1), max_size=60),
    st.integers(1, 40),
    st.sets(st.text("abcdef ", min_size=1, max_size=2), max_size=3),
    st.sampled_from(["", "no", "too many"]),
    st.integers(1, 70),
)
def test_each_input_gets_its_own_vector_or_error_whatever_the_vendor_takes(
    texts: list[Any], most: int, bad: set[str], words: str, concurrency: int
) -> None:
    async def main() -> None:
        vendor = Vendor(most=most, bad=sorted(bad), words=words)
        engine = packing_engine(vendor)
        found = await embed(engine, texts, concurrency)
        check(found, texts, sorted(bad))
        good = [text for text in texts if not (isinstance(text, str) and text in bad)]
        assert vendor.seen == Counter(map(str, good))  # and nobody was asked for twice
        assert engine.stats.ok == len(good)
        assert engine.stats.failed == len(texts) - len(good)
        assert engine.stats.in_flight == 0

    run_virtual(main)


def test_one_bad_input_costs_the_others_nothing_and_no_cap_is_learnt_from_it() -> None:
    texts = [f"t{i}" for i in range(256)]

    async def main() -> None:
        vendor = Vendor(bad=["t77"])
        engine = packing_engine(vendor)
        check(await embed(engine, texts), texts, ["t77"])
        assert len(vendor.sizes) == 2 * 8 + 1  # halves, down to the one
        assert engine.router.endpoints[0].packing.inputs == Packing().inputs

    run_virtual(main)


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8192 tokens, however you requested 10001 tokens (10001 in your prompt; "
        "0 for the completion). Please reduce your prompt; or completion length.",
        "Invalid 'input[50]': maximum input length is 8192 tokens.",
        "Input validation error: `inputs` must have less than 8192 tokens. Given: 10001",
    ],
)
def test_one_input_that_is_too_long_fails_alone_and_the_others_go_on_in_full_packs(words: str) -> None:
    texts = [f"text {i} " + "word " * 200 for i in range(1000)]
    long = "x" * 40_000

    async def main() -> None:
        vendor = Vendor()

        def choosy(http: HTTPRequest) -> HTTPResponse:
            return said(400, words) if long.encode() in http.body else vendor(http)

        engine = make_engine(choosy, packing=Packing(2048, 300_000))
        engine.pack()
        given = [*texts[:50], long, *texts[50:100]]
        check(await embed(engine, given, 2000), given, [long])
        vendor.sizes.clear()
        check(await embed(engine, texts, 2000), texts)
        assert len(vendor.sizes) <= 4 and min(vendor.sizes) > 200  # by the tokens that this vendor counts
        packing = engine.router.endpoints[0].packing
        assert (packing.inputs, packing.tokens) == (2048, 300_000)

    run_virtual(main)


@pytest.mark.parametrize(("words", "most_refused"), [("at most 32 inputs", 2), ("too many", 7)])
def test_the_cap_is_learnt_once(words: str, most_refused: int) -> None:
    texts = [f"t{i}" for i in range(2000)]

    async def main() -> None:
        vendor = Vendor(most=32, words=words)
        engine = packing_engine(vendor, limits=Limits(concurrency=1))
        check(await embed(engine, texts[:256]), texts[:256])
        assert engine.router.endpoints[0].packing.inputs == 32
        assert sum(size > 32 for size in vendor.sizes) <= most_refused
        vendor.sizes.clear()
        check(await embed(engine, texts), texts)
        assert max(vendor.sizes) == 32

    run_virtual(main)


def test_answers_are_kept_by_input_whatever_request_they_came_in() -> None:
    async def main() -> None:
        vendor = Vendor()
        engine = packing_engine(vendor, cache=InMemoryCache())
        await embed(engine, ["a", "b", "c", "a"])
        assert vendor.seen == {"a": 1, "b": 1, "c": 1}  # equal ones are one
        found = await embed(engine, ["c", "new", "a"])
        check(found, ["c", "new", "a"])
        assert [outcome.cached for outcome in found] == [True, False, True]
        single = await engine.execute(embedding("b"))
        assert single.cached
        assert vendor.seen == {"a": 1, "b": 1, "c": 1, "new": 1}

    run_virtual(main)


def test_only_what_has_all_else_in_common_travels_together() -> None:
    async def main() -> None:
        vendor = Vendor()
        engine = packing_engine(vendor)
        asked = [
            embedding("a"),
            embedding("b"),
            embedding("c", body={"dimensions": 2}),
            embedding("d", headers=embedding("x").headers.merged({"x-tenant": "other"})),
            embedding(["e", "f"]),  # two inputs already
            Request.of({"model": "m", "input": "g"}, path=EMBEDDINGS),  # interactive
        ]
        await asyncio.gather(*map(engine.execute, asked))
        assert sorted(vendor.sizes) == [1, 1, 1, 2, 2]

    run_virtual(main)


def test_an_answer_with_too_few_vectors_is_no_answer() -> None:
    async def main() -> None:
        def lazy(http: HTTPRequest) -> HTTPResponse:
            """A server that embeds only the first input."""
            text = msgspec.json.decode(http.body)["input"]
            first = text if isinstance(text, str) else text[0]
            return HTTPResponse(
                status=200, body=msgspec.json.encode({"data": [{"index": 0, "embedding": vector(first)}]})
            )

        engine = packing_engine(lazy, retry=Retry(attempts=1, patient=False))
        texts = [f"t{i}" for i in range(5)]
        check(await embed(engine, texts), texts)
        assert engine.router.endpoints[0].packing.inputs == 1
        with pytest.raises(e.ProtocolError, match="1 vectors for 2 inputs"):
            await engine.execute(embedding(["a", "b"]))

    run_virtual(main)


def test_what_concerns_all_of_them_is_asked_once() -> None:
    async def main() -> None:
        asked = []

        def closed(http: HTTPRequest) -> HTTPResponse:
            asked.append(http)
            return refusal(404, "model_not_found")

        engine = packing_engine(closed)
        found = await embed(engine, ["a", "b", "c"])
        assert all(isinstance(outcome.error, e.NotFoundError) for outcome in found)
        assert len({id(outcome.error) for outcome in found}) == 3  # each has its own
        assert len(asked) == 1
        assert engine.stats.failed == 3

    run_virtual(main)


def test_inputs_that_nobody_waits_for_take_their_request_along() -> None:
    async def main() -> None:
        cancelled = []

        async def slow(http: HTTPRequest) -> HTTPResponse:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                cancelled.append(http)
                raise
            return refusal(500)

        engine = packing_engine(slow)
        tasks = [asyncio.create_task(engine.execute(embedding(text))) for text in "abc"]
        await asyncio.sleep(1)
        tasks[0].cancel()
        await asyncio.sleep(1)
        assert not cancelled
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1)
        assert len(cancelled) == 1
        assert engine.stats.in_flight == 0

    run_virtual(main)


def test_a_part_that_nobody_waits_for_any_more_is_given_up_though_another_part_goes_on() -> None:
    async def main() -> None:
        given_up = []
        vendor = Vendor(most=2)

        async def slow(http: HTTPRequest) -> HTTPResponse:
            found = vendor(http)
            if found.status == 200:
                try:
                    await asyncio.sleep(100 if b'"c"' in http.body else 10)
                except asyncio.CancelledError:
                    given_up.append(http)
                    raise
            return found

        engine = packing_engine(slow)
        tasks = [asyncio.create_task(engine.execute(embedding(text))) for text in "abcd"]
        await asyncio.sleep(5)
        for task in tasks[2:]:
            task.cancel()
        await asyncio.sleep(1)
        assert len(given_up) == 1
        assert engine.stats.in_flight == 1
        for task, text in zip(tasks[:2], "ab", strict=True):
            assert (await task).data[0].embedding == vector(text)
        assert engine.stats.in_flight == 0

    run_virtual(main)


def test_one_who_leaves_before_the_pack_does_is_not_sent() -> None:
    async def main() -> None:
        vendor = Vendor()
        engine = packing_engine(vendor)
        tasks = [asyncio.create_task(engine.execute(embedding(text))) for text in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert vendor.seen == {"a": 1, "c": 1}

    run_virtual(main)


def test_draining_waits_for_packs_that_are_out_and_gives_up_those_that_are_not() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        vendor = Vendor()

        async def slow(http: HTTPRequest) -> HTTPResponse:
            found = vendor(http)
            await gate.wait()
            return found

        engine = packing_engine(slow, 4, limits=Limits(concurrency=1))
        rows = (Row(index=i, custom_id=str(i), request=embedding(f"t{i}")) for i in range(100))
        workers = Workers(engine, rows, concurrency=8)
        await asyncio.sleep(1)
        assert vendor.sizes == [4]
        assert workers.in_flight == 4
        workers.drain()
        gate.set()
        found = []
        while True:
            outcome = workers.take()
            if outcome is not None:
                found.append(outcome)
            elif workers.finished:
                break
            else:
                await workers.news()
        await workers.aclose()
        assert len(found) == 4  # one of them was not yet in it when the fifth row was
        assert all(outcome.ok for outcome in found)
        assert vendor.sizes == [4]

    run_virtual(main)


def test_rows_in_packs_make_room_for_others_but_only_while_they_are_there() -> None:
    async def main() -> None:
        most = 0
        now = 0

        async def handler(http: HTTPRequest) -> HTTPResponse:
            nonlocal most, now
            if b'"input"' in http.body:
                return vendor(http)
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.1)
            now -= 1
            return answer()

        def rows() -> Any:
            for i in range(2000):
                yield Row(index=i, custom_id=str(i), request=embedding(f"t{i}"))
            for i in range(2000, 2100):
                yield Row(index=i, custom_id=str(i), request=request(f"row {i}", priority=1))

        vendor = Vendor()
        engine = packing_engine(handler, 500)
        found = [outcome async for outcome in outcomes(engine, rows(), concurrency=4)]
        assert all(outcome.ok for outcome in found)
        assert len(found) == 2100
        assert vendor.sizes == [500] * 4
        assert most <= 4
        assert MOST_PACKED >= 2048

    run_virtual(main)


def test_observers_hear_of_each_input_once_and_of_attempts_that_failed() -> None:
    async def main() -> None:
        heard: list[Event] = []
        turns = iter([refusal(500)])
        vendor = Vendor()

        def flaky(http: HTTPRequest) -> HTTPResponse:
            return next(turns, None) or vendor(http)

        engine = packing_engine(flaky, observers=[heard.append])
        check(await embed(engine, ["a", "b", "c"]), ["a", "b", "c"])
        done = [event for event in heard if isinstance(event, RequestDone)]
        assert len(done) == 3
        assert sum(isinstance(event, AttemptFailed) for event in heard) == 1
        assert all(event.response is not None and event.response.attempts == 2 for event in done)

    run_virtual(main)


@given(st.lists(st.floats(0.3, 5000), min_size=1, max_size=200), st.integers(0, 10**6))
def test_usage_is_divided_without_rest(sizes: list[float], total: int) -> None:
    class Sized:
        def __init__(self, tokens: float) -> None:
            self.tokens = tokens

    shares = shares_of([Sized(size) for size in sizes], Usage(prompt_tokens=total, total_tokens=total))  # type: ignore[misc]
    assert sum(share or 0 for share in shares) == total
    assert all(share is not None and share >= 0 for share in shares)
