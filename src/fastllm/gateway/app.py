"""Gateway: the ASGI app: which path is which operation, who may ask, and what is told of how it ended.

The order of things: the door (whose host, whose key), the route, then the operation; each says no in the dialect of the
path. What an app beside it wants to serve (files, jobs) is mounted: it comes after the door, and gets the tenant as
`scope["fastllm.tenant"]`. Pages are mounted before the door: everybody who reaches the gateway may see them.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from urllib.parse import unquote

import msgspec

from ..engine.engine import Engine
from ..errors import FastLLMError, LLMError
from ..options import Retry
from ..types import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, MODERATIONS, RESPONSES
from . import counting
from .asking import asked_of
from .auth import ANYBODY, Admissions, Keys, Tenant
from .catalog import Catalog
from .config import GatewayOptions
from .exchange import ASGI, GONE, Exchange, Receive, Scope, Send
from .faces import ANTHROPIC, OPENAI, RESPONSES_FACE, Face, Fault, Refusal, fault_of
from .openapi import document
from .operations import operate
from .record import Listener, Record, tell
from .response_store import ResponseStore
from .responses import Continuation

logger = logging.getLogger("fastllm.gateway")

COUNT_TOKENS, INPUT_TOKENS = "/messages/count_tokens", "/responses/input_tokens"
_FACES: Mapping[str, Face] = {RESPONSES: RESPONSES_FACE, MESSAGES: ANTHROPIC, COUNT_TOKENS: ANTHROPIC}
OPERATIONS = (CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES, MESSAGES)
_DEPLOYMENTS = "/openai/deployments/"
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_INTERNAL = Fault(status=500, message="the gateway failed; its log says how", code="internal_error", again=False)
_STOPPING = Fault(status=503, message="the gateway is stopping", code="stopping", again=True)
_NO_MOUNTS: Mapping[str, ASGI] = MappingProxyType({})

Scrape = Callable[[str], tuple[bytes, str]]  # from a request's Accept to a text and its type; called in a thread
Serve = Callable[["Gateway", Exchange, Tenant, str, Record], Awaitable[None]]


class Route(msgspec.Struct, frozen=True):
    """One path: what serves it, by which method, whose dialect its errors have, and whether it asks for a key."""

    name: str
    serve: Serve
    method: str = "POST"
    face: Face = OPENAI
    open: bool = False


class Gateway:
    """Serves an engine over HTTP: `app = Gateway(engine, options)` is an ASGI app. Who made the engine closes it.

    `keys` None lets everybody in. `admissions` has the limits of the tenants, `listeners` hear of every request that
    has ended; what one raises is logged. `metrics` gives the text of /metrics. `mounts` are further apps, by the
    beginning of their paths, and so are `pages`, which must hold nothing that is anybody's own.
    """

    def __init__(
        self,
        engine: Engine,
        options: GatewayOptions | None = None,
        *,
        catalog: Catalog | None = None,
        keys: Keys | None = None,
        admissions: Admissions | None = None,
        listeners: Sequence[Listener] = (),
        metrics: Scrape | None = None,
        mounts: Mapping[str, ASGI] = _NO_MOUNTS,
        pages: Mapping[str, ASGI] = _NO_MOUNTS,
    ) -> None:
        self.keys = keys
        self.admissions = admissions
        self.listeners = tuple(listeners)
        self.metrics = metrics
        self.mounts = dict(mounts)
        self.pages = dict(pages)
        self.responses: ResponseStore | None = None
        self.draining = False
        self.under_way = 0
        self._ended: list[Record] = []  # and nobody was told yet
        self.reload(engine, options or GatewayOptions(), catalog or Catalog())

    def reload(self, engine: Engine, options: GatewayOptions, catalog: Catalog) -> None:
        """Go on with another engine and other options; requests under way end with those that they began with."""
        self._engines = _by_attempts(engine)
        self.options = options
        self.catalog = catalog
        self._anybody = msgspec.structs.replace(ANYBODY, namespace=options.namespace)

    @property
    def engine(self) -> Engine:
        return self._engines[-1]

    @property
    def attempts(self) -> int:
        """How often a request is sent at most."""
        return len(self._engines)

    @property
    def default_model(self) -> str:
        return self.catalog.default

    def engine_for(self, attempts: int) -> Engine:
        """Give the engine that sends a request so often at most."""
        return self._engines[min(attempts, len(self._engines)) - 1]

    def serves(self, model: str) -> bool:
        return self.catalog.serves(model)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        route, rest = _find(scope["path"])
        face = route.face if route is not None else ANTHROPIC if "/messages" in scope["path"] else OPENAI
        exchange = Exchange(scope, receive, send, self.options, face)
        record = Record(
            at=time.time(),
            request_id=exchange.request_id,
            method=exchange.method,
            route=route.name if route is not None else "",
            status=0,
            seconds=0.0,
        )
        scope["fastllm.record"] = record  # for whoever stands around this app
        self.under_way += 1
        try:
            await self._serve(exchange, route, rest, record)
        except asyncio.CancelledError:
            await self._cancelled(exchange, record)
        except FastLLMError as error:
            await self._refused(exchange, record, error)
        except Exception as error:
            await self._failed(exchange, record, error)
        finally:
            self.under_way -= 1
            self._tell(exchange, record)

    async def _serve(self, exchange: Exchange, route: Route | None, rest: str, record: Record) -> None:
        if route is None:
            await self._elsewhere(exchange, record)
            return
        method = exchange.method
        if method != route.method and (method, route.method) != ("HEAD", "GET"):
            if method == "OPTIONS":
                await exchange.plain(204, b"", f"allow: {_allowed(route)}\r\n".encode())
                return
            text = f"{exchange.path[:100]} takes {_allowed(route)}, not {method[:20]}"
            raise Refusal(405, text, code="method_not_allowed", headers={"allow": _allowed(route)})
        tenant = self._anybody if route.open else await self._tenant(exchange, record)
        await route.serve(self, exchange, tenant, rest, record)

    async def _elsewhere(self, exchange: Exchange, record: Record) -> None:
        """Serve what is mounted, or nothing."""
        for apps, is_open in ((self.mounts, False), (self.pages, True)):
            for prefix, app in apps.items():
                if exchange.path == prefix or exchange.path.startswith(prefix.rstrip("/") + "/"):
                    tenant = self._anybody if is_open else await self._tenant(exchange, record)
                    record.route = prefix.removeprefix("/v1")
                    exchange.scope.update({"fastllm.tenant": tenant, "fastllm.exchange": exchange})
                    await exchange.hand_over(app)
                    return
        await self._tenant(exchange, record)
        raise Refusal(404, f"there is no {exchange.method[:20]} {exchange.path[:100]} here", code="unknown_url")

    # The door

    async def _tenant(self, exchange: Exchange, record: Record) -> Tenant:
        """Say who asks. Refusal where nobody knows, PermissionDeniedError where the key's time is over."""
        if self.keys is None:
            self._check_origin(exchange)
            return self._anybody
        token = _token(exchange)
        if token is None:
            raise Refusal(
                401, "no API key: send it as `Authorization: Bearer …` or `x-api-key`", code="missing_api_key"
            )
        found = self.keys.check(token)
        if found is not None and not isinstance(found, Tenant):
            found = await found
        if found is None:
            raise Refusal(401, "this API key is not known here", code="invalid_api_key")
        record.tenant = found.id
        exchange.tenant = found
        found.check_valid(record.at)
        return found

    def _check_origin(self, exchange: Exchange) -> None:
        """Without keys, only this machine's own programs are to get in: no page of a browser, whatever name it was
        loaded under, may use the providers' keys."""
        if not self.options.is_local:
            return
        origin = exchange.header("origin")
        if origin and _host_of(origin.partition("://")[2]) not in _LOCAL_HOSTS:
            raise Refusal(403, "pages of other origins may not ask here without a key", code="forbidden_origin")
        host = exchange.header("host")
        if host and _host_of(host) not in _LOCAL_HOSTS:
            raise Refusal(403, "this gateway has no key and serves localhost alone", code="forbidden_host")

    # Ends

    async def _refused(self, exchange: Exchange, record: Record, error: FastLLMError) -> None:
        fault = fault_of(error, self.attempts)
        # A code is a provider's text, and may quote what it was sent: only a word is written down.
        record.error = fault.code if fault.code and _WORD.fullmatch(fault.code) else type(error).__name__
        record.kind = (error.code or "refused") if isinstance(error, Refusal) else type(error).__name__
        if not isinstance(error, Refusal | LLMError):
            logger.warning("%s: %s", record.model, error)
        if isinstance(error, LLMError):
            record.attempts, record.endpoint = error.attempts, error.endpoint
        began = exchange.status
        record.status = fault.status
        await exchange.fail(fault, b"" if began else self._told(exchange.tenant, record))

    def _told(self, tenant: Tenant | None, record: Record) -> bytes:
        """Give what the head of an error's answer says beside the error: attempts, and the limits of the key."""
        lines = b"x-fastllm-attempts: %d\r\n" % record.attempts if record.attempts else b""
        if self.admissions is None or tenant is None or tenant.key is None:
            return lines
        return lines + self.admissions.lines(tenant.key) if record.model or record.status == 429 else lines

    async def _failed(self, exchange: Exchange, record: Record, error: Exception) -> None:
        """A fault of our own. What the exception says may hold a prompt, so only its class and place are told."""
        if exchange.gone:
            record.status, record.kind = GONE, "client_closed"
            return
        where = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%s failed with %s\n%s", record.route or "a request", type(error).__name__, where)
        record.error = record.kind = type(error).__name__
        record.status = 500
        await exchange.fail(_INTERNAL)

    async def _cancelled(self, exchange: Exchange, record: Record) -> None:
        """The client went away, or the gateway stops and its time is up."""
        if exchange.gone:
            record.status = GONE
            record.error = record.kind = "client_closed"
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            return
        record.status = 503
        record.error = record.kind = "stopping"
        if self.draining:
            await exchange.fail(_STOPPING)
            return
        raise asyncio.CancelledError

    def _tell(self, exchange: Exchange, record: Record) -> None:
        record.status = record.status or exchange.status
        record.seconds = time.monotonic() - exchange.began
        record.sent_bytes = exchange.sent_bytes
        if not self.listeners:
            return
        if exchange.wire is None:
            tell(self.listeners, (record,))
            return
        self._ended.append(record)
        if len(self._ended) == 1:
            exchange.wire.soon(self._tell_of_ended)

    def _tell_of_ended(self) -> None:
        """After the answers: nobody waits for this, and many at once are told of in less time than one after another
        between other work."""
        ended, self._ended = self._ended, []
        tell(self.listeners, ended)

    def __repr__(self) -> str:
        state = "draining" if self.draining else "open"
        return f"<Gateway {state}, {self.under_way} under way, {self.engine!r}>"


