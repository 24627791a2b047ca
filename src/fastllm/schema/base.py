"""Schema: what an answer must look like, made from a type or a JSON schema; it writes itself out and validates.

A `Misfit` says where a text does not fit and what was expected there, never what the text says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, is_typeddict, overload

import msgspec

from ..errors import ConfigError
from .jsonschema import complaints_by, path_text
from .strict import strict_form, with_root
from .text import json_in

T = TypeVar("T")
RETRIES = 2  # how often an answer that does not fit is asked for again
_NAME = re.compile(r"[^a-zA-Z0-9_-]+")
_QUOTED = re.compile(r"(?<=^Invalid enum value) (?:.*(?= - at `\$)|.*$)", re.DOTALL)  # the one message with a value
_MOST_NAME = 64
_MOST_COMPLAINT = 500
_MOST_FILE = 16 * 1024 * 1024
_decode = msgspec.json.Decoder().decode
# The words of JSON Schema for types; a `type` that is another one is of OpenAI's `response_format`.
_JSON_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_KINDS = "a pydantic model, a msgspec Struct, a dataclass, a TypedDict, a JSON schema as a dict, or the path of one"


class Misfit(ValueError):
    """A text does not fit; the message tells where and why."""


class Schema(Generic[T]):
    """What answers must look like, and how often they may be asked for again.

    `Schema.of` makes one. `json_schema` is the schema itself, `response_format` what is sent in OpenAI's shape,
    `retries` how many answers that do not fit are followed by another question.

        person = Schema.of({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
        person.validate('{"name": "Ada"}')
    """

    __slots__ = ("_begins", "_read", "json_schema", "name", "response_format", "retries", "text_format")

    def __init__(
        self,
        json_schema: Mapping[str, Any],
        read: Callable[[str], T],
        *,
        name: str,
        complete: bool = False,
        strict: bool | None = None,
        retries: int = RETRIES,
    ) -> None:
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigError(f"schema_retries must be a whole number of at least 0, not {retries!r}")
        self.name = _NAME.sub("_", name).strip("_")[:_MOST_NAME] or "answer"
        self.json_schema = dict(json_schema)
        self.retries = retries
        self._read = read
        self._begins = {"object": "{", "array": "["}.get(str(self.json_schema.get("type")), "{[")
        sent = strict_form(self.json_schema, complete=complete) if strict is None else None
        described = {
            "name": self.name,
            "strict": bool(strict) if strict is not None else sent is not None,
            "schema": sent or self.json_schema,
        }
        self.response_format: dict[str, Any] = {"type": "json_schema", "json_schema": described}
        self.text_format: dict[str, Any] = {"format": {"type": "json_schema", **described}}

    @overload
    @classmethod
    def of(cls, source: type[T] | Schema[T], *, retries: int | None = None) -> Schema[T]: ...

    @overload
    @classmethod
    def of(cls, source: Mapping[str, Any] | str | os.PathLike[str], *, retries: int | None = None) -> Schema[Any]: ...

    @classmethod
    def of(cls, source: Any, *, retries: int | None = None) -> Schema[Any]:
        """Make a Schema of a pydantic model, a msgspec Struct, a dataclass, a TypedDict, a JSON schema or its file.

        `retries` is how often an answer that does not fit is asked for again (2). Raises ConfigError.
        """
        if isinstance(source, Schema):
            made: Schema[Any] = source
        elif isinstance(source, type) or is_typeddict(source):
            made = _of_type(source)
        elif isinstance(source, Mapping):
            made = _of_mapping(source, "the schema")
        elif isinstance(source, str | os.PathLike):
            made = _of_file(Path(source))
        else:
            raise ConfigError(f"a schema must be {_KINDS}; not {_shown(source)}")
        return made if retries is None or retries == made.retries else made.with_retries(retries)

    def with_retries(self, retries: int) -> Schema[T]:
        """Give the same schema with another bound."""
        shown = self.response_format["json_schema"]
        other = Schema(self.json_schema, self._read, name=self.name, strict=shown["strict"], retries=retries)
        other.response_format, other.text_format = self.response_format, self.text_format
        return other

    def validate(self, text: str) -> T:
        """Give the value that the text stands for: an instance of the type, or plain values for a JSON schema.

        The JSON may stand in a fenced block or between words, if it is clear which is meant. Raises Misfit.
        """
        found = json_in(text, self._begins)
        if found is None:
            raise Misfit("it is empty" if not text.strip() else "it is not JSON, and holds no one JSON value")
        try:
            return self._read(found)
        except Misfit as error:
            text = str(error)
            raise Misfit(text if len(text) <= _MOST_COMPLAINT else text[:_MOST_COMPLAINT] + "…") from None
        except Exception as error:  # a validator of the user's own; the answer must not be lost for it
            raise Misfit(f"it was refused with a {type(error).__name__}") from error

    @property
    def instruction(self) -> str:
        """What a model is told that cannot be given a schema otherwise."""
        schema = msgspec.json.encode(self.json_schema).decode()
        return f"Answer with JSON alone, without any other words, that fits this JSON schema:\n{schema}"

    def __repr__(self) -> str:
        return f"<Schema {self.name}>"


def is_schema(value: Any) -> bool:
    """Tell whether a `response_format` is something to make a Schema of, rather than OpenAI's own form."""
    if not isinstance(value, Mapping):
        return value is not None
    kind = value.get("type")
    if isinstance(kind, list):
        return True
    return kind in _JSON_TYPES or (kind is None and bool(value))


@lru_cache(maxsize=256)
def _of_type(source: Any) -> Schema[Any]:
    name = source.__name__
    if hasattr(source, "model_json_schema") and hasattr(source, "model_validate_json"):
        return Schema(with_root(source.model_json_schema()), _by_pydantic(source), name=name, complete=True)
    known = issubclass(source, msgspec.Struct) or hasattr(source, "__dataclass_fields__") or is_typeddict(source)
    if not known:
        raise ConfigError(f"a schema must be {_KINDS}; not {_shown(source)}")
    try:
        found, decoder = msgspec.json.schema(source), msgspec.json.Decoder(source)
    except (TypeError, NameError) as error:  # a NameError where an annotation cannot be resolved
        raise ConfigError(f"no JSON schema can be made of {name}: {str(error).partition(chr(10))[0]}") from None

    def read(text: str) -> Any:
        try:
            return decoder.decode(text)
        except msgspec.ValidationError as error:
            raise Misfit(_QUOTED.sub("", str(error))) from None

    return Schema(with_root(found), read, name=name, complete=True)


def _by_pydantic(model: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return model.model_validate_json(text)
        except ValueError as error:
            errors = getattr(error, "errors", None)
            if errors is None:
                raise
            found = errors(include_input=False, include_url=False, include_context=False)
            raise Misfit("; ".join(f"at {path_text(item['loc'])}: {item['msg']}" for item in found)) from None

    return read


def _of_mapping(source: Mapping[str, Any], what: str) -> Schema[Any]:
    strict: bool | None = None
    name = source.get("title") if isinstance(source.get("title"), str) else None
    schema: Any = source
    if source.get("type") == "json_schema":  # OpenAI's form, whole
        inner = source.get("json_schema")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
            raise ConfigError(f"{what} has the type json_schema, and no schema under json_schema")
        schema, name, strict = inner["schema"], inner.get("name"), bool(inner.get("strict"))
    try:
        plain = cast(dict[str, Any], _decode(msgspec.json.encode(schema)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be written as JSON: {error}") from None
    complain = complaints_by(plain, what)

    def read(text: str) -> Any:
        value = _decode(text)
        complaint = complain(value)
        if complaint is not None:
            raise Misfit(complaint)
        return value

    shown = plain if strict is not None else with_root(plain)
    return Schema(shown, read, name=str(name or "answer"), strict=strict)


def _of_file(path: Path) -> Schema[Any]:
    what = f"the schema {path}"
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_FILE + 1)
        if len(content) > _MOST_FILE:
            raise ConfigError(f"{what} is larger than {_MOST_FILE >> 20} MiB")
        found = _decode(content)
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f'{what} is not a JSON schema: it must be an object, such as {{"type": "object", …}}')
    return _of_mapping(found, what)


def _shown(source: Any) -> str:
    return source.__name__ if isinstance(source, type) else f"of type {type(source).__name__}"
