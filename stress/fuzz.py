"""Fuzzing: damaged answers, streams, requests and headers; each must end in a typed value or one of FastLLM's errors.

    python stress/fuzz.py [--cases 1000000] [--seed N] [--only sse,stream] [--case K]

Prints the seed, how the cases of each trial ended, and every broken promise with the number of its case: `--seed N
--only NAME --case K` tries that one again and shows where it fails. Ends with 1 if anything is broken.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from fuzzing.trials import TRIALS, tried

MOST_SHOWN = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="in all trials together")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", default=",".join(TRIALS), help="trials, with commas between them")
    parser.add_argument("--case", type=int, help="only this case of the one trial")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := [name for name in names if name not in TRIALS]:
        parser.error(f"there is no trial {', '.join(unknown)}; there are {', '.join(TRIALS)}")
    if given.case is not None:
        TRIALS[names[0]][1](random.Random(f"{given.seed}/{names[0]}/{given.case}"))
        return
    print(f"seed {given.seed}", flush=True)
    shares = sum(TRIALS[name][0] for name in names)
    broken = 0
    for name in names:
        shown: dict[str, str] = {}

        def found(case: int, error: BaseException, shown: dict[str, str] = shown) -> None:
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
            shown.setdefault(where, f"case {case}: {error!r:.300} at {where}")

        began = time.monotonic()
        counts = tried(name, given.cases * TRIALS[name][0] // shares, given.seed, found)
        ends = ", ".join(f"{end} {count:,}" for end, count in counts.most_common())
        print(f"{name}: {counts.total():,} cases in {time.monotonic() - began:.0f} s: {ends}", flush=True)
        for line in list(shown.values())[:MOST_SHOWN]:
            print(f"  {line}", flush=True)
        broken += counts["BROKEN"]
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
