"""What every display of a run shares: the numbers of one moment, and when it is time to draw them.

Counters are pulled from the engine's snapshots; a display never slows, stops or fails the run it shows.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from ..engine.holds import STEP, Room
from ..engine.stats import Snapshot
from ..policy.window import SPAN

RECENT, MANY = 2.0, 100  # seconds that rates look back, and two round trips, where so many rows came back within them …
WINDOW = 10.0  # … or else so many …
PATIENCE = 60.0  # … or up to a minute, until as many rows as this came back within it:
ENOUGH = 10
FULL = 0.95  # of a limit of a minute: whoever waits below it waits for something else
SAMPLE = 0.5
STANDSTILL = 0.5  # seconds: what waits for less is on its way


class Progress(Protocol):
    """Shows a run while it goes on. `start` draws from a thread of its own; `update` draws now if it is time."""

    def start(self) -> None: ...

    def update(self) -> None: ...

    def close(self) -> None: ...


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What one moment looks like; rates per second, times in seconds, None where nothing is known yet."""

    done: int = 0
    total: int | None = None
    elapsed: float = 0.0
    rate: float = 0.0
    prompt_rate: float = 0.0
    completion_rate: float = 0.0
    in_flight: int = 0
    waiting: int = 0
    backing_off: int = 0
    retries: int = 0
    rate_limited: int = 0
    cached: int = 0
    hit_ratio: float | None = None
    failed: int = 0
    cost: float = 0.0  # USD; 0 where it is not known
    unsent: int = 0
    hold: str = ""  # why nothing goes out: in words, and in fewer
    hold_short: str = ""
    eta: float | None = None
    overall_rate: float = 0.0  # since the beginning, without resumed rows

    @property
    def share(self) -> float | None:
        """How much of the whole is done, 0 to 1; None while the total is unknown."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total > 0 else 1.0

    @property
    def percent(self) -> int | None:
        """The share in whole percent: 100 only where all is done."""
        return None if self.share is None else int(self.share * 100)


def with_unseen(seen: Snapshot, unseen: Mapping[str, int]) -> Snapshot:
    """Add failures that never reached the engine, by their class: they are done all the same."""
    failed = sum(unseen.values())
    errors = {name: seen.errors.get(name, 0) + unseen.get(name, 0) for name in {**seen.errors, **unseen}}
    return msgspec.structs.replace(seen, done=seen.done + failed, failed=seen.failed + failed, errors=errors)


def of_rows(seen: Snapshot, finished: int, errors: Mapping[str, int]) -> Snapshot:
    """Give a job's own figures of its rows, and the rest as the engine counted it. What an engine counts is requests:
    rows that never reached it are not among them, nor those of a process that died before it told."""
    failed = min(finished, sum(errors.values()))
    return msgspec.structs.replace(seen, done=finished, ok=finished - failed, failed=failed, errors=dict(errors))


class Meter:
    """Turns snapshots into views: differences since the first one, rates over a sliding window.

    Rows resumed from the journal count as done but not in the rate. A long-lived engine may have served other
    runs before: what it counted until then is left out.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        total: Callable[[], int | None],
        *,
        already_done: int | Callable[[], int] = 0,
    ) -> None:
        self._snapshot = snapshot
        self._total = total
        self._already_done = already_done if callable(already_done) else lambda: already_done
        self._first: Snapshot | None = None
        self._samples: deque[Snapshot] = deque()
        self._stood: float | None = None  # when rows last waited for a limit with nothing in flight
        self._idle_since: float | None = None  # and since when they do, for a moment at least
        self._held = False  # nothing went out
        self._expected: float | None = None  # when the last row will be done
        self._counted = -1  # rows done when that was thought

    def view(self) -> View:
        """Take a snapshot and say what it means."""
        now = self._snapshot()
        first = self._first = self._first or now
        if self._held and not now.holds:  # how fast it was before says nothing, and a standstill even less
            self._samples.clear()
            self._stood = self._idle_since = None
        self._held = bool(now.holds)
        if now.done == first.done and now.attempts == first.attempts:
            self._samples.clear()  # nothing was sent yet: processes start, or rows that are done are passed over
        if not self._samples or now.elapsed - self._samples[-1].elapsed >= SAMPLE:
            self._samples.append(now)
        while len(self._samples) > 2 and now.elapsed - self._samples[1].elapsed >= PATIENCE:
            self._samples.popleft()
        past = self._past(now)
        seconds = now.elapsed - past.elapsed
        per_second = 1.0 / seconds if seconds > 0 else 0.0
        done, total = self._already_done() + now.done - first.done, self._total()
        rate = (now.done - past.done) * per_second
        left = None if total is None else max(0, total - done)
        ok, elapsed = now.ok - first.ok, now.elapsed - first.elapsed
        return View(
            done=done,
            total=total,
            elapsed=elapsed,
            rate=rate,
            prompt_rate=(now.prompt_tokens - past.prompt_tokens) * per_second,
            completion_rate=(now.completion_tokens - past.completion_tokens) * per_second,
            in_flight=now.in_flight,
            waiting=now.waiting,
            backing_off=now.backing_off,
            retries=now.retries - first.retries,
            rate_limited=now.rate_limited - first.rate_limited,
            cached=now.cached - first.cached,
            hit_ratio=(now.cached - first.cached) / ok if ok > 0 else None,
            failed=now.failed - first.failed,
            cost=(now.cost_usd or 0.0) - (first.cost_usd or 0.0),
            unsent=now.unsent - first.unsent,
            hold=_named(now, short=False),
            hold_short=_named(now, short=True),
            eta=self._eta(now, left, rate if seconds >= min(WINDOW, _recent(now)) else 0.0),
            overall_rate=(now.done - first.done) / elapsed if elapsed > 0 else 0.0,
        )

    def _is_limited(self, now: Snapshot) -> bool:
        """Tell whether limits of a minute hold the rows back, now or within the last minute: then no burst lasts."""
        # At first, rows wait to hear that the key is good.
        begun = self._first is not None and now.done > self._first.done
        if not now.waiting or now.in_flight or not begun:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now.elapsed
        elif now.elapsed - self._idle_since >= STANDSTILL:
            if self._stood is None or now.elapsed - self._stood >= PATIENCE:
                self._counted = -1  # it was thought to go on
            self._stood = now.elapsed
        return self._stood is not None and now.elapsed - self._stood < PATIENCE

    def _eta(self, now: Snapshot, left: int | None, rate: float) -> float | None:
        """Seconds until all is done: thought over whenever a row is, counted down between, and None rather than wrong:
        while an endpoint stands still, and where the time came and the rows did not. Never sooner than the limits of a
        minute allow. `rate` is 0 as long as too little was seen."""
        limited = self._is_limited(now)
        if left is None or self._held:
            self._expected = None
            return None
        turn, full = self._turn(now, left)
        if limited and full:
            return turn
        if limited and not now.rooms:  # a minute's rows go through at once and then none: only a whole minute tells
            oldest = self._samples[0]
            rate = (now.done - oldest.done) / max(PATIENCE, now.elapsed - oldest.elapsed)
        if now.done != self._counted:
            self._counted = now.done
            self._expected = now.elapsed + left / rate if rate > 0 else None
        if self._expected is None or (left and now.elapsed > self._expected):
            return turn or None
        return max(turn, self._expected - now.elapsed)

    def _past(self, now: Snapshot) -> Snapshot:
        """The sample that rates are measured from: the newest one that is old enough and has seen enough."""
        recent = _recent(now)
        for sample in reversed(self._samples):
            age, rows = now.elapsed - sample.elapsed, now.done - sample.done
            if (age >= recent and rows >= MANY) or (age >= max(WINDOW, recent) and rows >= ENOUGH):
                return sample
        return self._samples[0]

    def _turn(self, now: Snapshot, left: int) -> tuple[float, bool]:
        """Seconds until the last of these rows goes out, as the limits of a minute allow, 0 where none is known, and
        whether one is used up. What is sent in one minute can be sent again in the next, and in the same rhythm."""
        first, turns, full = self._first or now, [0.0], False
        answered = _answered(now) - _answered(first)
        used = now.prompt_tokens + now.completion_tokens - first.prompt_tokens - first.completion_tokens
        tokens = used / answered if answered > 0 else 0.0
        for name, room in now.rooms.items():
            one = 1.0 if name == "requests" else tokens
            need = max(0, left - now.in_flight) * one
            if not one or room.limit < 1.0:
                continue
            full = full or room.used[0] + one > FULL * room.limit
            turns.append(_last_goes(need, room))
        return max(turns), full


