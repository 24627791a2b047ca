"""From flags, environment and fastllm.toml to a gateway: read and checked as a whole, at the start and on SIGHUP."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .. import build
from ..build import EngineOptions
from ..engine.engine import Engine
from ..errors import ConfigError
from ..settings import Settings, load_settings
from .app import Gateway
from .auth import Admissions, Keys, MasterKey
from .catalog import Catalog, catalog_of
from .config import GatewayOptions, resolve, retry_of, timeout_of
from .metrics import Metrics
from .record import Listener
from .supervisor import Place

logger = logging.getLogger("fastllm.gateway")

_FIXED = (
    "host",
    "port",
    "header_bytes",
    "header_seconds",
    "idle_seconds",
    "drain",
    "access_log",
    "otel",
    "master_key_env",
    "data_dir",
    "file_bytes",
    "tenant_bytes",
    "batches",
    "passthrough",
)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """All that a gateway is made from. The repr shows no key."""

    settings: Settings
    options: GatewayOptions
    engine: EngineOptions
    catalog: Catalog
    keys: Keys | None

    def __repr__(self) -> str:
        return f"<Setup {self.options!r} {self.catalog!r}>"


def read(flags: Mapping[str, Any], environ: Mapping[str, str], directory: Path | None = None) -> Setup:
    """Read everything anew. ConfigError for what cannot be, before anything is changed."""
    settings = load_settings(flags, environ=environ, directory=directory)
    resolved = resolve(settings, flags, environ)
    options = resolved.options
    key = options.master_key(environ)
    if key is None and "master_key_env" in resolved.origins:
        raise ConfigError(
            f"{options.master_key_env} is not set or empty, and gateway.master_key_env "
            f"({resolved.origins['master_key_env']}) says that it holds the key: set it, or leave the option out"
        )
    engine = msgspec.structs.replace(
        build.options_of(settings, environ),
        timeout=timeout_of(settings, options),
        retry=retry_of(settings, options),
        leases=None,  # its limits are its own
    )
    return Setup(
        settings=settings,
        options=options,
        engine=build.checked(engine),
        catalog=catalog_of(settings, options, environ),
        keys=MasterKey(key, options.namespace) if key is not None else None,
    )


def at_place(setup: Setup, place: Place | None) -> Setup:
    """Give the setup of one of several processes: limits and budget are those of all of them together."""
    if place is None:
        return setup
    return msgspec.structs.replace(setup, engine=msgspec.structs.replace(setup.engine, leases=place.leases))


def open_gateway(
    setup: Setup,
    engine: Engine,
    listeners: Sequence[Listener] = (),
    admissions: Admissions | None = None,
    metrics: Metrics | None = None,
) -> Gateway:
    """Give the gateway of a setup. ConfigError where it would be open to everybody on the network."""
    setup.options.check_door(has_keys=setup.keys is not None)
    gateway = Gateway(
        engine,
        setup.options,
        catalog=setup.catalog,
        keys=setup.keys,
        admissions=admissions,
        listeners=listeners if metrics is None else [*listeners, metrics.counters],
        metrics=None if metrics is None else metrics.scrape,
    )
    if metrics is not None:
        metrics.watch(gateway)
    return gateway


def reload(gateway: Gateway, setup: Setup) -> list[str]:
    """Go on with a new setup, and give the names of the options that hold only after a restart. Requests under way end
    as they began; endpoints that stay as they were keep what was learnt of them."""
    before = gateway.options
    kept = {name: getattr(before, name) for name in _FIXED}
    left = [name for name in _FIXED if getattr(setup.options, name) != kept[name]]
    options = msgspec.structs.replace(setup.options, **kept)
    options.check_door(has_keys=setup.keys is not None)
    gateway.reload(build.reloaded(gateway.engine, setup.engine), options, setup.catalog)
    gateway.keys = setup.keys
    return left
