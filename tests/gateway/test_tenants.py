"""Tenants: no window holds more than its limit, no budget is overspent, whatever fails and however many take part."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fastllm.errors import (
    BudgetExceededError,
    ConfigError,
    LimitExceededError,
    LLMError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitError,
)
from fastllm.gateway import tenants as rules
from fastllm.gateway.database import Database
from fastllm.gateway.faces import pairs_of
from fastllm.gateway.keys import VirtualKey
from fastllm.gateway.shares import LEASE
from fastllm.gateway.tenants import Admission, Tenants

DAWN = 1_800_057_600.0  # 2027-01-16, 00:00 UTC
HOUR, DAY = 3600.0, 86400.0


class Time:
    """A clock that a test moves; `wall` is what the wall clock is ahead."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.wall = DAWN - 1000.0

    def now(self) -> float:
        return self.at

    def time(self) -> float:
        return self.at + self.wall


def key(**limits: Any) -> VirtualKey:
    return VirtualKey(id="key-1", name="team-a", **limits)


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.sqlite3"


def tenants_of(path: Path, clock: Time) -> Tenants:
    return Tenants(path, clock=clock, thread=False)  # type: ignore[arg-type]


@pytest.fixture
def tenants(path: Path, clock: Time) -> Iterator[Tenants]:
    tenants = tenants_of(path, clock)
    yield tenants
    tenants.close()


def test_requests_are_let_in_again_at_the_second_that_was_told(tenants: Tenants, clock: Time) -> None:
    limited = key(rpm=5)
    for _ in range(5):
        tenants.admit(limited, 1, 0.0).release()
        clock.at += 1.0
    with pytest.raises(RateLimitError, match="'team-a' may use 5 requests in any 60 seconds, 5 are used") as caught:
        tenants.admit(limited, 1, 0.0)
    wait = caught.value.retry_after
    assert wait is not None and 55 < wait < 56.5 and caught.value.status_code == 429 and caught.value.retryable
    clock.at += wait - 0.01
    with pytest.raises(RateLimitError):
        tenants.admit(limited, 1, 0.0)
    clock.at += 0.01
    tenants.admit(limited, 1, 0.0)
    with pytest.raises(RateLimitError):
        tenants.admit(limited, 1, 0.0)


def test_tokens_are_reserved_and_settled_to_what_they_were(tenants: Tenants, clock: Time) -> None:
    limited = key(tpm=1000)
    first = tenants.admit(limited, 900, 0.0)
    with pytest.raises(RateLimitError, match="1000 tokens in any 60 seconds, 900 are used, and this needs 200"):
        tenants.admit(limited, 200, 0.0)
    first.settle(100, 0.0)
    first.settle(0, 0.0)  # changes nothing
    second = tenants.admit(limited, 900, 0.0)
    clock.at += 2  # another slot
    second.settle(300, 0.0)
    third = tenants.admit(limited, 600, 0.0)
    with pytest.raises(RateLimitError):
        tenants.admit(limited, 1, 0.0)
    third.settle(2000, 0.0)  # more than was estimated has happened, and counts
    clock.at += 57
    with pytest.raises(RateLimitError):
        tenants.admit(limited, 1, 0.0)
    clock.at += 2
    with pytest.raises(RateLimitError):
        tenants.admit(limited, 1, 0.0)
    clock.at += 2
    tenants.admit(limited, 1000, 0.0).release()


def test_what_nobody_settles_stays_booked(tenants: Tenants) -> None:
    limited = key(tpm=100, budget_day=1.0)
    admission = tenants.admit(limited, 60, 0.6)
    admission.release()
    admission.settle(0, 0.0)  # too late
    with pytest.raises(RateLimitError):
        tenants.admit(limited, 60, 0.1)
    with pytest.raises(BudgetExceededError):
        tenants.admit(limited, 1, 0.6)
    assert tenants.spending(limited).day == pytest.approx(0.6)
    for nonsense in (math.nan, math.inf, -1.0, None):
        unknown = tenants.admit(limited, 1, 0.05)
        unknown.settle(nonsense, nonsense)
        unknown.release()
    assert tenants.spending(limited).day == pytest.approx(0.8)


