"""Runs after the first one: of an input that was edited, cut or moved about, and after a disk that was full."""

# ruff: noqa: ASYNC240  (files of a few KB)
from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm.cli.again import command_to_keep
from fastllm.errors import BadRequestError, ConfigError, JobConflictError
from fastllm.formats.base import open_reader
from fastllm.formats.output import failures_path, sharing
from fastllm.formats.remote import local_places
from fastllm.jobs import index, manifest, publish, runner
from fastllm.jobs.journal import journal_path
from fastllm.jobs.runner import JobResult, JournalError, run_job
from fastllm.types import Request, Response


class Engine:
    """Answers with the question, but not to those that are `bad`; notes what it was asked."""

    concurrency = 4

    def __init__(self, *bad: str) -> None:
        self.bad = bad
        self.asked: list[tuple[str | None, str]] = []

    async def execute(self, request: Request) -> Response:
        prompt = msgspec.json.decode(request.body)["messages"][-1]["content"]
        self.asked.append((request.custom_id, prompt))
        if prompt in self.bad:
            raise BadRequestError("no", status_code=400)
        await asyncio.sleep(0)
        body = {"choices": [{"message": {"content": f"re: {prompt}"}, "finish_reason": "stop"}]}
        return Response(body=msgspec.json.encode(body))


async def run(engine: Engine, source: Path, output: Path, **options: Any) -> JobResult:
    with open_reader(source, model="m") as reader:
        return await run_job(engine, reader, output, **options)


def line(i: int, *, ids: bool) -> str:
    return json.dumps({**({"custom_id": f"c{i}"} if ids else {}), "prompt": f"q{i}"}) + "\n"


