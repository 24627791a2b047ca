"""The gateway beside bare pass-throughs and litellm's proxy: most requests a second, CPU, added latency; in Markdown.

    python benchmarks/gateway.py [--rounds 5] [--seconds 3] [--connections 64] [--rates 500,1000] [--without litellm]

Most requests a second are those of wrk over so many connections, against nginx that answers at once
(`benchmarks/upstream.py`). The gateway is `fastllm serve` as it is: a virtual key with limits of requests, tokens and
parallel requests and with a budget, the log of usage, metrics and dashboard. litellm's proxy has a key, limits of its
model and metrics: keys with limits of their own want a PostgreSQL there. A pass-through is the least that can stand
between: our transport, bytes in and out, no key, no engine; one is on uvicorn's own protocol, one on the gateway's
server. CPU is user and system time of the server's process for each request.

Added latency is open-loop: requests go out at their (random) times whatever became of those before, to nginx that
answers after 20 ms, directly and through the gateway; each is counted from the time at which it was due.

All take turns, and of each the best round counts: whatever else the machine does only ever makes it slower. Medians
stand in parentheses. Where there are two cores or more, the server has the first to itself, and nginx and the clients
share the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import environments
import uvicorn
from contenders import Contender
from upstream import Latency, _await, _free, upstream

from fastllm import loop
from fastllm.gateway.config import GatewayOptions
from fastllm.gateway.server import Server
from fastllm.options import Timeout
from fastllm.transport.http import HTTPTransport
from fastllm.types import Headers, HTTPRequest

MASTER = "sk-bench-0123456789abcdef"
PATH = "/v1/chat/completions"
BODY = b'{"model": "m", "max_tokens": 200, "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * 500)
PRICES = {"providers": {"base_url": {"models": {"m": {"input": 1.0, "output": 2.0}}}}}
LIMITS = ("--rpm", "1e9", "--tpm", "1e12", "--parallel", "100000", "--budget-day", "1e6", "--budget-month", "1e7")
TICKS = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]  # before this process takes one
LITELLM = Contender("litellm's proxy", "", ("litellm[proxy]", "prometheus_client"), "constraints-litellm.txt")
FEW = 16  # connections: with more litellm's proxy only becomes slower
GOALS = "promised: 8,000 a second, 40 % of a pass-through, 100 times litellm's proxy; 0.6 ms p50 and 5 ms p99 added"
SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
wrk.body = '{body}'
"""


class PassThrough:
    """An ASGI app that sends what comes to one address, and its answer back."""

    draining = False

    def __init__(self, url: str, port: int) -> None:
        self.options = GatewayOptions(port=port)
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


async def pass_through(kind: str, port: int, url: str) -> None:
    app = PassThrough(url, port)
    if kind == "ours":
        server = Server(app)  # type: ignore[arg-type]
        server.on_signals(lambda: None)
        await server.run()
        return
    more = {"ws": "none", "lifespan": "off", "access_log": False, "log_level": "critical", "server_header": False}
    await uvicorn.Server(uvicorn.Config(app, port=port, http="httptools", **more)).serve()  # type: ignore[arg-type]


@dataclass
class Contestant:
    """Who is measured: how it is started, and what came out."""

    name: str
    command: Callable[[str, int, Path], list[str]]
    key: str = MASTER
    connections: int | None = None
    port: int = 0
    pid: int = 0
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def served(self, base_url: str) -> Iterator[None]:
        """Run it on the first core until the block ends."""
        self.port = _free()
        environ = {**os.environ, "FASTLLM_MASTER_KEY": MASTER, "OPENAI_API_KEY": "sk-upstream"}
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            command = _on(CORES[0], self.command(base_url, self.port, place))
            log = place / "log"
            with log.open("wb") as out:
                process = subprocess.Popen(command, cwd=folder, env=environ, stderr=out, stdout=out)
            try:
                _listens(self.port, process, log)
                secret = place / "secret"
                self.key = secret.read_text() if secret.exists() else self.key
                self.pid = process.pid
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait()


