"""`fastllm serve`: the gateway on the command line."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, closing, nullcontext
from typing import TYPE_CHECKING, Any

import click
import msgspec

from .. import build, loop
from ..engine.events import Observer
from ..errors import ConfigError
from ..gateway.access import AccessLog
from ..gateway.app import Gateway
from ..gateway.beside import Beside
from ..gateway.metrics import Metrics
from ..gateway.record import Listener
from ..gateway.server import Server
from ..gateway.setup import Setup, check, open_gateway, read, reload
from ..gateway.tenancy import Tenancy
from .options import PAYING, SENDING, check_model, setting_options, settings_of
from .say import Saying, say

if TYPE_CHECKING:
    from ..contrib.otel import OpenTelemetry

OTEL = "fastllm.contrib.otel_export:exporting"  # loaded where it is wanted: it needs packages of its own


@click.command("serve")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]", metavar="ADDRESS")
@click.option("--port", type=int, help="Port to listen on; 0: any free one. [default: 4000]", metavar="N")
@click.option("--check", "only_check", is_flag=True, help="Say what would be served, and what is wrong; serve nothing.")
@click.option("--access-log", help="File for a line of JSON for each request; -: standard error.", metavar="FILE")
@click.option(
    "--otel", is_flag=True, default=None, help="Send OpenTelemetry spans and metrics where OTEL_* variables say."
)
@setting_options(
    "model",
    *SENDING,
    *PAYING,
    "db",
    model="Model of requests that name none; it is served and listed.",
    max_retries="Further attempts after the first. [default: 2]",
    budget="Most to spend, in US dollars, until the gateway stops. [default: no limit]",
)
def command(only_check: bool, **flags: Any) -> int:
    """Serve OpenAI's and Anthropic's API in front of any provider, until Ctrl-C or SIGTERM; SIGHUP reads fastllm.toml
    again. The master key is taken from FASTLLM_MASTER_KEY; without one only this machine is served."""
    check_model(settings_of(flags))
    setup = read(flags, os.environ)  # what is wrong there is said before any file is made
    telemetry = build.load(OTEL)(setup.settings["base_url"]) if setup.options.otel else nullcontext()
    with closing(Tenancy(setup.settings["db"])) as tenancy:
        setup = tenancy.join(setup)
        lines = loop.run(check(setup))
        if only_check:
            _show(setup, lines)
            return 0
        with telemetry as told:
            return _command(setup, tenancy, flags, told)


def _command(setup: Setup, tenancy: Tenancy, flags: dict[str, Any], telemetry: OpenTelemetry | None) -> int:
    logger = logging.getLogger("fastllm")
    saying = Saying()
    logger.addHandler(saying)
    try:
        with loop.own_process():
            loop.run(_serve(setup, tenancy, flags, telemetry))
    except KeyboardInterrupt:
        return 130
    finally:
        logger.removeHandler(saying)
    return 0


def _show(setup: Setup, lines: list[str]) -> None:
    options = setup.options
    click.echo(f"listens on {options.host}:{options.port}")
    click.echo("wants a key" if setup.keys is not None else "wants no key")
    for line in lines:
        click.echo(f"serves {line}")
    click.echo(f"models: {', '.join(setup.catalog.names) or 'none'}")


async def _serve(setup: Setup, tenancy: Tenancy, flags: dict[str, Any], telemetry: OpenTelemetry | None) -> None:
    metrics = Metrics()
    listeners: list[Listener] = [tenancy.add]
    observers: list[Observer] = [metrics.counters.saw]
    around = None
    if telemetry is not None:
        observers.append(telemetry)
        serving = telemetry.serving()
        listeners.append(serving.tell)
        around = serving.around
    with ExitStack() as stack:
        if setup.options.access_log is not None:
            log = AccessLog(setup.options.access_log)
            stack.callback(log.close)
            listeners.append(log)
        engine = build.engine(msgspec.structs.replace(setup.engine, observers=observers))
        try:
            gateway = open_gateway(setup, engine, listeners, tenancy, metrics)
            server = Server(gateway, around(gateway) if around is not None else None)
            server.on_signals(lambda: _reload(gateway, tenancy, flags))
            async with Beside(gateway, setup.engine):
                await server.run(lambda origin: say(f"listening on {origin}"))
        finally:
            await engine.aclose()


def _reload(gateway: Gateway, tenancy: Tenancy, flags: dict[str, Any]) -> None:
    """Read the settings again; where they are wrong, everything stays as it is."""
    try:
        left = reload(gateway, tenancy.join(read(flags, os.environ)))
    except ConfigError as error:
        say(f"fastllm: error: not reloaded: {error}")
        return
    say("fastllm: reloaded" + (f"; {', '.join(left)} will change with the next start" if left else ""))
