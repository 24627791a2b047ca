"""providers/vendors: names that stand before a model, as data."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, strategies as st

from fastllm.errors import ConfigError
from fastllm.providers.vendors import VENDORS, Vendor, register_vendor, split_model

ROWS = list(VENDORS.values())
TEXT = st.text(st.sampled_from("ab/:-. "), max_size=12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai/gpt-4o", ("openai", "gpt-4o")),
        ("openrouter/openai/gpt-4o", ("openrouter", "openai/gpt-4o")),
        ("groq:openai/gpt-oss-120b", ("groq", "openai/gpt-oss-120b")),
        ("ollama:llama3:8b", ("ollama", "llama3:8b")),
        ("ollama/llama3:8b", ("ollama", "llama3:8b")),
        ("meta-llama/Llama-3", (None, "meta-llama/Llama-3")),
        ("meta-llama/Llama-3:free", (None, "meta-llama/Llama-3:free")),
        ("ft:gpt-4o:acme::1", (None, "ft:gpt-4o:acme::1")),
        ("gpt-4o", (None, "gpt-4o")),
        ("openai", (None, "openai")),
        ("openai/", (None, "openai/")),
        ("/openai/x", (None, "/openai/x")),
        ("OpenAI/x", (None, "OpenAI/x")),
        ("vllm//models/x.gguf", ("vllm", "/models/x.gguf")),
        ("", (None, "")),
    ],
)
def test_only_a_registered_provider_is_split_off(name: str, expected: tuple[str | None, str]) -> None:
    assert split_model(name, VENDORS) == expected


@given(TEXT, st.sets(TEXT))
def test_splitting_loses_nothing(name: str, known: set[str]) -> None:
    provider, model = split_model(name, known)
    if provider is None:
        assert model == name
    else:
        assert provider in known and model
        assert name in (f"{provider}/{model}", f"{provider}:{model}")


@given(st.sampled_from(sorted(VENDORS)), st.sampled_from("/:"), st.text(min_size=1))
def test_a_known_provider_is_always_found_again(provider: str, mark: str, model: str) -> None:
    assert split_model(provider + mark + model, VENDORS) == (provider, model)


@pytest.mark.parametrize("vendor", ROWS, ids=lambda vendor: vendor.name)
def test_each_row_says_where_to_send_and_which_key_to_use(vendor: Vendor) -> None:
    assert VENDORS[vendor.name] is vendor
    assert vendor.name == vendor.name.lower() and "/" not in vendor.name and ":" not in vendor.name
    assert vendor.base_url or vendor.base_url_env
    url = urlsplit(vendor.base_url)
    if vendor.key_required:
        assert vendor.key_env
        assert not vendor.base_url or url.scheme == "https"  # a key never travels in the clear
    else:
        assert url.hostname == "localhost" and url.port
    assert not vendor.base_url.endswith("/")
    assert all(name.isupper() for name in vendor.key_env)


def test_the_vendors_that_were_promised_are_there() -> None:
    assert set(VENDORS) >= {
        "openai",
        "openrouter",
        "groq",
        "together",
        "fireworks",
        "deepseek",
        "mistral",
        "xai",
        "cerebras",
        "perplexity",
        "nvidia",
        "huggingface",
        "gemini",
        "anthropic",
        "cohere",
        "azure",
        "vllm",
        "sglang",
        "llamacpp",
        "lmstudio",
        "ollama",
        "anthropic-openai",
        "bedrock",
        "vertex",
    }
    ports = [vendor.base_url for vendor in ROWS if not vendor.key_required]
    assert len(ports) == len(set(ports))


def test_groq_counts_requests_by_the_day() -> None:
    assert VENDORS["groq"].limit_names == {"requests": "requests/day"}
    assert VENDORS["openai"].limit_names == {}


def test_a_vendor_of_ones_own(own_vendors: None) -> None:
    made = register_vendor("acme", base_url="https://llm.acme.example/v1", key_env="ACME_KEY", key_header="x-acme-key")
    assert VENDORS["acme"] is made and made.key_required and made.key_env == ("ACME_KEY",)
    assert register_vendor("acme", base_url=made.base_url, key_env="ACME_KEY", key_header="x-acme-key") == made
    assert not register_vendor("mine", base_url="http://localhost:9/v1").key_required
    with pytest.raises(ConfigError, match="'acme' is known already, at https://llm"):
        register_vendor("acme", base_url="https://other.example")
    assert register_vendor("acme", base_url="https://other.example", replace=True) is VENDORS["acme"]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("Acme", {}, "a vendor's name must be of a-z"),
        ("a/b", {}, "not 'a/b'"),
        ("local", {}, "not 'local'"),
        ("acme", {"base_url": "llm.acme.example"}, "base_url must begin with http:// or https://, not 'llm.acme"),
        ("acme", {"schemas": "all"}, r"Invalid enum value 'all' - at `\$.schemas`"),
        ("acme", {"key_env": "sk-123"}, "key_env must name environment variables"),
        ("acme", {"keyenv": "X"}, "unknown field `keyenv`; its fields are name, base_url"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, fields: dict[str, Any], message: str, own_vendors: None) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        register_vendor(name, **{"base_url": "https://a", **fields})
    assert "sk-123" not in str(caught.value)