def test_what_can_never_fit_is_refused_for_good(tenants: Tenants) -> None:
    for tokens in (1001, math.inf, math.nan):
        with pytest.raises(LimitExceededError, match="can never be let in") as caught:
            tenants.admit(key(tpm=1000), tokens, 0.0)
        assert not caught.value.retryable
    tenants.admit(key(tpm=1000), 1000, 0.0)


def test_places_are_given_back_once(tenants: Tenants) -> None:
    limited = key(parallel=2)
    first, second = (tenants.admit(limited, 1, 0.0) for _ in range(2))
    with pytest.raises(RateLimitError, match="may have 2 requests under way, and has them") as caught:
        tenants.admit(limited, 1, 0.0)
    assert caught.value.retry_after is not None
    first.release()
    first.release()
    third = tenants.admit(limited, 1, 0.0)
    with pytest.raises(RateLimitError):
        tenants.admit(limited, 1, 0.0)
    second.release()
    third.release()
    for admission in [tenants.admit(limited, 1, 0.0) for _ in range(2)]:
        admission.release()


def test_a_request_counts_in_all_limits_or_in_none(tenants: Tenants) -> None:
    limited = key(rpm=10, tpm=100, parallel=5, budget_day=1.0)
    for tokens, bound in ((101, 0.1), (1, 1.01)):
        for _ in range(20):
            with pytest.raises(LLMError):
                tenants.admit(limited, tokens, bound)
    for _ in range(5):
        tenants.admit(limited, 20, 0.2)
    assert tenants.spending(limited).day_booked == pytest.approx(1.0)


@pytest.mark.fault("91")
def test_a_thousand_at_the_last_cent_spend_no_more_than_it(tenants: Tenants) -> None:
    limited = key(budget_day=5.0, budget_month=100.0)
    spent = tenants.admit(limited, 1, 4.99)
    spent.settle(1, 4.99)
    admitted, refused = [], 0
    for _ in range(1000):
        try:
            admitted.append(tenants.admit(limited, 1, 0.004))
        except BudgetExceededError as error:
            refused += 1
            assert error.passing and "may give it back in a moment" in str(error)
    assert (len(admitted), refused) == (2, 998)
    for admission in admitted:
        admission.settle(1, 0.004)
    with pytest.raises(
        BudgetExceededError, match=r"may spend \$5.00 a day \(UTC\), \$5.00 is spent, .* \$0.0040"
    ) as last:
        tenants.admit(limited, 1, 0.004)
    assert not last.value.passing and not last.value.retryable
    assert tenants.spending(limited).day == pytest.approx(4.998)
    tenants.admit(limited, 1, 0.0)  # costs nothing


def test_money_that_is_given_back_can_be_spent_at_once(tenants: Tenants) -> None:
    limited = key(budget_day=1.0)
    for _ in range(200):
        admission = tenants.admit(limited, 1, 0.9)
        with pytest.raises(BudgetExceededError):
            tenants.admit(limited, 1, 0.9)
        admission.settle(1, 0.0005)
        admission.release()
    assert tenants.spending(limited).day == pytest.approx(0.1)


@pytest.mark.fault("91")
def test_a_new_day_has_a_new_budget_and_the_month_goes_on(tenants: Tenants, clock: Time) -> None:
    limited = key(budget_day=1.0, budget_month=2.5)
    late = tenants.admit(limited, 1, 1.0)
    clock.at += DAY
    tenants.admit(limited, 1, 1.0).settle(1, 1.0)
    late.settle(1, 0.4)  # belongs to yesterday
    found = tenants.spending(limited)
    assert (found.day, found.month) == (pytest.approx(1.0), pytest.approx(1.4))
    clock.at += DAY
    tenants.admit(limited, 1, 1.0).settle(1, 1.0)
    clock.at += DAY
    with pytest.raises(BudgetExceededError, match="a month"):
        tenants.admit(limited, 1, 0.2)
    clock.wall -= 2 * DAY  # a clock that is set back gives no day twice
    with pytest.raises(BudgetExceededError, match="a day"):
        tenants.admit(limited, 1, 0.05)
    clock.wall += 2 * DAY + 13 * DAY  # 2027-02-01
    tenants.admit(limited, 1, 1.0)
    tenants.flush()  # what was leased ahead goes back the next time
    assert tenants.spending(limited).month_booked == pytest.approx(1.0)


