"""gateway: it stops without dropping a request, takes new settings while it runs, and logs no prompt and no key."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm import build
from fastllm.errors import ConfigError
from fastllm.gateway.access import AccessLog, line_of
from fastllm.gateway.app import Gateway
from fastllm.gateway.config import GatewayOptions
from fastllm.gateway.record import Record
from fastllm.gateway.server import Server
from fastllm.gateway.setup import open_gateway, read, reload
from fastllm.testing import MockConfig, MockServer
from kits.gateway import BODY, CHAT, KEY, connection, head_and_body, served

STREAM = {**BODY, "stream": True}


async def ended(gate: Any) -> None:
    """Wait until a server that stops has stopped."""
    async with asyncio.timeout(10):
        while gate.server._uvicorn.server_state.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.fault("94")
async def test_a_server_that_stops_says_so_first_and_lets_requests_end() -> None:
    async with served(MockConfig(latency=0.6, token_rate=100.0), lead=0.3, drain=10.0) as gate:
        port = gate.server.port
        async with connection(port) as whole, connection(port) as streamed, connection(port) as idle:
            assert (await idle.ask("GET", "/health/ready")).status == 200
            await whole.send(head_and_body("POST", CHAT, BODY))
            await streamed.send(head_and_body("POST", CHAT, STREAM))
            while gate.mock.stats.in_flight < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            gate.server.stop()
            ready = await idle.ask("GET", "/health/ready")
            assert (ready.status, ready.json()) == (503, {"status": "draining"})
            assert (await idle.ask("GET", "/health/live")).status == 200
            answer = await whole.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert (await streamed.answer()).body.endswith(b"data: [DONE]\n\n")
            assert await idle.ends() == b""
        await ended(gate)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_what_is_not_done_in_time_is_told_in_its_dialect_and_given_back() -> None:
    async with served(MockConfig(token_rate=5.0, answer_bytes=2000), drain=1.0) as gate:
        gate.mock.when(lambda body: body.get("seed") == 1, "hang")
        async with connection(gate.server.port) as streamed, connection(gate.server.port) as whole:
            await streamed.send(head_and_body("POST", CHAT, STREAM))
            await streamed.head()
            await whole.send(head_and_body("POST", CHAT, {**BODY, "seed": 1}))
            while gate.mock.stats.in_flight < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            gate.server.stop()
            pieces = [piece async for piece in streamed.pieces()]
            assert b'"code":"stopping"' in pieces[-1] and b"[DONE]" not in b"".join(pieces)
            answer = await whole.answer()
            assert (answer.status, answer.json()["error"]["code"]) == (503, "stopping")
            assert answer.headers["x-should-retry"] == "true"
        await gate.idle()
        assert sorted(record.status for record in gate.records) == [503, 503]


def test_an_address_that_cannot_be_had_is_said_at_once() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            engine = build.engine(build.EngineOptions())
            with pytest.raises(ConfigError, match="cannot listen"):
                Server(Gateway(engine, GatewayOptions(port=taken.getsockname()[1])))
            await engine.aclose()

    asyncio.run(scenario())


# Reloading


def settings(folder: Path, mock: MockServer, **gateway: Any) -> Any:
    table = "\n".join(f"{name} = {msgspec.json.encode(value).decode()}" for name, value in gateway.items())
    (folder / "fastllm.toml").write_text(
        f'[gateway]\nport = 0\n{table}\n[routes.r]\nendpoints = [{{model = "m", base_url = "{mock.base_url}"}}]\n'
    )
    return read({}, {"FASTLLM_MASTER_KEY": KEY}, folder)


@pytest.mark.fault("94")
async def test_new_settings_are_taken_without_dropping_a_request(tmp_path: Path) -> None:
    async with MockServer(MockConfig(latency=0.3)) as mock:
        setup = settings(tmp_path, mock)
        engine = build.engine(setup.engine)
        gateway = open_gateway(setup, engine)
        server = Server(gateway)
        running = asyncio.create_task(server.run())
        body = {**BODY, "model": "r"}
        try:
            async with connection(server.port) as first, connection(server.port) as second:
                await first.send(head_and_body("POST", CHAT, body, x_api_key=KEY))
                while not mock.stats.in_flight:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                assert (await second.ask("POST", CHAT, {**body, "model": "x"}, x_api_key=KEY)).status == 404
                left = reload(gateway, settings(tmp_path, mock, models=["x"], body_bytes=2000, host="::1"))
                assert left == ["host"]
                large = await second.ask("POST", CHAT, {**body, "y": "z" * 3000}, x_api_key=KEY)
                assert large.status == 413
                assert (await first.answer()).status == 200
            async with connection(server.port) as third:
                listed = (await third.ask("GET", "/v1/models", x_api_key=KEY)).json()["data"]
                assert [entry["id"] for entry in listed] == ["r", "x"]
                assert (await third.ask("POST", CHAT, body, x_api_key=KEY)).status == 200
            assert gateway.engine.router.endpoints[0] is engine.router.endpoints[0]
            assert gateway.engine.stats.ok == 2
        finally:
            server.stop()
            await running
            await engine.aclose()


async def test_settings_that_are_wrong_or_would_open_the_door_change_nothing(tmp_path: Path) -> None:
    async with MockServer() as mock:
        setup = settings(tmp_path, mock, host="0.0.0.0")
        engine = build.engine(setup.engine)
        gateway = open_gateway(setup, engine)
        before = gateway.engine, gateway.options, gateway.keys
        with pytest.raises(ConfigError, match="without a key"):
            reload(gateway, msgspec.structs.replace(setup, keys=None))
        (tmp_path / "fastllm.toml").write_text("[gateway]\nqueue = -1\n")
        with pytest.raises(ConfigError):
            reload(gateway, read({}, {"FASTLLM_MASTER_KEY": KEY}, tmp_path))
        assert (gateway.engine, gateway.options, gateway.keys) == before
        with pytest.raises(ConfigError, match="without a key"):
            open_gateway(msgspec.structs.replace(setup, keys=None), engine)
        await engine.aclose()


# Logs

SECRET, UPSTREAM = "canary-5f1d9", "upstream-9a7c1"


@pytest.mark.fault("92")
async def test_no_log_error_or_record_holds_a_prompt_an_answer_or_a_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    faults = ["400", "401", "500", "html", "bad_json", "reset", "stream_truncated", "null_choices", None]
    body = {**BODY, "messages": [{"role": "user", "content": SECRET}]}
    shown = ""
    for stream, fault in itertools.product((False, True), faults):
        async with served(MockConfig(answer=SECRET), key=KEY, engine={"api_key": UPSTREAM}) as gate:
            gate.gateway.listeners = (log,)
            gate.mock.script([fault] * 3)
            answer = await gate.ask(body={**body, "stream": stream}, x_api_key=KEY)
            assert UPSTREAM not in answer.body.decode() and KEY not in answer.body.decode()
            await gate.ask(body=body, x_api_key=SECRET)
            await gate.ask(f"/v1/x?key={SECRET}", body, x_api_key=KEY)
            shown += repr(gate.gateway) + repr(gate.server)
    await asyncio.to_thread(log.close)
    lines = path.read_text().splitlines()
    assert len(lines) == 6 * len(faults)
    first = msgspec.json.decode(lines[-3])
    assert first["status"] == 200 and first["model"] == "m" and first["stream"] and first["tenant"] == "master"
    assert first["prompt_tokens"] > 0 and first["ms"] >= first["first_byte_ms"] > 0
    everything = path.read_text() + caplog.text + shown
    assert not any(secret in everything for secret in (SECRET, KEY, UPSTREAM))


async def test_a_fault_of_our_own_is_a_500_that_says_nothing_and_a_log_that_says_where(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def check(self, token: str) -> Any:
            raise RuntimeError(f"boom {token}")

    async with served(keys=Broken()) as gate:
        answer = await gate.ask(x_api_key=SECRET)
        assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
        assert (await gate.get("/health")).status == 200
    assert "RuntimeError" in caplog.text and "in check" in caplog.text and SECRET not in caplog.text


async def test_a_listener_that_fails_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: Record) -> None:
        raise ValueError(SECRET)

    async with served() as gate:
        gate.gateway.listeners = (broken, gate.records.append)
        assert (await gate.ask()).status == 200
        await gate.idle()
        assert len(gate.records) == 1
    assert "ValueError" in caplog.text and SECRET not in caplog.text


def test_an_access_log_that_cannot_be_written_is_said_at_once_and_a_full_one_drops_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="access log"):
        AccessLog(str(tmp_path / "no" / "such"))
    record = Record(at=0.0, request_id="r", method="GET", route="/models", status=200, seconds=0.001)
    line = msgspec.json.decode(line_of(record))
    assert line == {
        "time": "1970-01-01T00:00:00.000+00:00", "request_id": "r", "method": "GET", "route": "/models", "status": 200,
        "ms": 1.0,
    }  # fmt: skip
    if not Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    log = AccessLog("/dev/full")
    for _ in range(10):
        log(record)
    log.close()
    assert log.dropped >= 10
