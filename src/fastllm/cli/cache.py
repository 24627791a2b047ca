"""`fastllm cache stats|clear|prune`: the disk cache on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from .. import loop
from ..cache.disk import DiskCache
from ..cache.place import checked_directory
from .options import setting_options, settings_of

F = TypeVar("F", bound=Callable[..., Any])


@click.group("cache")
def command() -> None:
    """Look at or clear the disk cache."""


def _open(flags: dict[str, Any]) -> DiskCache | None:
    """Open the cache, or say that there is none: looking makes nothing."""
    policy = settings_of(flags).cache(in_use=False)
    directory = checked_directory(policy.directory)
    if not directory.exists():
        click.echo(f"no answers are kept: there is no {directory}")
        return None
    return DiskCache(directory=policy.directory, ttl=policy.ttl, max_bytes=policy.disk_bytes)


@command.command()
@setting_options("cache_dir")
def stats(**flags: Any) -> None:
    """Print how many answers are kept and how much room they take."""

    async def main() -> None:
        if (cache := _open(flags)) is None:
            return
        found = await cache.stats()
        await cache.aclose()
        bound = f" of {found.max_bytes / 1e6:,.0f} MB" if found.max_bytes else ""
        click.echo(f"{found.entries:,} answers, {found.bytes / 1e6:,.1f} MB{bound}, {found.expired:,} expired")
        click.echo(f"in {cache.directory}")

    loop.run(main())


@command.command()
@setting_options("cache_dir")
def clear(**flags: Any) -> None:
    """Remove every answer."""

    async def main() -> None:
        if (cache := _open(flags)) is None:
            return
        removed = await cache.clear()
        await cache.aclose()
        click.echo(f"removed {removed:,} answers")

    loop.run(main())


@command.command()
@setting_options("cache_dir")
def prune(**flags: Any) -> None:
    """Remove expired answers and those beyond the size bound."""

    async def main() -> None:
        if (cache := _open(flags)) is None:
            return
        removed = await cache.prune()
        await cache.aclose()
        click.echo(f"removed {removed:,} answers")

    loop.run(main())
