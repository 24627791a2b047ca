"""PlainReader: reads what nearly every answer is, a 200 whose JSON came whole in one read, over a connection to keep.

llhttp parses it, as it does for an AnswerReader, but nobody is told of the headers: they are taken apart when somebody
looks. All connections of a transport share one parser, which never stands in the middle of an answer: what is anything
else costs a new parser, and is read again by the connection's own AnswerReader.
"""

from __future__ import annotations

import re
from typing import Any, cast

import httptools

from ..types import HeaderLines, HTTPResponse

_BRACE = b"{"[0]
_ENCODED = re.compile(rb"\n(?i:content-encoding:|transfer-encoding:(?![ \t]*+chunked[ \t]*+\r))")


class PlainReader:
    """Reads the answers of one transport."""

    __slots__ = ("_begun", "_keep", "_max_body", "_max_head", "_parser", "_pieces", "on_body")

    def __init__(self, max_head: int, max_body: int) -> None:
        self._max_head = max_head
        self._max_body = max_body
        self._begun = 0
        self._keep = False  # one answer is whole, and its connection may be used again
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser: Any = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self._begun += 1

    def on_message_complete(self) -> None:
        self._keep = self._parser.should_keep_alive() and self._begun == 1

    def answer(self, data: bytes) -> HTTPResponse | None:
        """Give the one answer that these bytes are, no more and no less; None where they are anything else, or
        something to look at more closely."""
        pieces, parser = self._pieces, self._parser
        pieces.clear()
        self._begun = 0
        self._keep = False
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._parser = httptools.HttpResponseParser(self)
            return None
        if not self._keep or self._begun != 1:
            self._parser = httptools.HttpResponseParser(self)
            return None
        if parser.get_status_code() != 200 or not pieces:
            return None
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        size = len(body)
        if body[0] != _BRACE or size > self._max_body or len(data) - size > self._max_head:
            return None
        if _ENCODED.search(data, 0, len(data) - size):
            return None
        headers = cast(list[tuple[bytes, bytes]], HeaderLines(data, len(data) - size, headers_of))
        return HTTPResponse(status=200, headers=headers, body=body)

    def __repr__(self) -> str:
        return "<PlainReader>"


class _Headers:
    """Hears of an answer's headers, and of nothing else."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []
        self._whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._whole:
            self.found.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._whole = True  # what follows are trailers


def headers_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Take the headers of an answer apart that is known to be one."""
    headers = _Headers()
    httptools.HttpResponseParser(headers).feed_data(data)
    return headers.found
