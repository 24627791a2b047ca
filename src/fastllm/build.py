"""The only place that picks concrete classes: names and options become an Engine and its parts."""

from __future__ import annotations

import asyncio
import difflib
import functools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from .cache.base import Cache, Store
from .clock import Clock, SystemClock
from .engine.endpoint import Endpoint
from .engine.engine import Engine
from .engine.events import Observer
from .engine.limiter import Limiter
from .engine.router import Router
from .engine.sharing import Sharing
from .errors import APIConnectionError, ConfigError, MissingKeyError, UnknownProviderError
from .options import CachePolicy, Limits, Retry, Route, Timeout, Upstream
from .policy.budget import Budget
from .policy.packing import Packing
from .policy.parameters import Parameters, UnsupportedParams
from .policy.pricing import Price, PriceTable
from .policy.purse import Purse, UnknownPrice
from .providers.base import Provider
from .providers.vendors import LOCAL, VENDORS, Vendor, split_model
from .transport.base import Transport
from .transport.descriptors import connection_limit
from .types import Headers, Target, _without_secrets

if TYPE_CHECKING:
    from .settings import Settings

# Name -> "module:Class". Third parties add theirs through the entry points `fastllm.providers` and `fastllm.stores`.
DIALECTS = {
    "openai": "fastllm.providers.openai:OpenAIProvider",
    "anthropic": "fastllm.providers.anthropic:AnthropicProvider",
    "gemini": "fastllm.providers.gemini:GeminiProvider",
}
CACHES = {"memory": "fastllm.cache.memory:InMemoryCache", "disk": "fastllm.cache.disk:DiskCache"}
LEASES = "fastllm.leases.sqlite:SQLiteLeases"
TRANSPORT = "fastllm.transport.http:HTTPTransport"
RESPONSES_BY_CHAT = "fastllm.providers.responses_by_chat:ResponsesByChat"
MESSAGES_BY_CHAT = "fastllm.providers.messages_by_chat:MessagesByChat"
DEFAULT_VENDOR = "openai"
_IN_BRACES = re.compile(r"\{([A-Z0-9_|]+)\}")
NOBODY = Vendor(name="")  # behind a base_url of the user's own
STARTING = 5.0  # seconds that closing waits for models which are being started

_NO_CACHE = (
    "cache must be 'memory', 'disk', 'off', an installed store's name, a CachePolicy, a Cache, a Store or None; "
    "not {!r}"
)

