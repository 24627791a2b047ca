"""AnswerReader: bytes of one connection in, one answer at a time out, without I/O; llhttp does the parsing.

Its bounds hold for every input: so many bytes of head, of decoded body, and of anything else in a row.

What a PlainReader knows needs none of this.
"""

from __future__ import annotations

from typing import Any

import httptools

from ..errors import ProtocolError
from .decode import Decoder, decoder_for, too_large

MAX_INTERIM = 32  # 1xx answers before the real one
_CODINGS = frozenset({b"content-encoding", b"transfer-encoding"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class _Surplus(Exception):
    """Stops the parser at the first byte after an answer."""


class AnswerReader:
    """`feed` what was read, then look: `begun`, `status` (0 until the head is there), `chunks`, `complete`.

    `begun` means the final answer: one that interim (1xx) answers announce has yet to begin. `keep` says whether
    the connection may be used for a next answer, after `reset`. `fresh` is True as long as nothing was fed.
    """

    __slots__ = (
        "_codings", "_decoder", "_headers", "_max_body", "_max_head", "_name", "_not_body", "_parser",
        "_reading", "_seen", "begun", "chunks", "complete", "fresh", "head", "interim", "keep", "received", "status",
    )  # fmt: skip

    def __init__(self, name: str, max_head: int, max_body: int) -> None:
        self._name = name
        self._max_head = max_head
        self._max_body = max_body
        self._parser: Any = None  # made once it is needed, which most connections never do
        self._headers: list[tuple[bytes, bytes]] = []
        self._reading = 0
        self.head: list[tuple[bytes, bytes]] = []
        self.interim = 0  # 1xx answers so far
        self._codings: list[bytes] | None = None
        self._decoder: Decoder | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the answer; the parser stands at the beginning of the next one by itself."""
        if self._headers:
            self._headers = []  # trailers
        self.fresh = True
        self.begun = self.complete = self.keep = False
        self.chunks: list[bytes] = []
        # Bytes of body off the wire: all, and at the read before; bytes since the last that were body.
        self.status = self.received = self._seen = self._not_body = 0
        if self.interim:
            self.interim = 0
        if self._codings is not None:
            self._codings = self._decoder = None

    def close(self) -> None:
        """Let go of the parser, which refers back to us."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Raise ProtocolError at what is no answer. Bytes after an answer only forbid to `keep` the connection."""
        self._reading = len(data)
        self.fresh = False
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keep = False
            if not self.complete:
                raise self._garbled(error) from error
        if not self.complete:
            self._count()

    def end(self) -> bool:
        """The peer will send no more: the proper end of a body without a length (RFC 9112, 6.3)?"""
        if not self.status or self.keep or any(name in _FRAMING for name, _ in self.head):
            return False
        self.on_message_complete()
        return True

    def _count(self) -> None:
        """Heads, chunk extensions and trailers share one bound: so many bytes in a row that are not body."""
        if self.received != self._seen:
            self._seen = self.received
            self._not_body = 0
        else:
            self._not_body += self._reading
            if self._not_body > self._max_head:
                raise self._head_too_large()

    def _garbled(self, error: Exception) -> ProtocolError:
        ours = error.__context__
        if isinstance(ours, ProtocolError):
            return ours
        text = "a switch to another protocol" if isinstance(error, httptools.HttpParserUpgrade) else str(error)
        return ProtocolError(f"{self._name} does not answer in HTTP/1.1: {text}", code="not_http")

    # httptools calls these. What they raise comes back from feed_data as the context of an HttpParserError.

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Surplus
        self.begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._headers.append((name, value))
        if name in _CODINGS:
            self._note_coding(name, value)

    def _note_coding(self, name: bytes, value: bytes) -> None:
        if self.status:
            return  # a trailer
        if name == b"content-encoding":
            self._codings = [*(self._codings or ()), value]
        elif value.strip().lower() != b"chunked":
            raise ProtocolError("the answer has a transfer-encoding other than chunked", code="encoding")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._not_body + self._reading > self._max_head:
            self._weigh_head()
        if status < 200:
            self._skip_interim(status)
            return
        self.status = status
        self.head, self._headers = self._headers, []
        self.keep = self._parser.should_keep_alive()
        if self._codings is not None:
            self._decoder = decoder_for(self._codings, self._max_body)

    def _skip_interim(self, status: int) -> None:
        self.interim += 1
        self.begun = False
        if status < 100 or status == 101:
            raise ProtocolError(f"{self._name} answered with status {status}, which was not asked for", code="not_http")
        if self.interim > MAX_INTERIM:
            raise ProtocolError(f"{self._name} sent {self.interim} interim (1xx) answers", code="not_http")
        self._headers, self._codings = [], None

    def on_body(self, data: bytes) -> None:
        self.received += len(data)
        if self._decoder is not None:
            self.chunks.extend(self._decoder.feed(data))
        elif self.received > self._max_body:
            raise too_large(self._max_body)
        else:
            self.chunks.append(data)

    def on_message_complete(self) -> None:
        if self.status:
            if self._decoder is not None:
                self._decoder.finish()
            self.complete = True

    def _weigh_head(self) -> None:
        # Needed only where a single read was larger than the bound: it may hold body too.
        if sum(len(name) + len(value) + 4 for name, value in self._headers) > self._max_head:
            raise self._head_too_large()

    def _head_too_large(self) -> ProtocolError:
        return ProtocolError(f"more than {self._max_head} bytes of headers from {self._name}", code="head_too_large")
