"""providers/sse: the WHATWG rules at every split, in linear time and bounded memory (FAULTS 42-45)."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings, strategies as st

from fastllm.errors import ProtocolError
from fastllm.providers.sse import SSEDecoder
from fuzzing.standard import Events, reference


def decoded(*pieces: bytes) -> Events:
    decoder = SSEDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


PIECES = st.sampled_from(
    [
        b"data", b"event", b"id", b"retry", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"data: ", b"data:{}\n\n",
        b"x", b"\x00", b"\xe2\x80\xa8", b"\xff", b"\xef\xbb\xbf", b"\xef", "é".encode(), b": comment\n", b"event: e\n",
        b"data: {}\n\n", b"data: a\n\n", b"data\n\n", b"datax: 1\n", b"event\n", b"eventx\n", b"data:\n:\n\n",
        b"event: e\ndata: a\n\n", b"event: f\ndata: b\nx\n\n",
    ]
)  # fmt: skip
STREAMS = st.lists(PIECES, max_size=40).map(b"".join) | st.binary(max_size=60)


@pytest.mark.fault(42, 43)
@settings(max_examples=400)
@given(STREAMS, st.lists(st.integers(0, 200), max_size=8))
def test_the_standard_is_kept_at_any_split(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *[cut for cut in cuts if cut < len(data)]})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    expected = reference(data)
    assert decoded(data) == expected
    assert decoded(*pieces) == expected
    assert decoded(*[data[i : i + 1] for i in range(len(data))]) == expected


LARGE = b": so large that events are looked at together " + b"x" * 500 + b"\n\n"


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=8).map(b"".join), st.lists(STREAMS, max_size=3), st.integers(0, 3))
def test_the_standard_is_kept_in_large_reads(often: bytes, seldom: list[bytes], place: int) -> None:
    """What repeats is read all at once where it can be, and one by one where something else stands within it."""
    streams = [often * 100] * 3
    streams[place:place] = seldom
    for data in (b"".join(streams), LARGE + b"".join(streams), b"".join(seldom) + LARGE + b"".join(seldom)):
        expected = reference(data)
        assert decoded(data) == expected
        assert decoded(*[data[i : i + 700] for i in range(0, len(data), 700)]) == expected


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\n", [("", b"a")]),
        (b"data:a\n\n", [("", b"a")]),
        (b"data:  a\n\n", [("", b" a")]),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\r\n", [("", b"a"), ("", b"b"), ("", b"c")]),
        (b"data: a\ndata: b\ndata:\n\n", [("", b"a\nb\n")]),
        (b"data\n\n", [("", b"")]),
        (b"data\ndata\n\n", [("", b"\n")]),
        (b"event: x\n\ndata: a\n\n", [("", b"a")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [("x", b"a"), ("", b"b")]),
        (b"event\nevent: x\nevent\ndata: a\n\n", [("", b"a")]),
        (b": keep-alive\n\n:\n\n", []),
        (b"id: 1\nretry: 10\nunknown: x\ndata : x\nDATA: y\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [("", b"a")]),
        (b"data: \xe2\x80\xa8\xc2\x85\x0b\x0c\n\n", [("", b"\xe2\x80\xa8\xc2\x85\x0b\x0c")]),
        (b"data: a\x00b\n\n", [("", b"a\x00b")]),
        (b"data: \xff\xfe\n\n", [("", b"\xff\xfe")]),
        (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [("", b"a"), ("", b"b")]),
        (b"data: not ended\n", []),
        (b"data: not ended", []),
        (b"", []),
    ],
)
def test_each_rule_has_an_example(data: bytes, events: Events) -> None:
    assert decoded(data) == events == reference(data)
    for cut in range(len(data) + 1):
        assert decoded(data[:cut], b"", data[cut:]) == events


def test_a_cr_at_the_end_of_a_read_ends_its_line_at_once() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\r\r") == [("", b"a")]
    assert decoder.feed(b"\ndata: b\n\n") == [("", b"b")]


@pytest.mark.parametrize(
    ("data", "rest"),
    [(b"data: [DONE]", b"[DONE]"), (b"data: [DONE]\n", b"[DONE]"), (b"data: a\ndata: b", b"a\nb"), (b": x", b"")],
)
def test_what_the_end_cut_off_can_be_asked_for(data: bytes, rest: bytes) -> None:
    decoder = SSEDecoder()
    decoder.feed(data)
    assert decoder.rest() == rest
    assert repr(decoder).startswith("<SSEDecoder ")


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    "data",
    [b"data: " + b"x" * 2000, b": " + b"x" * 2000, b"data: x\n" * 1000, b"data: " + b"x" * 2000 + b"\n\n"],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_an_event_beyond_the_bound_is_an_error(data: bytes, size: int) -> None:
    decoder = SSEDecoder(most_bytes=1000)
    with pytest.raises(ProtocolError, match="larger than 1000 bytes"):
        for i in range(0, len(data), size):
            decoder.feed(data[i : i + size])


def test_many_events_in_one_read_are_not_one_large_event() -> None:
    assert len(SSEDecoder(most_bytes=1000).feed(b"data: x\n\n" * 1000)) == 1000


def seconds_for(size: int, feed: int, line: bytes) -> float:
    data = (line * (size // len(line) + 1))[:size]
    decoder = SSEDecoder()
    began = time.process_time()
    for i in range(0, size, feed):
        decoder.feed(data[i : i + feed])
    return time.process_time() - began


@pytest.mark.fault(44)
@pytest.mark.parametrize("line", [b"x", b"data: x\n", b"data: x\r\n"])
def test_an_endless_event_in_single_bytes_costs_linear_time(line: bytes) -> None:
    small = min(seconds_for(5_000, 1, line) for _ in range(3))
    large = min(seconds_for(40_000, 1, line) for _ in range(2))
    assert large < small * 8 * 4  # quadratic would be 64 times
