"""The vendors' own SDKs as judges: they and our client talk to one server, each in its dialect, and agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import msgspec
import openai
import pytest
from google import genai
from google.genai import errors as google_errors, types

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
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    monkeypatch.setenv("GEMINI_BASE_URL", server.origin)
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


# All three: one question, one answer

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
SCHEMA |= {"required": ["city", "days"], "additionalProperties": False}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": SCHEMA}
VENDORS = ("openai", "anthropic", "gemini")


@pytest.fixture
def google(server: Any) -> genai.Client:
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url=server.origin))


@pytest.fixture
def sdk(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0) as made:
        yield made


def asked_of(vendor: str, **fields: Any) -> dict[str, Any]:
    more = {"max_tokens": 50} if vendor == "anthropic" else {}
    return {**ASKED, **more, "model": f"{vendor}/mock-model", **fields}


def test_gemini_whole_and_streamed(ours: FastLLM, google: genai.Client) -> None:
    theirs = google.models.generate_content(model="mock-model", contents=ASKED["messages"][0]["content"])
    answer = ours.chat.completions.create(**asked_of("gemini"))
    assert theirs.text == answer.text and "日本" in answer.text
    assert theirs.candidates and theirs.candidates[0].finish_reason == types.FinishReason.STOP
    assert answer.finish_reason == "stop" and answer.id == theirs.response_id
    counted, usage = theirs.usage_metadata, answer.usage
    assert counted is not None and usage is not None
    assert (counted.prompt_token_count, counted.candidates_token_count, counted.total_token_count) == (
        usage.prompt_tokens, usage.completion_tokens, usage.total_tokens,
    )  # fmt: skip
    pieces = google.models.generate_content_stream(model="mock-model", contents=ASKED["messages"][0]["content"])
    chunks = ours.chat.completions.create(**asked_of("gemini"), stream=True)
    assert "".join(piece.text or "" for piece in pieces) == answer.text == "".join(chunk.delta for chunk in chunks)


def test_a_tool_call(ours: FastLLM, theirs: anthropic.Anthropic, google: genai.Client, sdk: openai.OpenAI) -> None:
    """Each SDK gets the call in its own words, our client in one, with arguments that fit, whole and streamed."""
    tools: Any = [{"type": "function", "function": FUNCTION}]
    called = sdk.chat.completions.create(**ASKED, tools=tools, tool_choice="required").choices[0].message.tool_calls
    assert called and called[0].type == "function"
    given = [(called[0].function.name, msgspec.json.decode(called[0].function.arguments))]
    message = theirs.messages.create(
        max_tokens=50, **ASKED, tool_choice={"type": "any"},
        tools=[{"name": "weather", "description": "The weather.", "input_schema": SCHEMA}],
    )  # fmt: skip
    (block,) = message.content
    assert block.type == "tool_use" and message.stop_reason == "tool_use"
    given.append((block.name, block.input))
    declared = types.FunctionDeclaration(name="weather", description="The weather.", parameters_json_schema=SCHEMA)
    calling = types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(function_calling_config=calling),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    answer = google.models.generate_content(model="mock-model", contents="Wie heißt 日本?", config=config)
    assert answer.function_calls
    given.append((answer.function_calls[0].name, answer.function_calls[0].args))
    for vendor in VENDORS:
        whole = ours.chat.completions.create(**asked_of(vendor, tools=tools, tool_choice="required"))
        stream = ours.chat.completions.create(**asked_of(vendor, tools=tools, tool_choice="required"), stream=True)
        for _ in stream:
            pass
        for response in (whole, stream.response):
            (call,) = response.choices[0].message.tool_calls or ()
            assert call.function is not None and call.id and response.finish_reason == "tool_calls"
            given.append((call.function.name, msgspec.json.decode(call.function.arguments or "")))
    for name, arguments in given:
        assert name == "weather" and arguments.keys() == {"city", "days"}
        assert isinstance(arguments["city"], str) and isinstance(arguments["days"], int)


def test_a_tools_result_goes_back(ours: FastLLM, server: Any) -> None:
    """The whole conversation, in each dialect: the answer is to what the user said, not to the tool."""
    for vendor in VENDORS:
        tools: Any = [{"type": "function", "function": FUNCTION}]
        first = ours.chat.completions.create(**asked_of(vendor, tools=tools, tool_choice="required"))
        message = first.to_dict()["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": '{"degrees": 3}'}
        messages = [*ASKED["messages"], message, result]
        answer = ours.chat.completions.create(**asked_of(vendor, messages=messages, tools=tools))
        assert answer.text.endswith("Wie heißt 日本?") and answer.finish_reason == "stop"


def test_an_answer_that_fits_a_schema(
    ours: FastLLM, theirs: anthropic.Anthropic, google: genai.Client, sdk: openai.OpenAI
) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    texts = [sdk.chat.completions.create(**ASKED, response_format=shape).choices[0].message.content]
    config = types.GenerateContentConfig(response_mime_type="application/json", response_json_schema=SCHEMA)
    texts.append(google.models.generate_content(model="mock-model", contents="Wie?", config=config).text)
    output: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    (block,) = theirs.messages.create(max_tokens=50, **ASKED, extra_body={"output_config": output}).content
    assert block.type == "text"
    texts.append(block.text)
    texts += [ours.chat.completions.create(**asked_of(vendor, response_format=shape)).text for vendor in VENDORS]
    for text in texts:
        assert msgspec.json.decode(text or "").keys() == {"city", "days"}


def test_embeddings(ours: FastLLM, google: genai.Client, sdk: openai.OpenAI) -> None:
    inputs = ["eins", "zwei"]
    plain = sdk.embeddings.create(model="mock-model", input=inputs, encoding_format="float", dimensions=8)
    own = ours.embeddings.create(model="openai/mock-model", input=inputs, encoding_format="float", dimensions=8)
    assert [one.embedding for one in plain.data] == [one.embedding for one in own.data]
    sized = types.EmbedContentConfig(output_dimensionality=8)
    theirs = google.models.embed_content(model="mock-model", contents=inputs, config=sized)
    again = ours.embeddings.create(model="gemini/mock-model", input=inputs, dimensions=8)
    assert [one.values for one in theirs.embeddings or ()] == [one.embedding for one in again.data]
    assert [len(one.embedding) for one in again.data] == [8, 8] and [one.index for one in again.data] == [0, 1]


@pytest.mark.parametrize(
    ("kind", "google_is", "ours_is"),
    [
        ("400", google_errors.ClientError, e.BadRequestError),
        ("401", google_errors.ClientError, e.AuthenticationError),
        ("404", google_errors.ClientError, e.NotFoundError),
        ("429", google_errors.ClientError, e.RateLimitError),
        ("500", google_errors.ServerError, e.InternalServerError),
        ("stream_truncated", None, e.TruncatedStreamError),
    ],
)
def test_geminis_errors(
    server: Any,
    google: genai.Client,
    ours: FastLLM,
    kind: str,
    google_is: type[google_errors.APIError] | None,
    ours_is: type[Exception],
) -> None:
    if google_is is not None:
        server.script([kind])
        with pytest.raises(google_is) as caught:
            google.models.generate_content(model="mock-model", contents="x")
        assert caught.value.code == int(kind)
    server.script([kind])
    with pytest.raises(ours_is):
        asked = ours.with_options(max_retries=0).chat.completions
        if google_is is None:
            for _ in asked.create(**asked_of("gemini"), stream=True):
                pass
        else:
            asked.create(**asked_of("gemini"))
