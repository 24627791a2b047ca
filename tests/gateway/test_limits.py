"""gateway: limits told truthfully, queues with an end, retries that do not multiply, and caches as the client wants."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fastllm import build
from fastllm.answers import Usage
from fastllm.build import EngineOptions
from fastllm.errors import BudgetExceededError, LLMError, PermissionDeniedError, RateLimitError
from fastllm.gateway.asking import cache_control
from fastllm.gateway.auth import Tenant
from fastllm.gateway.tenancy import Tenancy
from fastllm.options import CacheControl, Limits, Route, Timeout, Upstream
from fastllm.testing import MockConfig
from kits.gateway import BODY, CHAT, connection, head_and_body, served


class Tenants:
    """Admits with one word, and notes what was asked for and how it ended."""

    def __init__(self, error: LLMError | None = None) -> None:
        self.error = error
        self.asked: list[tuple[float, float | None]] = []
        self.ends: list[tuple[Usage | None, float | None]] = []

    def check(self, token: str) -> Tenant:
        return Tenant(id=token, key=token)

    def admit(self, key: Any, tokens: float, cost_bound: float | None) -> Tenants:
        self.asked.append((tokens, cost_bound))
        if self.error is not None:
            raise self.error
        return self

    def settle(self, usage: Usage | None, cost: float | None) -> None:
        self.ends.append((usage, cost))

    def release(self) -> None:
        self.ends.append((None, None))

    def lines(self, key: Any = None) -> bytes:
        return b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\n"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_tenant_used_is_settled_once_and_its_limits_are_told(stream: bool) -> None:
    tenants = Tenants()
    async with served(keys=tenants, app={"admissions": tenants}) as gate:
        for count in (1, 2):
            answer = await gate.ask(body={**BODY, "stream": stream, "max_tokens": 40}, x_api_key="a")
            assert answer.headers["x-ratelimit-limit-requests"] == "60"
            await gate.idle()
            assert len(tenants.ends) == count
        usage, _ = tenants.ends[-1]
        assert usage is not None and usage.completion_tokens > 0
        assert all(tokens >= 40 for tokens, _ in tenants.asked)


async def test_a_tenants_cost_is_bounded_by_the_price_and_settled_by_the_usage(tmp_path: Any) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('[providers.base_url.models."m"]\ninput = 1.0\noutput = 2.0\n')
    tenants = Tenants()
    async with served(keys=tenants, app={"admissions": tenants}, engine={"prices": prices}) as gate:
        for _ in range(2):
            await gate.ask(body={**BODY, "max_tokens": 1000}, x_api_key="a")
        (_, first), (_, bound) = tenants.asked
        assert bound is not None and bound == first and bound > 1000 * 2e-6
        usage, cost = tenants.ends[-1]
        assert usage is not None and cost == pytest.approx(usage.prompt_tokens * 1e-6 + usage.completion_tokens * 2e-6)
        assert cost < bound


async def test_a_stream_that_is_left_costs_its_prompt_and_what_had_come_whatever_it_might_have_cost(
    tmp_path: Any,
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('[providers.base_url.models."m"]\ninput = 1.0\noutput = 2.0\n')
    tenants = Tenants()
    mock = MockConfig(token_rate=50.0, answer_bytes=4000)
    async with served(mock, keys=tenants, app={"admissions": tenants}, engine={"prices": prices}) as gate:
        async with connection(gate.server.port) as wire:
            body = {**BODY, "stream": True, "max_tokens": 100_000}
            await wire.send(head_and_body("POST", CHAT, body, authorization="Bearer a"))
            await wire.head()
            await anext(wire.pieces())
        await gate.idle()
        ((_, bound),), ((usage, cost),) = tenants.asked, tenants.ends
        assert usage is not None and bound is not None and bound > 0.2
        assert cost == pytest.approx(usage.prompt_tokens * 1e-6 + usage.completion_tokens * 2e-6)
        assert cost < 0.001 and gate.records[-1].cost == cost


async def test_a_key_that_the_provider_refused_is_told_of_alike_while_nobody_is_asked() -> None:
    async with served() as gate:
        gate.mock.script(["401"])
        for _ in range(2):
            answer = await gate.ask()
            assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_authentication")
        assert gate.mock.stats.requests == 1


@pytest.mark.parametrize(
    ("error", "status", "after", "again"),
    [
        (RateLimitError("60 requests a minute", code="rate_limit_exceeded", retry_after=1.2), 429, "2", "true"),
        (RateLimitError("later", code="rate_limit_exceeded", retry_after=3600.0), 429, "3600", "false"),
        (BudgetExceededError("no money left today", retry_after=7200.0), 429, "7200", "false"),
        (PermissionDeniedError("this key has expired"), 403, None, None),
    ],
)
async def test_a_tenant_over_its_limits_is_told_until_when(
    error: LLMError, status: int, after: str | None, again: str | None
) -> None:
    tenants = Tenants(error)
    async with served(keys=tenants, app={"admissions": tenants}) as gate:
        answer = await gate.ask(x_api_key="a")
        assert (answer.status, answer.headers.get("retry-after")) == (status, after)
        assert answer.headers.get("x-should-retry") == again
        assert answer.headers["x-ratelimit-limit-requests"] == "60"
        assert tenants.ends == [] and gate.mock.stats.requests == 0


async def test_a_key_is_told_its_limits_with_every_answer_of_a_model(tmp_path: Any) -> None:
    tenancy = Tenancy(tmp_path / "gateway.db")
    try:
        _, secret = tenancy.store.create("team", rpm=2, tpm=1e6)
        async with served(keys=tenancy.keys(None), app={"admissions": tenancy}) as gate:
            told = []
            for fault in ([], ["400"], []):
                gate.mock.script(fault)
                answer = await gate.ask(x_api_key=secret)
                left, reset = (answer.headers[f"x-ratelimit-{what}-requests"] for what in ("remaining", "reset"))
                told.append((answer.status, answer.headers.get("x-fastllm-attempts"), left))
                assert 60 < float(reset.removesuffix("s")) < 62
            assert told == [(200, "1", "1"), (400, "1", "0"), (429, None, "0")]
            assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 1e6
    finally:
        tenancy.close()


async def test_a_tenant_gets_everything_back_for_what_failed() -> None:
    tenants = Tenants()
    async with served(keys=tenants, app={"admissions": tenants}) as gate:
        gate.mock.script(["400", "500", "500", "500"])
        for _ in range(2):
            await gate.ask(x_api_key="a")
        assert tenants.ends == [(None, None)] * 2


async def test_a_wait_that_would_be_too_long_is_refused_with_the_time_to_come_back() -> None:
    async with served(engine={"limits": Limits(rpm=2)}, queue=1.0) as gate:
        assert [(await gate.ask()).status for _ in range(2)] == [200, 200]
        began = time.monotonic()
        answer = await gate.ask()
        assert time.monotonic() - began < 0.5
        assert (answer.status, answer.json()["error"]["code"]) == (429, "queue_timeout")
        assert 50 <= int(answer.headers["retry-after"]) <= 65
        assert int(answer.headers["retry-after-ms"]) == pytest.approx(
            1000 * int(answer.headers["retry-after"]), abs=1000
        )


@pytest.mark.fault("95")
@pytest.mark.parametrize("routed", [False, True])
async def test_a_full_queue_sheds_what_comes_after_and_serves_what_waits(routed: bool) -> None:
    engine: dict[str, Any] = {"limits": Limits(concurrency=2, adaptive=False)}
    config = MockConfig(latency=0.3)
    async with served(config, engine=engine, queue_size=3) as gate:
        if routed:
            upstream = Upstream(model="m", base_url=gate.mock.base_url, limits=Limits(concurrency=2, adaptive=False))
            await _routed(gate, upstream)
        await gate.ask()  # the model is known
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(gate.ask(body={**BODY, "seed": number})) for number in range(8)]
        answers = [task.result() for task in tasks]
        statuses = sorted(answer.status for answer in answers)
        assert statuses == [200] * 5 + [429] * 3
        shed = next(answer for answer in answers if answer.status == 429)
        assert shed.json()["error"]["code"] == "queue_full"
        assert int(shed.headers["retry-after"]) >= 1 and shed.headers["x-should-retry"] == "true"
        await gate.idle()


async def _routed(gate: Any, upstream: Upstream) -> None:
    options = EngineOptions(routes={"m": Route(endpoints=[upstream])}, timeout=gate.engine.timeout)
    engine = build.reloaded(gate.engine, options)
    gate.gateway.reload(engine, gate.gateway.options, gate.gateway.catalog)


async def test_an_upstreams_long_wait_is_passed_on() -> None:
    async with served(queue=5.0) as gate:
        gate.mock.script(["429:retry-after=40"])
        answer = await gate.ask()
        assert (answer.status, answer.headers["retry-after"], answer.headers["x-should-retry"]) == (429, "40", "true")
        assert gate.mock.stats.requests == 1
        again = await gate.ask()  # it is remembered
        assert again.status == 429 and 30 <= int(again.headers["retry-after"]) <= 40
        assert gate.mock.stats.requests == 1


@pytest.mark.fault("96")
@pytest.mark.parametrize(("count", "sent"), [(None, 3), ("0", 3), ("1", 2), ("2", 1), ("9", 1), ("x", 3), ("-1", 3)])
async def test_retries_of_the_client_are_not_multiplied(count: str | None, sent: int) -> None:
    async with served() as gate:
        gate.mock.script(["500"] * 10)
        headers = {} if count is None else {"x_stainless_retry_count": count}
        answer = await gate.ask(**headers)
        assert (answer.status, gate.mock.stats.requests) == (500, sent)
        assert answer.headers["x-fastllm-attempts"] == str(sent)


@pytest.mark.fault("96")
@pytest.mark.parametrize(
    ("seconds", "waits"), [("0.2", False), ("600", True), ("nan", True), ("-1", True), ("x", True)]
)
async def test_a_client_that_waits_for_less_gets_its_answer_by_then(seconds: str, waits: bool) -> None:
    timeout = Timeout(total=30.0, queue=5.0)
    async with served(MockConfig(latency=0.5), engine={"timeout": timeout}) as gate:
        answer = await gate.ask(x_stainless_timeout=seconds)
        assert answer.status == (200 if waits else 504)
        await gate.idle()


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("no-cache", CacheControl(read=False)),
        ("No-Store", CacheControl(write=False)),
        ("no-cache, no-store", CacheControl(read=False, write=False)),
        ("max-age=60", CacheControl(max_age=60.0)),
        ('max-age="5", private', CacheControl(max_age=5.0)),
        ("max-age=0", CacheControl(max_age=0.0)),
        ("private", None),
        ("", None),
        ("max-age=-1", None),
        ("max-age", None),
        ("no-cached", None),
    ],
)
def test_cache_control_is_read(text: str, control: CacheControl | None) -> None:
    assert cache_control(text) == control


async def test_a_client_says_what_it_wants_of_the_cache() -> None:
    async with served(engine={"cache": "memory"}) as gate:

        async def ask(**headers: str) -> str:
            answer = await gate.ask(**headers)
            return answer.headers["x-fastllm-cache"]

        assert await ask(cache_control="no-store") == "miss"
        assert await ask() == "miss"  # the first was not kept
        assert await ask() == "hit"
        assert await ask(cache_control="no-cache") == "miss"
        assert await ask(cache_control="max-age=0") == "miss"
        assert await ask(cache_control="max-age=100") == "hit"
        answer = await gate.ask(body={**BODY, "stream": True})
        assert answer.headers["x-fastllm-cache"] == "hit" and answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.headers["x-fastllm-attempts"] == "0"
        assert gate.mock.stats.requests == 4
        record = gate.records[-1]
        assert record.cached and record.cost in (0.0, None)


async def test_interactive_requests_that_wait_are_served_in_their_order() -> None:
    async with served(MockConfig(latency=0.05), engine={"limits": Limits(concurrency=1, adaptive=False)}) as gate:
        order: list[int] = []

        async def ask(number: int) -> None:
            async with connection(gate.server.port) as wire:
                await wire.send(head_and_body("POST", CHAT, {**BODY, "seed": number}))
                await wire.answer()
                order.append(number)

        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(ask(number)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]
