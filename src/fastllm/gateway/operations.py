"""The operations of a model: what a client asked goes through the engine, and its answer out as it came.

What a request takes from its tenant's limits goes back on every way out of here: settled by its usage, or released. A
client that leaves cancels this task, and with it the request at the provider.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import msgspec
from msgspec import UNSET

from ..answers import Usage
from ..engine.endpoint import Endpoint
from ..engine.engine import Engine
from ..engine.stream import Stream
from ..engine.underway import UnderWay
from ..errors import APIStatusError, BudgetExceededError, ConfigError, LLMError
from ..policy.budget import Budget
from ..policy.pricing import Price
from ..policy.purse import Purse, answers_asked
from ..policy.tokens import START_RATIO
from ..providers.sse import written
from ..types import CHAT, COMPLETIONS, RESPONSES, Chunk, Request, Response
from .asking import Asked, asked_of, attempts_left, timeout_for
from .auth import Admission, Admissions, Tenant
from .config import GatewayOptions
from .exchange import Exchange, header_value
from .faces import Refusal
from .record import Record
from .response_store import ResponseStore
from .responses import Continuation

MOST_WRITTEN = 16 * 1024  # bytes of events in one write
DONE = b"data: [DONE]\n\n"
LONGEST_QUEUE = 86_400.0  # seconds: what is told of a wait whose end is not known


class Gate(Protocol):
    """What an operation needs of the app."""

    options: GatewayOptions
    admissions: Admissions | None
    responses: ResponseStore | None

    @property
    def attempts(self) -> int: ...
    @property
    def default_model(self) -> str: ...
    def engine_for(self, attempts: int) -> Engine: ...
    def serves(self, model: str) -> bool: ...


class _Permit:
    """What one request holds of its tenant's limits; given back once."""

    __slots__ = ("_admission", "_held")

    def __init__(self, admission: Admission | None) -> None:
        self._admission = admission
        self._held = admission is not None

    def settle(self, usage: Usage | None, cost: float | None) -> None:
        if self._held and self._admission is not None:
            self._held = False
            self._admission.settle(usage, cost)

    def release(self) -> None:
        if self._held and self._admission is not None:
            self._held = False
            self._admission.release()

    def lines(self) -> bytes:
        return b"" if self._admission is None else self._admission.lines()


NO_PERMIT = _Permit(None)


class Sending:
    """Knows whether the request of a task is at a provider."""

    __slots__ = ("_task", "_under_way", "out")

    def __init__(self) -> None:
        self.out = False
        self._under_way: UnderWay | None = None
        self._task: asyncio.Task[Any] | None = None

    def enrol(self, under_way: UnderWay, task: asyncio.Task[Any] | None) -> None:
        """Listen from now on, until `leave`, to what a task sends."""
        self._task = task
        if task is not None:
            self._under_way = under_way
            under_way.enrol(task, self)

    def leave(self) -> None:
        if self._under_way is not None and self._task is not None:
            self._under_way.leave(self._task)

    def sent(self, task: asyncio.Task[Any]) -> None:
        self.out = True

    def refused(self, task: asyncio.Task[Any]) -> None:
        self.out = False

    def packed(self, count: int) -> None:
        pass


def may_be_billed(error: LLMError) -> bool:
    """Tell whether a provider may have answered all the same. What it refused costs nothing."""
    return error.sent and not isinstance(error, APIStatusError)


def _estimated(engine: Engine, request: Request, answered: int = 0, by: str = "") -> tuple[Usage, float | None]:
    """Give what a request came to that was left before anybody counted: by the sizes of its prompt and of what had
    come, `answered` bytes, `by` an endpoint of that name."""
    endpoints = known(engine, request.model)
    endpoint = next((one for one in endpoints if one.name == by), next(iter(endpoints), None))
    ratio = endpoint.estimator.ratio if endpoint is not None else START_RATIO
    prompt, answer = int(len(request.body) * ratio) + 1, int(answered * ratio)
    usage = Usage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)
    return usage, None if endpoint is None or endpoint.price is None else endpoint.price.cost(usage)


