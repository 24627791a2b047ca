"""What the PlainReader takes for an answer, llhttp takes for the same; what could be anything else, it leaves alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from fastllm.errors import ProtocolError
from fastllm.providers.openai_answer import request_id_of
from fastllm.transport.answer import AnswerReader
from fastllm.transport.plain import PlainReader
from fastllm.types import HTTPResponse

HEAD = b"HTTP/1.1 200 OK\r\nDate: today\r\n"
BODY = b'{"choices": []}'
PLAIN = HEAD + b"content-length: 15\r\n\r\n" + BODY


def by_parser(data: bytes) -> HTTPResponse | None:
    """Give the one answer over a connection to keep that llhttp finds in the bytes."""
    reader = AnswerReader("http://test", 65536, 10_000)
    try:
        reader.feed(data)
    except ProtocolError:
        return None
    if not reader.complete or not reader.keep:
        return None
    return HTTPResponse(status=reader.status, headers=reader.head, body=b"".join(reader.chunks))


def test_a_plain_answer_is_read_without_a_parser() -> None:
    found = PlainReader(65536, 10_000).answer(PLAIN)
    assert found is not None
    assert (found.status, found.body) == (200, BODY)
    assert found.headers == [(b"date", b"today"), (b"content-length", b"15")]
    assert found.headers == PlainReader(65536, 10_000).answer(PLAIN).headers  # type: ignore[union-attr]
    assert found.header("date") == "today" and found.header("x-none") is None
    assert found.headers[0] == (b"date", b"today") and len(found.headers) == 2


@pytest.mark.parametrize(
    "data",
    {
        "surplus": PLAIN + b"H",
        "half a body": PLAIN[:-1],
        "half a head": HEAD,
        "no header at all": b"HTTP/1.1 200 OK\r\n\r\n",
        "no length": HEAD + b"\r\n" + BODY,
        "two lengths": HEAD + b"content-length: 15\r\ncontent-length: 15\r\n\r\n" + BODY,
        "two lengths that differ in case": HEAD + b"content-length: 15\r\nContent-Length: 15\r\n\r\n" + BODY,
        "a length that is no number": HEAD + b"content-length: 1_5\r\n\r\n" + BODY,
        "a length with a sign": HEAD + b"content-length: +15\r\n\r\n" + BODY,
        "a length in digits that are not ASCII's": HEAD + "content-length: ¹5\r\n\r\n".encode() + BODY,
        "a space before the colon": HEAD + b"content-length : 15\r\n\r\n" + BODY,
        "a length and chunks": HEAD + b"content-length: 15\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
        "encoded": HEAD + b"content-length: 15\r\nContent-Encoding: gzip\r\n\r\n" + BODY,
        "to be closed": HEAD + b"content-length: 15\r\nConnection: close\r\n\r\n" + BODY,
        "another status": PLAIN.replace(b"200 OK", b"429 Too Many Requests"),
        "an older version": PLAIN.replace(b"1.1", b"1.0"),
        "a folded line": HEAD + b" more\r\ncontent-length: 15\r\n\r\n" + BODY,
        "a bare line feed": HEAD + b"a: b\ncontent-length: 15\r\ncontent-length: 15\r\n\r\n" + BODY,
        "a bare carriage return": HEAD + b"a: b\rc\r\ncontent-length: 15\r\n\r\n" + BODY,
        "no JSON": HEAD + b"content-length: 15\r\n\r\n" + BODY.replace(b"{", b"["),
        "a zero": HEAD + b"a: b\0c\r\ncontent-length: 15\r\n\r\n" + BODY,
        "no colon": HEAD + b"nocolon\r\ncontent-length: 15\r\n\r\n" + BODY,
        "no name": HEAD + b": b\r\ncontent-length: 15\r\n\r\n" + BODY,
        "the status twice": HEAD + b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n" + BODY,
        "not HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
        "nothing": b"",
    }.items(),
    ids=lambda item: item[0],
)
def test_what_may_be_anything_else_is_left_to_the_parser(data: tuple[str, bytes]) -> None:
    reader = PlainReader(65536, 10_000)
    for _ in range(2):  # nor once its lines are known
        assert reader.answer(data[1]) is None
        assert reader.answer(PLAIN) is not None


def test_bounds_hold() -> None:
    assert PlainReader(20, 10_000).answer(PLAIN) is None
    assert PlainReader(65536, 14).answer(PLAIN) is None


_names = st.sampled_from(
    ["Date", "x-request-id", "X-Request-ID", "request-id", "Content-Length", "content-length", "Connection", "upgrade",
     "connection", "transfer-encoding", "content-encoding", "Keep-Alive", "a b", "content-length ", "é", "", "x"]
)  # fmt: skip
_values = st.one_of(
    st.sampled_from(
        ["15", " 15", "15 ", "015", "16", "keep-alive", "Keep-Alive ", "close", "gzip", "chunked", "", "\t"]
    ),
    st.text(st.characters(max_codepoint=255), max_size=6),
)
_ends = st.sampled_from(["\r\n"] * 12 + ["\n", "\r"])
_heads = st.lists(st.tuples(_names, st.sampled_from([":", ": ", ":  ", ""]), _values, _ends), max_size=6)


@given(heads=_heads, body=st.sampled_from([BODY, BODY[:-1], BODY + b"x"]))
@settings(max_examples=1500)
def test_it_says_what_llhttp_says(heads: list[tuple[str, str, str, str]], body: bytes) -> None:
    reader = PlainReader(65536, 10_000)
    lines = "".join("".join(parts) for parts in heads).encode("latin-1")
    for data in (b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n" + body, HEAD + lines + b"content-length: 15\r\n\r\n" + body):
        for _ in range(2):
            found = reader.answer(data)
            if found is not None:
                wanted = by_parser(data)
                assert wanted is not None
                assert (found.status, found.body) == (wanted.status, wanted.body)
                assert wanted.headers == list(found.headers)
                assert request_id_of(found) == request_id_of(wanted)
