"""Serving: one process of `fastllm serve` and what is put together for it: engine, app, server, and who watches."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .. import build, loop
from ..dashboard.ended import Ended
from ..dashboard.shared import Shared
from ..engine.events import Observer
from ..errors import ConfigError, FastLLMError
from ..gateway.access import AccessLog
from ..gateway.app import OPERATIONS, Gateway
from ..gateway.beside import Beside
from ..gateway.checks import check, check_shared
from ..gateway.exchange import ASGI
from ..gateway.keys_api import PATH as KEYS, KeysAPI
from ..gateway.metrics import Metrics
from ..gateway.record import Listener
from ..gateway.server import Server
from ..gateway.setup import Setup, at_place, open_gateway, read, reload
from ..gateway.supervisor import Place
from ..gateway.tenancy import Tenancy
from ..providers.vendors import VENDORS
from .gateway_page import gateway_dashboard, reading_of_gateway
from .say import Saying, say

if TYPE_CHECKING:
    from ..contrib.otel import OpenTelemetry

OTEL = "fastllm.contrib.otel_export:exporting"  # loaded where it is wanted: it needs packages of its own


def say_where(origin: str) -> None:
    say(f"listening on {origin}\ndashboard: {origin}/dashboard")


class Serving:
    """Serves from this process: the only one, or the one at `place` of several."""

    def __init__(self, setup: Setup, tenancy: Tenancy, flags: dict[str, Any], place: Place | None = None) -> None:
        self._setup = at_place(setup, place)
        self._tenancy = tenancy
        self._flags = flags
        self._place = place
        self._file = _file_of(setup)
        self._wanted = False  # that the settings are read again
        self._reloading: asyncio.Task[None] | None = None

    def run(self) -> int:
        """Serve until a signal; gives the exit status."""
        logger = logging.getLogger("fastllm")
        saying = Saying()
        logger.addHandler(saying)
        options, base_url = self._setup.options, self._setup.settings["base_url"]
        try:
            with build.load(OTEL)(base_url) if options.otel else nullcontext() as telemetry, loop.own_process():
                loop.run(self._serve(telemetry))
        except KeyboardInterrupt:
            return 130
        finally:
            logger.removeHandler(saying)
        return 0

    async def _serve(self, telemetry: OpenTelemetry | None) -> None:
        setup, tenancy, place = self._setup, self._tenancy, self._place
        ended, metrics = Ended(OPERATIONS), Metrics()
        listeners: list[Listener] = [tenancy.add, ended]
        observers: list[Observer] = [metrics.counters.saw]
        async with AsyncExitStack() as stack:
            if setup.options.access_log is not None:
                log = AccessLog(setup.options.access_log)
                stack.callback(log.close)
                listeners.append(log)
            tracing = None if telemetry is None else telemetry.serving()
            if telemetry is not None:
                observers.append(telemetry)
            engine = build.engine(msgspec.structs.replace(setup.engine, observers=observers))
            stack.push_async_callback(engine.aclose)
            gateway = open_gateway(setup, engine, listeners, tenancy, metrics)
            tenancy.watch(gateway)
            app: ASGI | None = None if tracing is None else tracing.around(gateway)
            server = Server(gateway, app, listening=None if place is None else place.socket())
            server.on_signals(lambda: self._want(gateway), lambda: self._say_that_it_stops(gateway))
            stack.push_async_callback(self._end_reloading)
            beside = await stack.enter_async_context(Beside(gateway, setup.engine, tenancy.database))
            for prefix in ("", "/v1"):
                gateway.mounts[f"{prefix}{KEYS}"] = KeysAPI(tenancy.store, tenancy.tenants)
            shared = None
            if place is not None:
                shared = Shared(place.folder_of("readings"), place.index)
                await stack.enter_async_context(metrics.shared(place.folder_of("metrics"), place.index))
            title = f"gateway {server.origin.partition('://')[2]}"
            look = partial(reading_of_gateway, gateway, beside, tenancy, ended)
            await stack.enter_async_context(gateway_dashboard(gateway, look, title, shared))
            await server.run(lambda origin: self._serves(server))

    def _serves(self, server: Server) -> None:
        """The server listens: say so."""
        if self._place is None:
            say_where(server.origin)
        else:
            self._place.follow(server.stop)
            self._place.ready()

    def _want(self, gateway: Gateway) -> None:
        """Read the settings again, now or once that is done which is read already: the last one holds."""
        self._wanted = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload_all(gateway), name="fastllm-reload")

    async def _reload_all(self, gateway: Gateway) -> None:
        while self._wanted:
            self._wanted = False
            await self._reload(gateway)

    async def _end_reloading(self) -> None:
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait([self._reloading])

    async def _reload(self, gateway: Gateway) -> None:
        """Read the settings again and check them as a whole; where they are wrong, everything stays as it is."""
        vendors = dict(VENDORS)
        try:
            setup = await self._read_again()
            left = reload(gateway, at_place(setup, self._place))
        except (FastLLMError, OSError) as error:
            VENDORS.clear()
            VENDORS.update(vendors)  # reading has registered those of the file
            self._tell(f"fastllm: error: not reloaded: {error}")
            return
        self._file = _file_of(setup)
        self._tell("fastllm: reloaded" + (f"; {', '.join(left)} will change with the next start" if left else ""))

    async def _read_again(self) -> Setup:
        if self._file is not None and not self._file.exists():
            raise ConfigError(f"the file it began with ({self._file}) is gone")
        setup = self._tenancy.join(read(self._flags, os.environ))
        if self._place is not None:
            check_shared(setup)
        # The cache stays, and nobody else is to open its files meanwhile.
        await check(msgspec.structs.replace(setup, engine=msgspec.structs.replace(setup.engine, cache=None)))
        return setup

    def _tell(self, text: str) -> None:
        if self._place is None or not self._place.index:
            say(text)

    def _say_that_it_stops(self, gateway: Gateway) -> None:
        if self._place is not None:  # each of several has its own number: the first process says it for all
            return
        count = gateway.under_way
        what = "1 request" if count == 1 else f"{count:,} requests"
        more = f"; up to {gateway.options.drain:g} s for {what} under way (again: at once)" if count else ""
        say(f"fastllm: stopping{more}")

    def __repr__(self) -> str:
        return f"<Serving {self._setup!r}>"


def _file_of(setup: Setup) -> Path | None:
    """Give the file that the settings were read from, None where there is none."""
    path = Path(setup.settings.place).absolute()
    return path if path.exists() else None
