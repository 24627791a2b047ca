"""Vendors as data: what a name before the / or : of a model string stands for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec

from ..errors import ConfigError
from ..types import Schemas

LOCAL = "local"  # a model of this process, which is no vendor's
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Vendor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a vendor answers, in which dialect, and which variables may hold its key and its address.

    `base_url` may hold variables in braces, such as {AWS_REGION}, or several to choose from: {A|B}. The key goes into
    the header `key_header`, by default as the dialect has it. `params` are parameters that the vendor calls otherwise,
    by the name that OpenAI gave them. `headers` go with every request. `limit_names` says what the vendor means by the
    usual rate-limit headers, where that is not the usual (`policy.headers.read_hints`). `schemas`: whether all its chat
    models take a JSON schema as `response_format`, or only the wish for JSON, or nothing of the kind. `responses`:
    whether it has OpenAI's Responses API; without it, such requests go through its chat. `embed_inputs` and
    `embed_tokens` are the most inputs and tokens of one embeddings request; 0: not known.
    """

    name: str
    base_url: str = ""
    key_env: tuple[str, ...] = ()
    dialect: str = "openai"
    key_required: bool = True
    base_url_env: str | None = None
    key_header: str | None = None
    params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    limit_names: Mapping[str, str] = {}
    schemas: Schemas = "json_schema"
    responses: bool = True
    embed_inputs: int = 0
    embed_tokens: int = 0
    prices: str = ""  # under which name its prices stand, where that is another


def _row(name: str, base_url: str, *key_env: str, **more: object) -> Vendor:
    return Vendor(name=name, base_url=base_url, key_env=key_env, **more)  # type: ignore[arg-type]


def _own(name: str, base_url: str, base_url_env: str, *, responses: bool = True) -> Vendor:
    """A server of one's own: it asks for a key only if it was started with one."""
    return Vendor(
        name=name,
        base_url=base_url,
        key_env=(f"{name.upper()}_API_KEY",),
        key_required=False,
        base_url_env=base_url_env,
        responses=responses,
    )


