"""Tool: a Python function as the tool that a model may call: its schema, and a call with validated arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from ..errors import ConfigError, InvalidAnswerError
from .strict import with_root

P = ParamSpec("P")
R = TypeVar("R")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_BLANK = re.compile(r"\n\s*\n")


class Tool(Generic[P, R]):
    """A function with its tool schema, made by `tool`. It goes into `tools=[…]` as it is, and is called as ever.

    `definition` is the tool in OpenAI's shape; `call` takes the arguments as a model wrote them.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        name = getattr(function, "__name__", "")
        if not callable(function) or not _NAME.fullmatch(name):
            raise ConfigError("tool() takes a function whose name has ASCII letters, digits and _, 64 at most")
        self.function = function
        self.name = name
        arguments = msgspec.defstruct(name, _fields(function), kw_only=True, forbid_unknown_fields=True)
        try:
            parameters = with_root(msgspec.json.schema(arguments))
            self._decoder = msgspec.json.Decoder(arguments)
        except TypeError as error:
            raise ConfigError(f"no tool can be made of {name}: {str(error).partition(chr(10))[0]}") from None
        self._names = arguments.__struct_fields__
        parameters.pop("title", None)
        described: dict[str, Any] = {"name": name}
        if text := _BLANK.split(inspect.getdoc(function) or "")[0].strip():
            described["description"] = " ".join(text.split())
        self.definition: dict[str, Any] = {"type": "function", "function": {**described, "parameters": parameters}}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def call(self, arguments: str | bytes | Mapping[str, Any] | None) -> R:
        """Call the function with a model's arguments (`tool_call.function.arguments`). What they do not give has its
        default. InvalidAnswerError says where they do not fit the function's types; nothing is called then."""
        try:
            if isinstance(arguments, Mapping):
                arguments = msgspec.json.encode(arguments)
            read = self._decoder.decode(arguments or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError) as error:
            raise InvalidAnswerError(
                f"the arguments for the tool {self.name} do not fit: {error}", code="tool_arguments"
            ) from None
        given = {name: getattr(read, name) for name in self._names}
        return self.function(**{name: value for name, value in given.items() if value is not msgspec.UNSET})  # type: ignore[call-arg]

    def __repr__(self) -> str:
        return f"<Tool {self.name}({', '.join(self._names)})>"


def tool(function: Callable[P, R]) -> Tool[P, R]:
    """Make a tool of a function, also as a decorator: names, types and defaults from its signature, what it does from
    the first paragraph of its docstring, what an argument means from `Annotated[int, "days ahead"]`.

        @tool
        def weather(city: str, days: Annotated[int, "days ahead"] = 1) -> str:
            "Tell the weather of a city."
            return f"sunny in {city} for {days} days"

        weather.call('{"city": "Lima"}')

    Raises ConfigError for parameters without a type, or that cannot be given by name.
    """
    return Tool(function)


def plain_tools(tools: Any) -> Any:
    """Give the list with each Tool as its definition; everything else as it is."""
    if isinstance(tools, list | tuple) and any(isinstance(item, Tool) for item in tools):
        return [item.definition if isinstance(item, Tool) else item for item in tools]
    return tools


def _fields(function: Callable[..., Any]) -> list[Any]:
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError(f"no tool can be made of {function!r}: {error}") from None
    fields: list[Any] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"the tool {signature} has the parameter {parameter}, which cannot be given by name")
        if name not in hints:
            raise ConfigError(f"the parameter {name} of {function.__name__} has no type: a model must be told one")
        kind = _described(hints[name])
        if parameter.default is parameter.empty:
            fields.append((name, kind))
        else:  # the function knows its default best
            fields.append((name, kind | msgspec.UnsetType, msgspec.UNSET))
    return fields


def _described(kind: Any) -> Any:
    """`Annotated[int, "days ahead"]` as msgspec spells it."""
    if get_origin(kind) is not Annotated:
        return kind
    inner, *notes = get_args(kind)
    for note in notes:
        inner = Annotated[inner, msgspec.Meta(description=note) if isinstance(note, str) else note]
    return inner
