"""Events: frozen facts about requests, for observers.

They hold the request with its body (the prompt) and its own headers, and the response with its body (the answer), but
no key of an endpoint. An observer must not log bodies or headers: it logs names, counts, times and errors, whose
messages hold at most 200 bytes of a foreign body.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from ..errors import LLMError
from ..types import Request, Response


class AttemptFailed(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt failed. `delay` is the back-off in seconds before the next one, None if there is none."""

    request: Request
    endpoint: str
    attempt: int
    error: LLMError
    delay: float | None


class RequestDone(msgspec.Struct, frozen=True, kw_only=True):
    """One request ended: with a response or with its final error. `left` says that it was a stream which its reader
    left before the end: then the response is what had come until then."""

    request: Request
    response: Response | None
    error: LLMError | None
    seconds: float
    left: bool = False


Event = AttemptFailed | RequestDone


class Observer(Protocol):
    """Called with each event on the engine's loop; must return quickly. What it raises is logged, not raised."""

    def __call__(self, event: Event) -> None: ...


def attempts_only(observer: Observer, event: Event) -> None:
    """Pass on what is about attempts: for requests that stand for several, which are each announced by themselves."""
    if isinstance(event, AttemptFailed):
        observer(event)
