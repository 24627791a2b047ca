"""AsyncFastLLM: the library's front door; OpenAI's resource tree for one request, and verbs for many."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence, Sized
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self, TypedDict, Unpack

import msgspec

from . import build, worker
from .build import CacheOption, EngineOptions
from .embedding import Input, Vectors, rows_of_inputs
from .engine.engine import Engine
from .engine.events import Observer
from .engine.stats import Snapshot, Stats
from .errors import ConfigError
from .formats.base import open_reader
from .formats.output import failures_path
from .formats.remote import Places, local_places
from .jobs.journal import journal_path
from .jobs.outcomes import outcomes
from .jobs.runner import DEFAULT_CONCURRENCY, Job, JobResult
from .jobs.team import Team
from .keywords import CHANGEABLE, refuse
from .options import UNSET, Limits, Retry, Route, Timeout, UnsetType
from .params import ChatParams, EmbeddingParams
from .policy.parameters import UnsupportedParams
from .policy.purse import UnknownPrice
from .progress import Kind, make_progress, of_rows, with_unseen
from .resources import Chat, Completions, Embeddings, Moderations, Responses
from .rows import Item, Template, mapped, rows_of
from .run_options import RunParams, checked_options, columns_of
from .schema.base import Schema
from .transport.base import Transport
from .types import Outcome


class ClientParams(TypedDict, total=False):
    """What both clients are made with; see AsyncFastLLM."""

    api_key: str | None
    base_url: str | None
    budget: float | None
    cache: CacheOption
    default_headers: Mapping[str, str] | None
    embeddings_per_request: int | None
    leases: str | os.PathLike[str] | None
    limits: Limits | None
    max_retries: int | UnsetType
    observers: Sequence[Observer]
    prices: str | os.PathLike[str] | None
    retry: Retry | None
    routes: Mapping[str, Route] | None
    timeout: Timeout | float | UnsetType | None
    transport: Transport | None
    unknown_price: UnknownPrice
    unsupported_params: UnsupportedParams
    workers: int


class _Made(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An engine, and what it is good for: one loop of one process, for a variant as long as its origin's `base`."""

    engine: Engine
    team: Team | None
    base: Engine | None
    loop: asyncio.AbstractEventLoop
    pid: int

    @property
    def is_ours(self) -> bool:
        """False in a forked child, where sockets and threads are the parent's."""
        return self.pid == os.getpid()


