"""Ledger: a limit of requests or tokens a minute that is kept exactly, as far as it is known, and used evenly."""

from __future__ import annotations

from typing import Literal

from .headers import Limit
from .pace import Dial
from .window import WINDOW, Entry, Window

Source = Literal["set", "told", "found"]
INF = float("inf")
REQUESTS, TOKENS = "requests", "tokens"
BURST_SECONDS = 10.0  # for how long room that was saved up may go out at once
FILL = 0.5  # seconds in which room that has come free is used
FOUND_FILL = 3.0  # slower, because the limit was only found
TOKENS_FILL = 6.0  # and where tokens are only estimated
SHARED_FILL = 15.0  # the same, where others want a part of it too
SHARED = 0.01  # of a limit: what others must use at least to be noticed
LIES = 5  # a "remaining" of nothing that so many answers in a row contradict is none
TEST = 1.0  # seconds between tries whether a limit that was met only once lets more through
ASK = 5.0  # seconds without news, after which one request may ask whether others still use it all
LUMP = 0.02  # of the limit: what is larger is not smoothed, there are too few of it
EVEN = 1.02  # of the limit's own rate, for the rest
SPARE = 0.005  # of what may go out at once: what is booked without a look at the rest
_SLACK = 0.1  # seconds that a late timer may make up for
DUST = 1e-9


