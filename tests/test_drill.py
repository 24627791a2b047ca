"""The fault drill in its short form; by hand it is 100,000 requests (stress/drill.py)."""

from __future__ import annotations

from drill import KINDS, drill


async def test_every_request_of_five_thousand_gets_the_right_answer_or_a_typed_error_under_every_fault() -> None:
    found = await drill(5_000, seed=1, adaptive=False, most_seconds=240)
    assert found.wrong == []
    assert found.ok + found.failed.total() == found.requests
    assert found.ok > 0.9 * found.requests
    assert len(KINDS) >= 30
    assert found.spoiled > 0.25 * found.attempts
