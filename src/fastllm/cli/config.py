"""`fastllm config show`: every setting, its value and where it came from."""

from __future__ import annotations

import os
from typing import Any

import click
import msgspec

from ..gateway.config import resolve
from ..settings import FILE, shown
from .options import settings_of


@click.group("config")
def command() -> None:
    """Show every setting and where its value comes from."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    """Print each setting's value and its origin: a variable, fastllm.toml, or the default."""
    settings = settings_of({})
    for check in (settings.limits, settings.timeout, settings.retry, settings.cache):
        check()
    tables: dict[str, Any] = {f"routes.{name}": route for name, route in settings.routes.items()}
    tables.update({f"vendors.{vendor.name}": vendor for vendor in settings.vendors})
    gateway = [(f"gateway.{name}", value) for name, value in resolve(settings, {}, os.environ).items()]
    found = [*settings.items(), *gateway]
    if as_json:
        values = {name: {"value": shown(v.value), "origin": v.origin} for name, v in found}
        values |= {name: {"value": msgspec.to_builtins(table), "origin": FILE} for name, table in tables.items()}
        click.echo(msgspec.json.format(msgspec.json.encode(values)).decode())
        return
    width = max(len(name) for name, _ in found)
    for name, value in found:
        given = shown(value.value)
        text = "-" if given is None else f"{given:g}" if isinstance(given, float) else str(given)
        click.echo(f"{name:<{width}}  {text:<24}  {value.origin}")
    for name, table in tables.items():
        click.echo(f"{name}  {table}")
