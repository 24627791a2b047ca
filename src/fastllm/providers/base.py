"""Provider: a wire dialect as pure functions from requests to bytes and from bytes to answers; it never does I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from .. import __version__
from ..types import Chunk, Headers, HTTPRequest, HTTPResponse, Request, Response, Target


class Decoder(ABC):
    """Reads one streamed answer. `feed` bytes as they come, then call `finish` once at the end of the stream."""

    @abstractmethod
    def feed(self, data: bytes) -> list[Chunk]:
        """Give the chunks that these bytes complete. Raises a typed LLMError for an error event."""

    @abstractmethod
    def finish(self) -> list[Chunk]:
        """Give the chunks that only the end completes; TruncatedStreamError if it came before the terminator."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """True once the terminator has been seen; what follows it is ignored."""

    @abstractmethod
    def response(self) -> Response:
        """Give the answer assembled from the chunks so far, with usage where the provider sent it."""


class Provider(ABC):
    """One dialect. Subclass it, implement four methods, and register it under a name.

    Example: a vendor that wants its key in another header needs only

        class Acme(OpenAIProvider):
            name = "acme"
            def auth_headers(self, api_key): return {"x-acme-key": api_key or ""}
    """

    name: str = ""
    chat_only: bool = False  # True: Responses requests are asked and answered through its chat
    has_messages: bool = False  # False: so are Messages requests, Anthropic's own
    has_rich_results: bool = False  # False: tool messages take text only, so images of a result follow it

    def auth_headers(self, api_key: str | None) -> Mapping[str, str]:
        """Give the headers that carry the key and the dialect's version."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def headers(self, api_key: str | None, extra: Mapping[str, str]) -> Headers:
        """Give all headers of this dialect for one key, `extra` laid over them; made once for an endpoint."""
        own = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "user-agent": f"fastllm/{__version__}",
        }
        return Headers({**own, **self.auth_headers(api_key)}).merged(extra)

    def spoken(self, request: Request) -> Request:
        """Give the request as the operation that goes out for it, which is its own unless the dialect lacks that."""
        return request

    @abstractmethod
    def encode(self, request: Request, target: Target) -> HTTPRequest:
        """Write one request for this target. Must not change what the caller did not ask to change."""

    @abstractmethod
    def decode(self, request: Request, answer: HTTPResponse) -> Response:
        """Read one whole answer, or raise the typed LLMError that it stands for."""

    @abstractmethod
    def decoder(self, request: Request) -> Decoder:
        """Give a fresh decoder for one streamed answer."""

    @abstractmethod
    def replay(self, response: Response, request: Request) -> list[Chunk]:
        """Give the chunks that a stream of this whole answer would have had, for answers from a cache."""
