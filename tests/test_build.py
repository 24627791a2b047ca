"""build: from names and options to an engine; which vendor, key, address, cache and limits a model string gets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm import build
from fastllm.build import EngineOptions, engine, make_cache, reloaded, variant, wire_model
from fastllm.cache.base import Cache
from fastllm.cache.disk import DiskCache
from fastllm.cache.memory import InMemoryCache, MemoryStore
from fastllm.engine.endpoint import Endpoint
from fastllm.errors import APIConnectionError, ConfigError, MissingKeyError, RateLimitError, UnknownProviderError
from fastllm.options import CachePolicy, Limits, Route, Timeout, Upstream
from fastllm.providers.openai import OpenAIProvider
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPResponse, Request


class AcmeProvider(OpenAIProvider):
    name = "acme"
    base_url = "http://acme.test/llm"
    key_env = ("ACME_API_KEY",)


class NowhereProvider(OpenAIProvider):
    name = "nowhere"


class TinyStore(MemoryStore):
    pass


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A third-party package that registers two providers and a store."""
    found = EntryPoints(
        [
            EntryPoint("acme", f"{__name__}:AcmeProvider", "fastllm.providers"),
            EntryPoint("nowhere", f"{__name__}:NowhereProvider", "fastllm.providers"),
            EntryPoint("tiny", f"{__name__}:TinyStore", "fastllm.stores"),
        ]
    )
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.attr])
    monkeypatch.setattr(build, "entry_points", lambda **params: found.select(**params))
    build.installed_providers.cache_clear()
    yield
    build.installed_providers.cache_clear()


async def resolve(model: str, **options: Any) -> Endpoint:
    made = engine(EngineOptions(**options))
    try:
        return await made.router.resolve(model)
    finally:
        await made.aclose()


async def test_a_vendors_row_gives_address_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gk")
    endpoint = await resolve("groq/llama-3", default_headers={"x-a": "b"})
    assert endpoint.name == "groq/llama-3" and endpoint.target.model == "llama-3"
    assert endpoint.target.base_url == "https://api.groq.com/openai/v1"
    assert endpoint.target.headers["authorization"] == "Bearer gk" and endpoint.target.headers["x-a"] == "b"
    assert endpoint.limit_names == {"requests": "requests/day"}
    assert (await resolve("groq:llama-3", api_key="mine")).target.headers["authorization"] == "Bearer mine"


async def test_a_base_url_takes_the_model_as_it_is() -> None:
    endpoint = await resolve("openai/gpt-x", base_url="http://h/v1/", api_key="k", limits=Limits(rpm=5))
    assert (endpoint.target.model, endpoint.target.base_url) == ("openai/gpt-x", "http://h/v1")
    assert endpoint.limiter.learner.requests.limit == 5