VENDORS: dict[str, Vendor] = {
    vendor.name: vendor
    for vendor in (
        _row(
            "openai",
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            base_url_env="OPENAI_BASE_URL",
            embed_inputs=2048,
            embed_tokens=300_000,
        ),
        _row(
            "anthropic",
            "https://api.anthropic.com",
            "ANTHROPIC_API_KEY",
            dialect="anthropic",
            base_url_env="ANTHROPIC_BASE_URL",
        ),
        _row(
            "anthropic-openai", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", prices="anthropic", responses=False
        ),
        _row(
            "azure",
            "https://{AZURE_OPENAI_RESOURCE}.openai.azure.com/openai/v1",
            "AZURE_OPENAI_API_KEY",
            base_url_env="AZURE_OPENAI_BASE_URL",
            key_header="api-key",
            embed_inputs=2048,
            embed_tokens=300_000,
        ),
        _row(
            "bedrock",
            "https://bedrock-mantle.{AWS_REGION|AWS_DEFAULT_REGION}.api.aws/v1",
            "AWS_BEARER_TOKEN_BEDROCK",
            base_url_env="AWS_BEDROCK_BASE_URL",
        ),
        _row("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY", responses=False),
        _row(
            "cohere",
            "https://api.cohere.ai/compatibility/v1",
            "COHERE_API_KEY",
            "CO_API_KEY",
            embed_inputs=96,
            responses=False,
        ),
        _row(
            "deepseek",
            "https://api.deepseek.com/v1",
            "DEEPSEEK_API_KEY",
            params={"max_completion_tokens": "max_tokens"},
            schemas="json_object",
        ),
        _row("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
        _row(
            "gemini",
            "https://generativelanguage.googleapis.com",
            "GEMINI_API_KEY",
            "GOOGLE_API_KEY",
            dialect="gemini",
            base_url_env="GEMINI_BASE_URL",
            embed_inputs=100,
        ),
        _row(
            "gemini-openai",
            "https://generativelanguage.googleapis.com/v1beta/openai",
            "GEMINI_API_KEY",
            "GOOGLE_API_KEY",
            prices="gemini",
            embed_inputs=100,
            responses=False,
        ),
        _row(
            "groq",
            "https://api.groq.com/openai/v1",
            "GROQ_API_KEY",
            limit_names={"requests": "requests/day"},
            schemas="json_object",  # schemas are for some of its models
        ),
        _row("huggingface", "https://router.huggingface.co/v1", "HF_TOKEN", "HUGGINGFACE_API_KEY"),
        _row(
            "mistral",
            "https://api.mistral.ai/v1",
            "MISTRAL_API_KEY",
            params={"max_completion_tokens": "max_tokens", "seed": "random_seed"},
            responses=False,
        ),
        _row("nvidia", "https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY"),
        _row("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
        _row("perplexity", "https://api.perplexity.ai", "PERPLEXITY_API_KEY", "PPLX_API_KEY"),
        _row(
            "together",
            "https://api.together.xyz/v1",
            "TOGETHER_API_KEY",
            limit_names={"requests/unknown": "requests/second"},
        ),
        _row(
            "vertex",
            "https://{GOOGLE_CLOUD_LOCATION}-aiplatform.googleapis.com/v1/projects/{GOOGLE_CLOUD_PROJECT}"
            "/locations/{GOOGLE_CLOUD_LOCATION}/endpoints/openapi",
            "VERTEX_ACCESS_TOKEN",
            base_url_env="VERTEX_BASE_URL",
            responses=False,
        ),
        _row("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
        # It answers Responses, but keeps none: "llama.cpp does not support 'previous_response_id'".
        _own("llamacpp", "http://localhost:8080/v1", "LLAMACPP_BASE_URL", responses=False),
        _own("lmstudio", "http://localhost:1234/v1", "LMSTUDIO_BASE_URL"),
        _own("ollama", "http://localhost:11434/v1", "OLLAMA_BASE_URL"),
        _own("sglang", "http://localhost:30000/v1", "SGLANG_BASE_URL"),
        _own("vllm", "http://localhost:8000/v1", "VLLM_BASE_URL"),
    )
}


BUILT_IN = frozenset(VENDORS)


def register_vendor(
    name: str,
    *,
    base_url: str,
    key_env: str | Sequence[str] = (),
    dialect: str = "openai",
    replace: bool = False,
    **more: object,
) -> Vendor:
    """Make a vendor known to this process, so that model="NAME/…" finds it; `more` are further fields of Vendor.

    With `key_env` a key is required unless `key_required=False`. ConfigError for a name that is taken (unless
    `replace`) or a field that cannot be.

        register_vendor("acme", base_url="https://llm.acme.example/v1", key_env="ACME_API_KEY")
    """
    names = [key_env] if isinstance(key_env, str) else key_env
    fields = {"key_required": bool(names), **more, "name": name, "base_url": base_url, "key_env": names}
    vendor = vendor_of({**fields, "dialect": dialect})
    if vendor.name in VENDORS and not replace and VENDORS[vendor.name] != vendor:
        raise ConfigError(f"vendor {name!r} is known already, at {VENDORS[name].base_url}; pass replace=True")
    VENDORS[vendor.name] = vendor
    return vendor


def vendor_of(fields: Mapping[str, object]) -> Vendor:
    """Read a vendor's row from plain values. ConfigError names the field."""
    name = fields.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == LOCAL:
        raise ConfigError(f"a vendor's name must be of a-z, 0-9, _ . and -, and not {LOCAL!r}; not {name!r}")
    try:
        vendor = msgspec.convert(fields, Vendor)
    except msgspec.ValidationError as error:
        raise ConfigError(f"vendor {name!r}: {error}; its fields are {', '.join(Vendor.__struct_fields__)}") from None
    if not vendor.base_url.startswith(("http://", "https://")):
        raise ConfigError(f"vendor {name!r}: base_url must begin with http:// or https://, not {vendor.base_url!r}")
    for variable in vendor.key_env:
        if not _VARIABLE.fullmatch(variable):
            raise ConfigError(f"vendor {name!r}: key_env must name environment variables (not shown: one may be a key)")
    return vendor


def is_local(model: str) -> bool:
    """Tell whether a model's name is that of one of this machine."""
    return model.startswith((f"{LOCAL}/", f"{LOCAL}:"))


def split_model(name: str, known: Collection[str]) -> tuple[str | None, str]:
    """Split "provider/model" or "provider:model" where the prefix is a known provider; else (None, name).

    "meta-llama/Llama-3" stays whole, "ollama:llama3:8b" is ("ollama", "llama3:8b").
    """
    ends = [i for i in (name.find("/"), name.find(":")) if i > 0]
    if ends:
        cut = min(ends)
        if name[:cut] in known and name[cut + 1 :]:
            return name[:cut], name[cut + 1 :]
    return None, name
