"""OpenAI's strict mode: which schemas it takes, and how they are written for it.

Strict mode wants every object closed (`additionalProperties: false`) and all its properties required, and knows some
keywords only. A schema is made narrower for it, never wider: what fits the strict form fits the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TAKEN = frozenset({
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs",
    "definitions", "title", "description", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "minItems", "maxItems",
})  # fmt: skip
_LEFT_OUT = frozenset({
    "default", "examples", "discriminator", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$comment",
})  # fmt: skip
_SCHEMAS = ("items",)
_LISTS = ("anyOf",)
_TABLES = ("properties", "$defs", "definitions")


class _NotStrict(Exception):
    """The schema says something that strict mode has no words for."""


def with_root(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give the schema with an object at its root: generators put a `$ref` there, which providers refuse."""
    root = dict(schema)
    for _ in range(len(root.get("$defs", ())) + 1):
        found = _target(root.get("$ref"), root)
        if found is None:
            return root
        name = root.pop("$ref")
        root = {**found, **root}
        defs = {key: value for key, value in root.get("$defs", {}).items() if name != f"#/$defs/{key}"}
        if name not in _refs({**root, "$defs": defs}):
            root["$defs"] = defs
            if not defs:
                del root["$defs"]
    return root


def strict_form(schema: Mapping[str, Any], *, complete: bool) -> dict[str, Any] | None:
    """Give the schema as strict mode wants it, None where that cannot be.

    `complete`: properties that may be left out are required too, as they may be for a type whose fields have defaults.
    """
    if schema.get("type") != "object" or "anyOf" in schema:
        return None
    try:
        return _closed(schema, schema, complete, ())
    except (_NotStrict, RecursionError):
        return None


def _closed(schema: Any, root: Mapping[str, Any], complete: bool, inside: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise _NotStrict
    given = {name: value for name, value in schema.items() if name not in _LEFT_OUT}
    if "oneOf" in given and "anyOf" not in given:
        given["anyOf"] = given.pop("oneOf")  # wider here; the answer is validated by the schema itself
    name = given.get("$ref")
    if name is not None and len(given) > 1 and schema is not root:  # strict mode takes no neighbours of a $ref
        found = None if name in inside else _target(name, root)
        if found is None:
            return {"$ref": name}
        rest = {key: value for key, value in given.items() if key != "$ref"}
        return _closed({**found, **rest}, root, complete, (*inside, name))
    if not given.keys() <= _TAKEN:
        raise _NotStrict
    made = dict(given)
    for key in _SCHEMAS:
        if key in made:
            made[key] = _closed(made[key], root, complete, inside)
    for key in _LISTS:
        if key in made:
            made[key] = [_closed(item, root, complete, inside) for item in made[key]]
    for key in _TABLES:
        if key in made:
            made[key] = {k: _closed(value, root, complete, inside) for k, value in made[key].items()}
    return _object(made, complete) if made.get("type") == "object" or "properties" in made else made


def _object(made: dict[str, Any], complete: bool) -> dict[str, Any]:
    names = list(made.get("properties", {}))
    if made.get("type") != "object" or not names or made.get("additionalProperties", False) is not False:
        raise _NotStrict
    if not complete and set(names) != set(made.get("required", ())):
        raise _NotStrict
    return {**made, "additionalProperties": False, "required": names}


def _refs(schema: Any) -> set[str]:
    """Give every `$ref` in a schema."""
    if isinstance(schema, Mapping):
        own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*map(_refs, schema.values()))
    return set().union(*map(_refs, schema)) if isinstance(schema, list) else set()


def _target(ref: Any, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give what a `$ref` into the schema's own definitions stands for."""
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return None
    found: Any = root
    for part in ref[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found if isinstance(found, Mapping) else None
