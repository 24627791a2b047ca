"""Crashes: jobs that are killed, whose disk fails, whose machine loses power, that race; no row may be lost or doubled.

    python stress/crash.py [--kills 1000] [--only kills,points,faults,traced,flips,races,signals,power] [--seed N]
                           [--quick]

Each trial runs small jobs against the mock, breaks them, looks at what is left, runs them again and compares the output
byte for byte with that of an uninterrupted run. Prints what was tried and found; ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from crashing.findings import Findings
from crashing.flips import every_byte
from crashing.interrupts import every_interrupt
from crashing.kills import random_kills
from crashing.points import every_fault, every_point
from crashing.power import power_losses
from crashing.races import every_race
from crashing.traced import every_call

Trial = Callable[[argparse.Namespace], Findings]

TRIALS: dict[str, Trial] = {
    "kills": lambda given: random_kills(given.kills, given.seed),
    "points": lambda given: every_point(seed=given.seed, quick=given.quick),
    "faults": lambda given: every_fault(seed=given.seed, quick=given.quick),
    "traced": lambda given: every_call(quick=given.quick),
    "flips": lambda given: every_byte(seed=given.seed, quick=given.quick),
    "races": lambda given: every_race(seed=given.seed, quick=given.quick),
    "signals": lambda given: every_interrupt(seed=given.seed, quick=given.quick),
    "power": lambda given: power_losses(500 if given.quick else 24_000, given.seed, resumed=3 if given.quick else 150),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="random kills (default: 1000, or 50 with --quick)")
    parser.add_argument("--only", default=",".join(TRIALS), help="trials, with commas between them")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--quick", action="store_true", help="the short form: half a minute")
    given = parser.parse_args()
    given.kills = (50 if given.quick else 1000) if given.kills is None else given.kills
    if given.kills < 1:
        parser.error(f"--kills is {given.kills}; it must be at least 1")
    names = given.only.split(",")
    if unknown := [name for name in names if name not in TRIALS]:
        parser.error(f"there is no trial {', '.join(unknown)}; there are {', '.join(TRIALS)}")
    print(f"seed {given.seed}", flush=True)
    broken = 0
    for name in names:
        began = time.monotonic()
        found = TRIALS[name](given)
        print(f"{found} ({time.monotonic() - began:.0f} s)", flush=True)
        for complaint in found.complaints:
            print(f"  {complaint}")
        broken += found.broken
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
