"""The gateway under clients and loads that do not behave: each prints figures, and ends with 1 for a broken promise.

python stress/gateway.py storm [--count 10000] [--seed 1]   # clients that leave at any byte, in any way
python stress/gateway.py stalled [--count 1000]             # readers of endless streams that read nothing
python stress/gateway.py overload [--seconds 5]             # five times what the provider can take
python stress/gateway.py beside [--seconds 5]               # chat beside a batch that takes all there is
python stress/gateway.py budget [--count 1000]              # parallel requests on the last cent of a budget
"""

from __future__ import annotations

import argparse

from fastllm import loop
from gating import beside, budget, overload, stalled, storm

SCRIPTS = {
    "storm": storm.run,
    "stalled": stalled.run,
    "overload": overload.run,
    "beside": beside.run,
    "budget": budget.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("--count", type=int, help="clients (default: what is promised)")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with loop.own_process():
        kept = loop.run(SCRIPTS[given.script](given))
    print("kept" if kept else "BROKEN")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
