"""Damaged input ends in a typed value or a typed error: the short form of stress/fuzz.py, 100,000 cases."""

from __future__ import annotations

import pytest

from fuzzing.trials import TRIALS, tried

CASES = 100_000
SEED = 20261124
EXPECTED = {  # ends that each trial must have come to, else it tries nothing
    "sse": {"events", "no events"},
    "whole": {"answer", "ProtocolError", "InternalServerError"},
    "refused": {"BadRequestError", "QuotaExceededError", "InternalServerError"},
    "stream": {"answer", "ProtocolError", "TruncatedStreamError", "InternalServerError"},
    "truncated": {"answer", "TruncatedStreamError"},
    "asked": {"request", "InvalidRequestError"},
    "reverse": {"request", "InvalidRequestError", "not JSON"},
    "reencoded": {"events", "ProtocolError", "InternalServerError"},
    "headers": {"hints", "nothing"},
}


@pytest.mark.parametrize("name", TRIALS)
def test_damage_has_typed_ends_only(name: str) -> None:
    broken: list[str] = []
    cases = CASES * TRIALS[name][0] // sum(share for share, _ in TRIALS.values())
    counts = tried(name, cases, SEED, lambda case, error: broken.append(f"case {case}: {error!r:.500}"))
    assert not broken
    assert counts.total() == cases > 5000
    assert EXPECTED[name] <= counts.keys()
    assert all(counts[end] > cases // 1000 for end in EXPECTED[name])
