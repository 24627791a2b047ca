"""`fastllm chat PROMPT`: one question, its answer streamed to standard output."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from .. import loop
from ..attachment import attach
from ..client import AsyncFastLLM
from ..errors import ConfigError, InvalidRequestError, LLMError
from ..settings import Settings
from .options import check_model, local_hint, setting_options, settings_of
from .say import say


@click.command("chat")
@click.argument("prompt")
@setting_options(
    "model",
    "base_url",
    "api_key_env",
    "system",
    "temperature",
    "max_tokens",
    "timeout",
    "max_retries",
    "cache",
    "cache_dir",
    "unsupported_params",
    system="System message.",
    temperature="Sampling temperature.",
    max_tokens="Longest answer in tokens.",
)
@click.option(
    "--attach",
    "attached",
    multiple=True,
    metavar="FILE",
    help="Image, PDF or sound to send with PROMPT; may be given more than once.",
)
def command(prompt: str, attached: tuple[str, ...], **flags: Any) -> int:
    """Ask PROMPT (- reads it from standard input) and stream the answer."""
    settings = settings_of(flags)
    try:
        text = sys.stdin.read() if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not {error.encoding} at byte {error.start}") from None
    if not settings["model"]:
        raise ConfigError("no model was given: name one with --model, such as --model local/smollm2, or FASTLLM_MODEL")
    check_model(settings)
    content: str | list[dict[str, Any]] = text
    if attached:
        content = [{"type": "text", "text": text}, *map(_attached, attached)]
    try:
        with local_hint(settings):
            loop.run(_chat(content, settings))
    except LLMError as error:
        sys.stdout.flush()
        say(f"fastllm: error: {error}")
        return 2 if isinstance(error, InvalidRequestError) else 1
    return 0


def _attached(path: str) -> dict[str, Any]:
    try:
        return attach(path)
    except OSError as error:
        raise ConfigError(f"--attach {path}: {error.strerror or error}") from None


async def _chat(prompt: str | list[dict[str, Any]], settings: Settings) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": settings["system"]}] if settings["system"] else []
    messages.append({"role": "user", "content": prompt})
    params = {name: settings[name] for name in ("temperature", "max_tokens") if settings[name] is not None}
    async with AsyncFastLLM(
        base_url=settings["base_url"],
        api_key=settings.api_key(os.environ),
        timeout=settings.timeout(),
        retry=settings.retry(),
        cache=settings.cache(),
        unsupported_params=settings["unsupported_params"],
        routes=settings.routes,
    ) as client:
        stream = await client.chat.completions.create(
            model=settings["model"], messages=messages, stream=True, extra_body=params
        )
        begun = False
        try:
            async for text in stream.text_stream:
                click.echo(text, nl=False)
                begun = begun or bool(text)
        finally:
            if begun or sys.exc_info()[0] is None:  # an error stands on a line of its own
                click.echo()
