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


def awkward() -> Iterator[tuple[str, bytes, int]]:
    """Give inputs of a MiB and how many bytes of each come at a time."""
    yield "one line in pieces of 1 KiB", b"data: " + b"x" * MIB, 1024
    yield "empty lines", b"\n" * MIB, MIB
    yield "CRs alone", b"\r" * MIB, MIB
    yield "comments", b":\n" * (MIB // 2), 65536
    yield "data lines of one event", b"data:x\n" * (MIB // 7), 65536
    yield "fields nobody knows", b"a:b\n" * (MIB // 4), 65536


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
        data = CHUNK * (count // len(CHUNK) // 4)
        print(f"usual events, {step:,} bytes at a time: {len(data) / seconds(data, step) / 1e6:,.0f} MB a CPU second")
    for name, data, step in awkward():
        print(f"{name}: {1000 * min(seconds(data, step) for _ in range(3)):.1f} ms for {len(data) / MIB:.2f} MiB")


if __name__ == "__main__":
    main()
