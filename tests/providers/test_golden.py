"""Golden files of Anthropic's and Gemini's dialects, after what their documentation publishes: NAME.asked.json is our
request, sent.json what goes out, answer.json and stream.sse what comes back, completion.json what it becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm import errors as e
from fastllm.providers.anthropic import AnthropicProvider
from fastllm.providers.anthropic_answer import to_message
from fastllm.providers.anthropic_reverse import from_messages
from fastllm.providers.base import Provider
from fastllm.providers.gemini import GeminiProvider
from fastllm.providers.gemini_answer import to_answer
from fastllm.providers.gemini_reverse import from_gemini
from fastllm.types import Chunk, HTTPResponse, Request, Response, Target
from kits.streams import without_nulls

GOLDEN = Path(__file__).parent / "golden"
PROVIDERS: dict[str, Provider] = {"anthropic": AnthropicProvider(), "gemini": GeminiProvider()}
REQUEST_BACK: dict[str, Callable[[Any], dict[str, Any]]] = {
    "anthropic": from_messages,
    "gemini": lambda body: from_gemini(body, "gemini-test-1"),
}
ANSWER_BACK: dict[str, Callable[[Any], dict[str, Any]]] = {"anthropic": to_message, "gemini": to_answer}
CASES = sorted((path.parent.name, path.name.split(".")[0]) for path in GOLDEN.glob("*/*.asked.json"))


class Case:
    def __init__(self, dialect: str, name: str) -> None:
        self.provider = PROVIDERS[dialect]
        self._at = GOLDEN / dialect / name
        self.request = Request.of(self.read("asked"))
        self.stream = Path(f"{self._at}.stream.sse").read_bytes()

    def read(self, what: str) -> dict[str, Any]:
        return msgspec.json.decode(Path(f"{self._at}.{what}.json").read_bytes(), type=dict[str, Any])

    def sent(self, request: Request) -> Any:
        target = Target(base_url="https://host.example", model=request.model)
        return msgspec.json.decode(self.provider.encode(request, target).body)

    def streamed(self, *pieces: bytes) -> tuple[list[Chunk], Response]:
        decoder = self.provider.decoder(self.request)
        chunks = [chunk for piece in pieces for chunk in decoder.feed(piece)]
        return chunks + decoder.finish(), decoder.response()


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def test_there_are_files_for_what_the_dialects_can() -> None:
    names = {dialect: {name for other, name in CASES if other == dialect} for dialect in PROVIDERS}
    wanted = {"chat", "tools", "results", "thinking", "documents", "schema"}
    assert names["anthropic"] >= wanted | {"refusal"}
    assert names["gemini"] >= wanted | {"safety"}


def test_the_request_goes_out_as_it_is_documented(case: Case) -> None:
    assert case.sent(case.request) == case.read("sent")


def test_the_whole_answer(case: Case) -> None:
    answer = HTTPResponse(status=200, body=msgspec.json.encode(case.read("answer")))
    assert case.provider.decode(case.request, answer).to_dict() == case.read("completion")


def test_the_stream_is_the_whole_answer_at_every_split(case: Case) -> None:
    chunks, response = case.streamed(case.stream)
    assert without_nulls(response.to_dict()) == without_nulls(case.read("completion"))
    data = [chunk.data for chunk in chunks]
    for cut in range(1, len(case.stream)):
        pieces, again = case.streamed(case.stream[:cut], case.stream[cut:])
        assert [chunk.data for chunk in pieces] == data
        assert again.body == response.body
    pieces, again = case.streamed(*[case.stream[i : i + 1] for i in range(len(case.stream))])
    assert [chunk.data for chunk in pieces] == data
    assert again.body == response.body


def test_a_stream_that_breaks_off_is_truncated(case: Case) -> None:
    """The last event is the end in both dialects."""
    for cut in range(case.stream.rstrip().rfind(b"\n\n")):
        decoder = case.provider.decoder(case.request)
        decoder.feed(case.stream[:cut])
        with pytest.raises(e.TruncatedStreamError):
            decoder.finish()


@pytest.mark.parametrize(("dialect", "name"), CASES)
def test_the_other_way_round_nothing_is_lost(dialect: str, name: str) -> None:
    """A client's request in the dialect goes out again as it came, and the answer is what the provider gave."""
    case = Case(dialect, name)
    sent = case.read("sent")
    assert case.sent(Request.of(REQUEST_BACK[dialect](sent))) == sent
    given, back = case.read("answer"), ANSWER_BACK[dialect](case.read("completion"))
    if dialect == "anthropic":
        assert back == given
    else:
        assert back["usageMetadata"] == given["usageMetadata"]
        theirs, ours = given["candidates"][0], back["candidates"][0]
        assert ours["content"] == theirs["content"]
        assert ours["finishReason"] == theirs["finishReason"]