def _by_attempts(engine: Engine) -> list[Engine]:
    """Give one engine for each number of attempts, up to the engine's own; they share everything else."""
    most = engine.retry.attempts

    def of(attempts: int) -> Retry:
        return msgspec.structs.replace(engine.retry, attempts=attempts)

    return [*(engine.with_options(retry=of(attempts)) for attempts in range(1, most)), engine]


def _token(exchange: Exchange) -> str | None:
    """Give the key that came with a request, however it was sent."""
    given = exchange.header("authorization")
    if given:
        scheme, _, token = given.partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None
    return exchange.header("x_api_key").strip() or exchange.header("api_key").strip() or None


def _host_of(authority: str) -> str:
    """Give the host of `host:port`."""
    authority = authority.lower().strip("/")
    return authority.partition("]")[0] + "]" if authority.startswith("[") else authority.partition(":")[0]


def _allowed(route: Route) -> str:
    return "GET, HEAD, OPTIONS" if route.method == "GET" else f"{route.method}, OPTIONS"


# What the paths serve


async def _count(gate: Gateway, exchange: Exchange, tenant: Tenant, rest: str, record: Record) -> None:
    path = MESSAGES if record.route == COUNT_TOKENS else RESPONSES
    asked = asked_of(exchange, path, await exchange.body(), rest, gate.default_model, tenant)
    record.model = asked.request.model
    if not gate.serves(record.model):
        raise Refusal(404, f"the model {record.model[:100]!r} is not served here", code="model_not_found")
    exchange.watch()
    try:
        engine, request = gate.engine, asked.request
        if path == RESPONSES and gate.responses is not None:
            continuation = Continuation(gate.responses, engine, tenant, request)
            await continuation.begin()
            engine, request = continuation.engine, continuation.request
        body = await counting.count(engine, request)
    finally:
        exchange.unwatch()
    await exchange.answer(200, body)


