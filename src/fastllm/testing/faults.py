"""Everything that can go wrong on purpose: each fault is one entry of a table, from the right Reply to a wrong Wire.

A kind is a name, or `name:argument`:
- any status 400-599: `500`, `429`, `404`. Argument: a header to send with it (`429:retry-after=2`,
  `503:x-should-retry=false`), `ms` (retry-after-ms: 50), or an error code (`429:insufficient_quota`,
  `400:context_length_exceeded`).
- a name in FAULTS: `reset`, `hang`, `stream_truncated`, ... Some take a number: `slow_body:0.01` (seconds a byte),
  `gzip_bomb:268435456` and `huge_headers:65536` (bytes), `redirect_307_cross:http://127.0.0.2:80` (where to).
The names beginning with `stream_` on a request that is not a stream do to its whole body what comes nearest.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import lru_cache

import msgspec

from ..errors import ConfigError
from .reply import Reply, Wire, chunk, encode, error_body

Plan = Callable[[Reply, "Place"], Wire]

STALL_BEFORE_RESET = 0.02  # an RST overtakes bytes that are still on their way


class Place(msgspec.Struct, frozen=True):
    """Where the faulty request was sent: what redirects need to know."""

    path: str
    port: int
    scheme: str


# status -> type, code and message of OpenAI's error body
_STATUSES: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request could not be understood (injected)."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided (injected)."),
    402: ("billing_error", "credit_balance_exhausted", "Your credit balance is exhausted (injected)."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Not allowed from here (injected)."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist (injected)."),
    408: ("timeout", None, "The request took too long to arrive (injected)."),
    409: ("conflict", None, "Another request holds this resource (injected)."),
    413: ("invalid_request_error", "request_too_large", "The request is too large (injected)."),
    422: ("invalid_request_error", None, "The request could not be processed (injected)."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached (injected)."),
    500: ("server_error", None, "The server had an error (injected)."),
    502: ("server_error", None, "Bad gateway (injected)."),
    503: ("server_error", None, "The engine is currently overloaded (injected)."),
    504: ("server_error", None, "Gateway timeout (injected)."),
    529: ("overloaded_error", None, "Overloaded (injected)."),
}
# code -> type, parameter and message where a code has its own
_CODES: dict[str, tuple[str, str | None, str]] = {
    "insufficient_quota": ("insufficient_quota", None, "You exceeded your current quota (injected)."),
    "context_length_exceeded": (
        "invalid_request_error",
        "messages",
        "This model's maximum context length is 8192 tokens (injected).",
    ),
    "unsupported_parameter": (
        "invalid_request_error",
        "max_tokens",
        "Unsupported parameter: 'max_tokens' is not supported with this model (injected).",
    ),
}


def plan_of(kind: str) -> Plan:
    """Give the function that does this fault; raise ConfigError if there is none of that name."""
    name, _, argument = kind.partition(":")
    if name.isdigit() and 400 <= int(name) <= 599:
        return lambda reply, place: _status(reply, int(name), argument)
    if name not in FAULTS:
        raise ConfigError(f"{kind!r} is no fault; it must be a status 400-599 or one of: {', '.join(FAULTS)}")
    fault = FAULTS[name]
    return lambda reply, place: fault(reply, place, argument)


def _status(reply: Reply, status: int, argument: str) -> Wire:
    type, code, message = _STATUSES.get(status, ("server_error", None, "An error (injected)."))
    param, headers = None, reply.headers
    if argument == "ms":
        headers += "retry-after-ms: 50\r\n"
    elif "=" in argument:
        name, _, value = argument.partition("=")
        headers += f"{name}: {value}\r\n"
    elif argument:
        code = argument
        type, param, message = _CODES.get(code, (type, None, f"{code} (injected)."))
    return _sent(Reply(error_body(message, type=type, code=code, param=param), status, headers=headers))


def _sent(reply: Reply) -> Wire:
    return Wire([b"".join(reply.pieces())])


def _body(reply: Reply, body: bytes, *, content_type: str = "application/json", headers: str = "") -> Wire:
    return _sent(Reply(body, 200, content_type, reply.headers + headers))


def _half(reply: Reply) -> list[bytes]:
    """The head and the first half of the answer."""
    if reply.events is None:
        return [reply.head() + reply.body[: len(reply.body) // 2]]
    return [b"".join(reply.pieces()[: max(1, len(reply.events) // 2)])]


def _edited(reply: Reply, **changes: object) -> Wire:
    """The JSON body, or for a stream only a body, with some of its fields replaced."""
    fields = msgspec.json.decode(reply.body) if reply.events is None else {"object": "chat.completion"}
    return _body(reply, encode({**fields, **changes}))


def _slow(reply: Reply, _: Place, argument: str) -> Wire:
    data = b"".join(reply.pieces())
    head = len(reply.head())
    return Wire([data[:head], *_bytewise(data[head:])], pause=float(argument or 1.0))


def _bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def _chunked(reply: Reply, place: Place, _: str) -> Wire:
    if reply.events is not None:
        parts = reply.pieces()[:-1]
    else:
        third = len(reply.body) // 3 + 1
        cut = [reply.body[i : i + third] for i in range(0, len(reply.body), third)]
        head = reply.head(framing="transfer-encoding: chunked\r\ntrailer: x-mock-trailer")
        parts = [head, *[chunk(part) for part in cut]]
    return Wire([*parts, b"0\r\nx-mock-trailer: yes\r\n\r\n"])


def _gzip(reply: Reply, _: Place, __: str) -> Wire:
    body = reply.body if reply.events is None else b"".join(reply.events)
    zipped = Reply(gzip.compress(body, mtime=0), 200, reply.content_type, reply.headers + "content-encoding: gzip\r\n")
    return _sent(zipped)


@lru_cache(maxsize=4)
def _bomb(size: int) -> bytes:
    """`size` spaces between two braces, packed about a thousand times smaller, without ever being in memory."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * 1_048_576
    parts = [packer.compress(b"{")]
    parts += [packer.compress(block[: min(len(block), size - done)]) for done in range(0, size, len(block))]
    return b"".join([*parts, packer.compress(b"}"), packer.flush()])


