"""settings: one value each, from flag, environment, file or default, and it says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastllm.errors import ConfigError
from fastllm.options import Limits, Retry, Timeout, Upstream
from fastllm.providers.vendors import VENDORS
from fastllm.settings import SETTINGS, Settings, load_settings, unknown_variables


def load(tmp_path: Path, toml: str = "", environ: dict[str, str] | None = None, **flags: str) -> Settings:
    (tmp_path / "fastllm.toml").write_text(toml)
    return load_settings(flags, environ=environ or {}, directory=tmp_path)


def test_a_flag_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default(tmp_path: Path) -> None:
    toml = "rpm = 1\ntpm = 2\nconcurrency = 3\n"
    environ = {"FASTLLM_RPM": "10", "FASTLLM_TPM": "20"}
    settings = load(tmp_path, toml, environ, rpm="100")
    assert [settings[name] for name in ("rpm", "tpm", "concurrency", "timeout")] == [100, 20, 3, 600]
    assert [settings.origin(name) for name in ("rpm", "tpm", "timeout")] == ["--rpm", "FASTLLM_TPM", "default"]
    assert settings.origin("concurrency").endswith("fastllm.toml")
    assert settings.limits() == Limits(concurrency=3, rpm=100, tpm=20)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rpm": "nan"}, r"--rpm must be a number, not 'nan'"),
        ({"concurrency": "2.5"}, r"--concurrency must be a whole number, not '2.5'"),
        ({"concurrency": "many"}, r"--concurrency must be a whole number, not 'many'"),
        ({"cache": "redis"}, r"--cache must be one of off, memory, disk; not 'redis'"),
        ({"progress": "loud"}, r"--progress must be one of"),
    ],
)
def test_a_bad_value_is_named_with_its_place_and_what_would_be_right(
    tmp_path: Path, flags: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **flags)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("conurrency = 3", r"unknown setting 'conurrency' in .*fastllm.toml; did you mean 'concurrency'\?"),
        ("rpm = 'x'", r"rpm in .*fastllm.toml must be a number, not 'x'"),
        ("rpm = true", r"must be a number, not True"),
        ("model = 5", r"must be text, not 5"),
        ("rpm =", r"cannot read .*fastllm.toml"),
    ],
)
def test_a_bad_file_is_named_with_the_line_that_is_wrong(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, toml)


def test_a_named_file_must_exist_and_the_usual_one_need_not(tmp_path: Path) -> None:
    assert load_settings({}, environ={}, directory=tmp_path)["rpm"] is None
    with pytest.raises(ConfigError, match="which does not exist"):
        load_settings({}, environ={"FASTLLM_CONFIG": str(tmp_path / "none.toml")})


def test_a_key_is_read_from_the_variable_that_was_named(tmp_path: Path) -> None:
    settings = load(tmp_path, api_key_env="MY_KEY")
    assert settings.api_key({"MY_KEY": "s3cret"}) == "s3cret"
    with pytest.raises(ConfigError, match="MY_KEY"):
        settings.api_key({})
    assert load(tmp_path).api_key({}) is None
    assert "s3cret" not in repr(settings) and "api_key_env" in repr(settings)


def test_settings_become_options(tmp_path: Path) -> None:
    settings = load(tmp_path, max_retries="2", timeout="30", cache="disk", ttl="60", cache_dir="/x")
    assert settings.retry() == Retry(attempts=3, patient=False)
    assert settings.timeout() == Timeout.of(30.0)
    assert settings.cache().mode == "disk" and settings.cache().ttl == 60 and settings.cache().directory == "/x"
    plain = load(tmp_path)
    assert (plain.retry(), plain.timeout()) == (Retry(), Timeout())
    with pytest.raises(ConfigError, match="--max-retries must be"):
        load(tmp_path, max_retries="-1").retry()
    with pytest.raises(ConfigError, match=r"--rpm must be .* not -5"):
        load(tmp_path, rpm="-5").limits()


def test_hedging_is_asked_for_everywhere_by_the_same_name(tmp_path: Path) -> None:
    assert load(tmp_path, hedge="0.98").retry() == Retry(hedge=0.98)
    assert load(tmp_path, hedge="0.9", max_retries="2").retry() == Retry(attempts=3, patient=False, hedge=0.9)
    assert load_settings({}, environ={"FASTLLM_HEDGE": "0.95"}, directory=tmp_path).retry().hedge == 0.95
    (tmp_path / "fastllm.toml").write_text("hedge = 0.97\n")
    assert load_settings({}, environ={}, directory=tmp_path).retry().hedge == 0.97
    with pytest.raises(ConfigError, match=r"--hedge must be a quantile between 0 and 1, .* not 95"):
        load(tmp_path, hedge="95").retry()


def test_the_defaults_are_the_options_own() -> None:
    assert SETTINGS["concurrency"].default == Limits().concurrency
    assert SETTINGS["timeout"].default == Timeout().total


def test_no_password_of_an_address_shows() -> None:
    found = load_settings({"base_url": "https://me:hunter2@host/v1?key=hunter3"}, environ={})
    assert "https://host/v1" in repr(found)
    assert "hunter" not in repr(found)
    assert found["base_url"] == "https://me:hunter2@host/v1?key=hunter3"


@pytest.mark.parametrize("name", ["model", "system", "prompt", "base_url"])
def test_bytes_that_are_no_text_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be text in UTF-8"):
        load_settings({name: "caf\udce9"}, environ={})
    assert load_settings({"summary_json": "caf\udce9"}, environ={})["summary_json"] == "caf\udce9"


@pytest.mark.parametrize("number", ["1e30", "9007199254740993000", "-1e300"])
def test_whole_numbers_have_a_bound(number: str) -> None:
    with pytest.raises(ConfigError, match="--max-tokens must be a whole number"):
        load_settings({"max_tokens": number}, environ={})


def test_what_an_option_refuses_is_named_as_it_was_written(tmp_path: Path) -> None:
    for toml, environ, flags, message in (
        ("", {}, {"rpm": "-5"}, r"^--rpm must be .* not -5$"),
        ("", {"FASTLLM_TPM": "0"}, {}, r"^FASTLLM_TPM must be "),
        ("concurrency = -1", {}, {}, r"^concurrency in .*fastllm.toml must be "),
    ):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, toml, environ, **flags).limits()  # type: ignore[attr-defined]


def test_variables_that_are_no_setting_are_named() -> None:
    environ = {
        "FASTLLM_CONCURENCY": "3",
        "FASTLLM_RPM": "3",
        "FASTLLM_CONFIG": "x",
        "FASTLLM_DRY_RUN": "1",
        "PATH": "y",
    }
    assert unknown_variables(environ) == ["FASTLLM_CONCURENCY (did you mean FASTLLM_CONCURRENCY?)"]


def test_routes_and_vendors_stand_in_the_file_as_tables(tmp_path: Path, own_vendors: None) -> None:
    toml = """
