"""Structured answers through the clients, against the mock: one call, many at once, batches, files, streams."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

import fastllm
from fastllm import AsyncFastLLM, FastLLM, InvalidAnswerError, ParsedResponse, RequestBatch, Schema
from fastllm.testing import MockConfig, serve_in_thread

ASKED: Any = [{"role": "user", "content": "Rome?"}]


@dataclasses.dataclass
class City:
    name: str
    people: int


class Model(pydantic.BaseModel):
    name: str
    people: int


class Struct(msgspec.Struct):
    name: str
    people: int


PLAIN = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name", "people"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig()) as running:
        yield running


@pytest.fixture
def client(server: Any) -> Iterator[FastLLM]:
    server.reset()
    with FastLLM(base_url=server.base_url, api_key="k") as made:
        yield made


@pytest.mark.parametrize("kind", [City, Model, Struct, PLAIN, Schema.of(City)])
def test_create_and_parse_take_every_kind_of_schema(client: FastLLM, kind: Any) -> None:
    one: Any = client.chat.completions.create(model="m", messages=ASKED, response_format=kind)
    two = client.chat.completions.parse(model="m", messages=ASKED, response_format=kind)
    assert one.parsed == two.parsed == two.choices[0].message.parsed
    if isinstance(kind, type):
        assert isinstance(one.parsed, kind)
    assert isinstance(one, ParsedResponse) and one.rejected == ()


async def test_the_async_client_does_the_same(server: Any) -> None:
    server.reset()
    async with AsyncFastLLM(base_url=server.base_url, api_key="k") as client:
        answer = await client.chat.completions.parse(model="m", messages=ASKED, response_format=City)
        assert answer.parsed.people == 1
        other = await client.responses.parse(model="m", input="Rome?", text_format=City)
        assert isinstance(other.parsed, City) and other.parsed.people == 1
        stream = await client.chat.completions.create(model="m", messages=ASKED, response_format=City, stream=True)
        found: Any = await stream.final()
        assert found.parsed == answer.parsed


def test_openais_own_form_is_passed_on_and_the_answer_not_looked_into(client: FastLLM, server: Any) -> None:
    form = Schema.of(City).response_format
    server.script(["misfit"])
    plain = client.chat.completions.create(model="m", messages=ASKED, response_format=form)
    assert not isinstance(plain, ParsedResponse) and "own words" in plain.text
    server.script(["misfit"])
    assert client.chat.completions.parse(model="m", messages=ASKED, response_format=form).attempts == 2
    with pytest.raises(fastllm.ConfigError, match="schema_retries is for a schema"):
        client.chat.completions.create(model="m", messages=ASKED, response_format=form, schema_retries=1)


def test_the_bound_is_the_callers(client: FastLLM, server: Any) -> None:
    for retries, asked in ((0, 1), (None, 3), (4, 5)):
        server.script(["misfit"] * 5)
        bound = {} if retries is None else {"schema_retries": retries}
        with pytest.raises(InvalidAnswerError) as caught:
            client.chat.completions.parse(model="m", messages=ASKED, response_format=City, **bound)
        assert caught.value.attempts == asked and "own words" in caught.value.response.text
        server.reset()
    assert client.stats.errors == {"InvalidAnswerError": 3} and client.stats.misfits == 9


def test_map_process_and_stream_give_values_beside_errors(client: FastLLM, server: Any) -> None:
    server.when(lambda body: body["messages"][0]["content"] == "3?", "misfit")
    found = client.map("{}?", range(5), model="m", response_format=City, schema_retries=1)
    assert [outcome.ok for outcome in found] == [True, True, True, False, True]
    assert all(isinstance(outcome.parsed, City) for outcome in found if outcome.ok)
    assert isinstance(found[3].error, InvalidAnswerError) and found[3].attempts == 2
    with pytest.raises(InvalidAnswerError):
        _ = found[3].parsed
    batch = RequestBatch()
    batch.chat.completions.create(model="m", messages=ASKED, response_format=Struct)
    batch.chat.completions.create(model="m", messages=ASKED)
    typed, plain = client.process(batch)
    assert isinstance(typed.parsed, Struct) and plain.parsed is None
    assert {type(outcome.parsed) for outcome in client.stream(batch)} == {Struct, type(None)}


def test_rows_of_a_map_that_say_their_own_format_keep_it(client: FastLLM) -> None:
    own = Schema.of(Struct)

    def ask(number: int) -> Any:
        if number == 0:
            return {"messages": ASKED, "response_format": {"type": "text"}}
        if number == 1:
            return fastllm.Request.of({"messages": ASKED, "response_format": own.response_format}, schema=own)
        return "Rome?"

    found = client.map(ask, range(3), model="m", response_format=City)
    assert [type(outcome.parsed) for outcome in found] == [type(None), Struct, City]


def test_a_file_is_answered_by_a_schema_and_what_does_not_fit_is_kept(
    client: FastLLM, server: Any, tmp_path: Path
) -> None:
    """The failures file has the answer that was paid for, and is an input: only the row itself is sent again."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"custom_id": f"c{i}", "messages": [{"role": "user", "content": str(i)}]} for i in range(4)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.when(lambda body: body["messages"][0]["content"] == "2", "misfit", times=2)
    result = client.run(source, output, model="m", schema=City, schema_retries=1)
    assert (result.ok, result.failed, result.may_pass) == (3, 1, True)
    assert result.failures is not None
    failure = json.loads(result.failures.read_text())
    assert failure["_error"]["class"] == "InvalidAnswerError" and failure["_error"]["attempts"] == 2
    assert "own words" in failure["_answer"]["choices"][0]["message"]["content"]
    with pytest.raises(fastllm.JobConflictError, match="differs in the schema"):
        client.run(source, output, model="m", schema=PLAIN)
    with pytest.raises(fastllm.JobConflictError, match="differs in the schema"):
        client.run(source, output, model="m")
    other = client.run(result.failures, tmp_path / "other.jsonl", model="m", schema=City)
    assert (other.ok, other.failed) == (1, 0)
    again = client.run(source, output, model="m", schema=City, schema_retries=5)
    assert (again.ok, again.skipped, again.failed, again.failures) == (4, 3, 0, None)
    lines = output.read_text().splitlines()
    texts = [json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
    assert all(City(**json.loads(text)).people == 1 for text in texts)


def test_a_message_with_a_value_goes_back_into_a_conversation_without_it(client: FastLLM) -> None:
    answer = client.chat.completions.parse(model="m", messages=ASKED, response_format=City)
    batch = RequestBatch()
    batch.chat.completions.create(model="m", messages=[*ASKED, answer.choices[0].message])
    sent = msgspec.json.decode(next(iter(batch)).body)["messages"][1]
    assert sent == {"role": "assistant", "content": answer.text}


def test_a_bad_schema_is_refused_before_anything_is_sent(client: FastLLM, server: Any) -> None:
    kinds: list[Any] = [{"type": "object", "properties": 3}, int, 7, "nowhere.json"]
    for kind in kinds:
        with pytest.raises(fastllm.ConfigError):
            client.chat.completions.create(model="m", messages=ASKED, response_format=kind)
    assert server.stats.requests == 0
