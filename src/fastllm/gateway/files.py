"""Files: OpenAI's Files API, for batches and for whatever else a client wants to keep here."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from urllib.parse import parse_qs, quote

import msgspec

from .auth import Tenant
from .exchange import Exchange, Message, Receive, Scope, Send
from .faces import Refusal
from .file_store import MOST_FILES, FileStore, StoredFile
from .multipart import Form, read_form, too_large

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
PIECE = 256 * 1024  # bytes read and sent at once
DAY = 86_400
BATCH_DAYS = 30  # for which a batch's input is kept where nobody says otherwise, as by OpenAI
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_LEAST, _MOST = 3600, 30 * DAY  # seconds that a file may be asked to be kept
_encode = msgspec.json.encode


class Files:
    """An ASGI app under /v1/files: POST and GET on itself, GET and DELETE on /{id}, GET on /{id}/content."""

    def __init__(self, store: FileStore, *, most_bytes: int, tenant_bytes: int) -> None:
        self.store = store
        self._most_bytes = most_bytes
        self._tenant_bytes = tenant_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["fastllm.exchange"]
        tenant: Tenant = scope["fastllm.tenant"]
        method, parts = exchange.method, below(exchange.path, "/files")
        if not parts:
            if method == "POST":
                return await self._create(exchange, tenant, receive)
            check_method(exchange, "GET", "POST")
            return await self._list(exchange, tenant)
        if len(parts) == 1:
            if method == "DELETE":
                return await self._delete(exchange, tenant, parts[0])
            check_method(exchange, "GET", "DELETE")
            return await exchange.answer(200, _encode((await self._found(tenant, parts[0])).shown()))
        if len(parts) == 2 and parts[1] == "content":
            check_method(exchange, "GET")
            return await self._content(exchange, tenant, parts[0], send)
        raise nowhere(exchange)

    async def _create(self, exchange: Exchange, tenant: Tenant, receive: Receive) -> None:
        count, used = await asyncio.to_thread(self.store.used, tenant.id)
        if count >= MOST_FILES:
            raise Refusal(400, f"there are {MOST_FILES} files already: delete some", code="too_many_files", close=True)
        most = min(self._most_bytes, self._tenant_bytes - used)
        if most <= 0:
            await exchange.discard()
            text = f"all files together have {self._tenant_bytes} bytes already: delete some"
            raise Refusal(413, text, code="no_room", close=True)
        path, file = await asyncio.to_thread(self.store.incoming, tenant.id)
        try:
            with file:
                form = await read_form(exchange, receive, file, most)
            purpose = form.fields.get("purpose", "")
            if purpose not in PURPOSES:
                text = f"purpose must be one of {', '.join(PURPOSES)}; not {purpose[:50]!r}"
                raise Refusal(400, text, param="purpose", code="invalid_value")
            expires = _expires(form, purpose)
            found = await self._kept(tenant, path, form, purpose, expires)
        finally:
            path.unlink(missing_ok=True)
        await exchange.answer(200, _encode(found.shown()))

    async def _kept(self, tenant: Tenant, path: Path, form: Form, purpose: str, expires: float | None) -> StoredFile:
        def keep() -> StoredFile:
            if self.store.used(tenant.id)[1] > self._tenant_bytes:  # others came in at the same time
                raise too_large(self._most_bytes)
            return self.store.keep(tenant.id, path, name=form.name, purpose=purpose, expires=expires)

        return await asyncio.to_thread(keep)

    async def _list(self, exchange: Exchange, tenant: Tenant) -> None:
        query = query_of(exchange)
        limit = limit_of(query, usual=10_000, most=10_000)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise Refusal(400, "order must be asc or desc", param="order", code="invalid_value")
        found = await asyncio.to_thread(self.store.all, tenant.id)
        purpose = query.get("purpose")
        if purpose:
            found = [file for file in found if file.purpose == purpose]
        if order == "desc":
            found.reverse()
        await exchange.answer(200, page([file.shown() for file in found], query.get("after"), limit))

    async def _found(self, tenant: Tenant, id: str) -> StoredFile:
        found = await asyncio.to_thread(self.store.find, tenant.id, id)
        if found is None:
            raise missing(id)
        return found

    async def _delete(self, exchange: Exchange, tenant: Tenant, id: str) -> None:
        await self._found(tenant, id)
        await asyncio.to_thread(self.store.remove, tenant.id, id)
        await exchange.answer(200, _encode({"id": id, "object": "file", "deleted": True}))

    async def _content(self, exchange: Exchange, tenant: Tenant, id: str, send: Send) -> None:
        found = await self._found(tenant, id)
        try:
            file = await asyncio.to_thread(self.store.path(tenant.id, id).open, "rb")
        except FileNotFoundError:  # deleted just now
            raise missing(id) from None
        with file:
            await send({"type": "http.response.start", "status": 200, "headers": _content_headers(exchange, found)})
            exchange.watch()
            try:
                left = found.size if exchange.method != "HEAD" else 0
                while left > 0:
                    data = await asyncio.to_thread(file.read, min(PIECE, left))
                    if not data:
                        return  # it was cut on the disk: the client sees that it is not whole
                    left -= len(data)
                    await send(_piece(data))
            finally:
                exchange.unwatch()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def __repr__(self) -> str:
        return f"<Files {self.store!r}>"


def _piece(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _content_headers(exchange: Exchange, found: StoredFile) -> list[tuple[bytes, bytes]]:
    plain = "".join(c if c.isascii() and c not in '"\\;%' else "_" for c in found.name)
    named = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(found.name, safe='')}"
    return [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % found.size),
        (b"content-disposition", named.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-request-id", exchange.request_id.encode()),
    ]


def _expires(form: Form, purpose: str) -> float | None:
    """Give when a new file goes; None: never."""
    if _SECONDS not in form.fields and _ANCHOR not in form.fields:
        return time.time() + BATCH_DAYS * DAY if purpose == "batch" else None
    seconds = form.fields.get(_SECONDS, "")
    number = int(seconds) if seconds.isdecimal() and len(seconds) < 10 else None
    return time.time() + checked_expiry(form.fields.get(_ANCHOR), number, "expires_after")


def checked_expiry(anchor: object, seconds: object, param: str) -> int:
    """Give for how many seconds a file is to be kept. Refusal where that is not possible."""
    if anchor != "created_at":
        raise Refusal(400, f"{param}.anchor must be created_at", param=param, code="invalid_value")
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not _LEAST <= seconds <= _MOST:
        text = f"{param}.seconds must be a whole number from {_LEAST} to {_MOST}"
        raise Refusal(400, text, param=param, code="invalid_value")
    return seconds


# What this and other lists of things have in common


def below(path: str, prefix: str) -> list[str]:
    """Give the parts of a path behind the last one that every path of this app has."""
    rest = path[path.index(prefix) + len(prefix) :].strip("/")
    return rest.split("/") if rest else []


def check_method(exchange: Exchange, *allowed: str) -> None:
    """Refuse what is none of these methods, or HEAD for GET."""
    if exchange.method in allowed or (exchange.method == "HEAD" and "GET" in allowed):
        return
    text = f"{exchange.path[:100]} takes {', '.join(allowed)}, not {exchange.method[:20]}"
    raise Refusal(405, text, code="method_not_allowed", headers={"allow": ", ".join(allowed)})


def nowhere(exchange: Exchange) -> Refusal:
    return Refusal(404, f"there is no {exchange.method[:20]} {exchange.path[:100]} here", code="unknown_url")


def missing(id: str) -> Refusal:
    return Refusal(404, f"there is no file {id[:50]!r}", param="id", code="file_not_found")


def query_of(exchange: Exchange) -> dict[str, str]:
    """Give the parameters of the URL; of one that is given twice the last."""
    text = exchange.scope.get("query_string", b"").decode("latin-1")
    try:
        return {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True, max_num_fields=50).items()}
    except ValueError:
        raise Refusal(400, "the URL has too many parameters", code="invalid_query") from None


def limit_of(query: dict[str, str], *, usual: int, most: int) -> int:
    """Give how many entries of a list are wanted."""
    text = query.get("limit", str(usual))
    if not (text.isdecimal() and len(text) < 7 and 1 <= int(text) <= most):
        raise Refusal(400, f"limit must be a whole number from 1 to {most}", param="limit", code="invalid_value")
    return int(text)


def page(entries: list[dict[str, object]], after: str | None, limit: int) -> bytes:
    """Give a page of a list: what comes behind the entry `after`."""
    start = 0
    if after:
        start = next((index + 1 for index, entry in enumerate(entries) if entry["id"] == after), -1)
        if start < 0:
            raise Refusal(400, f"after: there is no {after[:50]!r}", param="after", code="invalid_value")
    shown = entries[start : start + limit]
    return _encode(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": start + limit < len(entries),
        }
    )
