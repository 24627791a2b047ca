"""Limiter: admits attempts at one endpoint and model, in order, under all its limits at once.

State is one queue per priority, the ledgers, and what the Learner and the Breaker have found out. Invariants:
- A slot, a request and its tokens are taken together or not at all.
- Within a priority, strictly first come, first served: nobody overtakes a large request that waits for tokens.
- Interactive requests (priority 0) go before batch ones, but every SHARE-th grant goes to a waiting batch request.
- While there are interactive requests, batch ones leave them as many slots as they lately used at once, up to a fourth
  (an eighth while it is being found out how many slots there are), so that who talks need not wait for a row's end.
- Every Permit is released exactly once; releasing twice is harmless.
- One timer stands for the head of the queue; nothing ever loops over the waiters, except to fail them all.
- A key that was refused for good (`condemn`) admits nobody until its time is up, then one; whoever waits is told at
  once, and so is whoever would have to wait longer than it may (`patience`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from ..clock import Clock
from ..errors import LimitExceededError, LLMError, QuotaExceededError, StoppedError
from ..leases.base import Ask
from ..options import Limits
from ..policy.adaptive import START, Adaptive
from ..policy.breaker import Breaker
from ..policy.headers import Hints, is_comfortable
from ..policy.learner import FREE, OTHER, PACE, SLOTS, Learner
from ..policy.ledger import INF, REQUESTS, TOKENS
from ..policy.tokens import Estimate
from ..policy.window import WINDOW
from .meters import Part, Slots, meters_of
from .permit import Hopes, Permit, Waiter

SHARE = 8
SPARED = "spared"  # what holds batch requests back while others talk
TALK = 60.0  # seconds for which room is kept after somebody talked
FADE = 5.0  # seconds until one slot less is kept than was used at most
TRIAL = "trial"  # what holds requests back while one finds out whether the key is still refused
STARVING = 60.0  # seconds after which a batch request whose turn it is lets nobody pass
PROOF = 0.25  # seconds for which a batch's first attempt goes alone: a refused key answers sooner than a model
CONDEMNED = 60.0  # seconds until a refused key may be tried again
SLOWEST = 0.1  # answers a second that are expected of anybody
NOBODY = 5.0  # seconds until an address where nobody answered may be tried again
QUIET = 0.01  # seconds for which headers are not read again that told of plenty
_GRAIN = 0.002  # seconds between two looks at the queue while requests are spread: those that are due go together
_SLACK = 0.005  # seconds: what a late timer missed of the spreading may be made up for
_CEILING = 4096  # attempts in flight where nobody set a limit; the system's own limit may be lower


class ParkedError(Exception):
    """The provider wants nobody back for longer than this request may wait."""


class Limiter:
    """Admission for one endpoint and model. Tokens are estimates of prompt plus answer. With `shared`, other processes
    have the same limits, and nothing goes out that its `parts` do not allow."""

    __slots__ = (
        "_clock", "_condemned", "_count", "_first", "_grants", "_held", "_held_since", "_hurried", "_largest",
        "_limits", "_more", "_next_at", "_on_trial", "_parked", "_proven", "_queues", "_slots", "_spared",
        "_spared_at", "_talked_at", "_talking", "_timer", "_turn_since", "_uneasy", "_until", "breaker",
        "in_flight", "learner", "news_at", "parked_why", "parts", "pressed", "wanting",
    )  # fmt: skip

    def __init__(self, limits: Limits, clock: Clock, *, ceiling: int = _CEILING, shared: bool = False) -> None:
        self._clock = clock
        self._limits = limits
        most = min(limits.concurrency or _CEILING, ceiling)
        slots = Adaptive(most, start=START if limits.adaptive else most)
        self.learner = Learner(slots, rpm=limits.rpm, tpm=limits.tpm, adaptive=limits.adaptive)
        self.breaker = Breaker()
        self.in_flight = 0
        self._largest = min(limits.tpm or INF, limits.tpd or INF, limits.itpm or INF, limits.otpm or INF)
        self._more = meters_of(limits, shared=shared)
        self.parts = tuple(meter for meter in self._more if isinstance(meter, Part))
        self._slots = next((part for part in self.parts if isinstance(part, Slots)), None)
        self.pressed = False  # whoever is let in has waited for a slot, though not in the queue: a lane has more rows
        self.wanting: Callable[[], None] | None = None  # called when the next request waits for a larger part
        self._queues: tuple[deque[Waiter], deque[Waiter]] = (deque(), deque())
        self._grants = self._count = 0
        self._talking = 0  # interactive attempts in flight
        self._spared = 0  # slots that are kept for them, as seen at `_spared_at`
        self._spared_at, self._talked_at = 0.0, -INF
        self._turn_since = INF  # when a batch request's turn came that does not fit
        self._hurried = INF  # the least patience of anybody who ever waited
        self._parked = self._until = self._next_at = 0.0
        self.parked_why = ""
        self._condemned: LLMError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._held, self._held_since = FREE, 0.0
        self.news_at = 0.0  # from when on an answer's headers are worth reading
        self._proven = False
        self._on_trial = False  # the key was refused before: one attempt shows whether it still is
        self._first = INF
        self._uneasy = True  # something but slots, ledgers and pace may hold requests back: ask `_next_turn`

    @property
    def limits(self) -> Limits:
        """What was set."""
        return self._limits

    @property
    def concurrency(self) -> int:
        """How many attempts may be in flight now."""
        return self.learner.slots.limit

    @property
    def ceiling(self) -> int:
        """How many attempts may ever be in flight."""
        return self.learner.slots.ceiling

    @property
    def attempts(self) -> int:
        """How many attempts were ever let in."""
        return self._count

    @property
    def now(self) -> float:
        return self._clock.now()

    @property
    def waiting(self) -> int:
        return len(self._queues[0]) + len(self._queues[1])

    @property
    def interactive(self) -> int:
        """How many wait that are no batch's: only they stand before another one of theirs."""
        return len(self._queues[0])

    async def acquire(
        self,
        need: Estimate,
        priority: int = 0,
        *,
        patience: float = INF,
        estimate: Callable[[], Estimate] | None = None,
    ) -> Permit:
        """Wait for admission. `estimate` says again what it needs when its turn comes.

        LimitExceededError at once if the request could never be admitted, ParkedError as soon as it is known that
        nobody will be for more than `patience` seconds.
        """
        permit = self.try_acquire(need, priority)
        if permit is not None:
            return permit
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        waiter = self.queue(future, need, priority, patience=patience, estimate=estimate)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().cancel()
            else:
                self.forget(waiter, priority)
            raise

    def queue(
        self, hopes: Hopes, need: Estimate, priority: int, *, patience: float, estimate: Callable[[], Estimate] | None
    ) -> Waiter:
        """Stand in the queue, for what `try_acquire` has not given; see `acquire`."""
        waiter = Waiter(hopes, need, patience, estimate)
        self._hurried = min(self._hurried, patience)
        self._queues[1 if priority else 0].append(waiter)
        if self.waiting == 1 or (not priority and len(self._queues[0]) == 1):
            self._admit()  # it is a head; whoever stands behind another changes nothing
        return waiter

    def lacks_slots(self, need: Estimate) -> bool:
        """Tell whether no more than slots, or the first attempt's answer, holds the next batch request back, and no
        other process shares them."""
        now = self._clock.now()
        held = self._held if self.waiting else self._held_by(now, need, 1)
        if held == OTHER and not self._proven:
            return self._is_calm(now) and self._parked <= now and not self._more
        return held in (SLOTS, SPARED) and not self.parts

    def try_acquire(self, need: Estimate, priority: int = 0) -> Permit | None:
        """Give a permit if nobody waits and everything fits now. Raises StoppedError where the key was refused."""
        if self._condemned is not None:
            self.check_key()
        if need.least > self._largest:
            self._refuse_the_impossible(need)
        if self._queues[0] or self._queues[1]:
            return None
        now = self._clock.now()
        held = self._held_by(now, need, priority)
        if held:
            return None
        self._held = SLOTS if self.pressed else FREE
        return self._grant(now, need, priority)

    def free(self, now: float) -> int:
        """Give how many batch requests `take` may let in as long as nothing else happens: 0 where more than the ledgers
        is to be asked each time."""
        learner = self.learner
        slots = learner.slots
        if self._uneasy:
            self._next_turn(now, 1)  # it may find that nothing is uneasy any more
        held = self._uneasy or self._condemned is not None or self._queues[0] or self._queues[1]
        if held or self._more or slots.gap or learner.pace.value < INF:
            return 0
        free = slots.limit - self.in_flight
        if self._spared and now < self._talked_at + TALK:
            free = min(free, free - self._kept() + self._talking)
        return free

    def take(self, now: float, need: Estimate) -> Permit | None:
        """Do what `try_acquire` does for one of the batch requests that `free` has counted."""
        learner = self.learner
        requests, tokens, amount = learner.requests, learner.tokens, need.tokens
        if (
            need.least > self._largest
            or (requests.spare < 1.0 and requests.when(now, 1.0) > now)
            or (tokens.spare < amount and tokens.when(now, amount) > now)
        ):
            return None
        self.in_flight = in_flight = self.in_flight + 1
        self._count += 1
        request, token = requests.add(now, 1.0, False), tokens.add(now, amount, False)
        permit = Permit(
            amount, SLOTS if self.pressed else FREE, now, in_flight, request, token, requests.window.used,
            tokens.window.used, learner.count, need.prompt, self,
        )  # fmt: skip
        if learner.adaptive:
            learner.sent(now, permit)
        return permit

    def outlook(self, need: Estimate, priority: int = 0) -> float:
        """Give the seconds until a request that came now would probably be let in: 0 for at once, inf while the key or
        the address is known to be no good."""
        ahead = len(self._queues[0]) + (len(self._queues[1]) if priority else 0)
        known = self.least_wait(need, priority)
        if not known and not ahead and not self._held_by(self._clock.now(), need, priority):
            return 0.0
        return known + (ahead + 1) / max(self.learner.answers.value, SLOWEST)

    def least_wait(self, need: Estimate, priority: int = 0) -> float:
        """Give for how many seconds a request that came now would have to wait even with nobody before it, as far as
        that is known: inf while the key or the address is known to be no good."""
        now = self._clock.now()
        if self._condemned is not None and now < self._until:
            return INF
        held = self._held_by(now, need, priority)
        when = self._when(now, need, priority, held) if held else now
        return 0.0 if when == INF else max(0.0, when - now)

    def _held_by(self, now: float, need: Estimate, priority: int) -> str:
        """Name what holds a request back now; FREE if nothing does."""
        learner = self.learner
        slots = learner.slots
        if self.in_flight >= slots.limit or (slots.gap and now < self._next_at):
            return SLOTS
        spares = priority and self._spared and (self._queues[0] or now < self._talked_at + TALK)
        if spares and self.in_flight - self._talking >= slots.limit - self._kept():
            return SPARED
        if self._uneasy:
            if self._on_trial and self.in_flight:
                return TRIAL
            if self._next_turn(now, priority) > now:
                return OTHER
        if learner.requests.spare < 1.0 and learner.requests.when(now, 1.0) > now:
            return REQUESTS
        if learner.tokens.spare < need.tokens and learner.tokens.when(now, need.tokens) > now:
            return TOKENS
        for meter in self._more:
            if not meter.fits(now, need):
                return OTHER
        return PACE if learner.pace.value < INF and learner.pace.when() > now else FREE

    def _kept(self) -> int:
        """How many slots are kept for those who talk."""
        slots = self.learner.slots
        return min(self._spared, slots.limit // (4 if slots.limit >= slots.ceiling else 8))

    def _next_turn(self, now: float, priority: int) -> float:
        """Give the earliest time that parks, outages, probes, quotas and an unproven key allow."""
        learner = self.learner
        when = max(self._parked, self.breaker.when(now), learner.probe_at(now))
        if learner.quotas:
            when = max(when, learner.quota_at(now, self.in_flight))
        if not self._proven and priority and self._first < INF and now < self._first + PROOF:
            when = max(when, self._first + PROOF)
        if when <= now and self._proven and self._is_calm(now):
            self._uneasy = False
        return when

    def _is_calm(self, now: float) -> bool:
        """Tell whether no trial, quota, probe or outage is on."""
        learner = self.learner
        return not (self._on_trial or learner.quotas or learner.blocked) and self.breaker.steady(now)

    def _talks(self, now: float) -> None:
        """One more talks: keep in mind how many do so at once, and little by little that it was fewer of late."""
        self._talking += 1
        at_once = self._talking + len(self._queues[0])
        if at_once >= self._spared:
            self._spared, self._spared_at = at_once, now
        elif now > self._spared_at + FADE:
            self._spared, self._spared_at = self._spared - 1, now
        self._talked_at = now

    def _grant(self, now: float, need: Estimate, priority: int) -> Permit:
        learner, held = self.learner, self._held
        requests, tokens = learner.requests, learner.tokens
        self.in_flight += 1
        self._count += 1
        request = requests.add(now, 1.0, held == REQUESTS)
        token = tokens.add(now, need.tokens, held == TOKENS)
        permit = Permit(
            need.tokens, SLOTS if held == SPARED else held, now, self.in_flight, request, token, requests.window.used,
            tokens.window.used, learner.count, need.prompt, self,
        )  # fmt: skip
        if not priority:
            permit.talks = True
            self._talks(now)
        if learner.slots.gap:
            self._next_at = max(self._next_at, now - _SLACK) + learner.slots.gap
        if self._more:
            permit.more = tuple(meter.add(now, need) for meter in self._more)
        learner.sent(now, permit)
        if self._uneasy:
            self._first = min(self._first, now)
            self.breaker.sent(now)
        return permit

    # What attempts came to

    def heard(self, permit: Permit, hints: Hints, *, counted: bool = True) -> None:
        """Learn from an answer's headers; `counted` is False for one that the provider refused."""
        now = self._clock.now()
        self.news_at = now + QUIET if counted and is_comfortable(hints) else 0.0
        if not hints.limits:
            return
        learner = self.learner
        before = learner.requests.window.limit, learner.tokens.window.limit
        learner.heard(now, permit, hints, counted=counted)
        if learner.quotas:
            self._uneasy = True
            self._tell_the_hurried()
        if self.waiting and before != (learner.requests.window.limit, learner.tokens.window.limit):
            self._admit()

    def answered(self, permit: Permit, latency: float) -> None:
        """The attempt brought a whole answer, or a stream's first chunk."""
        now = self._clock.now()
        self._proven = True
        self._on_trial = False
        if not self.breaker.quiet:
            self.breaker.succeeded(now, permit.sent)
        self.learner.answered(now, permit, latency)

    def refused(self, permit: Permit, wait: float | None, about: str = "") -> None:
        """The attempt was refused by a limit (429), of `about` if it said: its bookings are given back, its slot is not
        yet."""
        now = self._clock.now()
        permit.refund()
        self._proven = self._uneasy = True
        self._on_trial = False
        self.breaker.succeeded(now, permit.sent)
        self.learner.refused(now, permit, wait, self.in_flight - 1, about)

    def overloaded(self, permit: Permit) -> None:
        """The provider is out of capacity."""
        self.learner.overloaded(self._clock.now(), permit)

    def failed(self, permit: Permit, *, answered: bool) -> None:
        """The attempt ended in an error that says nothing about the request."""
        self._uneasy = True
        self.breaker.failed(self._clock.now(), permit.sent, self.learner.answers.value, answered=answered)

    def timed_out(self, permit: Permit) -> None:
        """The attempt had no answer in its time."""
        self.learner.timed_out(self._clock.now(), permit)

    def alive(self, permit: Permit) -> None:
        """The attempt ended in an error that is about the request alone: the provider is well."""
        self._proven = True
        self._on_trial = False
        if not self.breaker.quiet:
            self.breaker.succeeded(self._clock.now(), permit.sent)

    def park(self, seconds: float, why: str = "") -> None:
        """Admit nobody for so many seconds: the provider said when to come back."""
        until = self._clock.now() + seconds
        self._uneasy = True
        if until > self._parked:
            self._parked, self.parked_why = until, why
        self._tell_the_hurried()
        if self.waiting:
            self._admit()

    @property
    def parked_for(self) -> float:
        """Seconds until anybody is admitted again, as far as the provider said."""
        now = self._clock.now()
        return max(0.0, max(self._parked, self.learner.quota_at(now, 0)) - now)

    def _tell_the_hurried(self) -> None:
        """Whoever waits, and may not wait for as long as it will take, is told."""
        seconds = self.parked_for
        if seconds <= self._hurried:
            return
        for queue in self._queues:
            waiters = list(queue)
            queue.clear()
            for waiter in waiters:
                if waiter.patience >= seconds:
                    queue.append(waiter)
                elif not waiter.future.done():
                    waiter.future.set_exception(ParkedError())

    def condemn(self, error: LLMError) -> None:
        """The key or the address is no good: tell all who wait, and all who come for CONDEMNED seconds."""
        self._condemned = error
        self._until = self._clock.now() + (CONDEMNED if error.fatal_for_key else NOBODY)
        for queue in self._queues:
            while queue:
                waiter = queue.popleft()
                if not waiter.future.done():
                    waiter.future.set_exception(self._stopped(error))

    def check_key(self) -> None:
        """Raise StoppedError while the key or the address is known to be no good."""
        cause = self._condemned
        if cause is None:
            return
        if self._clock.now() < self._until:
            raise self._stopped(cause)
        self._condemned, self._on_trial = None, cause.fatal_for_key
        self._proven, self._first, self._uneasy = False, INF, True

    def _stopped(self, cause: LLMError) -> StoppedError:
        why = "there is no credit left" if isinstance(cause, QuotaExceededError) else "the key was refused"
        if not cause.fatal_for_key:
            why = "nobody answers there"
        error = StoppedError(f"not sent, because {why}: {cause.message}", code=cause.code, sent=False)
        error.__cause__ = cause
        return error

    # The queue

    def _head(self) -> tuple[deque[Waiter], int] | None:
        """Give the queue whose head is next, dropping heads that were cancelled."""
        for queue in self._queues:
            while queue and queue[0].future.done():
                queue.popleft()
        interactive, batch = self._queues
        if batch and (not interactive or self._grants % SHARE == SHARE - 1):
            return batch, 1
        return (interactive, 0) if interactive else None

    def _admit(self) -> None:
        """Let in as many heads as fit now, then stand the timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now, passing = self._clock.now(), False
        while (head := self._head()) is not None:
            queue, priority = head
            full = self.in_flight >= self.learner.slots.limit  # then it does not matter what it needs
            need = queue[0].need if full else queue[0].look()
            held = self._held_by(now, need, priority)
            due = self._when(now, need, priority, held) if held else INF
            passing = bool(held and priority and self._queues[0] and (held == SPARED or self._may_pass(now)))
            if passing:  # it is a batch request's turn, and it does not fit: whoever does meanwhile may go
                queue = self._queues[0]
                need = queue[0].look()
                held = self._held_by(now, need, 0)
                due = min(due, self._when(now, need, 0, held)) if held else due
            if held:
                if held != self._held:
                    self._held, self._held_since = held, now
                if held == OTHER and self.wanting is not None:
                    self.wanting()
                if due < INF:
                    self._timer = self._clock.call_later(max(due - now, _GRAIN if held == SLOTS else 1e-4), self._wake)
                return
            if not passing:
                self._grants += 1
                self._turn_since = INF
            queue.popleft().future.set_result(self._grant(now, need, 0 if queue is self._queues[0] else 1))
        self._held = FREE

    def asks(self) -> list[Ask]:
        """Say of each part what of it is used, and what would be."""
        head = self._head()
        need, now = None if head is None else head[0][0].look(), self._clock.now()
        return [part.ask(now, need, self.waiting) for part in self.parts]

    def allow(self, caps: Sequence[float]) -> None:
        """Each part is so large from now on."""
        for part, cap in zip(self.parts, caps, strict=True):
            part.allow(cap)
            ledger = self.learner.ledger_of(part.unit) if part.window.seconds == WINDOW else None
            if ledger is not None:  # it spreads what this process may send over the minute
                ledger.set_limit = max(1.0, cap)
                ledger.refresh()
        if self.waiting:
            self._admit()

    def _may_pass(self, now: float) -> bool:
        """Tell whether interactive requests may go before the batch request whose turn it is: not for ever."""
        if self._turn_since == INF:
            self._turn_since = now
        return now < self._turn_since + STARVING

    def _when(self, now: float, need: Estimate, priority: int, held: str) -> float:
        """Give when a head that is held back will fit; inf where a release is what it waits for."""
        learner = self.learner
        if held == TRIAL:
            return INF
        if held == SPARED:
            return self._talked_at + TALK if self._talked_at + TALK > now else INF
        if held == SLOTS:
            since = self._held_since if self._held == SLOTS else now
            double = learner.slots.when(since, rates_known=learner.rates_known)
            return min(double, self._next_at) if self.in_flight < learner.slots.limit else double
        when = max(
            self._next_turn(now, priority),
            learner.requests.when(now, 1.0),
            learner.tokens.when(now, need.tokens),
            learner.pace.when(),
        )
        for meter in self._more:
            when = max(when, meter.when(now, need))
        return when

    def _wake(self) -> None:
        """The time has come for the head; or nothing has been answered for long, and more may be in flight."""
        if self._held == SLOTS:
            learner, now = self.learner, self._clock.now()
            if now >= learner.slots.when(self._held_since, rates_known=learner.rates_known):
                learner.slots.double(now)
        self._admit()

    def forget(self, waiter: Waiter, priority: int) -> None:
        """A waiter went away: if it was the head, the next one may fit. Others are dropped when they come up."""
        queue = self._queues[1 if priority else 0]
        if queue and queue[0] is waiter:
            self._admit()

    def _refuse_the_impossible(self, need: Estimate) -> None:
        limits, prompt = self._limits, 0.5 * need.prompt
        for name, limit, least in (
            ("tpm", limits.tpm, need.least),
            ("tpd", limits.tpd, need.least),
            ("itpm", limits.itpm, prompt),
            ("otpm", limits.otpm, need.least - prompt),
        ):
            if limit is not None and least > limit:
                raise LimitExceededError(
                    f"the request needs at least {least:.0f} tokens, more than the limit of {limit:.0f} "
                    f"tokens a {'day' if name == 'tpd' else 'minute'} ({name}); shorten it, lower max_tokens, or raise "
                    "the limit",
                    sent=False,
                )

    def describe(self) -> str:
        """Say in words what it does now; changes nothing, so that another thread may ask."""
        now, learner = self._clock.now(), self.learner
        parts = [f"{self.in_flight} of {learner.slots.limit} slots", f"{self.waiting} waiting"]
        for name, ledger in (("requests", learner.requests), ("tokens", learner.tokens)):
            if ledger.limit is not None:
                source = "" if ledger.source == "set" else f", {ledger.source}"
                used = ledger.window.used_at(now)
                parts.append(f"{used:.0f}/{ledger.limit:.0f} {name} a minute{source}")
        if learner.pace.value < INF:
            parts.append(f"{learner.pace.value:.3g} a second")
        if self._parked > now:
            parts.append(f"parked for {self._parked - now:.1f} s{': ' + self.parked_why if self.parked_why else ''}")
        if learner.blocked:
            parts.append("refused, probing")
        if self.breaker.opened:
            parts.append("no answers, probing")
        if self._condemned is not None:
            parts.append("stopped")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<Limiter {self.describe()}>"
