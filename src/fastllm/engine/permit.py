"""Permit: the right to make one attempt, and what was booked for it. Waiter: the place in a queue of who wants one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..policy.budget import Reservation
from ..policy.learner import Attempt
from ..policy.tokens import Estimate
from ..policy.window import Entry


class Permit(Attempt, eq=False):
    """The right to make one attempt. `settle` corrects the token estimate, `release` gives back the slot."""

    prompt: float = 0.0
    _limiter: Any = None  # the Limiter that gave it, until it is given back
    more: tuple[Entry, ...] = ()
    talks: bool = False  # it is no batch's
    money: Reservation | None = None

    def settle(self, actual: float, prompt: float | None = None) -> None:
        """Book what the attempt really cost in tokens instead of the estimate."""
        limiter, entry = self._limiter, self.token
        if limiter is None or entry is None:
            return
        limiter.learner.tokens.settle(entry, actual - self.estimate)
        if self.more:
            own = self.prompt if prompt is None else prompt
            if not actual:
                own = 0.0
            for meter, booked in zip(limiter._more, self.more, strict=True):
                meter.settle(booked, self.estimate, self.prompt, actual, own)
            self.prompt = own
        self.estimate = actual

    def refund(self) -> None:
        """Book nothing at all: the provider has not counted the request."""
        self.settle(0.0)
        limiter, entry = self._limiter, self.request
        if limiter is not None and entry is not None:
            limiter.learner.requests.settle(entry, -1.0)
            for meter, booked in zip(limiter._more, self.more, strict=True):
                meter.refund(booked)
            self.token = None

    def cancel(self) -> None:
        """Give all of it back: nothing was sent."""
        limiter = self._limiter
        self.refund()
        if limiter is not None:
            limiter._count -= 1
            limiter.learner.unsent(self)
        self.release()

    def release(self) -> None:
        """Give the slot back and let the next one in."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.in_flight -= 1
            if self.talks:
                limiter._talking -= 1
            if limiter._slots is not None:
                limiter._slots.in_use -= 1
            if limiter._queues[0] or limiter._queues[1]:
                limiter._admit()


class Hopes(Protocol):
    """What is told of a permit that it waited for, or why there will be none: a future, or what acts as one."""

    def done(self) -> bool: ...
    def set_result(self, permit: Permit, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...


class Waiter:
    """A place in a limiter's queue."""

    __slots__ = ("_estimate", "future", "need", "patience")

    def __init__(self, future: Hopes, need: Estimate, patience: float, estimate: Callable[[], Estimate] | None) -> None:
        self.future = future
        self.need = need
        self.patience = patience
        self._estimate = estimate

    def look(self) -> Estimate:
        """Give what it needs, as far as is known by now."""
        if self._estimate is not None:
            self.need = self._estimate()
        return self.need
