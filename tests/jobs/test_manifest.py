"""The manifest: what a job was and came to, made from the journal and never more important than it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastllm.answers import TokenDetails, Usage
from fastllm.errors import BadRequestError, ConfigError
from fastllm.formats.base import open_reader
from fastllm.jobs import manifest as manifests
from fastllm.jobs.manifest import Manifest, Run, Totals, manifest_path, read_manifest
from fastllm.jobs.mounts import shared_filesystem
from fastllm.jobs.runner import Job, JobResult
from fastllm.types import Request, Response

PROMPT = "a secret prompt: {prompt}"


class Fake:
    """Each answer costs a cent; the row `bad` fails after three attempts."""

    concurrency = 4

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    async def execute(self, request: Request) -> Response:
        await asyncio.sleep(0)
        if request.custom_id == f"row-{self.bad}":
            error = BadRequestError("no", status_code=400)
            error.attempts, error.endpoint = 3, "e"
            raise error
        usage = Usage(prompt_tokens=5, completion_tokens=7, prompt_tokens_details=TokenDetails(cached_tokens=2))
        return Response(body=b'{"choices":[]}', usage=usage, attempts=2, endpoint="e", cost=0.01)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join('{"prompt":"p"}\n' for _ in range(10)))
    return path


async def run(engine: Fake, source: Path, **options: Any) -> JobResult:
    with open_reader(source, model="m", prompt=PROMPT, params={"temperature": 0.5}) as reader:
        return await Job(engine, reader, source.parent / "out.jsonl", **options).run()


def manifest(source: Path) -> Manifest:
    found = read_manifest(manifest_path(source.parent / "out.jsonl"))
    assert found is not None
    return found


async def test_what_a_job_came_to(source: Path) -> None:
    """Rows, tokens, money, attempts and errors of the whole job over two runs, and the output's own hash."""
    await run(Fake(bad=4), source, command=["run", "in.jsonl"])
    first = manifest(source)
    assert first.totals == Totals(
        rows=10,
        ok=9,
        failed=1,
        prompt_tokens=45,
        completion_tokens=63,
        cached_tokens=18,
        cost_usd=pytest.approx(0.09),
        attempts=21,
        retries=11,
        errors={"BadRequestError": 1},
        endpoints={"e": 10},
    )
    assert (first.state, first.failures) == ("finished", "out.errors.jsonl")
    await run(Fake(), source)
    found = manifest(source)
    output = source.parent / "out.jsonl"
    assert found.output_sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    assert found.output_bytes == output.stat().st_size
    assert found.totals is not None and (found.totals.ok, found.totals.errors) == (10, {})
    assert [(one.state, one.ok, one.failed) for one in found.runs] == [("finished", 9, 1), ("finished", 10, 0)]
    assert found.command == ["run", "in.jsonl"]
    assert (found.job.model, found.job.params) == ("m", {"temperature": 0.5})


async def test_no_prompt_is_in_it_and_nobody_else_reads_it(source: Path) -> None:
    """A template is a hash; the file is its owner's alone."""
    await run(Fake(), source)
    path = manifest_path(source.parent / "out.jsonl")
    assert b"secret" not in path.read_bytes()
    assert manifest(source).job.prompt_sha256 == hashlib.sha256(PROMPT.encode()).hexdigest()[:16]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_run_that_goes_on_is_in_it(source: Path) -> None:
    """A killed run would stay "running" in the list; one that is stopped is "interrupted"."""

    class Slow(Fake):
        async def execute(self, request: Request) -> Response:
            if request.custom_id == "row-5":
                states.append(manifest(source).runs[-1].state)
                job.stop()
                await asyncio.sleep(3600)
            return await super().execute(request)

    states: list[str] = []
    with open_reader(source, model="m", prompt=PROMPT, params={"temperature": 0.5}) as reader:
        job = Job(Slow(), reader, source.parent / "out.jsonl", grace=0)
        await job.run()
    assert states == ["running"]
    assert manifest(source).runs[-1].state == manifest(source).state == "interrupted"
    assert manifest(source).totals is None
    await run(Fake(), source, overwrite=True)
    assert [one.state for one in manifest(source).runs] == ["finished"]


async def test_killed_between_the_output_and_the_manifest(source: Path) -> None:
    """The next run has nothing to ask, and tells all the same what the job came to."""
    await run(Fake(bad=4), source)
    await run(Fake(), source)
    whole = manifest(source)
    path = manifest_path(source.parent / "out.jsonl")
    unfinished = Manifest(job=whole.job, output=whole.output, runs=[Run(began="2026-01-01T00:00:00Z")])
    path.write_bytes(msgspec.json.encode(unfinished))
    partial = path.with_name(f".{path.name}.partial")
    partial.touch()
    result = await run(Fake(), source)
    assert result.nothing_to_do
    found = manifest(source)
    assert (found.state, found.totals, found.output_sha256) == ("finished", whole.totals, whole.output_sha256)
    assert [one.state for one in found.runs] == ["running", "finished"]
    assert not partial.exists()
    before = path.read_bytes()
    await run(Fake(), source)
    assert path.read_bytes() == before


async def test_a_manifest_that_cannot_be_written_costs_no_row(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk refuses it: a warning, and the job is done."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifests, "replacing", refuse)
    result = await run(Fake(), source)
    assert result.finished and result.ok == 10
    assert "No space left" in caplog.text


async def test_a_damaged_manifest_is_written_anew(source: Path) -> None:
    """The journal is the truth: the next run of the job goes on and replaces it."""
    await run(Fake(bad=1), source)
    manifest_path(source.parent / "out.jsonl").write_bytes(b"{")
    assert (await run(Fake(), source)).ok == 10
    assert len(manifest(source).runs) == 1


async def test_a_file_of_somebody_else_stays(source: Path) -> None:
    """What is called like the manifest and is none is not written over by a new job."""
    path = manifest_path(source.parent / "out.jsonl")
    path.write_text("my notes")
    with pytest.raises(ConfigError, match="not the manifest"):
        await run(Fake(), source)
    assert path.read_text() == "my notes"


def test_locks_on_file_systems_of_others(tmp_path: Path) -> None:
    """The innermost mount counts, the later one of two; names with spaces; nobody knows without the list."""
    mounts = tmp_path / "mountinfo"
    here = os.path.realpath(tmp_path)
    (tmp_path / "a b").mkdir()
    mounts.write_text(
        "1 0 0:1 / / rw - nfs4 s:/ rw\n"
        f"2 1 0:2 / {here} rw,x shared:1 - ext4 /dev/a rw\n"
        f"3 2 0:3 / {here}/a\\040b rw - ext4 /dev/b rw\n"
        f"4 3 0:4 / {here}/a\\040b rw - fuse.sshfs h: rw\n"
        "broken\n"
    )
    assert shared_filesystem(Path("/"), mounts) == "nfs4"
    assert shared_filesystem(tmp_path, mounts) is None
    assert shared_filesystem(tmp_path / "a b" / "c", mounts) == "fuse.sshfs"
    assert shared_filesystem(Path(here + "x"), mounts) == "nfs4"
    assert shared_filesystem(tmp_path, tmp_path / "none") is None
