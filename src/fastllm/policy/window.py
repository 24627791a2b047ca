"""A sliding-window ledger: how much was used in the last minute (or day), and when the next amount will fit.

Invariants: `used` equals the sum of the live buckets; an amount leaves the window no sooner than `seconds` plus the
guard after the end of the bucket it was booked in, so that no window of that length, wherever it begins, ever holds
more than the limit, even if the provider sees one request a quarter of a second later than another. A minute-sized
token bucket would let twice the limit through.

Buckets of a 600th of the window bound the memory: some 600 of them whatever the rate (an entry per request would
hold 69 MiB at 5,000 a second) at the price of 0.2 % of the rate.
"""

from __future__ import annotations

from collections import deque

WINDOW = 60.0
DAY = 86400.0
GUARD = 0.25  # how much later one request may reach the provider than another, in seconds
SPAN = WINDOW + GUARD
BUCKET = 0.1
_BUCKETS = WINDOW / BUCKET
_DUST = 1e-9  # shares of a limit that are rounding, not use


class Entry:
    """One bucket: the amount booked in it, and what of that was given back as refused.

    `expires` is 0 once it has left the window.
    """

    __slots__ = ("amount", "expires", "refused")

    def __init__(self, expires: float) -> None:
        self.expires = expires
        self.amount = 0.0
        self.refused = 0.0


class Window:
    """Books amounts against `limit` in any `seconds`. Times are monotonic seconds and must not go back.

    The limit may be changed at any time; infinity only counts.
    """

    __slots__ = ("_bucket", "_buckets", "_oldest", "_span", "_tick", "edge", "last", "limit", "seconds", "used")

    def __init__(self, limit: float, seconds: float = WINDOW) -> None:
        self.limit = limit
        self.seconds = seconds
        self.used = 0.0
        self._span = seconds + GUARD
        self._bucket = seconds / _BUCKETS
        self._buckets: deque[Entry] = deque()
        self._tick = -1
        self.edge = -float("inf")  # where the last bucket ends
        self.last = Entry(0.0)
        self._oldest = float("inf")  # when the first bucket leaves

    def fits(self, now: float, amount: float) -> bool:
        """Tell whether the amount could be booked now."""
        if now >= self._oldest:
            self._expire(now)
        return self.used + amount <= self.limit or self._dust(amount)

    def _dust(self, amount: float) -> bool:
        """Sums of floats may miss a limit that they meet exactly."""
        return self.used + amount <= self.limit * (1.0 + _DUST)

    def add(self, now: float, amount: float) -> Entry:
        """Book the amount, whether it fits or not; the receipt is for `settle`."""
        if now >= self.edge:
            self.open(now)
        entry = self.last
        entry.amount += amount
        self.used += amount
        return entry

    def settle(self, entry: Entry, difference: float) -> None:
        """Correct a booking: add what it cost more, or give back what it cost less (negative)."""
        if entry.expires:
            entry.amount += difference
            self.used += difference

    def when(self, now: float, amount: float) -> float:
        """Give the earliest time at which the amount fits if nothing else is booked; inf if it never does."""
        if self.fits(now, amount):
            return now
        if amount > self.limit * (1.0 + _DUST):
            return float("inf")
        excess = self.used + amount - self.limit * (1.0 + _DUST)
        for entry in self._buckets:
            excess -= entry.amount
            if excess <= 0:
                return entry.expires
        return self._buckets[-1].expires if self._buckets else now

    def used_at(self, now: float) -> float:
        """Give what is used, changing nothing: for another thread that only looks."""
        return max(0.0, self.used - sum(entry.amount for entry in tuple(self._buckets) if entry.expires <= now))

    def next_out(self, now: float) -> float:
        """Give when the next of what is used leaves, changing nothing; now, if nothing is used."""
        return next((entry.expires for entry in tuple(self._buckets) if entry.expires > now), now)

    def recent(self, last: Entry, seconds: float) -> tuple[float, float]:
        """Give what was booked and kept, and what was refused, in the seconds that end with the bucket `last`."""
        kept = refused = 0.0
        first = last.expires - seconds
        for entry in reversed(self._buckets):
            if entry.expires <= first:
                break
            if entry.expires <= last.expires:
                kept += entry.amount
                refused += entry.refused
        return kept, refused

    def open(self, now: float) -> None:
        """Begin another bucket, which is `last` until `edge`."""
        if now >= self._oldest:  # nobody may ever ask whether it fits
            self._expire(now)
        self._tick = max(int(now / self._bucket), self._tick + 1)  # 1.9 / 0.1 is less than 19
        self.edge = (self._tick + 1) * self._bucket
        self.last = Entry(self.edge + self._span)
        self._buckets.append(self.last)
        self._oldest = self._buckets[0].expires

    def _expire(self, now: float) -> None:
        buckets = self._buckets
        while buckets and buckets[0].expires <= now:
            entry = buckets.popleft()
            self.used -= entry.amount
            entry.expires = 0.0
        if buckets:
            self._oldest = buckets[0].expires
        else:
            self._oldest = float("inf")
            self.used = 0.0  # float dust does not accumulate

    def __repr__(self) -> str:
        limit = f" of {self.limit:.0f}" if self.limit != float("inf") else ""
        return f"<Window {self.used:.0f}{limit} in {self.seconds:g} s, {len(self._buckets)} buckets>"
