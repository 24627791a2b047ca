"""Retry budget: what may be sent beyond one attempt a request, so that retries never multiply an endpoint's trouble.

A request that is tried eight times is eight requests to a provider that cannot answer one. Of what was sent in the
last SECONDS, retries may be SHARE of the requests and RESERVE a second besides, which a small user never reaches.
"In the last seconds" is a sum that forgets exponentially, for requests and retries alike: O(1) in time and memory, and
in the long run retries <= SHARE * requests + RESERVE * (time + SECONDS), whenever and however often it is asked.

Requests are not counted here: the limiter counts its attempts anyway, and those known to be none are taken off. What
came between two looks is taken to have come evenly.

The numbers are Finagle's (RetryBudget: 20 %, 10 a second, 10 s); gRPC (A6, retry throttling) and Envoy
(retry_budget: 20 %) do likewise. The same rule with other numbers holds hedges down, see `hedging`.
"""

from __future__ import annotations

import math

SHARE = 0.2  # retries per request
BATCH_SHARE = 1.0  # of a batch: its retries take the place of its next rows, so that they add nothing to the load
RESERVE = 10.0  # retries a second whatever the requests
SECONDS = 10.0


class RetryBudget:
    """The budget of one endpoint. Times are monotonic seconds; `attempts` is how many were ever sent, these included.

    `withdraw` before a retry; False: there is nothing left now. `skip` for a further attempt that draws on nothing.
    """

    __slots__ = ("_apart", "_at", "_requests", "_reserve", "_retries", "_seconds", "_seen", "_share")

    def __init__(
        self, now: float, *, share: float = SHARE, reserve: float = RESERVE, seconds: float = SECONDS, attempts: int = 0
    ) -> None:
        self._share = share
        self._reserve = reserve * seconds
        self._seconds = seconds
        self._at = now
        self._seen = attempts  # requests
        self._apart = 0  # attempts that are no requests of their own
        self._requests = self._retries = 0.0  # of the last seconds

    def left(self, now: float, attempts: int) -> float:
        """Give how many retries may follow now."""
        passed = max(0.0, now - self._at) / self._seconds
        self._at = max(self._at, now)
        fade = math.exp(-passed)
        came = max(0, attempts - self._apart - self._seen)
        self._seen += came
        self._requests = fade * self._requests + came * ((1.0 - fade) / passed if passed > 1e-9 else 1.0)
        self._retries *= fade
        return self._share * self._requests + self._reserve - self._retries

    def withdraw(self, now: float, attempts: int, *, batch: bool = False) -> bool:
        """Book one retry, if there is something left for it; for a batch, as many as there are requests."""
        left = self.left(now, attempts)
        if batch:
            left += (BATCH_SHARE - self._share) * self._requests
        if left < 1.0:
            return False
        self._retries += 1.0
        self._apart += 1
        return True

    def skip(self) -> None:
        """An attempt more that is no request: it draws on nothing and brings nothing in."""
        self._apart += 1

    def __repr__(self) -> str:
        return (
            f"<RetryBudget {self._retries:.1f} of {self._share * self._requests + self._reserve:.1f} "
            f"in {self._seconds:g} s>"
        )
