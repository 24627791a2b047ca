"""`fastllm serve`, killed without a word in the middle of a batch, goes on with it at its next start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from fastllm.testing import MockConfig, checksum_of, serve_in_thread
from kits.commands import ROOT
from kits.gateway import KEY

ROWS, SLOTS = 80, 4


def body(number: int) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": f"hello {number}"}]}


@contextmanager
def serving(folder: Path, base_url: str) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTLLM", "OPENAI"))}
    more = {"PYTHONPATH": str(ROOT / "src"), "OPENAI_API_KEY": "k", "FASTLLM_MASTER_KEY": KEY}
    more |= {"FASTLLM_GATEWAY_DATA_DIR": str(folder / "data"), "FASTLLM_DB": str(folder / "gateway.db")}
    line = [sys.executable, "-m", "fastllm.cli", "serve", "--port", "0", "--base-url", base_url]
    line += ["--concurrency", str(SLOTS)]
    process = subprocess.Popen(line, cwd=folder, env={**kept, **more}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        assert said.startswith("listening on http://"), said
        with openai.OpenAI(base_url=f"{said.split()[-1]}/v1", api_key=KEY, max_retries=0) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def seen(client: openai.OpenAI, id: str, least: int) -> Any:
    """Wait until so many rows are answered, or the batch has ended."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        batch = client.batches.retrieve(id)
        done = batch.request_counts.completed if batch.request_counts is not None else 0
        if batch.status == "completed" or done >= least:
            return batch
        time.sleep(0.01)
    raise AssertionError(f"no more than {done} rows were answered, the batch is {batch.status}")


def test_each_row_of_a_batch_is_answered_once_however_often_the_gateway_is_killed(tmp_path: Path) -> None:
    """A kill costs at most the requests that were under way: they may have been billed, and nobody has their answer."""
    lines = [
        {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body(number)}
        for number in range(ROWS)
    ]
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    kills, id = 0, ""
    with serve_in_thread(MockConfig(latency=0.03)) as mock:
        for least in (10, 30, 50, ROWS + 1):
            with serving(tmp_path, mock.base_url) as (process, client):
                if not id:
                    source = client.files.create(file=("in.jsonl", text), purpose="batch")
                    asked: Any = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
                    id = client.batches.create(input_file_id=source.id, **asked).id
                batch = seen(client, id, least)
                if batch.status == "completed":
                    break
                process.kill()
                process.wait()
                kills += 1
        assert batch.status == "completed" and kills >= 1
        assert batch.request_counts.to_dict() == {"total": ROWS, "completed": ROWS, "failed": 0}
        with serving(tmp_path, mock.base_url) as (_, client):
            answers = [json.loads(line) for line in client.files.content(batch.output_file_id).content.splitlines()]
        sent = mock.stats.requests
    assert [answer["custom_id"] for answer in answers] == [line["custom_id"] for line in lines]
    for number, answer in enumerate(answers):
        said = answer["response"]["body"]["choices"][0]["message"]["content"]
        assert said.startswith(checksum_of(body(number)))
    assert ROWS <= sent <= ROWS + kills * SLOTS
