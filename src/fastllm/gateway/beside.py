"""Beside: what the gateway serves beside models: files, batches, and providers that are passed through to."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from ..build import EngineOptions, provider_endpoint
from ..engine.endpoint import Endpoint
from ..errors import ConfigError, OverloadedError
from ..providers.vendors import LOCAL, VENDORS
from .app import Gateway
from .auth import Admissions, Tenant
from .batch_store import BatchStore
from .batches import Batches
from .config import GatewayOptions
from .database import Database
from .file_store import FileStore, private_folder
from .files import Files
from .passthrough import Passthrough
from .response_store import ResponseStore
from .stored_responses import StoredResponses

logger = logging.getLogger("fastllm.gateway")

SWEEP = 3600.0  # seconds between looks for files that have expired
_TAKEN = frozenset(("batches", "dashboard", "files", "health", "keys", "metrics", "models", "v1"))


@runtime_checkable
class KnowsTenants(Protocol):
    """Keys that can say what a tenant may do now, by its id: None where its key is gone."""

    def tenant(self, id: str) -> Tenant | None: ...


class Beside:
    """Mounts all of it on a gateway; a context manager, open while the gateway serves and closed before its engine.

    Where nobody said where files are to lie, and the usual place cannot be had, there are none, and no batches."""

    def __init__(
        self,
        gateway: Gateway,
        engine: EngineOptions,
        database: Database | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._gateway = gateway
        self._engine = engine
        self._sweeping: asyncio.Task[None] | None = None
        self.files: FileStore | None = None
        self.batches: Batches | None = None
        self.responses: ResponseStore | None = None
        options = gateway.options
        root = data_directory(options, environ)
        try:
            if root is not None:
                self._mount(options, private_folder(root))
        except ConfigError as error:
            if options.data_dir is not None:
                raise
            logger.warning("no files and no batches: %s", error)
            root = None
        if database is not None:
            self._mount_responses(database, root)
        for name in passed_through(options, engine, environ):
            gateway.mounts[f"/{name}"] = Passthrough(
                name, lambda: gateway.engine, partial(self._endpoint, name), self._admissions
            )

    def _mount(self, options: GatewayOptions, root: Path) -> None:
        gateway = self._gateway
        self.files = FileStore(root / "files")
        self.batches = Batches(
            gateway, BatchStore(root / "batches"), self.files, most=options.batches, find_tenant=self._tenant
        )
        files = Files(self.files, most_bytes=options.file_bytes, tenant_bytes=options.tenant_bytes)
        for prefix in ("", "/v1"):
            gateway.mounts[f"{prefix}/files"] = files
            gateway.mounts[f"{prefix}/batches"] = self.batches

    def _mount_responses(self, database: Database, root: Path | None) -> None:
        """Know whose each response is; keep those that no provider keeps where files lie, too."""
        gateway = self._gateway
        self.responses = gateway.responses = ResponseStore(database, None if root is None else root / "responses")
        stored = StoredResponses(gateway, self.responses)
        for prefix in ("", "/v1", "/openai", "/openai/v1"):
            gateway.mounts[f"{prefix}/responses"] = stored

    async def __aenter__(self) -> Self:
        """Go on with unfinished batches."""
        if self.batches is not None:
            await self.batches.start()
        stores = [store for store in (self.files, self.responses) if store is not None]
        if stores:
            self._sweeping = asyncio.create_task(_sweep(stores), name="fastllm-sweep")
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop batches where they are."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        if self.batches is not None:
            await self.batches.aclose()

    def _tenant(self, owner: Tenant) -> Tenant | None:
        keys = self._gateway.keys
        return keys.tenant(owner.id) if isinstance(keys, KnowsTenants) else owner

    def _endpoint(self, name: str) -> Endpoint:
        return provider_endpoint(name, self._gateway.engine, self._engine)

    def _admissions(self) -> Admissions | None:
        return self._gateway.admissions

    def __repr__(self) -> str:
        return f"<Beside {self.batches!r}>"


async def _sweep(stores: Sequence[FileStore | ResponseStore]) -> None:
    """Remove what has expired, again and again."""
    while True:
        for store in stores:
            try:
                await asyncio.to_thread(store.sweep)
            except (OSError, OverloadedError) as error:
                logger.warning("%r cannot be looked through for what has expired: %s", store, error)
        await asyncio.sleep(SWEEP)


def data_directory(options: GatewayOptions, environ: Mapping[str, str]) -> Path | None:
    """Give where files and batches lie: `data_dir`, or a place of this address in the user's place for the data of
    programs. Two gateways must not run each other's batches, so one on any free port has none unless it is given."""
    if options.data_dir is not None:
        if not options.data_dir or "\0" in options.data_dir:
            raise ConfigError(f"gateway.data_dir must be a directory, not {options.data_dir!r}")
        return Path(options.data_dir).expanduser()
    if not options.port:
        return None
    given = environ.get("XDG_DATA_HOME") or ""
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "share"
    return base / "fastllm" / "gateway" / f"{options.host.replace(':', '_')}-{options.port}"


def passed_through(options: GatewayOptions, engine: EngineOptions, environ: Mapping[str, str]) -> list[str]:
    """Give the providers whose API is passed through. ConfigError where that cannot be."""
    keyed = [
        name
        for name, vendor in VENDORS.items()
        if name != LOCAL and name not in _TAKEN and any(environ.get(key) for key in vendor.key_env)
    ]
    found: list[str] = []
    for name in options.passthrough:
        if name != "*" and (name not in VENDORS or name == LOCAL or name in _TAKEN):
            near = difflib.get_close_matches(name, VENDORS.keys() - _TAKEN, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            text = f"there is no provider {name!r} that could be passed through to{hint}"
            raise ConfigError(f"gateway.passthrough: {text}")
        found += keyed if name == "*" else [name]
    if found and engine.budget is not None and engine.unknown_price == "refuse":
        raise ConfigError(
            "gateway.passthrough cannot keep within the budget: what is passed through has no known price "
            "(unknown_price = 'allow' lets it pass uncounted)"
        )
    return list(dict.fromkeys(found))
