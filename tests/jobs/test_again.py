"""Running a job again: by force, only what failed, only what is missing; and the order of the output."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm.answers import Usage
from fastllm.errors import BadRequestError, ConfigError, JobConflictError
from fastllm.formats.base import open_reader
from fastllm.jobs.journal import Entry, Identity, Journal
from fastllm.jobs.runner import Job, JobResult
from fastllm.types import Request, Response

FIRST_VERSION = Path(__file__).parent / "first_version"


class Fake:
    """Answers with its name and the question, in a random order; questions in `bad` fail."""

    concurrency = 4

    def __init__(self, name: str = "a", bad: set[str] | None = None) -> None:
        self.name = name
        self.bad = bad or set()
        self.asked: Counter[str] = Counter()
        self.met_p9 = asyncio.Event()
        self._rng = random.Random(5)

    async def execute(self, request: Request) -> Response:
        question = msgspec.json.decode(request.body)["messages"][-1]["content"]
        self.asked[question] += 1
        if question == "p9":
            self.met_p9.set()
        await asyncio.sleep(self._rng.random() / 500)
        if question in self.bad:
            error = BadRequestError("no", status_code=400)
            error.attempts = 2
            raise error
        body = json.dumps({"choices": [{"message": {"content": f"{self.name}: {question}"}}]}).encode()
        return Response(body=body, usage=Usage(prompt_tokens=2, completion_tokens=3))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", [f"p{i}" for i in range(40)])


def write(path: Path, prompts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


async def run(engine: Any, source: Path, *, model: str = "m", prompt: str | None = None, **options: Any) -> JobResult:
    with open_reader(source, model=model, prompt=prompt) as reader:
        return await Job(engine, reader, source.parent / "out.jsonl", **options).run()


def texts(source: Path) -> list[str]:
    lines = (source.parent / "out.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line)["response"]["body"]["choices"][0]["message"]["content"] for line in lines]


async def test_only_what_failed_is_asked(source: Path) -> None:
    """`retry_failed=True` asks the failed rows, and no other."""
    bad = {"p3", "p7"}
    assert (await run(Fake(bad=bad), source)).failed == 2
    again = Fake()
    result = await run(again, source, retry_failed=True)
    assert set(again.asked) == bad
    assert result.finished and result.ok == 40
    assert texts(source)[3] == "a: p3"


async def test_rows_never_asked_are_left_to_another_run(source: Path) -> None:
    """`retry_failed=True` says that rows are missing, writes no output, and the next run asks those."""
    with open_reader(source, model="m") as reader:
        engine = Fake(bad={"p0"})
        job = Job(engine, reader, source.parent / "out.jsonl", grace=0)
        task = asyncio.create_task(job.run())
        await engine.met_p9.wait()
        job.stop()
        first = await task
    assert first.interrupted and first.failed == 1
    again = Fake()
    result = await run(again, source, retry_failed=True)
    assert set(again.asked) == {"p0"}
    assert result.stopped is not None and "never asked" in result.stopped
    assert not (source.parent / "out.jsonl").exists()
    rest = Fake()
    assert (await run(rest, source)).ok == 40
    assert not set(rest.asked) & {"p0"}
    assert texts(source) == [f"a: p{i}" for i in range(40)]


async def test_what_failed_may_stay_failed(source: Path) -> None:
    """`retry_failed=False` asks nothing that failed; twice, it has nothing to do."""
    await run(Fake(bad={"p3"}), source)
    for _ in range(2):
        again = Fake()
        result = await run(again, source, retry_failed=False)
        assert not again.asked
        assert (result.ok, result.failed, result.finished, result.nothing_to_do) == (39, 1, True, True)
    assert (source.parent / "out.errors.jsonl").exists()


async def test_failed_rows_need_an_earlier_run(source: Path) -> None:
    """Without a journal there is nothing that failed, and nothing is made."""
    with pytest.raises(ConfigError, match="retry_failed"):
        await run(Fake(), source, retry_failed=True)
    assert [p.name for p in source.parent.iterdir()] == ["in.jsonl"]


async def test_force_goes_on_with_other_parameters(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Answers stay as they are, the rest is asked anew, it is said loudly, and the job is the new one from then on."""
    await run(Fake(bad={"p3"}), source)
    with pytest.raises(JobConflictError, match="force=True"):
        await run(Fake(), source, model="other")
    result = await run(Fake("b"), source, model="other", force=True)
    assert result.ok == 40
    assert texts(source)[2:5] == ["a: p2", "b: p3", "a: p4"]
    assert '"m" -> "other"' in caplog.text and "39 answers stay" in caplog.text
    assert (await run(Fake(), source, model="other")).nothing_to_do
    with pytest.raises(JobConflictError):
        await run(Fake(), source)