def _recent(now: Snapshot) -> float:
    """As many seconds as rates must look back at least: in less than a round trip a burst would pass for a rate."""
    return min(PATIENCE / 2, max(RECENT, 2 * (now.p50 or 0.0)))


def _answered(now: Snapshot) -> int:
    return now.ok + now.misfits - now.cached - now.joined


def _last_goes(need: float, room: Room) -> float:
    """Seconds until the last of so much goes out."""
    minutes, rest = divmod(need, room.limit)
    if not rest and minutes:
        minutes, rest = minutes - 1, room.limit
    return minutes * SPAN + _free_in(room.used, room.limit - rest)


def _free_in(used: tuple[float, ...], least: float) -> float:
    """Seconds until no more than this is used, between two steps where it falls."""
    for i, amount in enumerate(used):
        if amount <= least:
            before = used[i - 1] if i else amount
            return STEP * (i - (least - amount) / (before - amount)) if before > amount else STEP * i
    return STEP * (len(used) - 1)


def _named(now: Snapshot, *, short: bool) -> str:
    """The first endpoint that stands still, with its name where there are others."""
    if not now.holds:
        return ""
    hold = now.holds[0]
    text = hold.short if short else hold.why
    return text if len(now.limits) < 2 else f"{hold.endpoint}: {text}"


