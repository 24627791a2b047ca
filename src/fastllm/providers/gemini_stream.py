"""Reads Gemini's streams: each event is an answer with the next parts, which become the chunks of a chat completion.

The end is the end of the body, after every candidate had its finish reason; there is no terminator. A stream that ends
before that was cut off; an error object is raised where it stands. Source: the Gemini API's streamGenerateContent
reference, as of November 2026.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..answers import Usage
from ..errors import ProtocolError, TruncatedStreamError, snippet
from ..types import Chunk, HTTPResponse, Request, Response
from .base import Decoder
from .checked import objects_in
from .gemini_answer import call_of, finish_reason, is_blocked, to_completion, usage_of
from .openai_answer import check_once, error_inside, judge
from .openai_replay import chunks_of, wants_usage
from .sse import MOST_BYTES, SSEDecoder

_HEAD = HTTPResponse(status=200)
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.encode


class _Candidate:
    """One answer as it grows."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []
        self.texts: list[str] = []  # pieces of the last part, where that is text
        self.calls = 0
        self.ended: str | None = None  # the finish reason
        self.more: dict[str, Any] = {}  # whatever else was said of it

    def add(self, part: dict[str, Any]) -> None:
        """Text that goes on is one part."""
        text = part.get("text")
        if not isinstance(text, str) or part.keys() - {"text", "thought"}:
            self.close()
            self.parts.append(part)
            return
        if self.texts and bool(self.parts[-1].get("thought")) == bool(part.get("thought")):
            self.texts.append(text)
            return
        self.close()
        self.parts.append(dict(part))
        self.texts = [text]

    def close(self) -> None:
        if self.texts:
            self.parts[-1]["text"] = "".join(self.texts)
            self.texts = []

    def whole(self, index: int) -> dict[str, Any]:
        """Give the candidate as it would stand in a whole answer."""
        if self.texts:
            self.parts[-1]["text"] = "".join(self.texts)
        content = {"role": "model", "parts": self.parts}
        return {**self.more, "index": index, "content": content, "finishReason": self.ended}