def _listens(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(15):  # litellm takes half a minute to begin
        try:
            _await(port, process, log)
        except SystemExit:
            if process.poll() is not None:
                raise
        else:
            return
    raise SystemExit(f"nobody listens on {port}: {log.read_text()[-500:]}")


def gateway(base_url: str, port: int, folder: Path) -> list[str]:
    fastllm = [sys.executable, "-m", "fastllm.cli"]
    (folder / "prices.json").write_text(json.dumps(PRICES))
    make = [*fastllm, "keys", "create", "bench", *LIMITS, "--db", "db", "--json"]
    made = subprocess.run(make, cwd=folder, check=True, capture_output=True, text=True).stdout
    (folder / "secret").write_text(json.loads(made)["secret"])
    return [*fastllm, "serve", "--base-url", base_url, "--port", str(port), "--db", "db", "--prices", "prices.json"]


def bare(kind: str) -> Callable[[str, int, Path], list[str]]:
    def command(base_url: str, port: int, folder: Path) -> list[str]:
        return [sys.executable, __file__, "--pass-through", kind, str(port), f"{base_url}/chat/completions"]

    return command


def litellm(base_url: str, port: int, folder: Path) -> list[str]:
    python = environments.python(environments.directory(), LITELLM)
    params = {"model": "openai/m", "api_base": base_url, "api_key": "sk-upstream", "rpm": 10**9, "tpm": 10**12}
    settings = {
        "model_list": [{"model_name": "m", "litellm_params": params}],
        "general_settings": {"master_key": MASTER},
        "router_settings": {"enable_pre_call_checks": True},
        "litellm_settings": {"callbacks": ["prometheus"]},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return [str(python.parent / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]


def _on(core: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(core), *command] if shutil.which("taskset") and len(CORES) > 1 else command


def cpu_of(pid: int) -> float:
    """The seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def most(one: Contestant, connections: int, seconds: int) -> None:
    """Note requests a second, and CPU microseconds a request."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("this wants wrk: apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(key=one.key, body=BODY.decode()))
        script.flush()
        command = [
            wrk,
            "-t1",
            f"-c{one.connections or connections}",
            "-s",
            script.name,
            f"http://127.0.0.1:{one.port}{PATH}",
        ]
        subprocess.run(_on(CORES[-1], [*command, "-d1s"]), check=True, capture_output=True)
        before, began = cpu_of(one.pid), time.perf_counter()
        timed = _on(CORES[-1], [*command, f"-d{seconds}s"])
        out = subprocess.run(timed, check=True, capture_output=True, text=True).stdout
        spent, took = cpu_of(one.pid) - before, time.perf_counter() - began
    if "Non-2xx" in out:
        raise SystemExit(f"not all answers of {one.name} were good:\n{out}")
    count = int(next(line for line in out.splitlines() if "requests in" in line).split()[0])
    one.rates.append(count / took)
    one.cpu.append(1e6 * spent / count)


async def latencies(base_url: str, key: str, rate: float, seconds: float) -> list[float]:
    """Send at this rate and give the milliseconds of each answer, from when it was due.

    Requests are due at random times: at a steady pace all would meet nginx's and the loop's timers, which count whole
    milliseconds, in the same place, and be told a millisecond more or less."""
    transport = HTTPTransport(trust_env=False)
    headers = Headers({"content-type": "application/json", "authorization": f"Bearer {key}"})
    request, timeout, found = HTTPRequest(url=f"{base_url}/chat/completions", body=BODY, headers=headers), Timeout(), []

    async def one(due: float) -> None:
        answer = await transport.send(request, timeout)
        assert answer.status == 200, answer.body
        found.append(1000 * (time.perf_counter() - due))

    chance = random.Random(1)
    due = time.perf_counter()
    tasks = set()
    for _ in range(int(rate * seconds)):
        due += chance.expovariate(rate)
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


def throughput(options: argparse.Namespace) -> None:
    """Print the first table."""
    everybody = [
        Contestant("pass-through on uvicorn's protocol", bare("uvicorn")),
        Contestant("pass-through on the gateway's server", bare("ours")),
        Contestant("the gateway", gateway),
    ]
    if options.without != "litellm":
        everybody.append(Contestant(LITELLM.name, litellm))
        everybody.append(Contestant(f"{LITELLM.name}, {FEW} connections", litellm, connections=FEW))
    with upstream() as server, ExitStack() as stack:
        for one in everybody:
            stack.enter_context(one.served(server.plain))
        for _ in range(options.rounds):
            for one in everybody:
                most(one, options.connections, options.seconds)
    ours = max(everybody[2].rates)
    print(f"\n| {options.connections} connections, one core | requests/s | CPU µs a request | the gateway has |")
    print("|---|---|---|---|")
    for one in everybody:
        best, cpu = max(one.rates), min(one.cpu)
        told = f"{best:,.0f} ({statistics.median(one.rates):,.0f}) | {cpu:,.0f} ({statistics.median(one.cpu):,.0f})"
        share = "" if one is everybody[2] else f"{ours / best:.0%}" if ours < 2 * best else f"{ours / best:,.0f} times"
        print(f"| {one.name} | {told} | {share} |", flush=True)


def added(options: argparse.Namespace) -> None:
    """Print the second table."""
    print("\n| open loop, 20 ms upstream | direct p50, p99 | gateway p50, p99 | added p50 | added p99 |")
    print("|---|---|---|---|---|")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, CORES[-1:])
    one = Contestant("the gateway", gateway)
    with upstream(Latency(0.02)) as server, one.served(server.plain):
        for rate in map(float, options.rates.split(",")):
            direct, through = [], []
            for _ in range(options.rounds):
                direct.append(quantiles(loop.run(latencies(server.plain, one.key, rate, options.seconds))))
                url = f"http://127.0.0.1:{one.port}/v1"
                through.append(quantiles(loop.run(latencies(url, one.key, rate, options.seconds))))
            told = [
                f"{_best(direct, 0):.2f}, {_best(direct, 1):.2f} ms",
                f"{_best(through, 0):.2f}, {_best(through, 1):.2f} ms",
            ]
            for number in (0, 1):
                more = [there[number] - here[number] for here, there in zip(direct, through, strict=True)]
                best = _best(through, number) - _best(direct, number)
                told.append(f"{best:.2f} ms ({statistics.median(more):.2f})")
            print(f"| {rate:g} a second | {' | '.join(told)} |", flush=True)


def _best(rounds: Sequence[tuple[float, float]], number: int) -> float:
    return min(one[number] for one in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rates", default="500,1000")
    parser.add_argument("--without", choices=("litellm", ""), default="")
    parser.add_argument("--pass-through", nargs=3, metavar=("KIND", "PORT", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pass_through:
        kind, port, url = options.pass_through
        with loop.own_process():
            loop.run(pass_through(kind, int(port), url))
        return
    print(f"Python {platform.python_version()}, {len(CORES)} cores, load {os.getloadavg()[0]:.2f}; {GOALS}")
    throughput(options)
    added(options)


if __name__ == "__main__":
    main()
