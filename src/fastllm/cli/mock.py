"""`fastllm mock`: the test kit's model server on the command line."""

from __future__ import annotations

import click

from .. import loop
from ..testing.config import MockConfig
from ..testing.server import run

DEFAULT = MockConfig()


@click.command("mock")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, metavar="N", help="Port to listen on. [default: a free one]")
@click.option("--latency", default=0.0, metavar="S", help="Median seconds before an answer.")
@click.option("--latency-sigma", default=0.0, metavar="F", help="Spread of the latency (log-normal sigma).")
@click.option("--token-rate", default=0.0, metavar="F", help="Tokens a second of streamed answers. [default: at once]")
@click.option("--rpm", type=int, metavar="N", help="Requests in any 60 seconds; more are refused with 429.")
@click.option("--tpm", type=int, metavar="N", help="Tokens in any 60 seconds; more are refused with 429.")
@click.option("--error-rate", default=0.0, metavar="F", help="Share of requests that get an injected error.")
@click.option(
    "--error-kinds",
    metavar="KINDS",
    help="Which errors, by commas: 429,reset,hang,… [default: 500,503,429,reset]",
)
@click.option("--no-headers", is_flag=True, help="Do not tell of the limits: no x-ratelimit-* headers.")
@click.option("--seed", default=0, metavar="N", help="Seed of latencies, errors and answers.")
def command(
    host: str,
    port: int,
    latency: float,
    latency_sigma: float,
    token_rate: float,
    rpm: int | None,
    tpm: int | None,
    error_rate: float,
    error_kinds: str | None,
    no_headers: bool,
    seed: int,
) -> None:
    """Serve OpenAI's API without a model; prints its address, then answers until Ctrl-C. GET /stats tells of them."""
    config = MockConfig(
        host=host,
        port=port,
        latency=latency,
        latency_sigma=latency_sigma,
        token_rate=token_rate,
        rpm=rpm,
        tpm=tpm,
        error_rate=error_rate,
        errors=DEFAULT.errors if error_kinds is None else tuple(kind.strip() for kind in error_kinds.split(",")),
        headers=not no_headers,
        seed=seed,
    )
    try:
        loop.run(run(config, on_listening=lambda address: click.echo(f"listening on {address}")))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
