"""What each dialect can do, tried through the client: the table in docs/providers.md is made from these tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm import FastLLM, errors as e
from fastllm.testing import MockConfig, serve_in_thread
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"
CHAT = ("openai", "anthropic", "gemini")
DIALECTS = tuple(name + how for name in CHAT for how in ("", " (Responses)"))
CAPABILITIES = ("whole", "stream", "tools", "image", "schema", "reasoning", "embeddings", "errors")
NONE = {("anthropic", "embeddings"): "has none"}
USER: dict[str, Any] = {"role": "user", "content": "What is 6 times 7?"}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
TOOL = {"name": "times", "description": "Multiplies.", "parameters": SCHEMA}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig()) as running:
        yield running


class Dialect:
    """One dialect as a user sees it."""

    def __init__(self, name: str, client: FastLLM) -> None:
        self.name = name
        self.responses = name.endswith(" (Responses)")
        self.vendor = name.partition(" ")[0]
        self.client = client

    def ask(self, content: Any = USER["content"], **more: Any) -> Any:
        model = f"{self.vendor}/mock-model"
        if self.responses:
            return self.client.responses.create(model=model, input=[{"role": "user", "content": content}], **more)
        messages = [{"role": "user", "content": content}]
        return self.client.chat.completions.create(model=model, messages=messages, **more)


@pytest.fixture
def dialect(request: pytest.FixtureRequest, server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dialect]:
    for vendor, address in (("OPENAI", server.base_url), ("ANTHROPIC", server.origin), ("GEMINI", server.origin)):
        monkeypatch.setenv(f"{vendor}_API_KEY", "k")
        monkeypatch.setenv(f"{vendor}_BASE_URL", address)
    with FastLLM(max_retries=0, transport=getattr(request, "transport", None)) as client:
        yield Dialect(request.param, client)


def scripted(monkeypatch: pytest.MonkeyPatch, name: str, answer: dict[str, Any]) -> tuple[Dialect, list[HTTPRequest]]:
    """A dialect whose provider gives this answer, and what it is sent."""
    sent: list[HTTPRequest] = []

    def handler(http: HTTPRequest) -> HTTPResponse:
        sent.append(http)
        return HTTPResponse(status=200, body=msgspec.json.encode(answer))

    for vendor in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{vendor}_API_KEY", "k")
    return Dialect(name, FastLLM(max_retries=0, transport=ScriptedTransport(handler))), sent


each = pytest.mark.parametrize("dialect", DIALECTS, indirect=True)
by_name = pytest.mark.parametrize("name", DIALECTS)


@each
def test_whole(dialect: Dialect) -> None:
    answer = dialect.ask()
    assert answer.text.endswith(USER["content"]) and answer.finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens > 0 and answer.id


@each
def test_stream(dialect: Dialect) -> None:
    whole = dialect.ask()
    stream = dialect.ask(stream=True)
    text = "".join(chunk.delta for chunk in stream)
    assert text == whole.text == stream.response.text and stream.response.finish_reason == "stop"


def test_tools_are_called_and_results_go_back(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """See test_sdk_agreement.py for the rest: here, that all chat dialects read one call alike."""
    answers = {
        "openai": {
            "choices": [{"finish_reason": "tool_calls", "message": {"content": None, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "times", "arguments": '{"n":42}'}}]}}]
        },
        "openai (Responses)": {
            "status": "completed",
            "output": [{"type": "function_call", "call_id": "c", "name": "times", "arguments": '{"n":42}'}],
        },
        "anthropic": {
            "content": [{"type": "tool_use", "id": "c", "name": "times", "input": {"n": 42}}],
            "stop_reason": "tool_use",
        },
        "gemini": {
            "candidates": [
                {
                    "finishReason": "STOP",
                    "content": {"parts": [{"functionCall": {"id": "c", "name": "times", "args": {"n": 42}}}]},
                }
            ]
        },
    }  # fmt: skip
    for name in DIALECTS:
        dialect, sent = scripted(monkeypatch, name, answers.get(name) or answers[name.partition(" ")[0]])
        with dialect.client:
            tools: Any = (
                [{"type": "function", **TOOL}] if dialect.responses else [{"type": "function", "function": TOOL}]
            )
            found = dialect.ask(tools=tools)
            assert found.finish_reason == "tool_calls"
            if dialect.responses:
                arguments = found.to_dict()["output"][0]["arguments"]
            else:
                (call,) = found.choices[0].message.tool_calls
                assert call.function.name == "times" and call.id == "c"
                arguments = call.function.arguments
            assert msgspec.json.decode(arguments) == {"n": 42}
            assert b'"times"' in sent[0].body and b'"integer"' in sent[0].body


WHOLE_ANSWERS: dict[str, dict[str, Any]] = {
    "openai": {"choices": [{"finish_reason": "stop", "message": {"content": "42", "reasoning_content": "six sevens"}}]},
    "openai (Responses)": {
        "status": "completed",
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "six sevens"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "42"}]},
        ],
    },
    "anthropic": {
        "content": [{"type": "thinking", "thinking": "six sevens", "signature": "s"}, {"type": "text", "text": "42"}],
        "stop_reason": "end_turn",
    },
    "gemini": {
        "candidates": [
            {"finishReason": "STOP", "content": {"parts": [{"text": "six sevens", "thought": True}, {"text": "42"}]}}
        ]
    },
}  # fmt: skip


def whole_answer(name: str) -> dict[str, Any]:
    return WHOLE_ANSWERS.get(name) or WHOLE_ANSWERS[name.partition(" ")[0]]


@by_name
def test_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect, sent = scripted(monkeypatch, name, whole_answer(name))
    part: Any = {"type": "image_url", "image_url": {"url": PIXEL}}
    text: Any = {"type": "text", "text": "What is this?"}
    if dialect.responses:
        part, text = {"type": "input_image", "image_url": PIXEL}, {"type": "input_text", "text": "What is this?"}
    with dialect.client:
        assert dialect.ask([text, part]).text == "42"
    places: dict[str, Callable[[Any], Any]] = {
        "openai": lambda body: body["messages"][0]["content"][1]["image_url"]["url"],
        "openai (Responses)": lambda body: body["input"][0]["content"][1]["image_url"],
        "anthropic": lambda body: body["messages"][0]["content"][1]["source"]["data"],
        "gemini": lambda body: body["contents"][0]["parts"][1]["inlineData"]["data"],
    }
    place = places.get(name) or places[name.partition(" ")[0]]
    assert str(place(msgspec.json.decode(sent[0].body))).endswith("iVBORw0KGgo=")


class Answer(msgspec.Struct):
    n: int


@each
def test_schema(dialect: Dialect) -> None:
    found = dialect.ask(**({"text_format": Answer} if dialect.responses else {"response_format": Answer}))
    assert isinstance(found.parsed, Answer)


@by_name
def test_reasoning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect, sent = scripted(monkeypatch, name, whole_answer(name))
    effort: dict[str, Any] = {"reasoning": {"effort": "high"}} if dialect.responses else {"reasoning_effort": "high"}
    with dialect.client:
        answer = dialect.ask(**effort)
    assert answer.text == "42" and b'"high"' in sent[0].body
    thought = answer.to_dict()["output"][0]["summary"][0]["text"] if dialect.responses else None
    assert (thought or answer.choices[0].message.reasoning_content) == "six sevens"


@pytest.mark.parametrize("dialect", ["openai", "gemini", "anthropic"], indirect=True)
def test_embeddings(dialect: Dialect) -> None:
    ask = lambda: dialect.client.embeddings.create(model=f"{dialect.vendor}/mock-model", input=["a", "b"], dimensions=4)  # noqa: E731
    if (dialect.vendor, "embeddings") in NONE:
        with pytest.raises(e.InvalidRequestError, match="has no /embeddings: give it chat"):
            ask()
    else:
        assert [len(one.embedding) for one in ask().data] == [4, 4]


@each
def test_errors(dialect: Dialect, server: Any) -> None:
    for kind, expected in (
        ("401", e.AuthenticationError),
        ("429", e.RateLimitError),
        ("529", e.OverloadedError),
        ("html", e.ProtocolError),
    ):
        with FastLLM(max_retries=0) as client:
            server.script([kind])
            with pytest.raises(expected):
                Dialect(dialect.name, client).ask()
    server.script(["stream_truncated"])
    with pytest.raises(e.TruncatedStreamError):
        for _ in dialect.ask(stream=True):
            pass


def table() -> str:
    """The table that docs/providers.md shows."""
    lines = ["| dialect | " + " | ".join(CAPABILITIES) + " |", "|---" * (len(CAPABILITIES) + 1) + "|"]
    for name in DIALECTS:
        cells = [NONE.get((name, capability), "✓") for capability in CAPABILITIES]
        if name not in CHAT:
            cells[CAPABILITIES.index("embeddings")] = "–"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_table_is_what_these_tests_show() -> None:
    names = {name.removeprefix("test_").partition("_")[0] for name in globals() if name.startswith("test_")}
    assert set(CAPABILITIES) <= names, "each column has its test"
    assert table() in PAGE.read_text(), f"docs/providers.md should hold\n{table()}"
