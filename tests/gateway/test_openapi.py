"""gateway.openapi: the document names what is served, and Schemathesis finds no answer that it does not allow."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from fastllm.gateway.app import _PLAIN, Route
from fastllm.gateway.openapi import OPERATIONS, document
from kits.beside import ALICE, opened, wire
from kits.gateway import served

SCHEMATHESIS = Path(__file__).parents[2] / ".venv-clients" / "bin" / "schemathesis"


def test_each_route_is_in_the_document() -> None:
    named = {(one.path.removeprefix("/v1"), one.method.upper()) for one in OPERATIONS}
    routes: dict[str, Route] = dict(_PLAIN)
    del routes["/metrics"]  # for the operator, and there only where it was opened
    assert {(path, route.method) for path, route in routes.items()} <= named


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
async def test_each_path_of_the_document_is_served(operation: Any, tmp_path: Path) -> None:
    async with opened(tmp_path) as gate:
        path = re.sub(r"\{\w+\}", "x", operation.path)
        key = None if operation.open else ALICE
        status, _, said = await wire(gate.server.port, operation.method.upper(), path, b"{}", key=key)
        assert status not in (401, 405), said
        assert status != 404 or json.loads(said)["error"]["code"] != "unknown_url"


def test_every_reference_leads_somewhere_and_ids_are_one_of_a_kind() -> None:
    found = json.loads(document())
    for name in re.findall(r'"#/components/schemas/(\w+)"', document().decode()):
        assert name in found["components"]["schemas"]
    ids = re.findall(r'"operationId":"(\w+)","responses"', document().decode())
    assert len(set(ids)) == len(ids) == len(OPERATIONS)


async def test_anybody_may_read_it() -> None:
    async with served(key="sk-master-0123456789") as gate:
        answer = await gate.get("/openapi.json")
        assert answer.status == 200 and answer.json()["openapi"] == "3.1.0"


async def test_schemathesis_finds_no_failure_and_nothing_it_does_not_allow(tmp_path: Path) -> None:
    """More than a thousand cases; `stress/schemathesis_run.py` asks a hundred thousand."""
    if not SCHEMATHESIS.exists():
        assert not os.environ.get("CI"), "run scripts/clients first"
        pytest.skip("run scripts/clients first")
    async with opened(tmp_path / "data", models=("m", "*")) as gate:
        child = await asyncio.create_subprocess_exec(
            SCHEMATHESIS, "run", f"{gate.server.origin}/openapi.json", "--header", f"Authorization: Bearer {ALICE}",
            "--max-examples", "5", "--seed", "1", "--exclude-checks", "positive_data_acceptance", "--warnings", "off",
            "--continue-on-failure", "--no-color", "--suppress-health-check", "all",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            out, _ = await asyncio.wait_for(child.communicate(), 300)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        assert child.returncode == 0, out.decode()[-5000:]
        assert [record for record in gate.records if record.status >= 500] == []
        assert len(gate.records) > 500
