"""Local files as parts of a message: an image, a PDF or a sound in OpenAI's form, which every dialect translates.

What a file is, its first bytes decide and never its name: providers refuse a JPEG that is called PNG.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from .errors import ConfigError

MIB = 1 << 20
Detail = Literal["auto", "low", "high"]


class Kind(NamedTuple):
    """A type of file: how it is sent, and how large it may be unless the caller says otherwise."""

    part: Literal["image", "file", "audio"]
    name: str  # of the media type's second half; for sounds also the `format`
    most: int


# Bounds are the strictest of OpenAI's, Anthropic's and Gemini's for a file inside a request.
_IMAGE, _PDF, _AUDIO = 5 * MIB, 20 * MIB, 20 * MIB
_HEADS: tuple[tuple[Callable[[bytes], bool], Kind], ...] = (
    (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), Kind("image", "png", _IMAGE)),
    (lambda head: head.startswith(b"\xff\xd8\xff"), Kind("image", "jpeg", _IMAGE)),
    (lambda head: head.startswith((b"GIF87a", b"GIF89a")), Kind("image", "gif", _IMAGE)),
    (lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", Kind("image", "webp", _IMAGE)),
    (lambda head: b"%PDF-" in head, Kind("file", "pdf", _PDF)),  # within the first KiB, as readers have it
    (lambda head: head.startswith(b"RIFF") and head[8:12] == b"WAVE", Kind("audio", "wav", _AUDIO)),
    (lambda head: head.startswith(b"ID3") or _is_mpeg(head), Kind("audio", "mp3", _AUDIO)),
    (lambda head: head.startswith(b"fLaC"), Kind("audio", "flac", _AUDIO)),
    (lambda head: head.startswith(b"OggS"), Kind("audio", "ogg", _AUDIO)),
)
# What people have and no provider takes, with what to make of it.
_OTHERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"....ftyp(heic|heix|mif1|avif)", re.DOTALL), "a HEIC or AVIF image: save it as JPEG or PNG"),
    (re.compile(rb"....ftyp", re.DOTALL), "an MP4 file: save its sound as MP3 or WAV"),
    (re.compile(rb"BM|II\*\0|MM\0\*"), "a BMP or TIFF image: save it as PNG"),
    (re.compile(rb"\s*<(\?xml|svg)"), "XML or SVG: render it as PNG, or put its text into the prompt"),
    (re.compile(rb"PK\x03\x04"), "a ZIP file or an Office document: save it as PDF, or put its text into the prompt"),
)


@runtime_checkable
class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int = -1, /) -> bytes: ...


Source = str | os.PathLike[str] | bytes | Readable


def attach(
    source: Source, *, name: str | None = None, detail: Detail | None = None, most_bytes: int | None = None
) -> dict[str, Any]:
    """Make a part of a message's content from an image, a PDF or a sound: of a path, of bytes, or of an open file.

    PNG, JPEG, GIF and WebP become an `image_url` part, PDF a `file` part, WAV, MP3, FLAC and Ogg an `input_audio` part
    (OpenAI takes WAV and MP3). An http(s) address becomes an `image_url` part as it is, and nothing is fetched. `name`
    is a PDF's name as the model sees it, `detail` the resolution at which an image is looked at. `most_bytes` replaces
    the bounds of 5 MiB for an image and 20 MiB for all else, above which providers refuse requests.

    Raises ConfigError for what is none of these, too large or empty, and OSError where a file cannot be read.

        content = [{"type": "text", "text": "What is this?"}, attach("cat.png")]
    """
    _check(name, detail, most_bytes)
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return {"type": "image_url", "image_url": {"url": source, **({"detail": detail} if detail else {})}}
    data, shown, own_name = _read(source, most_bytes)
    kind = _kind(data, shown)
    most = kind.most if most_bytes is None else most_bytes
    if len(data) > most:
        remedy = {"image": "scale it down", "file": "split it", "audio": "cut or compress it"}[kind.part]
        raise ConfigError(
            f"{shown} is larger than {most / MIB:.3g} MiB: {remedy}, or give most_bytes=… if your provider takes more"
        )
    if detail is not None and kind.part != "image":
        raise ConfigError(f"detail is for images; {shown} is of type {kind.name}")
    encoded = base64.b64encode(data).decode()
    if kind.part == "image":
        image = {"url": f"data:image/{kind.name};base64,{encoded}"}
        return {"type": "image_url", "image_url": {**image, "detail": detail} if detail else image}
    if kind.part == "file":
        file = {"filename": name or own_name or "document.pdf", "file_data": f"data:application/pdf;base64,{encoded}"}
        return {"type": "file", "file": file}
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": kind.name}}


def _check(name: Any, detail: Any, most_bytes: Any) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"name must be a file's name, such as 'report.pdf', not {name!r}")
    if detail not in (None, "auto", "low", "high"):
        raise ConfigError(f"detail must be 'auto', 'low' or 'high', not {detail!r}")
    if most_bytes is not None and (isinstance(most_bytes, bool) or not isinstance(most_bytes, int) or most_bytes < 1):
        raise ConfigError(f"most_bytes must be a whole number of at least 1, not {most_bytes!r}")


def _read(source: Any, most_bytes: int | None) -> tuple[bytes, str, str | None]:
    """Give the bytes, a word for them in errors, and the file's name. Never more is read than the largest bound."""
    most = (max(kind.most for _, kind in _HEADS) if most_bytes is None else most_bytes) + 1
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "the data", None
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with path.open("rb") as file:
            return file.read(most), repr(str(path)), path.name
    if isinstance(source, Readable):
        data = source.read(most)
        if not isinstance(data, bytes):
            raise ConfigError(f"the file must be open for reading bytes, not {type(data).__name__}: open it with 'rb'")
        return data, "the file", None
    raise ConfigError(f"attach takes a path, bytes or an open file, not {type(source).__name__}")


def _kind(data: bytes, shown: str) -> Kind:
    if not data:
        raise ConfigError(f"{shown} is empty")
    head = data[:1024]
    for matches, kind in _HEADS:
        if matches(head):
            return kind
    known = "PNG, JPEG, GIF, WebP, PDF, WAV, MP3, FLAC or Ogg"
    for pattern, what in _OTHERS:
        if pattern.match(head):
            raise ConfigError(f"{shown} is {what}; what can be attached is {known}")
    hint = "; text goes into the prompt itself" if _is_text(head) else ""
    raise ConfigError(f"{shown} is none of {known}{hint}")


def _is_mpeg(head: bytes) -> bool:
    """Tell whether an MPEG audio frame begins here: eleven set bits, then a version, layer III and a bit rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4
    return version != 1 and layer == 1 and rate not in (0, 15)


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r" for byte in head)
