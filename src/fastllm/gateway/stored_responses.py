"""StoredResponses: /responses/{id} and what lies below it, whether a provider keeps the response or the gateway."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import msgspec

from ..engine.engine import Engine
from ..errors import ConfigError
from ..types import HTTPRequest
from .auth import Admission, Admissions, Tenant
from .exchange import Exchange, Receive, Scope, Send
from .faces import Refusal
from .files import below, check_method, limit_of, nowhere, page, query_of
from .passthrough import pass_on, url_below
from .response_store import Kept, Known, ResponseStore
from .responses import holder

_TAILS = {"cancel": "POST", "input_items": "GET"}
_object = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.encode


class Gate(Protocol):
    """What is needed of the app."""

    admissions: Admissions | None

    @property
    def engine(self) -> Engine: ...
    def serves(self, model: str) -> bool: ...


class StoredResponses:
    """An ASGI app under /v1/responses: GET and DELETE on /{id}, POST on /{id}/cancel, GET on /{id}/input_items."""

    def __init__(self, gate: Gate, store: ResponseStore) -> None:
        self._gate = gate
        self.store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["fastllm.exchange"]
        tenant: Tenant = scope["fastllm.tenant"]
        parts = below(exchange.path, "/responses")
        if not 1 <= len(parts) <= 2 or (len(parts) == 2 and parts[1] not in _TAILS):
            raise nowhere(exchange)
        tail = parts[1] if len(parts) == 2 else ""
        check_method(exchange, *([_TAILS[tail]] if tail else ["GET", "DELETE"]))
        known = await asyncio.to_thread(self.store.find, tenant.id, parts[0])
        if known is None:
            raise _missing(parts[0])
        if known.size:
            await self._here(exchange, known, tail)
        else:
            await self._there(exchange, tenant, known, tail, send)

    async def _here(self, exchange: Exchange, known: Known, tail: str) -> None:
        """Answer from what is kept here."""
        if tail == "cancel":
            raise Refusal(400, "only responses in the background can be cancelled", code="not_cancellable")
        if exchange.method == "DELETE":
            await asyncio.to_thread(self.store.remove, known)
            return await exchange.answer(200, _encode({"id": known.id, "object": "response", "deleted": True}))
        query = query_of(exchange)
        if query.get("stream", "false").lower() == "true":
            raise Refusal(400, "a response that has ended is not streamed again", param="stream", code="invalid_value")
        kept = await asyncio.to_thread(self.store.read, known)
        if kept is None:
            raise _missing(known.id)
        await exchange.answer(200, _items(kept, query) if tail else bytes(kept.answer))

    async def _there(self, exchange: Exchange, tenant: Tenant, known: Known, tail: str, send: Send) -> None:
        """Ask the provider that has it."""
        engine = self._gate.engine
        try:
            endpoint = await holder(engine, known.model, known) if self._gate.serves(known.model) else None
        except ConfigError:
            endpoint = None
        if endpoint is None:
            raise Refusal(404, f"who has the response {known.id!r} is served here no more", code="response_not_found")
        rest = f"/responses/{known.id}" + (f"/{tail}" if tail else "")
        url = url_below(endpoint.target.base_url, rest.encode(), exchange.scope.get("query_string", b""))
        method = "GET" if exchange.method == "HEAD" else exchange.method
        request = HTTPRequest(url=url, headers=endpoint.target.headers, method=method, redirects=False)
        admission = self._admitted(tenant)
        exchange.watch()
        try:
            await pass_on(endpoint.name, engine, endpoint, request, exchange, admission, send)
        finally:
            exchange.unwatch()
            if admission is not None:
                admission.release()
        if exchange.method == "DELETE" and 200 <= exchange.status < 300:
            await asyncio.to_thread(self.store.remove, known)

    def _admitted(self, tenant: Tenant) -> Admission | None:
        """Count it as a request of its key, without tokens and money: nothing is made anew."""
        admissions = self._gate.admissions
        return None if admissions is None or tenant.key is None else admissions.admit(tenant.key, 0.0, 0.0)

    def __repr__(self) -> str:
        return f"<StoredResponses {self.store!r}>"


def _items(kept: Kept, query: dict[str, str]) -> bytes:
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise Refusal(400, "order must be asc or desc", param="order", code="invalid_value")
    items = [_object.decode(item) for item in kept.input]
    if order == "desc":
        items.reverse()
    return page(items, query.get("after"), limit_of(query, usual=20, most=100))


def _missing(id: str) -> Refusal:
    return Refusal(404, f"Response with id {id[:100]!r} not found.", param="response_id", code="response_not_found")