def test_a_restart_forgets_neither_money_nor_windows(path: Path, clock: Time) -> None:
    limited = key(rpm=10, budget_day=1.0)
    first = tenants_of(path, clock)
    for _ in range(7):
        first.admit(limited, 1, 0.1).settle(1, 0.1)
    first.close()
    second = tenants_of(path, clock)
    assert second.spending(limited).day == second.spending(limited).day_booked == pytest.approx(0.7)
    for _ in range(3):
        second.admit(limited, 1, 0.01).release()
    with pytest.raises(RateLimitError):
        second.admit(limited, 1, 0.01)
    second.close()


def test_money_that_a_killed_process_held_stays_booked(path: Path, clock: Time) -> None:
    limited = key(budget_day=100.0, parallel=1)
    killed = tenants_of(path, clock)
    for _ in range(3):
        admission = killed.admit(limited, 1, 0.5)
        admission.settle(1, 0.1)
        admission.release()
    killed.admit(limited, 1, 0.5)
    other = tenants_of(path, clock)
    assert 0.8 <= other.spending(limited).day_booked <= 0.8 + 8 * 0.5 + 0.5  # and what it had leased for a moment
    with pytest.raises(RateLimitError):
        other.admit(limited, 1, 0.5)
    clock.at += LEASE + 0.1
    other.admit(limited, 1, 0.5)  # its place is free again
    other.close()


def test_what_is_leased_and_not_used_goes_back(path: Path, clock: Time) -> None:
    limited = key(rpm=1000, tpm=100_000, budget_day=100.0)
    one, two = tenants_of(path, clock), tenants_of(path, clock)
    first = one.admit(limited, 50, 0.01)
    first.settle(50, 0.01)
    assert one.spending(limited).day_booked > 0.01
    clock.at += 1
    one.flush()
    assert two.spending(limited).day_booked == pytest.approx(0.01)
    for _ in range(999):
        two.admit(limited, 100, 0.01).settle(50, 0.02)
    with pytest.raises(RateLimitError):
        two.admit(limited, 50, 0.01)
    clock.at += 500
    one.flush(), two.flush()
    assert one._states  # a request is under way, however long
    first.release()
    clock.at += 500
    one.flush()
    assert not one._states and not one._dirty  # nobody uses it: forgotten
    one.close()
    two.close()


def test_only_allowed_models_pass(tenants: Tenants) -> None:
    tenants.check_model(key(), "anything")
    limited = key(models=["gpt-4o*", "local/smollm2", "anthropic/claude-[hs]*"])
    for model in ("gpt-4o", "gpt-4o-mini", "local/smollm2", "anthropic/claude-haiku-4-5"):
        tenants.check_model(limited, model)
    for model in ("gpt-4", "GPT-4o", "local/smollm22", "anthropic/claude-opus-4", "", "x" * 10**5, "*", "gpt-4\n"):
        with pytest.raises(PermissionDeniedError, match="'team-a' may not use the model") as caught:
            tenants.check_model(limited, model)
        assert caught.value.status_code == 403 and len(str(caught.value)) <= 500


def test_expired_and_revoked_keys_are_refused(tenants: Tenants, clock: Time) -> None:
    guest = key(expires=DAWN + HOUR)
    tenants.admit(guest, 1, 0.0)
    clock.at += HOUR
    with pytest.raises(PermissionDeniedError, match="'team-a' is expired") as caught:
        tenants.admit(guest, 1, 0.0)
    assert caught.value.code == "key_expired"
    with pytest.raises(PermissionDeniedError, match="is revoked"):
        tenants.admit(key(revoked=DAWN), 1, 0.0)


