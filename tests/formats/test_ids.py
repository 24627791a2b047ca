"""The set of ids: exact, small, the same in every process; a disk that is full costs memory and no answer."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from fastllm.formats import ids
from fastllm.formats.ids import LIKE_MADE_UP, MADE_UP, SeenIds, key_of, own_key


@settings(max_examples=200)
@given(st.lists(st.integers(0, 60)))
def test_it_knows_what_was_added(keys: list[int]) -> None:
    """It gives the line of the first, and 0 for what is new."""
    seen, known = SeenIds(), dict[int, int]()
    for line, number in enumerate(keys, 1):
        key = own_key(f"id-{number}")
        assert seen.add(key, line) == known.get(key, 0)
        known.setdefault(key, line)
    assert len(seen) == len(known)


@pytest.mark.parametrize("expected", [0, 200_000])
@pytest.mark.parametrize("name", ["{}", "id-{:07}", "row {} of the table of customers", "00000000-0000-{:012x}"])
def test_many_ids_in_little_memory(name: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that follow each other, too, are told apart by the filter: seldom is one looked for in the file."""
    seen = SeenIds()
    seen.expected = expected
    total = 200_000
    assert not any(seen.add(own_key(name.format(i)), i + 1) for i in range(total))
    assert [seen.add(own_key(name.format(i)), 1) for i in range(0, total, 999)] == list(range(1, total + 1, 999))
    filters = sum(words.itemsize * len(words) for words in (*seen._older, seen._words))
    assert filters <= 5 * total
    assert max(map(len, seen._buffers)) < ids._CHUNK
    looked_for = 0
    real = SeenIds._line

    def counted(seen: SeenIds, key: int) -> int:
        nonlocal looked_for
        looked_for += 1
        return real(seen, key)

    monkeypatch.setattr(SeenIds, "_line", counted)
    assert not any(seen.add(own_key(name.format(i)), i + 1) for i in range(total, total + 10_000))
    assert looked_for < 300
    assert repr(seen) == "<SeenIds 210000>"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the ids stay in memory, and none is forgotten."""
    calls = 0

    def full(fd: int, data: bytes, at: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 100:
            raise OSError(28, "No space left on device")
        return os.write(fd, data)

    monkeypatch.setattr(ids.os, "pwrite", full)
    seen = SeenIds()
    keys = random.Random(1).sample(range(2, 1 << 62), 100_000)
    assert not any(seen.add(key, line) for line, key in enumerate(keys, 1))
    assert calls == 101
    assert [seen.add(key, 0) for key in keys[::100]] == list(range(1, 100_001, 100))


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids.tempfile, "tempdir", str(tmp_path))
    seen = SeenIds()
    for i in range(100_000):
        seen.add(own_key(str(i)), i + 1)
    assert seen._fd >= 0 and not list(tmp_path.iterdir())


def test_a_key_is_the_same_everywhere() -> None:
    """It lies in the index of a job, which another process reads."""
    code = "from fastllm.formats.ids import own_key; print(own_key('request-1'), own_key('ü'), own_key('row-3'))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(own_key(name)) for name in ("request-1", "ü", "row-3")]


def test_keys() -> None:
    """The id that a row without one gets is told from those that only read like it."""
    assert key_of("row-3", 3) == MADE_UP
    assert key_of("row-3", 4) == own_key("row-3") >= LIKE_MADE_UP
    assert own_key("row-x") < LIKE_MADE_UP
    assert len({own_key(name) for name in ("a", "a\0", "\0a", "", "b", "\ud800")}) == 6
