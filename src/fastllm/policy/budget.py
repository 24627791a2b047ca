"""A budget: money is reserved before a request is sent and settled after it, so that the limit is never passed.

Invariants: `spent + reserved <= limit` whenever a reservation is granted, so that spending stays within the limit as
long as no request costs more than was reserved for it. Each reservation ends once, by the first of `settle`, `refund`
and `keep`; later calls change nothing. Amounts are kept as whole millionths of a millionth of a dollar, because sums
of fractions would drift. Any thread may call anything here.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import NamedTuple

from ..errors import BudgetExceededError, ConfigError

_UNITS = 10**12  # in a dollar
_SHARED = 1000  # of them: the least that processes give each other; amounts of shared budgets are rounded up to it
SHARES = _UNITS // _SHARED  # of those in a dollar
_MOST = 1e12  # dollars; beyond it somebody mistook the unit


class Claims(NamedTuple):
    """Of a shared budget, in whole SHARES of a dollar: the limit, what is spent and held here, and what the next one
    needs beyond that, where it was refused."""

    limit: int
    spent: int
    reserved: int
    missing: int


class Budget:
    """At most `limit_usd` dollars; `spent` is what earlier runs used of them already. With `shared`, other processes
    spend of it too: here no more than what `allow` gives, at first nothing.

    Raises ConfigError for an amount that is no finite number of at least 0.
    """

    __slots__ = ("_elsewhere", "_limit", "_lock", "_missing", "_part", "_reserved", "_spent", "shared")

    def __init__(self, limit_usd: float, *, spent: float = 0.0, shared: bool = False) -> None:
        self.shared = shared
        self._limit = _units("budget", limit_usd)
        self._part = 0 if shared else self._limit
        self._elsewhere = 0  # spent by other processes
        self._missing = 0  # what a request may cost for which the part was too small
        self._spent = _units("spent", spent)
        self._reserved = 0
        self._lock = Lock()

    @property
    def limit(self) -> float:
        return self._limit / _UNITS

    @property
    def spent(self) -> float:
        """Dollars that are gone, or may be."""
        return self._spent / _UNITS

    @property
    def reserved(self) -> float:
        """Dollars held for requests under way."""
        return self._reserved / _UNITS

    @property
    def left(self) -> float:
        """Dollars that could be reserved now; 0 where a request cost more than was reserved for it."""
        with self._lock:
            return max(0, self._limit - self._spent - self._reserved) / _UNITS

    def reserve(self, amount: float) -> Reservation:
        """Hold `amount` dollars. BudgetExceededError, at once, where they are not there; its `passing` is True where
        they may be as soon as requests under way are settled."""
        units = self._rounded(_units("amount", amount))
        with self._lock:
            if self._spent + self._reserved + units <= self._part:
                self._reserved += units
                self._missing = 0
                return Reservation(self, units)
            self._missing = units
            spent, reserved = self._spent + self._elsewhere, self._reserved
        raise self._exceeded(units, spent, reserved)

    def allow(self, part: int, elsewhere: int) -> None:
        """Of a shared budget, in SHARES of a dollar: this process may spend so many in all; others have spent so many
        for good."""
        with self._lock:
            self._part, self._elsewhere = part * _SHARED, elsewhere * _SHARED

    def claims(self) -> Claims:
        """Give what processes tell each other of a shared budget."""
        with self._lock:
            amounts = (self._limit, self._spent, self._reserved, self._missing)
            return Claims(*(amount // _SHARED for amount in amounts))

    def _rounded(self, units: int) -> int:
        """Round up where processes share it: what is left must never be less than what can be handed over."""
        return -(-units // _SHARED) * _SHARED if self.shared else units

    def _exceeded(self, units: int, spent: int, reserved: int) -> BudgetExceededError:
        error = BudgetExceededError(
            f"the budget of {_usd(self._limit)} does not allow a request that may cost {_usd(units)}: "
            f"{_usd(spent)} is spent, {_usd(reserved)} is held for requests under way; "
            "raise the budget (it is for one run, or one client), or bound the answers (max_tokens)",
            sent=False,
        )
        error.passing = (reserved > 0 or self.shared) and spent + units <= self._limit
        return error

    def _close(self, reservation: Reservation, spent: int) -> bool:
        with self._lock:
            if reservation.closed:
                return False
            reservation.closed = True
            self._reserved -= reservation._units
            self._spent += spent
            return True

    def __repr__(self) -> str:
        return f"<Budget {_usd(self._limit)}: {_usd(self._spent)} spent, {_usd(self._reserved)} reserved>"


class Reservation:
    """Dollars held for one attempt. The first of `settle`, `refund` and `keep` ends it and gives True; what is called
    after it changes nothing and gives False."""

    __slots__ = ("_budget", "_units", "closed")

    def __init__(self, budget: Budget, units: int) -> None:
        self._budget = budget
        self._units = units
        self.closed = False

    @property
    def amount(self) -> float:
        return self._units / _UNITS

    def settle(self, actual: float) -> bool:
        """Book what it really cost, be it more or less than was held."""
        return self._budget._close(self, self._budget._rounded(_units("actual", actual)))

    def refund(self) -> bool:
        """Book nothing: the provider cannot have seen it, or refused it."""
        return self._budget._close(self, 0)

    def keep(self) -> bool:
        """Book all of it: nobody knows what became of the request, so the money may be gone."""
        return self._budget._close(self, self._units)

    def __repr__(self) -> str:
        return f"<Reservation of {_usd(self._units)}, {'closed' if self.closed else 'open'}>"


def _units(field: str, usd: float) -> int:
    if isinstance(usd, bool) or not isinstance(usd, int | float) or not 0 <= usd <= _MOST:  # NaN compares to nothing
        raise ConfigError(f"{field} must be a number of dollars from 0 to {_MOST:.0f}, not {usd!r}")
    return round(usd * _UNITS)


def _usd(units: int) -> str:
    return dollars(units / _UNITS)


def dollars(usd: float) -> str:
    """Dollars to read: cents where there are any, otherwise two digits that matter."""
    digits = 2 if usd == 0 or usd >= 0.1 else 1 - math.floor(math.log10(usd))
    return f"${usd:,.{digits}f}"
