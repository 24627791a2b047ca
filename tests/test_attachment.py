"""attach: what a file is, its bytes decide; every dialect takes what it makes."""

from __future__ import annotations

import base64
import io
import wave
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fastllm import ConfigError, FastLLM, attach
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.gemini import GeminiProvider
from fastllm.testing import MockConfig, serve_in_thread
from fastllm.types import Request, Target

MIB = 1 << 20


def png() -> bytes:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = (1).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(b"\x00\xff\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(b"\0\0" * 80)
    return file.getvalue()


IMAGES = {
    "png": png(),
    "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "gif": b"GIF89a\x01\x00\x01\x00",
    "webp": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
}
SOUNDS = {
    "wav": wav(),
    "mp3": b"ID3\x04\x00\x00\x00\x00\x00\x00",
    "flac": b"fLaC\x00\x00\x00\x22",
    "ogg": b"OggS\x00\x02",
}
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n"


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_is_what_its_bytes_say_whatever_it_is_called(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.tiff"
    path.write_bytes(IMAGES[kind])
    part = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{packed(IMAGES[kind])}"}}
    assert attach(path) == attach(str(path)) == attach(IMAGES[kind]) == attach(io.BytesIO(IMAGES[kind])) == part


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_sound_has_its_format_beside_it(kind: str) -> None:
    assert attach(SOUNDS[kind]) == {
        "type": "input_audio",
        "input_audio": {"data": packed(SOUNDS[kind]), "format": kind},
    }


def test_a_frame_of_mp3_needs_no_tag() -> None:
    assert attach(b"\xff\xfb\x90\x64" + bytes(400))["input_audio"]["format"] == "mp3"
    with pytest.raises(ConfigError):
        attach(b"\xff\xff\xff\xff" + bytes(400))


def test_a_pdf_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(PDF)
    data = f"data:application/pdf;base64,{packed(PDF)}"
    assert attach(path) == {"type": "file", "file": {"filename": "report.pdf", "file_data": data}}
    assert attach(PDF)["file"]["filename"] == "document.pdf"
    assert attach(path, name="a.pdf")["file"]["filename"] == "a.pdf"
    assert attach(b"\n\n" + PDF)["type"] == "file"


def test_an_address_goes_through_and_detail_beside_it() -> None:
    assert attach("https://example.org/cat.png", detail="low") == {
        "type": "image_url",
        "image_url": {"url": "https://example.org/cat.png", "detail": "low"},
    }
    assert attach(png(), detail="high")["image_url"]["detail"] == "high"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"just a note\n", "is none of PNG.*text goes into the prompt"),
        (b"\x00\x01\x02\x03" * 10, "is none of PNG"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "HEIC or AVIF image: save it as JPEG or PNG"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00", "MP4 file: save its sound"),
        (b"BM\x36\x00", "BMP or TIFF"),
        (b"<svg xmlns='x'/>", "SVG"),
        (b"PK\x03\x04\x14\x00", "Office document: save it as PDF"),
    ],
)
def test_what_no_provider_takes_is_named_with_the_way_out(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "thing.png"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=words) as caught:
        attach(path)
    assert "thing.png" in str(caught.value)


def test_sizes_are_bounded_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(png() + bytes(5 * MIB))
    with pytest.raises(ConfigError, match=r"larger than 5 MiB: scale it down"):
        attach(path)
    assert len(attach(path, most_bytes=6 * MIB)["image_url"]["url"]) > 6 * MIB
    with pytest.raises(ConfigError, match=r"split it"):
        attach(PDF + bytes(100), most_bytes=50)

    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1, /) -> bytes:
            assert size >= 0
            self.taken += size
            return PDF + bytes(size - len(PDF))

    endless = Endless()
    with pytest.raises(ConfigError, match=r"larger than 20 MiB"):
        attach(endless)
    assert endless.taken == 20 * MIB + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": 7}, "takes a path, bytes or an open file, not int"),
        ({"source": None}, "not NoneType"),
        ({"source": io.StringIO("text")}, "open it with 'rb'"),
        ({"source": png(), "detail": "much"}, "detail must be 'auto', 'low' or 'high', not 'much'"),
        ({"source": PDF, "detail": "low"}, "detail is for images"),
        ({"source": png(), "most_bytes": 0}, "most_bytes must be a whole number"),
        ({"source": PDF, "name": ""}, "name must be"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attach(**arguments)


def test_a_file_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        attach("/nowhere/cat.png")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_part_or_a_config_error(data: bytes) -> None:
    try:
        part = attach(data)
    except ConfigError:
        return
    assert part["type"] in ("image_url", "file", "input_audio")
    assert packed(data) in str(part)


def test_every_dialect_takes_what_it_makes() -> None:
    content = [{"type": "text", "text": "What is this?"}, attach(png()), attach(PDF, name="a.pdf")]
    request = Request.of({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": content}]})
    target = Target(base_url="http://x", model="m")
    anthropic = AnthropicProvider().encode(request, target).body.decode()
    assert packed(png()) in anthropic
    assert '"media_type":"image/png"' in anthropic
    assert packed(PDF) in anthropic
    heard = Request.of({"model": "m", "messages": [{"role": "user", "content": [*content, attach(wav())]}]})
    gemini = GeminiProvider().encode(heard, target).body.decode()
    assert all(packed(data) in gemini for data in (png(), PDF, wav()))
    assert '"audio/wav"' in gemini
    with serve_in_thread(MockConfig()) as server, FastLLM(base_url=server.base_url, api_key="k") as client:
        assert client.chat.completions.create(model="m", messages=[{"role": "user", "content": content}]).text
