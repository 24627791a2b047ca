"""`fastllm serve`: the gateway on the command line."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from .. import loop
from ..gateway.crew import Crew, Member
from ..gateway.server import bound, origin_of
from ..gateway.setup import Setup, check, check_shared, read
from ..gateway.tenancy import Tenancy
from ..worker import checked_size
from .options import PAYING, SENDING, check_model, setting_options, settings_of
from .say import Saying, say
from .serving import Serving, say_where


@click.command("serve")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]", metavar="ADDRESS")
@click.option("--port", type=int, help="Port to listen on; 0: any free one. [default: 4000]", metavar="N")
@click.option("--check", "only_check", is_flag=True, help="Say what would be served, and what is wrong; serve nothing.")
@click.option("--access-log", help="File for a line of JSON for each request; -: standard error.", metavar="FILE")
@click.option(
    "--otel", is_flag=True, default=None, help="Send OpenTelemetry spans and metrics where OTEL_* variables say."
)
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
            return Serving(setup, tenancy, flags, place).run()
        lines = loop.run(check(setup))
        if only_check:
            _show(setup, lines)
            return 0
        if size == 1:
            return Serving(setup, tenancy, flags).run()
    return _crew(setup, size)


def _show(setup: Setup, lines: list[str]) -> None:
    options = setup.options
    click.echo(f"listens on {options.host}:{options.port}")
    click.echo("wants a key" if setup.keys is not None else "wants no key")
    for line in lines:
        click.echo(f"serves {line}")
    click.echo(f"models: {', '.join(setup.catalog.names) or 'none'}")


def _crew(setup: Setup, size: int) -> int:
    """Serve from several processes."""
    options = setup.options
    with bound(options.host, options.port) as listening, tempfile.TemporaryDirectory(prefix="fastllm-serve-") as folder:
        origin = origin_of(options.host, listening.getsockname()[1])
        logging.getLogger("fastllm").addHandler(Saying())
        crew = Crew([sys.executable, "-m", "fastllm.cli", *sys.argv[1:], "--member"], size, listening, Path(folder))
        status = crew.run(lambda: say_where(origin))
    if status:
        say("fastllm: error: the processes that serve died; what they said stands above")
    return status
