"""Reads Anthropic's streams: their events become the chunks of a chat completion, and the message as a whole.

The end is `message_stop`. A stream that ends before it was cut off; an `error` event is raised where it stands. Events
and blocks that nobody knows are passed over, as the API's versioning asks of its clients.
Source: the Messages API's streaming reference, as of November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..answers import Usage
from ..errors import ProtocolError, TruncatedStreamError, snippet
from ..types import CHAT, MESSAGES, Chunk, HTTPResponse, Request, Response
from .anthropic_answer import finish_reason, kept_beside, to_completion, usage_of
from .anthropic_replay import events_of
from .base import Decoder
from .checked import object_in
from .openai_answer import check_once, error_inside, judge, nonsense
from .openai_replay import chunks_of, wants_usage
from .sse import MOST_BYTES, SSEDecoder

_HEAD = HTTPResponse(status=200)
_UNUSED = Chunk(data=b"")
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.encode
_PIECES = {  # of a delta: the field that holds it, and that of the block to which it belongs
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("signature", "signature"),
    "input_json_delta": ("partial_json", "input"),
}


class AnthropicDecoder(Decoder):
    """Reads one Messages stream."""

    def __init__(self, request: Request) -> None:
        self._request = request if request.path == CHAT else msgspec.structs.replace(request, path=CHAT)
        self._events = SSEDecoder()
        self._whole: bytearray | None = None  # the body, where it is not a stream
        self._begun = False
        self._done = False
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, _Block] = {}
        self._calls = 0
        self._counted = False  # the tokens of the answer, not only those that its start tells of
        self._response: Response | None = None

    def feed(self, data: bytes) -> list[Chunk]:
        if self._done:
            return []
        if not self._begun:
            self._begin(data)
        if self._whole is not None:
            self._whole += data
            if len(self._whole) > MOST_BYTES:
                raise ProtocolError(f"the answer is larger than {MOST_BYTES} bytes", status_code=200)
            return []
        chunks: list[Chunk] = []
        for event, payload in self._events.feed(data):
            if payload and not payload.isspace():
                chunks += self._read(event, payload)
            if self.done:
                break
        return chunks

    def _begin(self, data: bytes) -> None:
        """Look at the first byte that says something: no field of an event stream begins with these."""
        text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
        self._begun = bool(text)
        if text[:1] and text[:1] in b'{[<"':
            self._whole = bytearray()

    def _read(self, event: str, data: bytes) -> list[Chunk]:
        try:
            fields = _decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            text = f"an event of the stream is not a JSON object: {snippet(data)}"
            raise ProtocolError(text, status_code=200, code="not_an_answer") from None
        kind = fields.get("type") or event
        if kind == "error":
            raise error_inside(data, _HEAD)
        if kind == "message_start":
            return self._start(fields.get("message"))
        if kind == "content_block_start":
            return self._start_block(fields)
        if kind == "content_block_delta":
            return self._add(fields)
        if kind == "content_block_stop":
            return self._stop_block(fields)
        if kind == "message_delta":
            return self._change(fields)
        if kind == "message_stop":
            return self._end()
        return []

    def _start(self, message: Any) -> list[Chunk]:
        if isinstance(message, dict):
            self._message = {**message, "content": []}
        return [self._chunk({"role": "assistant", "content": ""})]

    def _start_block(self, fields: dict[str, Any]) -> list[Chunk]:
        content = fields.get("content_block")
        block = self._blocks[_index(fields)] = _Block(dict(content) if isinstance(content, dict) else {})
        if block.kind == "tool_use":
            block.call, self._calls = self._calls, self._calls + 1
            function = {"name": block.fields.get("name"), "arguments": ""}
            call = {"index": block.call, "id": block.fields.get("id"), "type": "function", "function": function}
            return [self._chunk({"tool_calls": [call]})]
        first = block.fields.get("text" if block.kind == "text" else "thinking")
        return self._told(block, "text_delta" if block.kind == "text" else "thinking_delta", first) if first else []

    def _add(self, fields: dict[str, Any]) -> list[Chunk]:
        delta = fields.get("delta")
        block = self._blocks.get(_index(fields))
        if block is None or not isinstance(delta, dict):
            return []
        kind = str(delta.get("type"))
        if kind == "citations_delta":
            block.citations.append(delta.get("citation"))
            return []
        if kind not in _PIECES:
            return []
        source, target = _PIECES[kind]
        piece = delta.get(source)
        if not isinstance(piece, str) or not piece:
            return []
        block.add(target, piece)
        return self._told(block, kind, piece)

    def _stop_block(self, fields: dict[str, Any]) -> list[Chunk]:
        """Arguments of which no piece came stood in the block's start, if not nowhere: `{}` then."""
        block = self._blocks.get(_index(fields))
        if block is None or block.call is None or block.told:
            return []
        block.told = True
        arguments = _encode(block.fields.get("input") or {}).decode()
        return [self._chunk({"tool_calls": [{"index": block.call, "function": {"arguments": arguments}}]})]

    def _told(self, block: _Block, kind: str, piece: Any) -> list[Chunk]:
        """Give the chunk of a piece that a reader of chat streams has a word for."""
        if kind == "text_delta":
            return [self._chunk({"content": piece})]
        if kind == "thinking_delta":
            return [self._chunk({"reasoning_content": piece})]
        if kind == "input_json_delta" and block.call is not None:
            block.told = True
            return [self._chunk({"tool_calls": [{"index": block.call, "function": {"arguments": piece}}]})]
        return []

    def _change(self, fields: dict[str, Any]) -> list[Chunk]:
        """Take in the end of the message; its counts are cumulative, and may leave out those of the start."""
        delta, usage = fields.get("delta"), fields.get("usage")
        if isinstance(usage, dict):
            told = {name: count for name, count in usage.items() if count is not None}
            self._message["usage"] = {**object_in(self._message.get("usage")), **told}
            self._counted = self._counted or "output_tokens" in told
        if not isinstance(delta, dict):
            return []
        self._message.update({name: value for name, value in delta.items() if value is not None})
        reason = finish_reason(delta.get("stop_reason"))
        if reason is None:
            return []
        kept = kept_beside(self._content())  # signatures, too, which have no other place in a chat stream
        return [*([self._chunk(kept)] if kept else ()), self._chunk({}, reason)]

    def _content(self) -> list[dict[str, Any]]:
        return [block.whole() for _, block in sorted(self._blocks.items())]

    def _end(self) -> list[Chunk]:
        self._message["content"] = self._content()
        self._response = self._judged(_encode(to_completion(self._message)))
        self._done = True
        usage = usage_of(self._message.get("usage"))
        if usage is None or not wants_usage(self._request):
            return []
        return [Chunk(data=_encode({**self._frame(), "choices": [], "usage": usage}))]

    def _judged(self, body: bytes) -> Response:
        reason, usage = judge(self._request.path, HTTPResponse(status=200, body=body))
        return Response(body=body, path=self._request.path, usage=usage, finish_reason=reason)

    def _frame(self) -> dict[str, Any]:
        name, model = self._message.get("id"), self._message.get("model")
        return {"id": name, "object": "chat.completion.chunk", "created": 0, "model": model}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> Chunk:
        return Chunk(
            data=_encode({**self._frame(), "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        )

    def finish(self) -> list[Chunk]:
        if self._done:
            return []
        if self._whole is not None:
            self._response = whole_answer(HTTPResponse(status=200, body=bytes(self._whole)), self._request)
            self._done = True
            return chunks_of(self._response, self._request)
        raise TruncatedStreamError("the stream ended before its message_stop", code="truncated_stream", status_code=200)

    @property
    def done(self) -> bool:
        return self._done

    def response(self) -> Response:
        if self._response is not None:
            return self._response
        self._message["content"] = self._content()
        # Until the end has told, the start's counts know nothing of what was written: no usage is better than that.
        usage = usage_of(self._message.get("usage")) if self._counted else None
        seen = {name: value for name, value in self._message.items() if name != "usage" or self._counted}
        return Response(
            body=_encode(to_completion(seen)),
            path=self._request.path,
            usage=None if usage is None else msgspec.convert(usage, Usage),
            finish_reason=finish_reason(self._message.get("stop_reason")),
        )

    def __repr__(self) -> str:
        return f"<AnthropicDecoder {'done' if self._done else 'reading'} {len(self._blocks)} blocks>"


class MessagesDecoder(AnthropicDecoder):
    """Reads one Messages stream for somebody who wants its events, and in the end the message, as they came."""

    def _read(self, event: str, data: bytes) -> list[Chunk]:
        super()._read(event, data)
        return [Chunk(data=data, event=event or str(_decode(data).get("type")))]

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> Chunk:
        return _UNUSED

    def finish(self) -> list[Chunk]:
        whole = not self.done
        super().finish()
        return events_of(self.response().to_dict()) if whole else []

    def response(self) -> Response:
        found = super().response()
        body = bytes(self._whole) if self._whole is not None and self.done else _encode(self._message)
        return msgspec.structs.replace(found, body=body, path=MESSAGES, _payload=None, _fields=None)


class _Block:
    """One content block, whose text comes in pieces."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.kind = fields.get("type")
        self.call: int | None = None  # which tool call of the answer it is
        self.told = False  # its arguments, or some of them
        self.citations: list[Any] = []
        self._pieces: dict[str, list[str]] = {}

    def add(self, field: str, piece: str) -> None:
        self._pieces.setdefault(field, []).append(piece)

    def whole(self) -> dict[str, Any]:
        """Give the block as it would stand in a whole answer."""
        out = dict(self.fields)
        if self.citations:
            begun = out.get("citations")
            out["citations"] = [*(begun if isinstance(begun, list) else ()), *self.citations]
        for field, pieces in self._pieces.items():
            text = "".join(pieces)
            if field != "input":
                begun = out.get(field)
                out[field] = begun + text if isinstance(begun, str) else text
                continue
            try:
                out["input"] = msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError):  # cut off by max_tokens
                out["input"] = {}
                out["partial_json"] = text
        return out


def _index(fields: dict[str, Any]) -> int:
    index = fields.get("index")
    return index if isinstance(index, int) else 0


def whole_answer(answer: HTTPResponse, request: Request) -> Response:
    """Read a whole Messages answer, or raise what it is instead."""
    body = answer.body
    try:
        message = _decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        judge(request.path, answer)  # says what is wrong with it
        raise
    if message.get("type") == "error" or "error" in message or not isinstance(message.get("content"), list):
        judge(request.path, answer)
    check_once(answer, b'"content"')
    _check_end(message, answer)
    body = _encode(to_completion(message))
    reason, usage = judge(CHAT, HTTPResponse(status=answer.status, headers=answer.headers, body=body))
    return Response(body=body, path=CHAT, usage=usage, finish_reason=reason, status_code=answer.status)


def _check_end(message: Mapping[str, Any], answer: HTTPResponse) -> None:
    """Raise ProtocolError where a whole answer has no end, or another one than it says."""
    blocks, reason = message.get("content"), message.get("stop_reason")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise nonsense(answer, "has content that is no list of blocks")
    if not isinstance(reason, str):
        raise nonsense(answer, "has no stop_reason")
    if reason == "tool_use" and not any(block.get("type") == "tool_use" for block in blocks):
        raise nonsense(answer, "ends with tool_use and calls no tool")
