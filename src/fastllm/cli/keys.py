"""`fastllm keys create|list|rotate|revoke`: the keys that clients show to the gateway."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import msgspec

from ..errors import ConfigError
from ..gateway.database import Database
from ..gateway.keys import KeyStore, VirtualKey
from ..gateway.tenants import Spending, Tenants, told
from ..policy.budget import dollars
from .options import setting_options, settings_of
from .say import say

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_HEAD: tuple[str, ...] = (
    "key", "name", "secret", "models", "rpm", "tpm", "parallel", "today", "this month", "expires",
)  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("keys")
def command() -> None:
    """Create, list, rotate and revoke the gateway's keys."""


@contextmanager
def _open(flags: dict[str, Any]) -> Iterator[tuple[KeyStore, Tenants]]:
    database = Database(settings_of(flags)["db"])
    store, tenants = KeyStore(database), Tenants(database, thread=False)
    try:
        yield store, tenants
    finally:
        tenants.close()
        store.close()
        database.close()


@command.command()
@click.argument("name")
@click.option("--models", metavar="NAMES", help="Models it may ask, with globs: gpt-4o*,local/*. [default: all]")
@click.option("--rpm", type=float, metavar="N", help="Requests in any 60 seconds at most.")
@click.option("--tpm", type=float, metavar="N", help="Tokens in any 60 seconds at most.")
@click.option("--parallel", type=int, metavar="N", help="Requests under way at most.")
@click.option("--budget-day", type=float, metavar="USD", help="Most to spend in a day (UTC).")
@click.option("--budget-month", type=float, metavar="USD", help="Most to spend in a calendar month (UTC).")
@click.option("--expires", metavar="WHEN", help="When it ends: 30d, 12h, or a day such as 2027-01-31.")
@setting_options("db")
@_JSON
def create(name: str, models: str | None, expires: str | None, db: str | None, as_json: bool, **limits: Any) -> None:
    """Make a key and print its secret, once."""
    allowed = [model.strip() for model in models.split(",")] if models is not None else None
    with _open({"db": db}) as (store, _):
        key, secret = store.create(name, models=allowed, expires=_moment(expires), **limits)
    _print_secret(key, secret, "was made", as_json)


@command.command("list")
@click.option("--all", "everything", is_flag=True, help="Revoked and expired ones, too.")
@setting_options("db")
@_JSON
def show(everything: bool, as_json: bool, **flags: Any) -> None:
    """List keys with their limits and what they have spent in this day and month (UTC)."""
    now = time.time()
    with _open(flags) as (store, tenants):
        keys = [(key, tenants.spending(key)) for key in store.list() if everything or key.state(now) == "valid"]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([told(key, spent, now) for key, spent in keys])).decode())
        return
    rows = [_HEAD]
    rows += [_row(key, spent, now) for key, spent in keys]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command()
@click.argument("key")
@click.option("--grace", metavar="TIME", default="0s", show_default=True, help="How long the old secret stays good.")
@setting_options("db")
@_JSON
def rotate(key: str, grace: str, as_json: bool, **flags: Any) -> None:
    """Give a key a new secret and print it, once; KEY is its id or its name. Limits and spending stay."""
    seconds = _duration(grace)
    if seconds is None:
        raise ConfigError(f"--grace must be a time such as 10m or 1d, not {grace!r}")
    with _open(flags) as (store, _):
        found, secret = store.rotate(key, grace=seconds)
    _print_secret(found, secret, "has a new secret", as_json)


@command.command()
@click.argument("key")
@setting_options("db")
def revoke(key: str, **flags: Any) -> None:
    """End a key for good; KEY is its id or its name. Gateways that run refuse it within a second."""
    with _open(flags) as (store, _):
        found = store.revoke(key)
    click.echo(f"{found.id} ({found.name}) is revoked")


def _print_secret(key: VirtualKey, secret: str, what: str, as_json: bool) -> None:
    if as_json:
        shown = {"secret": secret, **msgspec.to_builtins(key)}
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return
    say(f"{key.id} ({key.name}) {what}; it is shown only now:")
    click.echo(secret)


def _row(key: VirtualKey, spent: Spending, now: float) -> tuple[str, ...]:
    state = key.state(now)
    until = "-" if key.expires is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(key.expires))
    return (
        key.id,
        key.name,
        f"…{key.tail}",
        ",".join(key.models) if key.models else "all",
        *("-" if limit is None else f"{limit:,.0f}" for limit in (key.rpm, key.tpm, key.parallel)),
        _money(spent.day, key.budget_day),
        _money(spent.month, key.budget_month),
        until if state == "valid" else state,
    )


def _money(spent: float, budget: float | None) -> str:
    return "-" if budget is None else f"{dollars(spent)} of {dollars(budget)}"


def _moment(text: str | None) -> float | None:
    """Seconds since 1970 of "30d" from now, or of the beginning of a day (UTC)."""
    if text is None:
        return None
    seconds = _duration(text)
    if seconds is not None:
        return time.time() + seconds
    try:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        raise ConfigError(f"--expires must be a time such as 30d or a day such as 2027-01-31, not {text!r}") from None


def _duration(text: str) -> float | None:
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    return float(found[1]) * _SECONDS[found[2]] if found else None
