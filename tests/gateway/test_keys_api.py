"""Keys over HTTP: the master key alone makes, lists, rotates and revokes them; a secret is shown once."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastllm.gateway.auth import MasterKey, StoredKeys
from fastllm.gateway.keys import KeyStore
from fastllm.gateway.keys_api import KeysAPI
from fastllm.gateway.tenancy import Tenancy
from kits.gateway import KEY, Served, connection, served


class Client:
    """Somebody with the master key, or another one."""

    def __init__(self, gate: Served, tenancy: Tenancy) -> None:
        self.gate = gate
        self.tenancy = tenancy

    async def ask(self, method: str, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any]:
        given = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        async with connection(self.gate.server.port) as wire:
            answer = await wire.ask(method, path, given, authorization=f"Bearer {key}")
        return answer.status, answer.json()


@asynccontextmanager
async def keyed(folder: Path) -> AsyncIterator[Client]:
    tenancy = Tenancy(folder / "gateway.db")
    keys = StoredKeys(tenancy.store, MasterKey(KEY))
    try:
        async with served(keys=keys, app={"admissions": tenancy}) as gate:
            for prefix in ("", "/v1"):
                gate.gateway.mounts[f"{prefix}/keys"] = KeysAPI(tenancy.store, tenancy.tenants)
            yield Client(gate, tenancy)
    finally:
        tenancy.close()


async def test_a_key_is_made_used_rotated_and_revoked(tmp_path: Path) -> None:
    async with keyed(tmp_path) as client:
        status, made = await client.ask(
            "POST", "/v1/keys", {"name": "team", "models": ["m"], "rpm": 60, "budget_day": 5}
        )
        assert (status, made["object"], made["state"], made["rpm"], made["spent_day"]) == (200, "key", "valid", 60, 0)
        secret = made["secret"]
        assert (await client.ask("GET", "/v1/models", key=secret))[0] == 200

        status, found = await client.ask("GET", f"/keys/{made['id']}")
        assert status == 200 and found["tail"] == secret[-4:] and "secret" not in found
        assert (await client.ask("GET", "/keys/team"))[1] == found
        listed = (await client.ask("GET", "/keys"))[1]
        assert [key["id"] for key in listed["data"]] == [made["id"]] and secret not in json.dumps(listed)

        status, rotated = await client.ask("POST", f"/keys/{made['id']}/rotate")
        assert status == 200 and rotated["secret"] != secret
        assert (await client.ask("GET", "/v1/models", key=secret))[0] == 401
        status, again = await client.ask("POST", f"/keys/{made['id']}/rotate", {"grace": 60})
        for good in (rotated["secret"], again["secret"]):
            assert (await client.ask("GET", "/v1/models", key=good))[0] == 200

        status, revoked = await client.ask("POST", f"/keys/{made['id']}/revoke")
        assert (status, revoked["state"]) == (200, "revoked")
        assert (await client.ask("GET", "/v1/models", key=again["secret"]))[0] == 401
        assert (await client.ask("GET", "/keys"))[1]["data"] == []
        assert len((await client.ask("GET", "/keys?all=true"))[1]["data"]) == 1


async def test_nobody_but_the_master_key_gets_near_them(tmp_path: Path) -> None:
    async with keyed(tmp_path) as client:
        _, made = await client.ask("POST", "/keys", {"name": "team"})
        for method, path in (
            ("GET", "/keys"),
            ("POST", "/keys"),
            ("GET", f"/keys/{made['id']}"),
            ("POST", f"/keys/{made['id']}/revoke"),
            ("POST", f"/v1/keys/{made['id']}/rotate"),
        ):
            status, said = await client.ask(method, path, {"name": "mine"}, key=made["secret"])
            assert (status, said["error"]["code"]) == (403, "master_key_needed")
            assert (await client.ask(method, path, key="sk-wrong-key-0123456789"))[0] == 401


async def test_a_gateway_without_keys_makes_none_over_http(tmp_path: Path) -> None:
    tenancy = Tenancy(tmp_path / "gateway.db")
    try:
        async with served() as gate:
            gate.gateway.mounts["/keys"] = KeysAPI(tenancy.store, tenancy.tenants)
            answer = await gate.ask("/keys", {"name": "x"})
            assert answer.status == 403 and tenancy.store.list() == []
    finally:
        tenancy.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "key.name is missing"),
        ({"name": ""}, "key.name"),
        ({"name": "a", "rpm": 0}, "rpm must be"),
        ({"name": "a", "rpm": "60"}, "rpm must be"),
        ({"name": "a", "budget_day": -1}, "budget_day must be"),
        (b'{"name": "a", "budget_day": NaN}', "not a valid JSON object"),
        (b'{"name": "a", "budget_month": 1e999}', ""),
        ({"name": "a", "expires": 1}, "in the future"),
        ({"name": "a", "budget": 5}, "did you mean 'budget_day'?"),
        (["a"], "not a valid JSON object"),
        (b"\xff", "not a valid JSON object"),
    ],
)
async def test_what_cannot_be_is_refused_with_the_field_and_makes_no_key(tmp_path: Path, body: Any, words: str) -> None:
    async with keyed(tmp_path) as client:
        status, said = await client.ask("POST", "/keys", body)
        assert status == 400 and words in said["error"]["message"]
        assert client.tenancy.store.list() == []


async def test_a_key_that_is_not_there_and_other_paths(tmp_path: Path) -> None:
    async with keyed(tmp_path) as client:
        _, made = await client.ask("POST", "/keys", {"name": "team"})
        status, said = await client.ask("GET", "/keys/taem")
        assert status == 404 and "did you mean 'team'?" in said["error"]["message"]
        status, said = await client.ask("POST", f"/keys/{made['secret']}/revoke")
        assert status == 404 and made["secret"] not in json.dumps(said)
        for method, path in (("PUT", "/keys"), ("DELETE", "/keys/team"), ("GET", "/keys/team/revoke")):
            assert (await client.ask(method, path))[0] == 405
        assert (await client.ask("POST", "/keys/team/rotate/x"))[0] == 404
        assert (await client.ask("POST", "/keys/team/rotate", {"grace": -1}))[0] == 400
        assert (await client.ask("POST", "/keys/team/rotate", {"seconds": 1}))[0] == 400
        assert (await client.ask("POST", "/keys", {"name": "team"}))[0] == 400
        assert (await client.ask("GET", "/keys?all=yes"))[0] == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
        ("GET", "/metrics"),
        ("GET", "/v1/keys"),
        ("GET", "/v1/nothing"),
        ("POST", "/v1/responses/input_tokens"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/chat/completions"),
    ],
)
async def test_a_key_whose_time_is_over_opens_nothing(method: str, path: str, tmp_path: Path) -> None:
    async with keyed(tmp_path) as client:
        now = time.time()
        past = KeyStore(client.tenancy.database, wall=lambda: now - 3600)
        key, secret = past.create("old", expires=now - 10)
        past.close()
        client.tenancy.store.refresh()
        status, answer = await client.ask(method, path, {"model": "m"} if method == "POST" else None, secret)
        kind = {"type": "error"} if "/messages" in path else {}
        assert status == 403 and answer.items() >= kind.items()
        assert "is expired" in answer["error"]["message"] and answer["error"]["type"] == "permission_error"
        assert ("code" not in answer["error"]) if kind else (answer["error"]["code"] == "key_expired")
        (record,) = client.gate.records
        assert (record.tenant, record.error) == (key.id, "key_expired")
