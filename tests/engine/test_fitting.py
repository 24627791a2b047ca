"""engine/fitting: asked until it fits, within the bound; every answer paid for once, counted, cached and kept."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from fastllm import errors as e
from fastllm.cache.memory import InMemoryCache
from fastllm.engine.engine import Engine
from fastllm.engine.fitting import fitted, fitting
from fastllm.jobs.outcomes import outcomes
from fastllm.jobs.workers import Workers
from fastllm.options import Limits, Retry
from fastllm.policy.budget import Budget
from fastllm.policy.pricing import Price
from fastllm.policy.purse import Purse
from fastllm.schema.base import Schema
from fastllm.testing.clock import run_virtual
from fastllm.types import RESPONSES, HTTPRequest, HTTPResponse, ParsedResponse, Request, Response, Row
from kits.engine import answer, make_engine, refusal


@dataclasses.dataclass
class City:
    name: str
    people: int


GOOD = '{"name":"Rome","people":3}'
BAD = '{"name":"Rome","people":"three"}'


def asked(text: str = "Rome?", *, retries: int = 2, **more: Any) -> Request:
    schema = Schema.of(City, retries=retries)
    fields = {"model": "m", "messages": [{"role": "user", "content": text}], "response_format": schema.response_format}
    return Request.of(fields, schema=schema, **more)


class Model:
    """Says what is in the script, one after the other, and remembers what it was asked."""

    def __init__(self, *script: str | HTTPResponse | BaseException) -> None:
        self.script = list(script)
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, http: HTTPRequest) -> HTTPResponse:
        self.bodies.append(msgspec.json.decode(http.body))
        said = self.script.pop(0)
        if isinstance(said, BaseException):
            raise said
        return answer(said) if isinstance(said, str) else said


def counts(engine: Engine) -> tuple[int, int, int, int]:
    stats = engine.snapshot()
    return stats.ok, stats.failed, stats.misfits, stats.attempts


async def fit(engine: Engine, request: Request) -> ParsedResponse[Any]:
    return await fitting(engine.execute, request, stats=engine.stats)


def test_an_answer_that_fits_is_asked_for_once() -> None:
    async def scenario() -> None:
        model = Model(GOOD)
        engine = make_engine(model)
        response = await fit(engine, asked())
        assert response.parsed == response.choices[0].message.parsed == City("Rome", 3)
        assert (response.attempts, response.rejected, response.text) == (1, (), GOOD)
        assert counts(engine) == (1, 0, 0, 1)
        assert model.bodies[0]["response_format"]["json_schema"]["name"] == "City"

    run_virtual(scenario)


def test_one_that_does_not_fit_is_shown_to_the_model_with_what_is_wrong() -> None:
    async def scenario() -> None:
        model = Model(BAD, "Sorry!", GOOD)
        engine = make_engine(model)
        response = await fit(engine, asked())
        assert response.parsed == City("Rome", 3)
        assert response.attempts == 3 and [answer.text for answer in response.rejected] == [BAD, "Sorry!"]
        first, second, third = (body["messages"] for body in model.bodies)
        assert second[:1] == third[:1] == first
        assert second[1] == {"role": "assistant", "content": BAD} and third[1]["content"] == "Sorry!"
        assert "Expected `int`, got `str` - at `$.people`" in second[2]["content"]
        assert '"people"' in second[2]["content"]  # the schema itself, for a server that did not heed it
        assert "not JSON" in third[2]["content"] and len(third) == 3
        assert all(body["response_format"] == model.bodies[0]["response_format"] for body in model.bodies)
        assert counts(engine) == (1, 0, 2, 3)

    run_virtual(scenario)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_bound_holds_and_the_last_answer_is_in_the_error(retries: int) -> None:
    async def scenario() -> None:
        model = Model(*[BAD] * 9)
        engine = make_engine(model)
        with pytest.raises(e.InvalidAnswerError) as caught:
            await fit(engine, asked(retries=retries))
        error = caught.value
        assert len(model.bodies) == retries + 1 == error.attempts == len(error.rejected) + 1
        assert error.response.text == BAD and error.retryable and error.code == "schema_mismatch"
        assert (error.status_code, error.endpoint) == (200, "test/m")
        assert "$.people" in str(error) and "three" not in str(error) and "Rome" not in str(error)
        assert ("asked" in str(error)) == (retries > 0)
        assert counts(engine) == (0, 1, retries + 1, retries + 1)
        assert engine.snapshot().errors == {"InvalidAnswerError": 1}

    run_virtual(scenario)


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (answer('{"name":"Ro', finish_reason="length"), "truncated", "allow more tokens"),
        (answer("", finish_reason="content_filter"), "refusal", "refused to answer"),
        (
            HTTPResponse(
                status=200,
                body=b'{"choices":[{"message":{"content":null,"refusal":"No."},"finish_reason":"stop"}]}',
            ),
            "refusal",
            "refused to answer",
        ),
    ],
)
def test_where_asking_again_is_of_no_use_it_is_not_paid_for(said: HTTPResponse, code: str, words: str) -> None:
    async def scenario() -> None:
        model = Model(said)
        engine = make_engine(model)
        with pytest.raises(e.InvalidAnswerError, match=words) as caught:
            await fit(engine, asked())
        assert caught.value.code == code and not caught.value.retryable and caught.value.response is not None

    run_virtual(scenario)


def test_an_answer_that_is_whole_in_spite_of_its_finish_reason_is_one() -> None:
    async def scenario() -> None:
        engine = make_engine(Model(answer(GOOD + " and so", finish_reason="length")))
        assert (await fit(engine, asked())).parsed == City("Rome", 3)

    run_virtual(scenario)


def test_a_tool_call_has_no_value_and_is_no_misfit() -> None:
    async def scenario() -> None:
        calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        choice = {"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}
        engine = make_engine(Model(HTTPResponse(status=200, body=msgspec.json.encode({"choices": [choice]}))))
        response = await fit(engine, asked())
        assert response.parsed is None and response.choices[0].message.tool_calls is not None

    run_virtual(scenario)


def test_of_several_choices_each_must_fit_and_has_its_value() -> None:
    two = [{"message": {"content": text}, "finish_reason": "stop"} for text in (GOOD, '{"name":"Oslo","people":1}')]
    found = fitted(Response(body=msgspec.json.encode({"choices": two})), Schema.of(City))
    assert [choice.message.parsed for choice in found.choices] == [City("Rome", 3), City("Oslo", 1)]
    assert found.parsed == City("Rome", 3)
    two[1]["message"] = {"content": BAD}
    with pytest.raises(e.InvalidAnswerError):
        fitted(Response(body=msgspec.json.encode({"choices": two})), Schema.of(City))


def test_a_conversation_of_the_responses_api_is_continued_in_its_own_shape() -> None:
    def said(text: str) -> HTTPResponse:
        item = {"type": "message", "content": [{"type": "output_text", "text": text}]}
        return HTTPResponse(status=200, body=msgspec.json.encode({"status": "completed", "output": [item]}))

    async def scenario() -> None:
        schema = Schema.of(City)
        for wanted in ("Rome?", [{"role": "user", "content": "Rome?"}]):
            model = Model(said(BAD), said(GOOD))
            fields = {"model": "m", "input": wanted, "text": schema.text_format}
            response = await fit(make_engine(model), Request.of(fields, path=RESPONSES, schema=schema))
            assert response.parsed == City("Rome", 3)
            again = model.bodies[1]["input"]
            assert again[0] == {"role": "user", "content": "Rome?"}
            assert again[1] == {"type": "message", "role": "assistant", "content": BAD}
            assert again[2]["role"] == "user" and "$.people" in again[2]["content"]

    run_virtual(scenario)


def test_the_cache_holds_each_answer_as_it_came_so_the_conversation_is_free_the_second_time() -> None:
    async def scenario() -> None:
        model = Model(BAD, GOOD)
        engine = make_engine(model, cache=InMemoryCache())
        first = await fit(engine, asked())
        second = await fit(engine, asked())
        assert not first.cached and first.attempts == 2
        assert second.cached and second.attempts == 0 and second.parsed == City("Rome", 3)
        assert [answer.cached for answer in second.rejected] == [True]
        assert len(model.bodies) == 2 and counts(engine) == (2, 0, 2, 2)
        assert engine.snapshot().cached == 2 and engine.snapshot().cache_hit_ratio == 0.5
        plain = await engine.execute(msgspec.structs.replace(asked(), schema=None))
        assert plain.cached and plain.text == BAD  # as it came

    run_virtual(scenario)


def test_who_asks_the_same_without_a_schema_gets_the_answer_without_a_value() -> None:
    """They share one flight, whose answer the other's value must not get into."""

    async def scenario() -> None:
        engine = make_engine(Model(GOOD), cache=InMemoryCache())
        plain = msgspec.structs.replace(asked(), schema=None)
        found, other = await asyncio.gather(fit(engine, asked()), engine.execute(plain))
        assert found.parsed == City("Rome", 3)
        assert other.choices[0].message.parsed is None and not isinstance(other, ParsedResponse)

    run_virtual(scenario)


