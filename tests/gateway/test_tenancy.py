"""Tenancy: the file of keys and usage behind the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastllm.answers import Usage
from fastllm.errors import PermissionDeniedError, RateLimitError
from fastllm.gateway.auth import MasterKey, StoredKeys
from fastllm.gateway.catalog import Catalog
from fastllm.gateway.record import Record
from fastllm.gateway.tenancy import Tenancy
from fastllm.testing import MockConfig
from kits.gateway import BODY, served


@pytest.fixture
def tenancy(tmp_path: Path) -> Iterator[Tenancy]:
    made = Tenancy(tmp_path / "gateway.db")
    yield made
    made.close()


def test_without_any_key_everybody_gets_in(tenancy: Tenancy) -> None:
    assert tenancy.keys(None) is None
    assert tenancy.keys(MasterKey("sk-master-0123456789")) is not None


def test_a_key_of_the_file_is_a_tenant_with_limits(tenancy: Tenancy) -> None:
    key, secret = tenancy.store.create("team", rpm=2)
    keys = tenancy.keys(None)
    assert isinstance(keys, StoredKeys)
    tenant = keys.check(secret)
    assert tenant is not None and tenant.id == key.id and keys.check("sk-other") is None
    again = keys.tenant(key.id)
    assert again is not None and again.key == tenant.key
    for _ in range(2):
        admitted = tenancy.admit(tenant.key, 10.0, None)
        admitted.settle(Usage(1, 2, 3), 0.0)
        admitted.release()
    with pytest.raises(RateLimitError):
        tenancy.admit(tenant.key, 10.0, None)
    tenancy.store.revoke(key.id)
    assert keys.check(secret) is None and keys.tenant(key.id) is None
    with pytest.raises(PermissionDeniedError, match="revoked"):  # whoever asked before: a batch, say
        tenancy.admit(tenant.key, 10.0, None)


def test_what_was_asked_is_written_down(tenancy: Tenancy) -> None:
    record = Record(
        at=1_790_000_000.0, request_id="r", method="POST", route="/chat/completions", status=200, seconds=0.5
    )
    record.model, record.tenant, record.usage, record.attempts, record.cost = "m", "k", Usage(3, 4, 7), 1, 0.25
    tenancy.add(record)
    tenancy.add(Record(at=1_790_000_000.0, request_id="x", method="GET", route="/models", status=200, seconds=0.1))
    (row,) = tenancy.usage.query(by=["key", "model"])
    assert (row.key, row.model, row.requests, row.prompt_tokens, row.completion_tokens) == ("k", "m", 1, 3, 4)
    assert row.cost_usd == 0.25


async def test_names_that_clients_make_up_are_no_rows_of_their_own(tenancy: Tenancy) -> None:
    async with served(MockConfig(), catalog=Catalog(["m", "x-*"]), listeners=[tenancy.add]) as gate:
        tenancy.watch(gate.gateway)
        assert (await gate.ask(body={**BODY, "model": "x-1"})).status == 200
        for name in ("m", "x-1", *(f"x-made-up-{number}" for number in range(3))):
            gate.mock.script(["404"])
            assert (await gate.ask(body={**BODY, "model": name})).status == 404
        for number in range(30):
            assert (await gate.ask(body={**BODY, "model": f"made-up-{number}"})).status == 404
    rows = tenancy.usage.query(by=["model"])
    assert {row.model: (row.requests, row.errors) for row in rows} == {"other": (33, 33), "x-1": (2, 1), "m": (1, 1)}
    assert {row.endpoint for row in tenancy.usage.query(by=["endpoint"])} == {"", "other", "x-1", "m"}


@pytest.mark.parametrize("end", ["settle", "release"])
def test_a_place_is_free_again_once_a_request_has_ended_either_way(tenancy: Tenancy, end: str) -> None:
    key, _ = tenancy.store.create("team", parallel=1)
    for _ in range(3):
        admitted = tenancy.admit(key, 10.0, None)
        with pytest.raises(RateLimitError):
            tenancy.admit(key, 10.0, None)
        if end == "settle":
            admitted.settle(Usage(1, 2, 3), 0.0)
        else:
            admitted.release()
