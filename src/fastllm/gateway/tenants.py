"""Tenants: whether a key may make this request now, and what it has used; the same for all processes on one file.

Around each request of a key::

    tenants.check_model(key, model)
    admission = tenants.admit(key, tokens, cost_bound)  # estimated tokens, and the most dollars it can cost
    try:
        …
        admission.settle(usage_tokens, cost)  # answered: what it really was
    finally:
        admission.release()  # the place is free; unsettled, what was reserved stays booked

Rules. A request counts in all limits or in none. Money is reserved before and settled after, so that spending stays
within a budget as long as no answer costs more than its bound. What nobody knows the cost of (a connection that broke)
stays booked as reserved, and of a client that left its prompt and what had come; what was not sent, or was
refused by the provider, is given back by `settle(0, 0.0)`. Days and months are UTC, and a request belongs to those in
which it was admitted. Admitting is memory alone, but for the moments when a lease must be taken: then it is one
transaction of some 100 µs, and at most PATIENCE seconds where another process writes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from ..clock import Clock, SystemClock
from ..errors import (
    BudgetExceededError,
    ConfigError,
    LimitExceededError,
    LLMError,
    PermissionDeniedError,
    RateLimitError,
)
from ..policy.budget import dollars
from .database import Connection, Database
from .keys import MOST_USD, VirtualKey
from .shares import GRAIN, LEASE, UNITS, Account, Places, Rate, Refused, slot_of

logger = logging.getLogger("fastllm")

TICK = 0.5  # seconds between writes of what changed
PATIENCE = 0.1  # seconds to wait for another process that writes: the event loop waits, too
CHUNK = 50  # keys in a transaction
REMEMBERED = 0.02  # seconds for which a refusal stands without another look into the file
IDLE = 120.0  # seconds after which a key that nobody uses is forgotten here
CHECKPOINT = 20.0  # seconds between checkpoints
_DAY = 86400.0


class _State:
    """What one key has under way and leased in this process."""

    __slots__ = ("day", "key", "month", "old", "places", "refusal", "requests", "seen", "tokens", "until")

    def __init__(self, key: VirtualKey, process: str) -> None:
        self.key = key  # as it was when it was made the present
        self.until = 0.0  # for so long it is
        self.requests = Rate(key.id, "requests")
        self.tokens = Rate(key.id, "tokens")
        self.places = Places(key.id, process)
        self.day: Account | None = None
        self.month: Account | None = None
        self.old: list[Account] = []  # of periods that are over, until their last request is settled
        self.refusal: tuple[float, float, int, Refused] | None = None
        self.seen = 0.0

    def accounts(self) -> Iterator[Account]:
        for account in (self.day, self.month, *self.old):
            if account is not None:
                yield account

    def begin(self, key: VirtualKey, now: float, day: str, month: str) -> None:
        """Make it the present: the slot, the day and the month."""
        self.key, self.seen, self.until = key, now, (slot_of(now) + 1) * GRAIN
        if key.rpm is not None:
            self.requests.roll(now)
        if key.tpm is not None:
            self.tokens.roll(now)
        if key.budget_day is not None and (self.day is None or self.day.period != day):
            self.day = self._period(self.day, key.id, day)
        if key.budget_month is not None and (self.month is None or self.month.period != month):
            self.month = self._period(self.month, key.id, month)

    def _period(self, before: Account | None, key: str, period: str) -> Account:
        self.refusal = None
        if before is not None and not before.over:
            self.old.append(before)
        back = next((account for account in self.old if account.period == period), None)  # the clock was set back
        if back is not None:
            self.old.remove(back)
        return back or Account(key, period)

    def fits(self, key: VirtualKey, tokens: float, units: int) -> bool:
        """Tell whether what is leased suffices."""
        return (
            (key.rpm is None or self.requests.free >= 1.0)
            and (key.tpm is None or self.tokens.free >= tokens)
            and (key.parallel is None or self.places.taken < self.places.leased)
            and (key.budget_day is None or self.day is None or self.day.free >= units)
            and (key.budget_month is None or self.month is None or self.month.free >= units)
        )

    @property
    def dirty(self) -> bool:
        """Something is to be written, or may have to be in a moment."""
        if self.requests.dirty or self.tokens.dirty or self.requests.free or self.tokens.free or self.places.dirty:
            return True
        return bool(self.old) or any(account.dirty or account.busy for account in self.accounts())

    @property
    def idle(self) -> bool:
        return not self.dirty and not self.places.taken and all(account.over for account in self.accounts())


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars of one key in this day and month: `booked` also holds what is reserved for requests under way."""

    day: float = 0.0
    month: float = 0.0
    day_booked: float = 0.0
    month_booked: float = 0.0


