"""The command line: each command lives in its module and is imported only when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from .. import __version__
from ..errors import FastLLMError
from .say import say, settle, silence

# Name -> what it does, for `fastllm --help` without importing the command. The module has the same name.
COMMANDS = {
    "run": "Answer a file of prompts: INPUT -> --output OUT; run it again to resume.",
    "jobs": "List, show, resume, export or remove the jobs under a directory.",
    "chat": "Ask one question and stream the answer.",
    "serve": "Serve OpenAI's and Anthropic's API in front of any provider: the gateway.",
    "mock": "Serve a model that needs no model, with real rate limits, for tests.",
    "keys": "Create, list, rotate and revoke the gateway's keys.",
    "usage": "Show what was used and spent, by day, key, model or endpoint.",
    "cache": "Look at or clear the disk cache.",
    "providers": "List who can be asked, and whose keys are set.",
    "prices": "List what models cost, and as of when.",
    "config": "Show every setting and where its value comes from.",
}

# A command without arguments is a question, no mistake: click before 8.2 takes it so, too.
_ASKED_FOR_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())


class _Lazy(click.Group):
    """Imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f".{name}", __name__), "command")  # noqa: B009
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fastllm", message="%(prog)s %(version)s")
def cli() -> None:
    """Push very many LLM requests through any provider: fast, never twice, without losing one answer."""


def main() -> None:
    """Run the command line; a FastLLMError becomes one line and exit status 2."""
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        status = 130
    except _ASKED_FOR_HELP as error:
        click.echo(error.format_message())
        status = 0
    except click.ClickException as error:
        status = _complain(error.format_message(), _usage(error))
    except FastLLMError as error:
        status = _complain(str(error))
    except BrokenPipeError:
        status = 141
        silence(sys.stdout)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        status = _complain(f"{error.strerror or error}{where}")
        silence(sys.stdout)
    settle()
    sys.exit(status if isinstance(status, int) else 0)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f" (see `{context.command_path} --help`)" if context is not None else ""


def _complain(message: str, more: str = "") -> int:
    say(f"fastllm: error: {message}{more}")
    return 2
