"""Passthrough: a provider's whole API under /NAME, byte for byte, with the server's key in place of the client's.

Where a request goes is decided by the operator alone. The client adds a path below the provider's address and a query,
and of both only what cannot mean another host, another directory or another key to anybody who reads it: no `..`, no
encoded slash, no backslash, nothing that is encoded twice. Redirects are the client's to follow, not ours. Headers that
belong to one connection, that carry a key or tell who asks, go neither way; nor does what a provider says of its
account. Whose key may only ask for some models may not ask here, where nobody knows what a path costs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote_to_bytes, urlsplit

from ..engine.endpoint import Endpoint
from ..engine.engine import Engine
from ..errors import APIConnectionError, LLMError
from ..policy.headers import read_hints
from ..policy.tokens import FIRST_ANSWER, START_RATIO, Estimate
from ..transport.base import HTTPStream
from ..types import Headers, HTTPRequest
from .auth import Admission, Admissions, Tenant
from .exchange import Exchange, Receive, Scope, Send, header_value
from .faces import Pairs, Refusal

METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE"))
_NOTHING = Estimate(0.0, 0.0, 0.0)  # what a request takes of a limit in tokens: nobody knows
_SEGMENT = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
_MISREAD = re.compile(rb"[\x00-\x1f\x7f/\\@%?#]")  # what nobody may read in a segment when he has decoded it
_QUERY = re.compile(rb"[!\"$-~]*")  # no #, behind which nobody would look for more
_KEYS = frozenset((b"key", b"api_key", b"api-key", b"apikey", b"access_token", b"token", b"$key"))

_OF_A_CONNECTION = (
    "connection keep-alive te trailer transfer-encoding upgrade proxy-authenticate proxy-authorization "
    "proxy-connection content-length expect host http2-settings"
)
_NOT_SENT = frozenset(
    (
        f"{_OF_A_CONNECTION} authorization cookie forwarded via accept-encoding content-encoding origin referer "
        "x-real-ip x-client-ip true-client-ip x-http-method-override x-http-method x-method-override x-request-id "
        "openai-organization openai-project x-original-url x-rewrite-url x-original-host"
    ).split()
)
_NEVER_SENT = re.compile(
    r"proxy-|x-fastllm-|x-forwarded-|sec-|cf-|x-amz-|x-goog-user-project|x-envoy-|x-ms-client"
    r"|.*(?:api-?key|apikey|token|secret|password|credential|authorization|cookie|signature)"
)
_NOT_TOLD = frozenset(
    (
        f"{_OF_A_CONNECTION} set-cookie set-cookie2 content-encoding server date via alt-svc nel report-to "
        "strict-transport-security openai-organization openai-project anthropic-organization-id "
        "clear-site-data content-security-policy x-content-type-options www-authenticate x-request-id refresh "
        "public-key-pins"
    ).split()
)
# What a client may say for itself; everything else of the endpoint's own headers stands.
_CLIENTS = frozenset(("accept", "content-type", "user-agent", "anthropic-version", "anthropic-beta"))
# An answer is no page of ours: whatever it is, a browser runs nothing of it with our origin.
_HARMLESS: Pairs = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
]
_NEVER_TOLD = re.compile(r"proxy-|x-fastllm-|access-control-|cf-|.*ratelimit|.*(?:api-?key|secret|cookie)")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

Engines = Callable[[], Engine]


class Passthrough:
    """An ASGI app under /NAME. `engine` gives the gateway's engine of the moment, `make` the provider's endpoint."""

    def __init__(
        self, name: str, engine: Engines, make: Callable[[], Endpoint], admissions: Callable[[], Admissions | None]
    ) -> None:
        self._name = name
        self._engine = engine
        self._make = make
        self._admissions = admissions
        self._endpoint: Endpoint | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["fastllm.exchange"]
        tenant: Tenant = scope["fastllm.tenant"]
        if tenant.models is not None and not tenant.is_master:
            text = f"this key may ask for some models only, and so not for /{self._name}"
            raise Refusal(403, text, code="passthrough_not_allowed", close=True)
        if exchange.method not in METHODS:
            allowed = ", ".join(sorted(METHODS))
            text = f"/{self._name} takes {allowed}, not {exchange.method[:20]}"
            raise Refusal(405, text, code="method_not_allowed", headers={"allow": allowed}, close=True)
        endpoint = self._endpoint = self._endpoint or self._make()
        url = url_below(endpoint.target.base_url, self._rest(scope), scope.get("query_string", b""))
        body = await exchange.body()
        headers = sent_headers(scope["headers"], endpoint.target.headers, has_body=bool(body))
        request = HTTPRequest(url=url, body=body, headers=headers, method=exchange.method, redirects=False)
        admission = self._admitted(tenant, body)
        exchange.watch()
        try:
            await pass_on(self._name, self._engine(), endpoint, request, exchange, admission, send)
        finally:
            exchange.unwatch()
            if admission is not None:
                admission.release()

    def _rest(self, scope: Scope) -> bytes:
        """Give what stands behind the name in the path, as it was sent."""
        prefix = f"/{self._name}".encode()
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        rest = raw[len(prefix) :]
        if not raw.startswith(prefix) or rest[:1] not in (b"", b"/"):
            raise _refused()  # the name itself was encoded
        return rest

    def _admitted(self, tenant: Tenant, body: bytes) -> Admission | None:
        admissions = self._admissions()
        if admissions is None or tenant.key is None:
            return None
        return admissions.admit(tenant.key, len(body) * START_RATIO + FIRST_ANSWER, None)

    def __repr__(self) -> str:
        return f"<Passthrough {self._name} {self._endpoint!r}>"


async def pass_on(
    name: str,
    engine: Engine,
    endpoint: Endpoint,
    request: HTTPRequest,
    exchange: Exchange,
    admission: Admission | None,
    send: Send,
) -> None:
    """Send a request to an endpoint in its turn, and its answer to the client. Raises an LLMError, or Refusal."""
    limiter = endpoint.limiter
    try:
        async with asyncio.timeout(exchange.options.queue):
            permit = await limiter.acquire(_NOTHING)
    except TimeoutError:
        text = f"no turn at {name} within {exchange.options.queue:g} s"
        raise Refusal(429, text, code="queue_timeout", retry_after=limiter.outlook(_NOTHING)) from None
    failure: LLMError | None = None
    answer: HTTPStream | None = None
    try:
        answer = await engine.transport.open(request, engine.timeout)
        if answer.status == 401:  # whatever it says, it is our key that it says it of
            raise Refusal(502, f"{name} refuses this server's key", code="upstream_authentication")
        latency = engine.clock.now() - permit.sent
        if answer.status == 429:
            hints = read_hints(answer.headers, engine.clock.time(), endpoint.limit_names)
            limiter.refused(permit, hints.retry_after)
        elif answer.status >= 500:
            limiter.failed(permit, answered=True)
        else:
            limiter.answered(permit, latency)
        await _answer(name, exchange, answer, send)
    except LLMError as error:
        endpoint.cleanse(error)
        error.endpoint, error.attempts = name, 1
        failure = error if isinstance(error, APIConnectionError) else None
        raise
    finally:
        if answer is not None:
            if admission is not None:
                admission.settle(None, None)  # not before the end: it gives back the key's place
            await answer.aclose()
        endpoint.ended(permit, failure)


async def _answer(name: str, exchange: Exchange, answer: HTTPStream, send: Send) -> None:
    """Send an answer on, piece by piece. While the client does not read, neither do we."""
    headers = told_headers(answer.headers, answer.status)
    headers.append((b"x-fastllm-provider", header_value(name)))
    headers += [(key, exchange.request_id.encode()) for key in (b"x-request-id", b"x-fastllm-request-id")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    seconds = exchange.options.write_seconds
    async for piece in answer:
        try:
            async with asyncio.timeout(seconds) as limit:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            if limit.expired():
                await exchange.abort()
            raise
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def url_below(base_url: str, rest: bytes, query: bytes) -> str:
    """Give the URL of a path below an address. Refusal for a path or query that somebody could read as another one."""
    segments = rest.lstrip(b"/").split(b"/") if rest.startswith(b"/") and not rest.startswith(b"//") else [rest]
    for index, segment in enumerate(segments):
        plain = unquote_to_bytes(segment)
        last = index == len(segments) - 1
        # What stands behind a ; is a parameter to some, who take `..;a` for `..`.
        dots = plain.partition(b";")[0].strip(b" ") in (b".", b"..")
        if not _SEGMENT.fullmatch(segment) or _MISREAD.search(plain) or dots or not _is_text(plain):
            raise _refused()
        if not segment and not last:
            raise _refused()
    if not _QUERY.fullmatch(query):
        raise _refused()
    base, _, own = base_url.partition("?")
    base = base.rstrip("/")
    path = "/" + b"/".join(segments).decode("ascii") if rest.strip(b"/") else ""
    # Clients put the version into their own base URL: /openai/v1/models is OpenAI's /v1/models, not /v1/v1/models.
    version = urlsplit(base).path.rpartition("/")[2]
    if version and re.fullmatch(r"v\d\w*", version) and (path == f"/{version}" or path.startswith(f"/{version}/")):
        path = path[len(version) + 1 :]
    taken = _KEYS | {_name_of(pair) for pair in own.encode().split(b"&") if pair}
    pairs = [pair for pair in query.split(b"&") if pair and _name_of(pair) not in taken]
    text = "&".join([*([own] if own else []), *(pair.decode("ascii") for pair in pairs)])
    return f"{base}{path}?{text}" if text else base + path


def _is_text(plain: bytes) -> bool:
    """False for what is no UTF-8, such as a dot in more bytes than it needs."""
    try:
        plain.decode()
    except UnicodeDecodeError:
        return False
    return True


def _name_of(pair: bytes) -> bytes:
    return unquote_to_bytes(pair.partition(b"=")[0]).strip().lower()


def sent_headers(pairs: Iterable[tuple[bytes, bytes]], own: Mapping[str, str], *, has_body: bool) -> Headers:
    """Give the headers that go to the provider: the client's, as far as they may, and the endpoint's own."""
    found: dict[str, str] = {}
    for name, value in _outside(pairs):
        plain = name.replace("_", "-")  # which many servers take for the same
        if plain in _NOT_SENT or _NEVER_SENT.match(plain) or not value.isascii():
            continue
        text = value.decode()
        found[name] = text if name not in found else f"{found[name]}, {text}"
    more = {name: value for name, value in own.items() if name not in _CLIENTS or name not in found}
    if not has_body:
        more.pop("content-type", None)
    return Headers(found).merged(more)


def told_headers(pairs: Iterable[tuple[bytes, bytes]], status: int) -> Pairs:
    """Give the headers of a provider's answer that go on to the client. Its length stays where the body does."""
    pairs = list(pairs)
    told = [
        (name.encode(), value)
        for name, value in _outside(pairs)
        if name not in _NOT_TOLD and not _NEVER_TOLD.match(name)
    ]
    told += _HARMLESS
    names = [name.lower() for name, _ in pairs]
    plain = b"content-encoding" not in names and b"transfer-encoding" not in names
    lengths = [value for name, value in pairs if name.lower() == b"content-length"]
    if plain and len(lengths) == 1 and lengths[0].isdigit() and status not in (204, 304):
        told.append((b"content-length", lengths[0]))
    return told


def _outside(pairs: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, bytes]]:
    """Give the headers, by lower-case names, without those that the connection's own header says belong to it."""
    pairs = [(name.lower(), value) for name, value in pairs if _NAME.fullmatch(name)]
    named = {part.strip().lower() for name, value in pairs if name == b"connection" for part in value.split(b",")}
    return [(name.decode(), value) for name, value in pairs if name not in named]


def _refused() -> Refusal:
    text = "this path is none below the provider's address that could be read in one way only"
    return Refusal(400, text, code="bad_path", close=True)
