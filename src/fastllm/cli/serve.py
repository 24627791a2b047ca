"""`fastllm serve`: the gateway on the command line."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, closing
from typing import Any

import click

from .. import build, loop
from ..errors import ConfigError
from ..gateway.access import AccessLog
from ..gateway.app import Gateway
from ..gateway.beside import Beside
from ..gateway.record import Listener
from ..gateway.server import Server
from ..gateway.setup import Setup, check, open_gateway, read, reload
from ..gateway.tenancy import Tenancy
from .options import PAYING, SENDING, check_model, setting_options, settings_of
from .say import Saying, say


@click.command("serve")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]", metavar="ADDRESS")
@click.option("--port", type=int, help="Port to listen on; 0: any free one. [default: 4000]", metavar="N")
@click.option("--check", "only_check", is_flag=True, help="Say what would be served, and what is wrong; serve nothing.")
@click.option("--access-log", help="File for a line of JSON for each request; -: standard error.", metavar="FILE")
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
    with closing(Tenancy(setup.settings["db"])) as tenancy:
        setup = tenancy.join(setup)
        lines = loop.run(check(setup))
        if only_check:
            _show(setup, lines)
            return 0
        return _command(setup, tenancy, flags)


def _command(setup: Setup, tenancy: Tenancy, flags: dict[str, Any]) -> int:
    logger = logging.getLogger("fastllm")
    saying = Saying()
    logger.addHandler(saying)
    try:
        with loop.own_process():
            loop.run(_serve(setup, tenancy, flags))
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


async def _serve(setup: Setup, tenancy: Tenancy, flags: dict[str, Any]) -> None:
    with ExitStack() as stack:
        listeners: list[Listener] = [tenancy.add]
        if setup.options.access_log is not None:
            log = AccessLog(setup.options.access_log)
            stack.callback(log.close)
            listeners.append(log)
        engine = build.engine(setup.engine)
        try:
            gateway = open_gateway(setup, engine, listeners, tenancy)
            server = Server(gateway)
            server.on_signals(lambda: _reload(gateway, tenancy, flags))
            async with Beside(gateway, setup.engine, tenancy.database):
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
