"""`fastllm run --schema`: answers that fit, in a process of its own, and messages for everything that does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastllm.testing import MockConfig, serve_in_thread
from kits.commands import settle

CITY = {
    "title": "City",
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name", "people"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig()) as running:
        yield running


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Any) -> None:
    """A directory of its own with an input and a schema, and the mock as the provider."""
    server.reset()
    settle(tmp_path, monkeypatch, server.base_url)
    Path("in.jsonl").write_text("".join(f'{{"prompt":"city {i}"}}\n' for i in range(6)))
    Path("city.json").write_text(json.dumps(CITY))


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastllm.cli", "run", "in.jsonl", "-o", "out.jsonl", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def contents() -> list[dict[str, Any]]:
    rows = map(json.loads, Path("out.jsonl").read_text().splitlines())
    return [json.loads(row["response"]["body"]["choices"][0]["message"]["content"]) for row in rows]


def test_every_answer_fits_or_is_a_failure_that_keeps_it_and_is_tried_again(server: Any) -> None:
    server.when(lambda body: body["messages"][0]["content"] == "city 3", "misfit", times=2)
    server.when(lambda body: body["messages"][0]["content"] == "city 4", "misfit", times=1)
    first = run("--schema", "city.json", "--schema-retries", "1", "--summary-json", "s.json")
    assert first.returncode == 1
    assert "InvalidAnswerError: the answer does not fit the schema City" in first.stderr
    assert "1 row failed: see out.errors.jsonl; the same command tries again" in first.stderr
    assert "own words" not in first.stderr and len(contents()) == 5
    found = json.loads(Path("s.json").read_text())
    assert (found["rows"], found["ok"], found["failed"], found["misfits"], found["attempts"]) == (6, 5, 1, 3, 8)
    assert found["errors"] == {"InvalidAnswerError": 1}
    (failure,) = map(json.loads, Path("out.errors.jsonl").read_text().splitlines())
    assert failure["prompt"] == "city 3" and failure["_error"]["attempts"] == 2
    assert "own words" in failure["_answer"]["choices"][0]["message"]["content"]
    again = run("--schema", "city.json")
    assert again.returncode == 0 and not Path("out.errors.jsonl").exists()
    assert len(contents()) == 6 and all(set(city) == {"name", "people"} for city in contents())
    assert server.stats.requests == 8 + 1


def test_the_schema_is_part_of_what_makes_the_job_the_same() -> None:
    assert run("--schema", "city.json").returncode == 0
    for other in ((), ("--schema", "other.json")):
        Path("other.json").write_text(json.dumps({**CITY, "title": "Town"}))
        done = run(*other)
        assert done.returncode == 2 and "differs in the schema: give another output" in done.stderr
    Path("moved.json").write_text(json.dumps(CITY, indent=4))  # where it lies and how it is written do not matter
    assert run("--schema", "moved.json", "--schema-retries", "5").returncode == 0


@pytest.mark.parametrize(
    ("args", "content", "words"),
    [
        (("--schema", "nowhere.json"), None, "cannot read the schema nowhere.json: No such file"),
        (("--schema", "bad.json"), "{", "the schema bad.json is not valid JSON"),
        (("--schema", "bad.json"), "[]", "must be an object"),
        (("--schema", "bad.json"), '{"type": "objekt"}', 'at $.type: "objekt"'),
        (("--schema-retries", "2"), None, "give --schema, too"),
        (("--schema", "city.json", "--schema-retries", "-1"), None, "--schema-retries must be a whole number of at"),
        (("--schema", "city.json", "--schema-retries", "x"), None, "--schema-retries must be a whole number, not 'x'"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_schema_that_is_none_costs_nothing(
    args: tuple[str, ...], content: str | None, words: str, dry: tuple[str, ...], server: Any
) -> None:
    """One line that says what is wrong; nothing is sent and nothing left behind."""
    if content is not None:
        Path("bad.json").write_text(content)
    done = run(*args, *dry)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert server.stats.requests == 0 and not Path("out.jsonl.journal").exists()


def test_a_row_that_can_have_no_schema_is_named_and_the_others_are_done() -> None:
    with Path("in.jsonl").open("a") as file:
        file.write('{"input":["a","b"],"model":"mock-embedding"}\n')
    done = run("--schema", "city.json")
    assert done.returncode == 2 and "line 7: /embeddings takes no schema" in done.stderr
    assert len(contents()) == 6
