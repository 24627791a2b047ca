"""Shares: how much of one key's limits this process has leased from the file that all processes share.

The file is the only truth: what all processes together have leased never exceeds a limit. A process leases a little
more than it needs at once, and the more the more it used a moment ago, so that most admissions touch no file; near a
limit it leases exactly what is asked for. What it does not use it gives back. What it had leased when it was killed
stays booked: nobody knows what became of it.

- `Rate`, requests or tokens in any 60 seconds: a lease belongs to a slot of GRAIN seconds and is used within it, and
  leaves the window SPAN seconds after the slot's end (policy/window.py says why it is a little more than a minute).
  So no window of 60 seconds ever holds more than the limit, whichever processes fill it.
- `Account`, the money of one period: `recorded`, what the file holds as booked for this process, is never less than
  `held` (requests under way) and `settled` (not yet written) together, except where an answer cost more than its bound.
- `Places`, requests under way: a lease ends after LEASE seconds unless it is renewed, so a killed process lets go.

Each has `plan`, which writes and reads within a transaction and changes nothing here, so that a transaction which fails
leaves all as it was, and `done`, which takes over what was planned once it is committed.
"""

from __future__ import annotations

import math

from ..policy.window import SPAN
from .database import Connection, Database

GRAIN = 0.5  # seconds in a slot
LEASE = 10.0  # seconds for which places are leased
UNITS = 10**9  # in a dollar: whole numbers, because sums of fractions would drift
NEAR = 0.1  # of a limit: with less than that left, nothing is leased beyond what is asked for
NEAR_USD = 1.0
PART = 0.05  # of what is left: the most that is leased beyond it
AHEAD = 8  # requests like the one that asks: the least that is leased beyond it
_DUST = 1e-9

_CHANGE = """INSERT INTO windows VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET amount = max(0.0, amount + excluded.amount)"""
_FORGET = "DELETE FROM windows WHERE key = ? AND kind = ? AND slot < ?"
_ROWS = "SELECT slot, amount FROM windows WHERE key = ? AND kind = ? ORDER BY slot"
_BOOK = """INSERT INTO money VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET booked = booked + excluded.booked, settled = settled + excluded.settled"""
_MONEY = "SELECT booked, settled FROM money WHERE key = ? AND period = ?"
_OTHERS = "SELECT coalesce(sum(amount), 0) FROM places WHERE key = ? AND process != ? AND until > ?"
_PLACE = "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)"


class Refused(Exception):
    """It does not fit. `limit` of which `used` is used; `wait` seconds until it does if nobody else comes, inf if it
    never does; `passing`: requests under way may give something back before."""

    def __init__(self, kind: str, limit: float, used: float, wait: float, passing: bool = False) -> None:
        super().__init__(kind)
        self.kind = kind
        self.limit = limit
        self.used = used
        self.wait = wait
        self.passing = passing


def slot_of(now: float) -> int:
    return int(now / GRAIN)


def oldest_slot(now: float) -> int:
    """The first slot that still counts: what was used in those before it was used more than SPAN seconds ago."""
    return max(0, math.floor((now - SPAN) / GRAIN))


def leaves(slot: int) -> float:
    """When the slot no longer counts; `oldest_slot` of this time is beyond it."""
    return (slot + 1) * GRAIN + SPAN


class Rate:
    """Requests or tokens of one key in any 60 seconds. Times are monotonic seconds that all processes share."""

    __slots__ = ("_changes", "_planned", "before", "free", "key", "kind", "known", "last", "slot", "taken", "used")

    def __init__(self, key: str, kind: str) -> None:
        self.key = key
        self.kind = kind
        self.slot = -1
        self.free = 0.0  # leased for this slot and not used
        self.taken = self.before = 0.0  # used in this slot, and in the one before it
        self.known = False  # the file was read
        self.used = 0.0  # booked by all processes, as far as is known here
        self.last = 0.0  # when the last of that leaves
        self._changes: dict[int, float] = {}  # not yet written, by slot
        self._planned = ((), 0.0, 0.0, 0.0)  # type: tuple[tuple[int, ...], float, float, float]

    @property
    def dirty(self) -> bool:
        return bool(self._changes)

    def roll(self, now: float) -> None:
        """Begin the slot of this moment; what is left of the one before goes back."""
        slot = slot_of(now)
        if slot > self.slot:
            self.give_back()
            self.before = self.taken if slot == self.slot + 1 else 0.0
            self.slot, self.free, self.taken = slot, 0.0, 0.0

    def give_back(self) -> None:
        """What is leased and not used, at the next write."""
        if self.free:
            self._change(self.slot, -self.free)
            self.free = 0.0

    def take(self, amount: float) -> int:
        """Use some of what is leased; gives the slot, for `settle`."""
        self.free = max(0.0, self.free - amount)
        self.taken += amount
        return self.slot

    def settle(self, slot: int, difference: float) -> None:
        """Correct what was used in a slot: more (which may exceed the limit: it has happened), or less (negative)."""
        if slot == self.slot and difference <= self.free:
            self.free -= difference
        else:
            self._change(slot, difference)

    def _change(self, slot: int, difference: float) -> None:
        self._changes[slot] = self._changes.get(slot, 0.0) + difference
        self.used = max(0.0, self.used + difference)

    def plan(self, db: Connection, now: float, amount: float = 0.0, limit: float = math.inf) -> None:
        """Write what changed, and lease what `amount` lacks. Refused where it does not fit."""
        oldest = oldest_slot(now)
        alive = [(self.key, self.kind, slot, change) for slot, change in self._changes.items() if slot >= oldest]
        db.executemany(_CHANGE, alive)
        db.execute(_FORGET, (self.key, self.kind, oldest))
        rows = db.execute(_ROWS, (self.key, self.kind)).fetchall()
        used = math.fsum(booked for _, booked in rows)
        short, grant = amount - self.free, 0.0
        if short > 0.0:
            room = limit * (1.0 + _DUST) - used
            if short > room:
                raise Refused(self.kind, limit, used - self.free, self._wait(rows, now, short - room, amount > limit))
            grant = short
            if room - short > NEAR * limit:
                grant += math.floor(min(PART * (room - short), AHEAD * amount + max(self.before, self.taken)))
            db.execute(_CHANGE, (self.key, self.kind, self.slot, grant))
        last = leaves(self.slot if grant else rows[-1][0]) if grant or rows else 0.0
        self._planned = (tuple(self._changes), grant, used + grant, last)

    def look(self, database: Database, now: float) -> None:
        """See what is booked, where nothing could be leased."""
        oldest = oldest_slot(now)
        amounts = {slot: booked for slot, booked in database.read(_ROWS, (self.key, self.kind)) if slot >= oldest}
        for slot, change in self._changes.items():
            if slot >= oldest:
                amounts[slot] = amounts.get(slot, 0.0) + change
        self.used = max(0.0, math.fsum(amounts.values()))
        self.last = leaves(max(amounts)) if amounts else 0.0
        self.known = True

    def done(self) -> None:
        """The plan is committed."""
        written, grant, self.used, self.last = self._planned
        self.known = True
        for slot in written:
            del self._changes[slot]
        self.free += grant

    @staticmethod
    def _wait(rows: list[tuple[int, float]], now: float, excess: float, never: bool) -> float:
        for slot, booked in rows if not never else ():
            excess -= booked
            if excess <= 0.0:
                return leaves(slot) - now
        return math.inf

    def remaining(self, limit: float) -> float:
        return max(0.0, limit - self.used + self.free)


