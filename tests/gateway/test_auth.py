"""gateway: whose a request is: keys, what they open, and the door where there are none."""

from __future__ import annotations

from typing import Any

import pytest

from fastllm.gateway.auth import MasterKey, StoredKeys, Tenant
from fastllm.gateway.catalog import Catalog
from kits.gateway import BODY, CHAT, KEY, connection, served


class Tenants:
    """Knows one token for each of its tenants: its id."""

    def __init__(self, *tenants: Tenant, slow: bool = False) -> None:
        self._tenants = {tenant.id: tenant for tenant in tenants}
        self._slow = slow

    def check(self, token: str) -> Any:
        found = self._tenants.get(token)
        return self._later(found) if self._slow else found

    async def _later(self, found: Tenant | None) -> Tenant | None:
        return found


@pytest.mark.fault("93")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer  {KEY} "}, 200),
        ({"x_api_key": KEY}, 200),
        ({"api_key": KEY}, 200),
        ({}, 401),
        ({"authorization": KEY}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"authorization": "Bearer wrong", "x_api_key": KEY}, 401),
        ({"authorization": "Bearer \u00e9\u00e9"}, 401),
        ({"x_api_key": "x" * 20_000}, 401),
    ],
)
async def test_the_master_key_opens_however_it_is_sent_and_nothing_else_does(
    headers: dict[str, str], status: int
) -> None:
    async with served(key=KEY) as gate:
        answer = await gate.ask(**headers)
        assert answer.status == status
        assert KEY not in answer.body.decode()
        if status == 401:
            assert answer.json()["error"]["code"] in ("missing_api_key", "invalid_api_key")
            assert gate.mock.stats.requests == 0


async def test_two_keys_are_no_key() -> None:
    async with served(key=KEY) as gate, connection(gate.server.port) as wire:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nauthorization: Bearer x\r\n"
        await wire.send(head.encode() + b"content-length: 2\r\n\r\n{}")
        assert (await wire.answer()).status == 401


async def test_without_its_key_a_tenant_sees_only_that_the_gateway_lives() -> None:
    async with served(key=KEY, app={"mounts": {"/x": None}}) as gate:
        for path in ("/health", "/health/live", "/health/ready", "/v1/health"):
            assert (await gate.get(path)).status == 200
        for path in ("/v1/models", "/v1/models/m", "/metrics", "/nothing", "/x", "/x/y"):
            assert (await gate.get(path)).status == 401


@pytest.mark.parametrize("slow", [False, True])
async def test_a_key_asks_for_its_models_alone(slow: bool) -> None:
    keys = Tenants(Tenant(id="a", models=("cheap", "x/*")), Tenant(id="b"), slow=slow)
    async with served(keys=keys, catalog=Catalog(("cheap", "dear", "x/1"))) as gate:
        assert (await gate.ask(body={**BODY, "model": "cheap"}, x_api_key="a")).status == 200
        assert (await gate.ask(body={**BODY, "model": "x/1"}, x_api_key="a")).status == 200
        refused = await gate.ask(body={**BODY, "model": "dear"}, x_api_key="a")
        assert (refused.status, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        assert (await gate.ask(body={**BODY, "model": "dear"}, x_api_key="b")).status == 200
        listed = (await gate.get("/v1/models", x_api_key="a")).json()["data"]
        assert [entry["id"] for entry in listed] == ["cheap", "x/1"]
        assert (await gate.get("/v1/models/dear", x_api_key="a")).status == 404
        assert (await gate.ask("/openai/deployments/dear/chat/completions", x_api_key="a")).status == 403


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"dear","messages":[],"model":"cheap"}',
        b'{"model":"cheap","messages":[],"Model":"dear"}',
        b'{"model":"cheap","messages":[],"\\u006dodel":"dear"}',
        b'{"model":"dear","messages":[],"mod\\u0065l":"cheap"}',
    ],
)
async def test_a_model_that_readers_may_take_for_another_is_refused(body: bytes) -> None:
    async with served(keys=Tenants(Tenant(id="a", models=("cheap",)))) as gate:
        refused = await gate.ask(body=body, x_api_key="a")
        assert refused.status in (400, 403), refused.body
        assert gate.mock.stats.requests == 0
        nested = b'{"model":"cheap","messages":[{"role":"user","content":"\\u00e9","model":"dear"}]}'
        assert (await gate.ask(body=nested, x_api_key="a")).status == 200


@pytest.mark.fault("90")
async def test_a_tenants_answers_are_kept_for_itself_alone() -> None:
    keys = Tenants(Tenant(id="a", namespace="a"), Tenant(id="b", namespace="b"))
    async with served(keys=keys, engine={"cache": "memory"}) as gate:
        cached = [(await gate.ask(x_api_key=name)).headers["x-fastllm-cache"] for name in ("a", "b", "a", "b")]
        assert cached == ["miss", "miss", "hit", "hit"] and gate.mock.stats.requests == 2


async def test_stored_keys_are_looked_up_beside_the_master_key() -> None:
    class Key:
        id, models = "k1", ["m"]
        expires = None

    class Store:
        def find(self, secret: str) -> Any:
            return Key() if secret == "virtual" else None

    keys = StoredKeys(Store(), MasterKey(KEY, "ns"), "ns")
    found = keys.check("virtual")
    assert found is not None and (found.id, found.models, found.namespace) == ("k1", ["m"], "ns/k1")
    master = keys.check(KEY)
    assert master is not None and master.is_master and master.key is None and master.namespace == "ns"
    assert keys.check("other") is None
    assert KEY not in repr(keys) and KEY not in repr(MasterKey(KEY))


@pytest.mark.fault("87")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:4000"}, 200),
        ({"host": "[::1]:4000"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "evil.test"}, 403),
        ({"host": "localhost.evil.test"}, 403),
        ({"host": "127.0.0.1.evil.test:80"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.test"}, 403),
        ({"origin": "null"}, 403),
    ],
)
async def test_without_keys_no_page_of_a_browser_gets_in_under_another_name(
    headers: dict[str, str], status: int
) -> None:
    async with served() as gate, connection(gate.server.port) as wire:
        lines = {"host": "localhost", **headers}
        head = f"GET /v1/models HTTP/1.1\r\n{''.join(f'{k}: {v}' + chr(13) + chr(10) for k, v in lines.items())}\r\n"
        await wire.send(head.encode())
        assert (await wire.answer()).status == status


async def test_metrics_are_for_the_master_key() -> None:
    keys = Tenants(Tenant(id="a"), Tenant(id="root", is_master=True))
    async with served(keys=keys, app={"metrics": lambda accept: (b"up 1\n", "text/plain")}) as gate:
        assert (await gate.get("/metrics", x_api_key="a")).status == 403
        answer = await gate.get("/metrics", x_api_key="root")
        assert answer.body == b"up 1\n" and answer.headers["content-type"].startswith("text/plain")
    async with served() as gate:
        assert (await gate.get("/metrics")).status == 404


async def test_what_is_mounted_comes_after_the_door_and_is_told_the_tenant() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        body = f"{scope['path']} {scope['fastllm.tenant'].id}".encode()
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async with served(keys=Tenants(Tenant(id="a")), app={"mounts": {"/v1/files": page}}) as gate:
        assert (await gate.get("/v1/files/1")).status == 401
        answer = await gate.get("/v1/files/1", x_api_key="a")
        assert (answer.status, answer.body) == (201, b"/v1/files/1 a")
        assert (await gate.get("/v1/filesystem", x_api_key="a")).status == 404
        assert [record.status for record in gate.records] == [401, 201, 404]
