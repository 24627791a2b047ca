"""`fastllm serve --workers`: one address, limits and budgets kept together, and nobody who is missed for long."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastllm.testing import MockConfig, MockServer, serve_in_thread
from kits.gateway import KEY
from kits.serve import FILE, command, data, environment, post, serving, until

HEADER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def mock() -> Iterator[MockServer]:
    with serve_in_thread(MockConfig(api_key="upstream", latency=0.1)) as mock:
        yield mock


def settled(folder: Path, mock: MockServer, more: str = "") -> dict[str, str]:
    """Write the settings, and give the environment."""
    (folder / "fastllm.toml").write_text(FILE.format(more=more, base_url=mock.base_url))
    return {"OURS": "upstream", "FASTLLM_MASTER_KEY": KEY, "XDG_STATE_HOME": str(folder)}


def children(pid: int) -> list[int]:
    """Give the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ask(origin: str, count: int, threads: int = 16) -> list[int]:
    with ThreadPoolExecutor(threads) as pool:
        return [status for status, _ in pool.map(lambda i: post(origin, "ours", **HEADER), range(count))]


def answered(origin: str) -> float:
    """Give how many requests /metrics tells of."""
    with urllib.request.urlopen(urllib.request.Request(f"{origin}/metrics", headers=HEADER), timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families if family.name == "fastllm_requests" for sample in family.samples]
    return sum(sample.value for sample in samples if sample.labels["status"] == "200" and sample.labels["model"])


def test_processes_keep_a_limit_together_and_one_that_is_killed_is_replaced(tmp_path: Path, mock: MockServer) -> None:
    keys = settled(tmp_path, mock)
    with serving(tmp_path, "--workers", "2", "--concurrency", "3", **keys) as (process, origin):
        first = children(process.pid)
        assert len(first) == 2
        assert set(ask(origin, 60)) == {200}
        assert mock.stats.most_in_flight == 3
        address = f"{origin}/dashboard/data"
        until(lambda: data(address, KEY)["totals"]["counts"]["ok"] == 60)
        until(lambda: all(answered(origin) == 60 for _ in range(10)))  # both have told of theirs
        os.kill(first[0], signal.SIGKILL)
        until(lambda: len(set(children(process.pid)) - set(first)) == 1)
        until(lambda: set(ask(origin, 20)) == {200})
        until(lambda: all(data(address, KEY)["totals"]["counts"]["ok"] >= 80 for _ in range(10)))
        until(lambda: answered(origin) >= 80)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_budget_is_one_for_all_of_them(tmp_path: Path, mock: MockServer) -> None:
    keys = settled(tmp_path, mock)
    prices = tmp_path / "prices.toml"
    prices.write_text(
        '[providers.base_url.models."m"]\ninput = 0\noutput = 0\nper_request = 1\nmax_output_tokens = 100\n'
    )
    with serving(tmp_path, "--workers", "3", "--budget", "10", "--prices", str(prices), **keys) as (_, origin):
        got = ask(origin, 60)
    assert set(got) == {200, 429}
    assert mock.stats.answered == got.count(200) <= 10
    assert got.count(200) >= 8  # a dollar or two may be held by a process that gets no more requests


def test_sighup_reaches_all_and_sigterm_ends_all_even_where_the_first_one_is_killed(
    tmp_path: Path, mock: MockServer
) -> None:
    keys = settled(tmp_path, mock)
    with serving(tmp_path, "--workers", "2", **keys) as (process, origin):
        assert post(origin, "theirs", **HEADER)[0] == 404
        text = (tmp_path / "fastllm.toml").read_text()
        (tmp_path / "fastllm.toml").write_text(text.replace("[routes.ours]", "[routes.theirs]"))
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert "reloaded" in process.stderr.readline()
        with ThreadPoolExecutor(8) as pool:
            until(lambda: set(pool.map(lambda i: post(origin, "theirs", **HEADER)[0], range(16))) == {200})
        others = children(process.pid)
        process.kill()
        until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in others))


def test_a_sighup_before_all_serve_kills_nobody(tmp_path: Path, mock: MockServer) -> None:
    keys = settled(tmp_path, mock)
    line = [sys.executable, "-m", "fastllm.cli", "serve", "--workers", "2"]
    process = subprocess.Popen(line, cwd=tmp_path, env=environment(**keys), stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: len(children(process.pid)) == 2)
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("listening on")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_nobody_is_let_in_any_more_while_the_last_requests_end(tmp_path: Path) -> None:
    with serve_in_thread(MockConfig(api_key="upstream", latency=3.0)) as slow:
        keys = settled(tmp_path, slow)
        with serving(tmp_path, "--workers", "2", **keys) as (process, origin), ThreadPoolExecutor(1) as pool:
            last = pool.submit(post, origin, "ours", **HEADER)
            until(lambda: slow.stats.in_flight == 1)
            process.send_signal(signal.SIGTERM)
            until(lambda: refused(origin))
            assert last.result()[0] == 200
            assert process.wait(20) == 0


def refused(origin: str) -> bool:
    host, _, port = origin.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_local_model_is_not_loaded_in_each_of_them(tmp_path: Path) -> None:
    ended = command(tmp_path, "--workers", "2", "--model", "local/smollm2")
    assert ended.returncode == 2
    assert "local/smollm2 is loaded by one process" in ended.stderr


def test_a_local_model_is_not_reloaded_into_each_of_them(tmp_path: Path, mock: MockServer) -> None:
    keys = settled(tmp_path, mock)
    with serving(tmp_path, "--workers", "2", **keys) as (process, origin):
        path = tmp_path / "fastllm.toml"
        path.write_text(path.read_text() + 'fallbacks = ["local/smollm2"]\n')
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert "not reloaded: local/smollm2 is loaded by one process" in process.stderr.readline()
        assert post(origin, "ours", **HEADER)[0] == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "0"), "--workers must be a whole number of at least 1"),
        (("--workers", "100000", "--check"), "workers must be at most"),
        (("--workers", "2", "--place", "nonsense"), "leave it out"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    ended = command(tmp_path, *arguments)
    assert ended.returncode == 2
    assert words in ended.stderr
