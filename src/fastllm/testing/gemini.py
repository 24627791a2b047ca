"""Gemini's API from the mock: the chat answer to the same question, and embeddings, in its own dialect."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec

from ..errors import InvalidRequestError
from ..providers.gemini_answer import to_answer
from ..providers.gemini_reverse import AnswerEncoder, from_gemini
from ..types import Chunk
from .answers import Answer, Answerer, Ask, chat, stream_of
from .more_answers import embeddings
from .reply import Refused, Reply, encode

_DATA = b"data: "


def route(url: bytes) -> tuple[Answerer, str, bool] | None:
    """Give what answers /v1beta/models/NAME:OPERATION, the model's name, and whether as a stream."""
    path = url.partition(b"?")[0]
    if b":" not in path or not path.startswith((b"/v1beta/models/", b"/v1/models/", b"/models/")):
        return None
    name, _, operation = path.rpartition(b"/models/")[2].decode("latin-1").rpartition(":")
    answerer = _OPERATIONS.get(operation)
    return None if answerer is None else (answerer, unquote(name), operation == "streamGenerateContent")


def generate(ask: Ask) -> Answer:
    """Answer a conversation: the text repeats what the user said last."""
    try:
        body = from_gemini(ask.body, ask.model)
    except InvalidRequestError as error:
        raise Refused(400, error.message) from None
    answer = chat(msgspec.structs.replace(ask, body=body, include_usage=True))
    reply = answer.reply
    if reply.events is None:
        answer.reply = Reply(encode(to_answer(msgspec.json.decode(reply.body))))
        return answer
    encoder = AnswerEncoder(ask.model)
    chunks = [Chunk(data=event[len(_DATA) :].strip()) for event in reply.events if event.startswith(b"data: {")]
    events = [encoder.add(chunk) for chunk in chunks]
    answer.reply = stream_of([event for event in events if event])  # an empty piece would be the body's end
    return answer


def embed(ask: Ask) -> Answer:
    """Give the vectors of one or more texts."""
    requests = ask.body.get("requests")
    asked: list[Any] = requests if isinstance(requests, list) else [ask.body]
    texts = [_text(one) for one in asked]
    body: dict[str, Any] = {"input": texts}
    size = asked[0].get("outputDimensionality") if asked else None
    if size is not None:
        body["dimensions"] = size
    answer = embeddings(msgspec.structs.replace(ask, body=body))
    found = [{"values": one["embedding"]} for one in msgspec.json.decode(answer.reply.body)["data"]]
    answer.reply = Reply(encode({"embeddings": found} if isinstance(requests, list) else {"embedding": found[0]}))
    return answer


def _text(request: Any) -> str:
    parts = (request.get("content") or {}).get("parts") if isinstance(request, dict) else None
    if not isinstance(parts, list) or not parts:
        raise Refused(400, "content.parts: at least one part is required", param="content")
    return "".join(str(part.get("text") or "") for part in parts)


_OPERATIONS: dict[str, Answerer] = {
    "generateContent": generate,
    "streamGenerateContent": generate,
    "embedContent": embed,
    "batchEmbedContents": embed,
}
