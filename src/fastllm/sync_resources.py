"""OpenAI's resource tree of the sync client, and its streams: each call is the async one, run on the loop's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, Unpack, overload

from .client import AsyncFastLLM
from .engine.stream import Stream
from .params import (
    MODERATOR,
    CallOptions,
    ChatParams,
    CompletionParams,
    EmbeddingParams,
    Messages,
    PlainChatParams,
    PlainResponsesParams,
    ResponsesParams,
)
from .schema.base import Schema
from .types import Chunk, ParsedResponse, Response

T = TypeVar("T")


class Calls(Protocol):
    """The portal to the loop's thread, as far as it is used here."""

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


class SyncStream:
    """A streamed answer for plain `for` loops; see Stream."""

    def __init__(self, stream: Stream, portal: Calls) -> None:
        self._stream = stream
        self._portal = portal
        self._chunks: deque[Chunk] = deque()

    def __iter__(self) -> Iterator[Chunk]:
        # A generator of its own for each loop: when the loop is left, it is collected, and with it the stream closed.
        try:
            while True:
                try:
                    chunk = next(self)
                except StopIteration:
                    return
                yield chunk
        finally:
            if self._stream._open:
                self._chunks.clear()
                self._stream.leave()

    def __next__(self) -> Chunk:
        if not self._chunks:
            self._chunks.extend(self._portal.call(self._stream.take()))
            if not self._chunks:
                raise StopIteration
        return self._chunks.popleft()

    @property
    def text_stream(self) -> Iterator[str]:
        """The pieces of text of the first choice, empty ones left out."""
        return (chunk.delta for chunk in self if chunk.delta)

    @property
    def response(self) -> Response:
        """The answer assembled so far; whole, with usage, once the stream has ended."""
        return self._stream.response

    def final(self) -> Response:
        """Read to the end and give the whole answer."""
        return self._portal.call(self._stream.final())

    def close(self) -> None:
        """Stop here: close the connection and give the permit back. Idempotent."""
        self._portal.call(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._stream).replace("Stream", "SyncStream", 1)


class _Resource:
    def __init__(self, client: AsyncFastLLM, at: Callable[[], Calls]) -> None:
        self._client = client
        self._at = at

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._at().call(coroutine)

    def _wrap(self, answer: Response | Stream) -> Response | SyncStream:
        return SyncStream(answer, self._at()) if isinstance(answer, Stream) else answer


class ChatCompletions(_Resource):
    """`client.chat.completions`."""

    @overload
    def create(
        self,
        *,
        model: str,
        messages: Messages,
        response_format: type[T] | Schema[T],
        stream: Literal[False] = False,
        **params: Unpack[PlainChatParams],
    ) -> ParsedResponse[T]: ...

    @overload
    def create(
        self, *, model: str, messages: Messages, stream: Literal[False] = False, **params: Unpack[ChatParams]
    ) -> Response: ...

    @overload
    def create(
        self, *, model: str, messages: Messages, stream: Literal[True], **params: Unpack[ChatParams]
    ) -> SyncStream: ...

    @overload
    def create(
        self, *, model: str, messages: Messages, stream: bool, **params: Unpack[ChatParams]
    ) -> Response | SyncStream: ...

    def create(
        self, *, model: str, messages: Messages, stream: bool = False, **params: Unpack[ChatParams]
    ) -> Response | SyncStream:
        """Get a chat completion, or with `stream=True` a SyncStream of its chunks. Raises an LLMError."""
        create: Any = self._client.chat.completions.create
        return self._wrap(self._call(create(model=model, messages=messages, stream=stream, **params)))

    @overload
    def parse(
        self,
        *,
        model: str,
        messages: Messages,
        response_format: type[T] | Schema[T],
        **params: Unpack[PlainChatParams],
    ) -> ParsedResponse[T]: ...

    @overload
    def parse(
        self,
        *,
        model: str,
        messages: Messages,
        response_format: Mapping[str, Any],
        **params: Unpack[PlainChatParams],
    ) -> ParsedResponse[Any]: ...

    def parse(
        self, *, model: str, messages: Messages, response_format: Any, **params: Unpack[PlainChatParams]
    ) -> ParsedResponse[Any]:
        """Get a chat completion that fits a schema, with its value in `parsed`; see AsyncFastLLM."""
        parse: Any = self._client.chat.completions.parse
        answer: ParsedResponse[Any] = self._call(
            parse(model=model, messages=messages, response_format=response_format, **params)
        )
        return answer


