"""Shares: how processes divide one limit, each looking only at what all of them claim.

A claim holds a part of the limit. Invariants, if every process replaces its claim by what `renewed` gives while nobody
else does so:
- The parts together are at most the limit.
- A part is never less than what its process has used of the limit (in the window that ends now), because it may
  shrink only to that. So what all have used in any window is at most the limit.
- Whoever waits for longest gets what its next request needs, even where equal parts would be too small for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

INF = float("inf")
_DUST = 1e-9  # of an amount: what floats add to it
_TINY = 1e-6  # of one


class Claim(msgspec.Struct, array_like=True):
    """What one process holds of a limit, and would have. All amounts are in the limit's own unit.

    `used` is what it cannot give back now, `want` what it could make use of (with what is used), `need` what it must
    have for its next request, which has waited since `since` (inf: none waits). `gone`: it has ended, and what it holds
    is free once nobody counts it any more. `spent` of what is used never comes back, as money does not.
    """

    part: float = 0.0
    used: float = 0.0
    want: float = 0.0
    need: float = 0.0
    since: float = INF
    gone: bool = False
    spent: float = 0.0


def renewed(
    limit: float, claims: Sequence[Claim], place: int, *, whole: bool, spread: bool = True
) -> tuple[float, float]:
    """Give (part, cap) for the claim at `place`: what that process may hold from now on, and how much of it it may use.

    All processes must give the claims in the same order. The cap is less than the part where others are to have some of
    what is in use: then nothing more may be begun until enough of it is free. With `whole`, parts are whole numbers.
    With `spread`, what nobody wants is divided equally, so that a burst need not ask first.
    """
    mine = claims[place]
    others = sum(claim.part for claim in claims) - mine.part
    gone = sum(claim.part for claim in claims if claim.gone)
    living = [claim for claim in claims if not claim.gone]
    targets = _targets(max(0.0, limit - gone), living, whole=whole, spread=spread)
    target = targets[place - sum(claim.gone for claim in claims[:place])]
    kept = min(mine.used, mine.part)
    part = max(kept, min(target, limit - others))
    if whole:
        part = _floor(part)
    return part, min(part, target)


def _targets(limit: float, claims: Sequence[Claim], *, whole: bool, spread: bool) -> list[float]:
    """Give what each should have."""
    floors = [claim.spent for claim in claims]
    left = limit - sum(floors)
    for place in sorted(range(len(claims)), key=lambda place: claims[place].since):
        claim = claims[place]
        more = claim.need - claim.spent
        if claim.since < INF and 0.0 < more <= (left if whole else left * (1.0 + _DUST)):
            floors[place] = claim.need
            left -= more
    wants = [max(floor, claim.want) for floor, claim in zip(floors, claims, strict=True)]
    level = _level(limit, floors, wants)
    targets = [max(floor, min(want, level)) for floor, want in zip(floors, wants, strict=True)]
    slack = max(0.0, limit - sum(targets)) / len(claims) if spread else 0.0
    targets = [target + slack for target in targets]
    return _rounded(min(limit, sum(targets)), targets) if whole else targets


def _rounded(limit: float, targets: Sequence[float]) -> list[float]:
    """Give whole numbers of the same sum: what rounding leaves goes to those who lose most by it."""
    whole = [_floor(target) for target in targets]
    over = int(_floor(limit - sum(whole)))
    for place in sorted(range(len(targets)), key=lambda place: whole[place] - targets[place])[:over]:
        whole[place] += 1.0
    return whole


def _floor(amount: float) -> float:
    """Give the whole part: sums of whole numbers are exact, and of a level that is none nothing much is lost."""
    return float(math.floor(amount + _TINY))


def _level(limit: float, floors: Sequence[float], wants: Sequence[float]) -> float:
    """Give the level L at which sum(max(floor, min(want, L))) is the limit: nobody who wants more has less."""
    if sum(wants) <= limit:
        return INF
    edges = sorted({0.0, *floors, *wants})
    low = 0.0
    for edge in edges:
        total = sum(max(floor, min(want, edge)) for floor, want in zip(floors, wants, strict=True))
        if total > limit:
            break
        low = edge
    base = sum(max(floor, min(want, low)) for floor, want in zip(floors, wants, strict=True))
    rising = sum(1 for floor, want in zip(floors, wants, strict=True) if want > low and floor <= low)
    return low + (limit - base) / rising if rising else low
