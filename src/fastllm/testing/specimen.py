"""An answer for a JSON schema: the least value that fits it, with a given word wherever text may stand.

It heeds types, `enum`, `const`, `$ref`, the first of several ways, and the bounds of numbers, lengths and lists; what
else a schema may ask (`pattern`, `format`, `not`) it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST = 1_000_000_000
_DEEP = 8  # levels below which only what is required is there


def specimen(schema: Any, word: str, root: Any = None, depth: int = 0) -> Any:
    """Give the value."""
    if not isinstance(schema, Mapping):
        return None
    root = schema if root is None else root
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return specimen(_found(root, schema["$ref"]), word, root, depth + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        ways = schema.get(name)
        if ways:
            way = next((way for way in ways if depth >= _DEEP and way.get("type") == "null"), ways[0])
            return specimen(way, word, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else None)
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        required = schema.get("required", ())
        fields = schema.get("properties", {}).items()
        return {name: specimen(s, word, root, depth + 1) for name, s in fields if name in required or depth < _DEEP}
    if kind == "array":
        count = max(schema.get("minItems", 0), int(depth < _DEEP))
        return [specimen(schema.get("items", {}), word, root, depth + 1) for _ in range(count)]
    if kind == "string":
        return word[: schema.get("maxLength", len(word))].ljust(schema.get("minLength", 0), ".")
    return {"integer": _number(schema), "number": _number(schema), "boolean": True}.get(str(kind))


def _number(schema: Mapping[str, Any]) -> float | int:
    least = max(schema.get("minimum", -_MOST), schema.get("exclusiveMinimum", -_MOST - 1) + 1)
    most = min(schema.get("maximum", _MOST), schema.get("exclusiveMaximum", _MOST + 1) - 1)
    found: float | int = min(max(1, least), most)
    return found


def _found(root: Any, ref: str) -> Any:
    for part in ref.removeprefix("#/").split("/") if ref != "#" else ():
        root = root.get(part, {})
    return root
