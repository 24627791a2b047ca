"""OpenAI's dialect, which is our own shape: requests go out byte for byte unless the model's name must be changed."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from ..errors import InvalidRequestError, classify
from ..types import EMBEDDINGS, NO_HEADERS, Chunk, HTTPRequest, HTTPResponse, Request, Response, Target
from .base import Decoder, Provider
from .openai_answer import check_vectors, judge, request_id_of
from .openai_replay import chunks_of
from .openai_schema import told
from .openai_stream import OpenAIDecoder

_EVENTS = (b"data:", b"event:", b":")
_TRUE = msgspec.Raw(b"true")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Asked(msgspec.Struct):
    stream: bool | None = None


_asked = msgspec.json.Decoder(_Asked)


class OpenAIProvider(Provider):
    """OpenAI's HTTP API and everything compatible with it."""

    name = "openai"

    def encode(self, request: Request, target: Target) -> HTTPRequest:
        headers = target.headers
        if request.headers is not NO_HEADERS:
            headers = headers.merged(request.headers)
        body = request.body
        if request.stream or request.schema is not None or (target.model and request.body_model != target.model):
            body = body_of(request, target)
        return HTTPRequest(url=url_of(target.base_url, request.path), body=body, headers=headers)

    def decode(self, request: Request, answer: HTTPResponse) -> Response:
        if not 200 <= answer.status < 300:
            raise classify(answer.status, answer.header, answer.body)
        if request.stream and answer.body.lstrip().startswith(_EVENTS):
            return self._decode_stream(request, answer)
        finish_reason, usage = judge(request.path, answer)
        if request.path == EMBEDDINGS:
            check_vectors(request, answer)
        return Response(
            body=answer.body,
            path=request.path,
            usage=usage,
            finish_reason=finish_reason,
            status_code=answer.status,
            request_id=request_id_of(answer),
        )

    def _decode_stream(self, request: Request, answer: HTTPResponse) -> Response:
        """A row whose body says "stream": true, sent where a whole answer was awaited: put its events together."""
        decoder = self.decoder(request)
        decoder.feed(answer.body)
        decoder.finish()
        response = decoder.response()
        response.request_id = request_id_of(answer)
        return response

    def decoder(self, request: Request) -> Decoder:
        return OpenAIDecoder(request)

    def replay(self, response: Response, request: Request) -> list[Chunk]:
        return chunks_of(response, request)


@lru_cache(maxsize=1024)
def url_of(base_url: str, path: str) -> str:
    """Put the operation's path behind the base URL, before its query string if it has one (Azure's api-version)."""
    if "?" in base_url:
        base, _, query = base_url.partition("?")
        return f"{base.rstrip('/')}{path}?{query}"
    return base_url.rstrip("/") + path


def body_of(request: Request, target: Target) -> bytes:
    """Give the body as it is, or with the model's wire name, or with the "stream": true that it lacks;
    with the schema in words where the server takes none."""
    if request.schema is not None and target.schemas != "json_schema":
        request = told(request, request.schema, target.schemas)
    rename = bool(target.model) and request.body_model != target.model
    if not rename and not request.stream:
        return request.body
    try:
        add_stream = request.stream and not _asked.decode(request.body).stream
        if not rename and not add_stream:
            return request.body
        fields = _object.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the request body is not a valid JSON object: {error}", sent=False) from None
    if rename:
        fields["model"] = msgspec.Raw(msgspec.json.encode(target.model))
    if add_stream:
        fields["stream"] = _TRUE
    return msgspec.json.encode(fields)
