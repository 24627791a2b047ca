"""Checks: whether all that the settings name can be served, told before it is, and without asking anybody."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase

from .. import build
from ..engine.engine import Engine
from ..errors import ConfigError
from ..options import Upstream
from ..providers.vendors import LOCAL, is_local, split_model
from .beside import passed_through
from .catalog import OPENAI_MODELS
from .setup import Setup

WEIGHTS = "fastllm.local.llamacpp:weights_of"  # loaded where a model of this machine is named
# Names that OpenAI's models have beside those that are served without being named.
_MORE_OF_OPENAI = (
    "chatgpt-*", "codex-*", "computer-use-*", "ft:*", "davinci-*", "babbage-*", "text-*", "dall-e-*", "tts-*",
    "whisper-*", "sora-*",
)  # fmt: skip


async def check(setup: Setup, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Make every endpoint of what is named: routes, models, providers that are passed through to. Gives what is served,
    in words. ConfigError names what is wrong."""
    setup.options.check_door(has_keys=setup.keys is not None)
    if setup.engine.prices is not None:
        build.price_table(setup.engine.prices)  # should no endpoint need it yet
    _check_names(setup, environ)
    passed = passed_through(setup.options, setup.engine, environ)
    engine = build.engine(setup.engine)
    try:
        lines = [*await _routes(setup, engine), *await _models(setup, engine)]
        for name in passed:
            try:
                build.provider_endpoint(name, engine, setup.engine)
            except ConfigError as error:
                raise ConfigError(f"gateway.passthrough: {error}") from None
            lines.append(f"/{name} -> all of {name}'s API, passed through")
    finally:
        await engine.aclose()
    if not (passed or setup.catalog.names):
        raise ConfigError(
            "there is nothing to serve: give --model, set the key of a provider (`fastllm providers` lists them), or "
            "write [routes.NAME] into fastllm.toml"
        )
    return lines


def check_shared(setup: Setup) -> None:
    """Raise ConfigError for what several processes cannot serve: a model that would be loaded in each of them."""
    named = [setup.catalog.default, *setup.catalog.names]
    for route in setup.settings.routes.values():
        named += [upstream.model for upstreams in route.tiers for upstream in upstreams]
    for model in named:
        if is_local(model):
            raise ConfigError(f"{model} is loaded by one process: leave out --workers, or serve it by a process apart")


async def _routes(setup: Setup, engine: Engine) -> list[str]:
    lines = []
    for name, route in setup.settings.routes.items():
        tiers = engine.router.route(name)
        assert tiers is not None
        names: list[str] = []
        try:
            for index, upstreams in enumerate(route.tiers):
                local = [upstream.model for upstream in upstreams if is_local(upstream.model)]
                if setup.engine.base_url is None and local:
                    names += _found(upstreams)
                    continue
                names += [member.endpoint.name for member in (await tiers.tier(index)).members]
        except ConfigError as error:
            raise ConfigError(f"routes.{name}: {error}") from None
        lines.append(f"{name} -> {', '.join(names)}")
    return lines


def _found(upstreams: tuple[Upstream, ...]) -> list[str]:
    """Look for the models of this machine, which are not started."""
    names = [upstream.model for upstream in upstreams]
    for model in names:
        if is_local(model):
            build.load(WEIGHTS)(model[len(LOCAL) + 1 :])
    return names


async def _models(setup: Setup, engine: Engine) -> list[str]:
    """Make the endpoints of models that are named themselves."""
    lines = []
    for model in setup.catalog.models:
        if model in setup.settings.routes:
            continue
        if setup.engine.base_url is None and is_local(model):
            build.load(WEIGHTS)(model[len(LOCAL) + 1 :])
            lines.append(f"{model} -> {model}")
        else:
            lines.append(f"{model} -> {(await engine.router.resolve(model)).name}")
    return lines


def _check_names(setup: Setup, environ: Mapping[str, str]) -> None:
    """Raise ConfigError for a name in gateway.models that is neither a route's nor a provider's model. Behind a
    base_url every name is one."""
    if setup.engine.base_url is not None or environ.get("OPENAI_BASE_URL"):
        return
    routes, known = setup.settings.routes, build.known_providers()
    for name in setup.options.models:
        if name == setup.catalog.default or any(fnmatchcase(route, name) for route in routes):
            continue
        prefix = name.partition("/")[0]
        if split_model(name, known)[0] is not None or "*" in prefix or _is_openais(setup, name):
            continue
        near = difflib.get_close_matches(name, routes, n=1)
        if not near and "/" in name:
            near = [provider + name[len(prefix) :] for provider in difflib.get_close_matches(prefix, known, n=1)]
        hint = f"did you mean {near[0]!r}?" if near else f"write 'openai/{name}' for OpenAI's model of that name"
        raise ConfigError(f"gateway.models: {name!r} is neither a route nor provider/model; {hint}")


def _is_openais(setup: Setup, name: str) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in (*OPENAI_MODELS, *_MORE_OF_OPENAI)):
        return True
    return build.price_table(setup.engine.prices).find("openai", name) is not None
