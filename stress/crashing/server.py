"""The model server of the trials, a process of its own: it writes down, in the order they came, whose requests it got.

python server.py LOG LATENCY          prints its base_url; ends with its standard input
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from fastllm.testing import MockConfig, serve_in_thread


def main(log: str, latency: str) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(body: dict[str, Any]) -> bool:
        name = body["messages"][-1]["content"].split()[0]
        os.write(fd, f"{name} {time.monotonic():.6f}\n".encode())
        return False

    with serve_in_thread(MockConfig(latency=float(latency))) as server:
        server.when(note, "500")  # never applied: the predicate only listens
        print(server.base_url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
