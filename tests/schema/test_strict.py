"""schema/strict: a schema in the form of strict mode is narrower, never wider, or there is none."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, strategies as st

from fastllm.schema.strict import strict_form, with_root
from fastllm.testing.specimen import specimen

LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "enum": ["a", "b"]},
        {"type": "integer", "minimum": 3, "maximum": 9},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "boolean", "default": True},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        {"const": "x"},
    ]
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(fields: dict[str, Any], optional: int, closed: bool | None) -> dict[str, Any]:
        found = {"type": "object", "properties": fields, "required": sorted(fields)[optional:]}
        return found if closed is None else {**found, "additionalProperties": closed}

    fields = st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3)
    return st.builds(made, fields, st.integers(0, 2), st.sampled_from([None, False, True]))


SCHEMAS = objects(
    st.recursive(
        LEAVES,
        lambda inner: objects(inner) | st.builds(lambda item: {"type": "array", "items": item}, inner),
        max_leaves=6,
    )
)


@given(SCHEMAS, st.booleans())
def test_what_fits_the_strict_form_fits_the_schema(schema: dict[str, Any], complete: bool) -> None:
    strict = strict_form(schema, complete=complete)
    if strict is None:
        return
    value = specimen(strict, "word")
    jsonschema_rs.validate(strict, value)
    jsonschema_rs.validate(schema, value)
    closed(strict)


def closed(schema: Any) -> None:
    if schema.get("type") == "object":
        assert schema["additionalProperties"] is False and set(schema["required"]) == set(schema["properties"])
        for field in schema["properties"].values():
            closed(field)
    if "items" in schema:
        closed(schema["items"])


def test_properties_that_may_be_left_out_are_required_only_where_that_is_meant() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a"]}
    assert strict_form(schema, complete=False) is None
    found = strict_form(schema, complete=True)
    assert found is not None and found["required"] == ["a", "b"]


@pytest.mark.parametrize(
    "field",
    [
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object"},
        {"type": "array", "prefixItems": [{"type": "string"}]},
        {"type": "string", "minLength": 3},
        {"not": {"type": "string"}},
        {"allOf": [{"type": "string"}]},
        True,
    ],
)
def test_what_strict_mode_has_no_words_for_is_sent_as_it_is(field: Any) -> None:
    schema = {"type": "object", "properties": {"a": field}, "required": ["a"]}
    assert strict_form(schema, complete=True) is None


@pytest.mark.parametrize("schema", [{"type": "array", "items": {}}, {"anyOf": []}, {"type": "object", "anyOf": []}])
def test_the_root_must_be_an_object(schema: Any) -> None:
    assert strict_form(schema, complete=True) is None


def test_a_schema_within_itself_stays_one() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/N", "description": "the next"}, {"type": "null"}]}},
        "required": ["next"],
    }
    root = with_root({"$ref": "#/$defs/N", "$defs": {"N": node}})
    assert root["type"] == "object" and root["$defs"] == {"N": node}
    strict = strict_form(root, complete=True)
    assert strict is not None
    jsonschema_rs.validate(strict, {"next": {"next": {"next": None}}})
    assert not jsonschema_rs.is_valid(strict, {"next": {"next": None, "more": 1}})


def test_definitions_that_nobody_needs_are_left_out() -> None:
    leaf = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert with_root({"$ref": "#/$defs/Leaf", "$defs": {"Leaf": leaf}}) == leaf
    assert with_root({"$ref": "#/$defs/Nobody"}) == {"$ref": "#/$defs/Nobody"}
    loop = {"$ref": "#/$defs/L", "$defs": {"L": {"$ref": "#/$defs/L"}}}
    assert strict_form(with_root(loop), complete=True) is None
