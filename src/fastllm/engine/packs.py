"""Packs: inputs of a batch that are to be embedded share requests, as many as the vendor takes in one.

Each input stays a request of its own to its caller: looked up in the cache, kept, counted, recorded and refused by
itself. Only on the way out they travel together. A pack leaves when it is full, or when nobody has joined it for a
moment. What a refusal could mean of a pack is tried on its parts, down to the single input, so that one bad input costs
no other one its answer; and what it says about the size of requests is learnt (`policy.packing`).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import msgspec

from ..answers import Usage
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
from .call import Call
from .endpoint import Endpoint
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
Split = tuple[Others, bytes]  # the fields of a body but its input, and the input


class Runs(Protocol):
    """What packs need of an engine: one that keeps no answers and packs nothing."""

    clock: Clock
    stats: Stats
    under_way: UnderWay

    async def execute(self, request: Request) -> Response: ...


class Item:
    """One input in a pack, and who waits for its vector."""

    __slots__ = ("future", "raw", "task", "tokens")

    def __init__(self, raw: bytes, tokens: float) -> None:
        self.raw = raw
        self.tokens = tokens
        self.future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.task = asyncio.current_task()


class Packs:
    """The open packs of one engine, by what their inputs must have in common."""

    def __init__(self, engine: Runs) -> None:
        self._engine = engine
        self._open: dict[Key, _Pack] = {}

    async def join(self, call: Call, endpoint: Endpoint, split: Split) -> Response:
        """Have one input's vector fetched together with others'."""
        request = call.request
        others, raw = split
        item = Item(raw, endpoint.estimator.ratio * len(raw))
        key = (request.model, request.body_model, others, request.headers.encoded, request.timeout, request.priority)
        packing = endpoint.packing
        pack = self._open.get(key)
        if pack is not None and not packing.holds(len(pack.items) + 1, pack.tokens + item.tokens):
            self._leave(key, pack)
            pack = None
        if pack is None:
            pack = self._open[key] = _Pack(self._engine, packing, request, others)
            self._engine.clock.call_later(QUIET, self._look, key, pack, 0, self._engine.clock.now() + LINGER)
        pack.add(item)
        if len(pack.items) >= packing.inputs:
            self._leave(key, pack)
        return await self._answer(call, item, pack)

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

    def __init__(self, engine: Runs, packing: Packing, request: Request, others: Others) -> None:
        self._engine = engine
        self._packing = packing
        self._request = request
        self._others = others
        self._task: asyncio.Task[Any] | None = None
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
        """Nobody waits for this one any more; the last one takes the request along."""
        if self._task is None:
            self.items.remove(item)
            self.tokens -= item.tokens
        elif all(found.future.done() for found in self.items):
            self._task.cancel()

    def go(self) -> None:
        """Send the request, in a task of its own."""
        if not self.items:
            return
        self._task = self._begin(self.items)
        self._task.add_done_callback(self._gone)

    def _begin(self, items: Sequence[Item]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._run(items), name="fastllm-pack")
        self._engine.under_way.enrol(task, self)
        task.add_done_callback(self._engine.under_way.leave)
        return task

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
        count, tokens = len(items), sum(item.tokens for item in items)
        stats = self._engine.stats
        try:
            response = await self._engine.execute(self._request_for(items))
        except LLMError as error:
            stats.unfail(error)  # each input counts its own failure
            if count == 1 or not _may_be_one(error):
                self._fail(items, error)
                return
            before = self._packing.inputs, self._packing.tokens
            told = self._packing.told(error.message, count, tokens)
            sizes = self._packing.split([item.tokens for item in items])
            if len(sizes) == 1:
                sizes = [count - count // 2, count // 2]
            await self._parts(items, sizes)
            if not told and before == (self._packing.inputs, self._packing.tokens):
                self._learn(items, sizes[0], error)
            return
        try:
            vectors = vectors_of(response.body, count)
        except ValueError as wrong:  # a Provider of somebody else's that does not look at them
            text = f"status {response.status_code}, but the answer {wrong}"
            self._fail(items, ProtocolError(text, status_code=response.status_code, code="not_an_answer"))
            return
        self._deal(items, response, vectors)

    async def _parts(self, items: Sequence[Item], sizes: Sequence[int]) -> None:
        ends = list(accumulate(sizes))
        await asyncio.gather(*[self._begin(items[end - size : end]) for end, size in zip(ends, sizes, strict=True)])

    def _learn(self, items: Sequence[Item], half: int, error: LLMError) -> None:
        """If all parts went through, the size was to blame."""
        if all(item.future.done() and not item.future.cancelled() and not item.future.exception() for item in items):
            self._packing.found(error.message, half, sum(item.tokens for item in items[:half]))

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

    def _deal(self, items: Sequence[Item], response: Response, vectors: Sequence[Vector]) -> None:
        """Give each input its vector, and its part of usage and cost."""
        shares = shares_of(items, response.usage)
        sum_ = sum(item.tokens for item in items)
        model = msgspec.json.encode(response.model)
        waiting = 0
        for item, vector, share in zip(items, vectors, shares, strict=True):
            if item.future.done():
                continue
            waiting += 1
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
