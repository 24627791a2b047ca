"""Refuses keywords that mean nothing where they are given, and says which one may be meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .errors import ConfigError
from .options import Limits

# Options of a client, and those of them that `with_options` changes. tests/test_sync_parity.py holds them together.
CHANGEABLE = ("api_key", "base_url", "default_headers", "limits", "max_retries", "retry", "timeout")
OPTIONS = frozenset(
    (
        *CHANGEABLE,
        *("budget", "cache", "embeddings_per_request", "leases", "observers", "prices", "routes", "transport"),
        *("unknown_price", "unsupported_params", "workers"),
    )
)
_NO_PARAMETERS = (OPTIONS | {name for name in Limits.__struct_fields__ if name != "adaptive"}) - {"timeout"}


def refuse(unknown: Iterable[str], known: Iterable[str], *, of: str) -> None:
    """Raise ConfigError for a keyword that is no option of a client, with what may be meant."""
    for name in unknown:
        if name in Limits.__struct_fields__:
            hint = f"did you mean limits=Limits({name}=…)?"
        elif name in OPTIONS:
            hint = "it is shared with the client that this one comes from: make a client of its own"
        else:
            hint = nearest(name, known)
        raise ConfigError(f"{of} takes no option {name}; {hint}")


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Say which keyword may be meant, or else `otherwise`, or else which there are."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else otherwise or f"there are {', '.join(known)}"


def refuse_of_client(params: Iterable[str]) -> None:
    """Raise ConfigError for an option of the client among the parameters of a call, which would be sent. `timeout` is
    both; no provider has a parameter of any of the other names."""
    if _NO_PARAMETERS.isdisjoint(params):
        return
    for name in params:
        if name in _NO_PARAMETERS:
            hint = f"{of_client(name)}; extra_body={{…}} sends what a provider calls so"
            raise ConfigError(f"a call takes no option {name}; {hint}")


def of_client(name: str) -> str | None:
    """Say how to give what is an option of the client; None for what is none."""
    if name in CHANGEABLE:
        return f"it is an option of the client: with_options({name}=…) or FastLLM({name}=…)"
    if name in OPTIONS:
        return f"it is an option of the client: FastLLM({name}=…)"
    if name in Limits.__struct_fields__:
        return f"it is an option of the client: with_options(limits=Limits({name}=…))"
    return None
