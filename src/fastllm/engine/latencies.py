"""Latencies: a histogram whose buckets grow by 2 % each, so that percentiles are right within 1 % at any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# Bucket i holds latencies in [FLOOR * GROWTH**i, FLOOR * GROWTH**(i+1)).
_FLOOR = 1e-5
_GROWTH = 1.02
_SCALE = 1.0 / math.log(_GROWTH)
_BUCKETS = int(math.log(1e4 / _FLOOR) * _SCALE) + 1


_OFFSET = math.log(_FLOOR) * _SCALE
_LAST = _BUCKETS - 1
_AT_ONCE = 256


def bucket_of(seconds: float) -> int:
    """Give the bucket that a latency belongs to."""
    return min(int(math.log(seconds) * _SCALE - _OFFSET), _LAST) if seconds > _FLOOR else 0


def _count(latencies: Sequence[float], counts: list[int]) -> None:
    for seconds in latencies:
        counts[bucket_of(seconds)] += 1


class Latencies:
    """Counts latencies in seconds, from 10 µs to 10,000 s; what is beyond stands at the ends."""

    __slots__ = ("_counts", "_latest")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._latest: list[float] = []  # not counted yet: many at once are counted in half the time

    def add(self, seconds: float) -> None:
        latest = self._latest
        latest.append(seconds)
        if len(latest) >= _AT_ONCE:
            self._latest = []
            _count(latest, self._counts)

    def join(self, counts: Mapping[int, int]) -> None:
        """Count what another has counted, too."""
        for bucket, count in counts.items():
            self._counts[bucket] += count

    def counts(self) -> dict[int, int]:
        """Give the buckets that hold something, as plain values."""
        counts = self._counts.copy()  # this may be another thread
        _count(self._latest.copy(), counts)
        return {bucket: count for bucket, count in enumerate(counts) if count}

    def __repr__(self) -> str:
        return f"<Latencies {sum(self._counts) + len(self._latest)}>"


def percentiles(counts: Mapping[int, int], shares: Sequence[float]) -> list[float | None]:
    """Give the seconds below which these shares of latencies lie, of `Latencies.counts`; None where there are none."""
    total = sum(counts.values())
    found: list[float | None] = [None] * len(shares)
    if not total:
        return found
    buckets = sorted(counts)
    for i, share in enumerate(shares):
        left = share * total
        for bucket in buckets:
            left -= counts[bucket]
            if left <= 0 and counts[bucket]:
                found[i] = _FLOOR * _GROWTH ** (bucket + 0.5)
                break
    return found