model = "chat"
[routes.chat]
endpoints = ["openai/gpt-4o-mini", { model = "acme/big", api_key_env = "SECOND", weight = 2, limits = { rpm = 9 } }]
fallbacks = ["anthropic/claude-haiku-4-5"]
on = ["outage", "context_length"]
sticky = true
[vendors.acme]
base_url = "https://llm.acme.example/v1"
key_env = "ACME_KEY"
params = { max_completion_tokens = "max_tokens" }
"""
    settings = load(tmp_path, toml)
    route = settings.routes["chat"]
    assert route.endpoints == (
        Upstream(model="openai/gpt-4o-mini"),
        Upstream(model="acme/big", api_key_env="SECOND", weight=2, limits=Limits(rpm=9)),
    )
    assert route.fallbacks == (Upstream(model="anthropic/claude-haiku-4-5"),)
    assert route.sticky and route.on == ("outage", "context_length")
    assert VENDORS["acme"] is settings.vendors[0]
    assert VENDORS["acme"].key_env == ("ACME_KEY",) and VENDORS["acme"].key_required


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[routs.chat]\nendpoints = ['a']", r"unknown setting 'routs' in .*; did you mean 'routes'\?"),
        ("[routes.chat]", r"routes.chat in .*route.endpoints must name at least one model"),
        ("[routes.chat]\nendpoints = 'a'", r"routes.chat in .*: endpoints must be a list of model names or tables"),
        ("[routes.chat]\nendpoints = [5]", r"routes.chat in .*Expected .*`, got `int` - at `\$.endpoints\[0\]`"),
        ("[routes.chat]\nendpoint = ['a']", r"unknown field `endpoint`.*; did you mean 'endpoints'\?"),
        ("[routes.chat]\nendpoints = [{model = 'a', wieght = 2}]", r"did you mean 'weight'\?"),
        (
            "[routes.chat]\nendpoints = [{model = 'a', weight = -1}]",
            r"upstream.weight must be .* greater than 0, not -1",
        ),
        ("[routes.chat]\nendpoints = [{model = 'a', limits = {rmp = 1}}]", r"unknown field `rmp`.*did you mean 'rpm'"),
        ("[routes.chat]\nendpoints = [{model = 'a', api_key = 'sk-1'}]", r"must not hold keys; api_key_env names"),
        ("[routes.chat]\nendpoints = ['a']\non = ['outrage']", r"route.on|Invalid enum value 'outrage'"),
        ("routes = 5", r"routes in .* must be tables: \[routes.NAME\]"),
        ("[vendors.acme]", r"vendors.acme in .*base_url must begin with http"),
        ("[vendors.Acme]\nbase_url = 'https://a'", r"a vendor's name must be of a-z"),
        ("[vendors.local]\nbase_url = 'https://a'", r"not 'local'"),
        (
            "[vendors.acme]\nbase_url = 'https://a'\nkeyenv = 'A'",
            r"unknown field `keyenv`; its fields are name, base_url",
        ),
        (
            "[vendors.acme]\nbase_url = 'https://a'\nkey_env = 'sk-123'",
            r"key_env must name environment variables \(not",
        ),
    ],
)
def test_a_bad_table_is_named_with_what_would_be_right(
    tmp_path: Path, own_vendors: None, toml: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, toml)
    assert "sk-1" not in str(caught.value)
