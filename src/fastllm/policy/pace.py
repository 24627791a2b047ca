"""Pace: so many requests a second, evenly; and Dial: a number that climbs while all is well and gives way when not.

A Dial finds a limit that nobody tells. Each refusal lowers it by CUT; while it is what holds requests back, time
without a refusal raises it, by at most CLIMB a second and by at most PER_ANSWER an answer. The two balance where
PER_ANSWER / CUT = 0.4 % of the attempts are refused (above 50 a second CLIMB keeps it below that). Long peace raises
it faster and faster: a limit that nobody tells and that was raised fourfold is found in some 80 seconds.
"""

from __future__ import annotations

import math

CUT = 0.02
CLIMB = 0.004
PER_ANSWER = 8e-5
PEACE = 10.0  # seconds (or 80 answers, if they take longer) after which it climbs faster
HASTE = 0.001
_FASTEST = 0.1  # of the value, a second
_AT_ONCE = 5e-4  # of its seconds: for so long a Rate forgets nothing, and makes up for it then
_SLACK = 0.05  # seconds: what a late timer missed may be made up for


class Rate:
    """Events a second, forgetting exponentially over `seconds`."""

    __slots__ = ("_at", "_seconds", "_weight", "value")

    def __init__(self, seconds: float = 10.0) -> None:
        self.value = 0.0
        self._seconds = seconds
        self._weight = 1.0 / seconds
        self._at = 0.0

    def tick(self, now: float) -> None:
        """One event."""
        share = (now - self._at) * self._weight
        if share < _AT_ONCE:
            self.value += self._weight
            return
        self.value = self.value * (1.0 - share if share < 0.01 else math.exp(-share)) + self._weight
        self._at = now

    def at(self, now: float) -> float:
        """Give the rate as it is if nothing has happened since the last event."""
        share = (now - self._at) / self._seconds
        return self.value * (1.0 - share if share < 0.01 else math.exp(-share))

    def __repr__(self) -> str:
        return f"<Rate {self.value:.4g} a second>"


class Dial:
    """A number found by trial. Times are monotonic seconds."""

    __slots__ = ("_last", "_since", "value")

    def __init__(self, value: float = float("inf")) -> None:
        self.value = value
        self._since = self._last = 0.0

    def set(self, now: float, value: float) -> None:
        """Begin anew from a value that was measured."""
        self.value = value
        self._since = self._last = now

    def cut(self, now: float, share: float = CUT) -> None:
        """A refusal that this number let through."""
        self.value *= 1.0 - share
        self._since = self._last = now

    def climb(self, now: float, rate: float, peace: float = PEACE) -> None:
        """An answer to a request that this number had held back; `rate` is answers a second."""
        step = now - self._last
        self._last = now
        if step <= 0.0 or rate <= 0.0:
            return
        speed = min(CLIMB, PER_ANSWER * rate)
        beyond = (now - self._since) / max(peace, min(80.0 / rate, 3.0 * peace)) - 1.0
        if beyond > 0.0:
            speed += HASTE * beyond * beyond
        self.value *= 1.0 + min(speed, _FASTEST) * min(step, 1.0)

    def __repr__(self) -> str:
        return f"<Dial {self.value:.4g}>"


class Pace(Dial):
    """Lets requests through at `value` a second, without bursts; infinity lets all through."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def when(self) -> float:
        """Give the earliest time for the next request."""
        return self._next

    def take(self, now: float) -> None:
        """One request goes out now."""
        self._next = max(self._next, now - _SLACK) + 1.0 / self.value

    def set(self, now: float, value: float) -> None:
        super().set(now, value)
        self._next = min(self._next, now + 1.0 / value)

    def __repr__(self) -> str:
        return f"<Pace {self.value:.4g} a second>"
