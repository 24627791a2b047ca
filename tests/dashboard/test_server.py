"""The page and its data over HTTP, for this machine alone: a browser loads nothing else and runs no name as script."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from fastllm.dashboard.app import Dashboard
from fastllm.dashboard.board import Board
from fastllm.dashboard.reading import Reading
from fastllm.dashboard.server import Server
from fastllm.errors import ConfigError


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(Board(Reading(), "a run", "1.0"), Reading)
    yield server
    server.close()


def get(server: Server, path: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    port = int(re.findall(r":(\d+)/", server.address)[0])
    wire = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    wire.request(method, path, headers={} if host is None else {"host": host})
    answer = wire.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    wire.close()
    return found


def test_the_page_its_files_and_its_data_are_served(server: Server) -> None:
    status, headers, body = get(server, "/dashboard/")
    assert status == 200
    assert "script-src 'self'" in headers["content-security-policy"]
    names = re.findall(r'(?:href|src)="([^"]+)"', body.decode())
    assert {"app.js", "style.css", "icon.svg"} <= set(names)
    for name in {*names, "chart.js", "words.js"}:
        status, headers, body = get(server, f"/dashboard/{name}")
        assert (status, headers["content-length"]) == (200, str(len(body)))
    assert json.loads(get(server, "/dashboard/data?after=0")[2])["title"] == "a run"
    status, headers, _ = get(server, "/dashboard")
    assert (status, headers["location"]) == (308, "/dashboard/")
    assert get(server, "/dashboard/", "HEAD")[2] == b""


@pytest.mark.parametrize(
    "path", ["/", "/dashboard/nothing", "/dashboard/../pages.py", "/dashboard/%2e%2e/pages.py", "/dashboardx", "//x"]
)
def test_there_is_nothing_else(server: Server, path: str) -> None:
    assert get(server, path)[0] == 404


def test_other_names_and_other_methods_are_refused(server: Server) -> None:
    assert get(server, "/dashboard/data", host="evil.example")[0] == 403
    assert get(server, "/dashboard/data", host="127.0.0.1.evil.example:80")[0] == 403
    assert get(server, "/dashboard/data", "POST")[0] == 501


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=" + "9" * 40, "after=%00", "x", "after=1&after=y"])
def test_a_strange_question_gets_everything(server: Server, query: str) -> None:
    assert get(server, f"/dashboard/data?{query}")[0] == 200


def test_a_port_that_is_taken_is_named(server: Server) -> None:
    port = int(re.findall(r":(\d+)/", server.address)[0])
    with pytest.raises(ConfigError, match=f"port {port}.*--dashboard-port 0"):
        Server(Board(Reading(), "other", "1.0"), Reading, port)
    with pytest.raises(ConfigError, match="65536"):
        Server(Board(Reading(), "other", "1.0"), Reading, 65536)


def test_the_page_needs_nobody_else_and_makes_no_markup_of_names() -> None:
    for entry in resources.files("fastllm.dashboard").joinpath("static").iterdir():
        text = entry.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(?m)(^|\s)// .*$", "", text).replace("https://", "BAD//") or entry.name.endswith(
            ".css"
        ), entry.name
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|style=|onclick=", text), entry.name


async def test_as_an_app_it_answers_the_same() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    app = Dashboard(Board(Reading(), "gateway", "1.0"))
    for method, path, status in (
        ("GET", "/dashboard/data", 200),
        ("GET", "/dashboard/no", 404),
        ("POST", "/dashboard/", 405),
        ("HEAD", "/dashboard/app.js", 200),
    ):
        sent.clear()
        await app({"method": method, "path": path, "query_string": b""}, send, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == status
        assert bool(sent[1]["body"]) == (method == "GET")
