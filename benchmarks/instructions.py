"""How many instructions a request costs, by valgrind: the same on a busy machine as on an idle one.

    python benchmarks/instructions.py            count, and compare with instructions.json
    python benchmarks/instructions.py --check    the same; exit 1 if it is more than 5 % off
    python benchmarks/instructions.py --record   write down what was counted

Fixed runs are counted, each with few and with many rows, so that start-up cancels out. Two are of `client.stream`:
`engine` answers from memory, `http` over a loopback connection, from a server in the same process. `job` is
`client.run` with answers from memory: reading the rows, the journal and the output as well. A figure holds for one
version of Python; where there is none for this one, nothing is compared. What is off is counted once more, because a
busy machine may let more time pass, and with it a timer. A faster path is to be recorded, too: else the next slower one
would pass unseen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from instant import InstantTransport
from upstream import ANSWER

from fastllm import AsyncFastLLM, Limits
from fastllm.loop import run

FEW, MANY = 500, 1500  # rows
TOLERANCE = 0.05
KINDS = ("engine", "http", "job")
RECORDED = Path(__file__).with_suffix(".json")
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "' + b"x" * 540 + b'"}]}'
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_0123456789\r\n"
    b"x-ratelimit-limit-requests: 1000000000\r\nx-ratelimit-remaining-requests: 999999999\r\n"
)
HTTP = HEAD + b"content-length: %d\r\n\r\n" % len(ANSWER.encode()) + ANSWER.encode()


HEADERS = [(name.lower(), value) for line in HEAD.split(b"\r\n")[1:-1] for name, _, value in [line.partition(b": ")]]


class Server(asyncio.Protocol):
    """Answers each request of the one size that is sent here."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._seen = b""

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self._seen.endswith(b"}]}"):
            self._seen = b""
            self._transport.write(HTTP)


async def rows(kind: str, count: int) -> None:
    """What is counted."""
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    more: dict[str, Any] = {} if kind == "http" else {"transport": InstantTransport(ANSWER.encode(), HEADERS)}
    limits = Limits(concurrency=64, adaptive=False)
    async with AsyncFastLLM(base_url=url, api_key="k", limits=limits, **more) as client:
        if kind == "job":
            answered = await job(client, count)
        else:
            bodies: Iterator[bytes] = (BODY for _ in range(count))
            answered = 0
            async for outcome in client.stream(bodies):
                answered += outcome.ok
        if answered != count:
            raise SystemExit(f"only {answered} of {count} were answered")
    server.close()


async def job(client: AsyncFastLLM, count: int) -> int:
    """Run a file of rows, and give how many have their answer."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        source.write_bytes((BODY + b"\n") * count)
        return (await client.run(source, Path(folder) / "out.jsonl")).ok


def instructions(kind: str, count: int) -> int:
    """Run so many rows under callgrind, and give how many instructions that took."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, __file__]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run([*command, "--rows", kind, str(count)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{kind}: {done.stderr[-2000:]}")
        totals = next(line for line in out.read_text().splitlines() if line.startswith(("summary:", "totals:")))
        return int(totals.split()[1])


def a_request(kind: str) -> int:
    """Count the instructions of one request, both runs side by side."""
    with ThreadPoolExecutor(2) as pool:
        few, many = pool.map(lambda count: instructions(kind, count), (FEW, MANY))
    return (many - few) // (MANY - FEW)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--rows", nargs=2, metavar=("KIND", "COUNT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rows:
        run(rows(given.rows[0], int(given.rows[1])))
        return 0
    if shutil.which("valgrind") is None:
        print("instructions: valgrind is not installed: nothing is counted")
        return 0
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    python = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    off = 0
    counted = {}
    for kind in KINDS:
        before = recorded.get(python, {}).get(kind)
        found = counted[kind] = a_request(kind)
        if before is not None and abs(found / before - 1) > TOLERANCE:
            found = counted[kind] = min(found, a_request(kind), key=lambda count: abs(count - before))
        change = "nothing to compare with" if before is None else f"{found / before - 1:+.1%} of {before:,}"
        print(f"instructions: {kind} {found:,} a request on {python}: {change}")
        off += before is not None and abs(found / before - 1) > TOLERANCE
    if given.record:
        RECORDED.write_text(json.dumps({**recorded, python: counted}, indent=2) + "\n")
    elif off:
        print(f"instructions: more than {TOLERANCE:.0%} off; if that is meant: python {Path(__file__).name} --record")
    return int(off > 0 and given.check and not given.record)


if __name__ == "__main__":
    sys.exit(main())
