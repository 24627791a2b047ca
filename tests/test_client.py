"""The clients against the mock, over real sockets: one request, streams, many at once, errors beside answers."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import openai
import pytest

import fastllm
from fastllm import AsyncFastLLM, FastLLM, InMemoryCache, Limits, RequestBatch, Retry, Timeout
from fastllm.testing import MockConfig, MockServer, checksum_of, serve_in_thread
from fastllm.transport.scripted import ScriptedTransport

MODEL = "mock-model"
ANSWER = fastllm.HTTPResponse(status=200, body=b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')


def ask(text: str = "hello") -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # the other side is a server
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig()) as running:
        yield running


@pytest.fixture
def client(server: Any) -> Iterator[FastLLM]:
    server.reset()
    with FastLLM(base_url=server.base_url, api_key="k") as made:
        yield made


async def test_the_openai_client_and_ours_get_the_same_answers_whole_and_streamed() -> None:
    async with (
        MockServer(MockConfig()) as server,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="k") as theirs,
        AsyncFastLLM(base_url=server.base_url, api_key="k") as ours,
    ):
        for i in range(5):
            a, b = (
                await theirs.chat.completions.create(**ask(str(i))),
                await ours.chat.completions.create(**ask(str(i))),
            )
            assert b.choices[0].message.content == a.choices[0].message.content
            assert b.choices[0].finish_reason == a.choices[0].finish_reason and b.model == a.model and b.id == a.id
            assert a.usage is not None and b.usage is not None
            assert (b.usage.prompt_tokens, b.usage.completion_tokens) == (
                a.usage.prompt_tokens,
                a.usage.completion_tokens,
            )
            more = {"stream": True, "stream_options": {"include_usage": True}}
            c = [chunk async for chunk in await theirs.chat.completions.create(**ask(str(i)), **more)]
            stream = await ours.chat.completions.create(**ask(str(i)), **more)
            d = [chunk async for chunk in stream]
            assert [x.choices[0].delta.content for x in d if x.choices] == [
                x.choices[0].delta.content for x in c if x.choices
            ]
            assert stream.response.text == a.choices[0].message.content
            assert stream.response.usage is not None and stream.response.usage.total_tokens == a.usage.total_tokens
        vectors = await theirs.embeddings.create(model="mock-embedding", input=["a", "b"], encoding_format="float")
        mine = await ours.embeddings.create(model="mock-embedding", input=["a", "b"])
        assert [x.embedding for x in mine.data] == [pytest.approx(x.embedding) for x in vectors.data]
        text = await theirs.completions.create(model=MODEL, prompt="once")
        assert (await ours.completions.create(model=MODEL, prompt="once")).text == text.choices[0].text
        answer = await theirs.responses.create(model=MODEL, input="hi")
        assert (await ours.responses.create(model=MODEL, input="hi")).output_text == answer.output_text


def test_a_parameter_that_was_not_set_is_not_sent_and_others_pass_as_they_are() -> None:
    seen: list[fastllm.HTTPRequest] = []

    class Spy(fastllm.Transport):
        async def send(self, request: fastllm.HTTPRequest, timeout: Timeout) -> fastllm.HTTPResponse:
            seen.append(request)
            return fastllm.HTTPResponse(
                status=200, body=b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'
            )

        async def open(self, request: fastllm.HTTPRequest, timeout: Timeout) -> fastllm.HTTPStream:
            raise NotImplementedError

    with FastLLM(
        base_url="http://x/v1?api-version=1", api_key="k", transport=Spy(), default_headers={"x-a": "1"}
    ) as client:
        client.chat.completions.create(
            **ask(), top_k=5, extra_body={"z": 1}, extra_headers={"x-b": "2"}, temperature=None
        )  # type: ignore[call-arg]
    assert json.loads(seen[0].body) == {**ask(), "top_k": 5, "temperature": None, "z": 1}
    assert seen[0].url == "http://x/v1/chat/completions?api-version=1"
    assert (seen[0].headers["x-a"], seen[0].headers["x-b"], seen[0].headers["authorization"]) == ("1", "2", "Bearer k")


def test_outcomes_stand_in_order_each_with_its_own_answer(client: FastLLM) -> None:
    outcomes = client.map("Say {}", range(300), model=MODEL)
    assert [o.index for o in outcomes] == list(range(300)) and all(o.ok for o in outcomes)
    for i, outcome in enumerate(outcomes):
        assert outcome.text.startswith(
            checksum_of({"model": MODEL, "messages": [{"role": "user", "content": f"Say {i}"}]})
        )


def test_map_takes_templates_and_callables_and_a_broken_row_is_only_its_own_error(client: FastLLM) -> None:
    rows = [{"name": "Ann", "n": 1}, {"name": "Bob"}, {"name": "{n}", "n": 3}]
    found = client.map("Greet {name} {n} times", rows, model=MODEL)
    assert [o.ok for o in found] == [True, False, True]
    assert "did you mean" in str(found[1].error) or "no column" in str(found[1].error)

    def make(row: Any) -> Any:
        if row == 1:
            raise KeyError("mine")
        return [
            f"prompt {row}",
            None,
            [{"role": "user", "content": "x"}],
            {"messages": [{"role": "user", "content": "y"}], "temperature": 0},
        ][row]

    found = client.map(make, range(4), model=MODEL)
    assert [o.ok for o in found] == [True, False, True, True] and "KeyError" in str(found[1].error)


def test_errors_stand_beside_answers_and_single_calls_raise_them(client: FastLLM, server: Any) -> None:
    server.when(lambda body: "bad" in str(body.get("messages")), "400")
    items: list[Any] = [
        ask("good"),
        ask("bad"),
        {"custom_id": "x", "body": ask("fine")},
        {"nonsense": 1},
        5,
        b"{",
        "a prompt",
    ]
    found = client.process(items, model=MODEL)
    assert [o.ok for o in found] == [True, False, True, False, False, False, True]
    assert isinstance(found[1].error, fastllm.BadRequestError) and found[1].attempts == 1
    assert found[2].custom_id == "x" and isinstance(found[3].error, fastllm.InvalidRequestError)
    with pytest.raises(fastllm.BadRequestError):
        client.chat.completions.create(**ask("bad"))
    with pytest.raises(fastllm.InvalidRequestError):
        found[3].unwrap()


def test_a_batch_gives_ids_that_are_the_cache_keys(server: Any) -> None:
    server.reset()
    cache = InMemoryCache()
    with FastLLM(base_url=server.base_url, api_key="k", cache=cache) as client:
        batch, other = RequestBatch(), RequestBatch()
        first = batch.chat.completions.create(**ask("one"))
        assert batch.chat.completions.create(messages=ask("one")["messages"], model=MODEL) == first
        assert batch.chat.completions.create(**ask("one"), sample=1) != first
        vector = other.embeddings.create(model="mock-embedding", input="x")
        other.completions.create(model=MODEL, prompt="p", custom_id="mine")
        other.responses.create(model=MODEL, input="p")
        assert len(batch.merge(other)) == 6 and len(list(batch)) == 6
        found = client.process(batch)
        assert [o.ok for o in found] == [True] * 6
        assert [o.custom_id for o in found][:2] == [first, first] and found[3].custom_id == vector
        assert found[4].custom_id == "mine" and found[1].cached and not found[2].cached
        assert {key[:32].hex() for key in cache.store._entries} >= {first, vector}  # type: ignore[attr-defined]


def test_a_stream_of_many_reads_its_source_only_a_little_ahead(client: FastLLM) -> None:
    pulled = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal pulled
        for i in range(1_000_000):
            pulled += 1
            yield ask(str(i))

    for done, outcome in enumerate(client.stream(source()), 1):
        assert outcome.ok
        assert pulled <= done + 4000
        if done == 3000:
            break


async def test_async_sources_are_read_as_they_come_and_their_error_arrives_after_the_answers() -> None:
    async def source() -> AsyncIterator[dict[str, Any]]:
        for i in range(10):
            yield ask(str(i))
        raise RuntimeError("the source broke")

    async with MockServer(MockConfig()) as server, AsyncFastLLM(base_url=server.base_url, api_key="k") as client:
        done = 0
        with pytest.raises(RuntimeError, match="the source broke"):
            async for outcome in client.stream(source()):
                done += outcome.ok
        assert done == 10


def test_a_broken_source_of_the_sync_stream_raises_in_the_caller(client: FastLLM) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield ask()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.stream(source()))


async def test_cancelled_requests_leave_no_slot_connection_or_task_behind() -> None:
    """1,000 requests under way, all cancelled: the server sees them go, and nothing is left here."""
    async with (
        MockServer(MockConfig(latency=30)) as server,
        AsyncFastLLM(
            base_url=server.base_url, api_key="k", limits=Limits(concurrency=None), retry=Retry(attempts=1)
        ) as client,
    ):
        tasks = [asyncio.create_task(client.chat.completions.create(**ask(str(i)))) for i in range(1000)]
        await until(lambda: server.stats.in_flight == 1000)
        for task in tasks:
            task.cancel()
        assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))
        await until(lambda: server.stats.connections_open == 0)
        engine = client.engine
        assert client.stats.in_flight == client.stats.waiting == 0
        assert engine.router.endpoints[0].limiter.in_flight == 0 and server.stats.cancelled == 1000
        mine = [t for t in asyncio.all_tasks() if "fastllm" in t.get_name() or "fastllm" in repr(t.get_coro())]
        assert [t for t in mine if "testing" not in repr(t.get_coro()) and t is not asyncio.current_task()] == []


async def test_a_thousand_equal_requests_reach_the_server_once_with_a_cache_and_all_without() -> None:
    async with MockServer(MockConfig(latency=0.2)) as server:
        for cache, expected in (("memory", 1), (None, 1000)):
            server.reset()
            async with AsyncFastLLM(
                base_url=server.base_url, api_key="k", cache=cache, limits=Limits(concurrency=None)
            ) as client:
                done = await asyncio.gather(*(client.chat.completions.create(**ask()) for _ in range(1000)))
            assert server.stats.requests == expected and len({r.text for r in done}) == 1


async def test_leaving_a_stream_early_closes_the_upstream_connection_at_once() -> None:
    async with (
        MockServer(MockConfig(token_rate=20)) as server,
        AsyncFastLLM(base_url=server.base_url, api_key="k") as client,
    ):
        stream = await client.chat.completions.create(**ask("a long story " * 20), stream=True)
        async for _ in stream:
            break
        await stream.aclose()
        await until(lambda: server.stats.streams_cancelled == 1 and server.stats.connections_open == 0, seconds=1)
        stream = await client.chat.completions.create(**ask("another " * 20), stream=True)
        del stream
        await until(lambda: server.stats.streams_cancelled == 2 and client.stats.in_flight == 0, seconds=1)


async def test_closing_a_stream_of_many_ends_its_requests_before_it_returns() -> None:
    async def handler(http: fastllm.HTTPRequest) -> fastllm.HTTPResponse:
        if b"now" not in http.body:
            await asyncio.sleep(100)
        return ANSWER

    transport = ScriptedTransport(handler)
    async with AsyncFastLLM(base_url="http://x/v1", api_key="k", transport=transport) as client:
        stream: Any = client.stream([ask("now"), *(ask(str(i)) for i in range(50))])
        assert (await anext(stream)).ok and transport.in_flight > 0
        await stream.aclose()
        assert transport.in_flight == client.stats.in_flight == 0 and len(asyncio.all_tasks()) == 1


def test_the_sync_client_works_in_many_threads(client: FastLLM) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(client.chat.completions.create(**ask("threads")).text))
        for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 100 and len(set(texts)) == 1


async def test_the_sync_client_works_inside_a_running_loop(server: Any) -> None:
    with FastLLM(base_url=server.base_url, api_key="k") as client:
        assert client.chat.completions.create(**ask()).text


def test_the_sync_client_refuses_to_wait_for_itself(server: Any) -> None:
    errors: list[BaseException] = []

    def observer(event: Any) -> None:
        try:
            client.chat.completions.create(**ask())
        except fastllm.FastLLMError as error:
            errors.append(error)

    with FastLLM(base_url=server.base_url, api_key="k", observers=[observer]) as client:
        client.chat.completions.create(**ask())
    assert "use AsyncFastLLM" in str(errors[0])


def _in_child(client: FastLLM, pipe: Any) -> None:
    pipe.send(client.chat.completions.create(**ask("child")).text)
    pipe.close()
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_afresh(server: Any) -> None:
    with FastLLM(base_url=server.base_url, api_key="k") as client:
        before = client.chat.completions.create(**ask("child")).text
        mine, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(client, theirs))
        child.start()
        assert mine.poll(20) and mine.recv() == before
        child.join(20)
        mine.close()
        theirs.close()
        assert client.chat.completions.create(**ask("child")).text == before


def _variant_in_child(client: FastLLM, variant: FastLLM, pipe: Any) -> None:
    inner = client._client
    parents = inner._made.engine  # type: ignore[union-attr]
    seen = [client.stats.ok, variant.stats.ok]
    client.chat.completions.create(**ask("child"))
    mine: Any = inner._engine
    variant.chat.completions.create(**ask("child"))
    client.chat.completions.create(**ask("child"))
    client.close()
    client.chat.completions.create(**ask("child"))
    variant.chat.completions.create(**ask("child"))
    kept = any(made.engine is parents for made in fastllm.client._LEFT_BEHIND)
    pipe.send([*seen, client.stats.ok, variant.stats.ok, mine.stats.ok, mine is not parents, kept])
    pipe.close()
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_variant_in_a_forked_child_shares_its_origins_new_engine(server: Any) -> None:
    with FastLLM(base_url=server.base_url, api_key="k") as client:
        variant = client.with_options(max_retries=0)
        for one in (client, variant):
            one.chat.completions.create(**ask())
        mine, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_variant_in_child, args=(client, variant, theirs))
        child.start()
        assert mine.poll(20) and mine.recv() == [0, 0, 5, 5, 5, True, True]
        child.join(20)
        mine.close()
        theirs.close()


def test_a_variant_outlives_the_closing_of_its_origin_as_the_origin_does(client: FastLLM) -> None:
    variant = client.with_options(max_retries=0)
    other = client.with_options(default_headers={"x-a": "b"})
    for one in (client, variant, other):
        one.chat.completions.create(**ask())
    client.close()
    for one in (client, variant, other):
        assert one.chat.completions.create(**ask()).text
    assert client._client._engine is variant._client._made.base  # type: ignore[union-attr]


def test_counters_are_shared_with_variants_and_outlive_a_close(client: FastLLM) -> None:
    unused = client.with_options(timeout=5)
    used = client.with_options(max_retries=0)
    assert client.stats.ok == unused.stats.ok == 0
    client.chat.completions.create(**ask())
    used.chat.completions.create(**ask())
    assert client.stats.ok == unused.stats.ok == used.stats.ok == 2
    client.close()
    closed = client.stats
    assert closed.ok == unused.stats.ok == used.stats.ok == 2 and closed.p50 and closed.in_flight == 0
    assert closed.elapsed == client.stats.elapsed > 0
    used.chat.completions.create(**ask())
    assert client.stats.ok == unused.stats.ok == used.stats.ok == 3


def test_one_client_serves_loop_after_loop_but_not_two_at_once(server: Any) -> None:
    client = AsyncFastLLM(base_url=server.base_url, api_key="k")

    async def once() -> str:
        try:
            return (await client.chat.completions.create(**ask())).text
        finally:
            await client.aclose()

    assert asyncio.run(once()) == asyncio.run(once())


def test_options_can_be_changed_for_a_while(client: FastLLM, server: Any) -> None:
    server.script(["500", "500"])
    strict = client.with_options(max_retries=0)
    with pytest.raises(fastllm.InternalServerError) as caught:
        strict.chat.completions.create(**ask())
    assert caught.value.attempts == 1
    assert client.chat.completions.create(**ask()).attempts == 2
    wrong = client.with_options(api_key="other", default_headers={"x-a": "b"}, timeout=5)
    assert wrong.chat.completions.create(**ask()).text
    assert client.stats.ok == 2
    wrong.close()
    assert client.chat.completions.create(**ask()).text


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"api_key": ""}, "api_key must be a non-empty string"),
    ({"api_key": " \n"}, "api_key must be a non-empty string"),
    ({"api_key": 5}, "api_key must be a non-empty string, not of type int"),
    ({"api_key": "sk-PASS WORD"}, "api_key must be without spaces"),
    ({"base_url": "localhost"}, "base_url must begin with http.* not 'localhost'"),
    ({"base_url": "http://"}, "base_url must begin with http.* and name a host"),
    ({"base_url": "http://host:port/v1"}, "base_url must .* not 'http://host:port/v1'"),
    ({"base_url": "http://a b/v1"}, "base_url must"),
    ({"base_url": "user:PASSWORD@host/v1"}, "base_url must"),
    ({"base_url": "http://user:PASS/WORD@host/v1"}, "base_url must"),
    ({"base_url": "http://user:PASSWORD@host/v1"}, "base_url must be without .* default_headers"),
    ({"base_url": 5}, "base_url must .* not of type int"),
    ({"max_retries": -1}, "max_retries must be a whole number of at least 0, not -1"),
    ({"retry": 3}, r"retry must be a Retry, for example Retry\(attempts=5\).* not 3"),
    ({"timeout": float("nan")}, "timeout must be"),
    ({"timeout": "5"}, "timeout must be"),
    ({"limits": {"rpm": 5}}, r"limits must be a Limits, for example Limits\(rpm=500\); not {'rpm': 5}"),
    ({"default_headers": {"a": "PASS\r\nWORD"}}, "header 'a' holds a character"),
    ({"default_headers": {"a": 1}}, "header 'a' must map a string to a string"),
    ({"default_headers": "ab"}, "default_headers must map names to values"),
]
IMPOSSIBLE_FOR_A_CLIENT: list[tuple[dict[str, Any], str]] = [
    ({"cache": "redis"}, "cache must be .* not 'redis'"),
    ({"cache": True}, "cache must be .* not True"),
    ({"cache": 5}, "cache must be .* not 5"),
    ({"transport": "x"}, "transport must be a Transport"),
    ({"observers": "abc"}, "observers must be callables"),
    ({"observers": 5}, "observers must be a list of callables"),
    ({"budget": -1}, "budget must be a number of dollars"),
    ({"budget": "5"}, "budget must be a number of dollars"),
    ({"prices": 5}, "prices must be the path"),
    ({"prices": "/nowhere/prices.json"}, "prices: there is no file '/nowhere/prices.json'"),
    ({"unknown_price": "ask"}, "unknown_price must be 'refuse' or 'allow', not 'ask'"),
]


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE + IMPOSSIBLE_FOR_A_CLIENT, ids=str)
def test_a_bad_option_is_named_with_its_value_before_anything_is_sent(options: dict[str, Any], message: str) -> None:
    for make in (AsyncFastLLM, FastLLM):
        with pytest.raises(fastllm.ConfigError, match=message) as caught:
            make(**{"api_key": "k", "base_url": "http://127.0.0.1:9", **options})
        assert "PASS" not in str(caught.value) and "WORD" not in str(caught.value)


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE, ids=str)
def test_a_changed_option_is_checked_as_a_given_one(options: dict[str, Any], message: str) -> None:
    with pytest.raises(fastllm.ConfigError, match=message):
        AsyncFastLLM(api_key="k").with_options(**options)


def test_options_take_the_same_form_wherever_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{}")
    given: dict[str, Any] = {"api_key": " k\n", "base_url": " http://x/v1 ", "default_headers": None}
    for client in (AsyncFastLLM(**given), AsyncFastLLM().with_options(**given)):
        options = client._options
        assert (options.api_key, options.base_url, options.default_headers) == ("k", "http://x/v1", {})
    options = AsyncFastLLM(budget=5, prices=str(tmp_path / "p.json"), unknown_price="allow")._options
    assert (options.budget, options.prices, options.unknown_price) == (5, tmp_path / "p.json", "allow")


async def test_a_limit_holds_for_a_model_however_it_is_spelt() -> None:
    sent: list[Any] = []
    transport = ScriptedTransport(lambda http: sent.append(http) or ANSWER)
    async with AsyncFastLLM(api_key="k", transport=transport, limits=Limits(rpm=1)) as client:
        asked = [
            asyncio.create_task(client.chat.completions.create(model=model, messages=[]))
            for model in ("gpt-4o", "openai/gpt-4o", "openai:gpt-4o")
        ]
        await asyncio.sleep(0.05)
        assert len(sent) == 1 and client.stats.waiting == 2 and len(client.engine.router.endpoints) == 1
        for task in asked:
            task.cancel()


def test_limits_refuse_what_is_no_number() -> None:
    for bad in (float("nan"), float("inf"), -1, 0, "10", True):
        with pytest.raises(fastllm.ConfigError, match=r"limits\.rpm"):
            Limits(rpm=bad)  # type: ignore[arg-type]


def test_a_missing_key_and_an_unknown_provider_say_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with FastLLM() as client:
        with pytest.raises(fastllm.MissingKeyError, match="OPENAI_API_KEY"):
            client.chat.completions.create(**ask())
        with pytest.raises(fastllm.MissingKeyError, match="GROQ_API_KEY"):
            client.chat.completions.create(model="groq/llama", messages=[])
        found = client.process([{"model": "groq/llama", "messages": []}])
        assert isinstance(found[0].error, fastllm.InvalidRequestError) and "GROQ_API_KEY" in str(found[0].error)
        with pytest.raises(fastllm.InvalidRequestError, match="model must be a name"):
            client.chat.completions.create(model="", messages=[])


def test_keys_and_addresses_come_from_the_environment(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    with FastLLM() as client:
        for model in (MODEL, f"openai/{MODEL}", f"openai:{MODEL}"):
            answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
            assert answer.model == MODEL and answer.endpoint == f"openai/{MODEL}"


def test_no_key_and_no_prompt_shows_in_reprs_errors_and_stats(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    key, prompt = "sk-canary-7f3a", "canary-prompt-91"
    server.reset()
    server.script(["500", "400"])
    with FastLLM(base_url=server.base_url, api_key=key) as client:
        with pytest.raises(fastllm.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": prompt}])
        inner = client._client
        shown = [client, inner, inner._options, inner._engine, *inner._engine.router.endpoints]  # type: ignore[union-attr]
        shown += [e.target for e in inner._engine.router.endpoints] + [
            client.stats,
            caught.value,
            caught.value.to_dict(),
        ]  # type: ignore[union-attr]
        text = " ".join(map(repr, shown)) + str(caught.value) + caplog.text
    assert key not in text and prompt not in text


def test_the_sync_client_streams_token_by_token(client: FastLLM) -> None:
    whole = client.chat.completions.create(**ask("stream")).text
    with client.chat.completions.create(**ask("stream"), stream=True) as stream:
        assert "".join(stream.text_stream) == whole
        assert stream.response.text == whole and "ended" in repr(stream)
    stream = client.chat.completions.create(**ask("stream"), stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    assert stream.final().text == whole
    for other in (
        client.completions.create(model=MODEL, prompt="p", stream=True),
        client.responses.create(model=MODEL, input="p", stream=True),
    ):
        with other:
            assert "".join(chunk.delta for chunk in other) == other.response.text
    assert client.embeddings.create(model="mock-embedding", input="x").data[0].embedding
    assert client.stats.in_flight == 0


def test_files_run_from_the_library(client: FastLLM, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\na,one\nb,two\n")
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": "Say {text}",
        "system": "Be kind",
        "params": {"temperature": 0},
    }
    done = client.run(tmp_path / "in.csv", tmp_path / "out.jsonl", **options)
    assert (done.ok, done.total, done.failed) == (2, 2, 0) and done.output == tmp_path / "out.jsonl"
    again = client.run(tmp_path / "in.csv", tmp_path / "out.jsonl", **options)
    assert again.nothing_to_do and again.skipped == 2
    with pytest.raises(fastllm.JobConflictError, match="prompt"):
        client.run(tmp_path / "in.csv", tmp_path / "out.jsonl", **{**options, "prompt": "Sing {text}"})


def test_parameters_of_a_job_are_keywords_as_they_are_of_map(tmp_path: Path) -> None:
    """They reach the provider as those in `params` do, and either form goes on with a job of the other."""
    (tmp_path / "in.jsonl").write_text('{"prompt":"a"}\n{"prompt":"b","temperature":1}\n')
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    sent: list[dict[str, Any]] = []

    def answer(request: fastllm.HTTPRequest) -> fastllm.HTTPResponse:
        sent.append(json.loads(request.body))
        return ANSWER

    with FastLLM(base_url="http://x/v1", api_key="k", transport=ScriptedTransport(answer)) as ours:
        ours.run(source, output, model=MODEL, max_tokens=5, temperature=0, params={"thinking": {"type": "off"}})
    sent.sort(key=lambda body: body["temperature"])
    assert [body["temperature"] for body in sent] == [0, 1]
    assert all(body["max_tokens"] == 5 and body["thinking"] == {"type": "off"} for body in sent)
    params = {"max_tokens": 5, "temperature": 0, "thinking": {"type": "off"}}
    with FastLLM(base_url="http://x/v1", api_key="k") as again:
        assert again.run(source, output, model=MODEL, params=params).nothing_to_do


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"promt": "x"}, "run takes no option promt; did you mean prompt?"),
        ({"modle": "m"}, "run takes no option modle; did you mean model?"),
        ({"overwrit": True}, "run takes no option overwrit; did you mean overwrite?"),
        ({"max_token": 5}, "run takes no option max_token; did you mean max_tokens?"),
        ({"concurrency": 5}, "concurrency; it is an option of the client: with_options(limits=Limits(concurrency=…))"),
        ({"budget": 1.0}, "budget; it is an option of the client: FastLLM(budget=…)"),
        ({"timeout": 5}, "timeout; it is an option of the client: with_options(timeout=…) or FastLLM(timeout=…)"),
        ({"api_key": "sk-SECRET"}, "api_key; it is an option of the client: with_options(api_key=…)"),
        ({"extra_body": {"x": 1}}, "extra_body; params={…} takes parameters of any name"),
        ({"zzz": 1}, "zzz; parameters of a provider's own go into params={…}"),
        ({"max_tokens": 5, "params": {"max_tokens": 5}}, "max_tokens is given twice: as a keyword and in params"),
        ({"response_format": int, "schema": int}, "give schema=… or response_format=…, not both"),
        ({"params": "x"}, "params must map names to values, not be of type str"),
    ],
)
def test_a_keyword_that_a_job_does_not_know_is_refused_before_there_is_one(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt":"a"}\n')
    places = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with pytest.raises(fastllm.ConfigError) as caught:
        FastLLM(base_url="http://x/v1", api_key="k").run(*places, model=MODEL, **options)
    assert words in str(caught.value) and "SECRET" not in str(caught.value)
    with pytest.raises(fastllm.ConfigError) as caught:
        asyncio.run(AsyncFastLLM(base_url="http://x/v1", api_key="k").run(*places, model=MODEL, **options))
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_files_of_other_shapes_from_the_library(client: FastLLM, tmp_path: Path) -> None:
    """Columns kept and chosen, formats named; what cannot be is refused by the option's name."""
    (tmp_path / "in.data").write_text("text,label\none,1\ntwo,2\n")
    options: dict[str, Any] = {"model": MODEL, "prompt": "Say {text}", "input_format": "csv", "output_format": "csv"}
    source, output = tmp_path / "in.data", tmp_path / "out.data"
    done = client.run(source, output, keep=["label"], columns="custom_id,text", failures="rows", **options)
    assert done.ok == 2
    lines = output.read_text().splitlines()
    assert lines[0] == "custom_id,label,text" and lines[2].startswith("row-1,2,") and "Say two" in lines[2]
    again = client.run(source, output, keep="*", **options)
    assert again.rewritten and again.nothing_to_do
    assert output.read_text().splitlines()[0].split(",")[:3] == ["custom_id", "input_text", "label"]
    for wrong, words in (
        ({"failures": "both"}, "failures must be 'file' or 'rows', not 'both'"),
        ({"keep": "lable"}, "keep='lable' is no column of the input; did you mean 'label'?"),
        ({"output_format": "xlsx"}, "output_format must be one of"),
    ):
        with pytest.raises(fastllm.ConfigError) as caught:
            client.run(source, tmp_path / "no.csv", **{**options, **wrong})
        assert words in str(caught.value)


