"""Learner: finds an endpoint's limits from what its answers tell, and from its refusals where they tell nothing.

What holds requests back is one of: a ledger (requests or tokens in 60 s), the pace (requests a second) or the slots
(requests in flight). Each attempt remembers which of them it had waited for, so that a refusal is laid at the door of
what let it through, and an answer raises only what held it back. Rules for a refusal (429), first match wins:

1. A ledger that the provider told is full: nothing to learn, it was jitter.
2. Many refusals at once: pace and slots become what was let through of the last second's requests.
3. Nothing at all is let through: stop, and probe ever more rarely (5 s at most). Where that lasts BLOCKED seconds or
   more, the limit is one of a minute, and it is what had been let through in the minute before: exactly that much. So
   it is where a minute's use was the same when it happened last, at another pace.
4. A single refusal: the number that let it through gives way by 2 %.

A refusal that says what it is about, requests or tokens, teaches nothing of the other ledger.

Others who use the same quota show as the difference between the provider's count and ours; it is held free for them.
The first news is believed at once, for the former self of a process that was begun again is such another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from .adaptive import START, Adaptive
from .headers import Hints, Limit
from .ledger import DUST, INF, REQUESTS, TOKENS, Ledger
from .pace import Pace, Rate
from .window import WINDOW, Entry

FREE, SLOTS, PACE, OTHER = "", "slots", "pace", "other"
RATE, ROOM = "rate", "room"
CLEAR = 5.0  # sum of standard deviations
_FORGET = 0.01  # of one attempt in the mean number in flight
MANY, SHARE = 3, 0.2  # so many refusals, and so large a part of the last second's requests
BLOCKED = 5.0
ALIKE, UNLIKE = 0.02, 1.5  # the same use of a minute, at another pace
_FIRST_PROBE, _LAST_PROBE = 0.5, 5.0
_NOT_OURS = 65.0  # seconds: whoever says to wait longer speaks of no limit a minute
UNLIKELY = 0.25  # of the limit that was told: a limit a minute this far below it is none
_TO_FULL = 0.95


class Attempt(msgspec.Struct, eq=False):
    """What the learner wants to know of one attempt: what it had waited for, when it was sent and with how many in
    flight, its bookings, and how much was used with them."""

    estimate: float
    held: str = FREE
    sent: float = 0.0
    in_flight: int = 0
    request: Entry | None = None
    token: Entry | None = None
    used: float = 0.0
    used_tokens: float = 0.0
    answers: int = 0  # that had come before it was sent


class Learner:
    """The learnt limits of one endpoint and model. Times are monotonic seconds."""

    __slots__ = (
        "_about", "_block_wait", "_blocked_since", "_crowd", "_cut_at", "_dropped", "_gross_at", "_level", "_met",
        "_probe", "_probe_at", "_score", "_spread", "_standing", "_trip", "adaptive", "answers", "count", "kind",
        "pace", "quotas", "requests", "slots", "tokens",
    )  # fmt: skip

    def __init__(self, slots: Adaptive, *, rpm: float | None, tpm: float | None, adaptive: bool = True) -> None:
        self.adaptive = adaptive
        self.slots = slots
        self.pace = Pace()
        self.requests = Ledger(REQUESTS, rpm)
        self.tokens = Ledger(TOKENS, tpm)
        self.quotas: dict[str, tuple[float, float, float]] = {}  # "requests/day" -> (left, until, when that was heard)
        self.answers = Rate(5.0)
        self.count = 0  # whole answers
        self._cut_at = self._gross_at = -1.0
        self._standing = self._dropped = 0
        self._blocked_since = INF
        self._block_wait = 0.0
        self._probe: Attempt | None = None
        self._probe_at = 0.0
        self._trip = 0.3  # seconds that a refusal takes; a probe not refused within half as long again is let through
        self._level = (0.0, 0.0)
        self._about = ""  # what the refusals of this block are about: the name of a ledger, if all say the same
        # What had been let through in a minute when it was last blocked, by ledger, and a second's pace then.
        self._met = {REQUESTS: (0.0, 1.0), TOKENS: (0.0, 1.0)}
        self.kind = ""  # what refusals are about, once that is clear: RATE or ROOM
        self._score = 0.0
        self._crowd = self._spread = 0.0  # mean and variance of the attempts in flight

    # Before an attempt

    @property
    def blocked(self) -> bool:
        """True while nothing is let through and only probes go out."""
        return self._blocked_since < INF

    @property
    def rates_known(self) -> bool:
        """True where a limit a minute was set or told."""
        return self.requests.known or self.tokens.known

    def ledger_of(self, unit: str) -> Ledger | None:
        """Give the ledger of requests or tokens a minute."""
        return {REQUESTS: self.requests, TOKENS: self.tokens}.get(unit)

    def probe_at(self, now: float) -> float:
        """Give when the next probe may go out; the past, if nothing is blocked."""
        if self._blocked_since == INF:
            return 0.0
        if self._probe is not None and now >= self._probe.sent + 1.5 * self._trip:
            self._unblock(self._probe.sent)
            return 0.0
        return self._probe_at if self._probe is None else self._probe.sent + 1.5 * self._trip

    def quota_at(self, now: float, in_flight: int) -> float:
        """Give when the next quota of a day begins, if those in flight may use up what is left of this one.

        Which of them the provider has counted is not known: the end of a quota is met one answer at a time.
        """
        for name, (left, until, _) in list(self.quotas.items()):
            if now >= until:
                del self.quotas[name]
            elif in_flight >= left:
                return until
        return 0.0

    def sent(self, now: float, attempt: Attempt) -> None:
        """An attempt goes out; its bookings are made."""
        if self.pace.value < INF:
            self.pace.take(now)
        if self.adaptive:
            apart = attempt.in_flight - self._crowd
            self._crowd += _FORGET * apart
            self._spread += _FORGET * (apart * apart - self._spread)
        if self._blocked_since < INF:
            self._probe = attempt

    def unsent(self, attempt: Attempt) -> None:
        """An attempt was given up before it went out."""
        if self._probe is attempt:
            self._probe = None

    # After it

    def heard(self, now: float, attempt: Attempt, hints: Hints, *, counted: bool = True) -> None:
        """Learn from what an answer's headers (or its error's body) say about limits.

        What the provider did not count, because it refused it, is no part of what we had used.
        """
        used = attempt.used if counted else attempt.used - 1.0
        used_tokens = attempt.used_tokens if counted else attempt.used_tokens - attempt.estimate
        for name, limit in hints.limits.items():
            if name == "requests":
                self.requests.tell(now, attempt.sent, limit, used, counted=counted)
            elif name == "tokens":
                self.tokens.tell(now, attempt.sent, limit, used_tokens, counted=counted)
            elif name == "requests/second":
                if limit.limit and 1.0 / WINDOW <= 0.97 * limit.limit < self.pace.value:
                    self.pace.set(now, 0.97 * limit.limit)
            elif name == "tokens/second":
                if limit.limit:
                    most = Limit(limit=WINDOW * limit.limit)
                    self.tokens.tell(now, attempt.sent, most, used_tokens)
            elif limit.remaining is not None and (name.startswith("requests/") or limit.remaining <= 0.0):
                # A day, an hour, tokens a day, tokens of input: met when nothing is left, until it is full again.
                known = self.quotas.get(name)
                # Answers overtake each other: more is left only if it was sent after we had heard of less.
                if known is None or limit.remaining < known[0] or attempt.sent >= known[2]:
                    until = now + (limit.reset_seconds if limit.reset_seconds is not None else WINDOW)
                    self.quotas[name] = (limit.remaining, until, now)

    def answered(self, now: float, attempt: Attempt, latency: float) -> None:
        """A whole answer."""
        self.answers.tick(now)
        self.count += 1
        if not (self.requests.sure and self.tokens.sure):
            for ledger, used in ((self.requests, attempt.used), (self.tokens, attempt.used_tokens)):
                if used > ledger.found.value * (1.0 + DUST) and attempt.sent > ledger.found_at and not ledger.sure:
                    ledger.exceeded(now)
        rate = self.answers.value
        if self._blocked_since < INF and attempt.sent > self._blocked_since:
            self._unblock(attempt.sent)
        held = attempt.held
        if self.adaptive:
            self.slots.answered(now, attempt.sent, latency, held=held == SLOTS, rate=rate)
        if not held:  # it was FREE
            return
        if held == PACE:
            self.pace.climb(now, rate)
        elif held == REQUESTS and self.requests.found.value < INF:
            self.requests.found.climb(now, rate / 3.0, WINDOW)
            self.requests.refresh()
        elif held == TOKENS and self.tokens.found.value < INF:
            self.tokens.found.climb(now, rate / 3.0, WINDOW)
            self.tokens.refresh()

    def overloaded(self, now: float, attempt: Attempt) -> None:
        """The provider is out of capacity: that is no limit of ours, but fewer at a time help."""
        if self.adaptive and attempt.sent > self._cut_at:
            self.slots.overloaded(now)

    def timed_out(self, now: float, attempt: Attempt) -> None:
        """No answer in the time that the attempt had: half as many as were answered in that time can be waited for."""
        came = self.count - attempt.answers
        if self.adaptive and came and attempt.sent > self._cut_at and self.slots.limit > came // 2:
            self._cut_at = now
            self.slots.settle(now, came // 2)

    def refused(self, now: float, attempt: Attempt, wait: float | None, in_flight: int, about: str = "") -> None:
        """A 429. Its bookings are given back already; `in_flight` are those still under way. `about` is the name of the
        ledger that it says is full, if it says so."""
        if not self.adaptive or attempt.request is None or (wait is not None and wait > _NOT_OURS):
            return
        attempt.request.refused += 1.0
        self.requests.nothings = self.tokens.nothings = 0
        if self._told_full(now, attempt, wait, about):
            return
        trip = now - attempt.sent
        self._trip += 0.3 * (max(0.05, min(1.0, trip)) - self._trip)
        kept, refused = self.requests.window.recent(attempt.request, 1.0)
        news = self.pace.value == INF and not self.requests.known and self.requests.found.value == INF
        many = refused >= MANY and (news or refused > SHARE * (kept + refused))
        if self._blocked_since < INF:
            if about != self._about:
                self._about = ""
            if attempt.sent > self._blocked_since:
                self._refused_again(now, attempt)
            else:
                self._level = (self._level[0] - 1.0, self._level[1] - attempt.estimate)
                if many:
                    self._measure(now, attempt, kept, in_flight)
            return
        if self._found_full(now, attempt, about):
            return
        if attempt.sent > self._cut_at:
            self._weigh(now, attempt)
            self._give_way(now, attempt)
            self._cut_at = now
        if many and attempt.sent > self._gross_at:
            self._measure(now, attempt, kept, in_flight)
            self._block(now, wait, about)
        elif wait is not None and wait >= BLOCKED and not self.quotas:
            self._standing, self._dropped = in_flight, 0
            self._block(now, wait, about)  # it says itself that it is a limit of a minute: the level now is the limit

    def _full(self, attempt: Attempt, about: str) -> Iterator[tuple[Ledger, float]]:
        """Give the ledgers that a refusal may be about, each with what was used of it."""
        if about != TOKENS:
            yield self.requests, attempt.used
        if about != REQUESTS:
            yield self.tokens, attempt.used_tokens

    def _told_full(self, now: float, attempt: Attempt, wait: float | None, about: str) -> bool:
        """A ledger that was told is full, with what others use: hold free for them what they have just shown to use."""
        found = False
        for ledger, used in self._full(attempt, about):
            if ledger.told < INF and used + ledger.foreign >= _TO_FULL * ledger.told:
                found = True
                if not wait and ledger is self.requests:
                    ledger.window.fits(now, 0.0)
                    ledger.hold_free(now, max(ledger.foreign, ledger.told - ledger.window.used))
        return found

    def _give_way(self, now: float, attempt: Attempt) -> None:
        held = attempt.held
        if held == SLOTS and self.slots.mode == "full":
            self.slots.cut(now)
        elif self.pace.value < INF:
            self.pace.cut(now)

    def _weigh(self, now: float, attempt: Attempt) -> None:
        """What was unusual when it was refused: so many in the last second, or so many in flight?

        The one that holds requests back cannot be unusual. Where the other always is, it is the limit.
        """
        assert attempt.request is not None
        rate, sigma = self.answers.at(now), max(math.sqrt(self._spread), 0.02 * self._crowd)
        if attempt.held == SLOTS and rate > 1.0:
            last = sum(self.requests.window.recent(attempt.request, 1.0))
            self._score = 0.85 * self._score + _clip((last / rate - 1.0) * math.sqrt(rate))
            if self._score > CLEAR:
                self.kind, self._score = RATE, 0.0
                self.pace.set(now, min(self.pace.value, 0.97 * last))
                self.slots.reopen(now, 1.5 * self.slots.limit)
        elif attempt.held == PACE and sigma > 0.0:
            self._score = 0.85 * self._score - _clip((attempt.in_flight - self._crowd) / sigma)
            if self._score < -CLEAR:
                self.kind, self._score = ROOM, 0.0
                self.slots.full(now, 0.98 * attempt.in_flight)
                self.pace.set(now, 2.0 * self.pace.value)

    def _found_full(self, now: float, attempt: Attempt, about: str) -> bool:
        """A limit a minute that was found before is a little lower: it is what was let through of the last minute."""
        full = False
        for ledger, used in self._full(attempt, about):
            if used >= _TO_FULL * ledger.found.value:
                full = ledger.sure = True
                ledger.window.fits(now, 0.0)
                ledger.found.set(now, max(1.0, min(ledger.found.value * 0.999, ledger.window.used)))
                ledger.refresh()
        return full

    def _measure(self, now: float, attempt: Attempt, kept: float, in_flight: int) -> None:
        """Set pace and slots to what was let through; the more of a crowd's refusals are in, the nearer the truth."""
        if attempt.sent > self._gross_at:
            self._gross_at = now
            self._standing, self._dropped = in_flight, 0
        else:
            self._dropped += 1
        measured = max(kept, self.answers.at(now), 1 / WINDOW)
        if self.pace.value > 0.97 * measured and self.kind != ROOM:
            self.pace.set(now, 0.97 * measured)
        if self.kind != RATE:
            self.slots.full(now, max(1, self._standing - self._dropped))

    def _block(self, now: float, wait: float | None, about: str) -> None:
        """Send nothing until it is known what became of all that is under way; then a probe."""
        self._blocked_since, self._about = now, about
        self._level = (self.requests.window.used, self.tokens.window.used)
        self._block_wait = _FIRST_PROBE
        self._probe = None
        self._probe_at = now + max(1.2 * self._trip, wait or 0.0)

    def _refused_again(self, now: float, attempt: Attempt) -> None:
        self._probe = None
        self._probe_at = now + self._block_wait
        self._block_wait = min(_LAST_PROBE, 1.6 * self._block_wait)

    def _unblock(self, when: float) -> None:
        lasted = when - self._blocked_since
        self._blocked_since = INF
        self._probe = None
        requests, tokens = self._level
        ledger, level = (self.tokens, tokens) if self._about == TOKENS else (self.requests, requests)
        before, pace = self._met[ledger.name]
        self._met[ledger.name] = (level, self.pace.value)
        again = abs(level - before) <= ALIKE * level and not 1 / UNLIKE < self.pace.value / pace < UNLIKE
        if requests < 1.0:
            self.pace.set(when, INF)  # nothing was let through before: there is no limit to be seen
            self.slots.reopen(when, START)
        elif (again or lasted >= BLOCKED) and not (ledger.told < INF and level < UNLIKELY * ledger.told):
            if self._about != TOKENS:
                self.requests.find(when, requests)
            if self._about != REQUESTS:
                self.tokens.find(when, tokens)
            self.pace.set(when, INF)
            self.slots.reopen(when, self._standing)

    def __repr__(self) -> str:
        return f"<Learner {self.slots!r}, {self.pace!r}, {self.requests.window!r}, {self.tokens.window!r}>"


def _clip(z: float) -> float:
    return max(-3.0, min(3.0, z))
