"""FastLLM: the same client for code without async: scripts, notebooks, many threads.

One daemon thread runs one event loop for the process; it starts at the first call. A call costs one hop between
threads (58 µs), so many requests go through `process`, `map` and `stream`, where the hop is paid per batch of rows.

Rules. The caller's iterables and templates are read in the caller's thread. Whatever ends a source, what it gave until
then is answered and delivered first. A call that is left early (Ctrl-C, a closed stream) has ended on the loop when
control comes back, unless that takes longer than LEAVING seconds or a second Ctrl-C says not to wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sized,
)
from concurrent.futures import Future, wait
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from .client import AsyncFastLLM, ClientParams
from .embedding import Input, Vectors, rows_of_inputs
from .engine.stats import Snapshot
from .errors import FastLLMError
from .jobs.delivery import ORDERED_WINDOW
from .jobs.runner import Job, JobResult
from .jobs.workers import MOST_PACKED
from .loop import new_event_loop
from .params import ChatParams, EmbeddingParams
from .progress import Kind
from .rows import Item, Template, mapped, rows_of
from .run_options import RunParams
from .sync_resources import Chat, Completions, Embeddings, Moderations, Responses, SyncStream
from .types import Outcome

__all__ = ["FastLLM", "Portal", "SyncStream"]

logger = logging.getLogger("fastllm")

T = TypeVar("T")
WINDOW = 1024  # rows handed over, at least, whose outcomes have not come back yet
LEAVING = 5.0  # seconds for a cancelled call to end
STOPPING = 60.0  # seconds for a job that was stopped to finish what is in flight, for which it takes 30 itself


class _Call(Generic[T]):
    """A coroutine at work on the loop of another thread: its result, and how to end it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: Future[T] = Future()
        self._loop = loop
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        # Set here and nowhere else: a future that is done means that nothing of the call is left on the loop.
        if task.cancelled():
            self.future.cancel()
            self.future.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())

    def cancel(self, stop: Callable[[], bool] | None = None) -> None:
        """Have it cancelled, or, where `stop` finds something to stop, end by itself."""

        def cancel() -> None:
            if self._task is not None and (stop is None or not stop()):
                self._task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def leave(self, stop: Callable[[], bool] | None = None) -> None:
        """End it, gently first where there is a way, and wait for the end, but not for ever."""
        try:
            if stop is not None:
                self.cancel(stop)
                wait([self.future], STOPPING)
            if not self.future.done():
                self.cancel()
                wait([self.future], LEAVING)
        except BaseException:  # interrupted a second time
            self.cancel()
            raise


class Portal:
    """One event loop in one daemon thread; `call` runs a coroutine there and waits for it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.loop = new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fastllm-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # of somebody's observer: its caller gets it, and the loop is everybody's
            return

    @property
    def alive(self) -> bool:
        """False in a forked child, which has the object but not the thread."""
        return self._pid == os.getpid() and self._thread.is_alive()

    @property
    def is_here(self) -> bool:
        """True on the loop's own thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def refuse_itself(self) -> None:
        """Raise FastLLMError on the loop's own thread."""
        if self.is_here:
            raise FastLLMError(
                "FastLLM was called from its own event loop, where it would wait for itself for ever; "
                "use AsyncFastLLM inside callbacks and observers"
            )

    def start(self, coroutine: Coroutine[Any, Any, T]) -> _Call[T]:
        """Run the coroutine on the loop, without waiting for it."""
        return _Call(self.loop, coroutine)

    def call(self, coroutine: Coroutine[Any, Any, T], stop: Callable[[], bool] | None = None) -> T:
        """Run the coroutine on the loop and give its result. An interrupted wait ends it there before it raises:
        `stop`, called on the loop, asks it to end; without that, or if it takes too long, it is cancelled."""
        try:
            self.refuse_itself()
        except FastLLMError:
            coroutine.close()
            raise
        call = self.start(coroutine)
        try:
            return call.future.result()
        except BaseException:
            if not call.future.done():
                call.leave(stop)
            raise

    def __repr__(self) -> str:
        return f"<Portal {'running' if self.alive else 'stopped'}>"