class GeminiDecoder(Decoder):
    """Reads one streamGenerateContent answer."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._events = SSEDecoder()
        self._whole: bytearray | None = None  # the body, where it is not a stream
        self._begun = False
        self._answer: dict[str, Any] = {}
        self._candidates: dict[int, _Candidate] = {}
        self._blocked = False
        self._response: Response | None = None

    def feed(self, data: bytes) -> list[Chunk]:
        if not self._begun:
            text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
            self._begun = bool(text)
            if text[:1] and text[:1] in b'{[<"':  # no field of an event stream begins with these
                self._whole = bytearray()
        if self._whole is not None:
            self._whole += data
            if len(self._whole) > MOST_BYTES:
                raise ProtocolError(f"the answer is larger than {MOST_BYTES} bytes", status_code=200)
            return []
        chunks: list[Chunk] = []
        for _, payload in self._events.feed(data):
            if payload and not payload.isspace():
                chunks += self._read(payload)
        return chunks

    def _read(self, data: bytes) -> list[Chunk]:
        try:
            fields = _decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            text = f"an event of the stream is not a JSON object: {snippet(data)}"
            raise ProtocolError(text, status_code=200, code="not_an_answer") from None
        if fields.get("error"):
            raise error_inside(data, _HEAD)
        for name in ("responseId", "modelVersion", "usageMetadata", "promptFeedback"):
            if fields.get(name) is not None:
                self._answer[name] = fields[name]
        chunks: list[Chunk] = []
        for place, candidate in enumerate(objects_in(fields.get("candidates"))):
            chunks += self._add(candidate, place)
        if is_blocked(fields) and not self._candidates and not self._blocked:
            self._blocked = True
            chunks.append(self._chunk(0, {"role": "assistant", "content": ""}, "content_filter"))
        return chunks

    def _add(self, fields: dict[str, Any], place: int) -> list[Chunk]:
        given = fields.get("index")
        index = given if isinstance(given, int) else place
        chunks: list[Chunk] = []
        candidate = self._candidates.get(index)
        if candidate is None:
            candidate = self._candidates[index] = _Candidate()
            chunks.append(self._chunk(index, {"role": "assistant", "content": ""}))
        content = fields.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                delta = self._told(candidate, part, index)
                candidate.add(part)
                if delta:
                    chunks.append(self._chunk(index, delta))
        candidate.more |= {k: v for k, v in fields.items() if k not in ("content", "index", "finishReason")}
        reason = finish_reason(fields.get("finishReason"), calls=bool(candidate.calls))
        if reason is not None:
            candidate.ended = fields["finishReason"]
            chunks.append(self._chunk(index, {}, reason))
        return chunks

    def _told(self, candidate: _Candidate, part: dict[str, Any], index: int) -> dict[str, Any]:
        """Give what a reader of chat streams is told of a part."""
        if isinstance(part.get("functionCall"), dict):
            place, candidate.calls = candidate.calls, candidate.calls + 1
            return {"tool_calls": [{"index": place, **call_of(part, place, index, self._answer.get("responseId"))}]}
        text = part.get("text")
        if not isinstance(text, str) or not text:
            return {}
        return {"reasoning_content": text} if part.get("thought") else {"content": text}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> Chunk:
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        return Chunk(data=_encode({**self._frame(), "choices": [choice]}))

    def _frame(self) -> dict[str, Any]:
        name, model = self._answer.get("responseId"), self._answer.get("modelVersion")
        return {"id": name, "object": "chat.completion.chunk", "created": 0, "model": model}

    def finish(self) -> list[Chunk]:
        if self._response is not None:
            return []
        if self._whole is not None:
            self._response = whole_answer(HTTPResponse(status=200, body=bytes(self._whole)), self._request)
            return chunks_of(self._response, self._request)
        ended = self._blocked or (
            self._candidates and all(candidate.ended is not None for candidate in self._candidates.values())
        )
        if not ended:
            raise TruncatedStreamError(
                "the stream ended before its finishReason", code="truncated_stream", status_code=200
            )
        self._response = _judged(self._together(), HTTPResponse(status=200), self._request)
        usage = usage_of(self._answer.get("usageMetadata"))
        if usage is None or not wants_usage(self._request):
            return []
        return [Chunk(data=_encode({**self._frame(), "choices": [], "usage": usage}))]

    def _together(self) -> dict[str, Any]:
        candidates = [candidate.whole(index) for index, candidate in sorted(self._candidates.items())]
        return to_completion({**self._answer, "candidates": candidates})

    @property
    def done(self) -> bool:
        return self._response is not None

    def response(self) -> Response:
        if self._response is not None:
            return self._response
        whole = self._together()
        usage = usage_of(self._answer.get("usageMetadata"))
        return Response(
            body=_encode(whole),
            path=self._request.path,
            usage=None if usage is None else msgspec.convert(usage, Usage),
            finish_reason=whole["choices"][0]["finish_reason"] if whole["choices"] else None,
        )

    def __repr__(self) -> str:
        return f"<GeminiDecoder {'done' if self.done else 'reading'} {len(self._candidates)} candidates>"


def whole_answer(answer: HTTPResponse, request: Request) -> Response:
    """Read a whole generateContent answer, or raise what it is instead."""
    try:
        found = _decode_any(answer.body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        judge(request.path, answer)  # says what is wrong with it
        raise
    if isinstance(found, list) and found and isinstance(found[0], dict) and found[0].get("error"):
        raise error_inside(answer.body, answer)  # errors come as a list of one, too
    if not isinstance(found, dict) or found.get("error") or not (found.get("candidates") or is_blocked(found)):
        judge(request.path, answer)
        raise ProtocolError(
            f"status {answer.status}, but the answer has no candidates: {snippet(answer.body)}",
            status_code=answer.status,
            code="not_an_answer",
        )
    check_once(answer, b'"candidates"')
    return _judged(to_completion(found), answer, request)


def _judged(whole: dict[str, Any], answer: HTTPResponse, request: Request) -> Response:
    body = _encode(whole)
    reason, usage = judge(request.path, HTTPResponse(status=answer.status, headers=answer.headers, body=body))
    return Response(body=body, path=request.path, usage=usage, finish_reason=reason, status_code=answer.status)
