"""Job: every row exactly once in the output, whatever stops it on the way."""

# ruff: noqa: ASYNC110, ASYNC240  (waits for what only a poll can tell; files of a few KB)
from __future__ import annotations

import asyncio
import gzip
import io
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm.answers import Usage
from fastllm.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigError,
    JobConflictError,
    MissingKeyError,
    QuotaExceededError,
    StoppedError,
    UnknownProviderError,
)
from fastllm.formats.base import open_reader
from fastllm.formats.jsonl import JSONLReader
from fastllm.formats.rows import Recipe
from fastllm.jobs import ahead, index, publish as publishing, runner
from fastllm.jobs.publish import failures_path
from fastllm.jobs.runner import Job, JobResult, JournalError, run_job
from fastllm.types import Request, Response

SRC = str(Path(__file__).parents[2] / "src")


class FakeEngine:
    """Answers with the question; `behave` may raise or wait. Counts how often each custom_id was asked."""

    concurrency = 8

    def __init__(self, behave: Callable[[Request], Any] | None = None) -> None:
        self.behave = behave
        self.asked: Counter[str | None] = Counter()

    async def execute(self, request: Request) -> Response:
        self.asked[request.custom_id] += 1
        waiting = self.behave(request) if self.behave is not None else None
        if waiting is not None:
            await waiting
        prompt = msgspec.json.decode(request.body)["messages"][-1]["content"]
        body = b'{"choices": [\n {"message": {"content": %s}}]}' % msgspec.json.encode("re: " + prompt)
        return Response(
            body=body, usage=Usage(prompt_tokens=2, completion_tokens=3), request_id="q", finish_reason="stop"
        )


def questions(path: Path, count: int, first: int = 0) -> Path:
    lines = [b'{"custom_id":"q%d","prompt":"p%d"}\n' % (i, i) for i in range(first, first + count)]
    path.write_bytes(b"".join(lines))
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


