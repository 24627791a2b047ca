"""Lines taken in bunches are those taken one by one, wherever a read ends."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from unittest.mock import patch

from hypothesis import given, settings, strategies as st

from fastllm.formats import files
from fastllm.formats.files import bunches, lines
from fastllm.formats.pipe import Pipe

CONTENT = st.lists(st.one_of(st.just(b"\n"), st.just(b"\r\n"), st.binary(max_size=12)), max_size=30).map(b"".join)


class OnlyRead:
    """A file with no `read1`, that gives less than was asked for."""

    def __init__(self, content: bytes, most: int) -> None:
        self._file = io.BytesIO(content)
        self._most = most

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._most))


def without_end(found: Iterator[bytes | None]) -> list[bytes | None]:
    return [None if line is None else line.removesuffix(b"\n") for line in found]


@settings(max_examples=300)
@given(content=CONTENT, size=st.integers(1, 20), most=st.integers(1, 30))
def test_they_are_the_same(content: bytes, size: int, most: int) -> None:
    expected = without_end(lines(io.BytesIO(content), most))
    with patch.object(files, "_BUNCH", size):
        assert [line for found in bunches(io.BytesIO(content), most) for line in found] == expected
    other = OnlyRead(content, size)
    assert [line for found in bunches(other, most) for line in found] == expected  # type: ignore[arg-type]


def test_what_a_pipe_holds_is_given_before_more_comes() -> None:
    out, into = os.pipe()
    with io.BufferedReader(Pipe(out), 1 << 20) as file:
        found = bunches(file)  # type: ignore[arg-type]
        os.write(into, b"one\ntwo\nthr")
        assert next(found) == [b"one", b"two"]
        os.write(into, b"ee\n")
        assert next(found) == [b"three"]
        os.close(into)
        assert next(found, None) is None


def test_a_line_without_end_is_not_held() -> None:
    """What is too long is skipped as it is read."""
    pieces = iter([b"a\n" + b"x" * 100] + [b"x" * 100] * 50 + [b"x\nb", b""])

    class Endless:
        def read(self, size: int) -> bytes:
            return next(pieces)

    assert [line for found in bunches(Endless(), 150) for line in found] == [b"a", None, b"b"]  # type: ignore[arg-type]
