"""The gateway beside a bare pass-through on the same server stack: most requests a second, CPU, and added latency.

    python benchmarks/gateway.py [--seconds 5] [--connections 64] [--rates 500,1000]

Most requests a second are those of wrk over so many connections, with a master key, against nginx that answers at once
(`benchmarks/upstream.py`). The pass-through is the least that can stand between: uvicorn, our transport, bytes in and
out, no key, no engine. CPU is user and system time of the server's process for each request.

Added latency is open-loop: requests go out at their times whatever became of those before, to nginx that answers after
20 ms, directly and through the gateway; each is counted from the time at which it was due. Where there are two cores or
more, the server has the first to itself, and nginx and the clients share the last.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from upstream import Latency, _await, _free, upstream

from fastllm import loop
from fastllm.options import Timeout
from fastllm.transport.http import HTTPTransport
from fastllm.types import Headers, HTTPRequest

KEY = "sk-bench-0123456789abcdef"
PATH = "/v1/chat/completions"
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * 500)
TICKS = os.sysconf("SC_CLK_TCK")
SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
wrk.body = '{body}'
"""


class PassThrough:
    """An ASGI app that sends what comes to one address, and its answer back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._transport = HTTPTransport(trust_env=False)
        self._headers = Headers({"content-type": "application/json"})
        self._timeout = Timeout()

    async def __call__(self, scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        message = await receive()  # type: ignore[operator]
        body = message["body"]
        while message.get("more_body"):
            message = await receive()  # type: ignore[operator]
            body += message["body"]
        answer = await self._transport.send(HTTPRequest(url=self._url, body=body, headers=self._headers), self._timeout)
        length = b"%d" % len(answer.body)
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": answer.body})  # type: ignore[operator]


def pass_through(port: int, url: str) -> None:
    more = {"ws": "none", "lifespan": "off", "access_log": False, "log_level": "critical", "server_header": False}
    uvicorn.run(PassThrough(url), port=port, http="httptools", loop="uvloop", **more)  # type: ignore[arg-type]


@contextmanager
def served(command: list[str], port: int) -> Iterator[int]:
    """Run a server on the first core until the block ends; gives its process id."""
    environ = {**os.environ, "FASTLLM_MASTER_KEY": KEY, "OPENAI_API_KEY": "sk-upstream"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = subprocess.Popen(_on(min(_cores()), command), cwd=folder, env=environ, stderr=log.open("wb"))
        try:
            _await(port, process, log)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def gateway(port: int, base_url: str) -> list[str]:
    return [sys.executable, "-m", "fastllm.cli", "serve", "--base-url", base_url, "--port", str(port)]


def bare(port: int, base_url: str) -> list[str]:
    return [sys.executable, __file__, "--pass-through", str(port), f"{base_url}/chat/completions"]


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def _on(core: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(core), *command] if shutil.which("taskset") and len(_cores()) > 1 else command


def cpu_of(pid: int) -> float:
    """The seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def most(port: int, pid: int, connections: int, seconds: float) -> tuple[float, float]:
    """Give requests a second, and CPU microseconds a request."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("this wants wrk: apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(key=KEY, body=BODY.decode()))
        script.flush()
        command = [wrk, "-t1", f"-c{connections}", "-s", script.name, f"http://127.0.0.1:{port}{PATH}"]
        subprocess.run(_on(max(_cores()), [*command, "-d1s"]), check=True, capture_output=True)
        before, began = cpu_of(pid), time.perf_counter()
        timed = _on(max(_cores()), [*command, f"-d{seconds:g}s"])
        out = subprocess.run(timed, check=True, capture_output=True, text=True).stdout
        spent, took = cpu_of(pid) - before, time.perf_counter() - began
    if "Non-2xx" in out:
        raise SystemExit(f"not all answers were good:\n{out}")
    count = int(next(line for line in out.splitlines() if "requests in" in line).split()[0])
    return count / took, 1e6 * spent / count


async def latencies(base_url: str, rate: float, seconds: float) -> list[float]:
    """Send at this rate and give the milliseconds of each answer, from when it was due."""
    transport = HTTPTransport(trust_env=False)
    headers = Headers({"content-type": "application/json", "authorization": f"Bearer {KEY}"})
    request, timeout, found = HTTPRequest(url=f"{base_url}/chat/completions", body=BODY, headers=headers), Timeout(), []

    async def one(due: float) -> None:
        answer = await transport.send(request, timeout)
        assert answer.status == 200, answer.body
        found.append(1000 * (time.perf_counter() - due))

    began = time.perf_counter()
    tasks = set()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    await transport.aclose()
    return found[len(found) // 5 :]  # the first are those that connect


def quantiles(values: list[float]) -> tuple[float, float]:
    cut = statistics.quantiles(values, n=100)
    return cut[49], cut[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rates", default="500,1000")
    parser.add_argument("--pass-through", nargs=2, metavar=("PORT", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pass_through:
        pass_through(int(options.pass_through[0]), options.pass_through[1])
        return
    print(f"Python {platform.python_version()}, {len(_cores())} cores, load {os.getloadavg()[0]:.2f}")
    print(f"\n{options.connections} connections{'requests/s':>20}{'CPU µs/request':>18}")
    figures = {}
    with upstream() as server:
        for name, command in (("pass-through", bare), ("gateway", gateway)):
            port = _free()
            with served(command(port, server.plain), port) as pid:
                figures[name] = most(port, pid, options.connections, options.seconds)
                print(f"{name:<16}{figures[name][0]:>18,.0f}{figures[name][1]:>18.1f}")
    share = figures["gateway"][0] / figures["pass-through"][0]
    print(f"of the pass-through's requests/s the gateway has {100 * share:.0f} %")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(_cores())})
    print(
        f"\n{'ms, open loop':<16}{'direct p50':>12}{'p99':>8}{'gateway p50':>14}{'p99':>8}{'added p50':>12}{'p99':>8}"
    )
    port = _free()
    with upstream(Latency(0.02)) as server, served(gateway(port, server.plain), port):
        for rate in map(float, options.rates.split(",")):
            direct = quantiles(loop.run(latencies(server.plain, rate, options.seconds)))
            through = quantiles(loop.run(latencies(f"http://127.0.0.1:{port}/v1", rate, options.seconds)))
            added = through[0] - direct[0], through[1] - direct[1]
            told = f"{direct[0]:>12.2f}{direct[1]:>8.2f}{through[0]:>14.2f}{through[1]:>8.2f}"
            print(f"{f'{rate:g} a second':<16}{told}{added[0]:>12.2f}{added[1]:>8.2f}")


if __name__ == "__main__":
    main()
