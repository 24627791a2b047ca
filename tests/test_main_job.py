"""The main job as users run it: `fastllm run` in a process of its own, against the mock and with the real model."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastllm.testing import MockConfig, serve_in_thread

FASTLLM = [sys.executable, "-m", "fastllm.cli"]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig(latency=0.01)) as running:
        yield running


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FASTLLM", "OPENAI"))}
    return {**kept, "OPENAI_API_KEY": "k", "PYTHONPATH": str(ROOT / "src"), **more}


def run(*args: str, cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FASTLLM, *args], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=120, env=environment(**env)
    )


def write_rows(path: Path, count: int) -> list[str]:
    ids = [f"id-{i}" for i in range(count)]
    path.write_text("".join(json.dumps({"custom_id": i, "prompt": f"question {i}"}) + "\n" for i in ids))
    return ids


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_real_model_answers_the_questions(tmp_path: Path) -> None:
    """The README's first command: answers of a real model, the capital of France among them."""
    questions = (ROOT / "examples" / "questions.jsonl").read_text().splitlines()
    assert 35 <= len(questions) <= 45
    (tmp_path / "questions.jsonl").write_text("\n".join(questions[:10]))
    done = run("run", "questions.jsonl", "--model", "local/smollm2", "--output", "answers.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "answers.jsonl")
    texts = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}
    assert len(texts) == 10 and all(texts.values())
    assert "Paris" in texts["question-01"]


def test_killed_half_way_and_run_again_every_row_is_there_once_and_nothing_answered_is_sent_again(
    tmp_path: Path, server: Any
) -> None:
    ids = write_rows(tmp_path / "in.jsonl", 1500)
    command = ["run", "in.jsonl", "--output", "out.jsonl", "--model", "m", "--base-url", server.base_url]
    command += ["--concurrency", "20"]
    for at in (300, 800):
        process = subprocess.Popen(
            [*FASTLLM, *command], cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while server.stats.answered < at and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert not (tmp_path / "out.jsonl").exists()
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["custom_id"] for row in read_rows(tmp_path / "out.jsonl")] == ids
    # At most what was in flight at each kill, or answered and not yet written, was asked again.
    assert server.stats.requests <= 1500 + 2 * 60
    before = server.stats.requests
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0 and "already" in again.stderr and server.stats.requests == before


def test_a_second_run_from_the_cache_sends_nothing(tmp_path: Path, server: Any) -> None:
    write_rows(tmp_path / "in.jsonl", 200)
    options = ["--model", "m", "--base-url", server.base_url, "--cache", "disk", "--cache-dir", "cache"]
    assert run("run", "in.jsonl", "--output", "a.jsonl", *options, cwd=tmp_path).returncode == 0
    sent = server.stats.requests
    done = run("run", "in.jsonl", "--output", "b.jsonl", *options, "--summary-json", "s.json", cwd=tmp_path)
    found = json.loads((tmp_path / "s.json").read_text())
    assert done.returncode == 0 and server.stats.requests == sent == 200
    assert (found["cached"], found["ok"], found["cache_hit_ratio"]) == (200, 200, 1.0)
    first, second = read_rows(tmp_path / "a.jsonl"), read_rows(tmp_path / "b.jsonl")
    assert [r["response"]["body"] for r in first] == [r["response"]["body"] for r in second]
    shown = run("cache", "stats", "--cache-dir", "cache", cwd=tmp_path)
    assert shown.stdout.startswith("200 answers")
    assert "removed 200" in run("cache", "clear", "--cache-dir", "cache", cwd=tmp_path).stdout


