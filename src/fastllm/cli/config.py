"""`fastllm config show`: every setting, its value and where it came from."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ..settings import FILE, SETTINGS, shown
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
    if as_json:
        values = {name: {"value": shown(v.value), "origin": v.origin} for name, v in settings.items()}
        values |= {name: {"value": msgspec.to_builtins(table), "origin": FILE} for name, table in tables.items()}
        click.echo(msgspec.json.format(msgspec.json.encode(values)).decode())
        return
    width = max(map(len, SETTINGS))
    for name, value in settings.items():
        found = shown(value.value)
        text = "-" if found is None else f"{found:g}" if isinstance(found, float) else str(found)
        click.echo(f"{name:<{width}}  {text:<24}  {value.origin}")
    for name, table in tables.items():
        click.echo(f"{name}  {table}")
