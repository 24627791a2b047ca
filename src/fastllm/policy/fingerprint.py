"""The cache key: what makes two requests the same, as canonical JSON and its SHA-256.

Two requests are the same if the provider must answer them alike: same operation, same body up to key order, white
space and fields that only concern transport, same version headers, same sample number. Nothing else is dropped,
because a field left out of a key is a wrong answer some day (a system prompt, a tool, a provider's own parameter).
In doubt two requests differ, which costs a miss: texts are compared byte for byte without Unicode normalisation, and
1 is not 1.0. A body that readers may understand differently, because it gives a key twice, is only like itself.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from ..errors import ConfigError, InvalidRequestError
from ..types import MESSAGES, NO_HEADERS, PATHS, RESPONSES, Headers, Request

VERSION = 2

# How the answer travels, never what it says: a streamed answer serves a whole request and the other way round.
STREAM_FIELDS = frozenset({"stream", "stream_options"})
# Outside the Responses API these say who asks, where the provider may reuse its own work, and what it notes for
# later; no answer depends on them. A Responses answer quotes them all, and only a stored one can be continued from:
# there they are kept.
# `service_tier` is kept everywhere: answers tell the tier that served them, and vendors give it meanings of their own.
TRANSPORT_FIELDS = STREAM_FIELDS | {
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata", "store",
}  # fmt: skip
# Headers that select a version or variant of the API. Keys and cookies are not among them, nor who pays
# (openai-organization, openai-project): who must not share answers has a namespace.
VERSION_HEADERS = ("anthropic-version", "anthropic-beta", "openai-beta", "api-version", "x-goog-api-version")
SECRET_PARAMETERS = frozenset({"key", "api_key", "api-key", "apikey", "access_token", "token", "subscription-key"})

_decode = msgspec.json.Decoder().decode  # dict[str, Any] costs 0.4 µs more
_encode = msgspec.json.Encoder(order="sorted").encode
_sha256 = hashlib.sha256
_USUAL_RESTS = {path: b"," + _encode({"path": path, "sample": 0, "v": VERSION})[1:] for path in (*PATHS, MESSAGES)}


def canonical(request: Request, model: str = "") -> bytes:
    """Give the request's canonical JSON; `model` is its name on the wire. InvalidRequestError if the body is none."""
    raw = request.body
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _as_it_stands(request, model)
    if not isinstance(body, dict):
        raise _invalid("it is no object")
    # Quotes count the strings: what came in and was not dropped must go out, or a key was given twice.
    quotes = raw.count(b'"')
    fields = TRANSPORT_FIELDS if request.path != RESPONSES else STREAM_FIELDS
    if not fields.isdisjoint(body):
        quotes -= _encode({name: body.pop(name) for name in fields & body.keys()}).count(b'"')
    if model and body.get("model") != model:
        quotes -= _encode({"model": body["model"]}).count(b'"') if "model" in body else 0
        quotes += 4 + model.count('"')
        body["model"] = model
    text: bytes = _encode(body)
    suspicious = text.count(b'"') != quotes or (
        b"\\" in raw and b"\\u0022" in raw
    )  # a quote that does not look like one
    if suspicious and _repeats_a_key(raw):
        return _as_it_stands(request, model)
    return b'{"body":' + text + _rest(request)


def fingerprint(canonical_request: bytes) -> bytes:
    """Give the SHA-256 of a canonical request: 32 bytes."""
    return _sha256(canonical_request).digest()


def scope(dialect: str, base_url: str, headers: Headers, namespace: str = "") -> bytes:
    """Give 16 bytes for what else must keep answers apart: dialect, address, API version, namespace."""
    parts = {
        "dialect": dialect,
        "base_url": canonical_url(base_url),
        "headers": _versions(headers),
        "namespace": namespace,
    }
    return _sha256(_encode(parts)).digest()[:16]


def canonical_url(url: str) -> str:
    """Lower-case scheme and host; leave out default port, trailing slash, fragment and credentials."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"base_url has no valid host or port: {error}") from None
    if port == {"http": 80, "https": 443}.get(parts.scheme):
        port = None
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    query = [(name, value) for name, value in parse_qsl(parts.query, True) if name.lower() not in SECRET_PARAMETERS]
    tail = f"?{urlencode(query)}" if query else ""
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{parts.path.rstrip('/')}{tail}"


def _versions(headers: Headers) -> dict[str, str]:
    return {name: headers[name] for name in VERSION_HEADERS if name in headers}


def _rest(request: Request) -> bytes:
    """The canonical JSON behind the body."""
    if not request.namespace and request.sample == 0 and request.headers is NO_HEADERS and request.path in _USUAL_RESTS:
        return _USUAL_RESTS[request.path]
    rest: dict[str, Any] = {"path": request.path, "sample": request.sample, "v": VERSION}
    if request.namespace:
        rest["namespace"] = request.namespace
    versions = _versions(request.headers)
    if versions:
        rest["headers"] = versions
    return b"," + _encode(rest)[1:]


def _as_it_stands(request: Request, model: str) -> bytes:
    """The form of a body that cannot be taken apart without loss: a string where others have an object."""
    try:
        text = request.body.decode()
        body = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _invalid(error) from None
    if not isinstance(body, dict):
        raise _invalid("it is no object")
    return b'{"body":' + _encode(text) + b',"model":' + _encode(model) + _rest(request)


def _repeats_a_key(raw: bytes) -> bool:
    repeated = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal repeated
        repeated = repeated or len({name for name, _ in pairs}) != len(pairs)

    try:
        json.loads(raw, object_pairs_hook=look)
    except (ValueError, RecursionError):  # an integer of very many digits
        return True
    return repeated


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _invalid(why: object) -> InvalidRequestError:
    return InvalidRequestError(f"the request body is not a valid JSON object: {why}", sent=False)
