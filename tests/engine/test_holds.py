"""engine/holds: what people are told while an endpoint stands still."""

from __future__ import annotations

import asyncio
import logging
import random
import re

import pytest

from fastllm import errors as e
from fastllm.engine.holds import STEP
from fastllm.options import Limits, Retry
from fastllm.testing.clock import run_virtual
from fastllm.types import HTTPResponse
from kits.engine import answer, make_engine, now, refusal, request


def batch(text: str = "hello") -> object:
    return request(text, priority=1)


def test_a_long_retry_after_is_told_with_its_end_and_its_status(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        answers = [refusal(429, retry_after="3600"), answer()]
        engine = make_engine(lambda http: answers.pop(0))
        asked = asyncio.create_task(engine.execute(request(priority=1)))
        await asyncio.sleep(10)
        (hold,) = engine.snapshot().holds
        assert hold.endpoint == "test/m" and re.fullmatch(r"parked until [-0-9: ]+ \(429\)", hold.why)
        assert hold.until == pytest.approx(engine.clock.time() + 3590)
        await asked
        assert engine.snapshot().holds == ()

    with caplog.at_level(logging.WARNING, "fastllm"):
        run_virtual(scenario)
    assert [record.message for record in caplog.records] == ["test/m wants nobody for 3600 s (429): waiting"]


def test_an_outage_is_told_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        down = False

        def handler(http: object) -> object:
            if down:
                raise e.APIConnectionError("refused", code="connection_refused", sent=False)
            return answer()

        engine = make_engine(handler)  # type: ignore[arg-type]
        await engine.execute(request(priority=1))
        down = True
        asked = [asyncio.create_task(engine.execute(request(str(i), priority=1))) for i in range(20)]
        await asyncio.sleep(30)
        (hold,) = engine.snapshot().holds
        assert hold.why == "no answer, asking every 1.5 s" and hold.until is None
        down = False
        await asyncio.gather(*asked)
        assert engine.snapshot().holds == ()

    with caplog.at_level(logging.WARNING, "fastllm"):
        run_virtual(scenario)
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and "does not answer" in told[0] and re.search(r"answers again, after \d+ s", told[1])


def test_outages_of_a_moment_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """With a provider that fails four times in ten, the breaker opens now and then for as long as an answer takes."""

    async def scenario() -> None:
        spoiled = random.Random(5)
        opened = 0

        async def handler(http: object) -> object:
            nonlocal opened
            await asyncio.sleep(spoiled.uniform(0.05, 0.4))
            opened += engine.router.endpoints[0].limiter.breaker.opened
            if spoiled.random() < 0.4:
                raise e.APIConnectionError("reset", code="connection_reset")
            return answer()

        engine = make_engine(handler, retry=Retry(attempts=20))  # type: ignore[arg-type]

        async def work() -> None:
            for i in range(100):
                await engine.execute(request(str(i), priority=1))

        await asyncio.gather(*[work() for _ in range(20)])
        assert opened, "or it shows nothing"

    with caplog.at_level(logging.WARNING, "fastllm"):
        run_virtual(scenario)
    assert caplog.records == []


def test_rows_given_up_before_they_were_sent_are_unsent_and_not_failed() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(401, "invalid_api_key"), retry=Retry(attempts=1))
        done = [asyncio.create_task(engine.execute(request(str(i), priority=1))) for i in range(20)]
        errors = await asyncio.gather(*done, return_exceptions=True)
        stopped = sum(isinstance(error, e.StoppedError) for error in errors)
        seen = engine.snapshot()
        assert stopped > 10 and (seen.unsent, seen.failed, seen.done) == (stopped, 20 - stopped, 20 - stopped)
        assert "StoppedError" not in seen.errors

    run_virtual(scenario)


def test_a_day_that_is_used_up_is_told() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(rpd=2))
        for text in "ab":
            await engine.execute(request(text, priority=1))
        (hold,) = engine.snapshot().holds
        assert hold.why.startswith("day's limit used up until ")
        assert hold.until == pytest.approx(engine.clock.time() + 86400, rel=0.01)

    run_virtual(scenario)


def test_room_says_when_a_limit_of_a_minute_will_be_free_again() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer(), limits=Limits(rpm=10))
        for i in range(4):
            await engine.execute(request(str(i)))
        await asyncio.sleep(30)
        await engine.execute(request("late"))
        room = engine.snapshot().rooms["requests"]
        assert room.limit == 10 and room.used[0] == 5
        assert [room.used[int(at / STEP)] for at in (25, 35, 60, 65)] == [5, 1, 1, 0]

    run_virtual(scenario)


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [(402, None, "there is no credit left"), (429, "insufficient_quota", "there is no credit left"),
     (401, "invalid_api_key", "the key was refused")],
)  # fmt: skip
def test_rows_that_were_not_sent_say_whether_key_or_credit_was_the_reason(status: int, code: str, why: str) -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: refusal(status, code))
        for _ in range(2):
            with pytest.raises(e.LLMError) as caught:
                await engine.execute(request(priority=1))
        assert isinstance(caught.value, e.StoppedError) and why in caught.value.message

    run_virtual(scenario)


def test_limits_that_were_told_are_learnt_and_those_that_were_set_are_known_already() -> None:
    async def scenario() -> None:
        told = {"x_ratelimit_limit_requests": "600", "x_ratelimit_remaining_requests": "599"}
        for limits, learnt in ((Limits(), {"requests_per_minute": 600.0}), (Limits(rpm=100), {})):
            engine = make_engine(lambda http: answer(**told), limits=limits)
            await engine.execute(request())
            found = engine.snapshot().learnt.get("test/m", {})
            assert {name: limit.limit for name, limit in found.items()} == learnt

    run_virtual(scenario)


def test_what_is_said_of_an_outage_quotes_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Errors hold the beginning of what came instead of an answer; a log must not: it may be an answer."""

    async def scenario() -> None:
        said = iter([answer()])
        broken = (HTTPResponse(status=200, body=b'{"choices": canary'), HTTPResponse(status=500, body=b"canary"))
        engine = make_engine(lambda http: next(said, broken[int(now()) % 2]), retry=Retry(attempts=4))
        await engine.execute(request())
        await asyncio.gather(*(engine.execute(request(str(i))) for i in range(8)), return_exceptions=True)
        await engine.aclose()

    run_virtual(scenario)
    assert "does not answer" in caplog.text and "canary" not in caplog.text
