"""Flags derived from settings.SETTINGS, so that a setting is declared once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import msgspec

from ..build import known_providers
from ..errors import ConfigError, MissingKeyError
from ..settings import SETTINGS, Setting, Settings, load_settings, unknown_variables
from .say import say

# What an engine is made from, as flags: how requests are sent, and what is done about money and parameters.
SENDING = (
    "base_url",
    "api_key_env",
    "concurrency",
    "rpm",
    "tpm",
    "itpm",
    "otpm",
    "rpd",
    "tpd",
    "adaptive",
    "max_retries",
    "hedge",
    "timeout",
    "cache",
    "cache_dir",
    "ttl",
)
PAYING = ("budget", "prices", "unknown_price", "unsupported_params", "embeddings_per_request")

F = TypeVar("F", bound=Callable[..., Any])
_METAVARS = {int: "N", float: "N", str: "TEXT"}
_METAVAR_OF = {
    "model": "NAME",
    "base_url": "URL",
    "api_key_env": "VAR",
    "timeout": "S",
    "ttl": "S",
    "cache_dir": "DIR",
    "db": "FILE",
    "prompt": "TEMPLATE",
    "schema": "FILE",
    "summary_json": "FILE",
    "budget": "USD",
    "prices": "FILE",
    "config": "FILE",
}


def settings_of(flags: Mapping[str, Any]) -> Settings:
    """Resolve the settings; what looks like one in the environment and is none gets a warning."""
    unknown = unknown_variables(os.environ)
    if unknown:
        say(f"fastllm: warning: no setting is called {', '.join(unknown)}")
    return load_settings(flags)


def check_model(settings: Settings) -> None:
    """Raise ConfigError for a provider without a model."""
    model = settings["model"] or ""
    provider = model[:-1]
    if model[-1:] in ("/", ":") and provider in known_providers() and settings["base_url"] is None:
        raise ConfigError(f"{model!r} names a provider and no model: give --model {model}NAME")


@contextmanager
def local_hint(settings: Settings) -> Iterator[None]:
    """Whoever has no key and asks for the model that needs none gets its whole name."""
    try:
        yield
    except MissingKeyError as error:
        if settings["model"] != "smollm2":
            raise
        raise ConfigError(f"{error}; did you mean --model local/smollm2?") from None


def setting_options(*names: str, **helps: str) -> Callable[[F], F]:
    """Add the flags of these settings to a command; None in the parameters means "not said". `helps` has other words
    for what a setting means to this command."""

    def decorate(function: F) -> F:
        for name in reversed(names):
            setting = SETTINGS[name]
            function = _option(msgspec.structs.replace(setting, help=helps.get(name, setting.help)))(function)
        return function

    return decorate


def _option(setting: Setting) -> Callable[[F], F]:
    shown = (
        ""
        if setting.default is None
        else f" [default: {setting.default:g}]"
        if isinstance(setting.default, float)
        else f" [default: {setting.default}]"
    )
    return click.option(
        setting.flag,
        setting.name,
        # Read as text, so that flag, environment and file are checked by the same rule with the same message.
        type=click.STRING,
        metavar="|".join(setting.choices) or _METAVAR_OF.get(setting.name, _METAVARS[setting.kind]),
        help=setting.help + shown,
    )
