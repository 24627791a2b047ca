"""Pages: what a browser gets for a path: the files of the page, and the board's data. It knows no server.

The page may load nothing but its own files from where it came, and runs no script that stands in it.
"""

from __future__ import annotations

from importlib import resources
from urllib.parse import parse_qs

import msgspec

from .board import Board

ROOT = "/dashboard"
DATA = f"{ROOT}/data"
_TYPES = {
    "index.html": b"text/html; charset=utf-8",
    "style.css": b"text/css; charset=utf-8",
    "app.js": b"text/javascript; charset=utf-8",
    "chart.js": b"text/javascript; charset=utf-8",
    "words.js": b"text/javascript; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Page(msgspec.Struct, frozen=True):
    """An answer to a GET."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def page_of(path: str, query: str, board: Board) -> Page | None:
    """Give what lies under a path below ROOT; None where nothing does."""
    if path == DATA:
        return _page(200, b"application/json", board.data(_after(query)))
    if path == ROOT:  # the page names its files from here
        return Page(308, ((b"location", f"{ROOT}/".encode()), (b"content-length", b"0"), *_SAFE), b"")
    name = path.removeprefix(f"{ROOT}/") or "index.html"
    kind = _TYPES.get(name)
    return None if kind is None else _page(200, kind, _file(name))


def _after(query: str) -> int:
    text = parse_qs(query).get("after", ["0"])[-1]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _page(status: int, kind: bytes, body: bytes) -> Page:
    return Page(status, ((b"content-type", kind), (b"content-length", b"%d" % len(body)), *_SAFE), body)


def _file(name: str) -> bytes:
    return resources.files(__package__).joinpath("static", name).read_bytes()
