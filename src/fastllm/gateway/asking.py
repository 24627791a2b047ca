"""From what a client sent to the Request that the engine executes: byte for byte, wherever nothing has to change.

No field or header of a client changes where a request goes, with which key, or which files are read: fields that mean
this to some server behind us are refused, and of the headers only those that choose a version of the API go on.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ..errors import ConfigError, InvalidRequestError
from ..options import CacheControl, Timeout
from ..types import CHAT, COMPLETIONS, MODERATIONS, NO_HEADERS, Headers, Request
from .auth import Tenant
from .exchange import Exchange
from .faces import Refusal

MODERATION = "omni-moderation-latest"  # OpenAI's own default
_NO_CACHE = CacheControl(read=False)
_NO_STORE = CacheControl(write=False)
_NEITHER = CacheControl(read=False, write=False)
_DIRECTIVE = re.compile(r"([a-z-]+)\s*(?:=\s*\"?([0-9]{1,10})\"?)?\s*(?:,|$)")
_FORWARDED = {
    "anthropic_version": "anthropic-version", "anthropic_beta": "anthropic-beta", "openai_beta": "openai-beta",
}  # fmt: skip
_WITH_USAGE = frozenset({CHAT, COMPLETIONS})
_ASKED = b'"stream_options":{"include_usage":true},'
_INCLUDED = Raw(b"true")
_object = msgspec.json.Decoder(dict[str, Raw])


class _Forbidden(msgspec.Struct):
    """Fields that would tell a server behind us, or a library, where to send a request and as whom."""

    api_base: Raw | UnsetType = UNSET
    api_key: Raw | UnsetType = UNSET
    base_url: Raw | UnsetType = UNSET
    extra_headers: Raw | UnsetType = UNSET
    extra_query: Raw | UnsetType = UNSET
    aws_access_key_id: Raw | UnsetType = UNSET
    aws_secret_access_key: Raw | UnsetType = UNSET
    vertex_credentials: Raw | UnsetType = UNSET
    callbacks: Raw | UnsetType = UNSET
    success_callback: Raw | UnsetType = UNSET
    failure_callback: Raw | UnsetType = UNSET
    user_config: Raw | UnsetType = UNSET
    stream_options: Raw | UnsetType = UNSET


_forbidden = msgspec.json.Decoder(_Forbidden)
_NOTHING = _Forbidden()


class Asked(msgspec.Struct):
    """A request, and whether the usage at the end of its stream is for us alone."""

    request: Request
    hide_usage: bool = False


def asked_of(exchange: Exchange, path: str, body: bytes, model: str, default: str, tenant: Tenant) -> Asked:
    """Read a request. `model` overrides the body's, `default` stands in where it names none. Refusal where the client
    may not ask this; InvalidRequestError where it is no request."""
    more: dict[str, Any] = {"namespace": tenant.namespace}
    headers = exchange.headers
    if "cache_control" in headers:
        more["cache"] = cache_control(exchange.header("cache_control"))
    forwarded = {_FORWARDED[name]: exchange.header(name) for name in _FORWARDED if name in headers}
    more["headers"] = _headers(forwarded) if forwarded else NO_HEADERS
    request = Request.from_body(body, path=path, model=model, **more)
    if not request.model:
        default = MODERATION if path == MODERATIONS else default
        if not default:
            raise Refusal(400, "the request names no model: set `model`", param="model")
        request = msgspec.structs.replace(request, model=default)
    fields = _forbidden.decode(body)
    if fields != _NOTHING:
        _refuse(fields)
    if tenant.models is not None:
        _check_one_model(body)
        if not tenant.may_ask(request.model):
            raise Refusal(403, f"this key may not ask for {_short(request.model)!r}", code="model_not_allowed")
    if request.stream and path in _WITH_USAGE:
        return _with_usage(request, fields.stream_options)
    return Asked(request)


def _refuse(fields: _Forbidden) -> None:
    for name in _Forbidden.__struct_fields__[:-1]:
        if getattr(fields, name) is not UNSET:
            raise Refusal(400, f"{name!r} is not for clients to say", code="forbidden_field", param=name)


def _check_one_model(body: bytes) -> None:
    """Readers differ in which of two equal keys they take, and some in whether case matters: what a key may not ask for
    must not come through between them."""
    names = [name.lower() for name in _names(body)]
    if names.count("model") > 1:
        raise Refusal(400, "the request names its model twice", code="ambiguous_model", param="model")


def _names(body: bytes) -> list[str]:
    """Give the names of the top level, each as often as it is given."""
    if body.lower().count(b'"model"') <= 1 and b"\\u" not in body:
        return []
    return [name for name, _ in _pairs(body.decode("utf-8", "replace"))]


def _pairs(text: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found[:] = pairs  # the outermost object is the last
        return {}

    try:
        json.loads(text, object_pairs_hook=keep)
    except (ValueError, RecursionError):
        raise InvalidRequestError("the request body is not a valid JSON object", sent=False) from None
    return found


def _with_usage(request: Request, options: Raw | UnsetType) -> Asked:
    """Have the stream end with its usage, from which limits and budgets are settled."""
    if options is UNSET:
        start = request.body.find(b"{") + 1
        rest = request.body[start:]
        comma = _ASKED if not rest.lstrip().startswith(b"}") else _ASKED[:-1]
        return Asked(msgspec.structs.replace(request, body=request.body[:start] + comma + rest), hide_usage=True)
    try:
        told = _object.decode(options)
    except msgspec.DecodeError:  # null, or nonsense that the provider may judge
        told = {}
        if bytes(options).strip() != b"null":
            return Asked(request)
    if bytes(told.get("include_usage", b"")).strip() == b"true":
        return Asked(request)
    told["include_usage"] = _INCLUDED
    fields = _object.decode(request.body)
    fields["stream_options"] = Raw(msgspec.json.encode(told))
    return Asked(msgspec.structs.replace(request, body=msgspec.json.encode(fields)), hide_usage=True)


def cache_control(text: str) -> CacheControl | None:
    """Read the directives of a request's Cache-Control that say something about kept answers."""
    found = dict(_DIRECTIVE.findall(text.lower()))
    no_cache, no_store = "no-cache" in found, "no-store" in found
    if no_cache or no_store:
        return _NEITHER if no_cache and no_store else _NO_CACHE if no_cache else _NO_STORE
    age = found.get("max-age")
    return CacheControl(max_age=float(age)) if age else None


