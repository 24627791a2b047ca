"""Breaker: stops asking an endpoint that answers nothing, probes it, and comes back gently.

It opens after so many failures in a row that say nothing about a request (refused or cut connections, 5xx, time-outs),
if they outnumber the answers that came in meanwhile, and lets one probe through every PROBE seconds. The first success
closes it; for RAMP seconds requests then go out at a rate that grows from a half to all of what it was before, so that
nothing is trampled on its first breath.

In a row means: no request that was sent after the first of them succeeded. Where answers take long, that alone says
little, because errors are quick; hence the second condition (twice as many requests as answers: K of the SRE book).
"""

from __future__ import annotations

INF = float("inf")
FAILURES = 8
PROBE = 1.5
RAMP = 2.0


class Breaker:
    """Health of one endpoint. `allows` and `sent` before an attempt, `succeeded` or `failed` after it."""

    __slots__ = (
        "_answers", "_closed_at", "_failures", "_next", "_opened_at", "_probes", "_since", "opened", "proven", "quiet",
        "usual",
    )  # fmt: skip

    def __init__(self) -> None:
        self.opened = False
        self.quiet = False  # closed, and the last attempt succeeded: one more is no news
        self.proven = False  # it has answered before: one that never did is no outage but a wrong address
        self._failures = self._probes = 0
        self._answers = 0  # that came in since the first of the failures in a row was sent
        self._since = -INF  # when the first of the failures in a row was sent
        self._next = -INF
        self._opened_at = self._closed_at = -INF
        self.usual = 0.0  # successes a second, as before the outage

    def when(self, now: float) -> float:
        """Give the earliest time for the next attempt."""
        return self._next if self.opened or now < self._closed_at + RAMP else -INF

    def steady(self, now: float) -> bool:
        """Tell whether it holds nobody back, until the next failure."""
        return not self.opened and now >= self._closed_at + RAMP

    def sent(self, now: float) -> None:
        """An attempt goes out."""
        if self.opened:
            self._next = now + PROBE
        elif now < self._closed_at + RAMP and self.usual:
            share = 0.5 + 0.5 * (now - self._closed_at) / RAMP
            self._next = max(self._next, now - 0.02) + 1.0 / (self.usual * share)

    def succeeded(self, now: float, sent: float) -> None:
        """An answer to what was sent then. One to what was sent before the failures says little about now."""
        self.proven = True
        if sent < self._since:
            self._answers += 1
            return
        self._failures = self._probes = self._answers = 0
        self._since = -INF
        self.quiet = True
        if self.opened:
            self.opened = False
            self._closed_at = self._next = now

    def failed(self, now: float, sent: float, usual: float, *, answered: bool = False) -> bool:
        """Give True if this failure opened it. `usual`: successes a second until now; `answered`: it had a status."""
        self.proven = self.proven or answered
        if sent < self._closed_at:
            return False
        self.quiet = False
        if self.opened:
            self._probes += sent > self._opened_at
            return False
        if not self._failures:
            self._since = sent
        self._failures += 1
        if self._failures < FAILURES or self._failures <= self._answers:
            return False
        if self.steady(now):  # in the midst of a ramp it is not what is usual
            self.usual = usual
        self.opened, self._opened_at = True, now
        self._next = now + PROBE
        self._failures = self._probes = self._answers = 0
        return True

    def open_for(self, now: float) -> float:
        """Give for how many seconds it has been open; 0 if it is closed."""
        return now - self._opened_at if self.opened else 0.0

    @property
    def dead(self) -> bool:
        """Nobody has ever answered here, and as many probes failed as failures had opened it."""
        return not self.proven and self._probes >= FAILURES

    def __repr__(self) -> str:
        return f"<Breaker {'open' if self.opened else 'closed'}, {self._failures} failures in a row>"
