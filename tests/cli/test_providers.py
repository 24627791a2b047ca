"""`fastllm providers`: who can be asked, what is missing, and never a key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastllm.cli import cli
from fastllm.errors import ConfigError
from fastllm.providers.vendors import VENDORS

SECRET = "sk-this-is-never-shown"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_vendors: None) -> None:
    monkeypatch.chdir(tmp_path)
    for vendor in VENDORS.values():
        for name in (*vendor.key_env, vendor.base_url_env or "X", "AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)


def providers(*args: str) -> Result:
    return CliRunner().invoke(cli, ["providers", *args])


def test_each_has_a_line_with_its_key_and_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:{SECRET}@host/v1")
    found = providers().output
    lines = {words[words[0] == "✓"]: line for line in found.splitlines() if (words := line.split())}
    assert set(lines) == {"provider", "local", *VENDORS}
    assert "GROQ_API_KEY is set" in lines["groq"] and lines["groq"].startswith("✓")
    assert "$OPENAI_BASE_URL" in lines["openai"] and not lines["openai"].startswith("✓")
    assert "VLLM_API_KEY (if any)" in lines["vllm"]
    assert SECRET not in found


def test_ready_and_names_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", SECRET)
    (row,) = json.loads(providers("bedrock", "--json").output)["providers"]
    assert (row["needs"], row["ready"], row["key_set"]) == ("address", False, "AWS_BEARER_TOKEN_BEDROCK")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    (row,) = json.loads(providers("bedrock", "--json", "--ready").output)["providers"]
    assert row["base_url"] == "https://bedrock-mantle.eu-north-1.api.aws/v1"
    with pytest.raises(ConfigError, match="no provider is called like opnai"):
        raise providers("opnai").exception or AssertionError("it went well")


def test_what_the_file_adds_is_listed_too() -> None:
    Path("fastllm.toml").write_text(
        '[vendors.acme]\nbase_url = "https://llm.acme.example/v1"\n'
        '[routes.chat]\nendpoints = ["acme/a", "acme/b"]\nfallbacks = ["acme/c", "acme/d"]\n'
    )
    found = providers("acme").output.splitlines()
    assert found[1].split() == ["✓", "acme", "openai", "none", "needed", "https://llm.acme.example/v1"]
    assert found[2] == "route chat: acme/a, acme/b; then acme/c, then acme/d"
    assert "routes.chat" in CliRunner().invoke(cli, ["config", "show"]).output