async def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", "http://gpu:9/v1")
    endpoint = await resolve("vllm/meta-llama/Llama-3")
    assert (endpoint.target.base_url, endpoint.target.model) == ("http://gpu:9/v1", "meta-llama/Llama-3")
    assert "authorization" not in endpoint.target.headers


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("", ConfigError, "no model was given"),
        ("azure/gpt", ConfigError, "AZURE_OPENAI_BASE_URL"),
        ("mistral/x", MissingKeyError, "MISTRAL_API_KEY"),
        ("opnai/gpt", UnknownProviderError, "no provider 'opnai' .* did you mean 'openai'"),
        ("zzz/gpt", UnknownProviderError, "known are anthropic, .* base_url"),
    ],
)
async def test_what_is_missing_is_named(
    model: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_OPENAI_BASE_URL", "MISTRAL_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(error, match=message):
        await resolve(model)


async def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8080")
    with pytest.raises(ConfigError, match="base_url must begin with http"):
        await resolve("gpt", api_key="k")


@pytest.mark.usefixtures("installed")
async def test_a_third_party_provider_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_API_KEY", "ak")
    endpoint = await resolve("acme/tiny")
    assert (endpoint.provider.name, endpoint.target.model) == (AcmeProvider.name, "tiny")
    assert endpoint.target.headers["authorization"] == "Bearer ak"
    with pytest.raises(UnknownProviderError, match="has no `base_url`"):
        await resolve("nowhere/tiny")
    assert wire_model("acme/tiny") == "tiny" and wire_model("other/tiny") == "other/tiny"


@pytest.mark.usefixtures("installed")
def test_caches_are_made_from_what_users_write(tmp_path: Path) -> None:
    assert make_cache(None) is None and make_cache("off") is None
    mine = InMemoryCache()
    assert make_cache(mine) is mine
    assert isinstance(make_cache("memory"), InMemoryCache)
    disk = make_cache(CachePolicy(mode="disk", directory=str(tmp_path), ttl=5))
    assert isinstance(disk, DiskCache) and disk.ttl == 5
    for option in (MemoryStore(), "tiny"):
        made = make_cache(option)
        assert type(made) is Cache and isinstance(made.store, MemoryStore)
    with pytest.raises(ConfigError, match="not 'nonsense'"):
        make_cache("nonsense")


def test_no_key_shows_in_the_options() -> None:
    shown = repr(EngineOptions(api_key="secret", base_url="https://u:secret@host/v1?key=secret"))
    assert "secret" not in shown and "https://host/v1" in shown


def test_the_entry_points_are_read_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    monkeypatch.setattr(build, "entry_points", lambda **params: reads.append(params) or EntryPoints())
    build.installed_providers.cache_clear()
    for _ in range(100):
        wire_model("openai/gpt")
    build.installed_providers.cache_clear()
    assert len(reads) == 1


class Local:
    """A local model that takes its time to start, and may refuse to stop."""

    slots, base_url, model = 1, "http://local/v1", "m"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = False
        self.go = threading.Event()

    def start(self, spec: str) -> Local:
        assert self.go.wait(20)
        return self

    def close(self) -> None:
        self.closed = True
        if self.error is not None:
            raise self.error


def _starts(monkeypatch: pytest.MonkeyPatch, servers: dict[str, Local]) -> None:
    load = build.load
    monkeypatch.setattr(
        build, "load", lambda where: (lambda s: servers[s].start(s)) if "llamacpp" in where else load(where)
    )


async def test_a_model_that_comes_up_after_the_close_is_stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "STARTING", 0.01)
    server = Local()
    _starts(monkeypatch, {"slow": server})
    made = engine(EngineOptions(transport=ScriptedTransport(lambda http: HTTPResponse(status=500))))
    asked = asyncio.ensure_future(made.execute(Request.of({"messages": [], "model": "local/slow"})))
    gone = asyncio.ensure_future(made.router.resolve("local/slow"))
    await asyncio.sleep(0.05)
    gone.cancel()
    await made.aclose()
    server.go.set()
    with pytest.raises(APIConnectionError, match="closed while local/slow was being started"):
        await asked
    assert server.closed


async def test_a_model_that_does_not_stop_keeps_no_other_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {"a": Local(), "b": Local(OSError("it clings")), "c": Local()}
    _starts(monkeypatch, servers)
    made = engine(EngineOptions(transport=ScriptedTransport(lambda http: HTTPResponse(status=500))))
    for name, server in servers.items():
        server.go.set()
        await made.router.resolve(f"local/{name}")
    with pytest.raises(OSError, match="it clings"):
        await made.aclose()
    assert all(server.closed for server in servers.values())


async def test_a_variant_has_something_to_close_only_where_it_started_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Local()
    server.go.set()
    _starts(monkeypatch, {"a": server})
    options = EngineOptions(api_key="k", transport=ScriptedTransport(lambda http: HTTPResponse(status=500)))
    made = engine(options)
    before = len(made._closing)
    for _ in range(50):
        await variant(made, options, same_endpoints=False).router.resolve("openai/gpt")
    assert len(made._closing) == before
    await variant(made, options, same_endpoints=False).router.resolve("local/a")
    await made.aclose()
    assert server.closed


