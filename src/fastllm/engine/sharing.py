"""Sharing: keeps an engine's limiters and its budget within what its process may use of limits that others share.

One task exchanges claims through the engine's leases: five times a second while something changes, at once where a
request waits for a larger part, and otherwise once a second. Where that fails, the parts stay as they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging

import msgspec

from ..clock import Clock
from ..leases.base import INF, Ask, Leases, Share
from ..options import Limits
from ..policy.budget import Budget
from .limiter import Limiter
from .meters import AHEAD

logger = logging.getLogger("fastllm")

BEAT = 0.2  # seconds between exchanges
SOON = 0.02  # the least of them
IDLE = 1.0  # the same, while nothing changes
_BUDGET = b"budget, in units"  # in whole ones: with fractions the last of it would be lost in rounding


class Sharing:
    """What one engine shares with others. Made in the loop that it works in."""

    def __init__(self, leases: Leases, clock: Clock, budget: Budget | None = None, *, where: str = "") -> None:
        self.where = where  # for other processes: the file
        self._leases = leases
        self._clock = clock
        self._budget = budget
        self._since = INF  # from when on somebody has waited for money
        self._limiters: dict[bytes, Limiter] = {}
        self._told: dict[bytes, Ask] = {}
        self._hungry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warned = False

    def limiter(self, limits: Limits, place: bytes, *, ceiling: int) -> Limiter:
        """Give the limiter for this place, the same one each time; its limits are shared with all that say the same
        of the same place."""
        key = hashlib.sha256(place + msgspec.json.encode(limits)).digest()
        found = self._limiters.get(key)
        if found is None:
            found = self._limiters[key] = Limiter(limits, self._clock, ceiling=ceiling, shared=True)
            found.wanting = self._hungry.set
            self._hungry.set()
            if self._task is None and (found.parts or self._budget is not None):
                self._task = asyncio.get_running_loop().create_task(self._run(), name="fastllm-sharing")
        return found

    async def _run(self) -> None:
        while True:
            changed = await self._exchange()
            await self._clock.sleep(SOON)
            if self._hungry.is_set():
                self._hungry.clear()
                continue
            waiter = asyncio.ensure_future(self._hungry.wait())
            timer = asyncio.ensure_future(self._clock.sleep(BEAT if changed else IDLE))
            try:
                await asyncio.wait((waiter, timer), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiter.cancel()
                timer.cancel()
            self._hungry.clear()

    async def _exchange(self) -> bool:
        """Tell what is used and wanted here, and take what is given. False if nothing was new."""
        asks: dict[bytes, Ask] = {}
        keys: dict[Limiter, list[bytes]] = {}
        for place, limiter in self._limiters.items():
            keys[limiter] = [place + part.name.encode() for part in limiter.parts]
            asks.update(zip(keys[limiter], limiter.asks(), strict=True))
        if self._budget is not None:
            asks[_BUDGET] = self._ask_for_money(self._budget)
        try:
            shares = await self._leases.exchange(asks)
        except Exception as error:  # what cannot be told is not taken
            if not self._warned:
                self._warned = True
                logger.warning("limits cannot be shared (%s); what this process has of them stays as it is", error)
            return False
        self._warned = False
        changed, self._told = asks != self._told, asks
        for limiter, names in keys.items():
            limiter.allow([shares[name].cap for name in names])
        if self._budget is not None:
            share: Share = shares[_BUDGET]
            self._budget.allow(int(share.cap), int(share.spent))
        return changed

    def _ask_for_money(self, budget: Budget) -> Ask:
        limit, spent, reserved, missing = map(float, budget.claims())
        used = spent + reserved
        self._since = min(self._since, self._clock.now()) if missing else INF
        want = used + max(4 * missing, reserved, float(int(AHEAD * limit)))
        return Ask(
            limit=limit,
            used=used,
            want=min(want, limit),
            need=used + missing if missing else 0.0,
            since=self._since,
            whole=True,
            spread=False,
            spent=spent,
            stays=INF,
        )

    async def aclose(self) -> None:
        """Give back what is not in use."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._exchange()
        await self._leases.aclose()

    def __repr__(self) -> str:
        return f"<Sharing of {len(self._limiters)} endpoints through {self._leases!r}>"
