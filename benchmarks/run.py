"""FastLLM beside what people use, doing the same work: CPU, throughput, memory and lost requests of each.

    python benchmarks/run.py --quick               # fewer: some minutes, once the environments are made
    python benchmarks/run.py                       # 20,000 requests, three rounds
    python benchmarks/run.py --only fastllm,wrk --in-flight 4096 --latency 1 --tls
    python benchmarks/run.py --streaming

Chat requests of 600 B, answers of 1 KB, from nginx (`upstream.py`) on another core. Each contender runs in a process
and in a virtual environment of its own, which is made with pip and kept; versions stand in `constraints*.txt`. Rounds
are taken in turn: every contender once, then every contender again. Who is slow is given fewer requests. Who cannot be
installed or fails stands in the table with its error. Needs this tree and `cryptography` importable, Linux for pinning.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import environments
import rounds
import tables
from contenders import CONTENDERS, LIMIT, Contender
from contenders.work import Work
from rounds import Standing
from upstream import CHUNKS, CONTENT, Latency, Upstream, install, upstream

HERE = Path(__file__).parent


def main() -> None:
    options = _options()
    rounds.many_files()
    setting = tables.Setting(
        requests=options.requests,
        in_flight=options.in_flight,
        latency=options.latency * math.exp(options.sigma**2 / 2),
        sigma=options.sigma,
        tls=options.tls,
        chunks=CHUNKS if options.streaming else 0,
        rounds=options.rounds,
        machine=_machine(),
    )
    chosen = [c for c in CONTENDERS if _wanted(c, options)]
    if not chosen:
        raise SystemExit(f"--only names nobody of: {', '.join(c.name for c in CONTENDERS)}")
    install(*(LIMIT for c in chosen if c.name == LIMIT))
    began = time.perf_counter()
    standings = [Standing(contender) for contender in chosen]
    pythons = {standing.contender.name: _python(options.envs, standing) for standing in standings}
    print(f"{setting.title}; environments are there after {time.perf_counter() - began:.0f} s", flush=True)
    latency = Latency(options.latency, options.sigma) if options.latency else None
    with upstream(latency) as server:
        work = _work(options, setting, server)
        for number in range(options.rounds):
            for standing in standings:
                if not standing.error:
                    _play(standing, pythons[standing.contender.name], work, server, number + 1)
    _write(options.output, standings, setting)
    print(f"\n{tables.table(standings, setting)}\nall in {time.perf_counter() - began:.0f} s; files: {options.output}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--requests", type=int, help="default 20,000, streaming 1,000; --quick: half of that")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=float, help="of a round, about, at most; default 10; --quick: 2")
    parser.add_argument("--in-flight", type=int, help="default 500, streaming 32")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds (the median); 0: at once")
    parser.add_argument("--sigma", type=float, default=0.0, help="spread of the latency's logarithm; 0: none")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--streaming", action="store_true", help="read streamed answers instead")
    parser.add_argument("--only", default="", metavar="NAMES", help="parts of names, with commas between")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="directory")
    parser.add_argument("--envs", type=Path, default=environments.directory(), help="directory of the environments")
    options = parser.parse_args()
    whole = 1_000 if options.streaming else 20_000
    options.requests = options.requests or (whole // 2 if options.quick else whole)
    options.rounds = options.rounds or 3
    options.seconds = options.seconds or (2.0 if options.quick else 10.0)
    options.in_flight = options.in_flight or (32 if options.streaming else 500)
    return options


def _wanted(contender: Contender, options: argparse.Namespace) -> bool:
    if options.streaming and not contender.streams:
        return False
    return any(part.strip() in contender.name for part in options.only.split(","))


def _python(root: Path, standing: Standing) -> Path:
    try:
        made = environments.python(root, standing.contender)
        standing.version = environments.version(made, standing.contender)
        return made
    except environments.CannotInstall as error:
        standing.error = f"cannot be installed: {error}"
        print(f"{standing.contender.name}: {standing.error}", flush=True)
        return Path()


def _work(options: argparse.Namespace, setting: tables.Setting, server: Upstream) -> Work:
    base = server.tls if options.tls else server.plain
    return Work(
        url=f"{base}/stream" if setting.chunks else base,
        requests=options.requests,
        in_flight=options.in_flight,
        seconds=options.seconds,
        core=rounds.client_core(),
        characters=len(CONTENT),
        chunks=setting.chunks,
        latency=setting.latency,
    )


def _play(standing: Standing, python: Path, work: Work, server: Upstream, number: int) -> None:
    name = standing.contender.name
    try:
        round_ = rounds.run(standing.contender, python, work, server)
    except rounds.Failed as error:
        standing.error = str(error)
        standing.rounds.clear()
        print(f"round {number}  {name:26} failed: {error}", flush=True)
        return
    standing.rounds.append(round_)
    taken = round_.measured
    print(
        f"round {number}  {name:26} {1e6 * taken.cpu / taken.requests:9.1f} µs  "
        f"{taken.requests / taken.seconds:8,.0f}/s  {taken.requests - taken.good} lost",
        flush=True,
    )


def _write(folder: Path, standings: list[Standing], setting: tables.Setting) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = "streaming" if setting.chunks else "requests"
    name += "-tls" if setting.tls else ""
    whole = {"setting": vars(setting), "standings": [standing.as_json() for standing in standings]}
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    (folder / f"{name}.md").write_text(tables.table(standings, setting))
    (folder / f"{name}.svg").write_text(tables.drawing(standings, setting))


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {os.cpu_count()} cores, {model}"


if __name__ == "__main__":
    main()
