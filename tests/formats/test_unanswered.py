"""Passing over rows that have their answer: the others are exactly what reading everything gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings, strategies as st

from fastllm.formats.base import open_reader
from fastllm.formats.ids import MADE_UP, UNKNOWN, key_of
from fastllm.types import Row

IDS = st.one_of(st.none(), st.sampled_from(["a", "b", "row-1", "row-3", "row-007", ""]), st.integers(0, 4))
LINES = st.lists(
    st.one_of(
        IDS.map(lambda given: msgspec.json.encode({"custom_id": given, "prompt": "p", "model": "m"})),
        st.sampled_from([b"", b"  ", b"{", b"[1]", b'{"custom_id":"a"}', b"x" * 300]),
        st.sampled_from(
            [b'{"custom_id":"a","prompt":"', b'{"custom_id":"row-3",}', b'{"id":"b","prompt":"\xff"}', b'{"id":"a"}']
        ),
    ),
    max_size=12,
)


def shown(row: Row) -> tuple[object, ...]:
    return row.index, row.line, row.custom_id, row.request is None, str(row.error), row.source


def passing(keys: dict[int, int], most: int, tells_end: bool) -> Callable[[int], list[int] | None]:
    """Pass over runs of rows with these keys, so many at once."""

    def passed(index: int) -> list[int] | None:
        if tells_end and index > max(keys, default=-1):
            return None
        found = []
        while index in keys and len(found) < most:
            found.append(keys[index])
            index += 1
        return found

    return passed


def compare(path: Path, answered: set[int], known: bool, most: int) -> None:
    """What is left is what reading everything gives, whether the ids of the others are known or read once more."""
    with open_reader(path, max_line_bytes=200) as reader:
        rows = list(reader)
    expected = [shown(row) for row in rows if row.index not in answered]
    keys = {row.index: key_of(row.custom_id or "", row.index) if known else UNKNOWN for row in rows}
    lines = {row.index: row.line for row in rows}
    for line_of in (None, lambda index: lines.get(index, 0), lambda index: index % 2 and lines.get(index, 0)):
        with open_reader(path, max_line_bytes=200) as reader:
            reader.fingerprint()
            passed = passing({i: keys.get(i, MADE_UP) for i in answered}, most, most % 2 == 0)
            found = list(reader.unanswered(passed, line_of))
        assert [shown(row) for row in found if not isinstance(row, int)] == expected
        assert sum(row for row in found if isinstance(row, int)) == len(rows) - len(expected)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, answered=st.sets(st.integers(0, 11)), known=st.booleans(), most=st.integers(1, 12))
def test_lines(tmp_path: Path, lines: list[bytes], answered: set[int], known: bool, most: int) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    compare(path, answered, known, most)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.sampled_from(["a", "b", "row-1", "", "c,d", "e\nf"]), max_size=10),
    answered=st.sets(st.integers(0, 9)),
    bad=st.booleans(),
    known=st.booleans(),
)
def test_a_table(tmp_path: Path, ids: list[str], answered: set[int], bad: bool, known: bool) -> None:
    path = tmp_path / "in.csv"
    rows = [f'"{given}",p,m' for given in ids] + ["too,many,fields,here"] * bad + ['"a",p,m']
    path.write_text("\n".join(["custom_id,prompt,model", *rows]))
    compare(path, answered, known, 3)
