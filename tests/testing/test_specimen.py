"""testing/specimen: the mock's answers fit the schema they are asked to fit, and misfit on demand."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from fastllm import FastLLM, InvalidAnswerError, Schema
from fastllm.testing import MockConfig, checksum_of, serve_in_thread
from fastllm.testing.specimen import specimen

NODE = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}, "required": ["a", "b"]},
        {"type": "string", "minLength": 9},
        {"type": "string", "maxLength": 2},
        {"type": "integer", "minimum": 5},
        {"type": "integer", "exclusiveMinimum": 5, "maximum": 6},
        {"type": "number", "maximum": -3},
        {"type": "number", "exclusiveMaximum": 0},
        {"type": "array", "items": {"type": "null"}, "minItems": 3},
        {"type": ["string", "null"]},
        {"enum": [3, 4]},
        {"const": {"a": 1}},
        {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        {"$ref": "#/$defs/N", "$defs": {"N": NODE}},
        {"properties": {"a": {"type": "integer"}}},
        {},
    ],
)
def test_a_specimen_fits_its_schema(schema: dict[str, Any]) -> None:
    jsonschema_rs.validate(schema, specimen(schema, "word"))


def test_the_mock_answers_by_the_schema_and_in_its_own_words_where_it_is_told_to() -> None:
    schema = Schema.of(
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
    )
    messages: Any = [{"role": "user", "content": "?"}]
    with serve_in_thread(MockConfig()) as server, FastLLM(base_url=server.base_url, api_key="k") as client:
        answer = client.chat.completions.parse(model="m", messages=messages, response_format=schema)
        asked = {"model": "m", "messages": messages, "response_format": schema.response_format}
        assert answer.parsed == {"a": checksum_of(asked)}
        assert client.responses.parse(model="m", input="?", text_format=schema).parsed["a"]
        server.script(["misfit"])
        again = client.chat.completions.parse(model="m", messages=messages, response_format=schema)
        assert again.attempts == 2 and "own words" in again.rejected[0].text
        server.script(["misfit"] * 2)
        with pytest.raises(InvalidAnswerError):
            client.chat.completions.parse(model="m", messages=messages, response_format=schema, schema_retries=1)
        server.script(["misfit"])  # a stream stays as it is
        stream = client.chat.completions.create(model="m", messages=messages, response_format=schema, stream=True)
        assert stream.final().text == answer.text
