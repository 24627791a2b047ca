"""Memory that a request in flight takes: the most that a process had at 4,096 in flight, less that at 64, per request.

    python benchmarks/footprint.py [--in-flight 4096] [--only "fastllm stream,aiohttp alone"]

Over plain HTTP and TLS, with requests of 600 B and answers of 1 KB that come after a second, so that all are in flight
at once. The contenders, their environments and the server are those of `run.py`. Goals: 12 KB, with TLS 80 KB.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import environments
import rounds
from contenders import CONTENDERS, OURS, Contender
from contenders.work import Work
from upstream import CONTENT, Latency, Upstream, upstream

FEW = 64
SECOND = 1.0
GOALS = {"plain": 12.0, "TLS": 80.0}  # KB for each in flight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default=OURS, help="names of contenders, with commas between")
    parser.add_argument("--envs", type=Path, default=environments.directory())
    options = parser.parse_args()
    rounds.many_files()
    names = [name.strip() for name in options.only.split(",")]
    print(f"KB a request in flight, median of {options.repeat}: from {FEW} to {options.in_flight:,} in flight")
    with upstream(Latency(SECOND)) as server:
        for contender in (c for c in CONTENDERS if c.name in names):
            python = environments.python(options.envs, contender)
            for kind, url in (("plain", server.plain), ("TLS", server.tls)):
                each = [_each(contender, python, url, options.in_flight, server) for _ in range(options.repeat)]
                goal = f"  goal ≤ {GOALS[kind]:g}" if contender.name == OURS else ""
                print(f"{contender.name:24} {kind:6} {statistics.median(each):7.1f}{goal}", flush=True)


def _each(contender: Contender, python: Path, url: str, in_flight: int, server: Upstream) -> float:
    few, many = (rounds.run(contender, python, _work(url, count), server).measured for count in (FEW, in_flight))
    for measured in (few, many):
        assert measured.good == measured.requests, measured
    return (many.rss - few.rss) / 1000 / (in_flight - FEW)


def _work(url: str, in_flight: int) -> Work:
    return Work(
        url=url,
        requests=2 * in_flight,
        in_flight=in_flight,
        seconds=20.0,
        core=rounds.client_core(),
        characters=len(CONTENT),
        chunks=0,
        latency=SECOND,
    )


if __name__ == "__main__":
    main()
