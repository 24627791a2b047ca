"""Stream: a streamed answer under way; it owns its permit and its connection until it ends or is closed.

The permit goes back the moment the answer is over: at the terminator, an error, `aclose()`, when a loop over it is
left, or when nobody holds the stream any more. Then the connection is closed too, so that the provider stops.

Python has no hook for `break`. But nobody except the loop holds the iterator that it made: when the loop is left, by
`break`, `return`, an exception or a cancellation, CPython's reference count collects it at once. So `__aiter__` and
`text_stream` give iterators of their own, whose end is the stream's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ..clock import Deadline
from ..errors import APITimeoutError, DeadlineExceededError, FastLLMError, LLMError, Tried
from ..options import Timeout
from ..providers.base import Decoder
from ..schema.base import Schema
from ..transport.base import HTTPStream
from ..types import Chunk, Response
from . import codec
from .fitting import fitted

T = TypeVar("T", covariant=True)
Keep = Callable[[Response], Awaitable[None]]


class Ended(Protocol):
    """Called once, with the assembled response or with the error, and whether the first chunk had come; `left` says
    that the response is only what had come when the stream was left early. It must not refer to the stream: a cycle
    would keep a dropped one alive."""

    def __call__(
        self, response: Response | None, error: LLMError | None, shown: bool, *, left: bool = False
    ) -> None: ...


class Stream:
    """Iterate for chunks: `async for chunk in stream: print(chunk.delta)`; or for text alone: `stream.text_stream`.

    After the last chunk `response` is the whole answer with its usage. An answer that breaks off raises
    TruncatedStreamError (or the provider's error) with what came before it in `error.partial`.
    """

    def __init__(
        self,
        source: HTTPStream | None,
        decoder: Decoder | None,
        *,
        deadline: Callable[[], Deadline] | None = None,
        ended: Ended | None = None,
        keep: Keep | None = None,
        timeout: Timeout | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.attempts = 1
        self.endpoint = ""
        self.history: tuple[Tried, ...] = ()  # the attempts that failed before
        self.cached = False
        self.latency = 0.0  # seconds from sent to the first chunk
        self.schema: Schema[Any] | None = None
        self.began = False
        self._source = source
        self._pieces = source.__aiter__() if source is not None else None
        self._decoder = decoder
        self._deadline = deadline
        self._ended = ended
        self._keep = keep
        self._timeout = timeout
        self._now = now
        self._waited = 0.0  # seconds for the provider since the last chunk
        self._chunks: deque[Chunk] = deque()
        self._response: Response | None = None
        self._left = False
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def begin(self) -> None:
        """Wait for the first chunk, so that what fails before it can still be retried."""
        while not self._chunks and self._ended is not None:
            await self._read()
        self.began = True

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return _Reading(self, self.__anext__)

    async def __anext__(self) -> Chunk:
        while not self._chunks:
            if self._ended is None:
                if self._left:
                    raise FastLLMError(
                        "the stream was closed before its end, as leaving a loop over it does; to take some chunks now "
                        "and the others later, step through it with next() or anext()"
                    )
                await self.aclose()
                raise StopAsyncIteration
            await self._read()
        return self._chunks.popleft()

    async def take(self) -> list[Chunk]:
        """Give all chunks that are there, waiting for the first; an empty list at the end."""
        try:
            chunks = [await self.__anext__()]
        except StopAsyncIteration:
            return []
        chunks.extend(self._chunks)
        self._chunks.clear()
        return chunks

    @property
    def text_stream(self) -> AsyncIterator[str]:
        """The pieces of text of the first choice, empty ones left out."""
        return _Reading(self, self._text)

    async def _text(self) -> str:
        while not (text := (await self.__anext__()).delta):
            pass
        return text

    @property
    def _open(self) -> bool:
        """True while there is something to give back: the permit, or the connection."""
        return self._ended is not None or self._source is not None

    @property
    def response(self) -> Response:
        """The answer assembled so far; whole, with usage where the provider sends it, once the stream has ended."""
        if self._response is None:
            assert self._decoder is not None
            response = codec.so_far(self._decoder, self.endpoint)
            response.attempts, response.endpoint, response.history = self.attempts, self.endpoint, self.history
            if self._ended is not None:
                return response
            self._response = response
        return self._response

    async def final(self) -> Response:
        """Read to the end and give the whole answer; where a schema was asked for, with its value (`parsed`).
        InvalidAnswerError where it does not fit: what was streamed is not asked for again."""
        async for _ in self:
            pass
        return self.response if self.schema is None else fitted(self.response, self.schema)

    async def _read(self) -> None:
        assert self._pieces is not None and self._decoder is not None and self._deadline is not None
        deadline = self._deadline()
        try:
            began = self._now()
            with deadline:
                data = await anext(self._pieces, None)
            chunks = codec.fed(self._decoder, data, self.endpoint)
            if chunks:
                self._waited = 0.0
                self._chunks.extend(chunks)
            elif data is not None and not self._decoder.done:
                self._wait_on(self._now() - began)
            if data is None or self._decoder.done:
                await self._finish()
        except LLMError as error:
            await self._fail(error)
            raise
        except BaseException as cause:
            if isinstance(cause, TimeoutError) and deadline.expired:
                late = DeadlineExceededError("the stream did not end within its total time", code="deadline_exceeded")
                await self._fail(late)
                raise late from cause
            # The reader was cancelled, or foreign code failed: nobody will read on, and what was read half is lost.
            await self.aclose()
            raise

    def _wait_on(self, seconds: float) -> None:
        """Bytes that are no chunk came: comments keep a connection alive, but not the reader's patience."""
        self._waited += seconds
        phase = "between_chunks" if self.began else "first_byte"
        limit = getattr(self._timeout, phase, None)
        if limit is not None and self._waited > limit:
            raise APITimeoutError(f"comments, but no chunk within {limit:g} s ({phase})", code=f"timeout_{phase}")

    async def _finish(self) -> None:
        response = self.response
        self._end(response, None)
        self._response = response
        if self._keep is not None and self._deadline is not None:
            deadline = self._deadline()
            try:
                with deadline:
                    await self._keep(response)
            except TimeoutError:
                if not deadline.expired:
                    raise
                # The answer is there; that it could not be kept in time must not lose it.

    async def _fail(self, error: LLMError) -> None:
        error.attempts, error.endpoint = error.attempts or self.attempts, self.endpoint
        try:
            error.partial = self.response
        except LLMError:  # what came before it cannot be read either
            pass
        finally:
            self._end(None, error)
            await self.aclose()

    def _end(self, response: Response | None, error: LLMError | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(response, error, self.began)

    def _leave(self) -> None:
        """Stop before the end: what has come until now is all there will be."""
        ended, self._ended = self._ended, None
        if ended is None:
            return
        self._left = True
        self._chunks.clear()
        _tell(ended, self._decoder, self.began, self.attempts, self.endpoint)

    def leave(self) -> None:
        """Do as `aclose` does, soon and without waiting for it; from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._leave_now)

    def _leave_now(self) -> None:
        self._leave()
        if self._source is not None:
            self._closing = self._loop.create_task(self.aclose(), name="fastllm-left-stream")

    async def aclose(self) -> None:
        """Stop here: close the connection and give the permit back. Idempotent."""
        source, self._source = self._source, None
        self._leave()
        if source is not None:
            await source.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The transport closes the connection of a stream that nobody holds; the permit is given back on the loop.
        ended, self._ended = getattr(self, "_ended", None), None
        if ended is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_tell, ended, self._decoder, self.began, self.attempts, self.endpoint)

    def __repr__(self) -> str:
        state = "open" if self._ended is not None else "ended"
        return f"<Stream {self.endpoint} {state}, {len(self._chunks)} chunks waiting>"


class _Reading(AsyncIterator[T]):
    """One loop over a stream. It is collected when the loop is left, and then it leaves the stream."""

    __slots__ = ("_begun", "_next", "_stream")

    def __init__(self, stream: Stream, next: Callable[[], Awaitable[T]]) -> None:
        self._stream = stream
        self._next = next
        self._begun = False  # one that was only made is no loop

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[T]:
        self._begun = True
        return self._next()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __del__(self) -> None:
        # Not here and now: the collector may come at any moment and in any thread.
        if self._begun and self._stream._open:
            self._stream.leave()


def _tell(ended: Ended, decoder: Decoder | None, began: bool, attempts: int, endpoint: str) -> None:
    seen = None
    if began and decoder is not None:
        try:
            seen = codec.so_far(decoder, endpoint)
            seen.attempts, seen.endpoint = attempts, endpoint
        except LLMError:  # nobody reads on: only the permit matters
            pass
    ended(seen, None, began, left=True)


def replayed(response: Response, chunks: Iterable[Chunk]) -> Stream:
    """Give a stream that plays back an answer which is already there."""
    stream = Stream(None, None)
    stream.cached = response.cached
    stream.attempts, stream.endpoint = response.attempts, response.endpoint
    stream._chunks.extend(chunks)
    stream._response = response
    return stream
