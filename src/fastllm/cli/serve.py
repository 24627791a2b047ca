"""`fastllm serve`: the gateway on the command line."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click

from .. import build, loop
from ..dashboard.ended import Ended
from ..dashboard.reading import Reading
from ..dashboard.shared import Shared
from ..errors import ConfigError
from ..gateway.access import AccessLog
from ..gateway.app import OPERATIONS, Gateway
from ..gateway.beside import Beside
from ..gateway.crew import Crew, Member
from ..gateway.record import Listener
from ..gateway.server import Server, bound, origin_of
from ..gateway.setup import Setup, check, check_shared, in_crew, open_gateway, read, reload
from ..gateway.tenancy import Tenancy
from ..worker import checked_size
from .gateway_page import gateway_dashboard, reading_of_gateway
from .options import PAYING, SENDING, check_model, setting_options, settings_of
from .say import Saying, say


@click.command("serve")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]", metavar="ADDRESS")
@click.option("--port", type=int, help="Port to listen on; 0: any free one. [default: 4000]", metavar="N")
@click.option("--check", "only_check", is_flag=True, help="Say what would be served, and what is wrong; serve nothing.")
@click.option("--access-log", help="File for a line of JSON for each request; -: standard error.", metavar="FILE")
@click.option("--member", hidden=True)
@setting_options(
    "model",
    *SENDING,
    *PAYING,
    "db",
    "workers",
    model="Model of requests that name none; it is served and listed.",
    max_retries="Further attempts after the first. [default: 2]",
    budget="Most to spend, in US dollars, until the gateway stops. [default: no limit]",
    workers="Processes that serve, for the sake of more cores.",
)
def command(only_check: bool, member: str | None, **flags: Any) -> int:
    """Serve OpenAI's and Anthropic's API in front of any provider, until Ctrl-C or SIGTERM; SIGHUP reads fastllm.toml
    again. The master key is taken from FASTLLM_MASTER_KEY; without one only this machine is served."""
    check_model(settings_of(flags))
    setup = read(flags, os.environ)  # what is wrong there is said before any file is made
    place = None if member is None else Member.of(member)
    size = checked_size(setup.settings["workers"])
    if size > 1:
        check_shared(setup)
    with closing(Tenancy(setup.settings["db"])) as tenancy:
        setup = tenancy.join(setup)
        if place is not None:
            return _command(setup, tenancy, flags, place)
        lines = loop.run(check(setup))
        if only_check:
            _show(setup, lines)
            return 0
        if size == 1:
            return _command(setup, tenancy, flags, None)
    return _crew(setup, size)


def _crew(setup: Setup, size: int) -> int:
    """Serve from several processes."""
    options = setup.options
    with bound(options.host, options.port) as listening, tempfile.TemporaryDirectory(prefix="fastllm-serve-") as folder:
        origin = origin_of(options.host, listening.getsockname()[1])
        crew = Crew([sys.executable, "-m", "fastllm.cli", *sys.argv[1:], "--member"], size, listening, Path(folder))
        status = crew.run(lambda: _say_where(origin))
    if status:
        say("fastllm: error: the processes that serve died; what they said stands above")
    return status


def _say_where(origin: str) -> None:
    say(f"listening on {origin}\ndashboard: {origin}/dashboard")


def _command(setup: Setup, tenancy: Tenancy, flags: dict[str, Any], place: Member | None) -> int:
    logger = logging.getLogger("fastllm")
    saying = Saying()
    logger.addHandler(saying)
    try:
        with loop.own_process():
            loop.run(_serve(setup, tenancy, flags, place))
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


async def _serve(setup: Setup, tenancy: Tenancy, flags: dict[str, Any], place: Member | None) -> None:
    with ExitStack() as stack:
        ended = Ended(OPERATIONS)
        listeners: list[Listener] = [tenancy.add, ended]
        if setup.options.access_log is not None:
            log = AccessLog(setup.options.access_log)
            stack.callback(log.close)
            listeners.append(log)
        setup = in_crew(setup, place)
        engine = build.engine(setup.engine)
        try:
            gateway = open_gateway(setup, engine, listeners, tenancy)
            server = Server(gateway, None if place is None else place.socket())
            server.on_signals(lambda: _reload(gateway, tenancy, flags, place))
            beside = Beside(gateway, setup.engine)
            title = f"gateway {server.origin.partition('://')[2]}"
            shared = None if place is None else Shared(Path(place.folder) / "readings", place.index)

            def look() -> Reading:
                return reading_of_gateway(gateway, beside, tenancy, ended)

            def serves(origin: str) -> None:
                if place is None:
                    return _say_where(origin)
                place.follow(server.stop)
                place.ready()

            async with beside, gateway_dashboard(gateway, look, title, shared):
                await server.run(serves)
        finally:
            await engine.aclose()


def _reload(gateway: Gateway, tenancy: Tenancy, flags: dict[str, Any], place: Member | None) -> None:
    """Read the settings again; where they are wrong, everything stays as it is. Of several processes one says so."""
    tell = say if place is None or not place.index else _nothing
    try:
        left = reload(gateway, in_crew(tenancy.join(read(flags, os.environ)), place))
    except ConfigError as error:
        tell(f"fastllm: error: not reloaded: {error}")
        return
    tell("fastllm: reloaded" + (f"; {', '.join(left)} will change with the next start" if left else ""))


def _nothing(text: str) -> None:
    pass
