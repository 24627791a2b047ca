"""The event decoder: MB a CPU second for usual streams, and the time that an awkward MiB takes.

    python benchmarks/sse.py [--megabytes 200]

Usual events are chunks of a chat answer, in the sizes in which sockets give them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from fastllm.providers.sse import SSEDecoder

CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"content":" word"},"finish_reason":null}]}\n\n'
)
MIB = 1 << 20
ALIKE = (
    b"\n", b"\r", b"\r\n", b":\n", b":\n\n", b"a\n", b"a\n\n", b"a:b\n", b"event:x\n", b"event:x\n\n", b"data\n",
    b"data:\n", b"data:x\n", b"data\n\n", b"data:\n\n", b"\ndata:\n\n", b"data:\r\r", b"data:\n:\n\n", b"data\nx\n\n",
    b":\ndata\n", b"data\nevent\n", b"event:x\ndata\n\n",
)  # fmt: skip
MIXED = (b"data\n\n" * 500 + b"data\ndata\n\n", b"data\n\neventx\n", b"data:\ndata:x\n\n", b"data\n\nevent\ndata\n\n")


def awkward() -> Iterator[tuple[str, bytes, int]]:
    """Give inputs of a MiB and how many bytes of each come at a time."""
    yield "one line in pieces of 1 KiB", b"data: " + b"x" * MIB, 1024
    for lines in ALIKE:
        for step in (1400, MIB):
            yield f"{lines!r}, {step:,} B at a time", (lines * (MIB // len(lines) + 1))[:MIB], step
    for lines in MIXED:
        yield f"{lines[-24:]!r}, mixed", (lines * (MIB // len(lines) + 1))[:MIB], 65536
    for lines in (b"\n", b"data:x\n\n", b"event:x\ndata:y\n\n"):
        yield f"{lines!r}, 16 B at a time", (lines * (MIB // len(lines) + 1))[:MIB], 16


def seconds(data: bytes, step: int) -> float:
    decoder = SSEDecoder()
    began = time.process_time()
    for at in range(0, len(data), step):
        decoder.feed(data[at : at + step])
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    count = parser.parse_args().megabytes * 1_000_000
    for step in (1400, 16_384, 65_536):
        for kind, event in (("usual", CHUNK), ("named", b"event: content_block_delta\n" + CHUNK)):
            data = event * (count // len(event) // 4)
            speed = len(data) / seconds(data, step) / 1e6
            print(f"{kind} events, {step:,} bytes at a time: {speed:,.0f} MB a CPU second")
    worst: list[tuple[float, str]] = []
    for name, data, step in awkward():
        took = 1000 * min(seconds(data, step) for _ in range(3))
        worst.append((took, name))
        print(f"{name}: {took:.1f} ms for {len(data) / MIB:.2f} MiB")
    for took, name in sorted(worst, reverse=True)[:5]:
        print(f"among the worst: {took:.0f} ms, {name}")


if __name__ == "__main__":
    main()
