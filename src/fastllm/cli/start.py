"""Start: what `fastllm serve` does with its flags: check, then serve, from this process or from several."""

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
from ..gateway.checks import check, check_shared
from ..gateway.database import default_path
from ..gateway.server import bound, origin_of
from ..gateway.setup import Setup, read
from ..gateway.supervisor import Place, Supervisor
from ..gateway.tenancy import Tenancy
from ..worker import checked_size
from .say import Saying, say
from .serving import Serving, say_where


def start(flags: dict[str, Any], *, only_check: bool, told: str | None) -> int:
    """Serve until a signal, or only say what would be served; gives the exit status. `told`: the place of one of
    several processes. Raises ConfigError."""
    setup = read(flags, os.environ)  # what is wrong there is said before any file is made
    place = None if told is None else Place.of(told)
    size = checked_size(setup.settings["workers"])
    if size > 1:
        check_shared(setup)
    if only_check and not Path(setup.settings["db"] or default_path()).exists():
        _show(setup, loop.run(check(setup)))  # a look makes no file
        return 0
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
    return _supervise(setup, size)


def _show(setup: Setup, lines: list[str]) -> None:
    options = setup.options
    click.echo(f"listens on {options.host}:{options.port}")
    click.echo("wants a key" if setup.keys is not None else "wants no key")
    for line in lines:
        click.echo(f"serves {line}")
    click.echo(f"models: {', '.join(setup.catalog.names) or 'none'}")


def _supervise(setup: Setup, size: int) -> int:
    """Serve from several processes."""
    options = setup.options
    with bound(options.host, options.port) as listening, tempfile.TemporaryDirectory(prefix="fastllm-serve-") as folder:
        origin = origin_of(options.host, listening.getsockname()[1])
        logging.getLogger("fastllm").addHandler(Saying())
        command = [sys.executable, "-m", "fastllm.cli", *sys.argv[1:], "--place"]
        supervisor = Supervisor(command, size, listening, Path(folder), on_stop=lambda: say("fastllm: stopping"))
        status = supervisor.run(lambda: say_where(origin))
    if status:
        say("fastllm: error: the processes that serve died; what they said stands above")
    return status
