"""Adaptive: how many requests in flight are worth having, found from latencies and refusals alone.

It starts at START and doubles while doubling pays: by Little's law, so many in flight at such a mean latency are so
many answers a second, and a doubling that brings less than GAIN times as many has passed the knee. From then on it
tries a step up or down now and then, and stays where the throughput is. Only its own steps are compared, never one
hour with another: a provider that has become slow is no reason to ask it less.

A refusal for want of room (`full`) makes the limit a Dial; an overloaded provider (`overloaded`) costs it a fifth,
once an episode. Growth happens only while the limit is what holds requests back.

Sources: inspect_ai's adaptive connections (start, doubling, one cut an episode); Netflix's concurrency-limits.
"""

from __future__ import annotations

from typing import Literal

from .pace import Dial

START = 20
GAIN = 1.3  # what a doubling must bring at least
BACK_OFF = 0.8
BLIND = 1.0  # seconds for a doubling before the first answer
SPREAD = 0.7  # of a round, over which its requests are sent: nobody knows yet how many are too many
BLINDLY = 1000  # in flight, beyond which nothing grows before the first answer
COOL_DOWN = 15.0  # seconds after an overload without another cut and without growth
STEP = 1.25
STEP_GAIN = 1.08  # what a step up must bring
STEP_LOSS = 0.985  # what a step down must keep
FAR = 0.7  # of the throughput is left after a step down: the knee is far above
TRY_EVERY = 20.0  # seconds between trials at the knee; half as long again after each that failed
_LONGEST = 300.0
_SAMPLE = 160  # answers at least, before a trial is judged

Mode = Literal["start", "knee", "full"]


class _Round:
    """The answers to requests that were sent since a time; `less` is what a step down had brought just before."""

    __slots__ = ("count", "less", "since", "total")

    def __init__(self, since: float, less: float = 0.0) -> None:
        self.since = since
        self.less = less
        self.count = 0
        self.total = 0.0

    def add(self, latency: float) -> None:
        self.count += 1
        self.total += latency

    def throughput(self, limit: float) -> float:
        return limit * self.count / self.total if self.total > 0.0 else 0.0