def attempts_left(exchange: Exchange, most: int) -> int:
    """Give how often the request may be sent: a client that tries again has used up some of it."""
    if "retry_count" not in exchange.headers:
        return most
    text = exchange.header("retry_count")
    return max(1, most - int(text)) if text.isdecimal() and len(text) < 5 else most


def timeout_for(exchange: Exchange, usual: Timeout) -> Timeout | UnsetType:
    """Give the times of a request whose client waits for less than we would."""
    if "timeout" not in exchange.headers:
        return UNSET
    try:
        seconds = float(exchange.header("timeout") or "inf")
    except ValueError:
        return UNSET
    if not math.isfinite(seconds) or seconds <= 0 or (usual.total is not None and seconds >= usual.total):
        return UNSET
    return msgspec.structs.replace(usual, total=seconds)


def _headers(pairs: dict[str, str]) -> Headers:
    try:
        return Headers(pairs)
    except ConfigError as error:
        raise Refusal(400, str(error)) from None


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:100] + "…"


def check_fields(body: bytes, model: str, tenant: Tenant) -> None:
    """Refuse the body of a request that comes in a file, as one of a client of its own would be."""
    fields = _forbidden.decode(body)
    if fields != _NOTHING:
        _refuse(fields)
    if not tenant.is_master and (b"previous_response_id" in body.lower() or b"\\u" in body):
        _check_begins_anew(body)
    if tenant.models is not None:
        _check_one_model(body)
        if not tenant.may_ask(model):
            raise Refusal(403, f"this key may not ask for {_short(model)!r}", code="model_not_allowed", param="model")


def _check_begins_anew(body: bytes) -> None:
    """A row of a batch goes on from no response: nobody looks whose it is. Nor may it say null: of two equal names some
    readers take the first."""
    for name in _object.decode(body):
        if name.lower() == "previous_response_id":
            raise Refusal(400, "rows of a batch cannot go on from a response", code="forbidden_field", param=name)
