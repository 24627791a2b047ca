"""`fastllm prices`: what models cost, and as of when."""

from __future__ import annotations

import difflib
from typing import Any

import click
import msgspec

from ..build import price_table
from ..errors import ConfigError
from ..policy.pricing import Price, PriceTable
from .options import setting_options, settings_of


@click.command("prices")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--provider", metavar="NAME", help="Only this provider's models.")
@setting_options("prices")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(models: tuple[str, ...], provider: str | None, as_json: bool, **flags: Any) -> None:
    """List prices in US dollars per million tokens; MODEL is a model's name or a part of names."""
    table = price_table(settings_of(flags)["prices"])
    if provider is not None and provider not in table.providers:
        raise ConfigError(f"no prices are known for the provider {provider!r}{_hint(provider, table.providers)}")
    found = list(dict.fromkeys(price for model in models for price in _named(table, provider, model)))
    if not models:
        found = [price for price in table if provider in (None, price.provider)]
    if as_json:
        shown = {"date": table.date, "currency": "USD", "per_tokens": 1_000_000, "free": sorted(table.free)}
        click.echo(msgspec.json.format(msgspec.json.encode({**shown, "models": found})).decode())
        return
    click.echo(f"US dollars per million tokens; list prices of {table.date}, standard tier; they change")
    for line in _lines(found):
        click.echo(line)
    if not models:
        free = sorted(table.free if provider is None else table.free & {provider})
        if free:
            click.echo(f"Free, whatever the model: {', '.join(free)}")


def _named(table: PriceTable, provider: str | None, model: str) -> list[Price]:
    """The model's own price, else those of all whose name holds the text."""
    price = table.find(provider, model)
    if price is not None:
        return [price]
    among = [price for price in table if provider in (None, price.provider)]
    found = [price for price in among if model.lower() in _name(price).lower()]
    if not found:
        raise ConfigError(f"no price is known for {model!r}{_hint(model, [_name(price) for price in among])}")
    return found


def _hint(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; --prices FILE takes prices of your own"


def _name(price: Price) -> str:
    return f"{price.provider}/{price.model}"


def _lines(prices: list[Price]) -> list[str]:
    """A table of aligned columns, each price with its second line where the prompt is long, and its note."""
    rows = [("model", "input", "cached", "output", "max answer", "context", "")]
    for price in prices:
        limits = (_count(price.max_output_tokens), _count(price.context))
        note = price.note
        if price.per_request:
            note = f"and {_usd(price.per_request)} a request; {note}"
        rows.append((_name(price), _usd(price.input), _usd(price.cached_input), _usd(price.output), *limits, note))
        if (long := price.long) is not None:
            name = f"  prompts above {long.above:,} tokens"
            rows.append((name, _usd(long.input), _usd(long.cached_input), _usd(long.output), "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(widths[i]) for i, cell in enumerate(row[1:6], 1)), row[6]]
        lines.append("  ".join(cells).rstrip())
    return lines


def _usd(price: float | None) -> str:
    """At least two digits after the point, and all that the price has."""
    if price is None:
        return "-"
    text = f"{price:.6f}".rstrip("0")
    return text + "0" * max(0, 2 - len(text.partition(".")[2]))


def _count(tokens: int | None) -> str:
    return "-" if tokens is None else f"{tokens:,}"