def test_ctrl_c_drains_says_how_to_go_on_and_exits_130(tmp_path: Path, server: Any) -> None:
    ids = write_rows(tmp_path / "in.jsonl", 3000)
    command = ["run", "in.jsonl", "--output", "out.jsonl", "--model", "m", "--base-url", server.base_url]
    process = subprocess.Popen(
        [*FASTLLM, *command, "--concurrency", "10"], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    while server.stats.answered < 100:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130, told
    assert "go on with" in told and "in.jsonl --output out.jsonl" in told and "Traceback" not in told
    sent = server.stats.requests
    assert sent < 3000
    assert run(*command, cwd=tmp_path).returncode == 0
    assert [row["custom_id"] for row in read_rows(tmp_path / "out.jsonl")] == ids
    assert server.stats.requests == 3000  # drained: nothing was asked twice


def test_a_limit_is_kept_without_a_single_refusal(tmp_path: Path) -> None:
    """The mock enforces what we were told to keep: 0 refused. (The 60 s version at 600 RPM is in benchmarks/.)"""
    with serve_in_thread(MockConfig(rpm=150, latency=0.005)) as server:
        write_rows(tmp_path / "in.jsonl", 150)
        done = run(
            "run", "in.jsonl", "--output", "o.jsonl", "--model", "m", "--base-url", server.base_url, "--rpm", "150",
            "--concurrency", "50", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0 and server.stats.refused_429 == 0 and server.stats.most_requests_60s == 150


def test_failed_rows_are_in_a_file_that_is_input_again(tmp_path: Path, server: Any) -> None:
    rows = [
        '{"custom_id":"a","prompt":"fine"}',
        "{broken",
        '{"custom_id":"b","prompt":"bad one"}',
        '{"custom_id":"a","prompt":"x"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    server.when(lambda body: "bad one" in str(body), "400")
    command = ["run", "in.jsonl", "--output", "out.jsonl", "--model", "m", "--base-url", server.base_url]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 2 and "3 rows failed: see out.errors.jsonl" in done.stderr
    assert "fastllm: error: in.jsonl: line 2: not valid JSON" in done.stderr
    assert "fastllm: error: in.jsonl: line 4: custom_id 'a' was already used on line 1" in done.stderr
    assert [row["custom_id"] for row in read_rows(tmp_path / "out.jsonl")] == ["a"]
    failed = read_rows(tmp_path / "out.errors.jsonl")
    assert "line 2: not valid JSON" in failed[0]["_error"]["message"]
    assert failed[1]["_error"]["class"] == "BadRequestError" and failed[1]["prompt"] == "bad one"
    assert "already used on line 1" in failed[2]["_error"]["message"]
    server.reset()
    retried = run("run", "out.errors.jsonl", "--output", "more.jsonl", *command[4:], cwd=tmp_path)
    assert retried.returncode == 2
    assert {row["custom_id"] for row in read_rows(tmp_path / "more.jsonl")} == {"b", "a"}


def test_csv_templates_standard_input_and_gzip(tmp_path: Path, server: Any) -> None:
    base = ["--model", "m", "--base-url", server.base_url]
    (tmp_path / "in.csv").write_text('id,text\nr1,"one, two"\nr2,three\n')
    done = run(
        "run", "in.csv", "--prompt", "Sum up: {text}", "--system", "Be {id}", "--output", "o.jsonl", *base, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "o.jsonl")
    assert [r["custom_id"] for r in rows] == ["r1", "r2"]
    assert "Sum up: one, two" in rows[0]["response"]["body"]["choices"][0]["message"]["content"]
    typo = run("run", "in.csv", "--prompt", "{txt}", "--output", "x.jsonl", *base, cwd=tmp_path)
    assert typo.returncode == 2 and "{txt}" in typo.stderr and "did you mean {text}" in typo.stderr
    piped = run("run", "-", "--output", "p.jsonl", *base, cwd=tmp_path, stdin='{"prompt":"piped"}\n')
    assert piped.returncode == 0 and len(read_rows(tmp_path / "p.jsonl")) == 1
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"prompt":"packed"}\n'))
    assert run("run", "in.jsonl.gz", "--output", "g.jsonl", *base, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["run", "in.jsonl", "--output", "o.jsonl"],
            "no model: give --model",
        ),
        (["run", "none.jsonl", "--output", "o.jsonl", "--model", "m"], "none.jsonl"),
        (["run", "in.jsonl", "--output", "o.jsonl", "--model", "groq/x"], "GROQ_API_KEY"),
        (["run", "in.jsonl", "--output", "o.jsonl", "--model", "local/none.gguf"], "no such model"),
        (["run", "in.jsonl", "--output", "o.jsonl", "--modell", "x"], "--model"),
        (["run", "in.jsonl", "--output", "o.jsonl", "--model", "m", "--rpm", "nan"], "--rpm must be a number"),
        (["run", "in.jsonl", "--output", "o.jsonl", "--model", "m", "--rpm", "-1"], "--rpm must be a number"),
        (["run", "in.jsonl", "--output", "o.jsonl", "--model", "m", "--api-key-env", "NOPE"], "NOPE"),
        (["run", "in.jsonl", "--output", "there.jsonl", "--model", "m"], "there.jsonl exists"),
        (["run", "in.jsonl", "--output", "in.jsonl", "--model", "m"], "in.jsonl"),
        (["run", "in.jsonl", "--output", "no/dir/o.jsonl", "--model", "m"], "no/dir"),
        (["run", "in.jsonl", "--output", "o.jsonl", "--model", "opnai/gpt"], "did you mean 'openai'"),
        (["run", "in.jsonl", "--output", "o.jsonl", "--model", "m", "--summary-json", "no/s.json"], "no/s.json"),
        (["run", "in.xlsx", "--output", "o.jsonl", "--model", "m"], "suffix"),
        (["mock", "--port", "99999"], "port"),
        (["mock", "--error-rate", "2"], "error_rate"),
        (["chat", "hi"], "no model was given"),
        (["chat", "hi", "--model", "m", "--attach", "no.png"], "--attach no.png: No such file"),
        (["chat", "hi", "--model", "m", "--attach", "there.jsonl"], "'there.jsonl' is none of PNG"),
        (["nonsense"], "nonsense"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_that_names_the_thing_with_exit_status_2(
    tmp_path: Path, args: list[str], message: str
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt":"x"}\n')
    (tmp_path / "there.jsonl").write_text("mine\n")
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) == 1, done.stderr
    assert (tmp_path / "there.jsonl").read_text() == "mine\n"


def test_another_job_for_the_same_output_is_refused_with_the_difference(tmp_path: Path, server: Any) -> None:
    write_rows(tmp_path / "in.jsonl", 3)
    command = ["run", "in.jsonl", "--output", "out.jsonl", "--base-url", server.base_url, "--model"]
    assert run(*command, "m", cwd=tmp_path).returncode == 0
    other = run(*command, "other", cwd=tmp_path)
    assert other.returncode == 2 and "model" in other.stderr and "--overwrite" in other.stderr
    assert run(*command, "other", "--overwrite", cwd=tmp_path).returncode == 0


def test_settings_come_from_the_file_and_the_environment_too(tmp_path: Path, server: Any) -> None:
    (tmp_path / "fastllm.toml").write_text(f'model = "m"\nbase_url = "{server.base_url}"\nrpm = 1000\n')
    write_rows(tmp_path / "in.jsonl", 2)
    assert run("run", "in.jsonl", "--output", "o.jsonl", cwd=tmp_path, FASTLLM_RPM="500").returncode == 0
    shown = run("config", "show", cwd=tmp_path, FASTLLM_RPM="500")
    lines = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines()}
    assert lines["rpm"] == ["500", "FASTLLM_RPM"] and lines["model"] == ["m", "fastllm.toml"]
    assert lines["timeout"] == ["600", "default"]


def test_chat_streams_one_answer(tmp_path: Path, server: Any) -> None:
    done = run("chat", "Tell me", "--model", "m", "--base-url", server.base_url, cwd=tmp_path)
    assert done.returncode == 0 and "Tell me" in done.stdout
    (tmp_path / "a.gif").write_bytes(b"GIF89a\x01\x00\x01\x00")
    done = run("chat", "A picture", "--attach", "a.gif", "--model", "m", "--base-url", server.base_url, cwd=tmp_path)
    assert done.returncode == 0 and "A picture" in done.stdout
    server.script(["401"])
    done = run("chat", "Tell me", "--model", "m", "--base-url", server.base_url, cwd=tmp_path)
    assert done.returncode == 1 and "401" in done.stderr and len(done.stderr.splitlines()) == 1


def test_mock_prints_its_address_when_it_listens_and_ends_with_ctrl_c() -> None:
    process = subprocess.Popen(
        [*FASTLLM, "mock", "--rpm", "5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().split()[-1]
    with urllib.request.urlopen(address.removesuffix("/v1") + "/stats", timeout=10) as answer:
        assert json.load(answer)["requests"] == 0
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode in (0, 130) and errors == ""


def test_version_and_help() -> None:
    assert run("--version", cwd=ROOT).stdout == "fastllm 0.1.0\n"
    shown = run("run", "--help", cwd=ROOT).stdout
    flags = "output model base-url api-key-env concurrency rpm tpm max-retries hedge timeout cache cache-dir ttl prompt"
    for flag in [*flags.split(), "system", "progress", "summary-json", "overwrite"]:
        assert f"--{flag} " in shown