async def operate(gate: Gate, exchange: Exchange, tenant: Tenant, model: str, record: Record) -> None:
    """Answer one request for a model; `model` where the path names one."""
    path = record.route
    body = await exchange.body()
    asked = asked_of(exchange, path, body, model, gate.default_model, tenant)
    request = asked.request
    record.model, record.stream = request.model, request.stream
    if not gate.serves(request.model):
        text = f"the model {request.model[:100]!r} is not served here"
        raise Refusal(404, text, code="model_not_found", param="model")
    engine = gate.engine_for(attempts_left(exchange, gate.attempts))
    timeout = UNSET if request.stream else timeout_for(exchange, engine.timeout)
    if timeout is not UNSET:
        request = msgspec.structs.replace(request, timeout=timeout)
    exchange.watch()
    permit, continuation, sending = NO_PERMIT, None, Sending()
    try:
        if path == RESPONSES and gate.responses is not None:
            continuation = Continuation(gate.responses, engine, tenant, request)
            await continuation.begin()
            request, engine = continuation.request, continuation.engine
        endpoints = known(engine, request.model) or await _made_known(engine, request.model)
        _shed(gate.options, engine, endpoints[0], request)
        if gate.admissions is not None and tenant.key is not None:
            permit = _Permit(_admitted(gate.admissions, tenant, endpoints, request))
            sending.enrol(engine.under_way, exchange.task)
        if request.stream:
            asked.request = request
            await _streamed(exchange, engine, asked, permit, record, continuation)
        else:
            await _whole(exchange, engine, request, permit, record, continuation)
    except LLMError as error:
        if may_be_billed(error):
            permit.settle(None, None)
        raise
    except asyncio.CancelledError:
        if sending.out:
            permit.settle(*_estimated(engine, request))
        raise
    finally:
        sending.leave()
        exchange.unwatch()
        permit.release()


def known(engine: Engine, model: str) -> Sequence[Endpoint]:
    """Give the endpoints that may answer for this model, as far as they are known."""
    found = engine.router.known.get(model)
    if found is not None:
        return (found,)
    tiers = engine.router.route(model)
    return () if tiers is None else tiers.known


def _shed(options: GatewayOptions, engine: Engine, endpoint: Endpoint, request: Request) -> None:
    """Refuse at once what would stand at the end of a queue that is full."""
    if not engine.stats.waiting:
        return
    limiter = engine.router.shortest_queue(request.model)
    if limiter is not None and limiter.interactive >= options.queue_size:
        after = min(limiter.outlook(endpoint.estimator.estimate(request)), LONGEST_QUEUE)
        text = f"{limiter.interactive} requests wait for this model already: come back later"
        raise Refusal(429, text, code="queue_full", retry_after=after)


async def _made_known(engine: Engine, model: str) -> Sequence[Endpoint]:
    """Have whoever may answer made known: a thousand first requests at once must not pass without a price, nor all of
    them stand in a queue that takes ten."""
    tiers = engine.router.route(model)
    if tiers is None:
        return (await engine.router.resolve(model),)
    await tiers.begin()
    return tiers.known


def _admitted(admissions: Admissions, tenant: Tenant, endpoints: Sequence[Endpoint], request: Request) -> Admission:
    """Take from the tenant's limits what the request may need."""
    tokens = max(endpoint.estimator.estimate(request).tokens for endpoint in endpoints)
    bounds = [bound_of(endpoint, request) for endpoint in endpoints]
    priced = [bound for bound in bounds if bound is not None]
    if len(priced) == len(bounds):
        return admissions.admit(tenant.key, tokens, max(priced))
    try:
        return admissions.admit(tenant.key, tokens, None)
    except BudgetExceededError as error:
        names = [endpoint.name for endpoint in endpoints if endpoint.price is None]
        if names:
            error.message += f" ({', '.join(names)}: no price is known)"
        raise


def bound_of(endpoint: Endpoint, request: Request) -> float | None:
    """Give the most that a request can cost in USD; None where that is not known."""
    if endpoint.price is None:
        return None
    most = request.max_tokens
    try:
        return _purse(endpoint.price).bound(len(request.body), most, 1 if most else answers_asked(request.body))
    except ConfigError:
        return None


_NO_BUDGET = Budget(0.0)  # a bound takes nothing from it


@lru_cache
def _purse(price: Price) -> Purse:
    return Purse(_NO_BUDGET, price)


