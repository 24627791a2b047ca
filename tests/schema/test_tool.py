"""schema/tool: a function's signature as a tool, and a call with a model's arguments."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from fastllm import ConfigError, InvalidAnswerError, RequestBatch, Tool, tool


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


class Place(msgspec.Struct):
    city: str
    country: str | None = None


@tool
def weather(
    place: Place, days: Annotated[int, "days ahead", msgspec.Meta(ge=1, le=7)] = 1, *, unit: Unit = Unit.C
) -> str:
    """Tell the weather
    of a place.

    More that a model need not know.
    """
    return f"{place.city} {days} {unit.name}"


def test_the_definition_is_openais_with_types_descriptions_and_what_is_required() -> None:
    function = weather.definition["function"]
    assert weather.definition["type"] == "function" and function["name"] == "weather"
    assert function["description"] == "Tell the weather of a place."
    parameters = function["parameters"]
    assert parameters["type"] == "object" and parameters["required"] == ["place"]
    assert parameters["additionalProperties"] is False
    days = parameters["properties"]["days"]
    assert (days["description"], days["type"], days["minimum"], days["maximum"]) == ("days ahead", "integer", 1, 7)
    assert parameters["$defs"]["Place"]["required"] == ["city"] and "weather" not in parameters["$defs"]
    assert parameters["$defs"]["Unit"]["enum"] == ["celsius", "fahrenheit"]


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ('{"place":{"city":"Lima"}}', "Lima 1 C"),
        (b'{"place":{"city":"Lima"},"days":3,"unit":"fahrenheit"}', "Lima 3 F"),
        ({"place": {"city": "Oslo"}, "days": 2}, "Oslo 2 C"),
    ],
)
def test_a_call_reads_the_arguments_into_the_types(arguments: Any, result: str) -> None:
    assert weather.call(arguments) == result
    assert weather(Place("Lima"), 1) == "Lima 1 C"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"place":{"city":1}}', r"Expected `str`, got `int` - at `\$.place.city`"),
        ("{}", "missing required field `place`"),
        (None, "missing required field `place`"),
        ("", "missing required field `place`"),
        ('{"place":{"city":"a"},"days":9}', "<= 7"),
        ('{"place":{"city":"a"},"dayz":1}', "unknown field `dayz`"),
        ("not JSON", "malformed"),
        ("[]", "Expected `object`"),
        (b"\xff", "malformed|invalid"),
    ],
)
def test_arguments_that_do_not_fit_call_nothing_and_say_where(arguments: Any, words: str) -> None:
    with pytest.raises(InvalidAnswerError, match=words) as caught:
        weather.call(arguments)
    assert caught.value.code == "tool_arguments" and "the tool weather" in str(caught.value)


async def test_functions_without_parameters_and_coroutines_are_tools_too() -> None:
    @tool
    async def now() -> str:
        return "noon"

    assert now.definition["function"] == {
        "name": "now",
        "parameters": {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
    }
    assert await now.call("") == "noon"
    assert repr(now) == "<Tool now()>"


def test_none_is_a_value_and_what_is_not_given_has_its_default() -> None:
    @tool
    def find(text: str, limit: int | None = 5, mode: Literal["fast", "best"] = "fast") -> tuple[str, int | None, str]:
        return text, limit, mode

    assert find.call('{"text":"a"}') == ("a", 5, "fast")
    assert find.call('{"text":"a","limit":null,"mode":"best"}') == ("a", None, "best")


def test_what_cannot_be_a_tool_is_refused_with_the_parameter() -> None:
    def positional(a: int, /) -> None: ...
    def many(*texts: str) -> None: ...
    def untyped(a) -> None: ...  # type: ignore[no-untyped-def]
    def strange(a: Tool[Any, Any]) -> None: ...

    for function, words in (
        (positional, "cannot be given by name"),
        (many, "cannot be given by name"),
        (untyped, "parameter a of untyped has no type"),
        (strange, "no tool can be made of strange"),
        (lambda: None, "a function whose name"),
        (3, "a function whose name"),
    ):
        with pytest.raises(ConfigError, match=words):
            tool(function)  # type: ignore[arg-type]


def test_tools_go_into_a_request_as_their_definitions_and_dicts_as_they_are() -> None:
    batch = RequestBatch()
    given = {"type": "function", "function": {"name": "x", "parameters": {"type": "object", "$unknown": 1}}}
    batch.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "?"}], tools=[weather, given], tool_choice="auto"
    )
    body = msgspec.json.decode(next(iter(batch)).body)
    assert body["tools"] == [weather.definition, given] and body["tool_choice"] == "auto"
