"""`fastllm run`: the command line, with its journal, limits, statistics and output file.

All of --concurrency is used from the start, as by every other contender. Start-up is taken away: the same command with
one row is measured before, and what it took is subtracted.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from work import KEY, Measured, Work, bodies, child

LIMITS = ["--rpm", "100000000", "--tpm", "1000000000000", "--adaptive", "off"]


def run(work: Work, folder: Path, count: int) -> tuple[Measured, int]:
    """Give what the command took, and how many rows have their answer in the output."""
    source, output = folder / f"{count}.jsonl", folder / f"{count}.out.jsonl"
    with source.open("w") as file:
        file.writelines(json.dumps(body) + "\n" for body in bodies(count))
    command = [sys.executable, "-m", "fastllm.cli", "run", str(source), "--output", str(output)]
    command += ["--base-url", work.url, "--concurrency", str(work.in_flight), *LIMITS, "--progress", "none"]
    measured, _ = child(command, cwd=folder, env={**os.environ, "OPENAI_API_KEY": KEY})
    with output.open() as file:
        answers = (json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] for line in file)
        return measured, sum(map(work.good, answers))


def main(work: Work) -> None:
    with tempfile.TemporaryDirectory() as folder:
        started, _ = run(work, Path(folder), 1)
        whole, good = run(work, Path(folder), work.requests)
    seconds, spent = whole.seconds - started.seconds, whole.cpu - started.cpu
    Measured(work.requests, good, work.requests + 1, seconds, spent, whole.rss).print()


main(Work.given())
