"""Resume of a long job that is 99 % finished: seconds until it goes on, and until every row was asked; memory.

    python benchmarks/resume.py [--rows 1000000] [--no-ids] [--no-index] [--dir DIR]

The job is made by the journal itself: rows of 600 B, answers of 1 KB, every hundredth row missing. A process of its own
then runs it to its end against a transport that answers at once. `--no-index` throws the index away first, as a kill
does that comes before the first checkpoint.
"""

from __future__ import annotations

import argparse
import resource
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

MISSING = 100  # every so manieth row
BASE_URL = "http://test"
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + b"x" * 800 + b'"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":100,"completion_tokens":200,"total_tokens":300}}'
)


async def answer(_: HTTPRequest) -> HTTPResponse:
    return HTTPResponse(status=200, headers=[(b"content-type", b"application/json")], body=BODY)


def make(folder: Path, rows: int, *, ids: bool) -> None:
    """Write the input, and the journal of a run that was stopped."""
    source, words = folder / "in.jsonl", b"word " * 100
    with source.open("wb", buffering=1 << 20) as file:
        for i in range(rows):
            name = b'"custom_id":"request-%d",' % i if ids else b""
            file.write(b'{%b"model":"m","messages":[{"role":"user","content":"%d %b"}]}\n' % (name, i, words))
    with open_reader(source) as reader:
        journal = Journal.open(journal_path(folder / "out.jsonl"), identify(reader, None))
        for row in reader:
            if row.index % MISSING == MISSING - 1:
                continue
            entry = Entry(custom_id=row.custom_id, line=row.line, status=200, body=BODY, attempts=1, endpoint="test")
            journal.append(row.index, True, crc32(row.source), entry)
            while journal.backlog > 64 << 20:
                time.sleep(0.01)
        journal.close()


async def resume(folder: Path) -> None:
    """Run it to its end, and print what was measured."""
    before = _most_memory()
    began = time.perf_counter()
    first: list[float] = []

    async def timed(request: HTTPRequest) -> HTTPResponse:
        first.append(time.perf_counter()) if not first else None
        last[0] = time.perf_counter()
        return await answer(request)

    last = [began]
    limits = Limits(concurrency=1024, adaptive=False)
    made = engine(EngineOptions(base_url=BASE_URL, limits=limits, transport=ScriptedTransport(timed)))
    with open_reader(folder / "in.jsonl") as reader:
        result = await Job(made, reader, folder / "out.jsonl", concurrency=1024).run()
    await made.aclose()
    if result.ok != result.total or result.ok - result.skipped != result.total // MISSING:
        raise SystemExit(f"not what was to be resumed: {result}")
    whole = time.perf_counter() - began
    print(
        f"first request after {first[0] - began:.2f} s, the last after {last[0] - began:.2f} s, "
        f"output written after {whole:.1f} s; {_most_memory() - before:.0f} MiB more than before",
    )


def _most_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
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
        make(folder, options.rows, ids=not options.no_ids)
        if options.no_index:
            journal = journal_path(folder / "out.jsonl")
            journal.with_name(journal.name + INDEX).unlink(missing_ok=True)
        subprocess.run([sys.executable, __file__, "--resume", str(folder)], check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