@pytest.mark.parametrize("is_killed", [False, True])
async def test_force_goes_on_with_another_input(source: Path, is_killed: bool) -> None:
    """Rows that are others now keep their answers, new ones are asked."""
    await run(Fake(), source)
    write(source, ["another", *(f"p{i}" for i in range(1, 42))])
    with pytest.raises(JobConflictError):
        await run(Fake(), source)
    if is_killed:  # right after it had taken the journal over
        with open_reader(source, model="m") as reader:
            (await Job(Fake(), reader, source.parent / "out.jsonl", force=True).open()).close()
    again = Fake("b")
    result = await run(again, source, force=not is_killed)
    assert set(again.asked) == {"p40", "p41"}
    assert result.ok == 42
    assert texts(source)[0] == "a: p0"


@pytest.mark.parametrize("option", [{"force": True}, {"retry_failed": True}, {"retry_failed": False}])
async def test_overwrite_starts_anew(source: Path, option: dict[str, bool]) -> None:
    """Options about an earlier run make no sense where that is to be forgotten."""
    with pytest.raises(ConfigError, match="overwrite=True"):
        await run(Fake(), source, overwrite=True, **option)


async def test_answers_in_the_order_in_which_they_came(source: Path) -> None:
    """Every row once, in the journal's order, also where a row was asked twice; an unknown order is refused."""
    await run(Fake(bad={"p0"}), source)
    assert texts(source) == [f"a: p{i}" for i in range(1, 40)]
    await run(Fake("b"), source, order="finished")
    found = texts(source)
    assert found[-1] == "b: p0"
    assert sorted(found[:-1]) == sorted(f"a: p{i}" for i in range(1, 40)) != found[:-1]
    with pytest.raises(ConfigError, match="order"):
        await run(Fake(), source, order="random")


@pytest.mark.parametrize("size", [*range(40), 255, 256, 257, 1000, 5000])
def test_a_header_takes_in_what_the_job_becomes(tmp_path: Path, size: int) -> None:
    """Whatever the length of a prompt, the new identity is there after a restart, or the old one as it was."""
    path = tmp_path / "o.journal"
    before = Identity(fingerprint="x", model="m")
    journal = Journal.open(path, before)
    journal.append(0, True, 1, Entry(body=b"answer"))
    journal.close()
    now = Identity(fingerprint="x", model="m", prompt="ü" * size)
    journal = Journal.open(path, now, force=True)
    assert len(journal.differences) == 1
    journal.take_over(now)
    journal.close()
    fits = size < 500
    journal = Journal.open(path, now if fits else before)
    assert journal.identity == (msgspec.structs.replace(now, moved=True) if fits else before)
    assert journal.moved is fits
    assert journal.read(0).body == b"answer"
    journal.close()


async def test_a_journal_of_the_first_version_goes_on(tmp_path: Path) -> None:
    """It was written by the first code that had a journal: two answers, a failure, and a row that was never asked. What
    its entries and its identity did not have yet counts as not known."""
    source = tmp_path / "in.jsonl"
    source.write_bytes((FIRST_VERSION / "in.jsonl").read_bytes())
    (tmp_path / "out.jsonl.journal").write_bytes((FIRST_VERSION / "recorded").read_bytes())
    engine = Fake()
    assert (await run(engine, source, model="")).ok == 4
    assert engine.asked == {"q2": 1, "q3": 1}
    assert texts(source) == ["a0", "a1", "a: q2", "a: q3"]
    again = Fake()
    assert (await run(again, source, model="")).nothing_to_do
    assert not again.asked
