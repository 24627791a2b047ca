"""Frames: whatever the order, the sizes and the growth of a file, a frame is read as it was written, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fastllm.jobs import frames as room
from fastllm.jobs.frames import OK, Frames, new_layout, read_frame

SMALL = 256


@given(
    st.lists(st.integers(0, 900), min_size=1, max_size=30),
    st.lists(st.integers(0, 29), max_size=80),
    st.integers(1, 30),
    st.booleans(),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_frames_are_read_as_they_were_written(
    tmp_path: Path, sizes: list[int], order: list[int], at_first: int, damage: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_BLOCK", SMALL)
        patch.setattr(room, "_BLOCKS", 3)
        patch.setattr(room, "_TRIED", 6)
        layout = new_layout(b"job")
        content, offsets = layout.header(), []
        for index, size in enumerate(sizes):
            offsets.append(len(content))
            content += layout.frame(len(content), index, OK, 7, bytes([index]) * size)
        path = tmp_path / "journal"
        split = offsets[min(at_first, len(offsets) - 1)]
        path.write_bytes(content[:split])
        fd = os.open(path, os.O_RDWR)
        try:
            frames = Frames(fd, layout)
            for turn, index in enumerate(order):
                if turn == len(order) // 2:
                    os.pwrite(fd, content[split:], split)
                    if damage:
                        os.pwrite(fd, b"\xff", offsets[0] + 20)
                if index >= len(sizes):
                    continue
                found, whole = frames.read(offsets[index]), read_frame(fd, layout, offsets[index])
                if found is None:
                    assert whole is None
                elif whole is not None or not damage:
                    assert whole is not None
                    assert (found[0], found[1], bytes(found[2])) == whole
                    assert whole == (index, OK, bytes([index]) * sizes[index])
        finally:
            os.close(fd)


def test_what_lies_in_no_order_is_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_BLOCK", SMALL)
    monkeypatch.setattr(room, "_BLOCKS", 2)
    monkeypatch.setattr(room, "_TRIED", 4)
    layout = new_layout(b"job")
    content, offsets = layout.header(), []
    for index in range(64):
        offsets.append(len(content))
        content += layout.frame(len(content), index, OK, 7, b"x" * 200)
    path = tmp_path / "journal"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    frames = Frames(fd, layout)
    for index in [i * 37 % 64 for i in range(64)]:
        assert frames.read(offsets[index]) is not None
    assert not frames._pays
    os.close(fd)
