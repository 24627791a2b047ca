"""Batches: OpenAI's Batch API on any provider, by durable jobs of our own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from ..types import PATHS
from .auth import Tenant
from .batch_runner import INPUT, BatchRunner, FindTenant
from .batch_store import Batch, BatchStore, new_id
from .charging import Gate
from .exchange import Exchange, Receive, Scope, Send
from .faces import Refusal
from .file_store import FileStore, private_folder, share
from .files import below, check_method, checked_expiry, limit_of, nowhere, page, query_of

WINDOW = 24 * 3600.0  # seconds: the one that OpenAI has
ENDPOINTS = tuple(sorted("/v1" + path for path in PATHS))
MOST_UNFINISHED = 1000  # batches of one tenant
_MOST_PAIRS, _MOST_NAME, _MOST_VALUE = 16, 64, 512  # of metadata
_encode = msgspec.json.encode


class _Asked(msgspec.Struct):
    """What a client asks for."""

    input_file_id: Any = None
    endpoint: Any = None
    completion_window: Any = None
    metadata: Any = None
    output_expires_after: Any = None


_asked = msgspec.json.Decoder(_Asked)


class Batches:
    """An ASGI app under /v1/batches: POST and GET on itself, GET on /{id}, POST on /{id}/cancel. `start` it, and close
    it before its engine. `window` is the time that a batch has, in seconds."""

    def __init__(self, gate: Gate, store: BatchStore, files: FileStore, *, most: int, find_tenant: FindTenant) -> None:
        self.window = WINDOW
        self.store = store
        self.files = files
        self.runner = BatchRunner(gate, store, files, most=most, find_tenant=find_tenant)

    async def start(self) -> None:
        """Go on with the batches of earlier runs."""
        await self.runner.start()

    async def aclose(self) -> None:
        """Stop; batches go on at the next start."""
        await self.runner.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["fastllm.exchange"]
        tenant: Tenant = scope["fastllm.tenant"]
        parts = below(exchange.path, "/batches")
        if not parts:
            if exchange.method == "POST":
                return await self._create(exchange, tenant)
            check_method(exchange, "GET", "POST")
            return await self._list(exchange, tenant)
        if len(parts) == 1:
            check_method(exchange, "GET")
            batch = await self._found(tenant, parts[0])
            return await exchange.answer(200, _encode(self.runner.shown(batch).shown()))
        if len(parts) == 2 and parts[1] == "cancel":
            check_method(exchange, "POST")
            return await self._cancel(exchange, tenant, parts[0])
        raise nowhere(exchange)

    async def _create(self, exchange: Exchange, tenant: Tenant) -> None:
        try:
            asked = _asked.decode(await exchange.body())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Refusal(400, "the request body is not a valid JSON object") from None
        batch = self._batch(asked, tenant)
        await asyncio.to_thread(self._take_in, batch)
        self.runner.add(tenant)
        await exchange.answer(200, _encode(batch.shown()))

    def _batch(self, asked: _Asked, tenant: Tenant) -> Batch:
        if not isinstance(asked.input_file_id, str):
            raise _wrong("input_file_id", "must be the id of a file with the purpose `batch`")
        if asked.endpoint not in ENDPOINTS:
            raise _wrong("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
        if asked.completion_window != "24h":
            raise _wrong("completion_window", "must be 24h")
        kept = None
        if asked.output_expires_after is not None:
            given = asked.output_expires_after
            given = given if isinstance(given, dict) else {}
            kept = checked_expiry(given.get("anchor"), given.get("seconds"), "output_expires_after")
        now = time.time()
        return Batch(
            id=new_id(),
            tenant=tenant.id,
            namespace=tenant.namespace,
            models=None if tenant.models is None else list(tenant.models),
            is_master=tenant.is_master,
            endpoint=asked.endpoint,
            input_id=asked.input_file_id,
            completion_window=asked.completion_window,
            created=now,
            expires=now + self.window,
            metadata=_metadata(asked.metadata),
            kept_seconds=kept,
        )

    def _take_in(self, batch: Batch) -> None:
        """Write it down, with an input of its own: the client may delete his. Works in a thread."""
        found = self.files.find(batch.tenant, batch.input_id)
        if found is None:
            text = f"there is no file {batch.input_id[:50]!r}"
            raise Refusal(404, text, code="file_not_found", param="input_file_id")
        if found.purpose != "batch":
            raise _wrong("input_file_id", f"must be a file with the purpose `batch`; this one's is {found.purpose}")
        if sum(not one.ended for one in self.store.all(batch.tenant)) >= MOST_UNFINISHED:
            text = f"{MOST_UNFINISHED} batches are not finished yet"
            raise Refusal(429, text, code="too_many_batches", retry_after=60.0)
        folder = self.store.folder(batch)
        private_folder(folder.parent)
        private_folder(folder)
        try:
            share(self.files.path(batch.tenant, found.id), folder / INPUT)
            self.store.add(batch)
        except BaseException:
            self.store.drop(batch)
            raise

    async def _list(self, exchange: Exchange, tenant: Tenant) -> None:
        query = query_of(exchange)
        limit = limit_of(query, usual=20, most=100)
        found = await asyncio.to_thread(self.store.all, tenant.id)
        shown = [self.runner.shown(batch).shown() for batch in found]
        await exchange.answer(200, page(shown, query.get("after"), limit))

    async def _cancel(self, exchange: Exchange, tenant: Tenant, id: str) -> None:
        batch = self.runner.shown(await self._found(tenant, id))
        if batch.ended and batch.status != "cancelled":
            raise Refusal(400, f"the batch has ended: it is {batch.status}", code="batch_ended")
        if not batch.ended:
            batch = await self.runner.cancel(batch)
        await exchange.answer(200, _encode(batch.shown()))

    async def _found(self, tenant: Tenant, id: str) -> Batch:
        found = await asyncio.to_thread(self.store.find, tenant.id, id)
        if found is None:
            raise Refusal(404, f"there is no batch {id[:50]!r}", param="id", code="batch_not_found")
        return found

    def __repr__(self) -> str:
        return f"<Batches {self.runner!r}>"


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    if (
        not isinstance(given, dict)
        or len(given) > _MOST_PAIRS
        or any(
            len(name) > _MOST_NAME or not isinstance(value, str) or len(value) > _MOST_VALUE
            for name, value in given.items()
        )
    ):
        text = f"must be at most {_MOST_PAIRS} texts of at most {_MOST_VALUE} characters, by names of {_MOST_NAME}"
        raise _wrong("metadata", text)
    return given


def _wrong(param: str, text: str) -> Refusal:
    return Refusal(400, f"{param} {text}", param=param, code="invalid_value")