CacheOption = str | CachePolicy | Cache | Store | None


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine is made from; `checked` tells whether it is possible. The repr shows no secret.

    `budget` is in USD, `prices` a file whose rows replace those of the package's price table. `embeddings_per_request`
    bounds how many inputs of a batch share a request; None: as many as the vendor takes. `leases` is a file on a local
    disk: processes of one machine that name the same one have their limits, endpoint by endpoint, and the budget
    together; with `own_leases` it is made for this engine and the processes that it tells of it, and removed with it.
    """

    base_url: str | None = None
    api_key: str | None = None
    default_headers: Mapping[str, str] = {}
    limits: Limits | None = None
    timeout: Timeout = Timeout()
    retry: Retry = Retry()
    cache: CacheOption = None
    observers: Sequence[Observer] = ()
    transport: Transport | None = None
    clock: Clock | None = None
    budget: float | None = None
    prices: Path | None = None
    unknown_price: UnknownPrice = "refuse"
    unsupported_params: UnsupportedParams = "adapt"
    routes: Mapping[str, Route] = {}
    embeddings_per_request: int | None = None
    leases: Path | None = None
    own_leases: bool = False
    local: bool = True  # models of this process may be started

    def __repr__(self) -> str:
        key = "***" if self.api_key else None
        base_url = _without_secrets(self.base_url) if self.base_url else None
        return f"EngineOptions(base_url={base_url!r}, api_key={key!r}, limits={self.limits!r}, cache={self.cache!r})"


def options_of(settings: Settings, environ: Mapping[str, str]) -> EngineOptions:
    """Give what the settings say of an engine. ConfigError names the setting."""
    return EngineOptions(
        base_url=settings["base_url"],
        api_key=settings.api_key(environ),
        limits=settings.limits(),
        timeout=settings.timeout(),
        retry=settings.retry(),
        cache=settings.cache(),
        budget=settings["budget"],
        prices=settings["prices"],
        unknown_price=settings["unknown_price"],
        unsupported_params=settings["unsupported_params"],
        routes=settings.routes,
        embeddings_per_request=settings["embeddings_per_request"],
        leases=settings["leases"],
    )


def checked(options: EngineOptions) -> EngineOptions:
    """Give the options in their final form. ConfigError names the field, the value and what it may be; of what may
    hold a secret it shows nothing."""
    headers = options.default_headers
    if headers is not None and not isinstance(headers, Mapping):
        raise ConfigError(f"default_headers must map names to values, not be of type {type(headers).__name__}")
    Headers(headers or {})
    for field, kind, example in (
        ("limits", Limits, "Limits(rpm=500)"),
        ("timeout", Timeout, "Timeout(total=60)"),
        ("retry", Retry, "Retry(attempts=5)"),
        ("transport", Transport, "HTTPTransport()"),
    ):
        value = getattr(options, field)
        if not isinstance(value, kind) and (value is not None or field in ("timeout", "retry")):
            raise ConfigError(f"{field} must be a {kind.__name__}, for example {example}; not {value!r}")
    if options.unknown_price not in ("refuse", "allow"):
        raise ConfigError(f"unknown_price must be 'refuse' or 'allow', not {options.unknown_price!r}")
    if options.unsupported_params not in ("adapt", "refuse"):
        raise ConfigError(f"unsupported_params must be 'adapt' or 'refuse', not {options.unsupported_params!r}")
    if options.budget is not None:
        Budget(options.budget)
    most = options.embeddings_per_request
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise ConfigError(
            f"embeddings_per_request must be a whole number of at least 1 (1: none share a request), not {most!r}"
        )
    return msgspec.structs.replace(
        options,
        api_key=_key(options.api_key),
        base_url=None if options.base_url is None else _address("base_url", options.base_url),
        default_headers=dict(headers or {}),
        observers=_observers(options.observers),
        prices=_prices(options.prices),
        leases=_leases(options.leases),
        routes=_routes(options.routes),
    )


def _key(key: object) -> str | None:
    """Keys are pasted with a line's end, and files end in one; inside there is none, nor a space."""
    if key is None:
        return None
    if not isinstance(key, str) or not key.strip():
        what = "an empty one" if isinstance(key, str) else f"of type {type(key).__name__}"
        raise ConfigError(f"api_key must be a non-empty string, not {what}; leave it out to take the environment's")
    if not re.fullmatch(r"[!-~]+", key.strip()):
        raise ConfigError("api_key must be without spaces, line breaks and letters beyond ASCII (it is not shown here)")
    return key.strip()


def _address(field: str, url: object) -> str:
    if isinstance(url, str):
        found = url.strip()
        if _is_address(found) and "@" not in urlsplit(found).netloc:
            return found
        if _is_address(found):
            raise ConfigError(
                f"{field} must be without user and password (not shown here); give them as "
                'default_headers={"authorization": "Basic …"}'
            )
        # What is no URL may hold a password anywhere before an @.
        shown = "one with an @ (not shown here)" if "@" in url else repr(found.split("?", 1)[0])
    else:
        shown = f"of type {type(url).__name__}"
    raise ConfigError(
        f"{field} must begin with http:// or https:// and name a host, such as 'http://localhost:8080/v1'; not {shown}"
    )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is no number, or a bracket is open
        return False
    return bool(host) and port != 0 and re.fullmatch(r"https?://[^\s\x00-\x1f\x7f]+", url) is not None


def _observers(observers: Any) -> tuple[Observer, ...]:
    if not isinstance(observers, Iterable):
        raise ConfigError(f"observers must be a list of callables that take an event, not {observers!r}")
    found = tuple(observers)
    for observer in found:
        if not callable(observer):
            raise ConfigError(f"observers must be callables that take an event, not {observer!r}")
    return found


