"""Engine: executes requests under every rule; this page is the order of things.

Within one deadline: 1 the cache; 2 an identical request under way; 3 repeat: permit, send, learn, decode, settle,
release, and back off without the permit; 4 keep the answer. A retry re-enters admission, never the cache.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
from msgspec import UNSET

from ..cache.base import Cache
from ..clock import Clock, Deadline
from ..errors import APIStatusError, LLMError, RateLimitError, StoppedError, let_go
from ..options import Retry, Timeout
from ..policy import backoff
from ..policy.budget import Budget
from ..policy.headers import NOTHING, Hints, body_hints, read_hints
from ..policy.tokens import Estimate
from ..transport.base import HTTPStream, Transport
from ..types import EMBEDDINGS, HTTPRequest, HTTPResponse, Request, Response
from . import codec, parking
from .call import Call, in_time, too_late
from .endpoint import Endpoint
from .events import AttemptFailed, Event, Observer, RequestDone, attempts_only
from .flight import Flight, Terms
from .hedge import A, Race, latencies, spare_permit
from .keeping import keep, kept, look_up, reads
from .packs import Packs, split
from .permit import Permit
from .router import Router, Tier, address
from .sharing import Sharing
from .stats import Snapshot, Stats, snapshot_of
from .stream import Stream, replayed
from .underway import UnderWay
from .way import begin

logger = logging.getLogger("fastllm")

RETRY_WAIT = 1.0  # seconds between looks at a retry budget that is used up


Look = Callable[[Tier], Awaitable[A | None]]
Attempt = Callable[[Call, Endpoint, HTTPRequest, Permit], Awaitable[A]]


class Engine:
    """Executes requests; safe for any number of tasks on one loop. `aclose` it once, from its owner."""

    def __init__(
        self,
        router: Router,
        transport: Transport,
        *,
        clock: Clock,
        cache: Cache | None = None,
        retry: Retry | None = None,
        timeout: Timeout | None = None,
        observers: Sequence[Observer] = (),
        random: Callable[[], float] = random.random,
    ) -> None:
        self.router = router
        self.transport = transport
        self.clock = clock
        self.cache = cache
        self.retry = retry or Retry()
        self.timeout = timeout or Timeout()
        self.observers = tuple(observers)
        self.stats = Stats(clock.now())
        self.under_way = UnderWay()
        self._random = random
        self._flights: dict[bytes, Flight] = {}
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self.budget: Budget | None = None  # the endpoints' purses draw on it
        self.sharing: Sharing | None = None  # with other processes, of limits and budget
        self.packs: Packs | None = None

    def with_options(
        self, *, router: Router | None = None, retry: Retry | None = None, timeout: Timeout | None = None
    ) -> Engine:
        """Give an engine with other options that shares everything else: connections, cache, flights, counters."""
        other = Engine(
            router or self.router,
            self.transport,
            clock=self.clock,
            cache=self.cache,
            retry=retry or self.retry,
            timeout=timeout or self.timeout,
            observers=self.observers,
            random=self._random,
        )
        other.stats = self.stats
        other.budget = self.budget
        other.sharing = self.sharing
        other.under_way = self.under_way
        other._flights = self._flights
        other._closing = self._closing
        if self.packs is not None:
            other.pack()
        return other

    def pack(self) -> None:
        """Have inputs that a batch wants embedded share requests."""
        plain = self.with_options()
        plain.cache = None  # each input's answer is kept by itself
        plain.observers = tuple(partial(attempts_only, observer) for observer in self.observers)
        self.packs = Packs(plain, self.cache)

    async def execute(self, request: Request) -> Response:
        """Get the answer to one request, or raise one LLMError. ConfigError where the model cannot be routed."""
        return await self.answer(self.call(request))

    async def answer(self, call: Call, look: Look[Response] | None = None) -> Response:
        """Do so for a call that its maker goes on looking at; without a cache, `look` is asked before each fallback."""
        request = call.request
        if self.packs is not None and request.path == EMBEDDINGS:
            call.shared = split(request)
        try:
            with call.deadline:
                endpoint = call.endpoint = self.router.known.get(request.model) or await self._resolve(call)
                if self.cache is None:
                    response: Response = await self._attempts(call, endpoint, self._send, look)
                elif not reads(request):
                    response = await self._anew(call, endpoint, self.cache)
                else:
                    response = await self._share(call, endpoint, self.cache)
        except LLMError as error:
            self.failed(call, error)
            raise
        except TimeoutError:
            if not call.deadline.expired:
                raise
            if call.response is None:
                raise self.failed(call, too_late(call)) from call.last
            response = call.response
        if self.observers:
            self.done(request, response, None, call.began)
        return response

    async def stream(self, request: Request) -> Stream:
        """Open a streamed answer: returns once its first chunk is there; retries happen only before that."""
        call = self.call(request)
        try:
            with call.deadline:
                endpoint = call.endpoint = self.router.known.get(request.model) or await self._resolve(call)
                if self.cache is not None and reads(request):
                    hit = await self._kept(self.cache, request, call.place or endpoint)
                    if hit is not None:
                        self.done(request, hit, None, call.began)
                        return replayed(hit, codec.replayed(endpoint, request, hit))
                stream: Stream = await self._attempts(call, endpoint, self._open)
        except LLMError as error:
            self.failed(call, error)
            raise
        except TimeoutError:
            if not call.deadline.expired:
                raise
            raise self.failed(call, too_late(call)) from call.last
        return stream

    def call(self, request: Request) -> Call:
        """Begin a request: its time runs from now on."""
        timeout = self.timeout if request.timeout is UNSET else Timeout.of(request.timeout)
        return Call(request, timeout, self.clock.deadline(timeout.total), self.clock.now())

    async def _resolve(self, call: Call) -> Endpoint:
        """Have the endpoint made. It may start a model, and a batch waits for that as it waits in a queue."""
        waited = call.excuse(self.clock.now())
        try:
            tiers = self.router.route(call.request.model)
            if tiers is None:
                return await self.router.resolve(call.request.model)
            return await begin(tiers, call, self.stats)
        finally:
            call.hold(self.clock.now() - waited)

    async def _anew(self, call: Call, endpoint: Endpoint, cache: Cache) -> Response:
        """Steps 3 and 4 alone, for a request that wants an answer of its own."""
        response: Response = await self._attempts(call, endpoint, self._send)
        call.response = response
        await keep(cache, call.request, call.place or endpoint, response)
        return response

    async def _share(self, call: Call, endpoint: Endpoint, cache: Cache) -> Response:
        """Steps 1, 2 and 4: look up, join an identical request or lead it, and keep the answer."""
        place = call.place or endpoint
        text, key = address(call.request, place)
        batch = call.request.priority > 0
        flight = self._flights.get(key)
        if flight is None:
            # Leading begins before the look-up, so that no answer can land unseen between the two.
            flight = Flight(self._flights, key, batch=batch)
        elif batch or flight.interactive:
            landed = await self._follow(call, endpoint, flight)
            if landed is not None:
                return self._joined(landed)
        else:
            flight.interactive = True
        call.flight = flight
        try:
            response = self.stats.hit(await look_up(cache, call.request, text, key))
            if response is None:
                look = partial(self._kept, cache, call.request)
                response = await self._attempts(call, endpoint, self._send, look)
                if response is flight.answer:
                    return self._joined(response)
                call.response = response
                # A fallback's answer is kept as its own.
                await keep(cache, call.request, call.place or place, response, {place: (text, key)})
        except LLMError as error:
            if flight.answer is not None:
                return self._joined(flight.answer)
            flight.fail(error, self._terms(call, endpoint), batch=batch)
            raise
        except BaseException:
            # Cancelled. With the answer in hand it goes to the followers; without it one of them leads.
            if call.response is not None:
                flight.land(call.response)
            elif call.deadline.expired:
                flight.fail(too_late(call), self._terms(call, endpoint), batch=batch)
            else:
                flight.leave(batch=batch)
            raise
        flight.land(response)
        return response

    async def _follow(self, call: Call, endpoint: Endpoint, flight: Flight) -> Response | None:
        """Wait for the leader within the caller's own time (a batch: within the leader's). None: the lead is ours."""
        waited = call.excuse(self.clock.now())
        try:
            return await flight.join(self._terms(call, endpoint), batch=call.request.priority > 0)
        finally:
            call.hold(self.clock.now() - waited)

    def _terms(self, call: Call, endpoint: Endpoint) -> Terms:
        return call.way.tiers if call.way is not None else endpoint, self.retry, call.timeout

    def _joined(self, landed: Response) -> Response:
        self.stats.joined += 1
        self.stats.ok += 1
        return msgspec.structs.replace(landed, cached=True, attempts=0, latency=0.0, cost=0.0)

    def _attempts(
        self,
        call: Call,
        endpoint: Endpoint,
        once: Attempt[A],
        look: Look[A] | None = None,
    ) -> Awaitable[A]:
        """Step 3; on a route at one endpoint after another, where `look` finds what a fallback has answered before."""
        if call.shared is not None and self.packs is not None:
            return self.packs.join(call, endpoint, call.shared)  # type: ignore[return-value]  # a whole answer
        if call.way is None:
            return self._repeat(call, endpoint, once)
        return call.way.travel(endpoint, lambda other: self._repeat(call, other, once), look)

    async def _kept(self, cache: Cache, request: Request, place: Endpoint | Tier) -> Response | None:
        return self.stats.hit(await kept(cache, request, place))

    async def _repeat(self, call: Call, endpoint: Endpoint, attempt_once: Attempt[A]) -> A:
        """Step 3: attempt until there is an answer, a final error, or no time left."""
        request = call.request
        if call.missed is not None:
            await self._failed_once(call, endpoint, call.missed.sent, call.missed.error)
        sent, http = codec.encoded(endpoint, request)
        estimate = endpoint.estimator.estimate(request)
        while True:
            permit = endpoint.limiter.try_acquire(estimate, request.priority)
            if permit is None:
                permit = await parking.admission(call, endpoint, estimate, self.retry, self.clock, self.stats)
            if call.flight is not None and call.flight.answer is not None:  # another leader was first
                permit.cancel()
                return call.flight.answer  # type: ignore[return-value]  # only whole answers fly
            if endpoint.purse is not None and not await parking.pay(
                call, endpoint, permit, self.clock, self.stats, self._random
            ):
                continue
            attempt = call.attempts = call.attempts + 1
            self.stats.sent(attempt)
            try:
                if self.retry.hedge is not None:
                    response = await self._hedged(call, endpoint, permit, estimate, attempt_once, http)
                elif call.timeout.attempt is None:
                    response = await attempt_once(call, endpoint, http, permit)
                else:
                    once = attempt_once(call, endpoint, http, permit)
                    response = await in_time(self.clock, call, endpoint, permit, once)
            except LLMError as error:
                await self._failed_once(call, endpoint, sent, error)
                sent, http = codec.encoded(endpoint, request)
            else:
                response.attempts, response.endpoint = call.attempts, endpoint.name
                if call.tried:
                    response.history = tuple(call.tried)
                return response

    async def _failed_once(self, call: Call, endpoint: Endpoint, sent: Request, error: LLMError) -> None:
        """An attempt has failed: wait until another may be made, or raise its error."""
        let_go(error)
        call.note(endpoint, error)
        error.attempts, error.endpoint = call.attempts, endpoint.name
        if not call.spared and backoff.is_stale(error):
            call.spared = 1
            endpoint.retries.skip()
            self._missed(call, endpoint, error, 0.0)
            return
        if call.adapt(endpoint, sent, error):
            self._missed(call, endpoint, error, 0.0)
            return
        patient = call.request.priority > 0 and self.retry.patient and endpoint.patient(error)
        call.counted += not patient
        if call.way is not None and call.way.leaves(endpoint, error):
            self._missed(call, endpoint, error, 0.0)
            raise error
        await self._back_off(call, endpoint, error, call.counted, patient=patient)
        if call.way is not None:
            call.way.restart()
            raise error

    async def _hedged(
        self, call: Call, endpoint: Endpoint, permit: Permit, need: Estimate, once: Attempt[A], http: HTTPRequest
    ) -> A:
        """One attempt, and a second one beside it if it is late."""

        def begin(permit: Permit) -> Awaitable[A]:
            attempt = once(call, endpoint, http, permit)
            return attempt if call.timeout.attempt is None else in_time(self.clock, call, endpoint, permit, attempt)

        def second() -> Awaitable[A] | None:
            permit = spare_permit(endpoint, call.request, need)
            if permit is None:
                return None
            call.attempts += 1
            self.stats.hedged()
            return begin(permit)

        def won(answer: A) -> None:
            answer.attempts, answer.endpoint = call.attempts, endpoint.name
            if isinstance(answer, Response):
                call.response = answer

        call.whole = []
        known = latencies(endpoint, whole=once == self._send)
        race = Race(self.clock, known, second, won, lambda error: self._missed(call, endpoint, error, None))
        return await race.run(begin(permit), self.retry.hedge or 1.0)

    async def _send(self, call: Call, endpoint: Endpoint, http: HTTPRequest, permit: Permit) -> Response:
        """One attempt at a whole answer. The permit is given back here, whatever happens."""
        self.under_way.sent()
        try:
            answer = await self.transport.send(http, call.timeout)
        except BaseException as error:
            failure = error if isinstance(error, LLMError) else None
            if failure is not None:  # a task that was cancelled leaves by itself
                self.under_way.failed()
            self.lost(endpoint, permit, failure)
            raise
        try:
            return self.landed(call.request, endpoint, permit, answer, self.clock.now())
        except LLMError:
            self.under_way.failed()
            raise

    def landed(
        self, request: Request, endpoint: Endpoint, permit: Permit, answer: HTTPResponse, now: float
    ) -> Response:
        """Read an attempt's whole answer, book what it cost, and give its permit back, whatever happens."""
        try:
            response = self._read(request, endpoint, permit, answer, now)
            response.latency = now - permit.sent
            endpoint.answered(permit, response, request)
            self.stats.answered(response.latency, response.usage)
        except BaseException as error:
            self.lost(endpoint, permit, error if isinstance(error, LLMError) else None)
            raise
        self.stats.in_flight -= 1
        endpoint.ended(permit, None)
        return response

    async def _open(self, call: Call, endpoint: Endpoint, http: HTTPRequest, permit: Permit) -> Stream:
        """One attempt at a streamed answer, up to its first chunk; then permit and connection are the Stream's."""
        sent = self.clock.now()
        source: HTTPStream | None = None
        stream: Stream | None = None
        self.under_way.sent()
        try:
            source = await self.transport.open(http, call.timeout)
            if not 200 <= source.status < 300:
                answer = source.head()
                answer.body = b"".join([piece async for piece in source])
                self._read(call.request, endpoint, permit, answer, self.clock.now())
            hints = read_hints(source.headers, self.clock.time(), endpoint.limit_names)
            stream = self._hand_over(call, endpoint, permit, source, sent, hints)
            await stream.begin()
            stream.latency = self.clock.now() - sent
            endpoint.limiter.alive(permit)
            endpoint.limiter.heard(permit, hints)
            return stream
        except BaseException as error:
            failure = error if isinstance(error, LLMError) else None
            if failure is not None:
                self.under_way.failed()
            if stream is not None:
                await stream.aclose()
            else:
                self.lost(endpoint, permit, failure)
                if source is not None:
                    await source.aclose()
            raise

    def _hand_over(
        self, call: Call, endpoint: Endpoint, permit: Permit, source: HTTPStream, sent: float, hints: Hints
    ) -> Stream:
        """Make the Stream that owns this permit and connection from now on."""
        request, began, total, whole = call.request, call.began, call.timeout.total, call.whole
        due = None if total is None else began + call.excused + total

        def deadline() -> Deadline:
            return self.clock.deadline(None if due is None else max(0.0, due - self.clock.now()))

        def ended(response: Response | None, error: LLMError | None, shown: bool, *, left: bool = False) -> None:
            try:
                if left and response is not None:
                    self.stats.left += 1
                    endpoint.left(permit, response)
                elif response is not None and whole:  # the other of two attempts was first
                    endpoint.answered(permit, response, request)
                    response = None
                elif response is not None:
                    response.latency = self.clock.now() - sent
                    if whole is not None:
                        whole.append(True)
                    self._settle(endpoint, request, permit, response)
                elif error is not None:
                    # What the head said belongs to an error that came first; later it is old.
                    self._learn(
                        endpoint, permit, error, NOTHING if shown else hints, error.message.encode("utf-8", "replace")
                    )
            finally:
                self.lost(endpoint, permit, error)
            if error is not None and shown:
                self.stats.failure(error)
            if response is not None or (error is not None and shown):
                self.done(request, response, error, began, left=left)

        async def kept_whole(response: Response) -> None:
            if self.cache is not None:
                await keep(self.cache, request, call.place or endpoint, response)

        decoder = codec.begun(endpoint, request)
        stream = Stream(
            source, decoder, deadline=deadline, ended=ended, keep=kept_whole, timeout=call.timeout, now=self.clock.now
        )
        stream.endpoint, stream.attempts, stream.history = endpoint.name, call.attempts, tuple(call.tried)
        return stream

    def _settle(self, endpoint: Endpoint, request: Request, permit: Permit, response: Response) -> None:
        """Book what a whole answer really cost."""
        endpoint.answered(permit, response, request)
        self.stats.answered(response.latency, response.usage)

    def lost(self, endpoint: Endpoint, permit: Permit, error: LLMError | None) -> None:
        """Give the permit back."""
        self.stats.in_flight -= 1
        if error is not None and error.status_code == 429:
            self.stats.rate_limited += 1
        if error is not None and backoff.is_stale(error):
            error = None  # no news of the provider: to the breaker it is neither an outage nor a sign of life
        endpoint.ended(permit, error)

    def _read(self, request: Request, endpoint: Endpoint, permit: Permit, answer: HTTPResponse, now: float) -> Response:
        """Decode the answer, and learn from its head where that may be news."""
        try:
            response = codec.decoded(endpoint, request, answer)
        except LLMError as error:
            hints = read_hints(answer.headers, self.clock.time(), endpoint.limit_names)
            self._learn(endpoint, permit, error, hints, answer.body)
            raise
        limiter = endpoint.limiter
        if now >= limiter.news_at:
            limiter.heard(permit, read_hints(answer.headers, self.clock.time(), endpoint.limit_names))
        return response

    def _learn(self, endpoint: Endpoint, permit: Permit, error: LLMError, hints: Hints, body: bytes) -> None:
        """Find out when to come back, from the headers or else from the body, and tell the endpoint."""
        endpoint.cleanse(error)
        counted = not isinstance(error, RateLimitError)
        if isinstance(error, APIStatusError):
            said = body_hints(body)
            if error.retryable and error.retry_after is None:
                error.retry_after = hints.retry_after if hints.retry_after is not None else said.retry_after
            if said.limits:
                endpoint.limiter.heard(permit, said, counted=counted)
        endpoint.limiter.heard(permit, hints, counted=counted)

    async def _back_off(self, call: Call, endpoint: Endpoint, error: LLMError, counted: int, *, patient: bool) -> None:
        """Sleep before the next attempt, or raise the error if it is final. A patient batch request's waits for the
        provider are not held against its deadline."""
        batch = call.request.priority > 0
        if batch:
            endpoint.give_up_after(self.retry.park_cap, error)
        attempt = call.attempts - call.spared
        pause = backoff.delay(self.retry, error, attempt, counted, self._random, batch=batch)
        may = pause is None or endpoint.may_retry(error, batch=batch)
        if not may and not batch:
            error.message += f"; not tried again, because the retry budget of {endpoint.name} is used up"
            pause = None
        self._missed(call, endpoint, error, pause)
        if pause is None:
            after = error.retry_after
            if error.retryable and after is not None and after > self.retry.retry_after_cap:
                error.message += f"; {parking.blocked_until(endpoint, self.clock, after)}"
                if batch:
                    raise StoppedError(error.message, code="blocked", sent=False) from error
            raise error
        waited = call.excuse(self.clock.now()) if patient else None
        self.stats.backing_off += 1
        try:
            await self.clock.sleep(pause)
            if not may:
                # Like the limiter's queue, this is not held against a batch request's deadline.
                waited = call.excuse(self.clock.now()) if waited is None else waited
                while not endpoint.may_retry(error, batch=batch):
                    await self.clock.sleep(RETRY_WAIT * (0.5 + self._random()))
        finally:
            self.stats.backing_off -= 1
            if waited is not None:
                call.hold(self.clock.now() - waited)

    def _missed(self, call: Call, endpoint: Endpoint, error: LLMError, pause: float | None) -> None:
        """Announce that an attempt failed, and when the next one follows."""
        if self.observers:
            self._notify(
                AttemptFailed(
                    request=call.request, endpoint=endpoint.name, attempt=call.attempts, error=error, delay=pause
                )
            )

    def failed(self, call: Call, error: LLMError) -> LLMError:
        """Count and announce the error that a request ends with."""
        if not error.endpoint and call.endpoint is not None:
            error.endpoint = call.endpoint.name
        self.stats.failure(error)
        self.done(call.request, None, error, call.began)
        return error

    def done(
        self, request: Request, response: Response | None, error: LLMError | None, began: float, left: bool = False
    ) -> None:
        if self.observers:
            seconds = self.clock.now() - began
            self._notify(RequestDone(request=request, response=response, error=error, seconds=seconds, left=left))

    def _notify(self, event: Event) -> None:
        for observer in self.observers:
            try:
                observer(event)
            except Exception:
                logger.exception("an observer failed; the request goes on")

    def snapshot(self) -> Snapshot:
        """Give the counters and each endpoint's limits at this moment."""
        return snapshot_of(self.stats, self.router.endpoints, self.clock.now(), self.clock.time())

    @property
    def concurrency(self) -> int | None:
        """How many requests may ever be under way at once: the endpoints' slots; None before any is known."""
        return sum(e.limiter.ceiling for e in self.router.endpoints) or None

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have `close` called by `aclose`, after the connections are closed; the last one given comes first."""
        self._closing.append(close)

    async def aclose(self) -> None:
        """Close connections, write what the cache still holds back, and stop the clock. Whatever fails, all of it is
        tried; then the first error is raised."""
        first: BaseException | None = None
        closing = [self.transport.aclose, *([self.cache.aclose] if self.cache is not None else [])]
        while closing or self._closing:
            try:
                await (closing.pop(0) if closing else self._closing.pop())()
            except BaseException as error:
                first = first or error
        self.clock.close()
        if first is not None:
            raise first

    def __repr__(self) -> str:
        return f"<Engine {self.router!r} {self.stats!r} cache={self.cache!r}>"