@pytest.mark.fault("91")
def test_a_bound_that_is_no_number_is_refused(tenants: Tenants) -> None:
    for bound in (math.nan, math.inf, -1.0, "1", True, 1e300):
        with pytest.raises(ConfigError, match="cost_bound must be"):
            tenants.admit(key(), 1, bound)  # type: ignore[arg-type]
    tenants.admit(key(), 1, None)
    with pytest.raises(BudgetExceededError, match="not known"):
        tenants.admit(key(budget_month=5), 1, None)


def told(lines: bytes) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in pairs_of(lines)}


def test_headers_tell_what_is_left_and_never_too_much(tenants: Tenants, clock: Time) -> None:
    limited = key(rpm=3, tpm=1000)
    unread = {"x-ratelimit-limit-requests": "3", "x-ratelimit-limit-tokens": "1000"}
    assert told(tenants.lines(limited)) == unread  # what others have used is not known yet
    admission = tenants.admit(limited, 400, 0.0)
    found = told(admission.lines())
    assert (found["x-ratelimit-limit-requests"], found["x-ratelimit-remaining-requests"]) == ("3", "2")
    assert (found["x-ratelimit-limit-tokens"], found["x-ratelimit-remaining-tokens"]) == ("1000", "600")
    assert 60 < float(found["x-ratelimit-reset-requests"].removesuffix("s")) < 61
    admission.settle(100, 0.0)
    assert told(tenants.lines(limited))["x-ratelimit-remaining-tokens"] == "900"
    for _ in range(2):
        tenants.admit(limited, 1, 0.0)
    assert told(tenants.lines(limited))["x-ratelimit-remaining-requests"] == "0"
    clock.at += 61
    assert told(tenants.lines(limited))["x-ratelimit-remaining-requests"] == "3"
    assert told(tenants.lines(limited))["x-ratelimit-reset-requests"] == "0.000s"
    assert tenants.admit(key(), 1, 0.0).lines() == b""


def test_headers_of_a_refusal_tell_what_other_processes_have_used(tenants: Tenants, clock: Time, path: Path) -> None:
    limited = key(rpm=3, tpm=1000)
    for _ in range(3):
        tenants.admit(limited, 100, 0.0)
    tenants.flush()
    for other in (tenants_of(path, clock), tenants):
        with pytest.raises(RateLimitError):
            other.admit(limited, 100, 0.0)
        found = told(other.lines(limited))
        assert found["x-ratelimit-remaining-requests"] == "0"
        assert 600 < int(found["x-ratelimit-remaining-tokens"]) <= 700  # what is leased and not used counts for others
        assert 60 < float(found["x-ratelimit-reset-requests"].removesuffix("s")) < 62
    other.close()


def test_a_key_that_is_given_a_budget_has_it_at_once(tenants: Tenants) -> None:
    tenants.admit(key(rpm=10), 1, 0.5)
    tenants.admit(key(rpm=10, budget_day=1.0), 1, 0.75)
    with pytest.raises(BudgetExceededError):
        tenants.admit(key(rpm=10, budget_day=1.0), 1, 0.75)


def test_a_new_day_begins_with_the_first_request_of_it(tenants: Tenants, clock: Time) -> None:
    limited = key(rpm=10, budget_day=1.0)
    clock.wall += DAY - 0.1  # within one slot of half a second
    tenants.admit(limited, 1, 0.75)
    clock.at += 0.2
    tenants.admit(limited, 1, 0.75)
    assert tenants.spending(limited).day_booked == 0.75


