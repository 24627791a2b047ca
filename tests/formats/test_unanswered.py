"""Passing over rows that have their answer: the others are exactly what reading everything gives."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings, strategies as st

from fastllm.formats.base import open_reader
from fastllm.types import Row

IDS = st.one_of(st.none(), st.sampled_from(["a", "b", "row-1", "row-3", "row-007", ""]), st.integers(0, 4))
LINES = st.lists(
    st.one_of(
        IDS.map(lambda given: msgspec.json.encode({"custom_id": given, "prompt": "p", "model": "m"})),
        st.sampled_from([b"", b"  ", b"{", b"[1]", b'{"custom_id":"a"}', b"x" * 300]),
    ),
    max_size=12,
)


def shown(row: Row) -> tuple[object, ...]:
    return row.index, row.line, row.custom_id, row.request is None, str(row.error), row.source


def compare(path: Path, answered: set[int], needs_from: int) -> None:
    with open_reader(path, max_line_bytes=200) as reader:
        everything = [shown(row) for row in reader]
    expected = [row for row in everything if row[0] not in answered]
    with open_reader(path, max_line_bytes=200) as reader:
        rows = reader.unanswered(answered.__contains__, lambda index: index >= needs_from)
        found = [shown(row) for row in rows if row is not None]
    assert found == expected


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, answered=st.sets(st.integers(0, 11)))
def test_lines(tmp_path: Path, lines: list[bytes], answered: set[int]) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    compare(path, answered, 0)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.sampled_from(["a", "b", "row-1", "", "c,d", "e\nf"]), max_size=10),
    answered=st.sets(st.integers(0, 9)),
    bad=st.booleans(),
)
def test_a_table(tmp_path: Path, ids: list[str], answered: set[int], bad: bool) -> None:
    path = tmp_path / "in.csv"
    rows = [f'"{given}",p,m' for given in ids] + ["too,many,fields,here"] * bad + ['"a",p,m']
    path.write_text("\n".join(["custom_id,prompt,model", *rows]))
    compare(path, answered, 0)


def test_ids_that_an_earlier_run_has_seen_are_not_looked_for_again(tmp_path: Path) -> None:
    """From there on they are, also against the rows that were passed over."""
    path = tmp_path / "in.jsonl"
    ids = [*(f"id-{i}" for i in range(8)), "id-2", "new"]
    path.write_bytes(b"".join(b'{"custom_id":"%b","prompt":"p","model":"m"}\n' % given.encode() for given in ids))
    with open_reader(path) as reader:
        found = list(reader.unanswered(lambda index: index < 7, lambda index: index >= 8))
    rows = [row for row in found if row is not None]
    assert [row.custom_id for row in rows] == ["id-7", "id-2", "new"]
    assert rows[1].error is not None and "line 3" in rows[1].error.message
    assert rows[0].request is not None and rows[2].request is not None


def test_somebody_else_gets_a_turn_while_many_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt":"p","model":"m"}\n' * 2000)
    with open_reader(path) as reader:
        found = list(reader.unanswered(lambda index: index != 1999, lambda index: False))
    assert found.count(None) >= 5
    last = found[-1]
    assert last is not None and last.index == 1999 and len(found) == found.count(None) + 1
