"""jobs/publish: the short way to plain JSON lines writes what the long way does, to the byte."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, strategies as st

from fastllm.formats.base import open_writer
from fastllm.formats.columns import Columns
from fastllm.jobs.entry import outcome_of
from fastllm.jobs.frames import FAILED, OK
from fastllm.jobs.journal import Entry
from fastllm.jobs.publish import Shape, write_answers

texts = st.none() | st.text()
counts = st.integers(0, 1 << 40)
errors = st.none() | st.fixed_dictionaries({}, optional={"class": texts, "code": texts, "message": texts})
entries = st.builds(
    Entry,
    custom_id=texts,
    line=counts,
    status=st.integers(0, 599),
    request_id=texts,
    body=st.binary() | st.text().map(str.encode) | st.sampled_from([b'{"a":\r\n 1}', b"", b"%s %d", b'{"id":"\\n"}']),
    error=errors,
    source=st.binary(),
    prompt_tokens=counts,
    completion_tokens=counts,
    attempts=st.integers(0, 9),
    cached=st.booleans(),
    endpoint=st.text(),
    finish_reason=texts,
    cached_tokens=counts,
    cost=st.none() | st.floats(0, 9),
)


class Recorded:
    """What a journal with these entries tells; None is a row without one."""

    def __init__(self, rows: list[Entry | None]) -> None:
        self._rows = rows

    @property
    def states(self) -> bytearray:
        return bytearray(0 if row is None else OK if row.error is None else FAILED for row in self._rows)

    def read(self, index: int) -> Entry:
        entry = self._rows[index]
        assert entry is not None
        return entry

    def check(self, index: int) -> int:
        return 0

    def as_finished(self) -> Iterator[int]:
        return iter(range(len(self._rows)))


@given(st.lists(st.none() | entries, max_size=6), st.booleans(), st.sampled_from([None, "jsonl"]))
def test_plain_lines_are_those_of_the_outcomes(rows: list[Entry | None], failures: bool, format: str | None) -> None:
    columns, expected = Columns(failures=failures), io.BytesIO()
    writer = open_writer(expected, Path("out.jsonl"), columns, format=format)
    for index, entry in enumerate(rows):
        if entry is not None and (failures or entry.error is None):
            writer.write(outcome_of(index, entry), b"", entry.error)
    writer.close()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out.jsonl")
        write_answers(Recorded(rows), len(rows), output, shape=Shape(columns=columns, format=format))
        assert output.read_bytes() == expected.getvalue()
