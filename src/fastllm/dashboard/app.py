"""App: the dashboard as an ASGI app, to be mounted where somebody else looks at the door."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .board import Board
from .pages import page_of

_NOTHING = (
    b'{"error":{"message":"there is nothing here","type":"invalid_request_error","param":null,"code":"not_found"}}'
)


class Dashboard:
    """Answers GET and HEAD."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        method = scope["method"]
        page = page_of(scope["path"], scope["query_string"].decode("latin-1"), self._board)
        if method not in ("GET", "HEAD"):
            status, headers, body = 405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")], b""
        elif page is None:
            status, body = 404, _NOTHING
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        else:
            status, headers, body = page.status, list(page.headers), page.body
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if method != "HEAD" else b""})

    def __repr__(self) -> str:
        return f"<Dashboard {self._board!r}>"
