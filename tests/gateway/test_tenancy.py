"""Tenancy: the file of keys and usage behind the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastllm.answers import Usage
from fastllm.errors import RateLimitError
from fastllm.gateway.auth import MasterKey, StoredKeys
from fastllm.gateway.record import Record
from fastllm.gateway.tenancy import Tenancy


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
