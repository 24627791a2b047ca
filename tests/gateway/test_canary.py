"""gateway: no key and no prompt in anything that is written, whatever goes wrong: every fault of the testing server,
and providers that quote what they were sent."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastllm.dashboard.board import Board
from fastllm.dashboard.ended import Ended
from fastllm.dashboard.reading import reading_of
from fastllm.gateway.access import AccessLog
from fastllm.gateway.app import OPERATIONS
from fastllm.gateway.auth import MasterKey
from fastllm.gateway.metrics import Metrics
from fastllm.gateway.tenancy import Tenancy
from fastllm.options import Retry, Timeout
from fastllm.testing import FAULTS
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse
from kits.beside import names_in
from kits.gateway import Answer, Served, served

PROMPT, UPSTREAM, MASTER = "canary-prompt-5e1f", "sk-canary-upstream-5e1f", "sk-canary-master-5e1f"
STATUSES = ("400", "401", "402", "403", "404", "408", "409", "413", "422", "429", "500", "502", "503", "504", "529")
ENDLESS = {"gzip_bomb": "gzip_bomb:200000", "slow_body": "slow_body:0.05"}
KINDS = [
    *STATUSES,
    "429:insufficient_quota",
    "400:context_length_exceeded",
    *(ENDLESS.get(name, name) for name in FAULTS),
]
MESSAGES = [{"role": "user", "content": PROMPT}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "user": PROMPT}),
    ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "stream": True}),
    ("/v1/responses", {"model": "m", "input": PROMPT, "stream": True}),
    ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": MESSAGES}),
    ("/v1/embeddings", {"model": "m", "input": [PROMPT]}),
]


class Scene:
    """A gateway with all that it writes, and what must not be in it."""

    def __init__(self, gate: Served, tenancy: Tenancy, folder: Path, secret: str) -> None:
        self.gate = gate
        self.secret = secret
        self.keys = (UPSTREAM, MASTER, secret)
        self._tenancy = tenancy
        self._folder = folder

    async def ask(self, path: str, body: Any, key: str | None = None) -> Answer:
        return await self.gate.ask(path, body, authorization=f"Bearer {key or self.secret}")

    def shown(self) -> Iterator[str]:
        """Give everything that says what it is."""
        yield from map(repr, self.gate.records)
        yield from map(repr, (self.gate.gateway, self.gate.engine, self.gate.server, self._tenancy))
        yield from map(repr, (*self.gate.engine.router.endpoints, self._tenancy.store.list()))
        yield repr([endpoint.target for endpoint in self.gate.engine.router.endpoints])
        yield repr(self._tenancy.usage.query(by=["key", "model", "day"]))


@asynccontextmanager
async def scene(folder: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> AsyncIterator[Scene]:
    """Open it; at the end, look through logs, files and reprs."""
    caplog.set_level(logging.DEBUG)
    tenancy = Tenancy(folder / "gateway.sqlite3")
    _, secret = tenancy.store.create("team", rpm=100_000)
    more = {
        "api_key": UPSTREAM,
        "timeout": Timeout(first_byte=0.1, between_chunks=0.1, total=0.5, queue=1.0),
        **options,
    }
    more["retry"] = Retry(attempts=2, base=0.001, cap=0.002, reset_base=0.001)
    log = AccessLog(str(folder / "access.log"))
    keys = tenancy.keys(MasterKey(MASTER))
    async with served(keys=keys, app={"admissions": tenancy}, engine=more, metrics=Metrics(), queue=1.0) as gate:
        ended = Ended(OPERATIONS)
        gate.gateway.listeners = (*gate.gateway.listeners, tenancy.add, log, ended)
        found = Scene(gate, tenancy, folder, secret)
        yield found
        await gate.idle()
        metrics = await gate.get("/metrics", authorization=f"Bearer {MASTER}")
        assert metrics.status == 200 and b"fastllm_requests_total" in metrics.body
        engine = gate.engine
        reading = reading_of(engine.snapshot(), engine.router.endpoints, engine.clock.now(), engine.clock.time())
        dashboard = Board(ended.into(reading), "gateway", "1").data()
        shown = [*found.shown(), metrics.body.decode(), dashboard.decode()]
    log.close()
    tenancy.close()
    written = [(folder / name).read_bytes().decode("latin-1") for name in names_in(folder)]
    assert len(written) >= 2 and len(gate.records) == written[names_in(folder).index("access.log")].count("\n")
    for text in [caplog.text, *(str(record.__dict__) for record in caplog.records), *shown, *written]:
        for canary in (PROMPT, *found.keys):
            assert canary not in text, text[:2000]


@pytest.mark.fault("92")
@pytest.mark.parametrize("kind", KINDS)
async def test_no_fault_has_a_key_or_a_prompt_written_down(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with scene(tmp_path, caplog) as found:
        for path, body in ASKED:
            found.gate.mock.script([kind] * 2)
            answer = await found.ask(path, body)
            said = answer.body.decode("latin-1") + str(answer.headers)
            assert not [key for key in found.keys if key in said]
            found.gate.mock.script([])
    out = capfd.readouterr()
    assert not [canary for canary in (PROMPT, *found.keys) if canary in out.out + out.err]


@pytest.mark.fault("92")
@pytest.mark.parametrize("status", [200, *map(int, STATUSES)])
async def test_a_provider_that_quotes_what_it_was_sent_is_not_believed_with_it(
    status: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def quotes(http: HTTPRequest) -> HTTPResponse:
        text = f"bad: {http.headers['authorization']} {http.body.decode()}"
        error = {"message": text, "type": text, "code": text, "param": text}
        pairs = [
            (b"content-type", b"application/json"),
            (b"x-request-id", UPSTREAM.encode()),
            (b"www-authenticate", b"x"),
        ]
        return HTTPResponse(status=status, headers=pairs, body=json.dumps({"error": error}).encode())

    async with scene(tmp_path, caplog, transport=ScriptedTransport(quotes)) as found:
        for path, body in ASKED:
            answer = await found.ask(path, body)
            assert answer.status >= 400
            said = answer.body.decode("latin-1") + str(answer.headers)
            assert not [key for key in found.keys if key in said], said


@pytest.mark.fault("92")
async def test_what_is_refused_at_the_door_is_not_written_down_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path, caplog) as found:
        for key in (PROMPT, f"{found.secret}x", UPSTREAM, "\u00e9", "a b"):
            assert (await found.ask(*ASKED[0], key=key)).status == 401
        for path in (
            f"/v1/{PROMPT}",
            f"/v1/chat/completions?key={found.secret}",
            f"/v1/models?x={PROMPT}",
            f"/{MASTER}",
        ):
            await found.gate.get(path, authorization=f"Bearer {found.secret}")
        for body in (
            b'{"model":"m","messages":"%b"' % PROMPT.encode(),
            b"%b" % PROMPT.encode(),
            b'["%b"]' % PROMPT.encode(),
        ):
            assert (await found.ask("/v1/chat/completions", body)).status == 400
        assert (await found.ask("/v1/chat/completions", {**ASKED[0][1], "api_key": UPSTREAM})).status == 400
        assert (await found.ask(*ASKED[0], key=MASTER)).status == 200
