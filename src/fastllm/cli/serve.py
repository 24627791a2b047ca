"""`fastllm serve`: the gateway on the command line."""

from __future__ import annotations

from typing import Any

import click

from .. import build
from .options import PAYING, SENDING, check_model, setting_options, settings_of

START = "fastllm.cli.start:start"  # loaded when it is to serve: --help needs no package of the gateway's own


@click.command("serve")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]", metavar="ADDRESS")
@click.option("--port", type=int, help="Port to listen on; 0: any free one. [default: 4000]", metavar="N")
@click.option("--check", "only_check", is_flag=True, help="Say what would be served, and what is wrong; serve nothing.")
@click.option("--access-log", help="File for a line of JSON for each request; -: standard error.", metavar="FILE")
@click.option(
    "--otel", is_flag=True, default=None, help="Send OpenTelemetry spans and metrics where OTEL_* variables say."
)
@click.option("--place", hidden=True)
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
def command(only_check: bool, place: str | None, **flags: Any) -> int:
    """Serve OpenAI's and Anthropic's API in front of any provider, until Ctrl-C or SIGTERM; SIGHUP reads fastllm.toml
    again. The master key is taken from FASTLLM_MASTER_KEY; without one only this machine is served."""
    check_model(settings_of(flags))
    return int(build.load(START)(flags, only_check=only_check, told=place))
