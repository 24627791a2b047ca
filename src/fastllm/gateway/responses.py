"""Responses: what a request to the Responses API leaves behind, and what it goes on from.

A provider that has the API keeps its responses itself: here it is noted whose they are and which endpoint has them. One
that has only chat keeps nothing: where the gateway has a place for it, input and answer are kept here, unless the
client says `store: false`, and a later request that goes on from them is sent with all that was said before. Whoever
goes on from a response must have asked for it himself, unless he may do everything.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from ..engine.endpoint import Endpoint
from ..engine.engine import Engine
from ..engine.router import Router
from ..errors import InvalidRequestError, OverloadedError
from ..types import RESPONSES, Chunk, Request, Response
from .auth import Tenant
from .faces import Refusal
from .response_store import Kept, Known, ResponseStore

logger = logging.getLogger("fastllm.gateway")

MOST_KEPT = 16 * 1024 * 1024  # bytes of one request and what it goes on from
_PREVIOUS, _INPUT, _STORE = "previous_response_id", "input", "store"
_PROBE = Request(path=RESPONSES, body=b'{"model":"m","input":"?"}')
_HELD = frozenset(("response.created", "response.queued", "response.in_progress"))
_LAST = frozenset(("response.completed", "response.incomplete"))
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_fields = msgspec.json.Decoder(dict[str, Raw])
_items = msgspec.json.Decoder(list[dict[str, Any]] | str)
_text = msgspec.json.Decoder(str | None)
_encode = msgspec.json.encode


class _Answered(msgspec.Struct):
    id: str = ""
    output: list[Raw] = []


class _Event(msgspec.Struct):
    type: str = ""
    response: Raw = Raw()


_answered = msgspec.json.Decoder(_Answered)
_event = msgspec.json.Decoder(_Event)


def by_chat(endpoint: Endpoint) -> bool:
    """Tell whether Responses are made of chat there, and so kept by nobody."""
    return endpoint.provider.spoken(_PROBE).path != RESPONSES


async def endpoints_of(engine: Engine, model: str) -> Sequence[Endpoint]:
    """Give all that may answer for a model. ConfigError where nobody does."""
    tiers = engine.router.route(model)
    if tiers is None:
        return [engine.router.known.get(model) or await engine.router.resolve(model)]
    await tiers.begin()
    return tiers.known


async def holder(engine: Engine, model: str, known: Known) -> Endpoint | None:
    """Give the endpoint of this model that has a response; None where it is served no more."""
    found = [endpoint for endpoint in await endpoints_of(engine, model) if endpoint.scope == known.scope]
    return next((endpoint for endpoint in found if endpoint.name == known.endpoint), next(iter(found), None))


class Continuation:
    """One request: as it goes out, by which engine, and what is to be noted of its answer."""

    def __init__(self, store: ResponseStore, engine: Engine, tenant: Tenant, request: Request) -> None:
        self.engine = engine
        self.request = request
        self._store = store
        self._tenant = tenant
        self._previous = Raw(b"null")
        self._wanted = True
        self._before: list[Raw] = []  # what was said before, where it was kept here
        self._given = Raw(b"[]")
        self._keeps = False
        self._by_chat: bool | None = None  # once an endpoint has answered
        # Not every provider's ids are unlike, and answers that are kept are given again.
        self._id = Raw(b'"resp_%b"' % secrets.token_hex(16).encode())
        self._noted = False

    async def begin(self) -> None:
        """Find what the request goes on from. Refusal where that is nobody's, or another's."""
        try:
            fields = _fields.decode(self.request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # Somebody else might read it all the same, and in it what is not this key's.
            raise InvalidRequestError(f"the request body is not a valid JSON object: {error}", sent=False) from None
        if not self._tenant.is_master:
            self._say_once(fields)
        self._wanted = bytes(fields.get(_STORE, b"true")).strip() != b"false"
        self._given = fields.get(_INPUT, self._given)
        previous = fields.get(_PREVIOUS)
        if previous is not None and bytes(previous).strip() != b"null":
            await self._go_on(fields, previous)
        self._noted = not self._wanted
        self._keeps = self._wanted and self._store.keeps and len(self.request.body) <= MOST_KEPT

    def _say_once(self, fields: dict[str, Raw]) -> None:
        """Readers differ in which of two equal names they take: what is not this key's must not come through."""
        if any(name.lower() == _PREVIOUS and name != _PREVIOUS for name in fields):
            raise _not_found(_PREVIOUS)
        if _PREVIOUS in fields:
            self.request = msgspec.structs.replace(self.request, body=_encode(fields))

    async def _go_on(self, fields: dict[str, Raw], previous: Raw) -> None:
        """Have the request go where the response is that it goes on from, or with what was said before."""
        try:
            id = _text.decode(previous) or ""
        except msgspec.DecodeError:
            raise _not_found("") from None
        known = await asyncio.to_thread(self._store.find, self._tenant.id, id)
        if known is None:
            if self._tenant.is_master:
                return  # it may have been made without us
            raise _not_found(id)
        if not known.size:
            endpoint = await holder(self.engine, self.request.model, known)
            if endpoint is None:
                raise Refusal(400, f"another provider has {id!r}, which this model is not of", param=_PREVIOUS)
            self.engine = _pinned(self.engine, self.request.model, endpoint)
            return
        kept = await asyncio.to_thread(self._store.read, known)
        if kept is None:
            raise _not_found(id)
        self._before = kept.input + _answered.decode(kept.answer).output
        fields[_INPUT] = Raw(_encode(self._before + items_of(self._given)))
        self._previous = fields.pop(_PREVIOUS)
        self.request = self.request.with_body(_encode(fields), model=self.request.model)

    # The answer

    def _endpoint(self, name: str) -> Endpoint | None:
        known = self.engine.router.known.get(self.request.model)
        tiers = self.engine.router.route(self.request.model)
        found = tiers.known if tiers is not None else [known] if known is not None else []
        return next((endpoint for endpoint in found if endpoint.name == name), next(iter(found), None))

    async def answered(self, response: Response) -> Response:
        """Note a whole answer, and give it as it is told."""
        endpoint = self._endpoint(response.endpoint)
        if endpoint is None:
            return response
        if by_chat(endpoint):
            body = await self._kept(endpoint, response.body)
            return msgspec.structs.replace(response, body=body, _payload=None, _fields=None)
        if self._wanted and not response.cached:
            await self._note(endpoint, response.body)
        return response

    async def told(self, chunks: list[Chunk], name: str) -> list[Chunk]:
        """Note what comes by in a stream, before the client hears of it, and give it as it is told."""
        if self._noted and self._by_chat is False:
            return chunks
        endpoint = self._endpoint(name)
        if endpoint is None:
            return chunks
        if self._by_chat is None:
            self._by_chat = by_chat(endpoint)
        if self._by_chat:
            return [await self._told(endpoint, chunk) for chunk in chunks]
        for chunk in chunks if not self._noted else ():
            said = _event.decode(chunk.data)
            if bytes(said.response):
                self._noted = True
                await self._note(endpoint, bytes(said.response))
                break
        return chunks

    async def _told(self, endpoint: Endpoint, chunk: Chunk) -> Chunk:
        kind = chunk.event or chunk.type
        if kind not in _HELD and kind not in _LAST:
            return chunk
        fields = _fields.decode(chunk.data)
        body = bytes(fields["response"])
        told = await self._kept(endpoint, body) if kind in _LAST else self._as_told(body, kept=self._keeps)
        fields["response"] = Raw(told)
        return Chunk(data=_encode(fields), event=chunk.event)

    def _as_told(self, body: bytes, *, kept: bool) -> bytes:
        fields = _fields.decode(body)
        fields["id"] = self._id
        fields[_STORE], fields[_PREVIOUS] = Raw(b"true" if kept else b"false"), self._previous
        return _encode(fields)

    async def _kept(self, endpoint: Endpoint, body: bytes) -> bytes:
        """Keep an answer here, if it is to be; give it as it says so itself."""
        if self._keeps:
            told = self._as_told(body, kept=True)
            if await self._note(endpoint, told, Kept(self._before + items_of(self._given), Raw(told))):
                return told
        return self._as_told(body, kept=False)

    async def _note(self, endpoint: Endpoint, body: bytes, kept: Kept | None = None) -> bool:
        """Write down whose it is. The answer is worth more: what fails here is told and no more."""
        try:
            id = _answered.decode(body).id
            known = Known(
                tenant=self._tenant.id, id=id, model=self.request.model, endpoint=endpoint.name, scope=endpoint.scope
            )
            return await asyncio.to_thread(self._store.add, known, kept)
        except (OSError, OverloadedError, msgspec.MsgspecError) as error:
            logger.warning("a response was not noted, and cannot be asked for again: %s", type(error).__name__)
            return False