def _routes(routes: object) -> dict[str, Route]:
    if routes is not None and not isinstance(routes, Mapping):
        raise ConfigError(f"routes must map names to Routes, not {routes!r}")
    for name, route in (routes or {}).items():
        if not isinstance(name, str) or not name:
            raise ConfigError(f"routes must have names that are non-empty text, not {name!r}")
        if not isinstance(route, Route):
            raise ConfigError(f"routes[{name!r}] must be a Route, such as Route(endpoints=['openai/gpt-4o-mini'])")
    return dict(routes or {})


def _prices(path: Any) -> Path | None:
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ConfigError(f"prices must be the path of a JSON or TOML file, not {path!r}")
    if not Path(path).is_file():
        raise ConfigError(f"prices: there is no file {str(path)!r}; see docs/cost.md for its form")
    return Path(path)


def _leases(path: Any) -> Path | None:
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ConfigError(f"leases must be the path of a file, which need not exist; not {path!r}")
    found = Path(path).absolute()
    if found.is_dir() or not found.parent.is_dir():
        raise ConfigError(f"leases: {str(path)!r} is no file in a directory that exists")
    return found


def engine(options: EngineOptions) -> Engine:
    """Build an engine for the running loop. Raises ConfigError."""
    options = checked(options)
    clock = options.clock or SystemClock()
    transport = options.transport or load(TRANSPORT)()
    own = tempfile.mkdtemp(prefix="fastllm-") if options.own_leases and options.leases is None else None
    leases = options.leases if own is None else Path(own) / "leases.db"
    budget = Budget(options.budget, shared=leases is not None) if options.budget is not None else None
    sharing = None if leases is None else Sharing(load(LEASES)(leases), clock, budget, where=str(leases))
    resolver = _Resolver(options, clock, budget=budget, sharing=sharing)
    made = Engine(
        Router(resolver.resolve, options.routes, resolver.find),
        transport,
        clock=clock,
        cache=make_cache(options.cache),
        retry=options.retry,
        timeout=options.timeout,
        observers=options.observers,
    )
    made.budget, made.sharing = budget, sharing
    if options.embeddings_per_request != 1:
        made.pack()
    made.on_close(resolver.close)
    if own is not None:
        made.on_close(partial(asyncio.to_thread, shutil.rmtree, own, ignore_errors=True))
    if sharing is not None:
        made.on_close(sharing.aclose)
    return made


def variant(base: Engine, options: EngineOptions, *, same_endpoints: bool) -> Engine:
    """Give an engine with other options that shares the base's connections, cache, counters and budget."""
    if same_endpoints:
        return base.with_options(retry=options.retry, timeout=options.timeout)
    return _with_endpoints(base, options)


def reloaded(base: Engine, options: EngineOptions) -> Engine:
    """Give an engine with other options that goes on with the base's connections, cache, counters and budget, and with
    all endpoints that stay as they were: with what was learnt of them, and what was used of their limits."""
    return _with_endpoints(base, options, base.router)


def _with_endpoints(base: Engine, options: EngineOptions, before: Router | None = None) -> Engine:
    # Only one that started a model has something to close: variants may come and go by the thousand.
    resolver = _Resolver(options, base.clock, started=base.on_close, budget=base.budget, sharing=base.sharing)
    router = Router(resolver.resolve, options.routes, resolver.find, before)
    return base.with_options(router=router, retry=options.retry, timeout=options.timeout)


def provider_endpoint(name: str, base: Engine, options: EngineOptions) -> Endpoint:
    """Give the endpoint of a vendor itself and of no model: its address and key are those of the environment. Raises
    ConfigError."""
    vendor = VENDORS.get(name)
    if vendor is None or name == LOCAL:
        raise UnknownProviderError(f"no provider {name!r}; known are {', '.join(sorted(VENDORS))}")
    plain = msgspec.structs.replace(options, base_url=None, api_key=None)
    return _Resolver(plain, base.clock)._vendor(vendor, "")


