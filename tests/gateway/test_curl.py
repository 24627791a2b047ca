"""gateway: curl, which is on every machine: bodies that wait to be wanted, HTTP/1.0, streams event by event."""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastllm.testing import MockConfig
from kits.beside import ALICE, opened
from kits.gateway import BODY, CHAT, KEY, Served, served

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="there is no curl here")


@asynccontextmanager
async def begun(*args: str) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(str(CURL), "-sS", "--noproxy", "*", *args, stdout=PIPE, stderr=PIPE)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def curl(*args: str) -> tuple[str, str]:
    """Run it to its end: what it wrote, and what it told of the exchange (with -v)."""
    async with begun(*args) as child:
        out, told = await asyncio.wait_for(child.communicate(), 30)
        assert child.returncode == 0, told.decode()
        return out.decode(), told.decode()


def asking(gate: Served, body: Any = BODY, path: str = CHAT) -> list[str]:
    text = body if isinstance(body, str) else json.dumps(body)
    return [gate.server.origin + path, "-H", f"authorization: Bearer {KEY}", "-d", text]


async def test_a_large_body_waits_to_be_wanted_and_is_read(tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps({**BODY, "user": "x" * 1_500_000}))
    async with served(key=KEY) as gate:
        out, told = await curl("-v", *asking(gate, f"@{body}"))
        assert "> Expect: 100-continue" in told and "< HTTP/1.1 100 Continue" in told
        assert json.loads(out)["object"] == "chat.completion"


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_bytes(b" " * 2_000_000)
    async with served(key=KEY, body_bytes=1_000_000) as gate:
        out, told = await curl("-v", *asking(gate, f"@{body}"))
        assert "100 Continue" not in told and "< HTTP/1.1 413 Request Entity Too Large" in told
        assert json.loads(out)["error"]["code"] == "request_too_large"
        assert gate.mock.stats.requests == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_http_1_0_is_answered_without_chunks_and_closed(stream: bool) -> None:
    async with served(key=KEY) as gate:
        out, told = await curl("-v", "--http1.0", *asking(gate, {**BODY, "stream": stream}))
        assert "transfer-encoding" not in told.lower() and "< connection: close" in told.lower()
        if stream:
            assert out.endswith("data: [DONE]\n\n")
        else:
            assert json.loads(out)["object"] == "chat.completion"


async def test_every_event_is_there_as_soon_as_the_provider_has_said_it() -> None:
    """The provider would take minutes: what is read meanwhile was in nobody's buffer."""
    async with served(MockConfig(token_rate=2.0, answer_bytes=4000), key=KEY) as gate:
        async with begun("-N", *asking(gate, {**BODY, "stream": True})) as child:
            assert child.stdout is not None
            async with asyncio.timeout(20):
                for _ in range(2):
                    event = await child.stdout.readuntil(b"\n\n")
                    assert event.startswith(b"data: {") and event.endswith(b"}\n\n") and event.count(b"\n") == 2
            assert gate.mock.stats.in_flight == 1
        await gate.idle()
        assert gate.mock.stats.streams_cancelled == 1


async def test_a_connection_serves_one_request_after_another() -> None:
    async with served(key=KEY) as gate:
        out, told = await curl("-v", *asking(gate), "--next", "-sS", "-v", *asking(gate))
        assert "Re-using existing connection" in told or "Reusing existing" in told
        assert out.count('"chat.completion"') == 2


async def test_a_file_is_uploaded_as_a_form_and_read_again(tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_bytes(b'{"custom_id":"a"}\n' * 100_000)
    key = ["-H", f"authorization: Bearer {ALICE}"]
    async with opened(tmp_path / "data") as gate:
        url = f"{gate.server.origin}/v1/files"
        out, told = await curl("-v", url, *key, "-F", "purpose=batch", "-F", f"file=@{lines}")
        assert "< HTTP/1.1 100 Continue" in told
        back, _ = await curl(f"{url}/{json.loads(out)['id']}/content", *key)
        assert back.encode() == lines.read_bytes()
