"""Runs of a job that there was already: what they do about it, and the command for one, to be kept and put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..formats.remote import is_remote
from ..jobs.journal import Identity
from ..types import _without_secrets

_PROMPTS = ("--prompt", "--system")  # the journal has them; the manifest, which may be shown around, has not
_PLACES = ("--output", "-o")  # a job may be moved
_ONCE = ("--overwrite", "--force", "--retry-failed", "--no-retry-failed", "--dry-run")


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """What a run does about an earlier one."""

    overwrite: bool = False
    force: bool = False
    retry_failed: bool | None = None


def command_to_keep(arguments: Sequence[str]) -> list[str]:
    """Give the arguments of a run without prompts, secrets, its output and what was meant for that one run."""
    kept, skip = [], False
    for word in map(_harmless, arguments):
        name = word.partition("=")[0]
        if skip or name in _ONCE:
            skip = False
        elif name in _PROMPTS or name in _PLACES:
            skip = "=" not in word
        elif name.startswith("-o") and not name.startswith("--"):
            continue
        else:
            kept.append(word)
    return kept


def _harmless(word: str) -> str:
    """Leave out of a URL what may be a key or a signature: user, password and query."""
    if is_remote(word):
        return _without_secrets(word)
    name, equals, value = word.partition("=")
    return f"{name}={_without_secrets(value)}" if equals and name.startswith("-") and is_remote(value) else word


def command_again(kept: Sequence[str], output: Path, identity: Identity) -> list[str]:
    """Give the arguments of the next run: what was kept, and what of the job came from elsewhere."""
    words = [*kept, f"--output={output.absolute()}"]
    values = (
        ("--prompt", identity.prompt),
        ("--system", identity.system),
        ("--model", identity.model or None),
        ("--base-url", identity.base_url),
    )
    for flag, value in values:
        if value is not None and not any(word.partition("=")[0] == flag for word in words):
            words.append(f"{flag}={value}")
    return words
