"""gateway: responses that are asked for again, gone on from, cancelled and deleted: at OpenAI, and where nobody keeps
them but the gateway; each key its own."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec import Raw

from fastllm import build
from fastllm.build import EngineOptions
from fastllm.errors import RateLimitError
from fastllm.gateway.asking import check_fields
from fastllm.gateway.auth import Tenant
from fastllm.gateway.database import Database
from fastllm.gateway.faces import Refusal
from fastllm.gateway.response_store import AGE, Kept, Known, ResponseStore
from fastllm.options import Route, Upstream
from fastllm.testing import MockConfig, checksum_of
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse
from kits.beside import BOB, Open, names_in, opened, until, wire

GONE = {"error": {"message": "not found", "type": "invalid_request_error", "param": None, "code": None}}


class Provider:
    """OpenAI, as far as it keeps responses."""

    def __init__(self, name: str = "resp") -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.asked: list[HTTPRequest] = []
        self._name = name

    @property
    def last(self) -> str:
        return next(reversed(self.kept))

    def __call__(self, http: HTTPRequest) -> HTTPResponse:
        self.asked.append(http)
        path, _, _ = http.url.partition("/v1")[2].partition("?")
        if (http.method, path) == ("POST", "/responses"):
            return self._made(json.loads(http.body))
        if path == "/responses/input_tokens":
            return _said(200, {"object": "response.input_tokens", "input_tokens": 11})
        found = re.fullmatch(r"/responses/(\w+)(/cancel|/input_items)?", path)
        response = self.kept.get(found[1]) if found is not None else None
        if found is None or response is None:
            return _said(404, GONE)
        if http.method == "DELETE":
            del self.kept[found[1]]
            return _said(200, {"id": found[1], "object": "response", "deleted": True})
        if found[2] == "/input_items":
            return _said(200, {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False})
        return _said(200, {**response, "status": "cancelled"} if found[2] else response)

    def _made(self, body: dict[str, Any]) -> HTTPResponse:
        previous = body.get("previous_response_id")
        if previous is not None and previous not in self.kept:
            return _said(400, GONE)
        id = f"{self._name}_{len(self.asked):08x}"
        part = {"type": "output_text", "text": f"after {previous}", "annotations": []}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        response = {
            "id": id, "object": "response", "created_at": 1, "status": "completed", "model": body["model"],
            "output": [message], "previous_response_id": previous, "parallel_tool_calls": True, "tool_choice": "auto",
            "tools": [], "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        }  # fmt: skip
        self.kept[id] = response
        if not body.get("stream"):
            return _said(200, response)
        events = [("response.created", {**response, "output": []}), ("response.completed", response)]
        lines = [
            f"event: {name}\ndata: {json.dumps({'type': name, 'sequence_number': number, 'response': told})}\n\n"
            for number, (name, told) in enumerate(events)
        ]
        return HTTPResponse(status=200, body="".join(lines).encode())


def _said(status: int, body: Any) -> HTTPResponse:
    return HTTPResponse(status=status, headers=[(b"content-type", b"application/json")], body=json.dumps(body).encode())


def behind(provider: Provider) -> dict[str, Any]:
    return {"base_url": "http://openai.test/v1", "transport": ScriptedTransport(provider)}


@asynccontextmanager
async def by_chat(folder: Path, mock: MockConfig | None = None, **options: Any) -> AsyncIterator[Open]:
    """A gateway whose `m` is answered by a provider that has only chat, and `n` by one that has Responses."""
    async with opened(folder, mock, **options) as gate:
        routes = {
            name: Route(endpoints=[Upstream(model=f"{vendor}/m", base_url=gate.mock.base_url, api_key="k")])
            for name, vendor in (("m", "mistral"), ("n", "openai"))
        }
        engine = build.reloaded(gate.gateway.engine, EngineOptions(routes=routes))
        gate.gateway.reload(engine, gate.gateway.options, gate.gateway.catalog)
        yield gate


async def refused(ask: Any, error: type = openai.NotFoundError, **more: Any) -> openai.APIStatusError:
    with pytest.raises(error) as caught:
        await ask(**more)
    assert isinstance(caught.value, openai.APIStatusError)
    return caught.value


# At the provider


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_provider_keeps_is_asked_for_there(tmp_path: Path, stream: bool) -> None:
    provider = Provider()
    async with opened(tmp_path, engine=behind(provider)) as gate, gate.client() as client:
        made: Any = await client.responses.create(model="m", input="hello", stream=stream)
        if stream:
            ids = {event.response.id async for event in made}
            assert ids == {provider.last}
        id = provider.last
        found = await client.responses.retrieve(id, include=["reasoning.encrypted_content"])
        assert (found.id, found.output_text) == (id, "after None")
        assert (
            provider.asked[-1].url == f"http://openai.test/v1/responses/{id}?include%5B%5D=reasoning.encrypted_content"
        )
        assert provider.asked[-1].headers["authorization"] == "Bearer upstream-key"
        assert (await client.responses.cancel(id)).status == "cancelled"
        assert [item async for item in client.responses.input_items.list(id)] == []
        await client.responses.delete(id)
        error = await refused(client.responses.retrieve, response_id=id)
        assert error.code == "response_not_found" and not provider.kept
    assert not any(b"after None" in (tmp_path / name).read_bytes() for name in names_in(tmp_path))


@pytest.mark.fault("90")
async def test_no_key_sees_uses_or_removes_the_response_of_another(tmp_path: Path) -> None:
    provider = Provider()
    async with opened(tmp_path, engine=behind(provider)) as gate, gate.client() as alice, gate.client(BOB) as bob:
        made = await alice.responses.create(model="m", input="my secret")
        asked = len(provider.asked)
        for ask in (bob.responses.retrieve, bob.responses.delete, bob.responses.cancel, bob.responses.input_items.list):
            await refused(ask, response_id=made.id)
        bad = openai.BadRequestError
        error = await refused(bob.responses.create, bad, model="m", input="and?", previous_response_id=made.id)
        assert (error.code, error.param) == ("previous_response_not_found", "previous_response_id")
        count = bob.responses.input_tokens.count
        await refused(count, bad, model="m", input="and?", previous_response_id=made.id)
        for body in (
            b'{"model":"m","input":"?","previous_response_id":"%b","previous_response_id":null}',
            b'{"model":"m","input":"?","previous\\u005fresponse_id":"%b"}',
            b'{"model":"m","input":"?","Previous_Response_ID":"%b"}',
            b'{"model":"m","input":"?","previous_response_id":["%b"]}',
            b'{"model":"m","input":"?","\xff":1,"previous_response_id":"%b"}',
        ):
            await wire(gate.server.port, "POST", "/v1/responses", body % made.id.encode(), key=BOB)
        told = [json.loads(http.body).get("previous_response_id") for http in provider.asked[asked:]]
        assert set(told) <= {None}
        assert (await alice.responses.retrieve(made.id)).id == made.id


async def test_a_batch_goes_on_from_no_response(tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "m", "input": "?"}}
    line["body"] = {**line["body"], "previous_response_id": "resp_1"}  # type: ignore[dict-item]
    provider = Provider()
    async with opened(tmp_path, engine=behind(provider)) as gate, gate.client() as client:
        source = await client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = await client.batches.create(input_file_id=source.id, endpoint="/v1/responses", completion_window="24h")
        async with asyncio.timeout(10):
            while batch.status not in ("completed", "failed"):
                await asyncio.sleep(0.01)
                batch = await client.batches.retrieve(batch.id)
        assert batch.status == "failed" and not provider.asked


async def test_a_conversation_goes_on_where_it_began_whatever_the_route_has_besides(tmp_path: Path) -> None:
    first, second = Provider("one"), Provider("two")

    def either(http: HTTPRequest) -> HTTPResponse:
        return (first if "first" in http.url else second)(http)

    hosts = ("first", "second")
    ends = [Upstream(model="openai/x", base_url=f"http://{host}.test/v1", api_key=f"key-of-{host}") for host in hosts]
    engine = {"base_url": None, "transport": ScriptedTransport(either), "routes": {"m": Route(endpoints=ends)}}
    async with opened(tmp_path, engine=engine) as gate, gate.client() as client:
        for _ in range(6):
            made = await client.responses.create(model="m", input="hello")
            again = await client.responses.create(model="m", input="and?", previous_response_id=made.id)
            assert again.output_text == f"after {made.id}" and again.id[:3] == made.id[:3]
            assert (await client.responses.retrieve(again.id)).id == again.id
        assert len(first.asked) == len(second.asked)


async def test_who_is_served_no_more_is_asked_for_nothing(tmp_path: Path) -> None:
    provider = Provider()
    async with opened(tmp_path, engine=behind(provider)) as gate, gate.client() as client:
        made = await client.responses.create(model="m", input="hello")
        options = EngineOptions(base_url="http://other.test/v1", api_key="k", transport=ScriptedTransport(provider))
        engine = build.reloaded(gate.gateway.engine, options)
        gate.gateway.reload(engine, gate.gateway.options, gate.gateway.catalog)
        asked = len(provider.asked)
        await refused(client.responses.retrieve, response_id=made.id)
        bad = openai.BadRequestError
        await refused(client.responses.create, bad, model="m", input="and?", previous_response_id=made.id)
        assert len(provider.asked) == asked


async def test_a_gateway_that_was_started_anew_knows_whose_each_response_is(tmp_path: Path) -> None:
    provider = Provider()
    async with opened(tmp_path, engine=behind(provider)) as gate, gate.client() as client:
        there = await client.responses.create(model="m", input="hello")
    async with by_chat(tmp_path) as gate, gate.client() as client:
        here = await client.responses.create(model="m", input="hello")
    async with opened(tmp_path, engine=behind(provider)) as gate, gate.client() as client, gate.client(BOB) as bob:
        assert (await client.responses.retrieve(there.id)).id == there.id
        assert (await client.responses.retrieve(here.id)).output_text == here.output_text
        again = await client.responses.create(model="m", input="and?", previous_response_id=here.id)
        items = json.loads(provider.asked[-1].body)["input"]  # another provider goes on with all that was said
        assert again.output_text and [item["role"] for item in items] == ["user", "assistant", "user"]
        for id in (there.id, here.id):
            await refused(bob.responses.retrieve, response_id=id)


async def test_what_was_not_to_be_stored_is_not_known(tmp_path: Path) -> None:
    provider = Provider()
    async with opened(tmp_path, engine=behind(provider)) as gate, gate.client() as client:
        made = await client.responses.create(model="m", input="hello", store=False)
        await refused(client.responses.retrieve, response_id=made.id)


async def test_asking_again_counts_as_a_request_of_the_key(tmp_path: Path) -> None:
    class Two:
        left = 2

        def admit(self, key: Any, tokens: float, cost_bound: float | None) -> Any:
            if not self.left:
                raise RateLimitError("no more", status_code=429, retry_after=1.0, sent=False)
            self.left -= 1
            return self

        def settle(self, usage: Any, cost: Any) -> None: ...
        def release(self) -> None: ...
        def lines(self, key: Any = None) -> bytes:
            return b""

    async with opened(tmp_path, engine=behind(Provider()), admissions=Two()) as gate, gate.client() as client:
        made = await client.responses.create(model="m", input="hello")
        await client.responses.retrieve(made.id)
        await refused(client.responses.retrieve, openai.RateLimitError, response_id=made.id)


async def test_tokens_of_an_input_are_counted_by_the_provider_or_estimated(tmp_path: Path) -> None:
    provider = Provider()
    async with opened(tmp_path, engine=behind(provider)) as gate, gate.client() as client:
        counted = await client.responses.input_tokens.count(model="m", input="hello")
        assert (counted.input_tokens, counted.object) == (11, "response.input_tokens")
        assert json.loads(provider.asked[-1].body) == {"model": "m", "input": "hello"}
    async with by_chat(tmp_path / "chat") as gate, gate.client() as client:
        few = await client.responses.input_tokens.count(model="m", input="hello")
        many = await client.responses.input_tokens.count(model="n", input="hello " * 1000)
        assert 0 < few.input_tokens < many.input_tokens and many.object == "response.input_tokens"
        assert gate.mock.stats.requests == 0


# Here


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_made_of_chat_is_kept_here(tmp_path: Path, stream: bool) -> None:
    async with by_chat(tmp_path) as gate, gate.client(_strict_response_validation=True) as client:
        made: Any = await client.responses.create(model="m", input="hello", stream=stream)
        if stream:
            events = [event async for event in made]
            assert events[0].response.model_extra["store"] is True
            made = events[-1].response
        assert made.model_extra["store"] is True and made.previous_response_id is None
        assert await client.responses.retrieve(made.id) == made
        (item,) = [item async for item in client.responses.input_items.list(made.id)]
        assert item.type == "message" and item.content[0].text == "hello" and item.id.startswith("msg_")
        await refused(client.responses.cancel, openai.BadRequestError, response_id=made.id)
        await client.responses.delete(made.id)
        await refused(client.responses.retrieve, response_id=made.id)
        assert names_in(tmp_path / "responses") == []


@pytest.mark.parametrize("stream", [False, True])
async def test_no_two_responses_have_one_id_whatever_the_provider_calls_its_answers(
    tmp_path: Path, stream: bool
) -> None:
    async with by_chat(tmp_path) as gate, gate.client() as client:
        ids = []
        for _ in range(2):  # the mock's ids are those of what it was asked: alike
            made: Any = await client.responses.create(model="m", input="hello", stream=stream)
            events = [event async for event in made] if stream else []
            ids.append({event.response.id for event in events if hasattr(event, "response")} or {made.id})
        assert len(ids[0]) == len(ids[1]) == 1 and ids[0] != ids[1]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on_with_all_that_was_said(tmp_path: Path, stream: bool) -> None:
    async with by_chat(tmp_path) as gate, gate.client() as client:
        first = await client.responses.create(model="m", input="one", instructions="only for the first")
        more: Any = {"role": "user", "content": [{"type": "input_text", "text": "two"}]}
        second = await client.responses.create(model="m", input=[more], previous_response_id=first.id)
        assert second.previous_response_id == first.id
        third: Any = await client.responses.create(
            model="m", input="three", previous_response_id=second.id, stream=stream
        )
        if stream:
            events = [event async for event in third]
            assert all(event.response.previous_response_id == second.id for event in events if "response" in event)
            third = events[-1].response
        assert third.previous_response_id == second.id
        said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": first.output_text}]
        said += [{"role": "user", "content": "two"}, {"role": "assistant", "content": second.output_text}]
        said += [{"role": "user", "content": "three"}]
        assert third.output_text.startswith(checksum_of({"model": "m", "messages": said}))
        items = [item async for item in client.responses.input_items.list(third.id, order="asc", limit=2)]
        assert [item.role for item in items] == ["user", "assistant", "user", "assistant", "user"]  # type: ignore[union-attr]


@pytest.mark.fault("90")
async def test_what_was_made_of_chat_is_its_keys_alone(tmp_path: Path) -> None:
    async with by_chat(tmp_path) as gate, gate.client() as alice, gate.client(BOB) as bob:
        made = await alice.responses.create(model="m", input="my secret")
        for ask in (bob.responses.retrieve, bob.responses.delete, bob.responses.input_items.list):
            await refused(ask, response_id=made.id)
        bad = openai.BadRequestError
        await refused(bob.responses.create, bad, model="m", input="and?", previous_response_id=made.id)
        same = await bob.responses.create(model="m", input="my secret")
        assert same.id != made.id and same.output_text == made.output_text
        await bob.responses.delete(same.id)
        assert (await alice.responses.retrieve(made.id)).output_text == made.output_text


async def test_what_was_not_to_be_stored_lies_nowhere(tmp_path: Path) -> None:
    async with by_chat(tmp_path) as gate, gate.client() as client:
        made = await client.responses.create(model="m", input="hello", store=False)
        assert made.model_extra is not None and made.model_extra["store"] is False
        await refused(client.responses.retrieve, response_id=made.id)
        assert names_in(tmp_path / "responses") == []


async def test_a_disk_that_is_full_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with by_chat(tmp_path) as gate, gate.client() as client:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ResponseStore, "_write", full)
        made = await client.responses.create(model="m", input="hello")
        assert made.output_text and made.model_extra is not None and made.model_extra["store"] is False


async def test_a_client_that_leaves_a_stream_leaves_nothing_half_kept(tmp_path: Path) -> None:
    async with by_chat(tmp_path, MockConfig(token_rate=20.0)) as gate, gate.client() as client:
        stream = await client.responses.create(model="m", input="hello", stream=True)
        async for _ in stream:
            break
        await stream.close()
        await until(lambda: not gate.mock.stats.in_flight)
        assert names_in(tmp_path / "responses") == []


# The store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    database = Database(tmp_path / "gateway.sqlite3")
    yield ResponseStore(database, tmp_path / "responses")
    database.close()


def known(id: str, tenant: str = "a") -> Known:
    return Known(tenant=tenant, id=id, model="m", endpoint="e", scope=b"s")


KEPT = Kept([], Raw(json.dumps({"id": "x", "text": "y" * 1000}).encode()))


def test_the_oldest_go_beyond_the_bounds_each_tenants_own(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastllm.gateway.response_store.LOOK", 1)
    monkeypatch.setattr("fastllm.gateway.response_store.MOST", 3)
    for number in range(5):
        assert store.add(known(f"r{number}")) and store.add(known(f"r{number}", "b"))
    assert [bool(store.find("a", f"r{number}")) for number in range(5)] == [False, False, True, True, True]
    monkeypatch.setattr("fastllm.gateway.response_store.MOST_BYTES", 2500)
    for number in range(3):
        store.add(known(f"k{number}", "c"), KEPT)
    assert [bool(store.find("c", f"k{number}")) for number in range(3)] == [False, True, True]
    assert len(names_in(store._folder)) == 2


def test_what_is_too_old_goes(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(known("old"), KEPT)
    now = time.time()
    monkeypatch.setattr("fastllm.gateway.response_store.time.time", lambda: now + AGE + 1)
    assert store.find("a", "old") is None
    store.add(known("new"), KEPT)
    store.sweep()
    assert len(names_in(store._folder)) == 1 and store.find("a", "new")


@pytest.mark.parametrize("id", ["", "../../etc/passwd", "a/b", "a\x00", "." * 3, "a" * 300, "a%2fb", "é"])
def test_an_id_that_could_be_a_path_is_none(store: Any, id: str) -> None:
    assert not store.add(known(id), KEPT)
    assert names_in(store._folder) == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","input":"x","previous_response_id":"resp_1"}',
        b'{"model":"m","input":"x","previous_response_id":"resp_1","previous_response_id":null}',
        b'{"model":"m","input":"x","previous\\u005fresponse_id":"resp_1","previous_response_id":null}',
        b'{"model":"m","input":"x","Previous_Response_Id":"resp_1"}',
    ],
)
def test_no_spelling_of_a_batchs_row_goes_on_from_a_response(body: bytes) -> None:
    with pytest.raises(Refusal, match="cannot go on from a response"):
        check_fields(body, "m", Tenant(id="key-a"))
