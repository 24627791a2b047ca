"""Memory of a long job: resident set sampled while N rows go through the runner, from a file to a file.

    python stress/memory.py [--rows 10000000] [--ids]

A scripted transport answers each request one turn of the loop later with 1 KB, so that what is seen is FastLLM's own.
Rows are 500 B; with --ids each has a custom_id of its own, whose hash has to be kept to notice a second. The files (1.7
KB a row) lie in a new directory under --dir and are removed afterwards. By hand: ten million rows take half an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import threading
import time
from pathlib import Path

from fastllm import loop
from fastllm.build import EngineOptions, engine
from fastllm.formats.base import open_reader
from fastllm.jobs.runner import Job
from fastllm.options import Limits
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse

MIB = 1024 * 1024
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + b"x" * 800 + b'"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":100,"completion_tokens":200,"total_tokens":300}}'
)


async def answer(_: HTTPRequest) -> HTTPResponse:
    await asyncio.sleep(0)
    return HTTPResponse(status=200, headers=[(b"content-type", b"application/json")], body=BODY)


def resident() -> float:
    """Give this process's resident set in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("no VmRSS in /proc/self/status: this runs on Linux only")


def write_rows(path: Path, rows: int, *, ids: bool) -> None:
    text = b"word " * 90
    with path.open("wb", buffering=MIB) as file:
        for i in range(rows):
            name = b'"custom_id":"request-%d",' % i if ids else b""
            file.write(b'{%b"model":"m","messages":[{"role":"user","content":"%d %b"}]}\n' % (name, i, text))


async def run(source: Path, output: Path, every: int) -> tuple[list[tuple[int, float]], list[float], float]:
    """Give (rows done, MiB) as they were sampled, MiB while the output was written, and the seconds that it took."""
    limits = Limits(concurrency=1024, adaptive=False)
    made = engine(EngineOptions(base_url="http://test", limits=limits, transport=ScriptedTransport(answer)))
    samples: list[tuple[int, float]] = []
    publishing: list[float] = []
    over = threading.Event()
    began = time.monotonic()
    with open_reader(source) as reader:
        job = Job(made, reader, output, concurrency=1024)

        def watch() -> None:
            due = 0
            while not over.wait(0.05):
                if job.publishing:
                    publishing.append(resident())
                elif job.done >= due:
                    samples.append((job.done, resident()))
                    print(f"{job.done:>12,} rows {samples[-1][1]:8.1f} MiB", flush=True)
                    due = (job.done // every + 1) * every

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            result = await job.run()
        finally:
            over.set()
            watcher.join()
    await made.aclose()
    if result.ok != result.total:
        raise SystemExit(f"not every row was answered: {result}")
    return samples, publishing, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ids", action="store_true", help="each row has a custom_id")
    parser.add_argument("--dir", type=Path, help="where the files lie meanwhile (default: the system's choice)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fastllm-memory-", dir=options.dir))
    try:
        source = folder / "in.jsonl"
        write_rows(source, options.rows, ids=options.ids)
        every = min(100_000, max(1, options.rows // 20))
        samples, publishing, seconds = loop.run(run(source, folder / "out.jsonl", every))
    finally:
        shutil.rmtree(folder)
    print(f"{options.rows:,} rows in {seconds:.0f} s")
    print(f"at most {max(size for _, size in samples):.1f} MiB, {max(publishing):.1f} while the output was written")
    late = [(done, size) for done, size in samples if done >= 100_000]
    if len(late) > 1:
        (begin, early), (end, last) = late[0], late[-1]
        print(f"growth from row {begin:,} on: {(last - early) / (end - begin) * 1e6:.2f} MiB a million")


if __name__ == "__main__":
    main()