async def _models(gate: Gateway, exchange: Exchange, tenant: Tenant, rest: str, record: Record) -> None:
    await exchange.answer(200, gate.catalog.listed(tenant))


async def _model(gate: Gateway, exchange: Exchange, tenant: Tenant, rest: str, record: Record) -> None:
    if not (gate.serves(rest) and tenant.may_ask(rest)):
        raise Refusal(404, f"the model {rest[:100]!r} is not served here", code="model_not_found", param="model")
    await exchange.answer(200, gate.catalog.entry(rest))


async def _health(gate: Gateway, exchange: Exchange, tenant: Tenant, rest: str, record: Record) -> None:
    await exchange.answer(200, b'{"status":"ok"}')


async def _ready(gate: Gateway, exchange: Exchange, tenant: Tenant, rest: str, record: Record) -> None:
    if gate.draining:
        await exchange.answer(503, b'{"status":"draining"}')
    else:
        await exchange.answer(200, b'{"status":"ready"}')


async def _openapi(gate: Gateway, exchange: Exchange, tenant: Tenant, rest: str, record: Record) -> None:
    await exchange.answer(200, document())


async def _metrics(gate: Gateway, exchange: Exchange, tenant: Tenant, rest: str, record: Record) -> None:
    if gate.metrics is None:
        raise Refusal(404, "there are no metrics here", code="unknown_url")
    if not tenant.is_master:
        raise Refusal(403, "metrics tell of all keys: they want the master key", code="master_key_needed")
    accept = b", ".join(value for name, value in exchange.scope["headers"] if name == b"accept")
    # Thousands of lines take milliseconds, in which other requests go on.
    text, kind = await asyncio.to_thread(gate.metrics, accept.decode("latin-1"))
    await exchange.plain(200, text, f"content-type: {kind}\r\n".encode())


