"""OpenAI's resource tree of the async client: what `client.chat.completions.create` and its like do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from .engine.engine import Engine
from .engine.fitting import fitting
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
    messages_of,
    to_request,
)
from .schema.base import Schema
from .types import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES, ParsedResponse, Response

T = TypeVar("T")


class HasEngine(Protocol):
    """The client, as far as its resources know it."""

    @property
    def engine(self) -> Engine: ...


class _Resource:
    def __init__(self, client: HasEngine) -> None:
        self._client = client

    async def _create(self, path: str, model: str, fields: dict[str, Any], params: Any, stream: bool) -> Any:
        request = to_request(path, model, fields, params, stream=stream)
        engine = self._client.engine
        if stream:
            answer = await engine.stream(request)
            answer.schema = request.schema
            return answer
        if request.schema is None:
            return await engine.execute(request)
        return await fitting(engine.execute, request, stats=engine.stats)


class ChatCompletions(_Resource):
    """`client.chat.completions`."""

    @overload
    async def create(
        self,
        *,
        model: str,
        messages: Messages,
        response_format: type[T] | Schema[T],
        stream: Literal[False] = False,
        **params: Unpack[PlainChatParams],
    ) -> ParsedResponse[T]: ...

    @overload
    async def create(
        self, *, model: str, messages: Messages, stream: Literal[False] = False, **params: Unpack[ChatParams]
    ) -> Response: ...

    @overload
    async def create(
        self, *, model: str, messages: Messages, stream: Literal[True], **params: Unpack[ChatParams]
    ) -> Stream: ...

    @overload
    async def create(
        self, *, model: str, messages: Messages, stream: bool, **params: Unpack[ChatParams]
    ) -> Response | Stream: ...

    async def create(
        self, *, model: str, messages: Messages, stream: bool = False, **params: Unpack[ChatParams]
    ) -> Response | Stream:
        """Get a chat completion, or with `stream=True` a Stream of its chunks. Raises an LLMError.

        With a type, a JSON schema or a Schema as `response_format` the answer fits it and has `parsed`; see `parse`.
        """
        answer: Response | Stream = await self._create(CHAT, model, {"messages": messages_of(messages)}, params, stream)
        return answer

    @overload
    async def parse(
        self,
        *,
        model: str,
        messages: Messages,
        response_format: type[T] | Schema[T],
        **params: Unpack[PlainChatParams],
    ) -> ParsedResponse[T]: ...

    @overload
    async def parse(
        self,
        *,
        model: str,
        messages: Messages,
        response_format: Mapping[str, Any],
        **params: Unpack[PlainChatParams],
    ) -> ParsedResponse[Any]: ...

    async def parse(
        self, *, model: str, messages: Messages, response_format: Any, **params: Unpack[PlainChatParams]
    ) -> ParsedResponse[Any]:
        """Get a chat completion that fits a schema, with its value in `parsed` and `choices[0].message.parsed`.

        An answer that does not fit is asked for again, `schema_retries` times (2); then InvalidAnswerError is raised,
        which has the last one in `response`.

            person = (await client.chat.completions.parse(model=…, messages=…, response_format=Person)).parsed
        """
        schema: Schema[Any] = Schema.of(response_format)
        answer: ParsedResponse[Any] = await self.create(
            model=model, messages=messages, response_format=schema, **params
        )
        return answer


class Chat:
    """`client.chat`."""

    def __init__(self, client: HasEngine) -> None:
        self.completions = ChatCompletions(client)


class Completions(_Resource):
    """`client.completions`."""

    @overload
    async def create(
        self,
        *,
        model: str,
        prompt: str | Sequence[Any],
        stream: Literal[False] = False,
        **params: Unpack[CompletionParams],
    ) -> Response: ...

    @overload
    async def create(
        self, *, model: str, prompt: str | Sequence[Any], stream: Literal[True], **params: Unpack[CompletionParams]
    ) -> Stream: ...

    @overload
    async def create(
        self, *, model: str, prompt: str | Sequence[Any], stream: bool, **params: Unpack[CompletionParams]
    ) -> Response | Stream: ...

    async def create(
        self, *, model: str, prompt: str | Sequence[Any], stream: bool = False, **params: Unpack[CompletionParams]
    ) -> Response | Stream:
        """Get a plain completion, or with `stream=True` a Stream. Raises an LLMError."""
        answer: Response | Stream = await self._create(COMPLETIONS, model, {"prompt": prompt}, params, stream)
        return answer


class Embeddings(_Resource):
    """`client.embeddings`."""

    async def create(self, *, model: str, input: str | Sequence[Any], **params: Unpack[EmbeddingParams]) -> Response:
        """Get the vectors of one or more inputs: `r.data[i].embedding`. Raises an LLMError."""
        answer: Response = await self._create(EMBEDDINGS, model, {"input": input}, params, False)
        return answer


class Moderations(_Resource):
    """`client.moderations`."""

    async def create(
        self, *, input: str | Sequence[Any], model: str = MODERATOR, **params: Unpack[CallOptions]
    ) -> Response:
        """Have inputs judged: `r.results[i].flagged`, `.categories`, `.category_scores`. Raises an LLMError."""
        answer: Response = await self._create(MODERATIONS, model, {"input": input}, params, False)
        return answer


class Responses(_Resource):
    """`client.responses`."""

    @overload
    async def create(
        self,
        *,
        model: str,
        input: str | Sequence[Any],
        text_format: type[T] | Schema[T],
        stream: Literal[False] = False,
        **params: Unpack[PlainResponsesParams],
    ) -> ParsedResponse[T]: ...

    @overload
    async def create(
        self,
        *,
        model: str,
        input: str | Sequence[Any],
        stream: Literal[False] = False,
        **params: Unpack[ResponsesParams],
    ) -> Response: ...

    @overload
    async def create(
        self, *, model: str, input: str | Sequence[Any], stream: Literal[True], **params: Unpack[ResponsesParams]
    ) -> Stream: ...

    @overload
    async def create(
        self, *, model: str, input: str | Sequence[Any], stream: bool, **params: Unpack[ResponsesParams]
    ) -> Response | Stream: ...

    async def create(
        self, *, model: str, input: str | Sequence[Any], stream: bool = False, **params: Unpack[ResponsesParams]
    ) -> Response | Stream:
        """Call the Responses API, whole or with `stream=True` as a Stream of its events. Raises an LLMError."""
        answer: Response | Stream = await self._create(RESPONSES, model, {"input": input}, params, stream)
        return answer

    @overload
    async def parse(
        self,
        *,
        model: str,
        input: str | Sequence[Any],
        text_format: type[T] | Schema[T],
        **params: Unpack[PlainResponsesParams],
    ) -> ParsedResponse[T]: ...

    @overload
    async def parse(
        self,
        *,
        model: str,
        input: str | Sequence[Any],
        text_format: Mapping[str, Any],
        **params: Unpack[PlainResponsesParams],
    ) -> ParsedResponse[Any]: ...

    async def parse(
        self, *, model: str, input: str | Sequence[Any], text_format: Any, **params: Unpack[PlainResponsesParams]
    ) -> ParsedResponse[Any]:
        """Call the Responses API for an answer that fits a schema; see `chat.completions.parse`."""
        wanted: Schema[Any] = Schema.of(text_format)
        answer: ParsedResponse[Any] = await self.create(model=model, input=input, text_format=wanted, **params)
        return answer