async def run(engine: FakeEngine, source: Path, output: Path, **options: Any) -> JobResult:
    with open_reader(source, model=options.pop("model", "m"), prompt=options.pop("prompt", None)) as reader:
        return await run_job(engine, reader, output, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return questions(tmp_path / "in.jsonl", 100)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


async def test_a_file_in_a_file_out(source: Path, output: Path) -> None:
    """Answers stand in input order, in OpenAI's batch shape, one line each, and nothing else is left behind."""
    rng = random.Random(3)
    engine = FakeEngine(lambda _: asyncio.sleep(rng.random() / 1000))
    result = await run(engine, source, output)
    assert (result.total, result.done, result.ok, result.failed, result.skipped) == (100, 100, 100, 0, 0)
    assert result.finished
    assert not result.nothing_to_do
    found = answers(output)
    assert [a["custom_id"] for a in found] == [f"q{i}" for i in range(100)]
    assert found[7]["response"]["status_code"] == 200
    assert found[7]["response"]["request_id"] == "q"
    assert found[7]["response"]["body"]["choices"][0]["message"]["content"] == "re: p7"
    assert found[7]["error"] is None
    assert len({a["id"] for a in found}) == 100
    assert sorted(p.name for p in output.parent.iterdir()) == [
        *("in.jsonl", "out.jsonl", "out.jsonl.journal", "out.jsonl.manifest.json")
    ]


async def test_running_again_does_nothing(source: Path, output: Path) -> None:
    """A finished job is not asked again, not even read; a lost output is made again from the journal."""
    await run(FakeEngine(), source, output)
    first = output.read_bytes()
    changed = output.stat().st_mtime_ns
    engine = FakeEngine()
    result = await run(engine, source, output)
    assert result.nothing_to_do
    assert (result.ok, result.skipped, result.total) == (100, 100, 100)
    assert output.stat().st_mtime_ns == changed
    output.unlink()
    result = await run(engine, source, output)
    assert result.nothing_to_do
    assert output.read_bytes() == first
    assert not engine.asked


async def test_failures_are_an_input(source: Path, output: Path, tmp_path: Path) -> None:
    """Failed rows go into a file of their own, which runs as it is; bad rows come out as the same bad rows."""
    with source.open("ab") as file:
        file.write(b'not json\n{"prompt":"nameless"}\n{"custom_id":"q0","prompt":"again"}\n')

    def behave(request: Request) -> None:
        if request.custom_id in ("q3", "row-101"):
            raise BadRequestError("no", status_code=400, code="bad")

    engine = FakeEngine(behave)
    result = await run(engine, source, output)
    failures = tmp_path / "out.errors.jsonl"
    assert (result.total, result.ok, result.failed, result.failures) == (103, 99, 4, failures)
    lines = answers(failures)
    assert [line["custom_id"] for line in lines] == ["q3", "row-100", "row-101", "q0"]
    assert lines[0]["prompt"] == "p3"
    assert lines[0]["_error"]["code"] == "bad"
    assert lines[1]["_source"] == "not json"
    assert lines[1]["_line"] == 101
    assert "already used on line 1" in lines[3]["_error"]["message"]

    healed = FakeEngine()
    second = await run(healed, failures, tmp_path / "second.jsonl")
    assert healed.asked == {"q3": 1, "row-101": 1, "q0": 1}
    assert (second.ok, second.failed) == (3, 1)
    old, new = lines[1]["_error"]["message"], answers(tmp_path / "second.errors.jsonl")[0]["_error"]["message"]
    assert old.removeprefix("line 101: ") == new.removeprefix("line 2: ")


async def test_running_again_tries_only_what_failed(source: Path, output: Path) -> None:
    """The same command asks failed rows again; when all are well the failures file goes."""
    await run(FakeEngine(lambda r: _fail(r, {"q5", "q6"})), source, output)
    assert failures_path(output).exists()
    second = FakeEngine(lambda r: _fail(r, {"q6"}))
    result = await run(second, source, output)
    assert second.asked == {"q5": 1, "q6": 1}
    assert (result.ok, result.failed, result.skipped) == (99, 1, 98)
    third = FakeEngine()
    result = await run(third, source, output)
    assert third.asked == {"q6": 1}
    assert result.failures is None
    assert not failures_path(output).exists()
    assert [a["custom_id"] for a in answers(output)] == [f"q{i}" for i in range(100)]


def _fail(request: Request, ids: set[str]) -> None:
    if request.custom_id in ids:
        raise BadRequestError("no", status_code=400)


async def test_a_changed_job_is_refused(source: Path, output: Path) -> None:
    """Another model, template or input: refused with the difference; --overwrite starts anew."""
    await run(FakeEngine(), source, output)
    with pytest.raises(JobConflictError, match='model "m" -> "other"'):
        await run(FakeEngine(), source, output, model="other")
    with pytest.raises(JobConflictError, match=r"prompt \(none -> [0-9a-f]{8}\)"):
        await run(FakeEngine(), source, output, prompt="S: {prompt}")
    questions(source, 99, first=1)
    engine = FakeEngine()
    with pytest.raises(JobConflictError, match=r"line 1 of .* the input's content changed"):
        await run(engine, source, output)
    assert not engine.asked
    engine = FakeEngine()
    result = await run(engine, source, output, overwrite=True)
    assert (result.ok, result.skipped, len(engine.asked)) == (99, 0, 99)
    assert len(answers(output)) == 99


async def test_a_mended_input_keeps_its_answers(source: Path, output: Path) -> None:
    """Rows that failed may be mended and new ones put at the end: only those are asked. A row that has its answer may
    not change, and neither may its place."""
    lines = source.read_bytes().splitlines(keepends=True)
    source.write_bytes(b"".join([*lines[:7], b"no json\n", *lines[8:]]))
    first = await run(FakeEngine(), source, output)
    assert (first.ok, first.failed) == (99, 1)
    source.write_bytes(b"".join([*lines, b'{"custom_id":"new","prompt":"p"}\n']))
    engine = FakeEngine()
    second = await run(engine, source, output)
    assert (second.ok, second.failed, second.skipped, set(engine.asked)) == (101, 0, 99, {"q7", "new"})
    assert [a["custom_id"] for a in answers(output)] == [*(f"q{i}" for i in range(100)), "new"]
    third = await run(engine, source, output)
    assert third.nothing_to_do and sum(engine.asked.values()) == 2
    # Two answered rows in each other's place, an answered row gone, an answered row that is bad now.
    for changed in (
        [lines[1], lines[0], *lines[2:]],
        lines[1:],
        [*lines[:50], lines[50].replace(b"q50", b"q0"), *lines[51:]],
    ):
        source.write_bytes(b"".join(changed))
        with pytest.raises(JobConflictError, match=r"mend .*out\.errors.jsonl and run that"):
            await run(engine, source, output)
    assert sum(engine.asked.values()) == 2
    source.write_bytes(b"".join(lines[:30]))
    fewer = await run(engine, source, output, force=True)
    assert (fewer.total, fewer.ok, fewer.skipped, len(answers(output))) == (30, 30, 30, 30)
    source.write_bytes(b"".join(lines))
    again = await run(engine, source, output, force=True)
    assert (again.ok, len(answers(output)), sum(engine.asked.values())) == (100, 100, 2)


async def test_a_job_without_answers_is_nobodys(source: Path, output: Path) -> None:
    """A run in which all failed does not stand in the way of one that is told the right model."""

    def refuse(_: Request) -> None:
        raise BadRequestError("no such model", status_code=400)

    assert (await run(FakeEngine(refuse), source, output, model="wrong")).failed == 100
    assert (await run(FakeEngine(), source, output, model="right")).ok == 100


async def test_no_model_is_found_before_anything_is_written(source: Path, output: Path) -> None:
    with pytest.raises(ConfigError, match="no model: give model=…"):
        await run(FakeEngine(), source, output, model="")
    assert not output.with_name("out.jsonl.journal").exists()


async def test_places_are_checked_before_anything_is_sent(source: Path, output: Path, tmp_path: Path) -> None:
    """An output that exists, is the input, a directory, of no known format or nowhere: one clear error, no request."""
    engine = FakeEngine()
    output.write_text("mine")
    with pytest.raises(JobConflictError, match="exists and is of no job"):
        await run(engine, source, output)
    assert output.read_text() == "mine"
    for bad, words in (
        (source, "also the output"),
        (tmp_path / "no" / "where.jsonl", "directory of the output does not exist"),
        (tmp_path / "out.xlsx", "known are .*csv"),
    ):
        with pytest.raises(ConfigError, match=words):
            await run(engine, source, bad, overwrite=True)
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        await run(engine, source, tmp_path / "dir.jsonl")
    os.link(source, tmp_path / "same.jsonl")
    with pytest.raises(ConfigError, match="also the output"):
        await run(engine, source, tmp_path / "same.jsonl", overwrite=True)
    with pytest.raises(ConfigError, match="also the failures file"):
        await run(engine, questions(tmp_path / "a.errors.jsonl", 3), tmp_path / "a.jsonl")
    if os.getuid() != 0:
        (tmp_path / "ro").mkdir(mode=0o500)
        with pytest.raises(ConfigError, match="no permission"):
            await run(engine, source, tmp_path / "ro" / "o.jsonl")
    assert not engine.asked


async def test_no_permission(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="no permission"):
        await run(FakeEngine(), source, output)


async def test_two_at_once(source: Path, output: Path) -> None:
    """The second run of a job that is running is refused."""
    gate, began = asyncio.Event(), asyncio.Event()

    def behave(_: Request) -> Any:
        began.set()
        return gate.wait()

    first = asyncio.create_task(run(FakeEngine(behave), source, output))
    await began.wait()
    with pytest.raises(JobConflictError, match="in use"):
        await run(FakeEngine(), source, output)
    gate.set()
    assert (await first).ok == 100


async def test_stop_drains_and_resumes(source: Path, output: Path) -> None:
    """After `stop` what is in flight finishes; the next run asks exactly the rest."""
    job: Job | None = None

    def behave(request: Request) -> Any:
        if request.custom_id == "q30":
            assert job is not None
            job.stop()
        return asyncio.sleep(0.005)

    engine = FakeEngine(behave)
    with open_reader(source, model="m") as reader:
        job = Job(engine, reader, output)
        result = await job.run()
        assert "rows" in repr(job)
    assert result.interrupted
    assert not result.finished
    assert result.total is None
    assert result.done == sum(engine.asked.values()) == job.done
    assert 0 < result.done < 100
    assert not output.exists()
    rest = FakeEngine()
    again = await run(rest, source, output)
    assert again.skipped == result.done
    assert engine.asked + rest.asked == Counter({f"q{i}": 1 for i in range(100)})
    assert len(answers(output)) == 100


@pytest.mark.parametrize("how", ["grace", "twice", "no grace"])
async def test_stop_gives_up_what_hangs(source: Path, output: Path, how: str) -> None:
    """Rows that do not finish within the grace, or at the second request, are given up and run again."""
    job: Job | None = None

    def behave(request: Request) -> Any:
        assert job is not None
        if request.custom_id == "q99":
            asyncio.get_running_loop().call_later(0.01, job.stop)
            if how == "twice":
                asyncio.get_running_loop().call_later(0.02, job.stop)
        return asyncio.sleep(60 if request.custom_id == "q5" else 0)

    with open_reader(source, model="m") as reader:
        grace = {"grace": 0.02, "twice": 60, "no grace": 0}[how]
        job = Job(FakeEngine(behave), reader, output, grace=grace, concurrency=2)
        began = time.monotonic()
        result = await job.run()
    assert time.monotonic() - began < 5
    assert result.interrupted
    assert result.ok == 99
    rest = FakeEngine()
    assert (await run(rest, source, output)).ok == 100
    assert rest.asked == {"q5": 1}


async def test_stop_before_the_start(source: Path, output: Path) -> None:
    """Stopped while it still opens its files, a job sends nothing."""
    engine = FakeEngine()
    with open_reader(source, model="m") as reader:
        job = Job(engine, reader, output)
        job.stop()
        result = await job.run()
    assert result.interrupted
    assert not engine.asked


async def test_cancelling_the_run_releases_the_journal(source: Path, output: Path) -> None:
    """A cancelled run, also one that is just opening its journal, leaves no lock, and what was done is kept."""
    for pause in (0.0, 0.05):
        task = asyncio.create_task(
            run(FakeEngine(lambda r: asyncio.sleep(0 if r.custom_id == "q0" else 60)), source, output)
        )
        await asyncio.sleep(pause)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
    rest = FakeEngine()
    assert (await run(rest, source, output)).ok == 100
    assert "q0" not in rest.asked


def slow_publishing(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Make the writing of the output slow; the event tells that it began."""
    began, real = threading.Event(), publishing.entries

    def entries(*args: Any, **options: Any) -> Iterator[Any]:
        for found in real(*args, **options):
            began.set()
            time.sleep(0.02)
            yield found

    monkeypatch.setattr(publishing, "entries", entries)
    return began


async def test_cancelled_while_it_publishes(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is given back only when nobody writes any more, and nothing half-written is left."""
    began = slow_publishing(monkeypatch)
    task = asyncio.create_task(run(FakeEngine(), source, output))
    await asyncio.to_thread(began.wait)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(p.name for p in output.parent.iterdir()) == [
        "in.jsonl",
        "out.jsonl.journal",
        "out.jsonl.manifest.json",
    ]
    monkeypatch.undo()
    assert (await run(FakeEngine(), source, output)).skipped == 100
    assert len(answers(output)) == 100


async def test_stopped_while_it_publishes(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once it writes to the end, asked twice it gives up; the answers stay in the journal."""
    for times in (2, 1):
        began = slow_publishing(monkeypatch)
        with open_reader(questions(source, 20), model="m") as reader:
            job = Job(FakeEngine(), reader, output)
            task = asyncio.create_task(job.run())
            await asyncio.to_thread(began.wait)
            assert job.publishing
            for _ in range(times):
                job.stop()
            result = await task
        assert (result.interrupted, result.done, output.exists()) == (times == 2, 20, times == 1)


@pytest.mark.parametrize("error", [AuthenticationError, QuotaExceededError])
async def test_a_dead_key_stops_the_job(source: Path, output: Path, error: type[QuotaExceededError]) -> None:
    """After some fatal errors in a row the job stops instead of failing every row, and goes on when healed."""

    def behave(request: Request) -> None:
        if request.custom_id not in ("q0", "q1"):
            raise error("no credit left", status_code=401)

    engine = FakeEngine(behave)
    result = await run(engine, source, output)
    assert result.stopped is not None
    assert "10 times in a row: no credit left" in result.stopped
    assert not result.interrupted
    assert sum(engine.asked.values()) < 40
    assert not output.exists()
    assert (await run(FakeEngine(), source, output)).ok == 100


async def test_some_fatal_errors_between_successes_are_rows(source: Path, output: Path) -> None:
    """A key that works for most rows is not dead."""

    def behave(request: Request) -> None:
        if int(request.custom_id[1:]) % 2:  # type: ignore[index]
            raise AuthenticationError("not this model", status_code=401)

    result = await run(FakeEngine(behave), source, output)
    assert (result.ok, result.failed, result.finished) == (50, 50, True)


async def test_stopped_rows_are_not_recorded(source: Path, output: Path) -> None:
    """Rows that the engine did not send, because it was stopped, are not failures."""

    def behave(request: Request) -> None:
        if request.custom_id not in ("q0", "q1"):
            raise StoppedError("the key is parked", sent=False)

    result = await run(FakeEngine(behave), source, output)
    assert result.stopped == "the key is parked"
    assert (result.ok, result.failed) == (2, 0)
    assert (await run(FakeEngine(), source, output)).ok == 100


async def test_a_missing_key_is_no_row_error(source: Path, output: Path) -> None:
    """A ConfigError of every row ends the run as it is, before it made anything; after an answer it is the row's."""

    def behave(request: Request) -> None:
        raise MissingKeyError("set OPENAI_API_KEY")

    with pytest.raises(MissingKeyError, match="OPENAI_API_KEY"):
        await run(FakeEngine(behave), source, output)
    mixed = FakeEngine(lambda r: None if r.custom_id != "q9" else behave(r))
    result = await run(mixed, source, output, concurrency=1)
    assert (result.ok, result.failed) == (99, 1)


@pytest.mark.parametrize("which", [{"q0"}, {"q40"}, {f"q{i}" for i in range(40, 80)}])
async def test_a_row_without_a_provider_destroys_nothing(source: Path, output: Path, which: set[str]) -> None:
    """While others are under way, or have their answer, a model that nobody serves is its rows' own failure."""

    def behave(request: Request) -> Any:
        if request.custom_id in which:
            raise UnknownProviderError(f"no provider for {request.custom_id}")
        return asyncio.sleep(0.002)

    for asked in (100, len(which)):
        engine = FakeEngine(behave)
        result = await run(engine, source, output)
        assert (result.finished, result.ok, result.failed) == (True, 100 - len(which), len(which))
        assert sum(engine.asked.values()) == asked
    assert "no provider for q" in answers(failures_path(output))[0]["_error"]["message"]


async def test_rows_without_a_provider_wait_for_those_in_flight(source: Path, output: Path) -> None:
    """Where nothing came back yet it is not decided; where nothing is under way any more, the mistake is the job's."""

    def behave(request: Request) -> Any:
        if request.custom_id != "q0":
            raise UnknownProviderError("no such provider")
        return asyncio.sleep(0.02)

    result = await run(FakeEngine(behave), source, output)
    assert (result.ok, result.failed) == (1, 99)
    engine = FakeEngine(lambda r: behave(r) if r.custom_id != "q0" else _fail(r, {"q0"}))
    result = await run(engine, source, output, overwrite=True)
    assert (result.ok, result.failed) == (0, 100)


async def test_keys_that_some_rows_lack_do_not_stop_the_others(source: Path, output: Path) -> None:
    """Their errors come at once and in bursts, the others' answers later; the next run, with the key, asks them."""

    def behave(request: Request) -> Any:
        if int(request.custom_id[1:]) % 2:  # type: ignore[index]
            raise MissingKeyError("set SOME_API_KEY")
        return asyncio.sleep(0.01)

    result = await run(FakeEngine(behave), source, output, concurrency=64)
    assert (result.finished, result.ok, result.failed) == (True, 50, 50)
    assert (await run(FakeEngine(), source, output)).ok == 100


async def test_misfits_are_held_in_bounded_memory(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind one slow answer endless rows that nobody serves end the reading, and the answer is kept."""
    monkeypatch.setattr(runner, "_MOST_MISFITS", 5)

    def behave(request: Request) -> Any:
        if request.custom_id != "q0":
            raise UnknownProviderError("no such provider")
        return asyncio.sleep(0.05)

    engine = FakeEngine(behave)
    result = await run(engine, source, output)
    assert (result.stopped, result.ok) == ("no such provider", 1)
    assert sum(engine.asked.values()) < 30
    assert (await run(FakeEngine(behave), source, output)).failed == 99


async def test_a_full_disk_stops_the_job(source: Path, output: Path) -> None:
    """When the journal cannot grow, nothing more is sent, the error is clear, and the job resumes exactly."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    engine = FakeEngine(lambda _: asyncio.sleep(0.002))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(JournalError, match="cannot write"):
            await run(engine, source, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(engine.asked) < 80
    rest = FakeEngine()
    result = await run(rest, source, output)
    assert result.ok == 100
    assert 10 < result.skipped < len(engine.asked)
    assert len(rest.asked) == 100 - result.skipped


async def test_a_disk_full_at_the_output(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the output cannot be written the answers are kept, no half file appears, and the next run writes it."""

    real = os.fsync

    def full(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name.endswith("out.errors.jsonl.partial"):
            raise OSError(28, "No space left on device")
        real(fd)

    engine = FakeEngine(lambda r: _fail(r, {"q1"}))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalError, match=r"No space left.*every answer is in .*journal"):
        await run(engine, source, output)
    monkeypatch.undo()
    assert sorted(p.name for p in output.parent.iterdir()) == [
        "in.jsonl",
        "out.jsonl.journal",
        "out.jsonl.manifest.json",
    ]
    rest = FakeEngine()
    assert (await run(rest, source, output)).ok == 100
    assert rest.asked == {"q1": 1}


async def test_damage_runs_those_rows_again(source: Path, output: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped byte in the journal costs that row another request, loudly, and nothing else."""
    await run(FakeEngine(), source, output)
    path = output.with_name("out.jsonl.journal")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content + b"torn")
    engine = FakeEngine()
    result = await run(engine, source, output)
    assert (result.damaged, len(engine.asked), result.ok) == (1, 1, 100)
    assert "1 damaged places and 4 torn bytes" in caplog.text
    assert len(answers(output)) == 100


async def test_an_unreadable_input_loses_no_answer(tmp_path: Path, output: Path) -> None:
    """A truncated .gz: what was answered until there is kept, the error says where, the output is not published."""
    path = tmp_path / "in.jsonl.gz"
    lines = b"".join(b'{"prompt":"%d"}\n' % random.Random(i).getrandbits(256) for i in range(12000))
    path.write_bytes(gzip.compress(lines)[:-100])
    engine = FakeEngine()
    with pytest.raises(ConfigError, match="after line"):
        await run(engine, path, output)
    assert engine.asked
    assert not output.exists()
    rest = FakeEngine()
    with pytest.raises(ConfigError, match="after line"):
        await run(rest, path, output)
    assert not rest.asked


async def test_a_stream_is_compared_row_by_row(output: Path) -> None:
    """Standard input has no fingerprint: a resumed stream that differs in a finished row is refused."""

    def reader(*prompts: str) -> JSONLReader:
        return JSONLReader(io.BytesIO(b"".join(b'{"prompt":"%s"}\n' % p.encode() for p in prompts)), Recipe(model="m"))

    engine = FakeEngine()
    assert (await run_job(engine, reader("a", "b"), output)).ok == 2
    assert (await run_job(engine, reader("a", "b", "c"), output)).skipped == 2
    assert sum(engine.asked.values()) == 3
    with pytest.raises(JobConflictError, match="row 1 is not what it was"):
        await run_job(engine, reader("a", "x", "c"), output)
    engine2 = FakeEngine()
    many = [str(i) for i in range(600)]
    await run_job(engine2, reader(*many), output, overwrite=True)
    assert (await run_job(engine2, reader(*many), output)).nothing_to_do


class Paused:
    """A writer of a named pipe that pauses."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Both directions, so that neither end waits for the other to open.
        self.path, self.fd = path, os.open(path, os.O_RDWR)

    def write(self, count: int, first: int = 0) -> None:
        os.write(self.fd, b"".join(b'{"custom_id":"q%d","prompt":"p%d"}\n' % (i, i) for i in range(first, count)))


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
async def test_an_input_that_pauses_does_not_hold_up_the_answers(tmp_path: Path, output: Path, name: str) -> None:
    """What came so far is answered and in the journal while the input waits; `stop` does not wait for it either."""
    paused = Paused(tmp_path / name)
    if name.endswith("csv"):
        os.write(paused.fd, b"custom_id,prompt\n" + b"".join(b"q%d,p%d\n" % (i, i) for i in range(20)))
    else:
        paused.write(20)
    engine = FakeEngine(lambda _: asyncio.sleep(0.001))
    with open_reader(paused.path, model="m") as reader:
        job = Job(engine, reader, output, grace=60)
        journal = await job.open()
        running = asyncio.create_task(job.run())
        async with asyncio.timeout(10):
            while journal.ok < 20:
                await asyncio.sleep(0.005)
            assert (job.done, job.total) == (20, None)
            assert "rows" in repr(job)
            job.stop()
            result = await running
    assert (result.interrupted, result.done, result.total) == (True, 20, None)
    assert not any(t.name == "fastllm-input" for t in threading.enumerate())
    os.close(paused.fd)


async def test_a_pipe_is_read_to_its_end_in_bounded_memory(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come a little ahead of the workers, every one once; the next run must read the pipe again."""
    monkeypatch.setattr(ahead, "MOST", 4)
    for expected in (50, 0):
        paused = Paused(tmp_path / "in.jsonl")
        engine = FakeEngine()
        task = asyncio.create_task(run(engine, paused.path, output))
        paused.write(50)
        await asyncio.sleep(0.05)
        os.close(paused.fd)
        result = await task
        assert (result.ok, len(engine.asked)) == (50, expected)
        paused.path.unlink()


async def test_what_reading_a_pipe_raises_ends_the_run(tmp_path: Path, output: Path) -> None:
    """A pipe of damaged gzip: the answers until there are kept, the error is the reader's."""
    paused = Paused(tmp_path / "in.jsonl.gz")
    os.write(paused.fd, gzip.compress(b'{"prompt":"a"}\n')[:-4] + b"oops")
    task = asyncio.create_task(run(FakeEngine(), paused.path, output))
    await asyncio.sleep(0.05)
    os.close(paused.fd)
    with pytest.raises(ConfigError, match="cannot read"):
        await task


async def test_csv_out_and_compressed(source: Path, tmp_path: Path) -> None:
    """The output's suffix chooses its format and compression; equal runs give equal bytes."""
    await run(FakeEngine(), source, tmp_path / "o.csv")
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert lines[0] == "custom_id,text,finish_reason,prompt_tokens,completion_tokens"
    assert lines[1] == "q0,re: p0,stop,2,3"
    for name in ("o.jsonl.gz", "p.jsonl.gz"):
        await run(FakeEngine(), source, tmp_path / name)
    one, two = (tmp_path / "o.jsonl.gz").read_bytes(), (tmp_path / "p.jsonl.gz").read_bytes()
    assert one == two
    assert gzip.decompress(one).count(b"\n") == 100


def test_no_two_outputs_share_their_failures() -> None:
    names = ["o.jsonl", "o.csv", "o.tsv", "o.jsonl.gz", "o.ndjson", "o.csv.gz", "p.jsonl"]
    found = [failures_path(Path(name)).name for name in names]
    assert found[:2] == ["o.errors.jsonl", "o.csv.errors.jsonl"]
    assert len(set(found)) == len(names)


async def test_a_strangers_failures_are_not_replaced(source: Path, output: Path) -> None:
    """A file that stands where this job's failures would go, without its journal, is somebody else's."""
    failures_path(output).write_text("mine")
    engine = FakeEngine()
    with pytest.raises(ConfigError, match="is not of this job"):
        await run(engine, source, output)
    with pytest.raises(ConfigError, match="name of a file of failures"):
        await run(engine, source, failures_path(output), overwrite=True)
    assert failures_path(output).read_text() == "mine" and not engine.asked
    await run(engine, source, output, overwrite=True)
    assert not failures_path(output).exists()


async def test_names_that_cannot_be_are_found_before_anything_is_sent(source: Path, tmp_path: Path) -> None:
    """Also where only the journal's or the failures' name would be too long."""
    engine = FakeEngine()
    for name in ("x" * 300 + ".jsonl", "x" * 244 + ".jsonl", "x" * 235 + ".jsonl"):
        with pytest.raises(ConfigError, match="too long"):
            await run(engine, source, tmp_path / name)
    for name in ("", "/"):
        with pytest.raises(ConfigError, match="must be a file's name"):
            await run(engine, source, Path(name))
    assert not engine.asked


async def test_a_linked_output_is_written_where_it_points(source: Path, output: Path, tmp_path: Path) -> None:
    """The link stays; what it points to is replaced whole. A target that cannot be is found at the start."""
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "answers"
    output.symlink_to(target)
    for options in ({}, {"overwrite": True}):
        await run(FakeEngine(), source, output, **options)  # type: ignore[arg-type]
        assert output.is_symlink() and len(answers(target)) == 100
        assert [p.name for p in target.parent.iterdir()] == ["answers"]
    lost = tmp_path / "lost.jsonl"
    lost.symlink_to(tmp_path / "nowhere" / "x")
    with pytest.raises(ConfigError, match="directory of the output does not exist"):
        await run(FakeEngine(), source, lost)


async def test_another_server_is_another_job(source: Path, output: Path) -> None:
    """Its answers are not mixed in; a journal from before addresses were kept fits any, and no password is in it."""
    await run(FakeEngine(), source, output, base_url="http://u:secret@one/v1/")
    assert b"secret" not in output.with_name("out.jsonl.journal").read_bytes()
    assert (await run(FakeEngine(), source, output, base_url="http://one/v1")).nothing_to_do
    for other in ("http://two/v1", None):
        with pytest.raises(JobConflictError, match='base_url "http://one/v1" -> '):
            await run(FakeEngine(), source, output, base_url=other)
    await run(FakeEngine(), source, output, overwrite=True)
    assert (await run(FakeEngine(), source, output, base_url="http://two/v1")).nothing_to_do


async def test_a_shorter_stream_counts_only_its_own_rows(output: Path) -> None:
    """What an earlier, longer stream left behind is neither counted nor written."""

    def reader(count: int) -> JSONLReader:
        lines = [b'{"custom_id":"q%d","prompt":"x"}\n' % i for i in range(count)]
        return JSONLReader(io.BytesIO(b"".join(lines)), Recipe(model="m"))

    first = await run_job(FakeEngine(lambda r: _fail(r, {"q1", "q8"})), reader(10), output)
    assert (first.ok, first.failed) == (8, 2)
    second = await run_job(FakeEngine(), reader(5), output)
    assert (second.total, second.done, second.ok, second.failed, second.failures) == (5, 5, 5, 0, None)
    assert len(answers(output)) == 5
    assert not failures_path(output).exists()


async def test_rows_that_the_engine_never_saw_are_counted(source: Path, output: Path) -> None:
    """Bad rows and rows that nobody serves: a display adds them, so that what is done comes to the total."""
    with source.open("a") as file:
        file.write("bad\nworse\n")

    def behave(request: Request) -> None:
        if request.custom_id == "q7":
            raise UnknownProviderError("nobody")
        _fail(request, {"q8"})

    with open_reader(source, model="m") as reader:
        job = Job(FakeEngine(behave), reader, output)
        result = await job.run()
    assert (result.failed, job.bad) == (4, 2)
    assert (job.finished, job.errors) == (102, {"InvalidRequestError": 3, "BadRequestError": 1})


async def test_an_empty_input(tmp_path: Path, output: Path) -> None:
    """No rows: an empty output, nothing asked."""
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\n\n")
    result = await run(FakeEngine(), empty, output)
    assert (result.total, result.ok) == (0, 0)
    assert output.read_bytes() == b""


async def test_a_slow_disk_holds_the_workers_back(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that wait to be written are bounded: the run waits for the disk."""
    monkeypatch.setattr(runner, "_MOST_BACKLOG", 0)
    questions(source, 20)
    assert (await run(FakeEngine(), source, output)).ok == 20


KILLED = """
import asyncio, random, sys
from pathlib import Path
from fastllm.formats.base import open_reader
from fastllm.jobs.runner import run_job
from fastllm.types import Response

log = open(sys.argv[3], "ab", buffering=0)

class Engine:
    concurrency = 8
    async def execute(self, request):
        log.write(b"sent %s\\n" % request.custom_id.encode())
        await asyncio.sleep(random.random() / 100)
        log.write(b"answered %s\\n" % request.custom_id.encode())
        return Response(body=b'{"choices":[]}')

with open_reader(sys.argv[1], model="m") as reader:
    print("ready", flush=True)
    asyncio.run(run_job(Engine(), reader, sys.argv[2], concurrency=8))
"""


def test_killed_again_and_again(source: Path, output: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments: every row exactly once in the output, and only those in flight sent again."""
    log = tmp_path / "log"
    rng = random.Random(11)
    kills = 0
    questions(source, 400)
    while not output.exists():
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(source), str(output), str(log)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": SRC},
        )
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(rng.uniform(0.02, 0.25) if kills < 5 else 30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
    assert [a["custom_id"] for a in answers(output)] == [f"q{i}" for i in range(400)]
    sent = Counter(line.split()[1] for line in log.read_bytes().splitlines() if line.startswith(b"sent"))
    assert kills > 0
    assert len(sent) == 400
    # Per kill: those in flight, and those answered within the few milliseconds before the journal had them.
    assert sum(sent.values()) - 400 <= kills * 16


async def test_a_resumed_job_knows_the_ids_of_rows_that_it_passes_over(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row with another's id stays a bad row in every run, also where the other is not looked at any more."""
    monkeypatch.setattr(index, "WORTH", 1)
    source = tmp_path / "in.jsonl"
    ids = ["a", "b", "a", "c", "d", "b", "e"]
    source.write_bytes(b"".join(b'{"custom_id":"%b","prompt":"p%d"}\n' % (i.encode(), n) for n, i in enumerate(ids)))
    broken = {"c", "e"}

    def behave(request: Request) -> None:
        if request.custom_id in broken:
            raise BadRequestError("no", status_code=400)

    for good in ("c", "e"):
        engine = FakeEngine(behave)
        result = await run(engine, source, output)
        assert (result.total, result.failed) == (7, 2 + len(broken))
        assert set(engine.asked) <= {"a", "b", "c", "d", "e"} and max(engine.asked.values()) == 1
        broken.discard(good)
    result = await run(FakeEngine(behave), source, output)
    assert (result.total, result.ok, result.failed) == (7, 5, 2)
    assert [a["custom_id"] for a in answers(output)] == ["a", "b", "c", "d", "e"]
    assert [a["custom_id"] for a in answers(failures_path(output))] == ["a", "b"]
