"""Catalog: which models the gateway serves, and how it lists them.

A client's model string would otherwise choose a provider, an address or a file of the gateway's machine: only what is
named here is served. A name with a * is a pattern, which is served and not listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import msgspec

from ..build import known_providers
from ..providers.vendors import LOCAL, VENDORS, is_local, split_model
from ..settings import Settings
from .auth import Tenant
from .config import GatewayOptions

CREATED = 1_750_000_000  # nobody knows when a model was made; clients want a number
OPENAI_MODELS = ("gpt-*", "o1*", "o3*", "o4*", "text-embedding-*", "omni-moderation-*")
MOST_NAMES = 10_000  # of models that match a pattern: each has an endpoint of its own


class Catalog:
    """`names` are models, or patterns; `default` is asked where a request names none."""

    def __init__(self, names: Iterable[str] = ("*",), default: str = "") -> None:
        names = list(dict.fromkeys([*names, *([default] if default else [])]))
        self.default = default
        self._names = {name: None for name in names if "*" not in name}
        self._patterns = tuple(name for name in names if "*" in name)
        self._matched: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Models and patterns, in their order."""
        return (*self._names, *self._patterns)

    @property
    def models(self) -> tuple[str, ...]:
        """Models that are named, in their order, without patterns."""
        return tuple(self._names)

    def names_model(self, model: str) -> bool:
        """Tell whether this model is named itself."""
        return model in self._names

    def serves(self, model: str) -> bool:
        """Tell whether this model may be asked for at all."""
        if model in self._names or model in self._matched:
            return True
        if len(self._matched) >= MOST_NAMES or not any(fnmatchcase(model, name) for name in self._patterns):
            return False
        if is_local(model) and _is_file(model):
            return False
        self._matched.add(model)
        return True

    def listed(self, tenant: Tenant) -> bytes:
        """Give the list of models that this tenant may ask for, as JSON."""
        data = [_entry(name) for name in self._names if tenant.may_ask(name)]
        return msgspec.json.encode({"object": "list", "data": data, "has_more": False})

    def entry(self, model: str) -> bytes:
        return msgspec.json.encode(_entry(model))

    def __repr__(self) -> str:
        return f"<Catalog {', '.join(self.names)}>"


def _is_file(model: str) -> bool:
    """A model of this machine that is named by its path is served only where that very name is listed."""
    rest = model[len("local/") :]
    return "/" in rest or "\\" in rest or rest.startswith((".", "~")) or rest.endswith(".gguf")


def _entry(name: str) -> dict[str, object]:
    provider = split_model(name, known_providers())[0] or "fastllm"
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "created": CREATED,
        "created_at": "2025-06-15T15:06:40Z",
        "display_name": name,
        "owned_by": provider,
    }


def catalog_of(settings: Settings, options: GatewayOptions, environ: Mapping[str, str] = os.environ) -> Catalog:
    """Give what is served: what the options name, or else the routes, the model of the settings and everything of the
    providers whose keys are set; behind a base_url, everything."""
    default = settings["model"] or ""
    if options.models:
        return Catalog([*settings.routes, *options.models], default)
    if settings["base_url"] is not None or environ.get("OPENAI_BASE_URL"):
        return Catalog([*settings.routes, "*"], default)
    keyed = [name for name, vendor in VENDORS.items() if any(environ.get(key) for key in vendor.key_env)]
    patterns = [pattern for name in keyed if name != LOCAL for pattern in (f"{name}/*", f"{name}:*")]
    if "openai" in keyed:  # whose models may go without its name
        patterns += OPENAI_MODELS
    return Catalog([*settings.routes, *patterns], default)