async def test_an_answers_model_name_is_the_vendors(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def handler(http: Any) -> HTTPResponse:
        sent.append(http.body)
        return HTTPResponse(status=200, body=b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')

    made = engine(EngineOptions(api_key="k", transport=ScriptedTransport(handler)))
    answer = await made.execute(Request.of({"messages": [], "model": "groq/llama", "z": 1}))
    assert sent == [b'{"messages":[],"model":"llama","z":1}'] and answer.endpoint == "groq/llama"
    await made.aclose()


async def test_azure_takes_its_key_in_a_header_of_its_own_and_its_address_from_the_resource(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
    monkeypatch.setenv("AZURE_OPENAI_RESOURCE", "ours")
    endpoint = await resolve("azure/gpt-4o")
    assert endpoint.target.base_url == "https://ours.openai.azure.com/openai/v1"
    assert endpoint.target.headers["api-key"] == "azure-key" and "authorization" not in endpoint.target.headers
    assert "azure-key" not in repr(endpoint.target.headers)


async def test_an_address_whose_variable_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "k")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_BEDROCK_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="set AWS_REGION or AWS_DEFAULT_REGION, or AWS_BEDROCK_BASE_URL to"):
        await resolve("bedrock/openai.gpt-oss-20b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    endpoint = await resolve("bedrock/openai.gpt-oss-20b")
    assert endpoint.target.base_url == "https://bedrock-mantle.eu-west-1.api.aws/v1"


async def test_what_a_vendor_calls_otherwise_is_known_without_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", "k")
    for mode in ("adapt", "refuse"):
        endpoint = await resolve("mistral/mistral-small", unsupported_params=mode)
        request = Request.of({"model": "x", "messages": [], "seed": 7, "max_completion_tokens": 9})
        body = msgspec.json.decode(endpoint.adapted(request).body)
        assert body == {"model": "x", "messages": [], "random_seed": 7, "max_tokens": 9}


async def test_the_endpoints_of_a_route_have_their_own_keys_addresses_and_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "first-key")
    monkeypatch.setenv("SECOND", "second-key")
    route = Route(
        endpoints=[
            "openai/gpt-4o",
            Upstream(model="openai/gpt-4o", api_key_env="SECOND", limits=Limits(rpm=7)),
            Upstream(model="anthropic/claude", base_url="https://proxy.example", api_key="third-key"),
            Upstream(model="mine", base_url="http://localhost:9/v1"),
        ]
    )
    made = engine(EngineOptions(routes={"chat": route}))
    try:
        tiers = made.router.route("chat")
        assert tiers is not None
        members = [member.endpoint for member in (await tiers.begin()).members]
    finally:
        await made.aclose()
    assert [member.name for member in members] == [
        "openai/gpt-4o", "openai/gpt-4o (SECOND)", "anthropic/claude at proxy.example", "mine at localhost:9",
    ]  # fmt: skip
    keys = [member.target.headers.get("authorization") or member.target.headers.get("x-api-key") for member in members]
    assert keys == ["Bearer first-key", "Bearer second-key", "third-key", None]
    assert members[2].provider.name == "anthropic" and members[2].target.base_url == "https://proxy.example"
    assert "second-key" not in repr(route) and "third-key" not in repr(route)
    assert "7 requests a minute" in members[1].limiter.describe()


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        (Upstream(model="openai/x", api_key_env="NOT_SET_AT_ALL"), "NOT_SET_AT_ALL is not set or empty"),
        (Upstream(model="groq/x"), "no API key for groq: set GROQ_API_KEY"),
        (Upstream(model="local/smollm2", limits=Limits(rpm=1)), "'local/smollm2' cannot have limits of its own"),
        (Upstream(model="opnai/x"), "no provider 'opnai'"),
        (Upstream(model="openai/x", base_url="localhost"), "base_url must begin with http"),
    ],
)
async def test_a_route_says_at_its_first_use_what_is_wrong_even_with_its_fallbacks(
    monkeypatch: pytest.MonkeyPatch, upstream: Upstream, message: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    made = engine(EngineOptions(routes={"chat": Route(endpoints=["openai/gpt-4o"], fallbacks=[upstream])}))
    with pytest.raises(ConfigError, match=message):
        await made.execute(Request.of({"model": "chat", "messages": []}))
    await made.aclose()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Route(endpoints=[]), "route.endpoints must name at least one model"),
        (lambda: Route(endpoints="openai/x"), "route.endpoints must be a list of model strings or Upstreams"),
        (lambda: Route(endpoints=["a"], fallbacks=[5]), "route.fallbacks .* 5 is neither"),
        (
            lambda: Route(endpoints=["a"], on=["rain"]),
            "route.on must be a list of .*'rain' is none",
        ),
        (lambda: Route(endpoints=["a"], choose="random"), "route.choose must be 'weighted' or 'least_loaded'"),
        (lambda: Route(endpoints=["a"], tries=0), "route.tries must be a whole number of attempts of at least 1"),
        (lambda: Upstream(model=""), "upstream.model must name a model"),
        (lambda: Upstream(model="a", weight=0), "upstream.weight must be .* greater than 0"),
        (lambda: Upstream(model="a", api_key="k", api_key_env="K"), "both api_key and api_key_env"),
        (lambda: engine(EngineOptions(routes={"": Route(endpoints=["a"])})), "non-empty text"),
        (lambda: engine(EngineOptions(routes={"chat": ["a"]})), r"routes\['chat'\] must be a Route"),
    ],
)
def test_an_impossible_route_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# Reloading