def answers(output: Path) -> list[str]:
    rows = [json.loads(text) for text in output.read_text().splitlines()]
    return [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def blank_line(lines: list[str]) -> list[str]:
    return [*lines[:3], "\n", *lines[3:]]


def no_blank_line(lines: list[str]) -> list[str]:
    return lines


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("edits", [(no_blank_line, blank_line), (blank_line, no_blank_line)], ids=["put in", "out"])
async def test_lines_that_move_take_no_row_along(
    source: Path, output: Path, ids: bool, force: bool, edits: tuple[Callable[[list[str]], list[str]], ...]
) -> None:
    """The journal names the lines of the file that was; a run over the edited one, and the next, go by the rows."""
    lines = [line(i, ids=ids) for i in range(10)]
    source.write_text("".join(edits[0](lines)))
    assert (await run(Engine("q6", "q7"), source, output)).failed == 2
    source.write_text("".join(edits[1](lines)))
    assert (await run(Engine("q6", "q7"), source, output, force=force)).failed == 2
    engine = Engine()
    third = await run(engine, source, output)
    assert engine.asked == [("c6", "q6"), ("c7", "q7")] if ids else [("row-6", "q6"), ("row-7", "q7")]
    assert (third.ok, third.failed) == (10, 0) and answers(output) == [f"re: q{i}" for i in range(10)]
    assert not failures_path(output).exists()


async def test_an_input_that_was_cut_does_not_replace_a_whole_output(source: Path, output: Path) -> None:
    lines = [line(i, ids=False) for i in range(20)]
    source.write_text("".join(lines))
    await run(Engine(), source, output)
    for kept in (lines[:8], []):
        source.write_text("".join(kept))
        with pytest.raises(JobConflictError, match=rf"only {len(kept)} rows now, and {20 - len(kept)} "):
            await run(Engine(), source, output)
        assert len(answers(output)) == 20
    source.write_text("".join(lines[:8]))
    forced = await run(Engine(), source, output, force=True)
    assert (forced.total, forced.ok) == (8, 8) and len(answers(output)) == 8


async def test_rows_that_failed_at_the_end_may_go(source: Path, output: Path) -> None:
    lines = [line(i, ids=False) for i in range(10)]
    source.write_text("".join(lines))
    await run(Engine("q8", "q9"), source, output)
    source.write_text("".join(lines[:8]))
    engine = Engine()
    second = await run(engine, source, output)
    assert (second.ok, second.failed, second.total, engine.asked) == (8, 0, 8, [])


async def test_damage_that_the_index_hides_is_no_lost_row_in_the_order_of_finishing(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "WORTH", 10)
    source.write_text("".join(line(i, ids=True) for i in range(100)))
    await run(Engine(), source, output)
    journal = journal_path(output)
    content = bytearray(journal.read_bytes())
    content[content.find(b"re: q70") + 2] ^= 1
    journal.write_bytes(content)
    with pytest.raises(JournalError, match=r"damaged: 1 of its rows cannot be read; run the job again"):
        await run(Engine(), source, output, order="finished")
    engine = Engine()
    healed = await run(engine, source, output, order="finished")
    assert engine.asked == [("c70", "q70")] and healed.damaged == 1
    assert sorted(answers(output)) == sorted(f"re: q{i}" for i in range(100))


async def test_a_manifest_that_could_not_be_written_does_not_make_a_job_done(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when a second run, which answered the last row, writes: the third must write it out."""
    source.write_text("".join(line(i, ids=False) for i in range(10)))
    await run(Engine("q3"), source, output)

    def full(path: Path, mode: int = 0o666) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "replacing", full)
        patched.setattr(publish, "replacing", full)
        with pytest.raises(JournalError, match="No space left on device; every answer is in"):
            await run(Engine(), source, output)
    engine = Engine()
    third = await run(engine, source, output)
    assert engine.asked == [] and (third.ok, third.failed) == (10, 0)
    assert answers(output) == [f"re: q{i}" for i in range(10)]


async def test_a_failures_file_that_was_deleted_is_written_again(source: Path, output: Path) -> None:
    source.write_text("".join(line(i, ids=False) for i in range(10)))
    await run(Engine("q3"), source, output)
    failures_path(output).unlink()
    engine = Engine("q3")
    again = await run(engine, source, output)
    assert engine.asked == [("row-3", "q3")] and again.failed == 1 and failures_path(output).exists()


async def test_the_loop_goes_on_while_rows_are_passed_over(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BREATH", 100)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    source.write_text(line(0, ids=False) + line(1, ids=False))
    await run(Engine("q0"), source, output)
    source.write_text("".join(line(i, ids=False) for i in range(2_000)))
    counting = asyncio.create_task(count())
    engine = Engine("q0")
    await run(engine, source, output, retry_failed=True)
    counting.cancel()
    assert len(engine.asked) == 1 and turns >= 2_000 // 100


@pytest.mark.parametrize("name", ["answers.jsonl", "answers"])
async def test_two_jobs_do_not_share_a_file_of_failures(tmp_path: Path, source: Path, name: str) -> None:
    source.write_text("".join(line(i, ids=False) for i in range(3)))
    first = sharing(tmp_path / name)
    await run(Engine("q1"), source, first, output_format="jsonl")
    before = failures_path(first).read_bytes()
    with pytest.raises(ConfigError, match=r"would share its file of failures, answers.errors.jsonl, with the job of"):
        await run(Engine(), source, tmp_path / name, output_format="jsonl")
    assert failures_path(first).read_bytes() == before


async def test_an_output_that_is_no_file_is_refused_even_with_overwrite(tmp_path: Path, source: Path) -> None:
    source.write_text(line(0, ids=False))
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="is no regular file"):
        await run(Engine(), source, pipe, overwrite=True)
    assert pipe.is_fifo()


def test_a_remote_file_of_failures_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    failed = store / "answers.errors.jsonl"
    failed.write_text('{"prompt":"q1"}\n')
    target = f"file://{store}/answers.jsonl"
    for source, words in (
        (f"file://{failed}", "would be replaced by this job"),
        (str(failed), "would be replaced by this job"),
        (f"file://{store}/other.jsonl", r"answers.errors.jsonl exists and is of no job in this directory"),
    ):
        with pytest.raises(ConfigError, match=words), local_places(source, target, is_ours=lambda local: False):
            pytest.fail("it is replaced")
    assert failed.read_text() == '{"prompt":"q1"}\n'


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--model=gpt", "https://h/x.jsonl?sig=S"], ["--model=gpt", "https://h/x.jsonl"]),
        (["--progress", "none", "https://u:S@h/x.jsonl"], ["--progress", "none", "https://h/x.jsonl"]),
        (["in.jsonl", "--base-url=https://h/v1?key=S"], ["in.jsonl", "--base-url=https://h/v1"]),
        (["in.jsonl", "--base-url", "https://u:p@S@h/v1"], ["in.jsonl", "--base-url", "https://h/v1"]),
    ],
)
def test_the_command_that_is_kept_holds_no_secret(words: list[str], kept: list[str]) -> None:
    assert command_to_keep(words) == kept
