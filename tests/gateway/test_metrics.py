"""gateway: /metrics tells what was asked, what it cost and where it waits, in bounded words and without secrets."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from fastllm.answers import TokenDetails, Usage
from fastllm.engine.events import AttemptFailed, RequestDone
from fastllm.errors import APIConnectionError, RateLimitError
from fastllm.gateway.auth import MasterKey
from fastllm.gateway.catalog import Catalog
from fastllm.gateway.counters import MOST_SERIES, Counters
from fastllm.gateway.metrics import Metrics
from fastllm.gateway.record import Record
from fastllm.gateway.tenancy import Tenancy
from fastllm.options import Limits, Retry
from fastllm.policy.names import MOST_NAMES
from fastllm.testing import MockConfig
from fastllm.types import CHAT as CHAT_PATH, Request
from kits.gateway import BODY, KEY, Served, served

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(families: Iterable[Any]) -> Samples:
    found: Samples = {}
    for family in families:
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} is told twice"
            found[key] = sample.value
    return found


def parsed(text: bytes) -> Samples:
    return samples_of(text_families(text.decode()))


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


async def scraped(gate: Served, **headers: str) -> Samples:
    await gate.idle()  # a request is counted once its answer is out
    answer = await gate.get("/metrics", **headers)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(answer.body)


def record(**fields: Any) -> Record:
    usual = {"at": 0.0, "request_id": "r", "method": "POST", "route": CHAT_PATH, "status": 200, "seconds": 0.5}
    return Record(**{**usual, **fields})


async def test_a_request_is_told_by_route_model_and_status_with_its_times_tokens_and_cost() -> None:
    async with served(metrics=Metrics(), engine={"cache": "memory"}) as gate:
        answer = await gate.ask()
        assert answer.status == (await gate.ask()).status == 200
        found = await scraped(gate)
        usage = answer.json()["usage"]
        asked = {"route": CHAT_PATH, "model": "m", "status": "200"}
        assert value(found, "fastllm_requests_total", **asked, cached="false") == 1
        assert value(found, "fastllm_requests_total", **asked, cached="true") == 1
        assert value(found, "fastllm_tokens_total", model="m", kind="prompt") == usage["prompt_tokens"]
        assert value(found, "fastllm_tokens_total", model="m", kind="completion") == usage["completion_tokens"]
        for name in ("duration", "first_byte", "overhead"):
            whole = f"fastllm_request_{name}_seconds"
            assert value(found, f"{whole}_count", route=CHAT_PATH) == 2
            assert value(found, f"{whole}_bucket", route=CHAT_PATH, le="+Inf") == 2
            assert 0 < (value(found, f"{whole}_sum", route=CHAT_PATH) or 0) < 60
        assert value(found, "fastllm_endpoint_attempts_total", endpoint="m", outcome="ok") == 1
        assert value(found, "fastllm_attempts_total") == 1
        assert value(found, "fastllm_requests_in_flight") == 1
        assert (value(found, "fastllm_endpoint_concurrency_limit", endpoint="m") or 0) >= 1
        assert (value(found, "process_resident_memory_bytes") or 0) > 1e6
        assert [labels for name, labels in found if name == "fastllm_build_info"]
        assert (
            value(
                await scraped(gate), "fastllm_requests_total", route="/metrics", model="", status="200", cached="false"
            )
            == 1
        )


async def test_limits_and_429s_of_an_endpoint_are_told() -> None:
    limits = Limits(rpm=600, tpm=100_000)
    more: dict[str, Any] = {"limits": limits, "retry": Retry(attempts=2, base=0.001, cap=0.002, retry_after_cap=0.5)}
    mock = MockConfig(error_rate=1.0, errors=("429",))
    async with served(mock, metrics=Metrics(), engine=more, catalog=Catalog(["m", "*"])) as gate:
        assert (await gate.ask()).status == 429
        found = await scraped(gate)
        sent = gate.engine.stats.attempts
        assert value(found, "fastllm_endpoint_attempts_total", endpoint="m", outcome="RateLimitError") == sent
        assert value(found, "fastllm_rate_limited_total") == sent
        assert value(found, "fastllm_retries_total") == (
            value(found, "fastllm_endpoint_retries_total", endpoint="m") or 0
        )
        assert value(found, "fastllm_errors_total", route=CHAT_PATH, error="RateLimitError") == 1
        assert value(found, "fastllm_endpoint_requests_per_minute_limit", endpoint="m") is not None
        assert value(found, "fastllm_endpoint_tokens_per_minute_limit", endpoint="m") is not None


async def test_head_and_openmetrics() -> None:
    async with served(metrics=Metrics()) as gate:
        await gate.ask()
        await gate.idle()
        head = await gate.get("/metrics", "HEAD")
        assert head.status == 200 and int(head.headers["content-length"]) > 1000 and head.body == b""
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        answer = await gate.get("/v1/metrics", accept=accept)
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        found = samples_of(openmetrics_families(answer.body.decode()))
        asked = {"route": CHAT_PATH, "model": "m", "status": "200", "cached": "false"}
        assert value(found, "fastllm_requests_total", **asked) == 1


async def test_no_prompt_key_or_made_up_name_of_a_client_is_ever_shown() -> None:
    """Wherever a client puts a secret: into a prompt, a key, an id, a path, or the name of a model."""
    canary = "canary-4711"
    mock = MockConfig(any_model=False, models=("m",))
    async with served(mock, key=KEY, metrics=Metrics()) as gate:
        body = {**BODY, "messages": [{"role": "user", "content": canary}]}
        good = {"authorization": f"Bearer {KEY}"}
        assert (await gate.ask(body=body, x_request_id=canary, **good)).status == 200
        assert (await gate.ask(body=body, authorization=f"Bearer {canary}")).status == 401
        assert (await gate.ask(body={**body, "model": canary}, **good)).status == 404
        assert (
            await gate.ask(f"/openai/deployments/{canary}/chat/completions", body=BODY["messages"], **good)
        ).status == 400
        assert (await gate.get(f"/v1/models/{canary}", **good)).status == 200
        assert (await gate.get(f"/{canary}", **good)).status == 404
        assert (
            await gate.ask("/v1/messages/count_tokens", {**body, "model": canary, "max_tokens": 1}, **good)
        ).status == 200
        found = await scraped(gate, **good)
        text = (await gate.get("/metrics", **good)).body
        assert canary.encode() not in text and KEY.encode() not in text and b"upstream-key" not in text
        assert value(found, "fastllm_endpoint_attempts_total", endpoint="other", outcome="NotFoundError") == 1
        assert value(found, "fastllm_key_refusals_total", key="", reason="invalid_api_key") == 1


async def test_keys_are_told_by_their_ids_with_what_they_were_refused(tmp_path: Path) -> None:
    tenancy = Tenancy(tmp_path / "gateway.db")
    try:
        key, secret = tenancy.store.create("team", rpm=1)
        keys = tenancy.keys(MasterKey(KEY))
        async with served(keys=keys, app={"admissions": tenancy}, metrics=Metrics()) as gate:
            assert [(await gate.ask(x_api_key=secret)).status for _ in range(2)] == [200, 429]
            found = await scraped(gate, x_api_key=KEY)
            assert value(found, "fastllm_key_requests_total", key=key.id) == 2
            assert (value(found, "fastllm_key_tokens_total", key=key.id, kind="prompt") or 0) > 0
            assert value(found, "fastllm_key_refusals_total", key=key.id, reason="rate_limit_exceeded") == 1
            assert value(found, "fastllm_key_requests_total", key="master") is None
            assert value(await scraped(gate, x_api_key=KEY), "fastllm_key_requests_total", key="master") == 1
            assert (await gate.get("/metrics", x_api_key=secret)).status == 403
    finally:
        tenancy.close()


def test_what_the_operator_named_is_a_label_before_it_was_answered_for() -> None:
    class Named:
        catalog = Catalog(["ours", "openai/*"])
        under_way, draining = 0, False

    counters = Counters()
    counters.watch(Named())  # type: ignore[arg-type]
    counters(record(model="ours", status=500, kind="InternalServerError"))
    counters(record(model="openai/made-up", status=404, kind="NotFoundError"))
    assert {key[1] for key, _ in counters.requests.items()} == {"ours", "other"}
    counters(record(model="openai/real", endpoint="openai/real"))
    counters(record(model="openai/real", status=500, kind="InternalServerError"))
    assert {key[1] for key, _ in counters.requests.items()} == {"ours", "other", "openai/real"}


def test_money_and_tokens_of_kept_answers_are_not_counted_twice() -> None:
    counters = Counters()
    usage = Usage(prompt_tokens=10, completion_tokens=5, prompt_tokens_details=TokenDetails(cached_tokens=40))
    counters(record(model="m", endpoint="m", usage=usage, cost=0.5, tenant="k"))
    counters(record(model="m", endpoint="m", usage=usage, cost=0.0, tenant="k", cached=True))
    counters(record(model="m", endpoint="m", usage=usage, cost=None))
    spent = counters.by_model["m"]
    assert (spent.prompt, spent.completion, spent.cached, spent.cost, spent.unpriced) == (20, 10, 20, 0.5, 1)
    assert (counters.by_key["k"].requests, counters.by_key["k"].cost) == (2, 0.5)


def test_only_failed_attempts_are_counted_of_what_the_engine_tells() -> None:
    counters = Counters()
    request = Request(body=b"{}", model="m", path=CHAT_PATH)
    error = RateLimitError("no", status_code=429)
    counters.saw(RequestDone(request=request, response=None, error=error, seconds=1.0))
    assert not counters.attempts.items()
    counters.saw(AttemptFailed(request=request, endpoint="m", attempt=1, error=error, delay=0.5))
    counters.saw(AttemptFailed(request=request, endpoint="m", attempt=2, error=APIConnectionError("x"), delay=None))
    assert sorted(counters.attempts.items()) == [(("other", "APIConnectionError"), 1), (("other", "RateLimitError"), 1)]
    assert counters.retries.items() == [(("other",), 1)]


texts = st.text(max_size=8) | st.sampled_from(["", "m", "other", 'a"b\\c\nd', "\ud800", "x" * 300])
numbers = st.none() | st.floats() | st.integers(-5, 10**400)
records = st.builds(
    Record,
    at=st.just(0.0),
    request_id=texts,
    method=texts,
    route=texts,
    status=st.integers(-10, 10**6),
    seconds=st.floats(),
    tenant=texts,
    model=texts,
    endpoint=texts,
    cached=st.booleans(),
    attempts=st.integers(0, 5),
    first_byte=st.none() | st.floats(),
    overhead=st.none() | st.floats(),
    usage=st.none() | st.builds(Usage, st.integers(-5, 10**30), st.integers(-5, 10**30)),
    cost=numbers,
    error=texts,
    kind=texts,
)


@given(st.lists(records, max_size=30), st.lists(records, max_size=30))
@settings(deadline=None, max_examples=60)
def test_whatever_comes_can_be_read_and_no_counter_ever_falls(first: list[Record], second: list[Record]) -> None:
    metrics = Metrics()
    for one in first:
        metrics.counters(one)
    before = parsed(metrics.scrape()[0])
    for one in second:
        metrics.counters(one)
    after = parsed(metrics.scrape()[0])
    assert samples_of(openmetrics_families(metrics.scrape("application/openmetrics-text")[0].decode()))
    for (name, labels), was in before.items():
        if name.startswith("fastllm_"):
            assert after[name, labels] >= was and math.isfinite(was), name
    totals = sum(value for (name, _), value in after.items() if name == "fastllm_requests_total")
    assert totals == len(first) + len(second)


def test_however_many_names_come_the_number_of_series_has_a_bound() -> None:
    counters = Counters()
    for number in range(20_000):
        name = f"{number * 7919 % 20_011}"
        counters(
            record(
                route=f"/{name}", model=name, endpoint=name, tenant=name, status=number % 900, usage=Usage(1, 1),
                kind=name if number % 2 else "invalid_api_key",
            )
        )  # fmt: skip
        counters.saw(
            AttemptFailed(
                request=Request(body=b"{}", model=name, path=CHAT_PATH),
                endpoint=name,
                attempt=1,
                error=type(f"E{name}", (RateLimitError,), {})("no"),
                delay=0.0,
            )
        )
    beyond = 2 * 501  # once all names are other, the statuses are left
    for sums in (counters.requests, counters.errors, counters.refusals, counters.attempts, counters.retries):
        assert len(sums.items()) <= MOST_SERIES + beyond
    for names in (counters.by_model, counters.by_key, {found.name for found in counters.routes.values()}):
        assert len(names) <= MOST_NAMES + 2
    assert len(counters.routes) <= 2 * MOST_NAMES


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=1.0.0", "nonsense;version=x;q=y"])
def test_whoever_asks_for_no_openmetrics_gets_the_usual_text(accept: str) -> None:
    text, kind = Metrics().scrape(accept)
    assert kind.startswith("text/plain") and parsed(text)


def test_without_its_library_the_message_says_what_to_install() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import fastllm.gateway.metrics"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra" in done.stderr and "pip install 'fastllm[gateway]'" in done.stderr
