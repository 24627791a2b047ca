"""What a Limiter counts beside requests and tokens a minute, and its parts of limits that processes share."""

from __future__ import annotations

from ..leases.base import Ask
from ..options import Limits
from ..policy.ledger import INF, REQUESTS, TOKENS
from ..policy.tokens import Estimate
from ..policy.window import DAY, GUARD, WINDOW, Entry, Window

INPUT, OUTPUT, SLOTS = "input", "output", "slots"
AHEAD = 0.01  # of a limit of which little is to be lost with a process: what it holds beyond what it uses


class Meter:
    """A further configured limit: input or output tokens a minute, requests or tokens a day."""

    __slots__ = ("unit", "window")

    def __init__(self, unit: str, limit: float, seconds: float) -> None:
        self.unit = unit
        self.window = Window(limit, seconds)

    def amount(self, tokens: float, prompt: float) -> float:
        if self.unit == REQUESTS:
            return 1.0
        return tokens if self.unit == TOKENS else prompt if self.unit == INPUT else max(0.0, tokens - prompt)

    def fits(self, now: float, need: Estimate) -> bool:
        amount = self.amount(need.tokens, need.prompt)
        return self.window.fits(now, min(amount, self.window.limit))

    def when(self, now: float, need: Estimate) -> float:
        """Give the earliest time for this request; inf where time alone will not do."""
        return self.window.when(now, min(self.amount(need.tokens, need.prompt), self.window.limit))

    def add(self, now: float, need: Estimate) -> Entry:
        return self.window.add(now, self.amount(need.tokens, need.prompt))

    def settle(self, entry: Entry, tokens: float, prompt: float, actual: float, actual_prompt: float) -> None:
        if self.unit != REQUESTS:
            self.window.settle(entry, self.amount(actual, actual_prompt) - self.amount(tokens, prompt))

    def refund(self, entry: Entry) -> None:
        """The request itself was not counted; its tokens are settled."""
        if self.unit == REQUESTS:
            self.window.settle(entry, -1.0)


class Part(Meter):
    """This process's part of a limit on requests or tokens: nothing until somebody gives it some (`cap`)."""

    __slots__ = ("since", "total")

    def __init__(self, unit: str, limit: float, seconds: float) -> None:
        super().__init__(unit, 0.0, seconds)
        self.total = limit
        self.since = INF  # from when on the next request has waited for a larger part

    @property
    def name(self) -> str:
        return f"{self.unit}/{self.window.seconds:g}"

    @property
    def cap(self) -> float:
        return self.window.limit

    def allow(self, cap: float) -> None:
        self.window.limit = cap

    def fits(self, now: float, need: Estimate) -> bool:
        return self.window.fits(now, self._asked(need))

    def when(self, now: float, need: Estimate) -> float:
        return self.window.when(now, self._asked(need))

    def _asked(self, need: Estimate) -> float:
        return min(self.amount(need.tokens, need.prompt), self.total)

    def ask(self, now: float, head: Estimate | None, waiting: int) -> Ask:
        """Say what is used and wanted; `head` is the next of those that wait."""
        fits = self.window.fits(now, 0.0 if head is None else self._asked(head))  # forgets what has left the window
        self.since = INF if head is None or fits else min(self.since, now)
        used, each = max(0.0, self.window.used), 0.0 if head is None else self._asked(head)
        short = self.window.seconds <= WINDOW
        return Ask(
            limit=self.total,
            used=used,
            want=min(self.total, used + each * waiting + (0.0 if short else AHEAD * self.total)),
            need=each if self.since < INF else 0.0,
            since=self.since,
            whole=self.unit == REQUESTS,
            spread=short,
            stays=self.window.seconds + GUARD,
        )


class Slots(Part):
    """This process's part of the requests that may be in flight."""

    __slots__ = ("in_use",)

    def __init__(self, limit: float) -> None:
        super().__init__(SLOTS, limit, WINDOW)
        self.in_use = 0

    def fits(self, now: float, need: Estimate) -> bool:
        return self.in_use < self.window.limit

    def when(self, now: float, need: Estimate) -> float:
        return now if self.fits(now, need) else INF

    def add(self, now: float, need: Estimate) -> Entry:
        self.in_use += 1
        return _NOTHING

    def settle(self, entry: Entry, tokens: float, prompt: float, actual: float, actual_prompt: float) -> None:
        pass

    def refund(self, entry: Entry) -> None:
        pass

    def ask(self, now: float, head: Estimate | None, waiting: int) -> Ask:
        self.since = INF if head is None or self.in_use < self.window.limit else min(self.since, now)
        want = min(self.total, float(self.in_use + waiting))
        need = 1.0 if self.since < INF else 0.0
        return Ask(limit=self.total, used=float(self.in_use), want=want, need=need, since=self.since, whole=True)


_NOTHING = Entry(0.0)


def meters_of(limits: Limits, *, shared: bool) -> tuple[Meter, ...]:
    """Give the meters of limits that are set beside requests and tokens a minute; or parts, of those two as well."""
    more = (
        (INPUT, limits.itpm, WINDOW),
        (OUTPUT, limits.otpm, WINDOW),
        (REQUESTS, limits.rpd, DAY),
        (TOKENS, limits.tpd, DAY),
    )
    if not shared:
        return tuple(Meter(unit, limit, seconds) for unit, limit, seconds in more if limit is not None)
    all_ = ((REQUESTS, limits.rpm, WINDOW), (TOKENS, limits.tpm, WINDOW), *more)
    parts: list[Meter] = [Part(unit, limit, seconds) for unit, limit, seconds in all_ if limit is not None]
    if limits.concurrency is not None:
        parts.insert(0, Slots(limits.concurrency))
    return tuple(parts)
