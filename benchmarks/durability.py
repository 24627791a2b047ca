"""What `--durability full` costs: `fastllm run` against `fastllm mock`, by turns with `normal`.

    python benchmarks/durability.py [--rows 30000] [--rate 3000] [--latency 0.1] [--turns 5] [--dir DIR]

Both processes are real, and so is the disk under DIR: a row counts as done in `full` once it is on it. `rate` is the
most requests a second that the latency and the number in flight allow. The mock takes most of one core at 3,000/s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fastllm.testing import MockConfig, serve_in_thread

DURABILITIES = ("normal", "full")


def once(folder: Path, url: str, durability: str, in_flight: int) -> tuple[float, float]:
    """Run the job, and give its requests a second and its CPU microseconds a request."""
    for path in folder.glob("out.*"):
        path.unlink()
    command = [sys.executable, "-m", "fastllm.cli", "run", "in.jsonl", "--output", "out.jsonl", "--model", "m"]
    command += ["--base-url", url, "--concurrency", str(in_flight), "--durability", durability]
    command += ["--summary-json", "out.summary", "--progress", "none"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env={**os.environ, "OPENAI_API_KEY": "k"}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads((folder / "out.summary").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found["ok"] / found["elapsed"], 1e6 * cpu / found["ok"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--rate", type=int, default=3000)
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where the files lie meanwhile (default: the system's choice)")
    args = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in DURABILITIES}
    config = MockConfig(latency=args.latency)
    with tempfile.TemporaryDirectory(dir=args.dir) as name, serve_in_thread(config) as server:
        folder = Path(name)
        words = "word " * 100
        with (folder / "in.jsonl").open("w") as file:
            file.writelines(f'{{"custom_id": "id-{i}", "prompt": "{i} {words}"}}\n' for i in range(args.rows))
        for turn in range(args.turns + 1):
            for durability in DURABILITIES:
                figure = once(folder, server.base_url, durability, round(args.rate * args.latency))
                if turn:  # the first warms up
                    figures[durability].append(figure)
    rates = {name: statistics.median(rate for rate, _ in found) for name, found in figures.items()}
    for durability, found in figures.items():
        each = ", ".join(f"{rate:,.0f}" for rate, _ in found)
        cpu = statistics.median(cpu for _, cpu in found)
        print(f"{durability:7} {rates[durability]:7,.0f} requests/s ({each}), {cpu:.0f} µs CPU a request")
    print(f"full has {100 * rates['full'] / rates['normal']:.1f} % of the throughput of normal")


if __name__ == "__main__":
    main()