class _Process:
    """What belongs to this process and not to its forks: the portal, and the lock under which it starts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.portal: Portal | None = None

    def get(self) -> Portal:
        with self.lock:
            if self.portal is None or not self.portal.alive:
                self.portal = Portal()
            return self.portal


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.__init__)  # type: ignore[misc]


class FastLLM:
    """The sync client: same options, same resource tree, same verbs as AsyncFastLLM; safe in many threads.

        client = FastLLM()
        answer = client.chat.completions.create(
            model="openai/gpt-4o-mini", messages=[{"role": "user", "content": "Hello!"}]
        )
        print(answer.choices[0].message.content)

    Works inside Jupyter and other running event loops; in a forked child it starts afresh.
    """

    def __init__(self, **options: Unpack[ClientParams]) -> None:
        self._client = AsyncFastLLM(**options)
        self._resources()

    def _resources(self) -> None:
        self.chat = Chat(self._client, self._at)
        self.completions = Completions(self._client, self._at)
        self.embeddings = Embeddings(self._client, self._at)
        self.moderations = Moderations(self._client, self._at)
        self.responses = Responses(self._client, self._at)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._at().call(coroutine)

    def _at(self) -> Portal:
        return _process.get()

    def with_options(self, **changes: Any) -> FastLLM:
        """Give a client with some options changed; see AsyncFastLLM.with_options."""
        other = object.__new__(type(self))
        other._client = self._client.with_options(**changes)
        other._resources()
        return other

    def process(self, requests: Iterable[Item], *, model: str = "", progress: Kind = "none") -> list[Outcome]:
        """Run a RequestBatch, or anything `stream` takes, and give the outcomes in the order of the requests."""
        return self._collected(rows_of(requests, model), requests, progress)

    def map(
        self,
        template: Template,
        rows: Iterable[Any],
        *,
        model: str,
        system: str | None = None,
        progress: Kind = "none",
        **params: Unpack[ChatParams],
    ) -> list[Outcome]:
        """Ask the same thing about many rows; gives the outcomes in the order of the rows. See AsyncFastLLM.map.

        The rows are read, and a callable template is called, in the caller's thread.
        """
        return self._collected(mapped(template, rows, model, system, params), rows, progress)

    def embed(
        self,
        inputs: Iterable[Input],
        *,
        model: str,
        progress: Kind = "none",
        **params: Unpack[EmbeddingParams],
    ) -> Vectors:
        """Get the vectors of many inputs, in their order. See AsyncFastLLM.embed.

        The inputs are read in the caller's thread.
        """
        rows = rows_of_inputs(inputs, model, params)
        return Vectors(self._collected(rows, inputs, progress, more=MOST_PACKED))

    def run(
        self, source: str | Path, output: str | Path, *, model: str = "", **options: Unpack[RunParams]
    ) -> JobResult:
        """Answer every row of a file into another; run it again to resume. See AsyncFastLLM.run.

        Ctrl-C takes no more rows, waits up to half a minute for those in flight, so that no answer is lost, and
        raises KeyboardInterrupt; a second one raises it at once.
        """
        jobs: list[Job] = []
        asked = self._client._run(source, output, model, options, jobs.append)
        return self._at().call(asked, lambda: _stop(jobs))

    def stream(self, requests: Iterable[Item], *, model: str = "") -> Iterator[Outcome]:
        """Give an Outcome for each request as it finishes, with bounded memory; see AsyncFastLLM.stream.

        The iterable is read in the caller's thread, a little ahead of the outcomes; each request is sent as soon as
        it is read. If it raises, the outcomes of what it gave come first.
        """
        portal = self._at()
        portal.refuse_itself()
        feed, client = _Feed(portal), self._client
        return _pumped(portal, feed, client._outcomes(feed, ordered=False), rows_of(requests, model), _ahead(client, 2))

    def _collected(self, rows: Any, source: Any, kind: Kind, *, more: int = 0) -> list[Outcome]:
        portal = self._at()
        portal.refuse_itself()
        feed, client = _Feed(portal), self._client
        total = len(source) if isinstance(source, Sized) else None
        found = client._shown(feed, total, kind)
        return list(_pumped(portal, feed, found, rows, _ahead(client, ORDERED_WINDOW) + more))

    @property
    def stats(self) -> Snapshot:
        """All counters at this moment; see AsyncFastLLM.stats."""
        return self._client.stats

    def close(self) -> None:
        """Close connections, flush the cache, stop local models. Idempotent."""
        self._call(self._client.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        return self._client.__reduce__()

    def __repr__(self) -> str:
        return repr(self._client).replace("AsyncFastLLM", "FastLLM", 1)


def _stop(jobs: list[Job]) -> bool:
    """Stop a run gently, on the loop. False where it has not got as far as to be a job."""
    for job in jobs:
        logger.warning("interrupted: waiting for the rows in flight, to keep their answers; again to leave at once")
        job.stop()
    return bool(jobs)


def _ahead(client: AsyncFastLLM, times: int) -> int:
    """How many rows may be under way: no fewer than the loop's workers make use of."""
    return max(WINDOW, times * client._rows_in_work)