class Display:
    """The part that all displays share: a thread that draws now and then, until `close` or a broken stream."""

    interval = 0.1  # seconds between two drawings

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn_at: float | None = None
        self._broken = False

    def start(self) -> None:
        """Open the display, take the first counts and go on drawing from a daemon thread.

        A thread and not the engine's loop: a terminal that is halted (Ctrl-S, a slow ssh) blocks whoever
        writes to it, and requests must not time out over that.
        """
        self._guarded(self._open)
        self.update()
        if self._thread is None and not self._broken:
            self._thread = threading.Thread(target=self._run, name="fastllm-progress", daemon=True)
            self._thread.start()

    def update(self) -> None:
        """Draw, if the last drawing is `interval` ago; to be called as often as one likes."""
        with self._lock:
            if self._broken or self._closing.is_set():
                return
            view = self._meter.view()
            if self._drawn_at is None or view.elapsed - self._drawn_at >= self.interval * 0.999:
                self._drawn_at = view.elapsed
                self._guarded(self._draw, view)

    def close(self) -> None:
        """Draw the end, once, and stop the thread; a halted terminal is given two seconds. What was never begun has no
        end either."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread is None and self._drawn_at is None:
            return
        if self._thread is not None:
            self._thread.join(2.0)
            if self._thread.is_alive():
                return
        with self._lock:
            self._guarded(self._finish, self._meter.view())

    def _run(self) -> None:
        while not self._closing.wait(min(self.interval, 0.5)):
            self.update()

    def _guarded(self, action: Callable[..., None], *args: object) -> None:
        try:
            action(*args)
        except (OSError, ValueError):  # the stream is gone or closed: the run goes on unseen
            self._broken = True

    def _open(self) -> None:
        """Prepare the stream; displays that need nothing leave it."""

    def _draw(self, view: View) -> None:
        raise NotImplementedError

    def _finish(self, view: View) -> None:
        raise NotImplementedError


class Silent:
    """No display at all."""

    def start(self) -> None: ...

    def update(self) -> None: ...

    def close(self) -> None: ...


async def watch(progress: Progress, interval: float = 0.1) -> None:
    """Drive a display from the caller's loop instead of its thread, until cancelled; then close it."""
    try:
        while True:
            progress.update()
            await asyncio.sleep(interval)
    finally:
        progress.close()