_PLAIN: dict[str, Route] = {
    **{path: Route(path, operate, face=_FACES.get(path, OPENAI)) for path in OPERATIONS},
    COUNT_TOKENS: Route(COUNT_TOKENS, _count, face=ANTHROPIC),
    INPUT_TOKENS: Route(INPUT_TOKENS, _count),
    "/models": Route("/models", _models, "GET"),
    "/health": Route("/health", _health, "GET", open=True),
    "/health/live": Route("/health/live", _health, "GET", open=True),
    "/health/ready": Route("/health/ready", _ready, "GET", open=True),
    "/metrics": Route("/metrics", _metrics, "GET"),
    "/openapi.json": Route("/openapi.json", _openapi, "GET", open=True),
}
_MODEL = Route("/models/{id}", _model, "GET")
_PREFIXES = ("", "/v1", "/openai", "/openai/v1")
_ROUTES = {prefix + path: route for path, route in _PLAIN.items() for prefix in _PREFIXES}
_MODEL_PREFIXES = tuple(prefix + "/models/" for prefix in reversed(_PREFIXES))


def _find(path: str) -> tuple[Route | None, str]:
    """Give the route of a path, and the model that the path names."""
    found = _ROUTES.get(path)
    if found is not None:
        return found, ""
    if path.endswith("/") and len(path) > 1 and path[:-1] in _ROUTES:
        return _ROUTES[path[:-1]], ""
    for prefix in _MODEL_PREFIXES:
        if path.startswith(prefix) and len(path) > len(prefix):
            return _MODEL, unquote(path[len(prefix) :])
    if path.startswith(_DEPLOYMENTS):  # Azure names the model in the path
        rest = path[len(_DEPLOYMENTS) :]
        for name, route in _PLAIN.items():
            if rest.endswith(name) and len(rest) > len(name) and route.serve is operate:
                return route, unquote(rest[: -len(name)])
    return None, ""