def _pinned(engine: Engine, model: str, endpoint: Endpoint) -> Engine:
    """Give the engine for requests that only one endpoint can answer."""

    async def only(_: str) -> Endpoint:
        return endpoint

    router = Router(only)
    router.known[model] = endpoint
    return engine.with_options(router=router)


def items_of(given: Raw) -> list[Raw]:
    """Give an input as items with ids. What is none is left to the provider to refuse."""
    try:
        found = _items.decode(given)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequestError("input must be a text or a list of items", param="input", sent=False) from None
    items = [{"type": "message", "role": "user", "content": found}] if isinstance(found, str) else found
    return [Raw(_encode(_item(item))) for item in items]


def _item(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type") or ("message" if "role" in item else "item")
    out = {"id": f"{_PREFIXES.get(str(kind), 'item')}_{secrets.token_hex(16)}", "type": kind, **item}
    content = item.get("content")
    if kind == "message":
        out.setdefault("status", "completed")
        if isinstance(content, str):
            said = item.get("role") == "assistant"
            part = {"type": "output_text" if said else "input_text", "text": content}
            out["content"] = [{**part, "annotations": []} if said else part]
    return out


def _not_found(id: str) -> Refusal:
    text = f"Previous response with id {id[:100]!r} not found."
    return Refusal(400, text, param=_PREVIOUS, code="previous_response_not_found")