def test_remote_files_from_the_library(client: FastLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched and uploaded; where that fails there is no result, and the next run brings it up."""
    monkeypatch.chdir(tmp_path)
    system = fsspec.filesystem("memory")
    system.pipe("/client/in.txt", b"one\ntwo\n")
    places = ("memory://client/in.txt", "memory://client/out.jsonl")

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(type(system), "put_file", refuse)
        with pytest.raises(fastllm.ConfigError, match=r"no room; every answer is in out\.jsonl"):
            client.run(*places, model=MODEL)
    assert len(Path("out.jsonl").read_bytes().splitlines()) == 2
    assert client.run(*places, model=MODEL).nothing_to_do
    assert len(system.cat("/client/out.jsonl").splitlines()) == 2
    system.rm("/client", recursive=True)


def test_a_provider_that_does_not_answer_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A batch waits out an outage, up to its deadline, and says so; a single call gives up after its attempts."""
    with FastLLM(base_url="http://127.0.0.1:9", api_key="k", timeout=0.5, retry=Retry(base=0.02)) as client:
        found = client.map("x {}", range(5), model=MODEL)
        assert all(isinstance(o.error, fastllm.DeadlineExceededError) for o in found)
        assert len([r for r in caplog.records if "does not answer" in r.message]) == 1
    with FastLLM(base_url="http://127.0.0.1:9", api_key="k", retry=Retry(base=0.001)) as client:
        with pytest.raises(fastllm.APIConnectionError) as caught:
            client.chat.completions.create(**ask())
        assert caught.value.attempts == 8 and caught.value.code == "connection_refused"


def test_answers_become_the_sdks_objects_on_request(client: FastLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = client.chat.completions.create(**ask()).to_openai()
    assert isinstance(chat, openai.types.chat.ChatCompletion) and chat.choices[0].message.content
    text = client.completions.create(model=MODEL, prompt="p").to_openai()
    assert isinstance(text, openai.types.Completion) and text.choices[0].text
    vectors = client.embeddings.create(model="mock-embedding", input="x").to_openai()
    assert isinstance(vectors, openai.types.CreateEmbeddingResponse) and vectors.data[0].embedding
    answer = client.responses.create(model=MODEL, input="x")
    assert answer.to_openai().output_text == answer.text
    monkeypatch.setattr("fastllm.types.import_module", lambda name: __import__("no_such_package"))
    with pytest.raises(fastllm.MissingExtra, match="pip install openai"):
        answer.to_openai()


def test_progress_is_shown_where_it_is_asked_for(client: FastLLM, capsys: pytest.CaptureFixture[str]) -> None:
    client.map("x {}", range(20), model=MODEL, progress="plain")
    shown = capsys.readouterr().err
    assert "20/20" in shown and "100%" in shown
    client.process([ask()])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("make", [AsyncFastLLM, FastLLM])
def test_an_option_that_does_not_exist_is_refused_with_the_one_that_may_be_meant(make: Any) -> None:
    for name, words in (
        ("max_retrys", "did you mean max_retries?"),
        ("rpm", r"did you mean limits=Limits\(rpm=…\)\?"),
        ("nonsense", "there are api_key, base_url"),
    ):
        with pytest.raises(fastllm.ConfigError, match=f"takes no option {name}; {words}"):
            make(**{name: 5})
    client = make(api_key="k")
    for name, words in (("timeuot", "did you mean timeout?"), ("budget", "shared with the client")):
        with pytest.raises(fastllm.ConfigError, match=f"with_options takes no option {name}; .*{words}"):
            client.with_options(**{name: 5})


def test_retry_and_max_retries_together_are_refused() -> None:
    retry = fastllm.Retry(attempts=5)
    with pytest.raises(fastllm.ConfigError, match="max_retries=2 or retry=…, not both"):
        AsyncFastLLM(max_retries=2, retry=retry)
    client = AsyncFastLLM(retry=retry)
    with pytest.raises(fastllm.ConfigError, match="not both"):
        client.with_options(max_retries=2, retry=retry)
    assert client.with_options(max_retries=2)._options.retry == fastllm.Retry(attempts=3, patient=False)


async def test_moderations_through_both_clients_and_in_a_batch(server: Any) -> None:
    inputs = ["a walk", "violence in the streets"]
    async with AsyncFastLLM(base_url=server.base_url, api_key="k") as client:
        one = await client.moderations.create(input=inputs)
        batch = RequestBatch()
        batch.moderations.create(input=inputs[1], model=MODEL)
        (many,) = await client.process(batch)
    with openai.OpenAI(base_url=server.base_url, api_key="k") as theirs:
        expected = theirs.moderations.create(input=inputs)
    assert [result.flagged for result in one.results] == [False, True]
    assert [result.flagged for result in expected.results] == [False, True]
    assert one.results[1].categories["violence"] is True
    assert one.results[1].category_scores["violence"] == expected.results[1].category_scores.violence
    assert many.unwrap().results[0].flagged


@pytest.mark.parametrize("make", [AsyncFastLLM, FastLLM])
def test_a_client_cannot_be_pickled_and_says_what_to_do_instead(make: Any) -> None:
    with pytest.raises(TypeError, match="a client cannot be pickled: make one in each process"):
        pickle.dumps(make(api_key="k"))
