"""The protocol of a place where processes tell each other what they claim of shared limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

INF = float("inf")


class Ask(msgspec.Struct, kw_only=True):
    """What a process tells of one limit: how much it is, what of it is in use here, and what would be.

    The fields of `policy.shares.Claim` mean what they mean there. `spent` is what was used for good, of a budget.
    `stays`: for how many seconds what is in use counts after its process has ended. With `spread`, what nobody wants is
    divided among all; without, it is nobody's, so that little is lost with a process that ends.
    """

    limit: float
    used: float
    want: float
    need: float = 0.0
    since: float = INF
    whole: bool = False
    spread: bool = True
    spent: float = 0.0
    stays: float = 0.0


class Share(msgspec.Struct):
    """How much this process may use now, and what others have spent for good."""

    cap: float
    spent: float = 0.0


class Leases(Protocol):
    """Keeps every process's claims; those of processes that have ended count for as long as what they used does."""

    async def exchange(self, asks: Mapping[bytes, Ask]) -> dict[bytes, Share]:
        """Renew this process's claims, by their limits' keys. An exception leaves them as they were."""
        ...

    async def aclose(self) -> None:
        """Give back all that is not in use any more."""
        ...