async def _whole(
    exchange: Exchange,
    engine: Engine,
    request: Request,
    permit: _Permit,
    record: Record,
    continuation: Continuation | None,
) -> None:
    response = await engine.execute(request)
    permit.settle(response.usage, response.cost)
    if continuation is not None:
        response = await continuation.answered(response)
    seconds = time.monotonic() - exchange.began
    _note(record, response)
    record.first_byte = seconds
    record.overhead = max(0.0, seconds - (0.0 if response.cached else response.latency))
    cache = b"hit" if response.cached else b"miss" if engine.cache is not None else b"off"
    exchange.unwatch()
    lines = _told(response.endpoint, response.attempts, cache, record.overhead, permit)
    await exchange.answer(response.status_code, response.body, lines)


def _told(endpoint: str, attempts: int, cache: bytes, overhead: float, permit: _Permit) -> bytes:
    return (
        b"x-fastllm-provider: %b\r\nx-fastllm-attempts: %d\r\nx-fastllm-cache: %b\r\nx-fastllm-overhead-ms: %.3f\r\n%b"
        % (header_value(endpoint), attempts, cache, overhead * 1000, permit.lines())
    )


def _note(record: Record, response: Response) -> None:
    record.endpoint, record.attempts, record.cached = response.endpoint, response.attempts, response.cached
    record.usage, record.cost = response.usage, response.cost


async def _streamed(
    exchange: Exchange, engine: Engine, asked: Asked, permit: _Permit, record: Record, continuation: Continuation | None
) -> None:
    stream = await engine.stream(asked.request)
    record.first_byte = time.monotonic() - exchange.began
    record.overhead = max(0.0, record.first_byte - stream.latency)
    record.endpoint, record.attempts, record.cached = stream.endpoint, stream.attempts, stream.cached
    cache = b"hit" if stream.cached else b"miss" if engine.cache is not None else b"off"
    try:
        await exchange.begin(_told(stream.endpoint, stream.attempts, cache, record.overhead, permit))
        await _pass_on(exchange, engine, stream, asked, continuation)
    finally:
        await stream.aclose()
        _settle(stream, permit, record, engine, asked.request)
    exchange.unwatch()
    await exchange.end()


def _settle(stream: Stream, permit: _Permit, record: Record, engine: Engine, request: Request) -> None:
    """Book what a stream came to: by its usage, or, where it was left before that, by what had come."""
    try:
        response = stream.response
    except Exception:  # what had come cannot be read: the estimate stands
        permit.settle(None, None)
        return
    usage, cost = response.usage, response.cost
    if usage is None:
        usage, cost = _estimated(engine, request, len(response.body), stream.endpoint)
    record.usage, record.cost = usage, cost
    permit.settle(usage, cost)


async def _pass_on(
    exchange: Exchange, engine: Engine, stream: Stream, asked: Asked, continuation: Continuation | None
) -> None:
    """Write each event as soon as it is there. While the client does not read, neither do we."""
    seconds = exchange.options.write_seconds
    while chunks := await stream.take():
        if continuation is not None:
            chunks = await continuation.told(chunks, stream.endpoint)
        framed = _framed(chunks, hide_usage=asked.hide_usage)
        chunks.clear()  # they take ten times the room of what is to be written
        for events in framed:
            limit = engine.clock.deadline(seconds)
            try:
                with limit:
                    await exchange.write(events)
            except TimeoutError:
                if limit.expired:
                    await exchange.abort()
                raise
    if asked.request.path in _WITH_DONE:
        await exchange.write(DONE)


_WITH_DONE = frozenset({CHAT, COMPLETIONS})


def _framed(chunks: Sequence[Chunk], *, hide_usage: bool) -> list[bytes]:
    """Give the events as bytes to be written at once: whole ones, many together where many are there."""
    out: list[bytes] = []
    pieces: list[bytes] = []
    size = 0
    for chunk in chunks:
        if hide_usage and chunk.payload.usage is not None and not chunk.payload.choices:
            continue
        data = chunk.data
        if b"\n" in data or b"\r" in data:
            data = b"".join(data.splitlines())  # white space between the parts of its JSON
        event = written(chunk.event, data)
        if size and size + len(event) > MOST_WRITTEN:
            out.append(b"".join(pieces))
            pieces, size = [], 0
        pieces.append(event)
        size += len(event)
    if pieces:
        out.append(b"".join(pieces))
    return out
