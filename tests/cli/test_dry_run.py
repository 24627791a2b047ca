"""`fastllm run --dry-run`: counts, tokens, money and time, without a key, a request or a file."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastllm.cli import cli
from fastllm.errors import ConfigError, JobConflictError
from fastllm.policy.pricing import PriceTable
from fastllm.policy.purse import OVERHEAD
from fastllm.policy.tokens import START_RATIO
from fastllm.testing import MockConfig, serve_in_thread


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in a directory of its own, without any key or setting in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "FASTLLM_CONFIG", "FASTLLM_PRICES", "FASTLLM_BUDGET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(count: int, path: str = "in.jsonl", **fields: object) -> None:
    rows = (json.dumps({"custom_id": f"id-{i}", "prompt": f"question {i}", **fields}) for i in range(count))
    Path(path).write_text("".join(row + "\n" for row in rows))


def run(*args: str, dry: bool = True) -> Result:
    result = CliRunner().invoke(
        cli, ["run", "in.jsonl", "-o", "out.jsonl", *args, *(["--dry-run"] if dry else [])], standalone_mode=False
    )
    if result.exception is not None:
        raise result.exception
    return result


def told(*args: str) -> dict[str, str]:
    result = run(*args)
    assert result.return_value == 0
    assert result.output.splitlines()[-1].strip() == "nothing was sent"
    return {line[:15].strip(): line[15:] for line in result.output.splitlines()}


def test_every_number_follows_from_the_rows_the_table_and_the_limits() -> None:
    write(100, max_tokens=50)
    bodies = [
        {"model": "openai/gpt-4o-mini", "max_tokens": 50, "messages": [{"role": "user", "content": f"question {i}"}]}
        for i in range(100)
    ]
    sizes = [len(json.dumps(body, separators=(",", ":"))) for body in bodies]
    prompt = sum(int(size * START_RATIO) + 1 for size in sizes)
    price = PriceTable.load().find("openai", "gpt-4o-mini")
    assert price is not None
    cost = (prompt * price.input + 5000 * price.output) / 1e6
    most = sum(price.bound(size + OVERHEAD, 50) for size in sizes)
    found = told("--model", "openai/gpt-4o-mini", "--rpm", "30", "--tpm", "1e6")
    assert found["requests"] == "100 to ask, 0 answered by an earlier run, 0 bad rows"
    assert found["prompt tokens"].startswith(f"about {prompt:,} ")
    assert found["answer tokens"].startswith("about 5,000 ")
    assert found["cost"] == f"about ${cost:.4f}, at most ${most:.3f} (list prices of {price.date})"
    assert found["time"] == "at least 3m01s at 30 requests and 1,000,000 tokens a minute"


def test_it_needs_no_key_and_leaves_no_trace(elsewhere: Path) -> None:
    write(3)
    args = ["--model", "groq/openai/gpt-oss-20b", "--api-key-env", "NOPE", "--summary-json", "s.json"]
    assert "$" in told(*args, "--cache", "disk", "--cache-dir", "cache")["cost"]
    assert [path.name for path in elsewhere.iterdir()] == ["in.jsonl"]
    assert told("--model", "openai/gpt-4o-mini")["time"] == "limits not known: learnt while running"


def test_rows_of_an_earlier_run_are_not_counted_again_and_bad_rows_are(elsewhere: Path) -> None:
    write(20)
    with Path("in.jsonl").open("a") as file:
        file.write("{bad\n")
    with serve_in_thread(MockConfig()) as server:
        args = ["--model", "m", "--base-url", server.base_url, "--progress", "none"]
        server.when(lambda body: "question 7" in str(body), "400")
        assert run(*args, dry=False).return_value == 2
        sent = server.stats.requests
        before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
        found = told(*args)
        assert found["requests"].startswith("1 to ask (1 of them failed in an earlier run), 19 answered by an earlier")
        assert "1 bad row (line 21: not valid JSON" in found["requests"]
        assert told(*args, "--overwrite")["requests"].startswith("20 to ask, 0 answered")
        assert told(*args, "--retry-failed")["requests"].startswith("1 to ask (1 of them failed")
        assert told(*args, "--no-retry-failed")["requests"].startswith("0 to ask, 19 answered")
        with pytest.raises(JobConflictError, match="belongs to a job that differs in model"):
            told("--model", "other", "--base-url", server.base_url)
        forced = told("--model", "other", "--base-url", server.base_url, "--force")
        assert forced["requests"].startswith("1 to ask (1 of them failed in an earlier run), 19 answered")
        assert server.stats.requests == sent
        assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before
    found = told("--model", "m", "--base-url", args[3], "--prompt", "{prompt}", "--overwrite")
    assert found["requests"].startswith("20 to ask")


def test_only_what_failed_needs_an_earlier_run() -> None:
    write(2)
    with pytest.raises(ConfigError, match="no rows that failed"):
        run("--model", "m", "--retry-failed")


def test_an_unknown_price_is_said_with_the_model_and_what_is_known_of_the_others() -> None:
    Path("in.jsonl").write_text(
        '{"prompt":"a","model":"azure/mine"}\n{"prompt":"b","model":"openai/gpt-4o"}\n{"prompt":"c","model":"xai/x"}\n'
    )
    found = told("--budget", "5")
    assert found["cost"].startswith("unknown price for azure/mine and 1 more model; the others about $0.0")
    assert found["budget"] == "$5.00 would refuse azure/mine: what it may cost is not known"
    allowed = told("--budget", "0.1", "--unknown-price", "allow")["budget"]
    assert allowed == "$0.10, the estimate leaves $0.097, without the unknown prices"


def test_prices_come_from_a_file_from_the_vendors_own_address_and_from_being_local() -> None:
    write(10, max_tokens=1000)
    Path("mine.toml").write_text('[providers.base_url.models."m"]\ninput = 0\noutput = 100\n')
    found = told("--model", "m", "--base-url", "http://localhost:1/v1", "--prices", "mine.toml", "--budget", "0.25")
    assert found["cost"].startswith("about $1.00, at most $1.00 ")
    assert found["budget"] == "$0.25, $0.75 less than the estimate"
    assert "unknown price for m" in told("--model", "m", "--base-url", "http://localhost:1/v1")["cost"]
    assert "$" in told("--model", "gpt-4o-mini", "--base-url", "https://api.openai.com/v1/")["cost"]
    assert told("--model", "local/smollm2")["cost"] == "$0.00 (free)"
    assert told("--model", "ollama/llama3:8b", "--budget", "0")["budget"] == "$0.00, the estimate leaves $0.00"


def test_n_answers_bound_n_answers() -> None:
    write(1, n=4)
    most = told("--model", "openai/gpt-4o-mini")["cost"].partition("at most $")[2].split()[0]
    assert float(most) == pytest.approx(4 * 16_384 * 0.6 / 1e6, abs=0.005)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget", "-1"], "budget must be a number of at least 0"),
        (["--budget", "nan"], "--budget must be a number"),
        (["--unknown-price", "maybe"], "--unknown-price must be one of refuse, allow"),
        (["--prices", "none.json"], "none.json"),
        (["--rpm", "-1"], "--rpm must be a number"),
        (["-o", "in.jsonl"], "in.jsonl"),
        (["-o", "there.jsonl"], "there.jsonl exists"),
        (["-o", "no/dir/x.jsonl"], "no/dir"),
    ],
)
def test_what_the_run_would_refuse_is_refused(args: list[str], message: str) -> None:
    write(1)
    Path("there.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match=message):
        told("--model", "openai/gpt-4o-mini", *args)


def test_the_variable_is_as_good_as_the_flag(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(3)
    monkeypatch.setenv("FASTLLM_DRY_RUN", "1")
    result = run("--model", "gpt-4o-mini", dry=False)
    assert result.exit_code == 0 and "requests" in result.output and not (elsewhere / "out.jsonl").exists()


def test_memory_does_not_grow_with_the_input() -> None:
    write(60_000)
    told("--model", "openai/gpt-4o-mini")  # what is loaded once
    peaks = []
    for count in (6_000, 60_000):
        write(0)
        with Path("in.jsonl").open("w") as file:
            file.writelines('{"prompt":"' + "x" * 100 + '"}\n' for _ in range(count))
        tracemalloc.start()
        told("--model", "openai/gpt-4o-mini")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000, "of 6 MB of further input"
