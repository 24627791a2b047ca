"""`fastllm usage`: what the gateway's clients have used, and what it cost."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from ..gateway.database import Database, default_path
from ..gateway.keys import KeyStore
from ..gateway.usage import UsageRow, query
from ..policy.budget import dollars
from .options import setting_options, settings_of

_COLUMNS = ("requests", "errors", "cached", "prompt", "answer", "cost", "mean latency")


@click.command("usage")
@click.option("--by", metavar="NAMES", default="day,key,model", show_default=True, help="Of day, key, model, endpoint.")
@click.option("--since", metavar="DAY", help="First day (UTC), such as 2026-11-28, or 7d. [default: all]")
@click.option("--until", metavar="DAY", help="Last day (UTC). [default: today]")
@setting_options("db")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(by: str, since: str | None, until: str | None, as_json: bool, **flags: Any) -> None:
    """Show requests, tokens and cost, summed by day, key, model or endpoint."""
    if since is not None and since[:-1].isdecimal() and since[-1:] == "d":
        since = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400.0 * min(int(since[:-1]), 10**5)))
    path, by_names = settings_of(flags)["db"], [name.strip() for name in by.split(",") if name.strip()]
    if path is None and not default_path().exists():
        click.echo(f"nothing was used yet: there is no {default_path()}")
        return
    database = Database(path)
    try:
        rows = query(database, by_names, since=since, until=until)
        store = KeyStore(database)
        names = {key.id: key.name for key in store.list()}
        store.close()
    finally:
        database.close()
    if as_json:
        shown = [{**_grouped(row, by_names, names), **_sums(row)} for row in rows]
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return
    table = [(*by_names, *_COLUMNS), *(_line(row, by_names, names) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells[: len(by_names)] = [cell.ljust(width) for cell, width in zip(line, widths[: len(by_names)], strict=False)]
        click.echo("  ".join(cells).rstrip())


def _grouped(row: UsageRow, by: list[str], names: dict[str, str]) -> dict[str, Any]:
    found = {name: getattr(row, name) for name in by}
    return {**found, "key_name": names.get(row.key or "")} if "key" in by else found


def _sums(row: UsageRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in UsageRow.__struct_fields__[4:]}


def _line(row: UsageRow, by: list[str], names: dict[str, str]) -> tuple[str, ...]:
    group = (names.get(row.key or "", row.key or "-") if name == "key" else getattr(row, name) or "-" for name in by)
    cost = dollars(row.cost_usd) + (" + ?" if row.unpriced else "")
    counts = (row.requests, row.errors, row.cached, row.prompt_tokens, row.completion_tokens)
    return (*group, *(f"{count:,}" for count in counts), cost, f"{row.seconds / max(1, row.requests):.2f} s")