def _answering(sent: list[str]) -> ScriptedTransport:
    def handler(http: Any) -> HTTPResponse:
        sent.append(http.url)
        return HTTPResponse(status=200, body=b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')

    return ScriptedTransport(handler)


async def test_a_reload_keeps_the_endpoints_that_stay_as_they_were_and_what_was_used_of_their_limits() -> None:
    sent: list[str] = []
    same = Upstream(model="same", base_url="http://one.test/v1", limits=Limits(rpm=1))
    other = Upstream(model="other", base_url="http://two.test/v1", limits=Limits(rpm=1))
    transport = _answering(sent)
    before = engine(EngineOptions(transport=transport, routes={"a": Route(endpoints=[same, other])}))
    for _ in range(2):
        await before.execute(Request.of({"model": "a", "messages": []}))
    assert len(sent) == 2
    changed = msgspec.structs.replace(other, limits=Limits(rpm=5))
    options = EngineOptions(
        transport=transport,
        timeout=Timeout(queue=0.5),
        routes={"b": Route(endpoints=[same]), "c": Route(endpoints=[changed])},
    )
    after = reloaded(before, options)
    with pytest.raises(RateLimitError):  # the minute's only request was used before
        await after.execute(Request.of({"model": "b", "messages": []}))
    assert (await after.execute(Request.of({"model": "c", "messages": []}))).text == "x"
    old = {endpoint.target.base_url: endpoint for endpoint in before.router.endpoints}
    new = {endpoint.target.base_url: endpoint for endpoint in after.router.endpoints}
    assert new["http://one.test/v1"] is old["http://one.test/v1"]
    assert new["http://two.test/v1"] is not old["http://two.test/v1"]
    assert new["http://two.test/v1"].limiter.limits == Limits(rpm=5)
    assert after.stats is before.stats
    await before.aclose()


async def test_a_reload_forgets_routes_that_are_gone_and_does_not_disturb_a_request_under_way() -> None:
    go = asyncio.Event()

    async def handler(http: Any) -> HTTPResponse:
        await go.wait()
        return HTTPResponse(status=200, body=b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')

    route = Route(endpoints=[Upstream(model="m", base_url="http://one.test/v1")])
    options = EngineOptions(transport=ScriptedTransport(handler), routes={"gone/a": route})
    before = engine(options)
    under_way = asyncio.create_task(before.execute(Request.of({"model": "gone/a", "messages": []})))
    await asyncio.sleep(0.01)
    after = reloaded(reloaded(before, options), msgspec.structs.replace(options, routes={}))
    with pytest.raises(UnknownProviderError):
        await after.execute(Request.of({"model": "gone/a", "messages": []}))
    go.set()
    assert (await under_way).text == "x"
    await before.aclose()


async def test_a_reload_goes_on_with_a_model_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Local()
    server.go.set()
    _starts(monkeypatch, {"a": server})
    options = EngineOptions(transport=_answering([]))
    before = engine(options)
    endpoint = await before.router.resolve("local/a")
    assert await reloaded(before, options).router.resolve("local/a") is not None
    assert reloaded(before, options).router.known["local/a"] is endpoint
    await before.aclose()
    assert server.closed
