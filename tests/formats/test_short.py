"""The short way of a line gives what the long way does, whatever the lines hold and in whatever order they come."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from fastllm.formats import rows as module
from fastllm.formats.rows import Intake, Recipe
from fastllm.types import CHAT, EMBEDDINGS, Request, Row

MESSAGES = [{"role": "user", "content": "Hällo"}]
BODY = {"model": "m", "messages": MESSAGES}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}

NUMBERS = (0, 1, -1, 1.0, 2**31, 2**31 + 1, 2**70, True, False)
OTHERS: tuple[Any, ...] = (None, "", "x", "row-1", "row-02", "ä", [], {}, [None], {"a": 1})
ODD: Any = st.sampled_from((*NUMBERS, *OTHERS))
LIMITS = st.one_of(st.none(), st.integers(0, 100), ODD)
FIELDS: dict[str, Any] = {
    "messages": st.one_of(st.just(MESSAGES), ODD),
    "model": st.one_of(st.sampled_from(("m", "text-embedding-3")), ODD),
    "stream": st.one_of(st.booleans(), ODD),
    "max_tokens": LIMITS,
    "max_completion_tokens": LIMITS,
    "max_output_tokens": LIMITS,
    "n": ODD,
    "best_of": ODD,
    "input": ODD,
    "prompt": ODD,
    "temperature": st.floats(0, 2),
    "_error": ODD,
    "_source": ODD,
    "_answer": ODD,
    "_line": ODD,
}
IDS = st.one_of(st.sampled_from(("a", "b", "row-0", "row-3", "row-5", "7")), ODD)
URLS = st.one_of(st.sampled_from(("/v1/chat/completions", "/embeddings", "/v1/responses", "/v1/none")), ODD)


def some_of(fields: dict[str, Any], most: int) -> Any:
    """Some of these fields, and few of them most of the time."""
    chosen = st.lists(st.sampled_from(sorted(fields)), max_size=most, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: fields[name] for name in names}))


BODIES = some_of(FIELDS, 4).map(lambda odd: {**BODY, **odd})
PLAIN = st.one_of(
    st.just(BODY),
    BODIES,
    some_of({**FIELDS, "custom_id": IDS, "id": IDS, "method": ODD, "url": URLS, "body": ODD}, 5),
    some_of({"custom_id": IDS, "id": IDS, "method": ODD, "url": URLS, "body": ODD}, 2).map(lambda odd: {**BODY, **odd}),
)
BATCHED = st.builds(
    lambda name, body, odd: {**LINE, "custom_id": name, "body": body, **odd},
    IDS,
    st.one_of(BODIES, ODD),
    some_of({**FIELDS, "id": IDS, "method": st.sampled_from(("POST", "post", "GET", 1, None)), "url": URLS}, 2),
)


def damaged(text: bytes, at: int, byte: int | None) -> bytes:
    """One byte of it is another one, or what follows is gone."""
    at %= len(text)
    return text[:at] if byte is None else text[:at] + bytes([byte]) + text[at + 1 :]


WHOLE = st.builds(
    lambda item, ascii_only: json.dumps(item, ensure_ascii=ascii_only).encode(),
    st.one_of(PLAIN, BATCHED),
    st.booleans(),
)
TEXTS = st.one_of(
    WHOLE,
    WHOLE,
    st.builds(damaged, WHOLE, st.integers(0, 10_000), st.one_of(st.none(), st.integers(0, 255))),
    st.builds(lambda one, two: one[:-1] + b"," + two[1:], WHOLE, WHOLE),  # keys that come twice
)


def told(row: Row) -> Any:
    error = row.error
    said = None if error is None else (type(error), error.message, error.code, error.sent)
    return row.index, row.request, said, row.custom_id, row.line, row.source


def known(intake: Intake) -> Any:
    ids = [bytes(buffer) for buffer in intake._seen._buffers]
    return intake.count, bytes(intake._derived), intake._claimed, ids, intake.unsent


@settings(max_examples=600, deadline=None)
@given(
    st.lists(TEXTS, max_size=12), st.booleans(), st.sampled_from(("", "mine")), st.sampled_from(("plain", "batched"))
)
def test_it_gives_what_the_long_way_does(texts: list[bytes], numbered: bool, model: str, first: str) -> None:
    short, long = Intake(Recipe(model=model)), Intake(Recipe(model=model))
    short._short, long._short = getattr(module, first), None
    for number, text in enumerate(texts, 1):
        line = number if numbered else 0
        assert told(short.line(text, line)) == told(long.line(text, line))
        assert known(short) == known(long)


@pytest.mark.parametrize(("item", "path"), [(BODY, CHAT), (LINE, CHAT), ({**LINE, "url": "/embeddings"}, EMBEDDINGS)])
def test_plain_lines_take_it(item: dict[str, Any], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first one, from which it is seen what the others are."""
    intake = Intake(Recipe())
    texts = [msgspec.json.encode({**item, **({"custom_id": f"a{i}"} if "custom_id" in item else {})}) for i in range(3)]
    intake.line(texts[0], 1)
    monkeypatch.setattr(Intake, "_request", None)
    for number, text in enumerate(texts[1:], 2):
        request = intake.line(text, number).request
        assert request is not None
        body = msgspec.json.encode(BODY)
        id_ = f"a{number - 1}" if "custom_id" in item else f"row-{number - 1}"
        assert request == Request(path=path, body=body, model="m", body_model="m", custom_id=id_, priority=1)


def test_odd_lines_between_plain_ones_do_not_end_it() -> None:
    intake = Intake(Recipe())
    for number in range(1, 200):
        item = {**BODY, "n": 2} if number % 20 == 0 else BODY
        assert intake.line(msgspec.json.encode(item), number).request is not None
    assert intake._short is not None


def test_where_no_line_takes_it_none_is_tried_any_more() -> None:
    intake = Intake(Recipe())
    for number in range(1, 20):
        intake.line(msgspec.json.encode({**BODY, "n": 2}), number)
    assert intake._short is None


@pytest.mark.parametrize("recipe", [Recipe(prompt="{a}"), Recipe(system="Be brief."), Recipe(params={"n": 1})], ids=str)
def test_rows_that_are_changed_do_not_take_it(recipe: Recipe) -> None:
    assert Intake(recipe)._short is None
