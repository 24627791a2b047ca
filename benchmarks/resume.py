"""Resume of a long job that is 99 % finished: seconds until it goes on, and until every row was asked; memory.

    python benchmarks/resume.py [--rows 1000000] [--scattered] [--no-ids] [--no-index] [--dir DIR]

The job is made by the journal itself: rows of 600 B, answers of 1 KB; the last hundredth of the rows is missing, with
`--scattered` every hundredth row. A process of its own runs it to its end against a transport that answers at once.
`--no-index` throws the index away first, as a kill does that comes before the first checkpoint.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from zlib import crc32

from fastllm import loop
from fastllm.build import EngineOptions, engine
from fastllm.formats.base import open_reader
from fastllm.jobs.journal import INDEX, Entry, Journal, journal_path
from fastllm.jobs.runner import Job, identify
from fastllm.options import Limits
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse

MISSING = 100  # one of so many rows
BASE_URL = "http://test"
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + b"x" * 800 + b'"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":100,"completion_tokens":200,"total_tokens":300}}'
)


async def answer(_: HTTPRequest) -> HTTPResponse:
    return HTTPResponse(status=200, headers=[(b"content-type", b"application/json")], body=BODY)


def make(folder: Path, rows: int, *, ids: bool, scattered: bool) -> None:
    """Write the input, and the journal of a run that was stopped."""
    source, words = folder / "in.jsonl", b"word " * 100
    with source.open("wb", buffering=1 << 20) as file:
        for i in range(rows):
            name = b'"custom_id":"request-%d",' % i if ids else b""
            file.write(b'{%b"model":"m","messages":[{"role":"user","content":"%d %b"}]}\n' % (name, i, words))
    with open_reader(source) as reader:
        journal = Journal.open(journal_path(folder / "out.jsonl"), identify(reader, None))
        for row in reader:
            if row.index % MISSING == MISSING - 1 if scattered else row.index >= rows - rows // MISSING:
                continue
            entry = Entry(custom_id=row.custom_id, line=row.line, status=200, body=BODY, attempts=1, endpoint="test")
            journal.append(row.index, True, crc32(row.source), entry)
            while journal.backlog > 64 << 20:
                time.sleep(0.01)
        journal.close()


async def resume(folder: Path) -> None:
    """Run it to its end, and print what was measured."""
    began = time.perf_counter()
    first: list[float] = []

    async def timed(request: HTTPRequest) -> HTTPResponse:
        nonlocal last, asking
        if not first:
            first.append(time.perf_counter())
            asking = _most_memory()
        last = time.perf_counter()
        return await answer(request)

    last, asking = began, 0.0
    limits = Limits(concurrency=1024, adaptive=False)
    made = engine(EngineOptions(base_url=BASE_URL, limits=limits, transport=ScriptedTransport(timed)))
    with open_reader(folder / "in.jsonl") as reader:
        result = await Job(made, reader, folder / "out.jsonl", concurrency=1024).run()
    await made.aclose()
    if result.ok != result.total or result.ok - result.skipped != result.total // MISSING:
        raise SystemExit(f"not what was to be resumed: {result}")
    whole = time.perf_counter() - began
    print(
        f"first request after {first[0] - began:.2f} s, the last after {last - began:.2f} s, "
        f"output written after {whole:.1f} s; {asking:.0f} MiB at the first, at most {_most_memory():.0f} in all",
    )


def _most_memory() -> float:
    """Give the most that this process had in memory, in MiB. (ru_maxrss would tell the parent's, too.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the kernel does not tell VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--scattered", action="store_true", help="missing rows everywhere, not at the end")
    parser.add_argument("--no-ids", action="store_true", help="rows without a custom_id")
    parser.add_argument("--no-index", action="store_true", help="throw the index away before")
    parser.add_argument("--dir", type=Path, help="where the files lie meanwhile (default: the system's choice)")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resume is not None:
        loop.run(resume(options.resume))
        return
    folder = Path(tempfile.mkdtemp(prefix="fastllm-resume-", dir=options.dir))
    try:
        make(folder, options.rows, ids=not options.no_ids, scattered=options.scattered)
        if options.no_index:
            journal = journal_path(folder / "out.jsonl")
            journal.with_name(journal.name + INDEX).unlink(missing_ok=True)
        os.sync()  # or the disk would be busy with the files all the while
        subprocess.run([sys.executable, __file__, "--resume", str(folder)], check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
