"""FastLLM beside what people use instead, in one run: CPU µs a request, requests a second, memory, what was lost.

    python benchmarks/run.py --quick        a few minutes, once the environments are there
    python benchmarks/run.py                20,000 requests a round, three rounds: by hand, on a quiet machine
    python benchmarks/run.py --tls | --only stream,aiohttp | --in-flight 4096 --latency 1

Each contender sends chat requests of 600 B, `--in-flight` of them at once, to an nginx that answers with 1 KB after
`--latency` seconds (`upstream.py`), in a process of its own on the first core; nginx has the last. Rounds go in turn (A
B C A B C), and the medians are told. Slow contenders send fewer requests, so that a round of theirs takes seconds and
not minutes; their connections are opened before the measurement, as everybody's are. CPU is user and system time of the
contender's process. Efficiency is the ideal time, requests / in flight x latency, over the real one.

Environments are made with pip under `--envs` (a directory that is kept), at the versions of constraints.txt. A
contender that cannot be installed or fails is told as such. Writes a table (Markdown) and a plot (SVG) to `--output`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from run_svg import plot
from upstream import Latency, Upstream, upstream

HERE = Path(__file__).parent
ENVS = Path.home() / ".cache" / "fastllm-bench"
LONGEST = 600.0  # seconds that a round of one contender may take
START_UP = 500  # rows of the run that is taken off one of the command line, so that its start-up does not count


@dataclass(frozen=True)
class Contender:
    """`script` in contenders/, run with `packages`; `share` of the requests is what it sends. `goal`: how many times
    FastLLM's CPU a request its own must be at least."""

    name: str
    title: str
    script: str = ""
    packages: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    share: float = 1.0
    goal: float | None = None
    without: tuple[str, ...] = ()  # packages that constrain it to others of constraints.txt


@dataclass
class Result:
    """Medians of one contender."""

    contender: Contender
    requests: int
    cpu: list[float] = field(default_factory=list)  # µs a request
    rate: list[float] = field(default_factory=list)  # requests a second
    rss: list[float] = field(default_factory=list)  # bytes
    lost: int = 0
    failure: str = ""

    def add(self, found: dict[str, float]) -> None:
        self.cpu.append(1e6 * found["cpu"] / self.requests)
        self.rate.append(self.requests / found["seconds"])
        self.rss.append(found["rss"])
        self.lost += self.requests - int(found["answered"])

    @property
    def micros(self) -> float:
        return statistics.median(self.cpu)


_OWN = ("openai", "litellm", "aiohttp")  # curator wants earlier ones
CONTENDERS = (
    Contender("stream", "FastLLM `client.stream`", "fastllm_stream.py"),
    Contender("run", "FastLLM `fastllm run` (journal, limits, statistics)"),
    Contender("aiohttp", "bare aiohttp loop", "aiohttp_loop.py", ("aiohttp",), share=0.5, goal=4),
    Contender("deluge", "lm-deluge", "deluge.py", ("lm-deluge",), share=0.2, goal=9),
    Contender("cookbook", "OpenAI cookbook's algorithm", "cookbook.py", ("aiohttp",), share=0.3, goal=11),
    Contender("openai-aiohttp", "OpenAI SDK on aiohttp", "openai_sdk.py", ("openai[aiohttp]",), ("aiohttp",), 0.1, 30),
    Contender("openai", "OpenAI SDK", "openai_sdk.py", ("openai",), share=0.06, goal=70),
    Contender("curator", "bespokelabs-curator", "curator_llm.py", ("bespokelabs-curator",), (), 0.06, 40, _OWN),
    Contender("async-batch-llm", "async-batch-llm", "async_batch.py", ("async-batch-llm", "openai"), (), 0.06, 55),
    Contender("litellm", "litellm", "litellm_calls.py", ("litellm",), share=0.05, goal=100),
    Contender("kit", "fastllm-kit", "kit.py", ("fastllm-kit",), share=0.025, goal=250),
    Contender("wrk", "wrk (the limit)"),
)  # fmt: skip