class Adaptive:
    """The concurrency limit of one endpoint and model. `limit` is a whole number from 1 to `ceiling`."""

    __slots__ = (
        "_before",
        "_blind",
        "_dial",
        "_last_cut",
        "_next_trial",
        "_pause",
        "_round",
        "_up",
        "baseline",
        "ceiling",
        "gap",
        "limit",
        "mode",
    )

    def __init__(self, ceiling: int, *, start: int = START) -> None:
        self.ceiling = ceiling
        self.mode: Mode = "start"
        self.baseline = 0.0  # seconds: the mean latency as last seen
        self.gap = 0.0  # seconds between requests while it grows: a crowd sent at once would be refused as a crowd
        self._dial = Dial(float(min(start, ceiling)))
        self._show()
        self._round = _Round(0.0)
        self._before: tuple[float, float] | None = None  # limit and throughput before the present trial
        self._last_cut = -COOL_DOWN
        self._next_trial = 0.0
        self._pause = TRY_EVERY
        self._up = True
        self._blind = False

    def _show(self) -> None:
        self.limit = max(1, min(self.ceiling, int(self._dial.value + 1e-9)))

    def answered(self, now: float, sent: float, latency: float, *, held: bool, rate: float) -> None:
        """One answer. `held`: the limit was what its request had waited for; `rate`: answers a second."""
        self.baseline += (latency - self.baseline) * (0.1 if self.baseline else 1.0)
        if not held:
            return
        if self.mode == "full":
            self._dial.climb(now, rate)
            self._show()
            return
        if sent < self._round.since or now - self._last_cut < COOL_DOWN:
            return
        self._round.add(latency)
        if self.mode == "start":
            self._start(now)
        else:
            self._knee(now)

    def _start(self, now: float) -> None:
        limit, found = self.limit, self._round
        if self.gap:
            self.gap = SPREAD * self.baseline / limit
        if found.count < max(8, limit):
            return
        throughput = found.throughput(limit)
        if self._blind:
            # It doubled before there was an answer, perhaps past the knee: what does half of it bring?
            self._blind = False
            self.mode, self._before, self._up = "knee", (limit, throughput), False
            self._move(now, max(1, limit // 2))
        elif self._before is not None and throughput < GAIN * self._before[1]:
            self.mode = "knee"
            before, self._before = self._before[0], None
            self._move(now, max(1, int(before * STEP)))
            self._next_trial = now + self._pause
        elif limit < self.ceiling:
            self._before = (limit, throughput)
            self._move(now, 2 * limit)
        else:
            self.gap = 0.0  # it is grown, and a whole round was spread

    def _knee(self, now: float) -> None:
        limit, found = self.limit, self._round
        if found.count < (max(8, limit) if found.less else max(_SAMPLE, 2 * limit)):
            return
        throughput = found.throughput(limit)
        if found.less and found.less < FAR * throughput:
            self.mode, self._up = "start", True  # far from the knee: less brings less in proportion
            self._move(now, limit)
        elif self._before is None:
            if now < self._next_trial:
                self._round = _Round(now)  # what is compared with a trial must be fresh
                return
            self._before = (limit, throughput)
            step = limit * STEP + 1 if self._up else limit / STEP
            self._move(now, min(step, self.ceiling))
        else:
            self._judge(now, throughput, *self._before)

    def _judge(self, now: float, throughput: float, before: float, there: float) -> None:
        """Keep the step or take it back. That less brings far less is believed only if it holds on the way back too:
        the provider may have become slow meanwhile."""
        limit = self.limit
        better = throughput >= there * (STEP_GAIN if limit > before else STEP_LOSS)
        self._before = None
        if better:
            self._pause = TRY_EVERY
            self._next_trial = now
            self._move(now, limit)
        else:
            self._pause = min(_LONGEST, 1.5 * self._pause)
            self._next_trial = now + self._pause
            self._up = not self._up
            self._move(now, before, throughput if limit < before and throughput < FAR * there else 0.0)

    def _move(self, now: float, limit: float, less: float = 0.0) -> None:
        self._dial.set(now, float(max(1, min(self.ceiling, limit))))
        self._show()
        self.gap = SPREAD * (self.baseline or BLIND) / self.limit if self.mode == "start" else 0.0
        self._round = _Round(now, less)

    def when(self, held_since: float, *, rates_known: bool) -> float:
        """Give when it may double although no answer has come; inf if it may not.

        Before the first answer nothing is known, and answers may take a minute: a second without a refusal is enough.
        Later only where the ledgers keep the rate, because then waiting teaches nothing.
        """
        if self.mode != "start" or self.limit >= self.ceiling:
            return float("inf")
        since = max(held_since, self._round.since)
        if not self.baseline:
            return since + BLIND if self.limit < BLINDLY else float("inf")
        return since + 2.0 * self.baseline if rates_known else float("inf")

    def double(self, now: float) -> None:
        """Take the step that `when` promised."""
        self._before = None
        self._blind = self._blind or not self.baseline
        self._move(now, 2 * self.limit)

    def full(self, now: float, level: float) -> None:
        """The provider took so many and refused the rest."""
        self.mode = "full"
        self._before = None
        self._move(now, max(1.0, level))

    def settle(self, now: float, level: float) -> None:
        """So many are what the provider answers in time."""
        self.mode = "knee"
        self._before = None
        self._pause = TRY_EVERY
        self._last_cut = now
        self._next_trial = now + COOL_DOWN
        self._up = True
        self._move(now, max(1.0, level))

    def reopen(self, now: float, level: float) -> None:
        """It was not the slots that were short: go on from here as at the start."""
        self.mode = "start"
        self._before = None
        self._move(now, max(START, level))

    def cut(self, now: float) -> None:
        """A single refusal of a request that the limit had let through."""
        self.mode = "full"
        self._dial.cut(now)
        self._show()
        self._before = None

    def overloaded(self, now: float) -> None:
        """The provider says that it is overloaded."""
        if now - self._last_cut < COOL_DOWN:
            return
        self._last_cut = now
        self._before = None
        self.mode = "knee"
        self._next_trial = now + COOL_DOWN
        self._up = True
        self._move(now, max(1.0, self.limit * BACK_OFF))

    def __repr__(self) -> str:
        return f"<Adaptive {self.limit} of {self.ceiling}, {self.mode}>"
