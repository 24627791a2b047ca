"""RequestBatch: collects requests through the tree that otherwise sends them.

batch = RequestBatch()
for text in texts:
    batch.chat.completions.create(model="openai/gpt-4o-mini", messages=[{"role": "user", "content": text}])
outcomes = client.process(batch)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import msgspec

from .build import wire_model
from .errors import ConfigError
from .params import (
    MODERATOR,
    CallOptions,
    ChatParams,
    CompletionParams,
    EmbeddingParams,
    Messages,
    ResponsesParams,
    messages_of,
    to_request,
)
from .policy.fingerprint import canonical, fingerprint
from .types import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES, Request


class RequestBatch:
    """An ordered collection of requests. Each `create` gives the request's id, which is also the outcome's `custom_id`
    unless one was given: the SHA-256 of its canonical form, in hex, with the model's name as its provider knows it.

    Equal requests have equal ids in every process. A cache keeps the answer under a key that begins with the id, unless
    the client has a `base_url` and the model's name a provider's prefix: there the prefix is part of the name.
    """

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self._requests: list[Request] = list(requests)
        self.chat = _Chat(self)
        self.completions = _Completions(self)
        self.embeddings = _Embeddings(self)
        self.moderations = _Moderations(self)
        self.responses = _Responses(self)

    def add(self, request: Request) -> str:
        """Append a request; give its id."""
        key = fingerprint(canonical(request, wire_model(request.model))).hex()
        if request.custom_id is None:
            request = msgspec.structs.replace(request, custom_id=key)
        self._requests.append(request)
        return key

    def merge(self, other: RequestBatch) -> RequestBatch:
        """Append the other batch's requests to this one and give this one."""
        self._requests.extend(other._requests)
        return self

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __repr__(self) -> str:
        return f"<RequestBatch {len(self)} requests>"


class _Collects:
    def __init__(self, batch: RequestBatch) -> None:
        self._batch = batch

    def _add(self, path: str, model: str, fields: dict[str, Any], params: Mapping[str, Any]) -> str:
        if params.get("stream"):
            raise ConfigError("a batch gives whole answers: leave out stream=True, or send the request by itself")
        return self._batch.add(to_request(path, model, fields, params, stream=False))


class _ChatCompletions(_Collects):
    def create(self, *, model: str, messages: Messages, **params: Unpack[ChatParams]) -> str:
        """Collect a chat completion; give its id."""
        return self._add(CHAT, model, {"messages": messages_of(messages)}, params)


class _Chat:
    def __init__(self, batch: RequestBatch) -> None:
        self.completions = _ChatCompletions(batch)


class _Completions(_Collects):
    def create(self, *, model: str, prompt: str | Sequence[Any], **params: Unpack[CompletionParams]) -> str:
        """Collect a plain completion; give its id."""
        return self._add(COMPLETIONS, model, {"prompt": prompt}, params)


class _Embeddings(_Collects):
    def create(self, *, model: str, input: str | Sequence[Any], **params: Unpack[EmbeddingParams]) -> str:
        """Collect an embedding; give its id."""
        return self._add(EMBEDDINGS, model, {"input": input}, params)


class _Moderations(_Collects):
    def create(self, *, input: str | Sequence[Any], model: str = MODERATOR, **params: Unpack[CallOptions]) -> str:
        """Collect inputs to be judged; give the request's id."""
        return self._add(MODERATIONS, model, {"input": input}, params)


class _Responses(_Collects):
    def create(self, *, model: str, input: str | Sequence[Any], **params: Unpack[ResponsesParams]) -> str:
        """Collect a Responses API call; give its id."""
        return self._add(RESPONSES, model, {"input": input}, params)
