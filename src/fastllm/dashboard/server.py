"""Server: the dashboard of a run, for this machine alone, from a thread that the run does not wait for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from .board import STEP, Board
from .pages import ROOT, page_of
from .reading import Reading

logger = logging.getLogger("fastllm")

HOST = "127.0.0.1"
_NAMES = frozenset(("127.0.0.1", "localhost"))


class Server:
    """Listens on a port of this machine, 0 being any free one, and has its board take what `read` gives, until `close`.
    ConfigError where the port cannot be had."""

    def __init__(self, board: Board, read: Callable[[], Reading], port: int = 0) -> None:
        self._board = board
        self._read = read
        try:
            self._http = _HTTP((HOST, port), _Answering)
        except (OSError, OverflowError) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            raise ConfigError(
                f"the dashboard cannot listen on port {port}: {reason} (--dashboard-port 0 takes any free one)"
            ) from None
        self._http.board = board
        self.address = f"http://{HOST}:{self._http.server_port}{ROOT}/"
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._http.serve_forever, args=(0.1,), name="fastllm-dashboard", daemon=True),
            threading.Thread(target=self._tick, name="fastllm-board", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _tick(self) -> None:
        while not self._closing.wait(STEP):
            try:
                self._board.tick(self._read())
            except Exception as error:  # a page is no reason to stop a run
                logger.error("the dashboard cannot be drawn: %s", type(error).__name__)

    def close(self) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join()

    def __repr__(self) -> str:
        return f"<Server {self.address}>"


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    board: Board

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a browser that went away


class _Answering(BaseHTTPRequestHandler):
    timeout = 30.0
    server: _HTTP

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        # No page of elsewhere that a browser was talked into taking for this one.
        host = self.headers.get("host", "").rpartition(":")[0] or self.headers.get("host", "")
        url = urlsplit(self.path)
        if host.lower() not in _NAMES:
            self.send_error(403)
            return
        page = page_of(url.path, url.query, self.server.board) if url.path.startswith(ROOT) else None
        if page is None:
            self.send_error(404)
            return
        self.send_response(page.status)
        for name, value in page.headers:
            self.send_header(name.decode(), value.decode())
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
