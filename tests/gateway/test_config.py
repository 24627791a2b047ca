"""gateway/config, setup and catalog: options with their origins, what is refused, and what is served by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from fastllm.cli import cli
from fastllm.errors import ConfigError, MissingKeyError
from fastllm.gateway.catalog import MOST_NAMES, Catalog, catalog_of
from fastllm.gateway.checks import check
from fastllm.gateway.config import ATTEMPTS, GatewayOptions, resolve, retry_of, timeout_of
from fastllm.gateway.setup import read
from fastllm.settings import load_settings, unknown_variables
from kits.gateway import KEY

FILE = """
model = "gpt-4o-mini"
rpm = 100

[gateway]
port = 4321
queue = 5
models = ["openai/*", "ours"]

[routes.ours]
endpoints = ["openai/gpt-4o-mini", {model = "m", base_url = "http://127.0.0.1:9/v1", api_key_env = "OURS"}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fastllm.toml").write_text(FILE)
    return tmp_path


def test_flags_win_over_the_environment_that_over_the_file_and_each_value_has_its_origin(folder: Path) -> None:
    environ = {"FASTLLM_GATEWAY_PORT": "5", "FASTLLM_GATEWAY_MODELS": "a, b", "FASTLLM_GATEWAY_INSECURE": "true"}
    settings = load_settings({}, environ=environ, directory=folder)
    found = resolve(settings, {"host": "::1"}, environ)
    options = found.options
    assert (options.host, options.port, options.queue, options.insecure) == ("::1", 5, 5.0, True)
    assert list(options.models) == ["a", "b"]
    origins = {name: value.origin for name, value in found.items() if value.origin != "default"}
    assert origins == {
        "host": "--host", "port": "FASTLLM_GATEWAY_PORT", "queue": str(folder / "fastllm.toml"),
        "models": "FASTLLM_GATEWAY_MODELS", "insecure": "FASTLLM_GATEWAY_INSECURE",
    }  # fmt: skip
    assert unknown_variables(environ | {"FASTLLM_MASTER_KEY": KEY}) == []


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"FASTLLM_GATEWAY_PROT": "1"}, "did you mean 'port'"),
        ({"FASTLLM_GATEWAY_PORT": "x"}, "FASTLLM_GATEWAY_PORT"),
        ({"FASTLLM_GATEWAY_PORT": "70000"}, "at most 65535"),
        ({"FASTLLM_GATEWAY_PORT": "-1"}, "FASTLLM_GATEWAY_PORT"),
        ({"FASTLLM_GATEWAY_QUEUE": "nan"}, "gateway.queue"),
        ({"FASTLLM_GATEWAY_QUEUE": "0"}, "more than 0"),
        ({"FASTLLM_GATEWAY_BODY_BYTES": "1"}, "gateway.body_bytes"),
        ({"FASTLLM_GATEWAY_MASTER_KEY_ENV": "sk-not-a-name"}, "name of a variable"),
        ({"FASTLLM_GATEWAY_MODELS": "a,,b"}, "gateway.models"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(environ: dict[str, str], says: str, tmp_path: Path) -> None:
    settings = load_settings({}, environ=environ, directory=tmp_path)
    with pytest.raises(ConfigError) as caught:
        resolve(settings, {}, environ)
    assert says in str(caught.value) and "sk-not" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gateway]\nprot = 1", "did you mean 'port'"),
        ("gateway = 3", "must be a table"),
        ("[gateway]\nmaster_key = 'sk-1'", "unknown option 'master_key'"),
        ("[gateway]\nmodels = 'x'", "models"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "fastllm.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        resolve(load_settings({}, environ={}, directory=tmp_path), {}, {})


@pytest.mark.fault("87")
@pytest.mark.parametrize(
    ("host", "key", "insecure", "opens"),
    [
        ("127.0.0.1", False, False, True),
        ("127.9.9.9", False, False, True),
        ("localhost", False, False, True),
        ("::1", False, False, True),
        ("0.0.0.0", False, False, False),
        ("::", False, False, False),
        ("10.0.0.1", False, False, False),
        ("example.test", False, False, False),
        ("127.0.0.1.example.test", False, False, False),
        ("0.0.0.0", True, False, True),
        ("0.0.0.0", False, True, True),
    ],
)
def test_nobody_is_served_beyond_this_machine_without_a_key(host: str, key: bool, insecure: bool, opens: bool) -> None:
    options = GatewayOptions(host=host, insecure=insecure)
    if opens:
        options.check_door(has_keys=key)
    else:
        with pytest.raises(ConfigError, match="FASTLLM_MASTER_KEY"):
            options.check_door(has_keys=key)


@pytest.mark.parametrize("key", ["short", "x" * 15, "has a space in it, long", "\u00fcmlaut-key-0123456789"])
def test_a_master_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GatewayOptions().master_key({"FASTLLM_MASTER_KEY": key})
    assert key not in str(caught.value)


def test_the_master_key_is_taken_from_the_variable_that_is_named() -> None:
    assert GatewayOptions().master_key({"FASTLLM_MASTER_KEY": f"{KEY}\n"}) == KEY
    assert GatewayOptions(master_key_env="OTHER").master_key({"OTHER": KEY, "FASTLLM_MASTER_KEY": "x"}) == KEY
    assert GatewayOptions().master_key({"FASTLLM_MASTER_KEY": ""}) is None


def test_a_gateway_tries_less_often_than_a_batch_and_bounds_the_wait_in_the_queue(tmp_path: Path) -> None:
    options = GatewayOptions(queue=7.0)
    settings = load_settings({}, environ={}, directory=tmp_path)
    retry = retry_of(settings, options)
    assert (retry.attempts, retry.cap, retry.retry_after_cap) == (ATTEMPTS, 8.0, 7.0)
    assert timeout_of(settings, options).queue == 7.0
    given = load_settings({"max_retries": "5", "timeout": "20"}, environ={}, directory=tmp_path)
    assert retry_of(given, options).attempts == 6
    assert timeout_of(given, options).total == 20.0


def names(tmp_path: Path, environ: dict[str, str], **flags: Any) -> tuple[str, ...]:
    settings = load_settings(flags, environ=environ, directory=tmp_path)
    return catalog_of(settings, resolve(settings, {}, environ).options, environ).names


def test_only_what_is_named_or_has_a_key_is_served(tmp_path: Path, folder: Path) -> None:
    assert names(folder, {}) == ("ours", "gpt-4o-mini", "openai/*")
    (tmp_path / "fastllm.toml").unlink()
    assert names(tmp_path, {}) == ()
    assert names(tmp_path, {}, model="local/smollm2") == ("local/smollm2",)
    catalog = Catalog(names(tmp_path, {"GROQ_API_KEY": "k"}))
    assert catalog.serves("groq/llama") and catalog.serves("groq:llama")
    for other in ("openai/gpt-4o", "gpt-4o", "ollama/x", "vllm/x", "local/smollm2", ""):
        assert not catalog.serves(other), other
    openai = Catalog(names(tmp_path, {"OPENAI_API_KEY": "k"}))
    assert openai.serves("gpt-4o") and openai.serves("openai/anything") and not openai.serves("anthropic/x")
    assert Catalog(names(tmp_path, {}, base_url="http://h/v1")).serves("anything")


def test_clients_cannot_make_up_names_without_end() -> None:
    catalog = Catalog(("x/*", "own"))
    assert all(catalog.serves(f"x/{number}") for number in range(MOST_NAMES))
    assert not catalog.serves("x/one-more")
    assert catalog.serves("x/1") and catalog.serves("own")


async def test_a_check_makes_every_endpoint_and_names_what_is_missing(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("OURS", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    setup = read({}, {"OPENAI_API_KEY": "k", "FASTLLM_MASTER_KEY": KEY}, folder)
    assert KEY not in repr(setup)
    with pytest.raises(ConfigError, match=r"routes\.ours.*OURS"):
        await check(setup)
    monkeypatch.setenv("OURS", "key-of-ours")
    assert await check(setup) == [
        "ours -> openai/gpt-4o-mini, m at 127.0.0.1:9 (OURS)", "gpt-4o-mini -> openai/gpt-4o-mini",
    ]  # fmt: skip
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises((ConfigError, MissingKeyError), match="OPENAI_API_KEY"):
        await check(setup)


def test_the_options_are_shown_with_their_origins(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTLLM_GATEWAY_QUEUE", "7")
    shown = CliRunner().invoke(cli, ["config", "show", "--json"]).output
    found = msgspec.json.decode(shown)
    assert found["gateway.queue"] == {"value": 7.0, "origin": "FASTLLM_GATEWAY_QUEUE"}
    assert found["gateway.port"] == {"value": 4000, "origin": "default"}