def test_each_question_is_admitted_by_itself() -> None:
    async def scenario() -> None:
        engine = make_engine(Model(BAD, GOOD), limits=Limits(rpm=1))
        await fit(engine, asked())
        assert engine.clock.now() >= 60

    run_virtual(scenario)


def test_where_asking_again_fails_the_paid_answer_is_kept_and_counted_once() -> None:
    async def scenario() -> None:
        engine = make_engine(Model(BAD, refusal(400)), retry=Retry(attempts=1))
        with pytest.raises(e.InvalidAnswerError, match="asking again failed: 400 from the provider") as caught:
            await fit(engine, asked())
        error = caught.value
        assert isinstance(error.__cause__, e.BadRequestError)
        assert error.response.text == BAD and error.rejected == () and error.attempts == 2
        assert counts(engine) == (0, 1, 1, 2) and engine.snapshot().errors == {"InvalidAnswerError": 1}

    run_virtual(scenario)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"choices":[{"message":{"content":"\\ud800"}}]}', "cannot be read"),
        (b"no JSON", "cannot be read"),
    ],
)
async def test_an_answer_that_cannot_be_read_is_kept_too(body: bytes, words: str) -> None:
    async def execute(request: Request) -> Response:
        return Response(body=body)

    with pytest.raises(e.InvalidAnswerError, match=words) as caught:
        await fitting(execute, asked())
    assert caught.value.response.body == body and caught.value.code == "unreadable"