def make_cache(option: CacheOption) -> Cache | None:
    """Turn what users write (a name, a policy, a Cache, a Store, None) into a Cache."""
    if option is None or isinstance(option, Cache):
        return option
    if isinstance(option, Store):
        return Cache(option)
    policy = option if isinstance(option, CachePolicy) else CachePolicy()
    name = option if isinstance(option, str) else policy.mode
    if not isinstance(option, str | CachePolicy):
        raise ConfigError(_NO_CACHE.format(option))
    if name == "off":
        return None
    if name == "memory":
        return _cache(CACHES[name], policy, max_bytes=policy.memory_bytes)
    if name == "disk":
        return _cache(CACHES[name], policy, max_bytes=policy.disk_bytes, directory=policy.directory)
    for entry in entry_points(group="fastllm.stores", name=name):
        return Cache(entry.load()(), ttl=policy.ttl, namespace=policy.namespace)
    raise ConfigError(_NO_CACHE.format(option))


def _cache(where: str, policy: CachePolicy, **more: Any) -> Cache:
    made = load(where)(ttl=policy.ttl, namespace=policy.namespace, **more)
    assert isinstance(made, Cache)
    return made


def load(where: str) -> Any:
    """Import the class that "module:Class" names."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


@functools.cache  # reading the entry points takes milliseconds; what is installed does not change under a process
def installed_providers() -> frozenset[str]:
    """The names that installed packages gave their dialects."""
    return frozenset(entry.name for entry in entry_points(group="fastllm.providers"))


def known_providers() -> frozenset[str]:
    """The names that may stand before the / or : of a model string."""
    return installed_providers() | VENDORS.keys() | {LOCAL}


def price_table(path: str | os.PathLike[str] | None) -> PriceTable:
    """Give the price table with a user's own file over it. ConfigError where the file or a provider's name is wrong."""
    return PriceTable.load(None if path is None else Path(path), providers=known_providers() | {"base_url"})


def wire_model(model: str) -> str:
    """Give the model's name as the provider knows it: the string without its provider prefix."""
    return split_model(model, known_providers())[1]


_LOCAL = Vendor(name=LOCAL, responses=False)  # llama.cpp answers Responses, but keeps none


