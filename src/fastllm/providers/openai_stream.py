"""Reads OpenAI's streams: from bytes to chunks, and a typed error for whatever is not a stream of them.

The end is `[DONE]`, a Responses API end event, or the end of bytes once every choice has a finish reason. An error
event is raised where it stands; what came before it is in the assembly. A whole JSON answer in place of a stream is
taken as if it had been streamed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..answers import decode_event
from ..errors import ProtocolError, TruncatedStreamError, snippet
from ..types import RESPONSES, Chunk, HTTPResponse, Request, Response
from .base import Decoder
from .openai_answer import NO_ERROR, error_inside, judge, nonsense
from .openai_assembly import Assembly
from .openai_replay import chunks_of
from .sse import MOST_BYTES, SSEDecoder

_ENDS = frozenset(("response.completed", "response.incomplete", "response.failed"))
_HEAD = HTTPResponse(status=200)  # what is known of the head here: errors inside a stream have no headers


class _Probe(msgspec.Struct):
    """Whether an event is an error: only read where the word stands in it."""

    error: msgspec.Raw = msgspec.Raw(b"null")
    type: Any = None


_probe = msgspec.json.Decoder(_Probe)


class OpenAIDecoder(Decoder):
    """Reads one chat, completions or responses stream."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._events = SSEDecoder()
        self._head: bytes | None = b""  # the first bytes, until they show what this is
        self._whole: bytearray | None = None  # the body, where it is not a stream
        self._done = False
        self._assembly = Assembly(request.path)

    def feed(self, data: bytes) -> list[Chunk]:
        if self._done:
            return []
        if self._head is not None:
            data = self._begin(data)
        if self._whole is not None:
            self._whole += data
            if len(self._whole) > MOST_BYTES:
                raise ProtocolError(f"the answer is larger than {MOST_BYTES} bytes", status_code=200)
            return []
        chunks = []
        for event, payload in self._events.feed(data):
            if payload.startswith(b"[DONE]"):
                self._end()
            elif payload and not payload.isspace():
                chunks.append(self._chunk(event, payload))
            if self.done:
                break
        return chunks

    def _begin(self, data: bytes) -> bytes:
        """Look at the first byte that says something: no field of an event stream begins with these."""
        data = (self._head or b"") + data
        text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
        if not text:
            # Blank lines kept a connection alive. Nothing of them is needed but a byte-order mark's beginning.
            self._head = data if len(data) < 3 else data[:3] if data[:1] == b"\xef" else b"\n"
            return b""
        self._head = None
        if text[:1] in b'{[<"':
            self._whole = bytearray()
            return text
        return data

    def _chunk(self, event: str, data: bytes) -> Chunk:
        try:
            payload, more = decode_event(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise self._bad(data, "is not JSON") from None
        if not data.isascii() and not _is_utf8(data):
            raise self._bad(data, "is not UTF-8")
        if data[:1] != b"{" and not data.lstrip().startswith(b"{"):
            raise self._bad(data, "is not a JSON object")
        chunk = Chunk(data=data, event=event, _payload=payload)
        if event == "error" or b'"error"' in data:
            self._raise_error(chunk)
        try:
            self._assembly.add(payload, data, more)
        except RecursionError:
            raise self._bad(data, "is nested too deeply") from None
        if payload.type in _ENDS and self._request.path == RESPONSES:
            self._assembly.check()
            self._done = True
        return chunk

    def _raise_error(self, chunk: Chunk) -> None:
        """Raise the error that an event is; return where it only has the word in it."""
        found = _probe.decode(chunk.data)
        if (
            bytes(found.error).strip() not in NO_ERROR
            or "error" in (chunk.event, found.type)
            or any(choice.finish_reason == "error" for choice in chunk.choices)
        ):
            raise error_inside(chunk.data, _HEAD)

    def _bad(self, data: bytes, what: str) -> ProtocolError:
        text = f"an event of the stream {what}: {snippet(data)}"
        return ProtocolError(text, status_code=200, code="not_an_answer")

    def _end(self) -> None:
        """The stream says that it is over; then it must have said something before."""
        if self._request.path == RESPONSES:
            raise _truncated("the stream said [DONE] before the end of the response")
        if self._assembly.is_empty:
            raise nonsense(_HEAD, "is a stream without any choice")
        self._done = True

    def finish(self) -> list[Chunk]:
        if self._done:
            return []
        if self._whole is not None:
            return self._finish_whole(bytes(self._whole))
        if self._events.rest().strip() == b"[DONE]":  # its blank line was cut off
            self._end()
        elif not self._assembly.is_finished:
            raise _truncated("the stream ended before its terminator")
        self._done = True
        return []

    def _finish_whole(self, body: bytes) -> list[Chunk]:
        answer = HTTPResponse(status=200, body=body)
        reason, usage = judge(self._request.path, answer)
        whole = Response(body=body, path=self._request.path, usage=usage, finish_reason=reason)
        self._assembly.whole = whole
        self._done = True
        return chunks_of(whole, self._request)

    @property
    def done(self) -> bool:
        return self._done

    def response(self) -> Response:
        return self._assembly.response()

    def __repr__(self) -> str:
        return f"<OpenAIDecoder {'done' if self._done else 'reading'} {self._assembly!r}>"


def _is_utf8(data: bytes) -> bool:
    """The payload's decoder looks only into the strings it was asked for."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _truncated(text: str) -> TruncatedStreamError:
    return TruncatedStreamError(text, code="truncated_stream", status_code=200)