class Ledger:
    """A window whose limit is the least of what the user set, the provider told and refusals taught.

    Within the window's bound it smoothes: what room an idle time has left may go out at once, the rest evenly.
    So a request that comes in the middle of a minute waits a moment for its turn and not for the next minute, and a
    provider that judges by the second, or serves others too, sees an even stream.

    Far from the limit there is nothing to smooth: a small part of what may go out at once is `spare`, and amounts
    within it go out with no more said. It is never more than the window has room for.
    """

    __slots__ = (
        "_asked", "_at", "_burst", "_burst_until", "_credit", "_even", "_fill", "_forget_at", "_lump", "_news",
        "_owed", "_tested", "foreign", "found", "found_at", "left", "name", "nothings", "set_limit", "spare", "sure",
        "told", "window",
    )  # fmt: skip

    def __init__(self, name: str, limit: float | None = None, seconds: float = WINDOW) -> None:
        self.name = name
        self.set_limit = INF if limit is None else limit
        self.told = INF
        self.foreign = 0.0
        self.found = Dial()
        self.window = Window(self.set_limit, seconds)
        self._credit = INF if limit is None else limit  # what may go out at once
        self._at = 0.0  # when that was so
        self.spare = 0.0
        self._owed = 0.0  # what was booked of it since, and not yet taken from the credit
        self._burst = 0.0  # what went out at once and is still in the window
        self._forget_at = 0.0
        self._burst_until = BURST_SECONDS
        self._news = -INF  # when the attempt was sent that brought the latest
        self._asked = INF  # while others use some of it: when something last went out
        self.nothings = 0  # answers in a row, without a refusal, that said that nothing was left for anybody
        self.sure = True  # what was found was met twice
        self.found_at = 0.0
        self._tested = 0.0  # when it was last tried whether more is let through
        self.refresh()

    def when(self, now: float, amount: float) -> float:
        """Give the earliest time for this amount: now, if it may go out now."""
        if amount <= self.spare:
            return now
        window = self.window
        if self._asked < INF and (amount > self.left or not window.fits(now, amount)):
            return self._ask(now, amount)
        if amount > window.limit:
            amount = window.limit
        fits = window.fits(now, amount)
        if not (fits or self.sure) and window.limit == self.found.value:
            return max(now, self._tested + TEST)
        when = now if fits else window.when(now, amount)
        if self._credit >= 0.0 or amount > self._lump:
            return when
        debt = -self._credit - (now - self._at) * self._rate()
        if debt <= DUST * window.limit:
            return when
        turn = now + debt / self._rate()
        return max(when, min(turn, self._forget_at) if self._burst and self._forget_at > now else turn)

    def _ask(self, now: float, amount: float) -> float:
        """Others leave no room, and nothing is heard of them while nothing is sent: one request in ASK seconds asks."""
        ask = max(now, self._asked + max(ASK, self.window.seconds / self.told))
        return ask if amount > self.left else min(ask, self.window.when(now, amount))

    def _rate(self) -> float:
        """How much a second: evenly, and what room there is within a short time; after a burst, what it has left."""
        window = self.window
        limit = window.limit
        if self._burst:
            return EVEN * max(0.05 * limit, limit - min(self._burst, window.used)) / window.seconds
        return self._even + (limit - window.used) / self._fill if window.used < limit else self._even

    def add(self, now: float, amount: float, waited: bool) -> Entry:
        """Book an amount; `waited`: this ledger had held it back, so there is nothing to make up for."""
        window = self.window
        if amount <= self.spare:
            self.spare -= amount
            self._owed += amount
            if now >= window.edge:
                window.open(now)
            entry = window.last  # as Window.add does: no call for what each request does twice
            entry.amount += amount
            window.used += amount
            return entry
        limit = window.limit
        if self._asked < INF:
            self._asked = now
        if not self.sure and window.used + amount > limit:
            self._tested = now
        if amount <= self._lump:
            if self._burst and now >= self._forget_at:
                self._burst = 0.0
            passed, rate = now - self._at, self._rate()
            credit = self._credit + passed * rate
            room = limit - window.used + self._owed
            if credit > room:
                credit = room if room > 0.0 else 0.0
            if waited and credit > _SLACK * rate:
                credit = _SLACK * rate
            if passed > BURST_SECONDS and credit >= 0.5 * limit:
                self._burst, self._burst_until = 0.0, now + BURST_SECONDS
            owed, self._owed = self._owed + amount, 0.0
            if now < self._burst_until and credit > _SLACK * rate:
                self._burst += owed
                self._forget_at = now + window.seconds
            self._credit = credit = credit - owed
            self._at = now
            if self._asked == INF and self.sure:
                self.spare = SPARE * min(credit, limit - window.used - amount)
        else:
            self.spare = 0.0  # it may have taken all the room
        return window.add(now, amount)

    def settle(self, entry: Entry, difference: float) -> None:
        """Correct a booking, as Window.settle does."""
        if entry.expires:
            entry.amount += difference
            self.window.used += difference
        self._credit -= difference
        if difference > 0.0:
            self.spare -= difference

    def tell(self, now: float, sent: float, limit: Limit, used: float, *, counted: bool = True) -> None:
        """Hear what the provider said of an attempt that was sent then, with which we had used so much ourselves;
        `counted` is False for one that it refused.

        Headers are written when a request is let in, and come with its answer: a long answer brings old news.
        """
        most = limit.limit
        if most is None or most < 1.0 or sent < self._news:
            return
        gap, self._news = sent - self._news, sent
        if self.window.limit == INF:
            self._burst = self.window.used
            self._credit = most - self.window.used
            self._at = now
            self._forget_at = now + self.window.seconds
            self._burst_until = now + BURST_SECONDS
        self.told = most
        if limit.remaining is not None and limit.remaining <= most:
            others = max(0.0, most - limit.remaining - used)
            self.nothings = self.nothings + 1 if counted and others > 0.5 * most and not limit.remaining else 0
            if self.nothings >= LIES:
                others = 0.0
            share = min(1.0, max(0.3, gap))  # the first and rare news count whole, dense ones are smoothed
            self.hold_free(now, self.foreign + share * (others - self.foreign))
        else:
            self.refresh()

    def hold_free(self, now: float, foreign: float) -> None:
        """Others use so much: what is left of the told limit is ours."""
        self.foreign = foreign
        if foreign <= SHARED * self.told:
            self._asked = INF
        elif self._asked == INF:
            self._asked = now
        self.refresh()

    def find(self, now: float, level: float) -> None:
        """A limit of so much a minute was found by running into it: once, so that `exceeded` may refute it."""
        self.found.set(now, level)
        self.sure, self.found_at, self._tested = False, now, now
        self.refresh()
        self._credit, self._at, self._burst, self._burst_until, self._owed = 0.0, now, 0.0, now, 0.0

    def exceeded(self, now: float) -> None:
        """More than was found was let through: it is no limit, or a higher one."""
        self.found.set(now, 2.0 * self.found.value)
        self.refresh()

    def refresh(self) -> None:
        told = self.told
        self.left = told - self.foreign if self.foreign else told  # what others leave
        shared = self.foreign > SHARED * told
        if shared:
            self.left -= 0.005 * told
        window = self.window
        if window.limit == INF:
            self._owed = 0.0  # that of a time without a limit
        window.limit = limit = max(1.0, min(self.set_limit, self.left, self.found.value))
        self.spare = 0.0 if limit < INF else INF
        self._lump = LUMP * limit
        self._even = EVEN * limit / window.seconds
        self._fill = FILL
        if shared:
            self._fill = SHARED_FILL
        elif self.name == TOKENS:
            self._fill = TOKENS_FILL
        elif self.found.value < INF:
            self._fill = FOUND_FILL

    @property
    def known(self) -> bool:
        return self.told < INF or self.set_limit < INF

    @property
    def source(self) -> Source:
        """Say where the limit that holds is known from; "set" where there is none, too."""
        if self.found.value < min(self.told, self.set_limit):
            return "found"
        return "told" if self.told < self.set_limit else "set"

    @property
    def limit(self) -> float | None:
        return self.window.limit if self.window.limit < INF else None
