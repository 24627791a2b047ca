"""Multipart: a form with one file, of any size up to its bound, read from a request straight onto the disk.

Names of files are told and never used. Everything is bounded: the file, the other fields, the heads of the parts, and
the time in which nothing comes.
"""

from __future__ import annotations

import asyncio
from typing import BinaryIO

import msgspec

from ..errors import MissingExtra
from .exchange import GONE, Exchange, Receive
from .faces import Refusal

try:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header
except ImportError:
    raise MissingExtra("the gateway's files need python-multipart: pip install 'fastllm[gateway]'") from None

MOST_FIELDS = 64 * 1024  # bytes of all fields beside the file
MOST_PARTS = 32
MOST_NAME = 255  # characters
WRITTEN_AT_ONCE = 1024 * 1024  # bytes


class Form(msgspec.Struct):
    """What was sent: the fields by their names, and the file's name and size."""

    fields: dict[str, str]
    name: str
    size: int


class _Reading:
    """What the parser calls; it must not wait, so it gathers."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.fields: dict[str, bytearray] = {}
        self.name: str | None = None
        self.size = 0
        self.pieces: list[bytes] = []
        self.gathered = 0
        self.whole = False
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._target: bytearray | None = None  # None: the file
        self._parts = 0
        self._field_bytes = 0

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise _bad(f"the form has more than {MOST_PARTS} parts")
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field == "file" and b"filename" in options:
            if self.name is not None:
                raise _bad("the form has two files")
            self.name = options[b"filename"].decode("utf-8", "replace")
            self._target = None
            return
        if field in self.fields:
            raise _bad(f"the form has {field[:50]!r} twice")
        self._target = self.fields[field] = bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._target is not None:
            self._field_bytes += end - start
            if self._field_bytes > MOST_FIELDS:
                raise _bad(f"the form's fields have more than {MOST_FIELDS} bytes")
            self._target += data[start:end]
            return
        self.size += end - start
        if self.size > self.most_bytes:
            raise too_large(self.most_bytes)
        self.pieces.append(data[start:end])
        self.gathered += end - start

    def on_end(self) -> None:
        self.whole = True

    def taken(self) -> bytes:
        """Give what is to be written."""
        data = b"".join(self.pieces)
        self.pieces.clear()
        self.gathered = 0
        return data


async def read_form(exchange: Exchange, receive: Receive, file: BinaryIO, most_bytes: int) -> Form:
    """Read a form, whose file goes into `file`. Refusal where it is none, too large or too slow."""
    content_type = next((value for name, value in exchange.scope["headers"] if name == b"content-type"), b"")
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise Refusal(415, "send a form: content-type multipart/form-data, with a part `file`", close=True)
    length = exchange.headers.get("content_length", b"")
    if length.isdigit() and int(length[:20]) > most_bytes + MOST_FIELDS + WRITTEN_AT_ONCE:
        await exchange.discard()
        raise too_large(most_bytes)
    reading = _Reading(most_bytes)
    calls = {name: getattr(reading, name) for name in dir(reading) if name.startswith("on_")}
    more = True
    try:
        parser = MultipartParser(boundary, calls)  # type: ignore[arg-type]
        while more:
            data, more = await _next(receive, exchange.options.body_seconds)
            parser.write(data)
            if reading.gathered >= WRITTEN_AT_ONCE:
                await asyncio.to_thread(file.write, reading.taken())
        parser.finalize()
    except Refusal as refusal:
        if more and refusal.status == 413:
            await exchange.discard()
        raise
    except FormParserError:
        raise _bad("the body is no valid multipart form") from None
    if not reading.whole:
        raise _bad("the form breaks off before its end")
    if reading.name is None:
        raise Refusal(400, "the form has no file: send it as the part `file`", param="file", close=True)
    await asyncio.to_thread(file.write, reading.taken())
    fields = {name: value.decode("utf-8", "replace") for name, value in reading.fields.items()}
    return Form(fields=fields, name=_shown(reading.name), size=reading.size)


async def _next(receive: Receive, seconds: float) -> tuple[bytes, bool]:
    """Give the next bytes of a body, and whether more of them may come."""
    try:
        async with asyncio.timeout(seconds):
            message = await receive()
    except TimeoutError:
        text = f"nothing more of the body came within {seconds:g} s"
        raise Refusal(408, text, code="body_timeout", close=True) from None
    if message["type"] == "http.disconnect":
        raise Refusal(GONE, "the client went away", code="client_closed")
    return message.get("body", b""), bool(message.get("more_body"))


def _shown(name: str) -> str:
    """Give a file's name as it may be told: one line, without a directory."""
    name = name.replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in name if c.isprintable())[:MOST_NAME] or "file"


def too_large(most_bytes: int) -> Refusal:
    return Refusal(413, f"the file is larger than {most_bytes} bytes", code="file_too_large", param="file", close=True)


def _bad(text: str) -> Refusal:
    return Refusal(400, text, code="invalid_form", close=True)
