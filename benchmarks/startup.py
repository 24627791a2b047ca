"""What it takes to start: `import fastllm`, the client, `fastllm --help`; each in fresh processes.

    python benchmarks/startup.py [--repeat 10]

Medians, with the bare interpreter beside them. The first run, which may have to compile, is not counted. Memory is the
resident set after the statement. Names of `fastllm` are loaded when they are first used, hence the other rows. Goals:
`import fastllm` within 150 ms and 40 MB, `fastllm --help` within 250 ms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "import fastllm": "import fastllm",
    "the client": "from fastllm import FastLLM",
    "a client, opened": "from fastllm import FastLLM; FastLLM(base_url='http://127.0.0.1:9/v1', api_key='k').close()",
}
PROCESSES = {"python -c pass": ("-c", "pass"), "fastllm --help": ("-m", "fastllm.cli", "--help")}
PROGRAM = """
import time
began = time.perf_counter()
{statement}
taken = time.perf_counter() - began
with open("/proc/self/status") as file:
    lines = dict(line.split(":", 1) for line in file)
print(taken, int(lines["VmRSS"].split()[0]) / 1000)
"""


def measured(statement: str) -> tuple[float, float]:
    """Give the milliseconds a statement takes in a fresh process, and the MB that the process then has in memory."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(statement=statement)], stdout=-1, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return 1000 * seconds, megabytes


def whole(*arguments: str) -> float:
    """Give the milliseconds of a whole process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10)
    repeat = parser.parse_args().repeat
    _, bare = zip(*(measured("pass") for _ in range(repeat + 1)), strict=True)
    base = statistics.median(bare[1:])
    print(f"median of {repeat}; {'statement':18} {'ms':>7} {'MB in all':>10} {'MB added':>9}")
    for name, statement in STATEMENTS.items():
        runs = [measured(statement) for _ in range(repeat + 1)][1:]
        milliseconds, megabytes = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{'':14}{name:18} {milliseconds:7.1f} {megabytes:10.1f} {megabytes - base:9.1f}")
    print(f"\nmedian of {repeat}; {'whole process':18} {'ms':>7}")
    for name, arguments in {
        "python -c pass": ("-c", "pass"),
        "fastllm --help": ("-m", "fastllm.cli", "--help"),
    }.items():
        milliseconds = statistics.median([whole(*arguments) for _ in range(repeat + 1)][1:])
        print(f"{'':14}{name:18} {milliseconds:7.1f}")


if __name__ == "__main__":
    main()
