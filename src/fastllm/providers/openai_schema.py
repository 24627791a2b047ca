"""For servers that take no JSON schema: the schema is told in words, and JSON alone is asked for where that is known.

Only requests with a `schema` are rewritten. A `response_format` that the caller wrote goes out as it is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from ..errors import InvalidRequestError
from ..schema.base import Schema
from ..types import RESPONSES, Request, Schemas

_JSON_OBJECT = {"type": "json_object"}


class _Asked(msgspec.Struct):
    messages: list[dict[str, Any]] = []
    instructions: str | None = None


_asked = msgspec.json.Decoder(_Asked)


def told(request: Request, schema: Schema[Any], takes: Schemas) -> Request:
    """Give the request with the schema as an instruction in its system message."""
    try:
        asked = _asked.decode(request.body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the schema cannot be told in this request: {error}", sent=False) from None
    plain: Any = _JSON_OBJECT if takes == "json_object" else UNSET
    if request.path == RESPONSES:
        text = f"{asked.instructions}\n\n{schema.instruction}" if asked.instructions else schema.instruction
        return request.with_fields(instructions=text, text=plain if plain is UNSET else {"format": plain})
    messages = list(asked.messages)
    first = messages[0] if messages else {}
    if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
        messages[0] = {**first, "content": f"{first['content']}\n\n{schema.instruction}"}
    else:
        messages.insert(0, {"role": "system", "content": schema.instruction})
    return request.with_fields(messages=messages, response_format=plain)
