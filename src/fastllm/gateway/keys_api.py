"""KeysAPI: the keys of clients over HTTP, for the master key: made, listed, rotated and revoked as by `fastllm keys`.

A secret is in one answer alone, of the request that made it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..errors import ConfigError
from .auth import MASTER, Tenant
from .exchange import Exchange, Receive, Scope, Send
from .faces import Refusal
from .files import below, check_method, nowhere, query_of
from .keys import KeyStore, VirtualKey, key_fields
from .tenants import Spending, Tenants, told

PATH = "/keys"
_encode = msgspec.json.encode
_object = msgspec.json.Decoder(dict[str, Any]).decode
_WORDS = {"true": True, "false": False}
_SECRET = b"cache-control: no-store\r\n"


class KeysAPI:
    """An ASGI app: POST and GET on /keys, GET on /keys/{id or name}, POST on its /rotate and /revoke. A revoked one is
    still shown."""

    def __init__(self, store: KeyStore, tenants: Tenants, *, wall: Callable[[], float] = time.time) -> None:
        self._store = store
        self._tenants = tenants
        self._wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["fastllm.exchange"]
        tenant: Tenant = scope["fastllm.tenant"]
        if tenant.id != MASTER:  # without keys everybody on this machine would be able to lock out all others
            text = "keys want the master key, which the gateway's environment holds; or use `fastllm keys`"
            raise Refusal(403, text, code="master_key_needed")
        parts = below(exchange.path, PATH)
        if not parts:
            if exchange.method == "POST":
                return await self._create(exchange)
            check_method(exchange, "GET", "POST")
            return await self._list(exchange)
        if len(parts) == 1:
            check_method(exchange, "GET")
            return await exchange.answer(200, _encode(await self._shown(await self._found(parts[0]))))
        if len(parts) == 2 and parts[1] in ("rotate", "revoke"):
            check_method(exchange, "POST")
            change = self._rotate if parts[1] == "rotate" else self._revoke
            return await change(exchange, parts[0])
        raise nowhere(exchange)

    async def _create(self, exchange: Exchange) -> None:
        given = await _fields_of(exchange)
        key, secret = await self._done(lambda: self._store.create(**key_fields(given)))
        await exchange.answer(200, _encode({**await self._shown(key), "secret": secret}), _SECRET)

    async def _rotate(self, exchange: Exchange, id: str) -> None:
        key = await self._found(id)
        given = await _fields_of(exchange)
        unknown = next((name for name in given if name != "grace"), None)
        if unknown is not None:
            raise Refusal(400, f"there is no field {unknown[:50]!r}, only grace (seconds)", code="invalid_value")
        grace = given.get("grace", 0.0)
        key, secret = await self._done(lambda: self._store.rotate(key.id, grace=grace))
        await exchange.answer(200, _encode({**await self._shown(key), "secret": secret}), _SECRET)

    async def _revoke(self, exchange: Exchange, id: str) -> None:
        found = await self._found(id)
        key = await self._done(lambda: self._store.revoke(found.id))
        await exchange.answer(200, _encode(await self._shown(key)))

    async def _list(self, exchange: Exchange) -> None:
        given = query_of(exchange).get("all", "false")
        if given not in _WORDS:
            raise Refusal(400, f"all must be true or false, not {given[:50]!r}", param="all", code="invalid_value")
        everything = _WORDS[given]
        now = self._wall()

        def found() -> list[dict[str, Any]]:
            keys = [key for key in self._store.list() if everything or key.state(now) == "valid"]
            return [_plain(key, self._tenants.spending(key), now) for key in keys]

        data = await asyncio.to_thread(found)
        await exchange.answer(200, _encode({"object": "list", "data": data, "has_more": False}))

    async def _found(self, id: str) -> VirtualKey:
        """Give a key by its id or its name; of several with one name the one that is good, or else the newest."""
        try:
            return await asyncio.to_thread(self._store.get, id)
        except ConfigError as error:
            raise Refusal(404, str(error), code="key_not_found", param="id") from None

    async def _shown(self, key: VirtualKey) -> dict[str, Any]:
        return _plain(key, await asyncio.to_thread(self._tenants.spending, key), self._wall())

    async def _done(self, change: Callable[[], Any]) -> Any:
        """Change the store, which waits for the disk."""
        try:
            return await asyncio.to_thread(change)
        except ConfigError as error:
            raise Refusal(400, str(error), code="invalid_value") from None

    def __repr__(self) -> str:
        return f"<KeysAPI {self._store!r}>"


async def _fields_of(exchange: Exchange) -> dict[str, Any]:
    body = await exchange.body()
    if not body.strip():
        return {}
    try:
        return _object(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Refusal(400, "the request body is not a valid JSON object", code="invalid_json") from None


def _plain(key: VirtualKey, spent: Spending, now: float) -> dict[str, Any]:
    return {"object": "key", **told(key, spent, now)}
