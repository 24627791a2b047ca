"""Record: what became of one request, for logs, metrics and bills. It holds no prompt, no answer and no key."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ..answers import Usage

logger = logging.getLogger("fastllm.gateway")


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request of a client. `at` is wall time; `seconds` until the end of the answer, `first_byte` until its first,
    `overhead` what of that was not the provider's. `status` is 499 where the client went away before the end; `cost` is
    in USD, None where it is not known. `tenant` is an id, "" where there are no keys."""

    at: float
    request_id: str
    method: str
    route: str  # the operation, such as /chat/completions; "" for what is none
    status: int
    seconds: float
    tenant: str = ""
    model: str = ""
    endpoint: str = ""
    stream: bool = False
    cached: bool = False
    attempts: int = 0
    first_byte: float | None = None
    overhead: float | None = None
    usage: Usage | None = None
    cost: float | None = None
    error: str = ""  # its code or class
    kind: str = ""  # the error's class, or the gateway's own code: never a provider's word
    sent_bytes: int = 0


Listener = Callable[[Record], None]


def tell(listeners: Sequence[Listener], records: Iterable[Record]) -> None:
    """Tell each of them; what one raises is logged, and the others hear of it all the same."""
    for listener in listeners:
        for record in records:
            try:
                listener(record)
            except Exception as error:
                logger.error("a listener failed with %s; requests go on", type(error).__name__)
