"""`fastllm providers`: who can be asked, where, in which dialect, and whose keys are set; never a key itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click
import msgspec

from ..build import address_of, installed_providers
from ..errors import ConfigError
from ..providers.vendors import BUILT_IN, LOCAL, VENDORS, Vendor
from .options import settings_of


@click.command("providers")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--ready", is_flag=True, help="Only those that could be asked now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(names: tuple[str, ...], ready: bool, as_json: bool) -> None:
    """List providers: what stands before the / of a model's name. NAME is a provider's name or a part of names."""
    settings = settings_of({})
    rows = [row for row in _rows(os.environ) if not names or any(name.lower() in row["name"] for name in names)]
    rows = [row for row in rows if row["ready"] or not ready]
    if names and not rows:
        raise ConfigError(f"no provider is called like {', '.join(names)}; `fastllm providers` lists all")
    if as_json:
        routes = {name: msgspec.to_builtins(route) for name, route in settings.routes.items()}
        click.echo(msgspec.json.format(msgspec.json.encode({"providers": rows, "routes": routes})).decode())
        return
    for line in _table(rows):
        click.echo(line)
    for name, route in settings.routes.items():
        first, *others = route.tiers
        ends = ", ".join(upstream.model for upstream in first)
        backs = ", then ".join(upstream.model for upstream, *_ in others)
        click.echo(f"route {name}: {ends}{f'; then {backs}' if backs else ''}")


def _rows(environ: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    yield {"name": LOCAL, "dialect": "openai", "base_url": None, "key_env": [], "key_set": None, "ready": True,
           "needs": "", "source": "this process"}  # fmt: skip
    for vendor in sorted(VENDORS.values(), key=lambda vendor: vendor.name):
        yield _row(vendor, environ)
    for name in sorted(installed_providers() - VENDORS.keys()):
        yield {"name": name, "dialect": name, "base_url": None, "key_env": [], "key_set": None, "ready": True,
               "needs": "", "source": "installed package"}  # fmt: skip


def _row(vendor: Vendor, environ: Mapping[str, str]) -> dict[str, Any]:
    held = next((name for name in vendor.key_env if environ.get(name)), None)
    base_url, needs = vendor.base_url, ""
    if vendor.base_url_env and environ.get(vendor.base_url_env):
        base_url = f"${vendor.base_url_env}"  # its value may hold a secret
    else:
        try:
            base_url = address_of(vendor, environ)
        except ConfigError:
            needs = "address"
    if held is None and vendor.key_required:
        needs = "key and address" if needs else "key"
    return {
        "name": vendor.name,
        "dialect": vendor.dialect,
        "base_url": base_url,
        "key_env": list(vendor.key_env),
        "key_set": held,
        "ready": not needs,
        "needs": needs,
        "source": "built in" if vendor.name in BUILT_IN else "registered",
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [("provider", "dialect", "key", "address")]
    for row in rows:
        if row["key_set"]:
            key = f"{row['key_set']} is set"
        elif not row["key_env"]:
            key = "none needed"
        else:
            key = f"{' or '.join(row['key_env'])}{'' if 'key' in row['needs'] else ' (if any)'}"
        mark = "✓ " if row["ready"] else "  "
        cells.append((mark + row["name"], row["dialect"], key, row["base_url"] or row["source"]))
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in cells
    ]