def _redirect(reply: Reply, location: str) -> Wire:
    return _sent(Reply(b"", 307, headers=f"{reply.headers}location: {location}\r\n"))


def _huge_headers(reply: Reply, _: Place, argument: str) -> Wire:
    size, line = int(argument or 1_048_576), "x" * 1000
    count = size // 1010 + 1
    headers = reply.headers + "".join(f"x-{i:05d}: {line}\r\n" for i in range(count))
    return _sent(Reply(reply.body, 200, reply.content_type, headers, reply.events))


def _misfit(reply: Reply, _: Place, __: str) -> Wire:
    """A chat's whole answer with words where JSON was asked for; it costs as much."""
    if reply.events is not None:
        return _sent(reply)
    fields = msgspec.json.decode(reply.body)
    for choice in fields.get("choices") or ():
        choice["message"] = {"role": "assistant", "content": "I would rather say it in my own words (injected)."}
    return _body(reply, encode(fields))


_STALE = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{"stale":true}'
_ERROR = error_body("The server had an error while answering (injected).", type="server_error", code="server_error")
_HTML = b"<!doctype html><html><head><title>Sign in</title></head><body>Please log in to the network.</body></html>"


def _stream(reply: Reply, *, keep: int, add: bytes = b"", ends: bool = True) -> list[bytes]:
    """A stream's first `keep` events (from the end if negative), one more, and whether the body is ended."""
    events = [*(reply.events or [])[:keep], *([add] if add else [])]
    pieces = Reply(events=events or [b": nothing\n\n"], content_type=reply.content_type, headers=reply.headers).pieces()
    return [b"".join(pieces if ends else pieces[:-1])]


def _middle(reply: Reply) -> int:
    return max(1, len(reply.events or []) // 2)


def _stream_truncated(reply: Reply, place: Place, argument: str) -> Wire:
    if reply.events is None:
        return Wire(_half(reply), end="close")
    return Wire(_stream(reply, keep=_middle(reply)))


def _stream_error_event(reply: Reply, place: Place, argument: str) -> Wire:
    if reply.events is None:
        return _body(reply, _ERROR)
    return Wire(_stream(reply, keep=_middle(reply), add=b"data: %b\n\n" % _ERROR))


def _stream_bad_json(reply: Reply, place: Place, argument: str) -> Wire:
    if reply.events is None:
        return _body(reply, reply.body[: len(reply.body) // 2])
    middle = _middle(reply)
    broken = [*reply.events[:middle], b'data: {"id":"x","choices":[{\n\n', *reply.events[middle:]]
    return _sent(Reply(events=broken, content_type=reply.content_type, headers=reply.headers))


def _stream_no_done(reply: Reply, place: Place, argument: str) -> Wire:
    """All the content and the finish_reason, but no `[DONE]`: which is a whole answer."""
    return _sent(reply) if reply.events is None else Wire(_stream(reply, keep=-1))


FAULTS: dict[str, Callable[[Reply, Place, str], Wire]] = {
    "reset": lambda reply, place, arg: Wire([], end="reset"),
    "reset_mid_body": lambda reply, place, arg: Wire(_half(reply), end="reset"),
    "close": lambda reply, place, arg: Wire([], end="close"),
    "hang": lambda reply, place, arg: Wire([], end="hang"),
    "slow_body": _slow,
    "truncated_body": lambda reply, place, arg: Wire(_half(reply), end="close"),
    "html": lambda reply, place, arg: _body(reply, _HTML, content_type="text/html"),
    "empty": lambda reply, place, arg: _body(reply, b""),
    "bad_json": lambda reply, place, arg: _body(reply, (reply.body or b'{"id": ')[:-1]),
    "error_in_200": lambda reply, place, arg: _body(reply, _ERROR),
    "misfit": _misfit,
    "null_choices": lambda reply, place, arg: _edited(reply, choices=None),
    "empty_choices": lambda reply, place, arg: _edited(reply, choices=[]),
    "stream_truncated": _stream_truncated,
    "stream_error_event": _stream_error_event,
    "stream_bad_json": _stream_bad_json,
    "stream_stall": lambda reply, place, arg: Wire(_half(reply), end="hang"),
    "stream_reset": lambda reply, place, arg: Wire(_half(reply), end="reset"),
    "stream_no_done": _stream_no_done,
    "gzip": _gzip,
    "gzip_bomb": lambda reply, place, arg: _body(
        reply, _bomb(int(arg or 67_108_864)), headers="content-encoding: gzip\r\n"
    ),
    "redirect_307_same": lambda reply, place, arg: _redirect(reply, f"{place.path}?mock-redirected"),
    "redirect_307_cross": lambda reply, place, arg: _redirect(
        reply, f"{arg or f'{place.scheme}://localhost:{place.port}'}{place.path}?mock-redirected"
    ),
    "huge_headers": _huge_headers,
    "stale_bytes": lambda reply, place, arg: Wire([b"".join(reply.pieces()) + _STALE]),
    "chunked": _chunked,
    "split": lambda reply, place, arg: Wire(_bytewise(b"".join(reply.pieces()))),
}
