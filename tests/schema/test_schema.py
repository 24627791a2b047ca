"""schema/base: a Schema of every kind of source, what it sends, what it lets through and what it says of the rest."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

from fastllm import ConfigError, Schema
from fastllm.schema.base import Misfit, is_schema


class Street(pydantic.BaseModel):
    name: str
    number: int


class Home(pydantic.BaseModel):
    town: str
    street: Street = pydantic.Field(description="where it stands")
    tags: list[str] = []

    @pydantic.field_validator("town")
    @classmethod
    def known(cls, town: str) -> str:
        if town == "Atlantis":
            raise ValueError("no such town")
        if town == "Babel":
            raise RuntimeError("a bug of the user's own")
        return town


class Node(msgspec.Struct):
    name: str
    children: list[Node] = []
    weight: float | None = None


@dataclasses.dataclass
class City:
    name: str
    people: int
    capital: bool = False


class Choice(msgspec.Struct):
    kind: Literal["a", "b"]


class Point(TypedDict):
    x: float
    y: float


CITY = {
    "title": "Big City",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "people": {"type": "integer", "minimum": 0}},
    "required": ["name", "people"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("source", "text", "value"),
    [
        (City, '{"name":"Rome","people":3}', City("Rome", 3)),
        (Node, '{"name":"a","children":[{"name":"b"}]}', Node("a", [Node("b")])),
        (Point, '{"x":1,"y":2.5}', {"x": 1.0, "y": 2.5}),
        (
            Home,
            '{"town":"Bonn","street":{"name":"Weg","number":2}}',
            Home(town="Bonn", street=Street(name="Weg", number=2)),
        ),
        (CITY, '{"name":"Rome","people":3}', {"name": "Rome", "people": 3}),
    ],
)
def test_every_kind_of_source_reads_its_own_values(source: Any, text: str, value: object) -> None:
    schema = Schema.of(source)
    assert schema.validate(text) == value
    assert schema.validate(f"Here you are:\n```json\n{text}\n```\nAnything else?") == value
    assert schema.validate(f"<think>a {{draft}}</think>\n{text}") == value


@pytest.mark.parametrize(
    ("source", "text", "words"),
    [
        (City, '{"name":"Rome","people":"many"}', r"Expected `int`, got `str` - at `\$.people`"),
        (City, '{"name":"Rome"}', "missing required field `people`"),
        (Choice, '{"kind":"many - at `$.kind`"}', r"^Invalid enum value - at `\$.kind`$"),
        (Home, '{"town":"Bonn","street":{"name":"Weg","number":"x"}}', r"at \$.street.number: Input should be a valid"),
        (Home, '{"town":"Atlantis","street":{"name":"a","number":1}}', r"at \$.town: Value error, no such town"),
        (Home, '{"town":"Babel","street":{"name":"a","number":1}}', "refused with a RuntimeError"),
        (CITY, '{"name":"Rome","people":-1}', r"at \$.people: the value is less than the minimum of 0"),
        (CITY, '{"name":"Rome, the eternal","people":1}', r"at \$.name: the value is longer than 10"),
        (CITY, "{}", r'at \$: "name" is a required property; at \$: "people" is'),
        (CITY, "", "empty"),
        (CITY, "  \n", "empty"),
        (CITY, "I cannot.", "not JSON"),
        (CITY, '{"name":"Rome","people":', "not JSON"),
        (CITY, '{"name":"a","people":1} or {"name":"b","people":2}', "no one JSON value"),
        (CITY, "[1]", "at \\$: the value is not of type"),
    ],
)
def test_a_misfit_says_where_and_what_was_expected_and_quotes_nothing(source: Any, text: str, words: str) -> None:
    with pytest.raises(Misfit, match=words) as caught:
        Schema.of(source).validate(text)
    for said in ("Atlantis", "Babel", "eternal", "I cannot", "many"):
        assert said not in str(caught.value)


def test_many_complaints_are_cut() -> None:
    names = [f"field{i}" for i in range(100)]
    with pytest.raises(Misfit, match="and 97 more"):
        Schema.of({"type": "object", "required": names}).validate("{}")
    with pytest.raises(Misfit) as caught:
        Schema.of({"type": "object", "required": ["x" * 2000]}).validate("{}")
    assert len(str(caught.value)) < 600


def test_what_is_sent_is_openais_strict_form_where_the_schema_allows() -> None:
    sent = Schema.of(City).response_format
    assert (sent["type"], sent["json_schema"]["name"], sent["json_schema"]["strict"]) == ("json_schema", "City", True)
    schema = sent["json_schema"]["schema"]
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert schema["required"] == ["name", "people", "capital"] and "$defs" not in schema and "$ref" not in schema
    assert "default" not in json.dumps(schema)
    assert Schema.of(CITY).response_format["json_schema"]["name"] == "Big_City"
    assert Schema.of(City).text_format == {"format": {"type": "json_schema", **sent["json_schema"]}}


def test_openais_own_form_is_taken_with_its_name_and_its_word_on_strictness() -> None:
    for strict in (True, False):
        form = {"type": "json_schema", "json_schema": {"name": "town", "strict": strict, "schema": CITY}}
        schema = Schema.of(form)
        assert schema.response_format == form
        with pytest.raises(Misfit):
            schema.validate("{}")


def test_a_json_schema_that_refers_to_its_definitions_is_sent_with_an_object_at_its_root() -> None:
    """And validated as it was written."""
    schema = Schema.of(
        {"$ref": "#/definitions/c", "$defs": {"city": CITY}, "definitions": {"c": {"$ref": "#/$defs/city"}}}
    )
    assert schema.response_format["json_schema"]["schema"]["type"] == "object"
    with pytest.raises(Misfit, match="required property"):
        schema.validate("{}")


def test_a_schema_is_made_once_for_a_type_and_keeps_what_it_sends_with_other_bounds() -> None:
    assert Schema.of(City) is Schema.of(City) is Schema.of(Schema.of(City))
    other = Schema.of(City, retries=5)
    assert (other.retries, Schema.of(City).retries) == (5, 2)
    assert other.response_format is Schema.of(City).response_format
    assert other.validate('{"name":"a","people":1}') == City("a", 1)
    assert repr(other) == "<Schema City>"


def test_a_file_is_read_and_what_is_wrong_with_it_named(tmp_path: Path) -> None:
    path = tmp_path / "city.json"
    path.write_text(json.dumps(CITY))
    assert Schema.of(path).name == Schema.of(str(path)).name == "Big_City"
    for content, words in (
        (b'{"type": ', "is not valid JSON"),
        (b"[1]", "must be an object"),
        (b'{"type": "objekt"}', r'is not a JSON schema: at \$.type: "objekt"'),
        (b'{"properties": {"a": 3}}', r"at \$.properties.a: 3"),
        (b'{"$ref": "http://127.0.0.1:9/x"}', "must point into the schema itself"),
        (b'{"$ref": "file:///etc/hostname"}', "must point into the schema itself"),
        (b'{"$schema": "http://127.0.0.1:9/x"}', "Unknown meta-schema"),
        (b'{"$ref": "#/$defs/nobody"}', "does not exist"),
        (b'{"type": "json_schema"}', "no schema under json_schema"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=words) as caught:
            Schema.of(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match=r"cannot read the schema .*: No such file"):
        Schema.of(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match=r"cannot read the schema .*: Is a directory"):
        Schema.of(tmp_path)


@pytest.mark.parametrize("source", [int, 3, None, ["a"], object, str, lambda: None])
def test_what_is_no_schema_is_refused_with_what_is(source: Any) -> None:
    with pytest.raises(ConfigError, match="must be a pydantic model, a msgspec Struct"):
        Schema.of(source)


def test_a_type_that_has_no_json_schema_is_named() -> None:
    class Bad(msgspec.Struct):
        file: Path

    with pytest.raises(ConfigError, match="no JSON schema can be made of Bad"):
        Schema.of(Bad)


@pytest.mark.parametrize("retries", [-1, 1.5, True, "2"])
def test_retries_are_a_whole_number(retries: Any) -> None:
    with pytest.raises(ConfigError, match="schema_retries must be a whole number of at least 0"):
        Schema.of(City, retries=retries)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"type": "json_schema", "json_schema": {}}, False),
        ({"type": "json_object"}, False),
        ({"type": "text"}, False),
        ({"type": "grammar", "grammar": "…"}, False),
        ({}, False),
        (None, False),
        (CITY, True),
        ({"type": ["object", "null"]}, True),
        ({"anyOf": [CITY]}, True),
        (City, True),
        ("schema.json", True),
    ],
)
def test_openais_own_forms_are_told_from_schemas(value: Any, expected: bool) -> None:
    assert is_schema(value) is expected


def test_types_need_neither_pydantic_nor_the_validator_of_json_schemas() -> None:
    """A plain JSON schema says which extra it needs."""
    code = (
        "import sys; sys.modules['jsonschema_rs'] = sys.modules['pydantic'] = None\n"
        "import dataclasses, fastllm\n"
        "@dataclasses.dataclass\n"
        "class A:\n"
        "    x: int\n"
        "assert fastllm.Schema.of(A).validate('{\"x\": 1}') == A(1)\n"
        "try: fastllm.Schema.of({'type': 'object'})\n"
        "except fastllm.MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'fastllm[schema]'" in done.stdout
