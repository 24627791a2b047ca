"""`fastllm jobs list|show|resume|rm`: what a user sees of earlier runs, and does with them."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastllm.testing import MockConfig, serve_in_thread
from kits.commands import settle

SECRET, PROMPT = "sk-canary-1234567890", "A secret question"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig()) as running:
        yield running


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Any) -> Path:
    settle(tmp_path, monkeypatch, server.base_url, progress="none")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server.reset()
    Path("in.jsonl").write_text("".join(json.dumps({"id": f"r{i}", "text": f"q{i}"}) + "\n" for i in range(10)))
    return tmp_path


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastllm.cli", *args]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


def begin(*args: str) -> subprocess.CompletedProcess[str]:
    return run("run", "in.jsonl", "-o", "out.jsonl", "--prompt", PROMPT + ": {text}", *args)


def test_list(elsewhere: Path, server: Any) -> None:
    server.when(lambda body: "q3" in json.dumps(body), "400")
    assert begin().returncode == 1
    Path("deep/er").mkdir(parents=True)
    Path("x.journal").write_text("of something else")
    assert run("run", "in.jsonl", "-o", "deep/er/other.csv", "--prompt", "{text}").returncode == 1
    lines = run("jobs", "list").stdout.splitlines()
    assert lines[0].split()[:5] == ["OUTPUT", "STATE", "ROWS", "OK", "FAILED"]
    assert [line.split()[:5] for line in lines[1:]] == [
        ["out.jsonl", "finished", "10", "9", "1"],
        ["deep/er/other.csv", "finished", "10", "9", "1"],
    ]
    (only,) = json.loads(run("jobs", "list", "deep", "--json").stdout)
    assert (only["output"], only["ok"], only["failed"], only["rows"]) == ("deep/er/other.csv", 9, 1, 10)
    assert run("jobs", "list", "nowhere").returncode == 2
    Path("empty").mkdir()
    empty = run("jobs", "list", "empty")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "no jobs in empty\n")


def test_of_an_unfinished_job_it_says_how_many_rows_there_are_or_why_not(elsewhere: Path, server: Any) -> None:
    """A resume is worth how much? The input was counted, unless it is a stream, or compressed."""
    server.when(lambda body: "q5" in json.dumps(body), "401")
    Path("in.jsonl.gz").write_bytes(gzip.compress(Path("in.jsonl").read_bytes()))
    flags = ("--prompt", "{text}", "--concurrency", "1")
    assert run("run", "in.jsonl", "-o", "a.jsonl", *flags).returncode == 1
    assert run("run", "in.jsonl.gz", "-o", "b.jsonl", *flags).returncode == 1
    assert run("run", "-", "-o", "c.jsonl", *flags, stdin=Path("in.jsonl").read_text()).returncode == 1
    assert run("run", "in.jsonl", "-o", "d.jsonl", *flags).returncode == 1
    Path("d.jsonl.manifest.json").unlink()
    lines = run("jobs", "list").stdout.splitlines()[1:]
    assert [line.split()[2] for line in lines] == [
        "~10", "compressed", "a", "unknown",
    ]  # fmt: skip
    told = json.loads(run("jobs", "list", "--json").stdout)
    assert [(job["rows"], job["expected"]) for job in told] == [(None, 10), (None, None), (None, None), (None, None)]
    assert "about 10, not all read yet" in run("jobs", "show", "a.jsonl").stdout
    assert "not known (a stream)" in run("jobs", "show", "c.jsonl").stdout


def test_show_tells_everything_but_secrets(elsewhere: Path, server: Any) -> None:
    server.when(lambda body: "q3" in json.dumps(body), "400")
    begin("--temperature", "0.5")
    shown = run("jobs", "show", "out.jsonl")
    told = dict(line.split(None, 1) for line in shown.stdout.splitlines() if not line.startswith("base"))
    assert (told["state"], told["rows"], told["ok"]) == ("finished", "10", "9")
    assert told["failed"] == "1 (1 BadRequestError)"
    assert told["temperature"] == "0.5"
    assert told["attempts"] == "10 (0 retries)"
    assert "finished" in told["run"]
    whole = json.loads(run("jobs", "show", "out.jsonl.journal", "--json").stdout)
    assert whole["totals"]["errors"] == {"BadRequestError": 1}
    assert whole["manifest"]["job"]["model"] == "m"
    for text in (shown.stdout, json.dumps(whole), Path("out.jsonl.manifest.json").read_text()):
        assert SECRET not in text
        assert PROMPT not in text


@pytest.mark.parametrize("verb", ["show", "resume", "rm", "export"])
def test_a_job_that_is_not_there(verb: str) -> None:
    done = run("jobs", verb, "nothing.jsonl", *(["x.csv"] if verb == "export" else []))
    assert done.returncode == 2
    assert done.stderr == "fastllm: error: there is no job of nothing.jsonl: there is no nothing.jsonl.journal\n"


def test_resume_needs_no_word_of_the_command(elsewhere: Path, server: Any) -> None:
    """Model, template, parameters and address are the job's; flags behind it are this run's; from any directory."""
    server.when(lambda body: "q3" in json.dumps(body), "400", times=1)
    begin("--temperature", "0.5")
    assert server.stats.requests == 10
    Path("sub").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "fastllm.cli", "jobs", "resume", "../out.jsonl", "--summary-json", "told.json"],
        cwd="sub",
        env={name: value for name, value in os.environ.items() if name not in ("FASTLLM_MODEL", "FASTLLM_BASE_URL")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert server.stats.requests == 11
    assert PROMPT not in done.stderr
    assert json.loads(Path("told.json").read_text())["ok"] == 1
    answers = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(answers) == 10
    assert all(PROMPT in answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers)


def test_resume_of_a_job_that_was_moved(elsewhere: Path, server: Any) -> None:
    begin()
    Path("out.jsonl").unlink()
    Path("there").mkdir()
    for path in Path().glob("out.jsonl*"):
        shutil.move(path, "there")
    done = run("jobs", "resume", "there/out.jsonl")
    assert done.returncode == 0, done.stderr
    assert len(Path("there/out.jsonl").read_text().splitlines()) == 10
    assert server.stats.requests == 10


def test_what_cannot_be_resumed() -> None:
    done = run("run", "-", "-o", "out.jsonl", stdin='{"prompt":"a"}\n')
    assert done.returncode == 0, done.stderr
    assert "was a stream" in run("jobs", "resume", "out.jsonl").stderr
    Path("out.jsonl.manifest.json").unlink()
    lost = run("jobs", "resume", "out.jsonl")
    assert lost.returncode == 2
    assert "names no command" in lost.stderr
    journal = Path("out.jsonl.journal")
    journal.write_bytes(b"\xff" * 40 + journal.read_bytes()[40:])
    assert run("jobs", "show", "out.jsonl").stdout.splitlines()[1].startswith("state      ")


def test_rm_asks_and_leaves_the_answers(elsewhere: Path) -> None:
    begin()
    answers = Path("out.jsonl").read_bytes()
    refused = run("jobs", "rm", "out.jsonl", stdin="n\n")
    assert refused.returncode != 0
    assert Path("out.jsonl.journal").exists()
    with Path("out.jsonl.journal").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is in use" in run("jobs", "rm", "out.jsonl", "--yes").stderr
        assert "running" in run("jobs", "list").stdout
    done = run("jobs", "rm", "out.jsonl", "--yes")
    assert done.stderr == "removed out.jsonl.manifest.json, out.jsonl.journal\n"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["in.jsonl", "out.jsonl"]
    assert Path("out.jsonl").read_bytes() == answers


def test_rm_warns_of_answers_that_are_nowhere_else() -> None:
    begin()
    Path("out.jsonl").unlink()
    done = run("jobs", "rm", "out.jsonl", "--yes")
    assert "10 answers are only in the journal" in done.stderr
