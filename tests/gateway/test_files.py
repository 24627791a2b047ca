"""gateway.files: OpenAI's Files API as its SDK uses it; a tenant's files are nobody else's."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from fastllm.gateway.file_store import ABANDONED, FileStore
from kits.beside import ALICE, BOB, names_in, opened, until, wire

LINES = b'{"custom_id":"a"}\n' * 3


async def test_the_sdk_uploads_lists_reads_and_deletes(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        made = await client.files.create(file=("in.jsonl", LINES), purpose="batch")
        assert (made.filename, made.bytes, made.purpose, made.object) == ("in.jsonl", len(LINES), "batch", "file")
        assert made.expires_at is not None and made.expires_at - made.created_at == 30 * 86_400
        other = await client.files.create(file=("notes.txt", b"x"), purpose="user_data")
        assert other.expires_at is None
        assert await client.files.retrieve(made.id) == made
        assert [file.id async for file in client.files.list()] == [other.id, made.id]
        assert [file.id async for file in client.files.list(order="asc", limit=1)] == [made.id, other.id]
        assert [file.id async for file in client.files.list(purpose="batch")] == [made.id]
        assert (await client.files.content(made.id)).content == LINES
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.files.content(made.id)
        assert [path.name for path in (tmp_path / "files").rglob("*") if made.id in path.name] == []


@pytest.mark.fault("90")
async def test_a_tenant_sees_its_own_files_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client(ALICE) as alice, gate.client(BOB) as bob:
        made = await alice.files.create(file=("secret.jsonl", LINES), purpose="batch")
        for ask in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with pytest.raises(openai.NotFoundError):
                await ask(made.id)
        assert [file.id async for file in bob.files.list()] == []
        with pytest.raises(openai.BadRequestError):
            await bob.files.list(after=made.id)
        assert (await alice.files.content(made.id)).content == LINES


@pytest.mark.fault("88")
async def test_names_are_told_and_never_used_as_paths(tmp_path: Path) -> None:
    names = ["../../../evil", "/etc/passwd", "..\\..\\evil", "a\x07b\n.txt", "ü" * 300, "..", "%2e%2e%2f"]
    async with opened(tmp_path / "data") as gate, gate.client() as client:
        for name in names:
            made = await client.files.create(file=(name, b"x"), purpose="user_data")
            assert "/" not in made.filename and "\\" not in made.filename and len(made.filename) <= 255
            answer = await client.files.content(made.id)
            assert answer.content == b"x" and "\n" not in answer.response.headers["content-disposition"]
        for path in ["..%2f..%2fetc%2fpasswd", "file-%2e%2e", "file-" + "0" * 23, ".incoming-x", "file-x.json"]:
            status, *_ = await wire(gate.server.port, "GET", f"/v1/files/{path}/content")
            assert status == 404
    found = names_in(tmp_path, "file-*")
    assert len(found) == 2 * len(names) and all(name.startswith("data/files/") for name in found)
    assert {name.split("/")[0] for name in names_in(tmp_path)} == {"data"}
    for path in (tmp_path / name for name in found):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "query", ["limit=", "limit=x", "limit=0", "limit=-1", "limit=10001", "order=", "order=up", "after=x"]
)
async def test_a_list_is_asked_for_rightly_or_not_at_all(query: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as gate:
        status, _, said = await wire(gate.server.port, "GET", f"/v1/files?{query}")
        assert (status, json.loads(said)["error"]["param"]) == (400, query.partition("=")[0])
        assert (await wire(gate.server.port, "GET", "/v1/files?after=&purpose=&limit=1&other="))[0] == 200


async def test_expiry_is_asked_for_and_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate, gate.client() as client:
        after: Any = {"anchor": "created_at", "seconds": 3600}
        made = await client.files.create(file=("a", b"x"), purpose="user_data", expires_after=after)
        assert made.expires_at == made.created_at + 3600
        for wrong in ({"anchor": "created_at", "seconds": 60}, {"anchor": "now", "seconds": 3600}):
            bad: Any = wrong
            with pytest.raises(openai.BadRequestError):
                await client.files.create(file=("a", b"x"), purpose="user_data", expires_after=bad)


def test_what_has_expired_is_gone(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "files")
    past, future = time.time() - 1, time.time() + 1000
    ids = []
    for expires in (past, past, future):
        path, file = store.incoming("alice")
        with file:
            file.write(b"x")
        ids.append(store.keep("alice", path, name="a", purpose="batch", expires=expires).id)
    assert store.find("alice", ids[0]) is None and not store.path("alice", ids[0]).exists()
    abandoned, file = store.incoming("alice")
    file.close()
    fresh, file = store.incoming("alice")
    file.close()
    old = time.time() - ABANDONED - 1
    os.utime(abandoned, (old, old))
    store.sweep()
    assert not store.path("alice", ids[1]).exists() and not abandoned.exists() and fresh.exists()
    assert [file.id for file in store.all("alice")] == [ids[2]]


async def test_sizes_have_a_bound_and_leave_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path, file_bytes=100_000, tenant_bytes=250_000) as gate, gate.client() as client:
        for size in (100_001, 300_000, 30_000_000):  # the last is more than buffers hold: it is read to be refused
            with pytest.raises(openai.APIStatusError) as caught:
                await client.files.create(file=("a", b"x" * size), purpose="batch")
            assert caught.value.status_code == 413 and caught.value.code == "file_too_large"
        # Without a length, the bound holds as the pieces come.
        form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 100_001
        pieces = [form[start : start + 100_000] for start in range(0, len(form), 100_000)]
        status, body = await sent(gate.server.port, pieces, FORM, ends=False)
        assert status == 413 and b"file_too_large" in body
        for _ in range(2):
            await client.files.create(file=("a", b"x" * 99_000), purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            await client.files.create(file=("a", b"x" * 99_000), purpose="batch")
        assert caught.value.status_code == 413
    assert len(names_in(tmp_path / "files")) == 4


FORM = "multipart/form-data; boundary=b"


def part(name: str, value: bytes, more: str = "") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), more.encode(), value)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"x", "multipart/form-data", 415),
        (b"no form at all", FORM, 400),
        (part("purpose", b"batch") + b"--b--\r\n", FORM, 400),
        (part("file", b"x", '; filename="a"') + b"--b--\r\n", FORM, 400),
        (part("purpose", b"batch") + part("file", b"x", '; filename="a"'), FORM, 400),
        (part("purpose", b"batch") * 2 + part("file", b"x", '; filename="a"') + b"--b--\r\n", FORM, 400),
        (part("purpose", b"batch") + part("file", b"x", '; filename="a"') * 2 + b"--b--\r\n", FORM, 400),
        (part("purpose", b"p" * 70_000) + b"--b--\r\n", FORM, 400),
        (b"".join(part(f"f{n}", b"") for n in range(40)) + b"--b--\r\n", FORM, 400),
        (part("purpose", b"loot") + part("file", b"x", '; filename="a"') + b"--b--\r\n", FORM, 400),
        (b"--b\r\n" + b"x-a: b\r\n" * 1000 + b"\r\n\r\n--b--\r\n", FORM, 400),
    ],
)
async def test_what_is_no_form_is_refused(tmp_path: Path, body: bytes, content_type: str, status: int) -> None:
    async with opened(tmp_path) as gate:
        found, told = await sent(gate.server.port, body, content_type)
        assert found == status and b'"error"' in told
    assert names_in(tmp_path / "files") == []


async def test_a_file_may_come_in_the_smallest_pieces(tmp_path: Path) -> None:
    body = part("purpose", b"batch") + part("file", b"\r\n--b\r--c\r\n", '; filename="a"') + b"--b--\r\n"

    async with opened(tmp_path) as gate, gate.client() as client:
        status, _ = await sent(gate.server.port, [body[at : at + 1] for at in range(len(body))], FORM)
        assert status == 200
        (made,) = [file async for file in client.files.list()]
        assert (await client.files.content(made.id)).content == b"\r\n--b\r--c\r\n"


async def test_large_files_go_through_the_disk_both_ways(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000
    async with opened(tmp_path) as gate, gate.client() as client:
        made = await client.files.create(file=("big", data), purpose="user_data")
        async with client.files.with_streaming_response.content(made.id) as answer:
            assert b"".join([piece async for piece in answer.iter_bytes()]) == data


async def test_a_client_that_leaves_during_an_upload_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as gate:
        _, writer = await asyncio.open_connection("127.0.0.1", gate.server.port)
        head = f"POST /v1/files HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ALICE}\r\n"
        writer.write(f"{head}content-type: {FORM}\r\ncontent-length: 1000000\r\n\r\n".encode())
        writer.write(part("purpose", b"batch") + b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"')
        writer.write(b"\r\n\r\n" + b"x" * 100_000)
        await writer.drain()
        await until(lambda: names_in(tmp_path / "files", ".incoming-*"))
        writer.transport.abort()
        await until(lambda: not names_in(tmp_path / "files") and not gate.gateway.under_way)
        assert gate.records[-1].status == 499


async def sent(port: int, body: bytes | list[bytes], content_type: str, *, ends: bool = True) -> tuple[int, bytes]:
    told_type = {"content-type": content_type}
    status, _, told = await wire(port, "POST", "/v1/files", body, headers=told_type, ends=ends)
    return status, told
