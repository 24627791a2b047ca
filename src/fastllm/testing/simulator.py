"""Runs a client against a provider of the zoo in virtual time, and tells how much of the capacity it used.

    from fastllm.testing.simulator import simulate

    report = simulate("token_bucket", seconds=600, seed=1)     # the real engine without configured limits
    print(report.share_after, report.refusals_after)
    simulate("token_bucket", client(limits=Limits(rpm=1800)))  # with options; any Contender does

The same seed gives the same run, to the last request. `SimTransport` alone answers any engine on a VirtualLoop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from ..build import EngineOptions, engine
from ..clock import Clock
from ..errors import APIConnectionError, APITimeoutError, StoppedError
from ..jobs.outcomes import outcomes
from ..options import Timeout
from ..transport.base import HTTPStream, Transport
from ..types import HTTPRequest, HTTPResponse, Request, Row
from .clock import VirtualClock, run_virtual
from .provider_models import Model, Traits, Verdict
from .zoo import ANIMALS

STREAMS = 8  # equal streams of rows, for fairness
WARM_UP = 120.0  # seconds that the figures "after" leave out
DEMAND = 512  # rows a contender may have under way, over all streams
TICK = 0.01  # seconds: what reaches the client is rounded up to this, so that one wake-up serves several answers
MOST_AT_ONCE = 100_000  # rows or attempts without time passing: a client that spins

_ARRIVING, _IN_SERVER, _RETURNING, _GONE = range(4)
_BODY = b'{"user":"%010d %010d","model":"m","messages":[{"role":"user","content":"%b"}]}'
_ANSWER = (
    b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"ok"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}'
)
_USER = b'"user":"'
_TYPE = (b"content-type", b"application/json")
_BYTES_A_TOKEN = 4


def body_for(index: int, tokens: int) -> bytes:
    """Give a chat body that the simulator reads its row and its tokens from; three quarters of them are prompt."""
    return _BODY % (index, tokens, b"x" * (_BYTES_A_TOKEN * prompt_of(tokens)))


def prompt_of(tokens: int) -> int:
    return tokens * 3 // 4


class _Exchange:
    """One HTTP exchange on its way: to the server, through it, and back. No verdict on the way back: a timeout."""

    __slots__ = ("admitted", "deadline", "future", "index", "stage", "tokens", "verdict")

    def __init__(self, future: asyncio.Future[HTTPResponse], index: int, tokens: int, deadline: float) -> None:
        self.future = future
        self.index = index
        self.tokens = tokens
        self.deadline = deadline
        self.stage = _ARRIVING
        self.verdict: Verdict | None = None
        self.admitted = 0.0


class SimTransport(Transport):
    """Answers an engine on a VirtualLoop from a Model, with a network between them.

    The server sees every request at its exact time and in the order of arrival. Bodies must be those of `body_for`.
    A client that goes away, or waits in vain for the first byte, frees its place in the server.
    """

    def __init__(self, model: Model, *, seed: int = 0, on_first: Callable[[int, float], None] | None = None) -> None:
        self.model = model
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(f"network {seed}").random
        self._nearest, farthest = model.traits.network
        self._jitter = farthest - self._nearest
        self._on_send = on_first
        self._events: list[tuple[float, int, _Exchange]] = []  # a heap; the number keeps equal times in order
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed = math.inf
        self._closed = False

    async def send(self, request: HTTPRequest, timeout: Timeout) -> HTTPResponse:
        now = self._loop.time()
        body = request.body
        at = body.find(_USER) + len(_USER)
        index, tokens = int(body[at : at + 10]), int(body[at + 11 : at + 21])
        if self._on_send is not None:
            self._on_send(index, now)
        future: asyncio.Future[HTTPResponse] = self._loop.create_future()
        patience = timeout.first_byte
        exchange = _Exchange(future, index, tokens, math.inf if patience is None else now + patience)
        self._push(now + self._way(), exchange)
        self._arm()
        try:
            return await future
        except asyncio.CancelledError:
            self._give_up(exchange)
            raise

    async def open(self, request: HTTPRequest, timeout: Timeout) -> HTTPStream:
        raise NotImplementedError("the simulator answers whole requests; use fastllm.testing.MockServer for streams")

    async def aclose(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _way(self) -> float:
        return self._nearest + self._random() * self._jitter

    def _push(self, when: float, exchange: _Exchange) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, exchange))

    def _arm(self) -> None:
        """Stand the one timer at the first tick that is not before the first event."""
        head = self._events[0][0]
        if head <= self._armed - TICK and not self._closed:
            if self._timer is not None:
                self._timer.cancel()
            self._armed = math.ceil(head / TICK) * TICK
            self._timer = self._loop.call_at(self._armed, self._run)

    def _run(self) -> None:
        self._timer, self._armed = None, math.inf
        events, now = self._events, self._loop.time() + 1e-9
        while events and events[0][0] <= now:
            at, _, exchange = heapq.heappop(events)
            stage = exchange.stage
            if stage == _ARRIVING:
                self._arrive(at, exchange)
            elif stage == _IN_SERVER:
                self.model.finish(at, exchange.tokens)
                self._return(at, exchange)
            elif stage == _RETURNING:
                self._deliver(exchange)
        if events:
            self._arm()

    def _arrive(self, at: float, exchange: _Exchange) -> None:
        verdict = exchange.verdict = self.model.judge(at, exchange.tokens)
        if not verdict.allowed:
            self._return(at + verdict.latency, exchange)
            return
        exchange.admitted = at
        leaves = at + verdict.latency
        if leaves >= exchange.deadline:
            # The timeout closes the connection, and the server sees that. The way back is left out here.
            exchange.stage, exchange.verdict = _RETURNING, None
            self._push(exchange.deadline, exchange)
            return
        exchange.stage = _IN_SERVER
        self._push(leaves, exchange)

    def _return(self, at: float, exchange: _Exchange) -> None:
        exchange.stage = _RETURNING
        self._push(at + self._way(), exchange)

    def _deliver(self, exchange: _Exchange) -> None:
        future, verdict = exchange.future, exchange.verdict
        exchange.stage = _GONE
        if verdict is None:
            self.model.abandon(exchange.deadline, exchange.tokens, exchange.admitted)
        if future.done():
            return
        if verdict is None:
            future.set_exception(APITimeoutError("no byte of an answer in time", code="timeout_first_byte"))
        elif verdict.status == 0:
            future.set_exception(
                APIConnectionError("the server refused the connection", code="connection_refused", sent=False)
            )
        else:
            body = verdict.body
            if verdict.allowed:
                tokens = exchange.tokens
                prompt = prompt_of(tokens)
                body = _ANSWER % (prompt, tokens - prompt, tokens)
            headers = verdict.headers
            headers.append(_TYPE)
            future.set_result(HTTPResponse(status=verdict.status, headers=headers, body=body))

    def _give_up(self, exchange: _Exchange) -> None:
        """The caller was cancelled: the connection is closed, which frees the server at once."""
        in_server = exchange.stage == _IN_SERVER or (exchange.stage == _RETURNING and exchange.verdict is None)
        exchange.stage = _GONE
        if in_server and not self._closed:
            self.model.abandon(self._loop.time(), exchange.tokens, exchange.admitted)

    def __repr__(self) -> str:
        return f"<SimTransport {self.model!r} {len(self._events)} events>"


class Run:
    """What a contender gets: a transport, endless rows, and where to say what became of them."""

    def __init__(self, model: Model, seed: int, demand: int) -> None:
        self.model = model
        self.seed = seed
        self.demand = demand
        self.loop = asyncio.get_running_loop()
        self.clock: Clock = VirtualClock(wall=model.traits.wall)
        self.transport = SimTransport(model, seed=seed, on_first=self._sent)
        self.done = [0] * STREAMS
        self.lost = 0
        self.errors: dict[str, int] = {}
        self.longest_wait = 0.0
        self.sample: Callable[[], dict[str, Any]] | None = None  # a contender may offer its state, once a second
        self._sizes = model.traits.sizes.table()
        self._size = random.Random(f"sizes {seed}").random
        self._pulled: list[float] = []
        self._spin = (-1.0, 0)

    def rows(self, stream: int) -> Iterator[Row]:
        """Give the endless rows of one stream; sizes are drawn as they are pulled."""
        name = str(stream)
        while True:
            index = len(self._pulled)
            self._watch()
            self._pulled.append(self.loop.time())
            body = body_for(index, round(self._sizes[int(self._size() * len(self._sizes))]))
            request = Request(body=body, model="m", body_model="m", priority=1)
            yield Row(index=index, custom_id=name, request=request)

    def _watch(self) -> None:
        now = self.loop.time()
        at, count = self._spin
        self._spin = (now, count + 1 if now == at else 0)
        if count > MOST_AT_ONCE:
            raise RuntimeError(f"the contender ended {count} rows at {now:g} s without letting time pass")

    def _sent(self, index: int, now: float) -> None:
        pulled = self._pulled[index]
        if pulled >= 0.0:
            self.longest_wait = max(self.longest_wait, now - pulled)
            self._pulled[index] = -1.0

    def answered(self, stream: int) -> None:
        self.done[stream] += 1

    def lose(self, error: BaseException | str) -> None:
        """A row ended without an answer."""
        self.lost += 1
        name = error if isinstance(error, str) else type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1

    def oldest(self, now: float) -> float:
        """Give the longest that any row, sent or not, has waited for its first attempt."""
        still = [now - at for at in self._pulled if at >= 0.0]
        return max(self.longest_wait, max(still, default=0.0))


Contender = Callable[[Run], Awaitable[None]]


def client(**options: Any) -> Contender:
    """Give the real engine with these EngineOptions (`limits=…`, `retry=…`), at work on eight endless jobs at once."""

    async def fastllm(run: Run) -> None:
        given = EngineOptions(
            base_url="http://sim/v1", api_key="k", transport=run.transport, clock=run.clock, **options
        )
        made = engine(given)
        run.sample = lambda: _state(made)

        async def job(stream: int) -> None:
            stopped: list[StoppedError] = []
            rows = itertools.takewhile(lambda row: not stopped, run.rows(stream))
            async for outcome in outcomes(made, rows, concurrency=max(1, run.demand // STREAMS)):
                if outcome.error is None:
                    run.answered(stream)
                elif isinstance(outcome.error, StoppedError):
                    stopped.append(outcome.error)  # what is in flight ends; the rest is there for a next run
                else:
                    run.lose(outcome.error)

        try:
            async with asyncio.TaskGroup() as group:
                for stream in range(STREAMS):
                    group.create_task(job(stream))
            await asyncio.Event().wait()
        finally:
            await made.aclose()

    return fastllm


fastllm = client()


def _state(made: Any) -> dict[str, Any]:
    """Give what the engine's limiter tells of itself now; fields that it does not have are left out."""
    found: dict[str, Any] = {}
    for endpoint in made.router.endpoints:
        limiter = endpoint.limiter
        for name in ("concurrency", "in_flight", "waiting", "rate", "limit", "phase", "state"):
            value = getattr(limiter, name, None)
            found[name] = value() if callable(value) else value
    for name in ("backing_off", "retries", "hedges"):
        found[name] = getattr(made.stats, name, None)
    return {name: value for name, value in found.items() if value is not None}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one run came to. Shares are of the capacity; figures "after" leave out the first two minutes.

    `refusals` are answers with 429 (or the model's own refusal) per thousand attempts; `time_to_95` is when the first
    10 s began that had 95 % of the capacity and were followed by a minute that had it too (None: never); `fairness`
    is Jain's index over 8 equal streams; `good` is in `unit` a second. `states` is the client's own account.
    """

    animal: str
    contender: str
    seed: int
    seconds: float
    unit: str
    share: float
    share_after: float | None
    refusals: float
    refusals_after: float | None
    time_to_95: float | None
    longest_wait: float
    fairness: float
    answered: int
    lost: int
    errors: dict[str, int]
    attempts: list[int]
    refused: list[int]
    good: list[float]
    capacity: list[float]
    states: list[dict[str, Any]]
    cost: float  # CPU seconds


def simulate(
    animal: str | Model,
    contender: Contender = fastllm,
    seconds: float = 600.0,
    *,
    seed: int = 0,
    demand: int | None = None,
) -> Report:
    """Run a contender against an animal for so many virtual seconds. Same seed, same report (but for `cost`).

    `demand` is how many rows the contender may have under way at once. The engine draws its jitter from Python's
    global generator, which is seeded for the run and put back after it.
    """
    model = ANIMALS[animal](seed=seed) if isinstance(animal, str) else animal
    before = random.getstate()
    began = time.process_time()
    random.seed(f"client {seed}")
    try:
        run, states = run_virtual(_play, model, contender, seconds, seed, demand or DEMAND)
    finally:
        random.setstate(before)
    return _report(run, states, getattr(contender, "__name__", "?"), seconds, time.process_time() - began)


async def _play(
    model: Model, contender: Contender, seconds: float, seed: int, demand: int
) -> tuple[Run, list[dict[str, Any]]]:
    run = Run(model, seed, demand)
    states: list[dict[str, Any]] = []
    task = asyncio.ensure_future(contender(run))
    for second in range(math.ceil(seconds)):
        await asyncio.sleep(min(seconds, second + 1.0) - run.loop.time())
        states.append(run.sample() if run.sample is not None else {})
        if task.done():
            break
    run.longest_wait = run.oldest(run.loop.time())
    ended = task.done()
    await run.transport.aclose()  # what is cancelled from here on is not the contender's doing
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    if ended:
        raise RuntimeError(f"the contender came to an end by itself after {len(states)} s")
    return run, states


def _report(run: Run, states: list[dict[str, Any]], name: str, seconds: float, cost: float) -> Report:
    model = run.model
    traits: Traits = model.traits
    count = math.ceil(seconds)
    good, attempts, refused = (_padded(series, count) for series in (model.good, model.attempts, model.refusals))
    warm = seconds >= WARM_UP + 60.0  # less than a whole window says nothing
    total = sum(run.done)
    squares = sum(n * n for n in run.done)
    return Report(
        animal=traits.name,
        contender=name,
        seed=run.seed,
        seconds=seconds,
        unit=traits.unit,
        share=sum(good) / traits.capacity(0.0, seconds),
        share_after=sum(good[int(WARM_UP) :]) / traits.capacity(WARM_UP, seconds) if warm else None,
        refusals=1000.0 * sum(refused) / max(1, sum(attempts)),
        refusals_after=(
            1000.0 * sum(refused[int(WARM_UP) :]) / max(1, sum(attempts[int(WARM_UP) :])) if warm else None
        ),
        time_to_95=_time_to_95(traits, good, count),
        longest_wait=run.longest_wait,
        fairness=total * total / (STREAMS * squares) if squares else 1.0,
        answered=total,
        lost=run.lost,
        errors=run.errors,
        attempts=attempts,
        refused=refused,
        good=good,
        capacity=[traits.capacity(second, second + 1.0) for second in range(count)],
        states=states,
        cost=cost,
    )


def _padded(series: list[Any], count: int) -> list[Any]:
    return series[:count] + [0] * (count - len(series))


def _time_to_95(traits: Traits, good: list[float], count: int) -> float | None:
    for start in range(0, count - 59, 10):
        reached = [sum(good[start:end]) >= 0.95 * _sustained(traits, start, end) for end in (start + 10, start + 60)]
        if all(reached):
            return float(start)
    return None


def _sustained(traits: Traits, start: float, end: float) -> float:
    """Capacity without what was saved up before the run."""
    return traits.capacity(start, end) - (traits.burst if start <= 0.0 else 0.0)
