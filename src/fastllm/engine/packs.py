"""Packs: inputs of a batch that are to be embedded share requests, as many as the vendor takes in one.

Each input stays a request of its own to its caller: looked up in the cache, kept, counted, recorded and refused by
itself. Only on the way out they travel together. A pack leaves when it is full, or when nobody has joined it for a
moment. What a refusal could mean of a pack is tried on its parts, down to the single input, so that one bad input costs
no other one its answer; and what it says about the size of requests is learnt (`policy.packing`).

On a route a pack goes its way as a single request would. Before a fallback is asked, what that one has answered before
is taken from the cache, and a pack that is too large for it is divided. What an endpoint says of sizes holds for it
alone, and an answer is kept as that of whoever gave it.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

import msgspec

from ..answers import Usage
from ..cache.base import Cache
from ..clock import Clock
from ..errors import (
    APIStatusError,
    AuthenticationError,
    ConflictError,
    InternalServerError,
    InvalidRequestError,
    LimitExceededError,
    LLMError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
)
from ..policy.packing import Packing
from ..providers.vectors import Vector, is_one, vectors_of
from ..types import EMBEDDINGS, Request, Response
from .call import Call, Split
from .endpoint import Endpoint
from .router import Tier, address
from .stats import Stats
from .underway import Crew, UnderWay

QUIET = 0.002  # seconds without a newcomer after which a pack leaves
LINGER = 0.1  # and the most that its first one waits

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
# A pack that ends so would have ended so whatever was in it.
_OF_ALL = (
    AuthenticationError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
)

Key = tuple[object, ...]
Others = tuple[tuple[str, bytes], ...]


class Runs(Protocol):
    """What packs need of an engine: one that keeps no answers and packs nothing."""

    clock: Clock
    stats: Stats
    under_way: UnderWay

    def call(self, request: Request) -> Call: ...
    async def answer(
        self, call: Call, look: Callable[[Tier], Awaitable[Response | None]] | None = None
    ) -> Response: ...


class TooManyError(LLMError):
    """A pack does not go into one request of the fallback whose turn it is; it was not sent."""


class Item:
    """One input in a pack, and who waits for its vector. `place` is where on a route it was answered."""

    __slots__ = ("future", "place", "raw", "request", "task", "tokens")

    def __init__(self, request: Request, raw: bytes, tokens: float) -> None:
        self.request = request
        self.raw = raw
        self.tokens = tokens
        self.place: Tier | None = None
        self.future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.task = asyncio.current_task()


class Packs:
    """The open packs of one engine, by what their inputs must have in common."""

    def __init__(self, engine: Runs, cache: Cache | None) -> None:
        self._engine = engine
        self._cache = cache
        self._open: dict[Key, _Pack] = {}

    async def join(self, call: Call, endpoint: Endpoint, split: Split) -> Response:
        """Have one input's vector fetched together with others'."""
        request = call.request
        others, raw = split
        item = Item(request, raw, endpoint.estimator.ratio * len(raw))
        key = (request.model, request.body_model, others, request.headers.encoded, request.timeout, request.priority)
        equals = [endpoint] if call.place is None else [member.endpoint for member in call.place.members]
        pack = self._open.get(key)
        if pack is not None and not _all_hold(equals, len(pack.items) + 1, pack.tokens + item.tokens):
            self._leave(key, pack)
            pack = None
        if pack is None:
            pack = self._open[key] = _Pack(self._engine, self._cache, request, others)
            self._engine.clock.call_later(QUIET, self._look, key, pack, 0, self._engine.clock.now() + LINGER)
        pack.add(item)
        if not _all_hold(equals, len(pack.items) + 1, pack.tokens):
            self._leave(key, pack)
        response = await self._answer(call, item, pack)
        if call.way is not None and item.place is not None:
            call.way.tier = item.place
        return response

    async def _answer(self, call: Call, item: Item, pack: _Pack) -> Response:
        """Wait for it. The pack's own deadline counts, so the time is not held against this call's."""
        clock, under_way = self._engine.clock, self._engine.under_way
        waited = call.excuse(clock.now())
        under_way.packed(item.task, 1)
        try:
            return await item.future
        except LLMError as error:
            raise copy.copy(error) from None  # one exception object must not collect the tracebacks of many tasks
        except asyncio.CancelledError:
            pack.drop(item)
            raise
        finally:
            under_way.packed(item.task, -1)
            call.hold(clock.now() - waited)

    def _look(self, key: Key, pack: _Pack, seen: int, latest: float) -> None:
        """See whether anybody has joined since."""
        if self._open.get(key) is not pack:
            return
        now = self._engine.clock.now()
        if len(pack.items) > seen and now < latest:
            self._engine.clock.call_later(QUIET, self._look, key, pack, len(pack.items), latest)
        else:
            self._leave(key, pack)

    def _leave(self, key: Key, pack: _Pack) -> None:
        del self._open[key]
        pack.go()

    def __repr__(self) -> str:
        return f"<Packs: {len(self._open)} open, of {sum(len(pack.items) for pack in self._open.values())} inputs>"


class _Pack(Crew):
    """Inputs that go out in one request. As a crew of `UnderWay` it stands for the tasks that wait for them."""

    def __init__(self, engine: Runs, cache: Cache | None, request: Request, others: Others) -> None:
        self._engine = engine
        self._cache = cache
        self._request = request
        self._others = others
        self._task: asyncio.Task[Any] | None = None
        self._running: dict[asyncio.Task[None], Sequence[Item]] = {}  # the pack, and its parts
        self.items: list[Item] = []
        self.tokens = 0.0

    def add(self, item: Item) -> None:
        """Take an input along."""
        self.items.append(item)
        self.tokens += item.tokens

    def sent(self, task: asyncio.Task[Any]) -> None:
        for item in self.items:
            self._engine.under_way.sent(item.task)

    def refused(self, task: asyncio.Task[Any]) -> None:
        for item in self.items:
            self._engine.under_way.failed(item.task)

    def drop(self, item: Item) -> None:
        """Nobody waits for this one any more; the last one takes its request along."""
        if self._task is None:
            self.items.remove(item)
            self.tokens -= item.tokens
        for task, items in list(self._running.items()):
            if item in items and all(found.future.done() for found in items):
                task.cancel()

    def go(self) -> None:
        """Send the request, in a task of its own."""
        if not self.items:
            return
        self._task = self._begin(self.items)
        self._task.add_done_callback(self._gone)

    def _begin(self, items: Sequence[Item]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._run(items), name="fastllm-pack")
        self._running[task] = items
        self._engine.under_way.enrol(task, self)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._engine.under_way.leave(task)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        for item in self.items:
            if not item.future.done():
                if error is not None:
                    item.future.set_exception(error)
                else:
                    item.future.cancel()

    async def _run(self, items: Sequence[Item]) -> None:
        """Fetch the vectors; where that is refused, those of the parts."""
        items = [item for item in items if not item.future.done()]
        if not items:
            return
        call = self._engine.call(self._request_for(items))
        call.several = len(items) > 1
        try:
            response = await self._engine.answer(call, partial(self._before, call, items))
        except LLMError as error:
            self._engine.stats.unfail(error)  # each input counts its own failure
            packing = Packing() if call.endpoint is None else call.endpoint.packing
            sizes = packing.split([item.tokens for item in items])
            if isinstance(error, TooManyError):
                await self._parts(items, sizes)
            elif len(items) == 1 or not _may_be_one(error):
                self._fail(items, error)
            else:
                await self._refused(items, packing, error)
            return
        try:
            vectors = vectors_of(response.body, len(items)) if items else []  # none: all had been answered before
        except ValueError as wrong:  # a Provider of somebody else's that does not look at them
            text = f"status {response.status_code}, but the answer {wrong}"
            self._fail(items, ProtocolError(text, status_code=response.status_code, code="not_an_answer"))
            return
        if items:
            self._deal(items, response, vectors, call.place)

    async def _before(self, call: Call, items: list[Item], place: Tier) -> Response | None:
        """Before a fallback is asked: give what it has answered before, the last one if that is all of them, and see
        whether it takes the rest in one request."""
        hit = None
        for item in items if self._cache is not None else ():
            text, key = address(item.request, place)
            found = await self._cache.get(key, text) if self._cache is not None else None
            if found is not None and not item.future.done():
                hit, item.place = found, place
                item.future.set_result(found)
                self._engine.stats.cached += 1
                self._engine.stats.ok += 1
        if hit is not None:
            items[:] = [item for item in items if not item.future.done()]
            if not items:
                return hit
            call.request, call.several = self._request_for(items), len(items) > 1
        packing = place.members[0].endpoint.packing
        if not packing.holds(len(items), sum(item.tokens for item in items)):
            raise TooManyError(f"{len(items)} inputs are too many for one request", sent=False)
        return None

    async def _refused(self, items: Sequence[Item], packing: Packing, error: LLMError) -> None:
        """Try the parts, and learn from what became of them."""
        count, tokens = len(items), sum(item.tokens for item in items)
        before = packing.inputs, packing.tokens
        told = packing.told(error.message, count, tokens)
        sizes = packing.split([item.tokens for item in items])
        if len(sizes) == 1:
            sizes = [count - count // 2, count // 2]
        await self._parts(items, sizes)
        if not told and before == (packing.inputs, packing.tokens) and _answered(items, error.endpoint):
            packing.found(error.message, sizes[0], sum(item.tokens for item in items[: sizes[0]]))

    async def _parts(self, items: Sequence[Item], sizes: Sequence[int]) -> None:
        ends = list(accumulate(sizes))
        parts = [self._begin(items[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
        for found in await asyncio.gather(*parts, return_exceptions=True):
            if found is not None and not isinstance(found, asyncio.CancelledError):  # given up: nobody waited
                raise found

    def _fail(self, items: Sequence[Item], error: LLMError) -> None:
        for item in items:
            if not item.future.done():
                item.future.set_exception(error)
                item.future.exception()  # looked at, should nobody wait for it any more

    def _request_for(self, items: Sequence[Item]) -> Request:
        """Write the body: the fields that all have in common, and the inputs."""
        given = items[0].raw if len(items) == 1 else b"[" + b",".join(item.raw for item in items) + b"]"
        first = self._request
        fields = {name: msgspec.Raw(value) for name, value in self._others}
        return Request(
            path=EMBEDDINGS,
            body=msgspec.json.encode({**fields, "input": msgspec.Raw(given)}),
            model=first.model,
            body_model=first.body_model,
            headers=first.headers,
            timeout=first.timeout,
            priority=first.priority,
        )

    def _deal(self, items: Sequence[Item], response: Response, vectors: Sequence[Vector], place: Tier | None) -> None:
        """Give each input its vector, and its part of usage and cost."""
        shares = shares_of(items, response.usage)
        sum_ = sum(item.tokens for item in items)
        model = msgspec.json.encode(response.model)
        waiting = 0
        for item, vector, share in zip(items, vectors, shares, strict=True):
            if item.future.done():
                continue
            waiting += 1
            item.place = place
            usage = None if share is None else Usage(prompt_tokens=share, total_tokens=share)
            told = b"" if share is None else b',"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (share, share)
            head = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":'
            item.future.set_result(
                Response(
                    body=b'%b%b}],"model":%b%b}' % (head, bytes(vector.embedding), model, told),
                    path=EMBEDDINGS,
                    usage=usage,
                    status_code=response.status_code,
                    request_id=response.request_id,
                    endpoint=response.endpoint,
                    attempts=response.attempts,
                    latency=response.latency,
                    cost=None if response.cost is None else response.cost * item.tokens / sum_,
                    history=response.history,
                )
            )
        self._engine.stats.ok += waiting - 1  # the request itself is counted

    def __repr__(self) -> str:
        return f"<_Pack of {len(self.items)} inputs>"


def _all_hold(endpoints: Sequence[Endpoint], inputs: int, tokens: float) -> bool:
    return all(endpoint.packing.holds(inputs, tokens) for endpoint in endpoints)


def _answered(items: Sequence[Item], endpoint: str) -> bool:
    """Tell whether all of them were, there: then their number was to blame."""
    futures = [item.future for item in items]
    if not all(future.done() and not future.cancelled() and not future.exception() for future in futures):
        return False
    return all(future.result().endpoint == endpoint for future in futures)


def split(request: Request) -> Split | None:
    """Take the body of a batch's request apart; None where it has not exactly one input."""
    if request.stream or request.priority <= 0:
        return None
    try:
        fields = _fields.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    raw = fields.pop("input", None)
    if raw is None or not is_one(bytes(raw)):
        return None
    return tuple((name, bytes(value)) for name, value in fields.items()), bytes(raw)


def _may_be_one(error: LLMError) -> bool:
    """Tell whether one input, or their number, may be what the request was refused for."""
    if isinstance(error, (InvalidRequestError, LimitExceededError, ProtocolError)):
        return True
    return isinstance(error, APIStatusError) and not isinstance(error, _OF_ALL)


def shares_of(items: Sequence[Item], usage: Usage | None) -> list[int | None]:
    """Divide a request's prompt tokens among its inputs, by their sizes; together they are exactly what it used."""
    if usage is None:
        return [None] * len(items)
    total, sum_, shares, given, so_far = usage.prompt_tokens, sum(item.tokens for item in items), [], 0, 0.0
    for item in items:
        so_far += item.tokens
        share = round(total * so_far / sum_) - given
        shares.append(share)
        given += share
    return shares  # type: ignore[return-value]  # a list of int
