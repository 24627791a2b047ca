"""`fastllm serve` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kits.commands import ROOT

FILE = """
[gateway]
port = 0
{more}
[routes.ours]
endpoints = [{{model = "m", base_url = "{base_url}", api_key_env = "OURS"}}]
"""


def environment(**more: str) -> dict[str, str]:
    """This machine's, without settings and keys, but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTLLM", "OPENAI"))}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), **more}


def command(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "fastllm.cli", "serve", *arguments]
    return subprocess.run(line, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=60)


@contextmanager
def serving(folder: Path, *arguments: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run it, and give the process and its address."""
    line = [sys.executable, "-m", "fastllm.cli", "serve", *arguments]
    process = subprocess.Popen(line, cwd=folder, env=environment(**more), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("listening on http://"), said
        assert process.stderr.readline() == f"dashboard: {said.split()[-1]}/dashboard\n"
        yield process, said.split()[-1]
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def post(origin: str, model: str, **headers: str) -> tuple[int, bytes]:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = urllib.request.Request(f"{origin}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def data(address: str, key: str | None = None) -> dict[str, Any]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
        return json.loads(answer.read())


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.05)
