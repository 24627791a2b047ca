"""The dashboard as people meet it: of a gateway with keys, of a run, and in a real browser where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fastllm.testing import MockConfig, serve_in_thread
from kits.gateway import KEY
from kits.serve import FILE, data, environment, post, serving, until

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_a_gateway_shows_what_its_clients_got_to_the_master_key_alone(tmp_path: Path) -> None:
    with serve_in_thread(MockConfig(api_key="upstream")) as mock:
        (tmp_path / "fastllm.toml").write_text(FILE.format(more="", base_url=mock.base_url))
        keys = {"OURS": "upstream", "FASTLLM_MASTER_KEY": KEY, "XDG_STATE_HOME": str(tmp_path)}
        line = [sys.executable, "-m", "fastllm.cli", "keys", "create", "team"]
        made = subprocess.run(line, cwd=tmp_path, env=environment(**keys), capture_output=True, text=True, check=True)
        team = made.stdout.strip()
        with serving(tmp_path, **keys) as (_, origin):
            for key in (KEY, team, team):
                assert post(origin, "ours", authorization=f"Bearer {key}")[0] == 200
            assert post(origin, "ours")[0] == 401
            with urllib.request.urlopen(f"{origin}/dashboard", timeout=20) as page:
                assert b"<title>FastLLM</title>" in page.read()  # no key for what tells nothing
            for key in (None, team):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    data(f"{origin}/dashboard/data", key)
                assert refused.value.code == (401 if key is None else 403)
                refused.value.close()
            address = f"{origin}/dashboard/data"
            until(lambda: data(address, KEY)["totals"]["counts"]["ok"] == 3)
            found = data(address, KEY)
            assert [view["name"].split(" ")[0] for view in found["keys"]] == ["team", "master"]
            assert found["models"][0]["requests"] == 3
            assert found["errors"] == {"missing_api_key": 1}
            assert found["endpoints"][0]["slots"] > 0
            assert team not in json.dumps(found)


def test_a_run_shows_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"What is {i}?\n" for i in range(400)))
    with serve_in_thread(MockConfig(latency=0.2)) as mock:
        line = [sys.executable, "-m", "fastllm.cli", "run", "in.txt", "-o", "out.jsonl", "--model", "m", "--dashboard"]
        line += ["--base-url", mock.base_url, "--concurrency", "5", "--progress", "none"]
        run = subprocess.Popen(line, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
        try:
            assert run.stderr is not None
            said = run.stderr.readline()
            assert said.startswith("dashboard: http://127.0.0.1:"), said
            address = said.split()[-1]
            until(lambda: len(data(address + "data")["samples"]) > 1)
            found = data(address + "data")
            (job,) = found["jobs"]
            assert job["job"]["total"] == 400
            assert 0 < job["job"]["done"] < 400
            assert found["endpoints"][0]["slots"] == 5
        finally:
            run.kill()
            run.wait()
            assert run.stderr is not None
            run.stderr.close()


def test_a_port_that_is_none_is_said_before_there_is_a_job(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("What?\n")
    line = [sys.executable, "-m", "fastllm.cli", "run", "in.txt", "-o", "out.jsonl", "--model", "m"]
    line += ["--base-url", "http://127.0.0.1:1/v1", "--dashboard-port", "99999"]
    ended = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and "0 to 65535; not 99999" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")
def test_a_real_browser_shows_it(tmp_path: Path) -> None:
    assert BROWSER is not None
    with serve_in_thread(MockConfig(api_key="upstream")) as mock:
        (tmp_path / "fastllm.toml").write_text(FILE.format(more="", base_url=mock.base_url))
        with serving(tmp_path, OURS="upstream", XDG_STATE_HOME=str(tmp_path)) as (_, origin):
            assert post(origin, "ours")[0] == 200
            until(lambda: len(data(f"{origin}/dashboard/data")["samples"]) > 1)
            line = [
                BROWSER,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'browser'}",
            ]
            line += ["--virtual-time-budget=4000", "--dump-dom", f"{origin}/dashboard"]
            shown = subprocess.run(line, capture_output=True, text=True, timeout=90, check=True).stdout
    assert "1 answered" in shown
    assert '<path class="line s0" d="M' in shown
    assert ">ours<" in shown and ">m at 127.0.0.1" in shown
    assert 'id="door" hidden' in shown
