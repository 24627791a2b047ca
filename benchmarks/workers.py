"""What further worker processes bring: rows a second and CPU µs a row, with 1, 2, … workers.

    python benchmarks/workers.py [--rows 200000] [--workers 1,2] [--in-flight 512]

Two rounds. Without a network each worker answers from a stand-in transport, one turn of the loop later, so that what is
measured is everything but the upstream: reading rows, sharing them out, admission, decoding, collecting. Then against
nginx, which needs a part of the same cores: there the sum of all CPU time a row, nginx's too, says what the cores
allow, and the last column how near to that it came.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instant import InstantTransport
from upstream import ANSWER, Latency, upstream

from fastllm import AsyncFastLLM, Limits, build, worker
from fastllm.loop import run

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "' + b"x" * 540 + b'"}]}'
LATENCY = 0.05
STAND_IN = "benchmarks' stand-in"


def stand_in() -> InstantTransport:
    return InstantTransport(ANSWER.encode())


def bodies(rows: int) -> Iterator[bytes]:
    return (BODY for _ in range(rows))


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and its children: nginx answers in one of those."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in tree(int(child)))]


def everyone(client: AsyncFastLLM) -> list[int]:
    team: Any = client._many
    return [os.getpid(), *(member.process.pid for member in getattr(team, "members", ()))]


async def measured(client: AsyncFastLLM, rows: int, in_flight: int, server: int | None) -> tuple[float, float, float]:
    """Give rows a second, CPU µs a row of this process and its workers, and of the server."""
    async for _ in client.stream(bodies(8 * in_flight)):
        pass
    pids, servers = everyone(client), tree(server) if server else []
    before, served, began = sum(map(cpu_of, pids)), sum(map(cpu_of, servers)), time.perf_counter()
    count = 0
    async for outcome in client.stream(bodies(rows)):
        count += outcome.ok
    seconds = time.perf_counter() - began
    assert count == rows, f"{rows - count} rows were not answered"
    used, served = sum(map(cpu_of, pids)) - before, sum(map(cpu_of, servers)) - served
    return rows / seconds, 1e6 * used / rows, 1e6 * served / rows


def stand_in_worker() -> None:
    """Run in the worker processes of the first round: `fastllm.worker`, with the stand-in for a transport."""
    build.TRANSPORT = f"{stand_in.__module__}:stand_in"
    worker.main()


async def one(url: str, workers: int, rows: int, in_flight: int, server: int | None) -> tuple[float, float, float]:
    limits = Limits(concurrency=in_flight * workers, adaptive=False)
    more: dict[str, Any] = {} if server or workers > 1 else {"transport": stand_in()}
    async with AsyncFastLLM(base_url=url, api_key="k", limits=limits, workers=workers, **more) as client:
        return await measured(client, rows, in_flight, server)


def show(title: str, results: dict[int, tuple[float, float, float]]) -> None:
    cores = os.cpu_count() or 1
    print(f"\n{title}")
    print(f"{'workers':>7} {'rows/s':>8} {'times':>6} {'µs a row':>9} {'server':>7} {'most rows/s':>12} {'reached':>8}")
    first = results[min(results)][0]
    for workers, (rate, ours, served) in results.items():
        most = cores * 1e6 / (ours + served)
        print(
            f"{workers:>7} {rate:8,.0f} {rate / first:6.2f} {ours:9.1f} {served:7.1f} {most:12,.0f} {rate / most:8.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--in-flight", type=int, default=512, help="for each worker")
    given = parser.parse_args()
    sizes = [int(size) for size in given.workers.split(",")]
    cores = len(os.sched_getaffinity(0))
    print(f"Python {platform.python_version()}, {platform.machine()}, {cores} cores, {time.strftime('%Y-%m-%d')}")
    usual = worker.COMMAND
    worker.COMMAND = (
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import workers; workers.stand_in_worker()",
        str(Path(__file__).parent.absolute()),
    )
    null = "http://stand-in.example/v1"
    show(f"Without a network ({STAND_IN})", {n: run(one(null, n, given.rows, given.in_flight, None)) for n in sizes})
    worker.COMMAND = usual
    with upstream(Latency(LATENCY), pinned=False) as server:
        found = {n: run(one(server.plain, n, given.rows, given.in_flight, server.pid)) for n in sizes}
    show(f"Against nginx on the same cores, {LATENCY * 1000:.0f} ms", found)


if __name__ == "__main__":
    main()
