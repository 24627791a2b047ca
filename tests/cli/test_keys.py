"""`fastllm keys` and `fastllm usage`: what people do with keys, and see of what was used."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastllm.cli import cli
from fastllm.errors import ConfigError
from fastllm.gateway.keys import KeyStore
from fastllm.gateway.tenants import Tenants
from fastllm.gateway.usage import UsageLog, UsageRecord
from kits.commands import settle


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle(tmp_path, monkeypatch, "http://localhost:1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "fastllm" / "gateway.sqlite3"


def fastllm(*args: str) -> Result:
    found = CliRunner().invoke(cli, args)
    if isinstance(found.exception, ConfigError):
        raise found.exception
    return found


def made(*args: str) -> str:
    return fastllm("keys", "create", *args).stdout.strip()


def test_a_key_is_made_listed_rotated_and_revoked(state: Path) -> None:
    secret = made("team-a", "--models", "gpt-4o*, local/*", "--rpm", "60", "--parallel", "4", "--budget-day", "5")
    store = KeyStore(state)
    key = store.find(secret)
    assert key is not None and (key.models, key.rpm, key.parallel) == (("gpt-4o*", "local/*"), 60, 4)
    head, line = fastllm("keys", "list").stdout.splitlines()
    assert line.split()[:3] == [key.id, "team-a", f"…{secret[-4:]}"] and "$0.00 of $5.00" in line
    assert secret[11:-4] not in head + line
    other = fastllm("keys", "rotate", "team-a", "--grace", "1h").stdout.strip()
    store.refresh()
    assert store.find(secret) == store.find(other) != None  # noqa: E711
    assert fastllm("keys", "revoke", key.id).stdout == f"{key.id} (team-a) is revoked\n"
    store.refresh()
    assert store.find(other) is None
    assert len(fastllm("keys", "list").stdout.splitlines()) == 1
    assert fastllm("keys", "list", "--all").stdout.splitlines()[1].endswith("revoked")
    store.close()


def test_json_for_programs() -> None:
    found = json.loads(fastllm("keys", "create", "team-a", "--tpm", "1000", "--expires", "30d", "--json").stdout)
    assert found["secret"].startswith("sk-fastllm-") and found["tpm"] == 1000
    assert abs(found["expires"] - time.time() - 30 * 86400) < 60
    (listed,) = json.loads(fastllm("keys", "list", "--json").stdout)
    assert (listed["id"], listed["state"], listed["spent_day"]) == (
        found["id"],
        "valid",
        None,
    ) and "secret" not in listed


def test_what_a_key_spent_is_listed(state: Path) -> None:
    secret = made("team-a", "--budget-day", "5", "--budget-month", "50", "--expires", "2999-01-01")
    store, tenants = KeyStore(state), Tenants(state)
    key = store.find(secret)
    assert key is not None
    tenants.admit(key, 1, 0.5).settle(1, 0.25)
    tenants.close()
    store.close()
    line = fastllm("keys", "list").stdout.splitlines()[1]
    assert "$0.25 of $5.00" in line and "$0.25 of $50.00" in line and line.endswith("2999-01-01 00:00")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["create", ""], "key.name"),
        (["create", "a", "--budget-day", "nan"], "key.budget_day must be a number of US dollars"),
        (["create", "a", "--budget-month", "inf"], "key.budget_month"),
        (["create", "a", "--rpm", "0"], "key.rpm"),
        (["create", "a", "--models", ""], "key.models"),
        (["create", "a", "--expires", "soon"], "--expires must be a time such as 30d"),
        (["create", "a", "--expires", "2020-01-01"], "in the future"),
        (["rotate", "nobody"], "there is no key 'nobody'"),
        (["rotate", "nobody", "--grace", "-5"], "--grace must be a time such as 10m"),
        (["revoke", "nobody"], "`fastllm keys list` shows all"),
        (["list", "--db", "/dev/null/x"], "--db names another"),
    ],
)
def test_what_cannot_be_is_said(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fastllm("keys", *args)
    assert message in str(caught.value)


def test_usage_by_key_and_model_and_as_json(state: Path, tmp_path: Path) -> None:
    assert "nothing was used yet" in fastllm("usage").stdout and not state.exists()
    made("team-a", "--db", str(tmp_path / "other.sqlite3"))
    store = KeyStore(tmp_path / "other.sqlite3")
    log = UsageLog(tmp_path / "other.sqlite3")
    for model, cost in (("gpt-4o", 0.5), ("gpt-4o", None), ("local/smollm2", 0.0)):
        log.add(
            UsageRecord(key=store.list()[0].id, model=model, endpoint="e", prompt_tokens=1000, cost_usd=cost, seconds=1)
        )
    log.add(UsageRecord(key="key-gone", model="gpt-4o", time=0.0))
    log.close()
    table = fastllm("usage", "--db", str(tmp_path / "other.sqlite3"), "--by", "key,model", "--since", "7d").stdout
    lines = [line.split() for line in table.splitlines()]
    assert lines[0][:4] == ["key", "model", "requests", "errors"]
    assert lines[1] == ["team-a", "gpt-4o", "2", "0", "0", "2,000", "0", "$0.50", "+", "?", "1.00", "s"]
    assert len(lines) == 3
    rows = json.loads(fastllm("usage", "--db", str(tmp_path / "other.sqlite3"), "--by", "day,key", "--json").stdout)
    assert (rows[0]["day"], rows[0]["key_name"], rows[0]["requests"]) == ("1970-01-01", None, 1)
    assert rows[1]["cost_usd"] == 0.5 and "model" not in rows[1]
    for wrong in (["--by", "prompt"], ["--since", "yesterday"]):
        with pytest.raises(ConfigError):
            fastllm("usage", "--db", str(tmp_path / "other.sqlite3"), *wrong)
    store.close()