class _Counted(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The counters of an engine that is gone, which its successor goes on with."""

    stats: Stats
    at: float
    pid: int


# Engines of the process that this one was forked from. Collecting one would close what it shares with its sockets.
_LEFT_BEHIND: list[_Made] = []


class AsyncFastLLM:
    """Sends requests to any provider under one set of limits, retries and caches.

    `api_key` and `base_url` default to the provider's environment variables (`OPENAI_API_KEY`, `OPENAI_BASE_URL`, …)
    when the first request needs them. With `base_url` the dialect is OpenAI's and model names go through as they are;
    without it, `provider/model` or `provider:model` picks a provider, OpenAI being the default. `timeout` is a Timeout
    or a total in seconds, `max_retries` the number of further attempts (0: none), `retry` the whole Retry policy.
    `limits` hold for each endpoint and model. `cache` is "memory", "disk", a Cache, a Store, or None for no cache.
    `routes` are further model names, each a Route with several endpoints behind it. `budget` is the most that all
    requests together may cost, in USD; `prices` a file with prices of one's own, and `unknown_price` says what becomes
    of a request whose model has none. Inputs that a batch wants embedded share requests, as many as the vendor takes or
    at most `embeddings_per_request`. A parameter that a model refuses is left out or
    called as it wants it, with a warning; `unsupported_params="refuse"` makes that the request's error. With `workers`,
    many requests are answered by as many processes, for the sake of more cores; they share limits and budget, as do all
    processes of a machine that name the same file of `leases`.

        async with AsyncFastLLM() as client:
            answer = await client.chat.completions.create(
                model="openai/gpt-4o-mini", messages=[{"role": "user", "content": "Hello!"}]
            )
            print(answer.choices[0].message.content)

    Raises ConfigError for an impossible option. One client serves one event loop; close it with `aclose`.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        budget: float | None = None,
        cache: CacheOption = None,
        default_headers: Mapping[str, str] | None = None,
        embeddings_per_request: int | None = None,
        leases: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        max_retries: int | UnsetType = UNSET,
        observers: Sequence[Observer] = (),
        prices: str | os.PathLike[str] | None = None,
        retry: Retry | None = None,
        routes: Mapping[str, Route] | None = None,
        timeout: Timeout | float | UnsetType | None = UNSET,
        transport: Transport | None = None,
        unknown_price: UnknownPrice = "refuse",
        unsupported_params: UnsupportedParams = "adapt",
        workers: int = 1,
        **unknown: Never,
    ) -> None:
        refuse(unknown, ClientParams.__annotations__, of="a client")
        options = EngineOptions(
            api_key=api_key,
            base_url=base_url,
            budget=budget,
            default_headers={} if default_headers is None else default_headers,
            embeddings_per_request=embeddings_per_request,
            leases=leases,  # type: ignore[arg-type]  # made a Path of below
            limits=limits,
            observers=observers,
            prices=prices,  # type: ignore[arg-type]  # made a Path of below
            retry=_retry(retry, max_retries),
            routes={} if routes is None else routes,
            timeout=Timeout() if timeout is UNSET else Timeout.of(timeout),
            transport=transport,
            unknown_price=unknown_price,
            unsupported_params=unsupported_params,
        )
        # The cache is made now, so that a wrong name fails here; two loops of one client then share one cache.
        self._options = msgspec.structs.replace(build.checked(options), cache=build.make_cache(cache))
        self._size, self._cache = worker.checked_size(workers), cache
        if self._size > 1:
            worker.setup_of(self._options, cache)  # what cannot be shared with them is said now
        self._parent: AsyncFastLLM | None = None
        self._same_endpoints = True
        self._made: _Made | None = None
        self._counted: _Counted | None = None
        self.chat = Chat(self)
        self.completions = Completions(self)
        self.embeddings = Embeddings(self)
        self.moderations = Moderations(self)
        self.responses = Responses(self)

    def with_options(
        self,
        *,
        api_key: str | UnsetType | None = UNSET,
        base_url: str | UnsetType | None = UNSET,
        default_headers: Mapping[str, str] | UnsetType = UNSET,
        limits: Limits | UnsetType | None = UNSET,
        max_retries: int | UnsetType = UNSET,
        retry: Retry | UnsetType = UNSET,
        timeout: Timeout | float | UnsetType | None = UNSET,
        **unknown: Never,
    ) -> AsyncFastLLM:
        """Give a client with some options changed. Connections, cache and counters stay shared, and so do the
        limits unless the key, the address, the headers or the limits change; closing it is its origin's business."""
        refuse(unknown, CHANGEABLE, of="with_options")
        changes: dict[str, Any] = {
            "api_key": api_key,
            "base_url": base_url,
            "default_headers": default_headers,
            "limits": limits,
        }
        changes = {name: value for name, value in changes.items() if value is not UNSET}
        other = object.__new__(type(self))
        AsyncFastLLM.__init__(other)
        other._same_endpoints = not changes  # so far: those that follow leave the endpoints as they are
        if retry is not UNSET or max_retries is not UNSET:
            changes["retry"] = _retry(None if retry is UNSET else retry, max_retries, self._options.retry)
        if timeout is not UNSET:
            changes["timeout"] = Timeout.of(timeout)
        other._options = build.checked(msgspec.structs.replace(self._options, **changes))
        other._size, other._cache = self._size, self._cache
        other._parent = self
        return other

    @property
    def engine(self) -> Engine:
        """The engine on the running loop, made at the first use."""
        loop = asyncio.get_running_loop()
        base = self._parent.engine if self._parent is not None else None
        made = self._made
        if made is not None and made.loop is loop and made.base is base and made.is_ours:
            return made.engine
        if made is not None:
            self._let_go(made, loop)
        if base is not None:
            engine = build.variant(base, self._options, same_endpoints=self._same_endpoints)
        else:
            engine = build.engine(worker.sharing(self._options, self._size))
            if self._counted is not None and self._counted.pid == os.getpid():
                engine.stats = self._counted.stats
        team = worker.team(engine, self._options, self._cache, self._size) if self._size > 1 else None
        # Written on the loop's thread only, and in one piece, because `stats` is read from any thread.
        self._made = _Made(engine=engine, team=team, base=base, loop=loop, pid=os.getpid())
        return engine

    @property
    def _many(self) -> Engine | Team:
        """Who answers many requests."""
        engine = self.engine
        made = self._made
        return engine if made is None or made.team is None else made.team

    def _let_go(self, made: _Made, loop: asyncio.AbstractEventLoop) -> None:
        """Give up an engine of another process, of a loop that is gone, or whose origin was closed."""
        if not made.is_ours:
            _LEFT_BEHIND.append(made)
        elif made.loop is not loop and not made.loop.is_closed():
            raise ConfigError(
                "this client belongs to another running event loop; make one client per loop, or use FastLLM"
            )
        else:
            self._counted = _Counted(stats=made.engine.stats, at=made.engine.clock.now(), pid=made.pid)

    def stream(self, requests: Iterable[Item] | AsyncIterable[Item], *, model: str = "") -> AsyncIterator[Outcome]:
        """Give an Outcome for each request as it finishes, from an iterable of any length, with bounded memory.

        Requests are `Request` objects; OpenAI batch lines or plain bodies, as dicts or as JSON in `bytes`; lists of
        messages; or prompts: a `str` is always a prompt, even if it looks like JSON. `model` wins over the items' own.
        Leaving the loop early cancels what is under way; it is gone when `aclose` of the iterator returns.
        """
        return self._outcomes(rows_of(requests, model), ordered=False)

    async def process(
        self, requests: Iterable[Item] | AsyncIterable[Item], *, model: str = "", progress: Kind = "none"
    ) -> list[Outcome]:
        """Run a RequestBatch, or anything `stream` takes, and give the outcomes in the order of the requests.

        `progress="auto"` shows a live line on a terminal, a bar in a notebook, plain lines elsewhere.
        """
        return await self._collected(rows_of(requests, model), requests, progress)

    async def map(
        self,
        template: Template,
        rows: Iterable[Any] | AsyncIterable[Any],
        *,
        model: str,
        system: str | None = None,
        progress: Kind = "none",
        **params: Unpack[ChatParams],
    ) -> list[Outcome]:
        """Ask the same thing about many rows; gives the outcomes in the order of the rows.

        `template` is text with `{column}` for rows that are mappings (`{}` for rows that are plain values), or a
        callable that turns a row into a prompt, a list of messages, a body or a Request.

            await client.map("Translate to French: {}", ["one", "two"], model="openai/gpt-4o-mini")
        """
        return await self._collected(mapped(template, rows, model, system, params), rows, progress)

    async def embed(
        self,
        inputs: Iterable[Input] | AsyncIterable[Input],
        *,
        model: str,
        progress: Kind = "none",
        **params: Unpack[EmbeddingParams],
    ) -> Vectors:
        """Get the vectors of many inputs, texts or lists of token ids, in their order.

        They share requests, as many as the vendor takes in one; what it refuses teaches how many that are, and an input
        that cannot be embedded costs no other one its vector.

            vectors = await client.embed(texts, model="openai/text-embedding-3-small", dimensions=256)
            matrix = vectors.to_numpy()  # float32, of shape (len(texts), 256)
        """
        rows = rows_of_inputs(inputs, model, params)
        return Vectors(await self._collected(rows, inputs, progress))

    async def run(
        self, source: str | Path, output: str | Path, *, model: str = "", **options: Unpack[RunParams]
    ) -> JobResult:
        """Answer every row of a file into another, as `fastllm run` does; run it again to resume.

        `source` is .jsonl, .csv, .tsv or .txt (a prompt a line), each also .gz or .zst, or .parquet or .arrow, `output`
        the same but .txt; failed rows are in a file beside it. Raises ConfigError before anything is sent, and
        JobConflictError where `output` belongs to another job.

        Parameters (`temperature`, `max_tokens`, …) are sent where a row lacks them; `params` takes any name.

        `keep` names columns of the input that are to stand beside the answer ("*": all), `fields` those of answers that
        are JSON, `columns` those of a table; with `failures="rows"` rows that failed are in the output, too.

        `retry_failed=False` asks only rows that were never asked, True only those that failed; by default both.
        `force` goes on where input or parameters changed; answers stay as they are. `order` is "input" or "finished".
        """
        return await self._run(source, output, model, options)

    async def _run(
        self,
        source: str | Path,
        output: str | Path,
        model: str,
        options: RunParams,
        began: Callable[[Job], object] = lambda job: None,
    ) -> JobResult:
        """Run the job; `began` gets it as soon as there is one, to stop it."""
        options = checked_options(options)

        def is_ours(local: Path) -> bool:
            return options.get("overwrite", False) or journal_path(local).exists()

        with ExitStack() as opened:
            opening = local_places(source, output, is_ours=is_ours)
            places = await asyncio.to_thread(opened.enter_context, opening)
            result = await self._run_local(places, model, options, began)
            if result.finished:
                await asyncio.to_thread(places.upload, failures_path(places.output))
        return result

    async def _run_local(
        self, places: Places, model: str, options: RunParams, began: Callable[[Job], object]
    ) -> JobResult:
        shape: Any = options.get("schema")
        with open_reader(
            places.source,
            model=model,
            prompt=options.get("prompt"),
            system=options.get("system"),
            params=options.get("params"),
            schema=None if shape is None else Schema.of(shape, retries=options.get("schema_retries")),
            format=options.get("input_format"),
        ) as reader:
            job = Job(
                self._many,
                reader,
                places.output,
                concurrency=self._rows_in_work,
                base_url=self._options.base_url,
                overwrite=options.get("overwrite", False),
                durability=options.get("durability", "normal"),
                retry_failed=options.get("retry_failed"),
                force=options.get("force", False),
                order=options.get("order", "input"),
                columns=columns_of(options),
                output_format=options.get("output_format"),
                origin=places.origin,
            )
            began(job)
            shown = make_progress(
                options.get("progress", "none"),
                lambda: of_rows(self._many.snapshot(), job.finished, job.errors),
                lambda: job.total,
                already_done=lambda: job.kept,
            )
            await job.open()
            if not job.nothing_to_do:
                shown.start()
            try:
                return await job.run()
            finally:
                shown.close()

    async def _collected(self, rows: Any, source: Any, kind: Kind) -> list[Outcome]:
        total = len(source) if isinstance(source, Sized) else None
        return [outcome async for outcome in self._shown(rows, total, kind)]

    async def _shown(self, rows: Any, total: int | None, kind: Kind) -> AsyncGenerator[Outcome, None]:
        """The outcomes in order, under a display of the progress."""
        unseen: Counter[str] = Counter()  # rows that never reached the engine
        shown = make_progress(kind, lambda: with_unseen(self._many.snapshot(), unseen), lambda: total)
        shown.start()
        try:
            async with aclosing(self._outcomes(rows, ordered=True)) as found:
                async for outcome in found:
                    error = outcome.error
                    if error is not None and (outcome.request is None or isinstance(error.__cause__, ConfigError)):
                        unseen[type(error).__name__] += 1
                    yield outcome
        finally:
            shown.close()

    @property
    def _rows_in_work(self) -> int:
        limits = self._options.limits or Limits()
        return limits.concurrency or DEFAULT_CONCURRENCY * self._size

    def _outcomes(self, rows: Any, *, ordered: bool) -> AsyncGenerator[Outcome, None]:
        return outcomes(lambda: self._many, rows, concurrency=self._rows_in_work, ordered=ordered)

    @property
    def stats(self) -> Snapshot:
        """All counters since the first use: tokens, cache hits, retries, latency, and each endpoint's limits now.

        They are one set for a client and those that came from it by `with_options`, and outlive `aclose`.
        """
        engine = self._engine
        if engine is not None:
            made = self._made
            return engine.snapshot() if made is None or made.team is None else made.team.snapshot()
        if self._parent is not None:
            return self._parent.stats
        counted = self._counted
        if counted is None or counted.pid != os.getpid():
            return Snapshot()
        return counted.stats.snapshot(counted.at)

    @property
    def _engine(self) -> Engine | None:
        """The engine that is in use now, if there is one: of this process, and of an origin that is not closed."""
        made = self._made
        if made is None or not made.is_ours or (self._parent is not None and self._parent._engine is not made.base):
            return None
        return made.engine

    async def aclose(self) -> None:
        """Close connections, flush the cache, stop local models. Idempotent; used again, the client starts afresh."""
        made, self._made = self._made, None
        if made is None or self._parent is not None:
            return
        if not made.is_ours:
            _LEFT_BEHIND.append(made)
            return
        await made.engine.aclose()
        if made.team is not None:
            made.engine.stats.add(made.team.gone)
        self._counted = _Counted(stats=made.engine.stats, at=made.engine.clock.now(), pid=made.pid)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __reduce__(self) -> Never:
        # Sockets, threads and counters stay in a process; and a key should not travel unseen.
        raise TypeError("a client cannot be pickled: make one in each process, or give workers=… to one")

    def __repr__(self) -> str:
        engine = self._engine
        return f"<AsyncFastLLM {engine!r}>" if engine is not None else "<AsyncFastLLM not in use>"


def _retry(retry: Any, max_retries: int | UnsetType, before: Retry | None = None) -> Retry:
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigError(
            f"retry must be a Retry, for example Retry(attempts=5), or max_retries a number; not {retry!r}"
        )
    if isinstance(max_retries, UnsetType):
        return retry or before or Retry()
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
        raise ConfigError(f"max_retries must be a whole number of at least 0, not {max_retries!r}")
    if retry is not None:
        raise ConfigError(
            f"give max_retries={max_retries} or retry=…, not both; Retry(attempts={max_retries + 1}, patient=False) "
            f"is what max_retries={max_retries} stands for"
        )
    # Someone who counts retries means all of them, 429s included.
    return msgspec.structs.replace(before or Retry(), attempts=max_retries + 1, patient=False)
