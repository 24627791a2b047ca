"""Anthropic's Messages dialect: chat requests and answers in OpenAI's shape outside, Messages on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from ..errors import InvalidRequestError, classify
from ..types import CHAT, MESSAGES, NO_HEADERS, Chunk, HTTPRequest, HTTPResponse, Request, Response, Target
from .anthropic_replay import events_of
from .anthropic_request import to_messages
from .anthropic_stream import AnthropicDecoder, MessagesDecoder, whole_answer
from .anthropic_thoughts import without_foreign_thoughts
from .base import Decoder, Provider
from .openai import body_of, url_of
from .openai_answer import request_id_of
from .openai_replay import chunks_of
from .openai_schema import told

VERSION = "2023-06-01"
_EVENTS = (b"data:", b"event:", b":")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@lru_cache(maxsize=1024)
def _url(base_url: str) -> str:
    """Anthropic's own base URLs come without the version, others' often with it."""
    base = base_url.partition("?")[0].rstrip("/")
    return url_of(base_url, "/messages" if base.endswith("/v1") else "/v1/messages")


class AnthropicProvider(Provider):
    """Anthropic's Messages API, and everything compatible with it. Only chat: it has no embeddings. A request that is
    a message already goes out, and its answer comes back, as it is, but for thoughts of other models."""

    name = "anthropic"
    chat_only = True
    has_messages = True
    has_rich_results = True

    def auth_headers(self, api_key: str | None) -> Mapping[str, str]:
        return {"anthropic-version": VERSION, **({"x-api-key": api_key} if api_key else {})}

    def encode(self, request: Request, target: Target) -> HTTPRequest:
        if request.path == MESSAGES:
            return self._sent(request, target, without_foreign_thoughts(body_of(request, target)))
        if request.path != CHAT:
            raise InvalidRequestError(f"Anthropic's Messages has no {request.path}: give it chat", sent=False)
        if request.schema is not None and target.schemas != "json_schema":
            request = told(request, request.schema, target.schemas)
        try:
            chat = _decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequestError(f"the request body is not a valid JSON object: {error}", sent=False) from None
        body = to_messages(chat)
        body["model"] = target.model or request.model
        if request.stream:
            body["stream"] = True
        return self._sent(request, target, msgspec.json.encode(body))

    def _sent(self, request: Request, target: Target, body: bytes) -> HTTPRequest:
        headers = target.headers
        if request.headers is not NO_HEADERS:
            headers = headers.merged(request.headers)
        return HTTPRequest(url=_url(target.base_url), body=body, headers=headers)

    def decode(self, request: Request, answer: HTTPResponse) -> Response:
        if not 200 <= answer.status < 300:
            raise classify(answer.status, answer.header, answer.body)
        if request.stream and answer.body.lstrip().startswith(_EVENTS):
            decoder = self.decoder(request)
            decoder.feed(answer.body)
            decoder.finish()
            response = decoder.response()
        else:
            response = whole_answer(answer, request)
            if request.path == MESSAGES:
                response = msgspec.structs.replace(response, body=answer.body, path=MESSAGES, _payload=None)
        response.request_id = request_id_of(answer)
        return response

    def decoder(self, request: Request) -> Decoder:
        return AnthropicDecoder(request) if request.path != MESSAGES else MessagesDecoder(request)

    def replay(self, response: Response, request: Request) -> list[Chunk]:
        return chunks_of(response, request) if request.path != MESSAGES else events_of(response.to_dict())
