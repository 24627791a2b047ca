"""Gemini's own dialect: chat and embeddings in OpenAI's shape outside, generateContent on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import msgspec

from ..errors import InvalidRequestError, classify
from ..types import CHAT, EMBEDDINGS, NO_HEADERS, Chunk, HTTPRequest, HTTPResponse, Request, Response, Target
from . import gemini_answer, gemini_request
from .base import Decoder, Provider
from .gemini_stream import GeminiDecoder, whole_answer
from .openai_answer import check_vectors, judge, request_id_of
from .openai_replay import chunks_of
from .openai_schema import told

VERSION = "v1beta"
_EVENTS = (b"data:", b"event:", b":")
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_OPERATIONS = {CHAT: "generateContent", EMBEDDINGS: "batchEmbedContents"}


@lru_cache(maxsize=1024)
def _url(base_url: str, model: str, operation: str) -> str:
    """Base URLs come with and without a version."""
    base, _, query = base_url.partition("?")
    base = base.rstrip("/")
    if not base.rpartition("/")[2].startswith("v1"):
        base += f"/{VERSION}"
    name = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
    url = f"{base}/{quote(name)}:{operation}"
    more = [*(["alt=sse"] if operation == "streamGenerateContent" else []), *([query] if query else [])]
    return f"{url}?{'&'.join(more)}" if more else url


class GeminiProvider(Provider):
    """The Gemini API: chat, and embeddings of texts."""

    name = "gemini"
    chat_only = True
    has_rich_results = True

    def auth_headers(self, api_key: str | None) -> Mapping[str, str]:
        return {"x-goog-api-key": api_key} if api_key else {}

    def encode(self, request: Request, target: Target) -> HTTPRequest:
        operation = _OPERATIONS.get(request.path)
        if operation is None:
            raise InvalidRequestError(f"Gemini has no {request.path}: give it chat or embeddings", sent=False)
        if request.schema is not None and target.schemas != "json_schema":
            request = told(request, request.schema, target.schemas)
        try:
            given = _decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequestError(f"the request body is not a valid JSON object: {error}", sent=False) from None
        model = target.model or request.model
        if request.path == EMBEDDINGS:
            body = gemini_request.to_embeddings(given, model)
        else:
            body = gemini_request.to_gemini(given, model)
            operation = "streamGenerateContent" if request.stream or given.get("stream") else operation
        headers = target.headers
        if request.headers is not NO_HEADERS:
            headers = headers.merged(request.headers)
        url = _url(target.base_url, model, operation)
        return HTTPRequest(url=url, body=msgspec.json.encode(body), headers=headers)

    def decode(self, request: Request, answer: HTTPResponse) -> Response:
        if not 200 <= answer.status < 300:
            raise classify(answer.status, answer.header, answer.body)
        if request.path == EMBEDDINGS:
            response = _embeddings(request, answer)
        elif answer.body.lstrip().startswith(_EVENTS):
            decoder = self.decoder(request)
            decoder.feed(answer.body)
            decoder.finish()
            response = decoder.response()
        else:
            response = whole_answer(answer, request)
        response.request_id = request_id_of(answer)
        return response

    def decoder(self, request: Request) -> Decoder:
        return GeminiDecoder(request)

    def replay(self, response: Response, request: Request) -> list[Chunk]:
        return chunks_of(response, request)


class _Asked(msgspec.Struct):
    model: str = ""
    encoding_format: str | None = None


_asked = msgspec.json.Decoder(_Asked)


def _embeddings(request: Request, answer: HTTPResponse) -> Response:
    asked = _asked.decode(request.body)
    try:
        found = _decode(answer.body)
        whole = gemini_answer.to_embeddings(found, request.model, packed=asked.encoding_format == "base64")
        body = msgspec.json.encode(whole) if whole["data"] else answer.body
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError):
        body = answer.body  # which `judge` then says something of
    told = HTTPResponse(status=answer.status, headers=answer.headers, body=body)
    _, usage = judge(EMBEDDINGS, told)
    check_vectors(request, told)
    return Response(body=body, path=EMBEDDINGS, usage=usage, status_code=answer.status)
