"""The vendors' own SDKs as judges: they and our client talk to one server, each in its dialect, and agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from fastllm import FastLLM, errors as e
from fastllm.testing import MockConfig, serve_in_thread

ASKED: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "Wie heißt 日本?"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig()) as running:
        yield running


@pytest.fixture
def ours(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FastLLM]:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.origin)
    with FastLLM() as made:
        yield made


@pytest.fixture
def theirs(server: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.origin, api_key="k", max_retries=0) as made:
        yield made


def test_a_whole_message(ours: FastLLM, theirs: anthropic.Anthropic) -> None:
    message = theirs.messages.create(max_tokens=50, **ASKED)
    answer = ours.chat.completions.create(**{**ASKED, "model": "anthropic/mock-model", "max_tokens": 50})
    (block,) = message.content
    assert block.type == "text"
    assert block.text == answer.text
    assert "日本" in answer.text
    assert message.stop_reason == "end_turn" and answer.finish_reason == "stop"
    assert answer.usage is not None
    assert (message.usage.input_tokens, message.usage.output_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )
    assert answer.id == message.id


def test_a_streamed_message(ours: FastLLM, theirs: anthropic.Anthropic) -> None:
    with theirs.messages.stream(max_tokens=50, **ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = ours.chat.completions.create(**{**ASKED, "model": "anthropic/mock-model", "max_tokens": 50})
    chunks = ours.chat.completions.create(**{**ASKED, "model": "anthropic/mock-model", "max_tokens": 50}, stream=True)
    assert "".join(chunk.delta for chunk in chunks) == text == whole.text
    assert whole.usage is not None
    assert final.usage.output_tokens == whole.usage.completion_tokens


def test_both_dialects_hear_one_question(ours: FastLLM, server: Any) -> None:
    """The mock's answer is a function of the request; the words that it repeats are the same."""
    with openai.OpenAI(base_url=server.base_url, api_key="k") as sdk:
        text = sdk.chat.completions.create(**ASKED).choices[0].message.content
    answers = [
        ours.chat.completions.create(**{**ASKED, "model": f"{name}/mock-model"}) for name in ("openai", "anthropic")
    ]
    assert answers[0].text == text
    assert all(answer.text.endswith("Wie heißt 日本?") for answer in answers)


@pytest.mark.parametrize(
    ("kind", "theirs_is", "ours_is"),
    [
        ("400", anthropic.BadRequestError, e.BadRequestError),
        ("401", anthropic.AuthenticationError, e.AuthenticationError),
        ("404", anthropic.NotFoundError, e.NotFoundError),
        ("429", anthropic.RateLimitError, e.RateLimitError),
        ("500", anthropic.InternalServerError, e.InternalServerError),
    ],
)
def test_errors(
    server: Any,
    theirs: anthropic.Anthropic,
    ours: FastLLM,
    kind: str,
    theirs_is: type[Exception],
    ours_is: type[Exception],
) -> None:
    server.script([kind])
    with pytest.raises(theirs_is):
        theirs.messages.create(max_tokens=50, **ASKED)
    server.script([kind])
    with pytest.raises(ours_is):
        ours.with_options(max_retries=0).chat.completions.create(**{**ASKED, "model": "anthropic/mock-model"})
