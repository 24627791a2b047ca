"""gateway.batches: OpenAI's Batch API as its SDK uses it, on a provider without one; nobody sees another one's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from fastllm.errors import BudgetExceededError, RateLimitError
from fastllm.options import Limits
from fastllm.testing import MockConfig, checksum_of
from kits.beside import ALICE, BOB, CAROL, names_in, opened, until

CHAT: Any = "/v1/chat/completions"
EMBEDDINGS: Any = "/v1/embeddings"
SLOW = MockConfig(latency=0.3)
STUCK = MockConfig(latency=60.0)


def line(number: int, url: str = CHAT, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": f"q{number}",
        "method": "POST",
        "url": url,
        "body": {"model": "m", "messages": [{"role": "user", "content": f"hello {number}"}], **body},
    }


def text_of(lines: list[Any]) -> bytes:
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines)


async def begun(client: openai.AsyncOpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any) -> Batch:
    source = await client.files.create(file=("in.jsonl", text_of(lines)), purpose="batch")
    return await client.batches.create(input_file_id=source.id, endpoint=endpoint, completion_window="24h", **more)


async def ended(client: openai.AsyncOpenAI, id: str, seconds: float = 20.0) -> Batch:
    async with asyncio.timeout(seconds):
        while True:
            batch = await client.batches.retrieve(id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.01)


async def in_status(client: openai.AsyncOpenAI, id: str, status: str) -> Batch:
    async with asyncio.timeout(10):
        while (batch := await client.batches.retrieve(id)).status != status:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return batch


async def read(client: openai.AsyncOpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(one) for one in (await client.files.content(file)).content.splitlines()]


async def test_a_batch_is_answered_in_openais_shape(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        asked = [line(number) for number in range(20)]
        batch = await begun(client, asked, metadata={"for": "me"})
        assert (batch.status, batch.object, batch.endpoint) == ("validating", "batch", CHAT)
        assert batch.expires_at is not None and batch.expires_at - batch.created_at == 86_400
        assert batch.output_file_id is None and batch.metadata == {"for": "me"}
        batch = await ended(client, batch.id)
        assert batch.status == "completed" and batch.errors is None and batch.error_file_id is None
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 20, "completed": 20, "failed": 0}
        assert batch.in_progress_at and batch.finalizing_at and batch.completed_at and not batch.failed_at
        answers = await read(client, batch.output_file_id)
        assert [one["custom_id"] for one in answers] == [one["custom_id"] for one in asked]
        for one, request in zip(answers, asked, strict=True):
            assert set(one) == {"id", "custom_id", "response", "error"} and one["error"] is None
            assert set(one["response"]) == {"status_code", "request_id", "body"}
            assert one["response"]["status_code"] == 200 and one["response"]["body"]["object"] == "chat.completion"
            text = one["response"]["body"]["choices"][0]["message"]["content"]
            assert text.startswith(checksum_of(request["body"]))
        made = await client.files.retrieve(batch.output_file_id or "")
        assert made.purpose == "batch_output" and made.expires_at is None
        folder = tmp_path / "batches"
        assert {name.rpartition("/")[2] for name in names_in(folder)} == {"batch.json", "lock"}


async def test_what_the_provider_refuses_is_in_the_error_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        gate.mock.when(lambda body: "bad" in str(body), "400")
        lines = [line(0), line(1, user="bad"), line(2)]
        batch = await ended(client, (await begun(client, lines)).id)
        assert batch.status == "completed" and batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
        assert [one["custom_id"] for one in await read(client, batch.output_file_id)] == ["q0", "q2"]
        (failure,) = await read(client, batch.error_file_id)
        assert failure["custom_id"] == "q1" and failure["error"] is None
        assert failure["response"]["status_code"] == 400 and failure["response"]["body"]["error"]["message"]


async def test_embeddings_and_other_operations(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        lines = [
            {"custom_id": f"e{n}", "method": "POST", "url": EMBEDDINGS, "body": {"model": "m", "input": f"text {n}"}}
            for n in range(30)
        ]
        batch = await ended(client, (await begun(client, lines, EMBEDDINGS)).id)
        answers = await read(client, batch.output_file_id)
        assert len(answers) == 30 and all(one["response"]["body"]["data"][0]["embedding"] for one in answers)
        url: Any = "/v1/responses"
        asked = [{"custom_id": "r", "method": "POST", "url": url, "body": {"model": "m", "input": "hello"}}]
        batch = await ended(client, (await begun(client, asked, url)).id)
        assert (await read(client, batch.output_file_id))[0]["response"]["body"]["object"] == "response"


GOOD = line(0)


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ([], ["empty_file"]),
        ([GOOD, b"no json\n"], ["invalid_json_line"]),
        ([GOOD, b"[1]\n"], ["invalid_json_line"]),
        ([GOOD, GOOD], ["duplicate_custom_id"]),
        ([{**GOOD, "custom_id": None}], ["missing_required_parameter"]),
        ([{**GOOD, "custom_id": 7}], ["missing_required_parameter"]),
        ([{**GOOD, "method": "GET"}], ["invalid_request"]),
        ([{**GOOD, "method": None}], ["invalid_method"]),
        ([{**GOOD, "url": "/v1/embeddings"}], ["mismatched_endpoint"]),
        ([{**GOOD, "url": None}], ["mismatched_endpoint"]),
        ([{**GOOD, "url": "http://127.0.0.1/v1/chat/completions"}], ["invalid_request"]),
        ([{**GOOD, "body": None}], ["invalid_request"]),
        ([{"custom_id": "x", "method": "POST", "url": CHAT, "messages": []}], ["missing_required_parameter"]),
        ([{**GOOD, "body": {"messages": []}}], ["missing_required_parameter"]),
        ([line(0, model="x/y")], ["model_not_found"]),
        ([line(0, api_base="http://127.0.0.1:1")], ["forbidden_field"]),
        ([line(0, api_key="k"), line(1, method=1)], ["forbidden_field"]),
    ],
)
async def test_an_input_that_is_wrong_fails_as_a_whole(tmp_path: Path, lines: list[Any], codes: list[str]) -> None:
    async with opened(tmp_path, models=("m", "c*")) as gate, gate.client() as client:
        batch = await ended(client, (await begun(client, lines)).id)
        assert batch.status == "failed" and batch.failed_at and batch.errors is not None and batch.errors.data
        assert [flaw.code for flaw in batch.errors.data] == codes
        assert all(flaw.message for flaw in batch.errors.data)
        assert lines == [] or all(flaw.line for flaw in batch.errors.data)
        assert batch.output_file_id is None and gate.mock.stats.requests == 0


async def test_many_flaws_are_told_up_to_a_bound(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        batch = await ended(client, (await begun(client, [b"x\n"] * 500)).id)
        assert batch.errors is not None and len(batch.errors.data or []) == 100


async def test_a_key_asks_for_its_models_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client(CAROL) as client:
        batch = await ended(client, (await begun(client, [line(0, model="m")])).id)
        assert batch.errors is not None and batch.errors.data and batch.errors.data[0].code == "model_not_allowed"
        twice = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","model":"c1",'
        batch = await ended(client, (await begun(client, [twice + b'"messages":[]}}\n'])).id)
        assert batch.errors is not None and batch.errors.data and batch.errors.data[0].code == "ambiguous_model"
        assert gate.mock.stats.requests == 0
        batch = await ended(client, (await begun(client, [line(0, model="c1")])).id)
        assert batch.status == "completed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "/v1/images"},
        {"completion_window": "1h"},
        {"metadata": {"a": "b" * 513}},
        {"metadata": {str(n): "" for n in range(17)}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
        {"output_expires_after": {"anchor": "other", "seconds": 3600}},
        {"input_file_id": 7},
    ],
)
async def test_what_cannot_be_asked_is_refused_at_once(tmp_path: Path, wrong: dict[str, Any]) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        source = await client.files.create(file=("in.jsonl", text_of([GOOD])), purpose="batch")
        given: dict[str, Any] = {"input_file_id": source.id, "endpoint": CHAT, "completion_window": "24h", **wrong}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.batches.create(**given)
        assert caught.value.param == next(iter(wrong))
        other = await client.files.create(file=("a", b"x"), purpose="user_data")
        with pytest.raises(openai.BadRequestError):
            await client.batches.create(**{**given, **dict.fromkeys(wrong), "input_file_id": other.id})
        assert [batch async for batch in client.batches.list()] == []


@pytest.mark.fault("90")
async def test_a_tenant_sees_its_own_batches_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client(ALICE) as alice, gate.client(BOB) as bob:
        batch = await ended(alice, (await begun(alice, [GOOD])).id)
        for ask in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await ask(batch.id)
        assert [one async for one in bob.batches.list()] == []
        with pytest.raises(openai.NotFoundError):
            await bob.files.content(batch.output_file_id or "")
        with pytest.raises(openai.NotFoundError):
            await bob.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
        for odd in ("batch_" + "0" * 24, "open", "%2e%2e%2fopen"):
            with pytest.raises(openai.NotFoundError):
                await alice.batches.retrieve(odd)


@pytest.mark.fault("90")
async def test_tenants_do_not_share_answers_that_are_kept(tmp_path: Path) -> None:
    async with (
        opened(tmp_path, engine={"cache": "memory"}) as gate,
        gate.client(ALICE) as alice,
        gate.client(BOB) as bob,
    ):
        for client, total in ((alice, 1), (alice, 1), (bob, 2)):
            assert (await ended(client, (await begun(client, [GOOD])).id)).status == "completed"
            assert gate.mock.stats.requests == total
        told = [(record.tenant, record.cached) for record in gate.records if record.route == "/batches/rows"]
        assert told == [("alice", False), ("alice", True), ("bob", False)]


async def test_lists_have_pages_the_newest_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        ids = [(await begun(client, [GOOD])).id for _ in range(5)]
        assert [one.id async for one in client.batches.list(limit=2)] == ids[::-1]
        first = await client.batches.list(limit=3)
        assert [one.id for one in first.data] == ids[:1:-1] and first.has_more
        assert [one.id for one in (await client.batches.list(after=ids[2])).data] == [ids[1], ids[0]]
        with pytest.raises(openai.BadRequestError):
            await client.batches.list(limit=101)


async def test_counts_are_live_and_cancelling_keeps_what_is_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        gate.mock.when(lambda body: "stuck" in str(body), "hang")
        batch = await begun(client, [line(n, **({"user": "stuck"} if n % 2 else {})) for n in range(10)])
        async with asyncio.timeout(10):
            while True:
                found = await client.batches.retrieve(batch.id)
                assert found.request_counts is not None
                if found.request_counts.completed == 5:
                    break
                await asyncio.sleep(0.005)
        assert found.status == "in_progress" and found.request_counts.total == 10
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        found = await ended(client, batch.id)
        assert found.status == "cancelled" and found.cancelling_at and found.cancelled_at
        assert len(await read(client, found.output_file_id)) == 5 and found.error_file_id is None
        assert (await client.batches.cancel(batch.id)).status == "cancelled"
        assert gate.mock.stats.in_flight == 0


async def test_what_has_ended_cannot_be_cancelled(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        batch = await ended(client, (await begun(client, [GOOD])).id)
        with pytest.raises(openai.BadRequestError):
            await client.batches.cancel(batch.id)


@pytest.mark.fault("95")
async def test_only_so_many_run_at_once_and_tenants_take_turns(tmp_path: Path) -> None:
    async with opened(tmp_path, SLOW, batches=2) as gate, gate.client(ALICE) as alice, gate.client(BOB) as bob:
        first = [(await begun(alice, [line(n)])).id for n in range(4)]
        other = (await begun(bob, [line(9)])).id
        most = 0

        def look() -> bool:
            nonlocal most
            most = max(most, gate.batches.runner.running)
            return most == 2

        await until(look)
        assert (await alice.batches.retrieve(first[3])).status == "validating"
        for client, id in ((bob, other), *((alice, id) for id in first)):
            found = await ended(client, id)
            assert found.status == "completed"
            look()
        last = await alice.batches.retrieve(first[3])
        mine = gate.batches.store.find("bob", other)
        late = gate.batches.store.find("alice", last.id)
        assert mine is not None and late is not None and most == 2
        assert mine.times["in_progress"] < late.times["in_progress"]


async def test_one_that_waits_is_cancelled_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path, STUCK, batches=1) as gate, gate.client() as client:
        await in_status(client, (await begun(client, [line(1)])).id, "in_progress")
        waiting = await begun(client, [line(2)])
        assert (await client.batches.cancel(waiting.id)).status == "cancelling"
        found = await ended(client, waiting.id)
        assert found.status == "cancelled" and found.output_file_id is None


async def test_after_its_window_a_batch_has_what_is_done(tmp_path: Path) -> None:
    async with opened(tmp_path, window=0.7) as gate, gate.client() as client:
        gate.mock.when(lambda body: "stuck" in str(body), "hang")
        batch = await begun(client, [line(n, **({"user": "stuck"} if n == 2 else {})) for n in range(3)])
        found = await ended(client, batch.id)
        assert found.status == "expired" and found.expired_at
        assert [one["custom_id"] for one in await read(client, found.output_file_id)] == ["q0", "q1"]
        (left,) = await read(client, found.error_file_id)
        assert left["custom_id"] == "q2" and left["response"] is None and left["error"]["code"] == "batch_expired"


async def test_an_input_may_be_deleted_once_the_batch_has_begun(tmp_path: Path) -> None:
    async with opened(tmp_path, SLOW) as gate, gate.client() as client:
        after: Any = {"anchor": "created_at", "seconds": 3600}
        batch = await begun(client, [line(n) for n in range(3)], output_expires_after=after)
        await client.files.delete(batch.input_file_id)
        found = await ended(client, batch.id)
        assert found.status == "completed"
        made = await client.files.retrieve(found.output_file_id or "")
        assert made.expires_at is not None and abs(made.expires_at - made.created_at - 3600) <= 1


async def test_a_provider_that_refuses_the_key_fails_the_batch(tmp_path: Path) -> None:
    async with opened(tmp_path, MockConfig(api_key="other")) as gate, gate.client() as client:
        batch = await ended(client, (await begun(client, [line(n) for n in range(50)])).id)
        assert batch.status == "failed" and batch.errors is not None and batch.errors.data
        assert "upstream-key" not in batch.model_dump_json()


class Held:
    """What one request took."""

    def __init__(self, limits: Limited) -> None:
        self.limits = limits

    def settle(self, usage: Any, cost: float | None) -> None:
        if self in self.limits.out:
            self.limits.out.remove(self)
            self.limits.settled.append(usage)

    def release(self) -> None:
        if self in self.limits.out:
            self.limits.out.remove(self)
            self.limits.released += 1

    def lines(self, key: Any = None) -> bytes:
        return b""


class Limited:
    """Admissions that first say to wait, and then, after `most` requests, that the money is spent."""

    def __init__(self, most: int) -> None:
        self.most, self.waits, self.released = most, 2, 0
        self.out: list[Held] = []
        self.settled: list[Any] = []

    def admit(self, key: Any, tokens: float, cost_bound: float | None) -> Held:
        assert key == "alice" and tokens > 0
        if self.waits:
            self.waits -= 1
            raise RateLimitError("slowly", retry_after=0.01, status_code=429)
        if len(self.settled) + len(self.out) >= self.most:
            raise BudgetExceededError("the budget of this key is spent")
        self.out.append(Held(self))
        return self.out[-1]


async def test_a_tenants_limits_hold_for_its_batches(tmp_path: Path) -> None:
    limits = Limited(most=5)
    async with opened(tmp_path, admissions=limits) as gate, gate.client() as client:
        batch = await ended(client, (await begun(client, [line(n) for n in range(12)])).id)
        assert batch.status == "failed" and batch.errors is not None and batch.errors.data
        assert "budget" in (batch.errors.data[0].message or "")
        answers = await read(client, batch.output_file_id)
        assert 1 <= len(answers) <= 5  # what was paid for is not lost
        assert gate.mock.stats.requests == len(limits.settled) == len(answers)
        assert all(limits.settled) and not limits.out


async def test_a_key_that_is_gone_pays_for_nothing_more(tmp_path: Path) -> None:
    async with opened(tmp_path, batches=1) as gate, gate.client() as client:
        people: Any = gate.gateway.keys
        people.tenant = lambda id: None
        batch = await begun(client, [line(0)])
        assert (await ended(client, batch.id)).status == "failed"
        assert gate.mock.stats.requests == 0


async def test_a_key_that_goes_while_its_batch_runs_has_it_cancelled(tmp_path: Path) -> None:
    engine = {"limits": Limits(concurrency=1, adaptive=False)}
    async with opened(tmp_path, MockConfig(latency=0.05), engine=engine) as gate, gate.client() as client:
        gate.batches.runner.poll = 0.05
        people: Any = gate.gateway.keys
        batch = await begun(client, [line(n) for n in range(200)])
        await until(lambda: gate.mock.stats.requests >= 2)
        people.tenant = lambda id: None
        assert (await ended(client, batch.id)).status == "cancelled"
        assert gate.mock.stats.requests < 100


@pytest.mark.fault("95")
async def test_interactive_requests_go_before_a_batch(tmp_path: Path) -> None:
    engine = {"limits": Limits(concurrency=1, adaptive=False)}
    slow = MockConfig(latency=0.02)
    async with opened(tmp_path, slow, engine=engine, queue_size=3) as gate, gate.client() as client:
        batch = await begun(client, [line(n) for n in range(100)])
        await in_status(client, batch.id, "in_progress")
        await until(lambda: gate.mock.stats.requests >= 2)
        messages: Any = [{"role": "user", "content": "now"}]
        await client.chat.completions.create(model="m", messages=messages)  # not shed by the batch's queue
        found = await client.batches.retrieve(batch.id)
        assert found.request_counts is not None and found.request_counts.completed < 50
        assert (await ended(client, batch.id)).status == "completed"


async def test_a_gateway_that_stops_goes_on_at_its_next_start(tmp_path: Path) -> None:
    lines = [line(n) for n in range(10)]
    async with opened(tmp_path) as gate, gate.client() as client:
        gate.mock.when(lambda body: "hello 9" in str(body), "hang")
        batch = await begun(client, lines)
        await until(lambda: gate.batches.runner.done(batch.id) == 9)
    async with opened(tmp_path) as gate, gate.client() as client:
        found = await ended(client, batch.id)
        assert found.status == "completed" and gate.mock.stats.requests == 1
        assert len(await read(client, found.output_file_id)) == 10


async def test_a_second_process_leaves_batches_to_the_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as first, opened(tmp_path) as second, second.client() as client:
        batch = await ended(client, (await begun(client, [line(0)])).id)
        assert batch.status == "completed"
        assert (first.mock.stats.requests, second.mock.stats.requests) == (1, 0)
        first.mock.when(lambda body: "hello 1" in str(body), "hang")
        stuck = await begun(client, [line(1)])
        await in_status(client, stuck.id, "in_progress")
        asked = await client.batches.cancel(stuck.id)
        seen = await client.batches.retrieve(stuck.id)  # before the first has looked, and however often it is asked
        assert (asked.status, seen.status) == ("cancelling", "cancelling") and seen.cancelling_at
        assert (await ended(client, stuck.id)).status == "cancelled"