def test_a_file_that_somebody_holds_refuses_for_now_and_counts_nothing(
    tenants: Tenants, clock: Time, path: Path
) -> None:
    limited = key(rpm=2, budget_day=1.0)
    admission = tenants.admit(limited, 1, 0.5)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(OverloadedError, match="cannot be used now") as caught:
        tenants.admit(limited, 1, 0.5)
    assert caught.value.retryable and caught.value.status_code == 503
    admission.settle(1, 0.1)
    admission.release()
    with pytest.raises(OverloadedError):
        tenants.flush()
    holder.execute("ROLLBACK")
    holder.close()
    tenants.flush()
    assert tenants.spending(limited).day == pytest.approx(0.1)
    tenants.admit(limited, 1, 0.5)
    with pytest.raises(RateLimitError):
        tenants.admit(limited, 1, 0.1)


def test_rows_of_another_boot_bind_nobody(path: Path, clock: Time) -> None:
    clock.at = 5_000_000.0
    before = tenants_of(path, clock)
    limited = key(rpm=1, parallel=1)
    before.admit(limited, 1, 0.0)
    before.flush()
    clock.at = 12.0
    after = tenants_of(path, clock)
    after.admit(limited, 1, 0.0)
    after.close()


def test_reprs_say_what_is_going_on(tenants: Tenants) -> None:
    admission = tenants.admit(key(budget_day=1), 12, 0.25)
    assert repr(admission) == "<Admission of 'team-a', 12 tokens, $0.25, open>"
    admission.settle(1, 0.0)
    assert "settled" in repr(admission)
    admission.release()
    assert "released" in repr(admission) and "1 keys in use" in repr(tenants)


def test_the_thread_writes_by_itself_and_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "TICK", 0.01)
    monkeypatch.setattr(rules, "CHECKPOINT", 0.0)
    tenants = Tenants(path)
    tenants.admit(key(budget_day=5), 1, 0.1).settle(1, 0.05)
    database = Database(path)
    while database.read("SELECT settled FROM money") != [(50_000_000,)]:
        assert tenants._thread is not None and tenants._thread.is_alive()
    tenants.close()
    assert not tenants._thread.is_alive()
    database.close()


STEP = st.one_of(
    st.tuples(st.just("wait"), st.floats(0.0, 40.0)),
    st.tuples(st.just("admit"), st.integers(0, 2), st.integers(1, 60), st.floats(0.0, 0.3)),
    st.tuples(st.just("settle"), st.integers(0, 20), st.floats(0.0, 1.0)),
    st.tuples(st.just("release"), st.integers(0, 20)),
    st.tuples(st.just("flush"), st.integers(0, 2)),
    st.tuples(st.just("restart"), st.integers(0, 2)),
)