def environment(contender: Contender, envs: Path) -> Path:
    """Give the Python of a contender's environment, made where it is missing. RuntimeError where pip fails."""
    if not contender.packages:
        return Path(sys.executable)
    folder = envs / contender.name
    python, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        print(f"installing {contender.title} …", file=sys.stderr, flush=True)
        pins = [line for line in (HERE / "constraints.txt").read_text().splitlines() if line]
        kept = [pin for pin in pins if pin.split("==")[0] not in contender.without]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        (folder / "constraints.txt").write_text("\n".join(kept) + "\n")
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "-c",
            str(folder / "constraints.txt"),
            *contender.packages,
        ]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise RuntimeError(f"pip: {found.stderr.strip().splitlines()[-1][:200]}")
        done.touch()
    return python


def pinned(command: Sequence[str]) -> list[str]:
    """Run it on the first core; the upstream has the last."""
    if shutil.which("taskset") is None:
        return list(command)
    return ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]


def scripted(
    contender: Contender, python: Path, server: Upstream, url: str, requests: int, in_flight: int
) -> dict[str, float]:
    """One round of a script of contenders/."""
    script = str(HERE / "contenders" / contender.script)
    command = pinned([str(python), script, url, str(requests), str(in_flight), *contender.more])
    environ = {**os.environ, "SSL_CERT_FILE": "", "PYTHONPATH": ""}
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
        pem.write(server.pem)
        pem.flush()
        environ |= {"SSL_CERT_FILE": pem.name, "REQUESTS_CA_BUNDLE": pem.name}
        found = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LONGEST)
    line = next((line for line in found.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        said = found.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(said[-1][:200])
    return dict(json.loads(line.removeprefix("RESULT ")))


def command_line(server: Upstream, url: str, requests: int, in_flight: int) -> dict[str, float]:
    """One round of `fastllm run`, from file to file."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 540}]}

    def once(folder: Path, rows: int) -> tuple[float, float, float]:
        source, out = folder / f"{rows}.jsonl", folder / f"{rows}.out.jsonl"
        source.write_text("".join(json.dumps({"custom_id": f"r{n}", "body": body}) + "\n" for n in range(rows)))
        options = ["--base-url", url, "--concurrency", str(in_flight), "--rpm", "100000000", "--tpm", "100000000000"]
        command = [sys.executable, "-m", "fastllm.cli", "run", str(source), "--output", str(out), *options]
        environ = {**os.environ, "OPENAI_API_KEY": "k", "SSL_CERT_FILE": str(folder / "pem")}
        began = time.perf_counter()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(pinned(command), env=environ, stdout=log, stderr=log)
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise RuntimeError((folder / "log").read_text()[-200:])
        return used.ru_utime + used.ru_stime, seconds, used.ru_maxrss * 1024

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pem").write_text(server.pem)
        few, many = once(folder, START_UP), once(folder, START_UP + requests)
        answered = sum(
            b'"status_code":200' in line for line in (folder / f"{START_UP + requests}.out.jsonl").open("rb")
        )
        waited = 0.0 if requests else few[1]
        return {
            "cpu": many[0] - few[0],
            "seconds": many[1] - few[1] - waited,
            "rss": many[2],
            "answered": answered - START_UP,
        }


def wrk(url: str, requests: int, in_flight: int, latency: float) -> dict[str, float]:
    """One round of wrk, for about as long as so many requests take at best."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed: apt-get install wrk")
    seconds = max(2, round(requests / in_flight * max(latency, 0.02)))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 540}]})
        script.write(
            f"wrk.method='POST' wrk.body='{body}' wrk.headers['content-type']='application/json' "
            "wrk.headers['authorization']='Bearer k'\n"
        )
        script.flush()
        command = ["wrk", "-t1", f"-c{in_flight}", f"-d{seconds}s", "-s", script.name, f"{url}/chat/completions"]
        process = subprocess.Popen(pinned(command), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = process.stdout.read()
        _, _, used = os.wait4(process.pid, 0)
    found = re.search(r"(\d+) requests in ([\d.]+)s", said)
    if found is None:
        raise RuntimeError(said[-200:])
    count = int(found[1])
    scale = requests / count  # it counts seconds and not requests
    cpu = used.ru_utime + used.ru_stime
    rss = used.ru_maxrss * 1024
    return {"cpu": cpu * scale, "seconds": float(found[2]) * scale, "rss": rss, "answered": requests}


def measured(
    chosen: Sequence[Contender], given: argparse.Namespace, server: Upstream, show: Callable[[str], None]
) -> list[Result]:
    """Run the rounds in turn."""
    url = server.tls if given.tls else server.plain
    results = [Result(c, max(2 * given.in_flight, int(given.requests * c.share))) for c in chosen]
    for turn in range(given.rounds):
        for result in results:
            contender, requests = result.contender, result.requests
            if result.failure:
                continue
            try:
                if contender.name == "run":
                    result.add(command_line(server, url, requests, given.in_flight))
                elif contender.name == "wrk":
                    result.add(wrk(url, requests, given.in_flight, given.latency))
                else:
                    python = environment(contender, given.envs)
                    result.add(scripted(contender, python, server, url, requests, given.in_flight))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                result.failure = str(error)[:200]
                show(f"{contender.title}: {result.failure}")
                continue
            show(f"round {turn + 1}: {contender.title}: {result.cpu[-1]:,.1f} µs, {result.rate[-1]:,.0f}/s")
    return results


def table(results: Sequence[Result], given: argparse.Namespace) -> str:
    """Give the figures as a Markdown table."""
    base = next((result.micros for result in results if result.contender.name == "stream" and result.cpu), None)
    limit = next((result.micros for result in results if result.contender.name == "wrk" and result.cpu), None)
    ideal = given.in_flight / given.latency if given.latency else None
    lines = [
        "| contender | CPU µs a request | × `stream` | goal | requests/s | of the ideal | peak RSS | lost | requests |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        contender = result.contender
        if not result.cpu:
            lines.append(f"| {contender.title} | failed: {result.failure} | | | | | | | |")
            continue
        times = f"{result.micros / base:,.1f}" if base else ""
        if contender.name in ("stream", "run"):
            goal = "≤ 45 µs" + (f"; {result.micros / limit:.1f} × wrk (≤ 5)" if limit else "")
        else:
            goal = f"≥ {contender.goal:g}" if contender.goal else ""
        rate = statistics.median(result.rate)
        share = f"{rate / ideal:.0%}" if ideal else ""
        lines.append(
            f"| {contender.title} | {result.micros:,.1f} | {times} | {goal} | {rate:,.0f} | {share} | "
            f"{statistics.median(result.rss) / 2**20:,.0f} MiB | {result.lost} | "
            f"{result.requests:,} × {len(result.cpu)} |"
        )
    return "\n".join(lines)


def versions(envs: Path, results: Sequence[Result]) -> str:
    """Give the versions that were measured, as they are installed."""
    found = []
    for result in results:
        contender = result.contender
        if contender.packages and result.cpu:
            name = re.split(r"[\[=]", contender.packages[0])[0]
            python = str(envs / contender.name / "bin" / "python")
            code = f"import importlib.metadata as m; print(m.version({name!r}))"
            version = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
            found.append(f"{name} {version}")
    return ", ".join(dict.fromkeys(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6,000 requests, one round")
    parser.add_argument("--requests", type=int, help="of the fast ones; the others send a share of them")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds; 0: at once")
    parser.add_argument("--sigma", type=float, default=0.0, help="spread of the latency's logarithm")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--only", default="", help="names of contenders: " + ", ".join(c.name for c in CONTENDERS))
    parser.add_argument("--envs", type=Path, default=ENVS)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    given = parser.parse_args()
    given.requests = given.requests or (6_000 if given.quick else 20_000)
    given.rounds = given.rounds or (1 if given.quick else 3)
    names = [name.strip() for name in given.only.split(",") if name.strip()]
    unknown = set(names) - {contender.name for contender in CONTENDERS}
    if unknown:
        parser.error(f"--only: nobody is called {', '.join(sorted(unknown))}")
    chosen = [contender for contender in CONTENDERS if not names or contender.name in names]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(60_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)

    latency = Latency(given.latency, given.sigma) if given.latency else None
    with upstream(latency) as server:
        results = measured(chosen, given, server, lambda text: print(text, file=sys.stderr, flush=True))
    what = f"{given.requests:,} chat requests, {given.in_flight} in flight, {given.latency * 1000:g} ms upstream"
    where = f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores"
    head = f"{what}, {'TLS' if given.tls else 'plain HTTP'}; {where}; {time.strftime('%Y-%m-%d')}"
    text = f"{head}\n\n{table(results, given)}\n\n{versions(given.envs, results)}\n"
    print("\n" + text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "results.md").write_text(text)
    bars = [(re.sub(r"[`]", "", r.contender.title), r.micros) for r in results if r.cpu]
    (given.output / "results.svg").write_text(plot("CPU µs a request (logarithmic)", head, bars))
    return int(any(result.failure for result in results))


if __name__ == "__main__":
    sys.exit(main())
