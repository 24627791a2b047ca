"""`fastllm run` in a process of its own: signals, endings and messages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastllm
from fastllm.testing import MockConfig, serve_in_thread
from kits.commands import settle

FASTLLM = [sys.executable, "-m", "fastllm.cli"]


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig(latency=0.01)) as running:
        yield running


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Any) -> Path:
    """Each test runs in a directory of its own, with the mock as its provider."""
    settle(tmp_path, monkeypatch, server.base_url)
    return tmp_path


def write(count: int, path: str = "in.jsonl", **fields: Any) -> None:
    rows = (json.dumps({"custom_id": f"id-{i}", "prompt": f"question {i}", **fields}) for i in range(count))
    Path(path).write_text("".join(row + "\n" for row in rows))


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FASTLLM, *args], input=stdin, capture_output=True, text=True, timeout=60)


def begin(*args: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*FASTLLM, *args], stderr=subprocess.PIPE, text=True, **options)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_standard_input_that_pauses_can_be_interrupted(number: int, status: int) -> None:
    """Rows so far are answered and kept, and Ctrl-C works, while whoever writes takes a break."""
    process = begin("run", "-", "-o", "out.jsonl", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write('{"prompt":"a"}\n{"prompt":"b"}\n')
    process.stdin.flush()
    journal = Path("out.jsonl.journal")
    until(lambda: journal.exists() and journal.read_bytes().count(b'"choices"') == 2)
    process.send_signal(number)
    assert process.wait(10) == status
    told = process.stderr.read()
    assert "2 rows are done and kept in out.jsonl.journal" in told
    process.stdin.close()
    process.stderr.close()
    assert "Traceback" not in told


def test_a_summary_never_takes_the_place_of_the_jobs_own_files(elsewhere: Path) -> None:
    """Not of the input, the output, the journal or the failures, whatever the way to them is called."""
    write(3)
    Path("link.json").symlink_to("out.jsonl")
    before = Path("in.jsonl").read_bytes()
    for name in ("in.jsonl", "./in.jsonl", "out.jsonl", "link.json", "out.jsonl.journal", "out.errors.jsonl"):
        done = run("run", "in.jsonl", "-o", "out.jsonl", "--summary-json", name)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "the summary" in done.stderr and "give another file" in done.stderr
    assert Path("in.jsonl").read_bytes() == before
    assert sorted(p.name for p in elsewhere.iterdir()) == ["in.jsonl", "link.json"]


def test_a_summary_is_written_whatever_there_was_to_do() -> None:
    """Also where all was done before; where it cannot be written that is one line, and the answers are kept."""
    write(3)
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--summary-json"]
    full = run(*command, "/dev/full")
    assert full.returncode == 2
    assert "cannot write the summary to /dev/full" in full.stderr and "Traceback" not in full.stderr
    assert len(Path("out.jsonl").read_text().splitlines()) == 3
    assert run(*command, "s.json").returncode == 0
    found = json.loads(Path("s.json").read_text())
    assert (found["rows"], found["resumed"], found["ok"], found["left"]) == (3, 3, 0, 0)
    none = run(*command, "no/s.json")
    assert none.returncode == 2 and "cannot write the summary to no/s.json" in none.stderr


def test_what_is_left_is_told_after_ctrl_c() -> None:
    write(3000)
    process = begin("run", "in.jsonl", "-o", "out.jsonl", "--concurrency", "2", "--summary-json", "s.json")
    journal = Path("out.jsonl.journal")
    until(lambda: journal.exists() and journal.read_bytes().count(b'"choices"') > 5)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(10) == 130
    found = json.loads(Path("s.json").read_text())
    assert found["rows"] == 3000 and found["left"] == 3000 - found["ok"] > 2000
    assert f"{found['left']:,} not done" in told
    assert "python -m fastllm.cli run in.jsonl -o out.jsonl --concurrency 2 --summary-json s.json" in told


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "in.jsonl", "-o", ""], "must be a file's name"),
        (["run", "in.jsonl", "-o", "x" * 300 + ".jsonl"], "too long"),
        (["run", "in.jsonl", "-o", "x" * 244 + ".jsonl", "--model", "local/x"], "too long"),
        (["run", "x" * 300 + ".jsonl", "-o", "out.jsonl"], "too long"),
        (["run", "in.jsonl", "-o", "o.jsonl", "--summary-json", "x" * 300], "too long"),
        (["run", "in.jsonl", "-o", "o.jsonl", "--model", "\udce9"], "--model must be text in UTF-8"),
        (["run", "in.jsonl", "-o", "o.jsonl", "--system", "\udce9"], "--system must be text in UTF-8"),
        (["run", "in.jsonl", "-o", "o.jsonl", "--prompt", "\udce9"], "--prompt must be text in UTF-8"),
        (["run", "in.jsonl", "-o", "o.jsonl", "--max-tokens", "1e30"], "--max-tokens must be a whole number"),
        (["run", "in.jsonl", "-o", "o.jsonl", "--dry-run", "--max-tokens", "1e30"], "--max-tokens"),
        (
            ["run", "in.jsonl", "-o", "o.jsonl", "--max-tokens", "-4"],
            "--max-tokens must be a whole number of at least 1",
        ),
        (["run", "in.jsonl", "-o", "o.jsonl", "--temperature", "-1"], "--temperature must be a number of at least 0"),
        (["run", "in.jsonl", "-o", "o.jsonl", "--budget", "-1"], "--budget must be a number of at least 0, not -1"),
        (
            ["run", "in.jsonl", "-o", "o.jsonl", "--rpd", "0"],
            "--rpd must be a number of requests per day of at least 1",
        ),
        (["run", "in.jsonl", "-o", "o.jsonl", "--otpm", "-1"], "--otpm must be a number of answer tokens per minute"),
        (["chat", "\udce9"], "cannot be written as JSON"),
        (["chat", "-"], "standard input is not|cannot be written as JSON"),  # by the locale
    ],
)
def test_what_cannot_be_is_one_plain_line(args: list[str], words: str) -> None:
    write(2)
    done = subprocess.run([*FASTLLM, *args], input=b"\xe9\xff", capture_output=True, timeout=60)
    told = done.stderr.decode("utf-8", "backslashreplace")
    assert (done.returncode, told.count("\n")) == (2, 1), told
    assert any(word in told for word in words.split("|"))


@pytest.mark.parametrize(
    "args", [["config", "show"], ["chat", "hi"], ["prices"], ["run", "in.jsonl", "-o", "o.jsonl", "--dry-run"]]
)
def test_a_full_disk_behind_standard_output_is_one_plain_line(args: list[str]) -> None:
    write(2)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*FASTLLM, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "No space left on device" in done.stderr


def test_fields_that_were_not_sent_are_named_once() -> None:
    write(3, temprature=0, note="x", max_tokens=5)
    for more in (["--dry-run"], []):
        done = run("run", "in.jsonl", "-o", "out.jsonl", "--progress", "none", *more)
        assert done.returncode == 0
        (line,) = done.stderr.splitlines()
        assert "warning: in.jsonl: fields that are no known parameter are not sent" in line
        assert "temprature (3 rows; did you mean temperature?), note (3 rows)" in line


def test_an_interrupt_that_came_too_late_is_none() -> None:
    """While the last rows were in flight: every row has its answer and OUT is whole, so the status is 0."""
    write(2)
    with serve_in_thread(MockConfig(latency=1.0)) as slow:
        process = begin("run", "in.jsonl", "-o", "out.jsonl", "--base-url", slow.base_url)
        until(lambda: slow.stats.requests == 2)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        told = process.stderr.read()
        process.stderr.close()
        assert process.wait(10) == 0
    assert "stopping" in told
    assert len(Path("out.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_stops_when_nobody_reads_what_is_said_any_more() -> None:
    """A reader of standard error that is gone changes nothing: not the stop, not the exit status."""
    write(3000)
    process = begin("run", "in.jsonl", "-o", "out.jsonl", "--concurrency", "2", "--progress", "plain")
    journal = Path("out.jsonl.journal")
    until(lambda: journal.exists() and journal.read_bytes().count(b'"choices"') > 5)
    assert process.stderr is not None
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


@pytest.mark.parametrize("why", ["unreachable", "limits"])
def test_ctrl_c_ends_at_once_where_nothing_is_in_flight(why: str) -> None:
    """Rows that wait for limits, or to try again, are not waited for, and nothing more is sent."""
    write(5)
    with serve_in_thread(MockConfig()) as server:
        options = ["--rpm", "1"] if why == "limits" else ["--base-url", "http://127.0.0.1:9/v1"]
        options = ["--base-url", server.base_url, *options]
        process = begin("run", "in.jsonl", "-o", "out.jsonl", *options)
        journal = Path("out.jsonl.journal")
        if why == "limits":
            until(lambda: journal.exists() and journal.read_bytes().count(b'"choices"') == 1)
        else:
            until(journal.exists)
            time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130 and time.monotonic() - began < 5
        assert server.stats.requests == (1 if why == "limits" else 0)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_commands_that_need_another_print_their_help() -> None:
    for words in ([], ["cache"]):
        done = run(*words)
        assert done.returncode == 0 and done.stdout.startswith("Usage:") and not done.stderr


def test_output_that_is_no_file(elsewhere: Path) -> None:
    write(1)
    for name in (".", "..", "", "no/"):
        done = run("run", "in.jsonl", "-o", name)
        assert done.returncode == 2 and done.stderr.startswith("fastllm: error: ") and done.stderr.count("\n") == 1


def test_failures_say_why_and_whether_the_same_command_helps() -> None:
    write(3)
    for fault, again in (("400", False), ("500", True)):
        with serve_in_thread(MockConfig()) as server:
            server.script([fault] * 3)
            options = ["--base-url", server.base_url, "--max-retries", "0"]
            done = run("run", "in.jsonl", "-o", f"{fault}.jsonl", *options)
        assert done.returncode == 1
        assert f"Error: {fault} from the provider: " in done.stderr
        assert ("the same command tries again" in done.stderr) is again
        assert ("they would fail again" in done.stderr) is not again


def test_messages_name_the_way_out(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    write(1)
    Path("e.csv").touch()
    Path("latin.jsonl").write_bytes(b'{"prompt":"\xe9"}\n')
    monkeypatch.delenv("FASTLLM_BASE_URL")
    monkeypatch.delenv("FASTLLM_MODEL")
    monkeypatch.delenv("OPENAI_API_KEY")
    out = ["-o", "out.jsonl"]
    for args, words in (
        (["run", "in.jsonl", *out], "no model: give --model"),
        (["run", "in.jsonl", *out, "--model", "openai/"], "names a provider and no model: give --model openai/NAME"),
        (["run", "in.jsonl", *out, "--model", "smollm2"], "did you mean --model local/smollm2?"),
        (["run", "in.jsonl", *out, "--model", "m", "--rpm", "-5"], "--rpm must be a number"),
        (["run", "e.csv", *out, "--model", "m"], "must name the columns"),
        (["run", "e.csv", *out, "--model", "m", "--prompt", "{"], "for a brace"),
        (["chat", "hello"], "--model"),
    ):
        done = run(*args)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr
    assert sorted(p.name for p in elsewhere.iterdir()) == ["e.csv", "in.jsonl", "latin.jsonl"]
    done = run("run", "latin.jsonl", *out, "--model", "m", "--base-url", "http://127.0.0.1:9")
    assert "iconv" in done.stderr
    monkeypatch.setenv("FASTLLM_CONCURENCY", "3")
    done = run("cache", "stats", "--cache-dir", "none")
    assert done.returncode == 0 and "no answers are kept" in done.stdout and not Path("none").exists()
    assert done.stderr == (
        "fastllm: warning: no setting is called FASTLLM_CONCURENCY (did you mean FASTLLM_CONCURRENCY?)\n"
    )


def test_a_template_without_columns_is_warned_of() -> None:
    write(2)
    done = run("run", "in.jsonl", "-o", "out.jsonl", "--prompt", "hello")
    assert done.returncode == 0 and done.stderr.count("every row asks the same") == 1
    assert "asks the same" not in run("run", "in.jsonl", "-o", "o.jsonl", "--prompt", "{prompt}").stderr


def test_nothing_to_do_shows_no_progress() -> None:
    write(2)
    assert run("run", "in.jsonl", "-o", "out.jsonl").returncode == 0
    done = run("run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 0 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["--budget", "1"], ["--budget", "0", "--unknown-price", "allow"]])
def test_a_run_that_sent_nothing_leaves_no_journal(args: list[str], elsewhere: Path) -> None:
    write(3)
    Path("prices.toml").write_text('[providers.base_url.models."m"]\ninput = 1.0\noutput = 1.0\n')
    more = ["--prices", "prices.toml", "--max-tokens", "5"] if "allow" in args else []
    done = run("run", "in.jsonl", "-o", "out.jsonl", *args, *more)
    assert done.returncode in (1, 2), done.stderr
    assert "out.jsonl.journal" not in [p.name for p in elsewhere.iterdir()]


def test_a_price_file_that_names_nobody_is_refused(elsewhere: Path) -> None:
    write(1)
    Path("prices.toml").write_text('[providers.base_ur.models."m"]\ninput = 1.0\noutput = 1.0\n')
    for args in (["run", "in.jsonl", "-o", "o.jsonl", "--budget", "1"], ["prices"]):
        done = run(*args, "--prices", "prices.toml")
        assert done.returncode == 2 and "'base_ur'; did you mean 'base_url'?" in done.stderr, done.stderr


def test_every_limit_is_a_flag_and_is_kept() -> None:
    write(5)
    done = run("run", "in.jsonl", "-o", "out.jsonl", "--rpd", "2", "--dry-run")
    assert done.returncode == 0
    process = begin("run", "in.jsonl", "-o", "out.jsonl", "--rpd", "2", "--progress", "none")
    journal = Path("out.jsonl.journal")
    until(lambda: journal.exists() and journal.read_bytes().count(b'"choices"') == 2)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130 and process.stderr is not None
    process.stderr.close()
    assert journal.read_bytes().count(b'"choices"') == 2


def test_settings_that_cannot_be_are_told_when_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTLLM_BUDGET", "FASTLLM_RPM", "FASTLLM_TIMEOUT"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "-1")
            done = run("config", "show")
            assert done.returncode == 2 and name in done.stderr, done.stderr


def test_the_command_line_speaks_of_flags_and_the_library_of_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    write(2)
    Path("out.jsonl").write_text("of somebody else\n")
    told = run("run", "in.jsonl", "-o", "out.jsonl").stderr
    assert "with --overwrite" in told and "overwrite=" not in told
    monkeypatch.delenv("FASTLLM_MODEL")
    told = run("run", "in.jsonl", "-o", "new.jsonl").stderr
    assert "give --model, or name" in told and "model=" not in told
    with fastllm.FastLLM(base_url="http://127.0.0.1:1/v1", api_key="k") as client:
        for source, words in (("out.jsonl", "overwrite=True"), ("new.jsonl", "give model=…")):
            with pytest.raises(fastllm.ConfigError, match=words) as caught:
                client.run("in.jsonl", source, model="m" if source == "out.jsonl" else "")
            assert "--" not in str(caught.value)


def test_more_processes_than_could_be_of_use_are_refused_before_there_is_a_job(elsewhere: Path) -> None:
    write(2)
    for more in (["--dry-run"], []):
        done = run("run", "in.jsonl", "-o", "out.jsonl", "--workers", "100000", *more)
        assert done.returncode == 2 and "workers must be at most" in done.stderr and "not 100000" in done.stderr
    assert [path.name for path in elsewhere.iterdir()] == ["in.jsonl"]


def test_flags_of_a_cache_that_is_not_in_use_are_refused(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says where answers are kept means that they be kept. A variable may speak of other runs; "off" is a word."""
    write(1)
    for more, words in (
        (["--cache-dir", "kept"], "--cache-dir changes nothing where the cache is off: give --cache disk, too"),
        (["--ttl", "5"], "--ttl changes nothing where the cache is off: give --cache disk, too"),
        (["--cache-dir", "kept", "--cache", "memory"], "--cache-dir changes nothing where the cache is memory"),
    ):
        for dry in ([], ["--dry-run"]):
            done = run("run", "in.jsonl", "-o", "out.jsonl", *more, *dry)
            assert done.returncode == 2 and words in done.stderr
    assert [path.name for path in elsewhere.iterdir()] == ["in.jsonl"]
    monkeypatch.setenv("FASTLLM_CACHE_DIR", "kept")
    for more in ([], ["--cache", "off", "--ttl", "5"], ["--cache", "memory", "--ttl", "5"]):
        assert run("run", "in.jsonl", "-o", "out.jsonl", "--overwrite", *more).returncode == 0


def test_a_column_to_keep_that_no_row_has_is_said_before_the_run() -> None:
    """Some rows may lack it; where the first thousand do, it is likely a slip."""
    write(3, label="a")
    for more in ([], ["--dry-run"]):
        done = run("run", "in.jsonl", "-o", "out.jsonl", "--keep", "lable", *more)
        assert done.returncode == 0
        assert "warning: --keep lable: no row has that column; did you mean 'label'?" in done.stderr
        assert done.stderr.count("has that column") == 1
        Path("out.jsonl").unlink(missing_ok=True)
        Path("out.jsonl.journal").unlink(missing_ok=True)
    with Path("in.jsonl").open("a") as file:
        file.write('{"prompt":"x","split":"b"}\n')
    done = run("run", "in.jsonl", "-o", "some.jsonl", "--keep", "split,label,custom_id")
    assert done.returncode == 0 and "has that column" not in done.stderr
    write(1100)
    done = run("run", "in.jsonl", "-o", "many.jsonl", "--keep", "nope", "--dry-run")
    assert "none of the first 1,000 rows has that column" in done.stderr
