"""ResponsesByChat: a dialect or server that has only chat, with OpenAI's Responses API laid over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import InvalidRequestError
from ..types import CHAT, RESPONSES, Chunk, HTTPRequest, HTTPResponse, Request, Response, Target
from .base import Decoder, Provider
from .responses_answer import EventWriter, to_response
from .responses_request import to_chat
from .tool_results import apart

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class ResponsesByChat(Provider):
    """Serves Responses requests through the chat of another dialect; everything else is the other's."""

    def __init__(self, chat: Provider) -> None:
        self._chat = chat
        self.name = chat.name
        self.has_rich_results = chat.has_rich_results

    def auth_headers(self, api_key: str | None) -> Mapping[str, str]:
        return self._chat.auth_headers(api_key)

    def spoken(self, request: Request) -> Request:
        return self._as_chat(request) if request.path == RESPONSES else request

    def encode(self, request: Request, target: Target) -> HTTPRequest:
        return self._chat.encode(self.spoken(request), target)

    def decode(self, request: Request, answer: HTTPResponse) -> Response:
        if request.path != RESPONSES:
            return self._chat.decode(request, answer)
        return as_response(self._chat.decode(self._as_chat(request), answer), request)

    def decoder(self, request: Request) -> Decoder:
        if request.path != RESPONSES:
            return self._chat.decoder(request)
        return _ByChatDecoder(self._chat.decoder(self._as_chat(request)), request)

    def replay(self, response: Response, request: Request) -> list[Chunk]:
        return self._chat.replay(response, request)

    def _as_chat(self, request: Request) -> Request:
        return as_chat(request, rich_results=self.has_rich_results)


def as_chat(request: Request, *, rich_results: bool) -> Request:
    """Give the chat request of a Responses request. InvalidRequestError where there is none. Without `rich_results`
    images of a tool's result stand behind it."""
    chat = to_chat(_body(request))
    if not rich_results:
        chat["messages"] = apart(chat["messages"])
    return msgspec.structs.replace(request, path=CHAT, body=msgspec.json.encode(chat))


def as_response(chat: Response, request: Request) -> Response:
    """Give the answer to a Responses request that a chat answer is."""
    body = msgspec.json.encode(to_response(chat.to_dict(), _body(request)))
    return msgspec.structs.replace(chat, body=body, path=RESPONSES, _payload=None, _fields=None)


def _body(request: Request) -> dict[str, Any]:
    try:
        return _decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the request body is not a valid JSON object: {error}", sent=False) from None


class _ByChatDecoder(Decoder):
    def __init__(self, chat: Decoder, request: Request) -> None:
        self._chat = chat
        self._request = request
        self._writer = EventWriter(_body(request))
        self._ended = False

    def feed(self, data: bytes) -> list[Chunk]:
        return self._written(self._chat.feed(data))

    def finish(self) -> list[Chunk]:
        return self._written(self._chat.finish(), end=True)

    def _written(self, chunks: list[Chunk], *, end: bool = False) -> list[Chunk]:
        if self._ended:
            return []
        out = [event for chunk in chunks for event in self._writer.add(chunk)]
        if end or self._chat.done:
            self._ended = True
            out += self._writer.end(self._chat.response().to_dict())
        return out

    @property
    def done(self) -> bool:
        return self._chat.done

    def response(self) -> Response:
        return as_response(self._chat.response(), self._request)