class Account:
    """The money of one key in one period ("2026-11-28" or "2026-11"), in billionths of a dollar."""

    __slots__ = ("_planned", "busy", "held", "key", "period", "recorded", "settled")

    def __init__(self, key: str, period: str) -> None:
        self.key = key
        self.period = period
        self.recorded = self.held = self.settled = 0
        self.busy = False  # somebody reserved since the last plan
        self._planned = (0, 0)

    @property
    def free(self) -> int:
        return self.recorded - self.held - self.settled

    @property
    def dirty(self) -> bool:
        return bool(self.settled or self.free)

    @property
    def over(self) -> bool:
        """Nothing here is still to be written or settled."""
        return not (self.recorded or self.held or self.settled)

    def take(self, units: int) -> None:
        self.held += units
        self.busy = True

    def close(self, units: int, cost: int) -> None:
        """End a reservation with what it cost."""
        self.held -= units
        self.settled += cost

    def plan(self, db: Connection, units: int = 0, limit: float | None = None) -> None:
        """Write what was settled; with a limit, lease for a reservation of `units` (what is free is counted anew).
        Refused where the money is not there. What costs nothing is never refused."""
        kept = max(0, self.free) if self.busy and limit is None else 0
        if limit is not None:
            row = db.execute(_MONEY, (self.key, self.period)).fetchone() or (0, 0)
            most = round(limit * UNITS)
            booked = row[0] - self.recorded + self.held + self.settled
            left = most - booked
            if units > max(0, left):
                gone = row[1] + self.settled
                passing = gone < booked and gone + units <= most
                raise Refused("day" if len(self.period) == 10 else "month", limit, gone / UNITS, math.inf, passing)
            kept = units
            if left - units > max(NEAR * most, NEAR_USD * UNITS):
                kept += min(int(PART * (left - units)), max(AHEAD * units, self.held + self.settled))
        change = self.held + kept + self.settled - self.recorded
        if change or self.settled:
            db.execute(_BOOK, (self.key, self.period, change, self.settled))
        self._planned = (self.held + kept, self.settled)

    def done(self) -> None:
        self.recorded, written = self._planned
        self.settled -= written
        self.busy = False


class Places:
    """Requests of one key under way, here and in other processes."""

    __slots__ = ("_planned", "key", "leased", "process", "renew_at", "taken")

    def __init__(self, key: str, process: str) -> None:
        self.key = key
        self.process = process
        self.taken = self.leased = 0
        self.renew_at = math.inf
        self._planned = (0, math.inf)

    @property
    def dirty(self) -> bool:
        return self.leased > 0

    def plan(self, db: Connection, now: float, limit: int | None = None) -> None:
        """Renew what is in use and give back the rest; with a limit, lease one more. Refused where all are taken."""
        wanted = self.taken
        if limit is not None:
            (others,) = db.execute(_OTHERS, (self.key, self.process, now)).fetchone()
            wanted += 1
            if others + wanted > limit:
                raise Refused("parallel", limit, others + self.taken, 1.0)
            if limit - others - wanted > NEAR * limit:
                wanted += min(int(PART * (limit - others - wanted)), max(AHEAD, self.taken))
        if wanted != self.leased or now >= self.renew_at:
            db.execute(_PLACE, (self.key, self.process, wanted, now + LEASE))
            self._planned = (wanted, now + LEASE / 4 if wanted else math.inf)

    def done(self) -> None:
        self.leased, self.renew_at = self._planned