class _Resolver:
    """Makes the Endpoint for a model string: which vendor, which dialect, which key, which limits."""

    def __init__(
        self,
        options: EngineOptions,
        clock: Clock,
        *,
        started: Callable[[Callable[[], Awaitable[None]]], None] | None = None,
        budget: Budget | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._options = options
        self._sharing = sharing
        self._budget = budget
        self._prices: PriceTable | None = None
        self._clock = clock
        self._started = started  # told of `close` when the first model is started
        self._known = known_providers()
        self._dialects: dict[str, Provider] = {}
        self._local: list[Any] = []
        self._starting: set[asyncio.Future[Any]] = set()
        self._closed = False
        self._lock = threading.Lock()  # models are started in threads

    async def resolve(self, model: str) -> Endpoint:
        base_url = self._options.base_url or os.environ.get("OPENAI_BASE_URL") or None
        name, rest = split_model(model, self._known)
        if self._options.base_url is None and name == LOCAL:
            return await self._start_local(model, rest)
        if not model:
            raise ConfigError("no model was given; name one, for example model='openai/gpt-4o-mini'")
        if self._options.base_url is not None:
            return self._at(base_url or "", model, model, "openai", self._options.api_key or _default_key())
        if name is None:
            if "/" in model and base_url is None:
                raise UnknownProviderError(self._unknown(model))
            name, rest = DEFAULT_VENDOR, model
        vendor = VENDORS.get(name)
        if vendor is None:
            return self._third_party(name, rest)
        return self._vendor(vendor, rest)

    async def find(self, upstream: Upstream) -> Endpoint:
        """Make the endpoint of a route that has an address, a key or limits of its own. Raises ConfigError."""
        name, model = split_model(upstream.model, self._known)
        vendor = VENDORS.get(name or DEFAULT_VENDOR)
        if name == LOCAL or vendor is None:
            only = "limits" if upstream.limits is not None else "an address or a key"
            raise ConfigError(f"the route's endpoint {upstream.model!r} cannot have {only} of its own")
        if upstream.base_url is not None and name is None:
            vendor = NOBODY
        base_url = upstream.base_url or self._address_of(vendor)
        key = self._key_of(vendor, upstream)
        shown = f"{vendor.name}/{model}" if vendor is not NOBODY else model
        if upstream.base_url is not None:  # two of one route must not look alike
            shown += f" at {urlsplit(base_url).netloc.rpartition('@')[2]}"
        if upstream.api_key_env is not None:
            shown += f" ({upstream.api_key_env})"
        return self._at(base_url, model, shown, vendor.dialect, key, limits=upstream.limits, vendor=vendor)

    def _key_of(self, vendor: Vendor, upstream: Upstream | None = None) -> str | None:
        if upstream is not None and upstream.api_key_env is not None:
            key = os.environ.get(upstream.api_key_env)
            if not key:
                raise MissingKeyError(f"no API key for {upstream.model}: {upstream.api_key_env} is not set or empty")
            return _key(key)
        given = upstream.api_key if upstream is not None else None
        key = given or self._options.api_key or next((os.environ[k] for k in vendor.key_env if os.environ.get(k)), None)
        if key is None and vendor.key_required and vendor is not NOBODY:
            raise MissingKeyError(
                f"no API key for {vendor.name}: set {' or '.join(vendor.key_env)}, or give api_key=…"
                "; the model 'local/smollm2' needs none"
            )
        return key

    def _address_of(self, vendor: Vendor) -> str:
        given = vendor.base_url_env and os.environ.get(vendor.base_url_env)
        return given or address_of(vendor, os.environ)

    def _unknown(self, model: str) -> str:
        """OpenAI's own models have no / in their names, so before one stood the name of a provider."""
        prefix = model.partition("/")[0]
        near = difflib.get_close_matches(prefix, self._known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(self._known))};"
        return f"no provider {prefix!r} for the model {model!r}; {hint} your own server needs base_url=…"

    def _vendor(self, vendor: Vendor, model: str) -> Endpoint:
        base_url = self._address_of(vendor)
        return self._at(base_url, model, f"{vendor.name}/{model}", vendor.dialect, self._key_of(vendor), vendor=vendor)

    def _third_party(self, name: str, model: str) -> Endpoint:
        dialect = self._dialect(name)
        base_url = getattr(dialect, "base_url", "")
        if not base_url:
            raise UnknownProviderError(f"the provider {name!r} has no `base_url`; give base_url=…")
        key_env = getattr(dialect, "key_env", ())
        key = self._options.api_key or next((os.environ[k] for k in key_env if os.environ.get(k)), None)
        return self._at(base_url, model, f"{name}/{model}", name, key)

    async def _start_local(self, model: str, spec: str) -> Endpoint:
        if not self._options.local:
            raise ConfigError(f"{model} is a model of one process: it has no use for worker processes, give workers=1")
        started, self._started = self._started, None
        if started is not None:
            started(self.close)
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, model, spec))
        self._starting.add(starting)
        starting.add_done_callback(self._has_started)
        server = await asyncio.shield(starting)
        limits = self._options.limits or Limits()
        slots = min(limits.concurrency or server.slots, server.slots)
        limits = msgspec.structs.replace(limits, concurrency=slots, adaptive=False)
        return self._at(server.base_url, server.model, model, "openai", None, limits=limits, vendor=_LOCAL)

    def _has_started(self, starting: asyncio.Future[Any]) -> None:
        self._starting.discard(starting)
        if not starting.cancelled():
            starting.exception()  # looked at, should nobody wait for it any more

    def _start(self, model: str, spec: str) -> Any:
        """Runs in a thread, which nobody can call back: what comes up after `close` must be stopped here."""
        server = load("fastllm.local.llamacpp:start")(spec)
        with self._lock:
            if not self._closed:
                self._local.append(server)
                return server
        server.close()
        raise APIConnectionError(
            f"the client was closed while {model} was being started", code="closed", retryable=False, sent=False
        )

    def _at(
        self,
        base_url: str,
        model: str,
        name: str,
        dialect: str,
        key: str | None,
        *,
        limits: Limits | None = None,
        vendor: Vendor = NOBODY,
    ) -> Endpoint:
        base_url = _address("base_url", base_url)
        provider = self._dialect(dialect)
        who = next((v for v in VENDORS.values() if v.base_url == base_url.rstrip("/")), vendor)
        if provider.chat_only or not who.responses:
            provider = load(RESPONSES_BY_CHAT)(provider)
        if not self._dialect(dialect).has_messages:
            provider = load(MESSAGES_BY_CHAT)(provider)
        more = {**vendor.headers, **self._options.default_headers}
        if vendor.key_header is not None and key is not None:
            more, key = {vendor.key_header: key, **more}, None
        headers = provider.headers(key, more)
        target = Target(base_url=base_url.rstrip("/"), model=model, headers=headers, schemas=who.schemas)
        limiter = self._limiter(limits or self._options.limits or Limits(), provider.name, target, vendor)
        billed, price = self._price(vendor, target)
        purse = None
        if self._budget is not None:
            unknown = self._options.unknown_price
            purse = Purse(self._budget, price, model=f"{billed}/{target.model}", unknown_price=unknown)
        return Endpoint(
            name,
            provider,
            target,
            limiter,
            namespace=getattr(self._options.cache, "namespace", ""),
            limit_names=vendor.limit_names,
            price=price,
            purse=purse,
            parameters=Parameters(who.params, learns=self._options.unsupported_params == "adapt"),
            packing=Packing(self._options.embeddings_per_request or who.embed_inputs, who.embed_tokens),
        )

    def _limiter(self, limits: Limits, dialect: str, target: Target, vendor: Vendor) -> Limiter:
        ceiling = connection_limit()
        if self._sharing is None or vendor.name == LOCAL:
            return Limiter(limits, self._clock, ceiling=ceiling)
        place = msgspec.json.encode((dialect, target.base_url, target.model, target.headers.encoded))
        return self._sharing.limiter(limits, place, ceiling=ceiling)

    def _price(self, vendor: Vendor, target: Target) -> tuple[str, Price | None]:
        """Give who is billed for this endpoint, and its price if that is known. Behind a base_url stands who is known
        by it."""
        known = (found.prices or found.name for found in VENDORS.values() if found.base_url == target.base_url)
        name = vendor.prices or vendor.name or next(known, "base_url")
        if name == "base_url" and self._budget is None and self._options.prices is None:
            return name, None
        if self._prices is None:
            self._prices = price_table(self._options.prices)
        return name, self._prices.find(name, target.model)

    def _dialect(self, name: str) -> Provider:
        if name not in self._dialects:
            if name in DIALECTS:
                self._dialects[name] = load(DIALECTS[name])()
            else:
                found = list(entry_points(group="fastllm.providers", name=name))
                if not found:
                    raise UnknownProviderError(f"no provider {name!r}; known are {', '.join(sorted(self._known))}")
                self._dialects[name] = found[0].load()()
        return self._dialects[name]

    async def close(self) -> None:
        """Stop the models that were started in this process, each whatever becomes of the others."""
        with self._lock:
            self._closed = True
            servers, self._local = self._local, []
        stops = [asyncio.to_thread(server.close) for server in servers]
        found = await asyncio.gather(*stops, return_exceptions=True)
        if self._starting:
            await asyncio.wait(self._starting, timeout=STARTING)
        for error in found:
            if error is not None:
                raise error


def address_of(vendor: Vendor, environ: Mapping[str, str]) -> str:
    """Give a vendor's address with the variables in it. ConfigError names those that are not set."""

    def value(match: re.Match[str]) -> str:
        found = next((environ[name] for name in match[1].split("|") if environ.get(name)), None)
        if found is None:
            names = match[1].replace("|", " or ")
            other = f", or {vendor.base_url_env} to its whole address" if vendor.base_url_env else ""
            raise ConfigError(f"{vendor.name}'s address is {vendor.base_url}: set {names}{other}")
        return found

    return _IN_BRACES.sub(value, vendor.base_url)


def _default_key() -> str | None:
    return os.environ.get("OPENAI_API_KEY") or None
