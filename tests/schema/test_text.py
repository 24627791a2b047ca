"""schema/text: the JSON in what a model wrote, where it is clear which is meant."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fastllm.schema.text import json_in

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('abc{}[]`"\\', max_size=3), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=3)
PROSE = st.text("ab .,:!?\n'", max_size=30)


@given(OBJECTS, PROSE, PROSE, st.sampled_from([None, 2]))
def test_one_object_between_words_is_found(value: dict[str, Any], before: str, after: str, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    found = json_in(before + text + after, "{")
    assert found is not None and json.loads(found) == value


@given(OBJECTS, PROSE, PROSE, st.sampled_from(["```json\n", "```\n", "``` json\n", "  ```JSON\n"]))
def test_a_fenced_block_is_found(value: dict[str, Any], before: str, after: str, fence: str) -> None:
    text = json.dumps(value, indent=2)
    found = json_in(f"{before}\n{fence}{text}\n```\n{after}")
    assert found is not None and json.loads(found) == value


@given(st.text(st.sampled_from('{}[]",:1a`\n\\ ')) | st.text())
def test_whatever_is_found_is_json_and_part_of_the_text(text: str) -> None:
    found = json_in(text)
    if found is not None:
        json.loads(found)
        assert found in text


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1} {"a":2}',
        '```json\n{"a":1}\n```\n```json\n{"a":2}\n```',
        "no JSON at all",
        '{"a":',
        "{a: 1}",
        '{"a": NaN, }',
        "",
    ],
)
def test_what_is_not_clear_is_not_guessed(text: str) -> None:
    assert json_in(text) is None


def test_only_what_may_begin_the_value_counts() -> None:
    """Footnotes are no objects; where a list is meant they are one too many."""
    assert json_in('As said [1]: {"a": [2]}', "{") == '{"a": [2]}'
    assert json_in('As said [1]: {"a": [2]}', "{[") is None
    assert json_in("The list: [1, 2].", "[") == "[1, 2]"


def test_thoughts_are_passed_over() -> None:
    assert json_in('<think>maybe {"a": 1}</think>{"a": 2}') == '{"a": 2}'
    assert json_in('<think>maybe {"a": 1}') == '{"a": 1}'


def test_a_text_of_brackets_is_given_up() -> None:
    """Neither nesting nor many beginnings are looked into without end."""
    for text in ("[" * 200_000, "{" * 200_000, '{"a":' * 50_000, "[1 " * 100_000):
        assert json_in(text) is None