class Chat:
    """`client.chat`."""

    def __init__(self, client: AsyncFastLLM, at: Callable[[], Calls]) -> None:
        self.completions = ChatCompletions(client, at)


class Completions(_Resource):
    """`client.completions`."""

    @overload
    def create(
        self,
        *,
        model: str,
        prompt: str | Sequence[Any],
        stream: Literal[False] = False,
        **params: Unpack[CompletionParams],
    ) -> Response: ...

    @overload
    def create(
        self, *, model: str, prompt: str | Sequence[Any], stream: Literal[True], **params: Unpack[CompletionParams]
    ) -> SyncStream: ...

    @overload
    def create(
        self, *, model: str, prompt: str | Sequence[Any], stream: bool, **params: Unpack[CompletionParams]
    ) -> Response | SyncStream: ...

    def create(
        self, *, model: str, prompt: str | Sequence[Any], stream: bool = False, **params: Unpack[CompletionParams]
    ) -> Response | SyncStream:
        """Get a plain completion, or with `stream=True` a SyncStream. Raises an LLMError."""
        create: Any = self._client.completions.create
        return self._wrap(self._call(create(model=model, prompt=prompt, stream=stream, **params)))


class Embeddings(_Resource):
    """`client.embeddings`."""

    def create(self, *, model: str, input: str | Sequence[Any], **params: Unpack[EmbeddingParams]) -> Response:
        """Get the vectors of one or more inputs: `r.data[i].embedding`. Raises an LLMError."""
        return self._call(self._client.embeddings.create(model=model, input=input, **params))


class Moderations(_Resource):
    """`client.moderations`."""

    def create(self, *, input: str | Sequence[Any], model: str = MODERATOR, **params: Unpack[CallOptions]) -> Response:
        """Have inputs judged: `r.results[i].flagged`, `.categories`, `.category_scores`. Raises an LLMError."""
        return self._call(self._client.moderations.create(input=input, model=model, **params))


class Responses(_Resource):
    """`client.responses`."""

    @overload
    def create(
        self,
        *,
        model: str,
        input: str | Sequence[Any],
        text_format: type[T] | Schema[T],
        stream: Literal[False] = False,
        **params: Unpack[PlainResponsesParams],
    ) -> ParsedResponse[T]: ...

    @overload
    def create(
        self,
        *,
        model: str,
        input: str | Sequence[Any],
        stream: Literal[False] = False,
        **params: Unpack[ResponsesParams],
    ) -> Response: ...

    @overload
    def create(
        self, *, model: str, input: str | Sequence[Any], stream: Literal[True], **params: Unpack[ResponsesParams]
    ) -> SyncStream: ...

    @overload
    def create(
        self, *, model: str, input: str | Sequence[Any], stream: bool, **params: Unpack[ResponsesParams]
    ) -> Response | SyncStream: ...

    def create(
        self, *, model: str, input: str | Sequence[Any], stream: bool = False, **params: Unpack[ResponsesParams]
    ) -> Response | SyncStream:
        """Call the Responses API, whole or with `stream=True` as a SyncStream. Raises an LLMError."""
        create: Any = self._client.responses.create
        return self._wrap(self._call(create(model=model, input=input, stream=stream, **params)))

    @overload
    def parse(
        self,
        *,
        model: str,
        input: str | Sequence[Any],
        text_format: type[T] | Schema[T],
        **params: Unpack[PlainResponsesParams],
    ) -> ParsedResponse[T]: ...

    @overload
    def parse(
        self,
        *,
        model: str,
        input: str | Sequence[Any],
        text_format: Mapping[str, Any],
        **params: Unpack[PlainResponsesParams],
    ) -> ParsedResponse[Any]: ...

    def parse(
        self, *, model: str, input: str | Sequence[Any], text_format: Any, **params: Unpack[PlainResponsesParams]
    ) -> ParsedResponse[Any]:
        """Call the Responses API for an answer that fits a schema; see `chat.completions.parse`."""
        parse: Any = self._client.responses.parse
        answer: ParsedResponse[Any] = self._call(parse(model=model, input=input, text_format=text_format, **params))
        return answer