class _Feed:
    """Rows on their way from the caller's thread to the loop, in order."""

    def __init__(self, portal: Portal) -> None:
        self._loop = portal.loop
        self._rows: deque[Any] = deque()
        self._more = asyncio.Event()
        self._ended = False
        self._calling = False

    def put(self, row: Any) -> None:
        """Hand a row over; called in the caller's thread, as is `end`."""
        self._rows.append(row)
        self._call()

    def end(self) -> None:
        self._ended = True
        self._call()

    def _call(self) -> None:
        # One call is under way at most. It clears the flag before the loop looks for rows, so none is overlooked.
        if not self._calling:
            self._calling = True
            self._loop.call_soon_threadsafe(self._called)

    def _called(self) -> None:
        self._calling = False
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            ended = self._ended  # looked at before the rows: what came before the end is there to be seen
            while self._rows:
                yield self._rows.popleft()
            if ended:
                return
            await self._more.wait()
            self._more.clear()


_Ready = queue.SimpleQueue[list[Outcome] | BaseException | None]


def _pumped(
    portal: Portal, feed: _Feed, outcomes: AsyncGenerator[Outcome, None], rows: Any, window: int
) -> Iterator[Outcome]:
    """Read the caller's rows here, run them on the loop, and bring the outcomes back in batches."""
    portal.refuse_itself()
    ready: _Ready = queue.SimpleQueue()
    source = iter(rows)
    pump = portal.start(_pump(outcomes, ready))
    under_way, ended = 0, False
    failure: Exception | None = None
    try:
        while True:
            if not ended and under_way < window:
                try:
                    feed.put(next(source))
                    under_way += 1
                except StopIteration:
                    ended = True
                except Exception as error:
                    ended, failure = True, error
                if ended:
                    feed.end()
                elif ready.empty():
                    continue
            portal.refuse_itself()
            batch = ready.get()
            if isinstance(batch, BaseException):
                raise batch
            if batch is None:
                break
            under_way -= len(batch)
            yield from batch
        if failure is not None:
            raise failure
    finally:
        if portal.is_here:  # collected there, by chance
            pump.cancel()
        elif not pump.future.done() and portal.alive and not sys.is_finalizing():
            pump.leave()


async def _pump(outcomes: AsyncGenerator[Outcome, None], ready: _Ready) -> None:
    """Collect outcomes while the loop is busy and hand them over together."""
    batch: list[Outcome] = []

    def hand_over() -> None:
        if batch:
            ready.put(batch.copy())
            batch.clear()

    loop = asyncio.get_running_loop()
    end: BaseException | None = None
    try:
        async with aclosing(outcomes) as found:
            async for outcome in found:
                if not batch:
                    loop.call_soon(hand_over)
                batch.append(outcome)
    except BaseException as error:
        end = error
        raise
    finally:
        hand_over()
        ready.put(end)