async def test_a_conversation_that_cannot_be_continued_ends_with_the_answer_there_is() -> None:
    """Such as one whose messages are no list, which some servers take."""

    async def execute(request: Request) -> Response:
        return Response(body=answer(BAD).body)

    schema = Schema.of(City)
    with pytest.raises(e.InvalidAnswerError, match="it cannot be asked for again") as caught:
        await fitting(execute, Request.of({"messages": "Rome?"}, schema=schema))
    assert caught.value.response.text == BAD and caught.value.rejected == ()


def test_a_first_question_that_fails_is_its_own_error() -> None:
    async def scenario() -> None:
        engine = make_engine(Model(refusal(400)))
        with pytest.raises(e.BadRequestError):
            await fit(engine, asked())
        assert counts(engine) == (0, 1, 0, 1)

    run_virtual(scenario)


def test_a_budget_bounds_the_questions_too() -> None:
    async def scenario() -> None:
        engine = make_engine(Model(BAD))
        endpoint = await engine.router.resolve("m")
        price = Price(provider="test", model="m", input=0.0, output=1e6)  # a dollar a token
        request = asked().with_fields(max_tokens=3)
        engine.budget = Budget(4)
        endpoint.purse = Purse(engine.budget, price)
        with pytest.raises(e.InvalidAnswerError) as caught:
            await fit(engine, request)
        assert isinstance(caught.value.__cause__, e.BudgetExceededError) and caught.value.response.text == BAD
        assert engine.budget.spent == 3 and counts(engine) == (0, 1, 1, 1) and engine.snapshot().unsent == 0

    run_virtual(scenario)