def told(key: VirtualKey, spent: Spending, now: float) -> dict[str, Any]:
    """Give a key, its state and what it has spent as JSON has it. It is counted in the periods that have a budget: null
    stands for the others."""
    day = spent.day if key.budget_day is not None else None
    month = spent.month if key.budget_month is not None else None
    return {**msgspec.to_builtins(key), "state": key.state(now), "spent_day": day, "spent_month": month}


class Tenants:
    """The limits and budgets of all keys; `path` is a file, None for the usual one, or a Database that is open.

    `thread=False` leaves writing to whoever calls `flush`, at least every second.
    """

    def __init__(
        self, path: str | Path | Database | None = None, *, clock: Clock | None = None, thread: bool = True
    ) -> None:
        self._owned = not isinstance(path, Database)
        self._database = path if isinstance(path, Database) else Database(path)
        self._clock = clock or SystemClock()
        self._process = secrets.token_hex(8)
        self._states: dict[str, _State] = {}
        self._dirty: dict[str, _State] = {}
        self._lock = threading.Lock()
        self._day, self._month, self._day_until = "", "", -math.inf
        self._swept = self._clock.now()
        self._closing = threading.Event()
        self._forget_other_boots()
        self._thread = threading.Thread(target=self._run, name="fastllm-tenants", daemon=True) if thread else None
        if self._thread is not None:
            self._thread.start()

    def check_model(self, key: VirtualKey, model: str) -> None:
        """Raise PermissionDeniedError where the key may not ask this model."""
        if key.models is not None and not any(fnmatchcase(model, allowed) for allowed in key.models):
            text = f"the key {key.name!r} may not use the model {model[:100]!r}; it may use {', '.join(key.models)}"
            raise PermissionDeniedError(
                text[:500], status_code=403, code="model_not_allowed", type="permission_error", sent=False
            )

    def admit(self, key: VirtualKey, tokens: float, cost_bound: float | None) -> Admission:
        """Let one request in, with its estimated tokens and the most dollars it can cost (None: not known).

        Raises PermissionDeniedError for a key that is expired or revoked, RateLimitError with the seconds to wait,
        LimitExceededError for what could never be let in, BudgetExceededError, and OverloadedError where the file
        cannot be used.
        """
        now, wall = self._clock.now(), self._clock.time()
        _check_valid(key, wall)
        tokens = max(0.0, float(tokens)) if math.isfinite(tokens) else math.inf
        units = _bound(key, cost_bound)
        with self._lock:
            if not self._day_until - _DAY <= wall < self._day_until:
                self._begin_day(wall)
            state = self._states.get(key.id)
            if state is None:
                state = self._states[key.id] = _State(key, self._process)
            if now >= state.until or state.key is not key:
                state.begin(key, now, self._day, self._month)
            if not state.fits(key, tokens, units):
                self._lease(state, key, now, tokens, units)
            self._dirty[key.id] = state
            return self._taken(state, key, tokens, units)

    def _taken(self, state: _State, key: VirtualKey, tokens: float, units: int) -> Admission:
        admission = Admission(self, state, key, tokens, units)
        if key.rpm is not None:
            state.requests.take(1.0)
        if key.tpm is not None:
            admission._token_slot = state.tokens.take(tokens)
        state.places.taken += 1
        if key.budget_day is not None and state.day is not None:
            admission._day = state.day
            state.day.take(units)
        if key.budget_month is not None and state.month is not None:
            admission._month = state.month
            state.month.take(units)
        return admission

    def _lease(self, state: _State, key: VirtualKey, now: float, tokens: float, units: int) -> None:
        """Take from the file what this request lacks. Raises what `admit` raises."""
        if state.refusal is not None:
            until, least, bound, refused = state.refusal
            if now < until and tokens >= least and units >= bound:
                raise self._error(key, refused, now, tokens, units, until - REMEMBERED)
            state.refusal = None
        try:
            with self._database.transaction(PATIENCE) as db:
                planned = _planned(db, state, key, now, tokens, units)
        except Refused as refused:
            self._look(state, key, now)
            state.refusal = (now + min(REMEMBERED, refused.wait), tokens, units, refused)
            raise self._error(key, refused, now, tokens, units, now) from None
        for meter in planned:
            meter.done()

    def _look(self, state: _State, key: VirtualKey, now: float) -> None:
        """See what all processes have used, to tell of it."""
        with contextlib.suppress(LLMError):
            for rate, limit in ((state.requests, key.rpm), (state.tokens, key.tpm)):
                if limit is not None:
                    rate.look(self._database, now)

    def lines(self, key: VirtualKey) -> bytes:
        """Give the `x-ratelimit-*` headers of a key, as OpenAI has them, as lines of a head: for the limits that it
        has. What is left is what this process knows of: others may have used more since it last looked into the file,
        and before it has, nothing is told of that."""
        with self._lock:
            return _lines(key, self._states.get(key.id) or _State(key, self._process), self._clock.now())

    def spending(self, key: VirtualKey) -> Spending:
        """Give what a key has spent; reads the file, after writing what is to be written."""
        self.flush()
        with self._lock:
            self._begin_day(self._clock.time())
        rows = self._database.read("SELECT period, settled, booked FROM money WHERE key = ?", (key.id,))
        found = {period: (settled / UNITS, booked / UNITS) for period, settled, booked in rows}
        day, month = found.get(self._day, (0.0, 0.0)), found.get(self._month, (0.0, 0.0))
        return Spending(day=day[0], day_booked=day[1], month=month[0], month_booked=month[1])

    def flush(self) -> None:
        """Write what changed, and give back what is leased and not used. OverloadedError where it cannot be written:
        then it is kept for the next time."""
        waiting = list(self._dirty)
        while waiting:
            chunk, waiting = waiting[:CHUNK], waiting[CHUNK:]
            with self._lock:
                self._write([(id, state) for id in chunk if (state := self._dirty.get(id)) is not None])
        with self._lock:
            if (now := self._clock.now()) - self._swept > IDLE:
                self._swept = now
                for id in [id for id, state in self._states.items() if state.idle and now - state.seen > IDLE]:
                    del self._states[id]

    def _write(self, chunk: list[tuple[str, _State]]) -> None:
        now = self._clock.now()
        planned: list[Rate | Places | Account] = []
        with self._database.transaction(PATIENCE) as db:
            for _, state in chunk:
                for rate in (state.requests, state.tokens):
                    rate.roll(now)
                    if rate.dirty:
                        rate.plan(db, now)
                        planned.append(rate)
                state.places.plan(db, now)
                planned.append(state.places)
                for account in state.accounts():
                    account.plan(db)
                    planned.append(account)
        for meter in planned:
            meter.done()
        for id, state in chunk:
            state.old = [account for account in state.old if not account.over]
            if not state.dirty:
                self._dirty.pop(id, None)

    def _run(self) -> None:
        """The thread: writes every TICK seconds; what cannot be written waits."""
        checkpoint = time.monotonic() + CHECKPOINT
        warned = False
        while not self._closing.wait(TICK):
            try:
                self.flush()
                if time.monotonic() >= checkpoint:
                    checkpoint = time.monotonic() + CHECKPOINT
                    self._database.checkpoint()
                warned = False
            except LLMError as error:
                if not warned:
                    logger.warning("what keys have used cannot be written now, and is kept: %s", error.message)
                warned = True

    def close(self) -> None:
        """Write everything, give back what is leased, and end the thread. Requests still under way stay booked."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        try:
            with self._lock:
                for state in self._dirty.values():
                    for rate in (state.requests, state.tokens):
                        rate.give_back()
            for _ in range(2):  # money that was leased for the moment is given back at the second time
                self.flush()
        except LLMError as error:
            logger.warning("what keys have used could not be written at the end: %s", error.message)
        finally:
            if self._owned:
                self._database.close()

    def _closed(self, admission: Admission, tokens: float, cost: int | None) -> None:
        """Book what a request was: `cost` None for what was reserved."""
        state = admission._state
        with self._lock:
            if admission._token_slot is not None and tokens != admission._tokens:
                state.tokens.settle(admission._token_slot, tokens - admission._tokens)
            for account in (admission._day, admission._month):
                if account is not None:
                    account.close(admission._units, admission._units if cost is None else cost)
            state.refusal = None
            self._dirty[admission._key.id] = state

    def _left(self, admission: Admission) -> None:
        state = admission._state
        with self._lock:
            state.places.taken -= 1
            state.refusal = None

    def _begin_day(self, wall: float) -> None:
        for state in list(self._states.values()):
            state.until = 0.0
        day = math.floor(wall / _DAY)
        self._day_until = (day + 1) * _DAY
        self._day = time.strftime("%Y-%m-%d", time.gmtime(day * _DAY))
        self._month = self._day[:7]

    def _forget_other_boots(self) -> None:
        """Monotonic time begins anew with the machine: rows from before it lie in the future, or are over."""
        now = self._clock.now()
        with self._database.transaction() as db:
            db.execute("DELETE FROM windows WHERE slot > ?", (slot_of(now) + round(2 / GRAIN),))
            db.execute("DELETE FROM places WHERE until > ? OR until <= ?", (now + LEASE + 2.0, now))

    def _error(self, key: VirtualKey, refused: Refused, now: float, tokens: float, units: int, when: float) -> LLMError:
        """Say what is used up and when to come again; `when` the refusal was found."""
        wait = max(0.0, refused.wait - (now - when))
        if refused.kind in ("day", "month"):
            return self._no_money(key, refused, units)
        if refused.kind == "parallel":
            text = f"the key {key.name!r} may have {refused.limit:.0f} requests under way, and has them"
        else:
            amount = 1.0 if refused.kind == "requests" else tokens
            text = (
                f"the key {key.name!r} may use {refused.limit:.0f} {refused.kind} in any 60 seconds, "
                f"{refused.used:.0f} are used, and this needs {amount:.0f}"
            )
        if wait == math.inf:
            return LimitExceededError(f"{text}: it can never be let in", code="rate_limit_exceeded", sent=False)
        wait += 0.001  # rounding must not have anybody come too early
        return RateLimitError(
            f"{text}: try again in {wait:.1f} s", status_code=429, code="rate_limit_exceeded", type=refused.kind,
            retry_after=wait, sent=False,
        )  # fmt: skip

    def _no_money(self, key: VirtualKey, refused: Refused, units: int) -> LLMError:
        held = "; requests under way hold some of it, and may give it back in a moment" if refused.passing else ""
        error = BudgetExceededError(
            f"the key {key.name!r} may spend {dollars(refused.limit)} a {refused.kind} (UTC), {dollars(refused.used)} "
            f"is spent, and this request may cost {dollars(units / UNITS)}{held}",
            code="budget_exceeded",
            type="insufficient_quota",
            sent=False,
        )
        error.passing = refused.passing
        return error

    def __repr__(self) -> str:
        return f"<Tenants {len(self._states)} keys in use, {len(self._dirty)} to be written, {self._database!r}>"


def _planned(
    db: Connection, state: _State, key: VirtualKey, now: float, tokens: float, units: int
) -> list[Rate | Places | Account]:
    """Plan what one more request needs of everything that the key has limits for."""
    planned: list[Rate | Places | Account] = []
    if key.rpm is not None:
        state.requests.plan(db, now, 1.0, key.rpm)
        planned.append(state.requests)
    if key.tpm is not None:
        state.tokens.plan(db, now, tokens, key.tpm)
        planned.append(state.tokens)
    if key.parallel is not None:
        state.places.plan(db, now, key.parallel)
        planned.append(state.places)
    for account, limit in ((state.day, key.budget_day), (state.month, key.budget_month)):
        if account is not None and limit is not None:
            account.plan(db, units, limit)
            planned.append(account)
    return planned


class Admission:
    """One request that was let in. The first `settle` counts; `release` comes last, once, and both may come again."""

    __slots__ = (
        "_day", "_key", "_month", "_released", "_settled", "_state", "_tenants", "_token_slot", "_tokens", "_units",
    )  # fmt: skip

    def __init__(self, tenants: Tenants, state: _State, key: VirtualKey, tokens: float, units: int) -> None:
        self._tenants = tenants
        self._state = state
        self._key = key
        self._tokens = tokens
        self._units = units
        self._token_slot: int | None = None
        self._day: Account | None = None
        self._month: Account | None = None
        self._settled = self._released = False

    def settle(self, usage_tokens: float | None, cost: float | None) -> None:
        """Book what it really was; None for what nobody knows: then what was reserved stays booked. `settle(0, 0.0)`
        gives all of it back, for what was not sent or was refused; the request itself counts in any case."""
        if self._settled or self._released:
            return
        self._settled = True
        known = usage_tokens is not None and 0 <= usage_tokens < math.inf
        tokens = float(usage_tokens) if known and usage_tokens is not None else self._tokens
        paid = round(cost * UNITS) if cost is not None and 0 <= cost <= MOST_USD else None
        self._tenants._closed(self, tokens, paid)

    def release(self) -> None:
        """Give the place back; what was not settled stays booked as it was reserved."""
        if self._released:
            return
        self.settle(None, None)
        self._released = True
        self._tenants._left(self)

    def lines(self) -> bytes:
        """Give the `x-ratelimit-*` headers of its answer, as `Tenants.lines` does."""
        with self._tenants._lock:
            return _lines(self._key, self._state, self._tenants._clock.now())

    def __repr__(self) -> str:
        what = "released" if self._released else "settled" if self._settled else "open"
        return f"<Admission of {self._key.name!r}, {self._tokens:.0f} tokens, {dollars(self._units / UNITS)}, {what}>"


def _lines(key: VirtualKey, state: _State, now: float) -> bytes:
    found = b""
    for rate, limit in ((state.requests, key.rpm), (state.tokens, key.tpm)):
        if limit is None:
            continue
        found += _limit_line(rate.kind, limit)
        if rate.known:
            cleared = now >= rate.last
            left = math.floor(limit if cleared else rate.remaining(limit))
            found += _LEFT[rate.kind] % (left, 0.0 if cleared else rate.last - now)
    return found


@lru_cache
def _limit_line(kind: str, limit: float) -> bytes:
    return f"x-ratelimit-limit-{kind}: {limit:.0f}\r\n".encode()


_LEFT = {
    kind: f"x-ratelimit-remaining-{kind}: %d\r\nx-ratelimit-reset-{kind}: %.3fs\r\n".encode()
    for kind in ("requests", "tokens")
}


def _check_valid(key: VirtualKey, wall: float) -> None:
    state = key.state(wall)
    if state != "valid":
        raise PermissionDeniedError(
            f"the key {key.name!r} is {state}: ask whoever runs this gateway for another",
            status_code=403,
            code=f"key_{state}",
            type="permission_error",
            sent=False,
        )


def _bound(key: VirtualKey, cost_bound: float | None) -> int:
    """The bound in units, rounded up. Without one, a key with a budget is refused: nothing could hold it."""
    if cost_bound is None:
        if key.budget_day is None and key.budget_month is None:
            return 0
        error = BudgetExceededError(
            f"the key {key.name!r} has a budget, and what this request may cost is not known: "
            "bound the answer (max_tokens), or have the model's price set",
            code="budget_exceeded",
            type="insufficient_quota",
            sent=False,
        )
        raise error
    if isinstance(cost_bound, bool) or not isinstance(cost_bound, int | float) or not 0 <= cost_bound <= MOST_USD:
        raise ConfigError(f"cost_bound must be a number of dollars from 0 to {MOST_USD:g}, or None; not {cost_bound!r}")
    return math.ceil(cost_bound * UNITS)