class Let(msgspec.Struct):
    """One request that was let in, as the test remembers it."""

    admission: Admission
    at: float
    tokens: float
    bound: float
    cost: float | None = None
    gone: bool = False


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, max_size=80))
def test_no_order_of_things_lets_more_through(steps: list[tuple[Any, ...]]) -> None:
    """Three processes on one file: no 60 seconds hold more than a limit, and what is spent and held never exceeds the
    budget, as long as no request costs more than its bound."""
    limited = key(rpm=20, tpm=300, parallel=4, budget_day=1.0, budget_month=2.0)
    clock, let = Time(), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.sqlite3"
        processes = [tenants_of(path, clock) for _ in range(3)]
        for step in steps:
            if step[0] == "wait":
                for _ in range(int(step[1] // 2)):  # places are renewed, as the thread does
                    clock.at += 2.0
                    for process in processes:
                        process.flush()
                clock.at += step[1] % 2
            elif step[0] == "admit":
                try:
                    admission = processes[step[1]].admit(limited, step[2], step[3])
                except (RateLimitError, BudgetExceededError):
                    continue
                let.append(Let(admission, clock.at, step[2], step[3]))
                _check(let, clock.at)
            elif step[0] == "settle" and step[1] < len(let):
                one = let[step[1]]
                if one.cost is None and not one.gone:
                    one.cost, one.tokens = one.bound * step[2], one.tokens * step[2]
                    one.admission.settle(one.tokens, one.cost)
            elif step[0] == "release" and step[1] < len(let):
                let[step[1]].admission.release()
                let[step[1]].gone = True
            elif step[0] == "flush":
                processes[step[1]].flush()
            elif step[0] == "restart":
                for one in let:
                    if one.admission._tenants is processes[step[1]]:
                        one.admission.release()
                        one.gone = True
                processes[step[1]].close()
                processes[step[1]] = tenants_of(path, clock)
        for one in let:
            one.admission.release()
        for process in processes:
            process.close()
        last = tenants_of(path, clock)
        spent = math.fsum(one.bound if one.cost is None else one.cost for one in let)
        found = last.spending(limited)
        assert found.day == pytest.approx(spent, abs=1e-6) and found.day_booked == pytest.approx(found.day, abs=1e-6)
        last.close()


def _check(let: list[Let], now: float) -> None:
    recent = [one for one in let if one.at > now - 60.0]
    assert len(recent) <= 20
    assert math.fsum(one.tokens for one in recent) <= 300 + 1e-6
    assert sum(not one.gone for one in let) <= 4
    assert math.fsum(one.bound if one.cost is None else one.cost for one in let) <= 1.0 + 1e-6


WORKER = """
import json, random, sys, time
from fastllm.errors import BudgetExceededError, RateLimitError
from fastllm.gateway.keys import VirtualKey
from fastllm.gateway.tenants import Tenants
path, seed, rpm, budget, count = sys.argv[1], *map(float, sys.argv[2:])
key = VirtualKey(id="k", name="k", rpm=rpm or None, budget_day=budget)
rng, tenants, let, spent, kept = random.Random(seed), Tenants(path), 0, 0.0, []
print("ready", flush=True); sys.stdin.readline()
for _ in range(int(count)):
    time.sleep(0.0005)  # the others' turn
    try:
        admission = tenants.admit(key, 1, 0.01)
    except (BudgetExceededError, RateLimitError):
        continue
    let += 1
    cost = rng.random() * 0.01
    spent += cost
    kept.append((admission, cost))
    while len(kept) > 5:
        admission, cost = kept.pop(rng.randrange(len(kept)))
        admission.settle(1, cost); admission.release()
for admission, cost in kept:
    admission.settle(1, cost); admission.release()
tenants.close()
print(json.dumps([let, spent]), flush=True)
"""


def _crew(path: Path, *numbers: float) -> list[tuple[int, float]]:
    """Run four real processes that begin at one moment; gives what each let in and spent."""
    crew = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), str(seed), *map(str, numbers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for seed in range(4)
    ]  # fmt: skip
    for process in crew:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in crew:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=120)[0] for process in crew]
    assert [process.returncode for process in crew] == [0] * 4
    return [tuple(msgspec.json.decode(text)) for text in found]


def test_four_processes_share_a_limit(path: Path) -> None:
    found = _crew(path, 300, 1000, 600)
    assert 285 <= sum(let for let, _ in found) <= 300  # a lease of one may be too late for the others
    tenants = Tenants(path, thread=False)
    spending = tenants.spending(VirtualKey(id="k", name="k", budget_day=1000.0))
    assert spending.day == pytest.approx(sum(spent for _, spent in found), abs=1e-5)
    tenants.close()


@pytest.mark.fault("91")
def test_four_processes_share_a_budget(path: Path) -> None:
    found = _crew(path, 0, 2.0, 1500)
    spent = sum(cost for _, cost in found)
    assert 1.8 <= spent <= 2.0 and sum(let > 0 for let, _ in found) >= 2
    tenants = Tenants(path, thread=False)
    found_money = tenants.spending(VirtualKey(id="k", name="k", budget_day=2.0))
    assert found_money.day == pytest.approx(spent, abs=1e-5)
    assert found_money.day_booked == pytest.approx(spent, abs=1e-5)
    tenants.close()


def test_a_process_that_is_killed_frees_no_money(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), "1", "0", "5", "100000000"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    database = Database(path)
    while not (rows := database.read("SELECT settled FROM money")) or rows[0][0] < 10**9:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    ((booked, settled),) = database.read("SELECT booked, settled FROM money")
    assert 10**9 <= settled <= booked <= 5 * 10**9
    database.close()