def test_a_request_that_is_cancelled_between_two_questions_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        engine = make_engine(Model(BAD, GOOD), limits=Limits(rpm=1))
        task = asyncio.create_task(fit(engine, asked()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        limiter = engine.router.endpoints[0].limiter
        assert (engine.stats.waiting, engine.stats.in_flight, limiter.waiting, limiter.in_flight) == (0, 0, 0, 0)

    run_virtual(scenario)


def rows(count: int, make: Callable[[int], Request]) -> list[Row]:
    return [Row(index=i, custom_id=str(i), request=make(i)) for i in range(count)]


def test_in_bulk_every_row_has_its_value_or_its_error() -> None:
    """Rows with and without a schema stand side by side; the order and the counts are those of the rows."""

    async def scenario() -> None:
        def model(http: HTTPRequest) -> HTTPResponse:
            body = msgspec.json.decode(http.body)
            number = int(body["messages"][0]["content"])
            again = len(body["messages"]) > 1
            return answer(BAD if number % 3 == 2 or (number % 3 == 1 and not again) else GOOD)

        def make(i: int) -> Request:
            return asked(str(i), priority=1) if i % 2 else Request.of({"model": "m", "messages": [{"content": str(i)}]})

        engine = make_engine(model)
        found = [o async for o in outcomes(engine, rows(60, make), concurrency=8, ordered=True)]
        for i, outcome in enumerate(found):
            if i % 2 == 0:
                assert outcome.ok and outcome.parsed is None
            elif i % 3 == 2:
                assert isinstance(outcome.error, e.InvalidAnswerError) and outcome.attempts == 3
            else:
                assert outcome.parsed == City("Rome", 3) and outcome.attempts == (2 if i % 3 == 1 else 1)
        assert counts(engine) == (50, 10, 10 + 30, 30 + 10 * 1 + 10 * 2 + 10 * 3)

    run_virtual(scenario)


@settings(max_examples=60)
@given(st.data())
def test_whatever_the_model_says_the_counts_are_those_of_rows_and_answers(data: st.DataObject) -> None:
    """Every row is ok or failed, once; every answer that did not fit is a misfit; every attempt was sent."""
    kinds = st.sampled_from(["good", "bad", "bad", "prose", "400", "500"])
    bounds = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    cached = data.draw(st.booleans())
    said: list[str] = []

    def model(http: HTTPRequest) -> HTTPResponse:
        said.append(data.draw(kinds))
        if said[-1].isdigit():
            return refusal(int(said[-1]))
        return answer({"good": GOOD, "bad": BAD, "prose": "Well."}[said[-1]])

    async def scenario() -> None:
        cache = InMemoryCache() if cached else None
        engine = make_engine(model, retry=Retry(attempts=2, patient=False), cache=cache)
        made = rows(len(bounds), lambda i: asked(str(i % 5), retries=bounds[i], priority=1))
        found = [outcome async for outcome in outcomes(engine, made, concurrency=4)]
        stats = engine.snapshot()
        assert len(found) == len(bounds) == stats.ok + stats.failed
        assert stats.ok == sum(outcome.ok for outcome in found)
        assert stats.errors == Counter(type(outcome.error).__name__ for outcome in found if outcome.error)
        assert stats.attempts == len(said)
        if not cached:
            assert stats.misfits == said.count("bad") + said.count("prose")
            assert sum(outcome.attempts for outcome in found) == len(said)
        for outcome in found:
            if isinstance(outcome.error, e.InvalidAnswerError):
                assert outcome.error.response is not None and len(outcome.error.rejected) <= bounds[outcome.index]
            elif outcome.ok:
                assert outcome.parsed == City("Rome", 3)

    run_virtual(scenario)


def test_a_run_that_is_stopped_asks_no_more_and_keeps_the_answer_it_has() -> None:
    async def scenario() -> None:
        async def slow(http: HTTPRequest) -> HTTPResponse:
            await asyncio.sleep(10)
            return answer(BAD)

        engine = make_engine(slow)
        workers = Workers(engine, rows(1, lambda i: asked(priority=1)), concurrency=1)
        await asyncio.sleep(1)
        workers.drain()
        await workers.news()
        outcome = workers.take()
        assert outcome is not None and isinstance(outcome.error, e.InvalidAnswerError)
        assert outcome.error.response.text == BAD and engine.stats.attempts == 1
        await workers.aclose()

    run_virtual(scenario)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"cost": 2.0}, {"cost": 1.0}, (False, 2, 3.0)),
        ({"cost": 2.0}, {"cost": 0.0, "cached": True, "attempts": 0}, (False, 1, 2.0)),
        ({"cost": 0.0, "cached": True, "attempts": 0}, {"cost": 0.0, "cached": True, "attempts": 0}, (True, 0, 0.0)),
        ({"cost": None}, {"cost": 1.0}, (False, 2, None)),
    ],
)
async def test_what_an_answer_took_is_what_all_its_questions_took(
    first: dict[str, Any], second: dict[str, Any], told: tuple[bool, int, float | None]
) -> None:
    """It comes from the cache only if all of them do."""
    script = [Response(body=answer(BAD).body, **first), Response(body=answer(GOOD).body, **second)]

    async def execute(request: Request) -> Response:
        return script.pop(0)

    found = await fitting(execute, asked())
    assert (found.cached, found.attempts, found.cost) == told


async def test_an_executor_without_counters_will_do() -> None:
    said = [BAD, GOOD]

    async def execute(request: Request) -> Response:
        return Response(body=answer(said.pop(0)).body)

    assert (await fitting(execute, asked())).parsed == City("Rome", 3)
