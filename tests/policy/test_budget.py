"""policy/budget and policy/purse: the limit holds whatever the order, the thread and the outcome (FAULTS 91)."""

from __future__ import annotations

import math
import random
import threading

import pytest
from hypothesis import given, strategies as st

from fastllm.answers import Usage
from fastllm.errors import BudgetExceededError, ConfigError, LLMError, StoppedError
from fastllm.policy.budget import SHARES, Budget, Reservation
from fastllm.policy.pricing import Price, PriceTable
from fastllm.policy.purse import OVERHEAD, Purse, answers_asked

PRICE = Price(provider="p", model="m", input=2.0, output=10.0, max_output_tokens=1000, context=100_000)


def test_a_reservation_is_settled_refunded_or_kept_and_only_once() -> None:
    budget = Budget(1.0)
    first, second, third = (budget.reserve(0.25) for _ in range(3))
    assert (budget.reserved, budget.left, budget.spent) == (0.75, 0.25, 0.0)
    assert first.settle(0.1) and not first.settle(0.2) and not first.refund() and not first.keep()
    assert second.refund() and not second.keep()
    assert third.keep() and not third.refund()
    assert (budget.spent, budget.reserved, budget.left) == (0.35, 0.0, 0.65)
    assert (first.amount, first.closed) == (0.25, True)
    assert repr(budget) == "<Budget $1.00: $0.35 spent, $0.00 reserved>"


def test_what_does_not_fit_is_refused_at_once_and_says_whether_waiting_may_help() -> None:
    budget = Budget(1.0)
    held = budget.reserve(0.7)
    with pytest.raises(BudgetExceededError, match=r"budget of \$1\.00 .* may cost \$0\.50: \$0\.00 is spent") as caught:
        budget.reserve(0.5)
    assert caught.value.passing and not caught.value.sent and not caught.value.retryable
    held.settle(0.7)
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve(0.5)
    assert not caught.value.passing
    assert budget.reserve(0.3).amount == 0.3, "the last cent can be spent"
    with pytest.raises(BudgetExceededError, match=r"may cost \$0\.0000000012"):
        budget.reserve(1.2e-9)


def test_it_stops_a_job_as_its_fault_lies_with_nobody_who_could_be_asked_again() -> None:
    assert issubclass(BudgetExceededError, StoppedError) and issubclass(BudgetExceededError, LLMError)
    assert BudgetExceededError.fault == "caller's"


def test_a_request_that_cost_more_than_was_held_is_booked_as_it_was_and_ends_the_spending() -> None:
    budget = Budget(1.0)
    budget.reserve(0.5).settle(3.0)
    assert (budget.spent, budget.left) == (3.0, 0.0)
    with pytest.raises(BudgetExceededError):
        budget.reserve(1e-9)
    with pytest.raises(BudgetExceededError):
        budget.reserve(0)
    assert Budget(0).reserve(0).amount == 0, "a budget of nothing allows what costs nothing"


def test_earlier_runs_count() -> None:
    assert Budget(1.0, spent=0.75).left == 0.25
    with pytest.raises(BudgetExceededError):
        Budget(1.0, spent=2.0).reserve(0.01)


@pytest.mark.parametrize("value", [-1, -1e-30, math.nan, math.inf, -math.inf, 10**400, True, "5", None, 1e13])
def test_what_is_no_amount_of_dollars_is_refused_with_the_fields_name(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^budget must be a number of dollars from 0"):
        Budget(value)  # type: ignore[arg-type]
    budget = Budget(10)
    with pytest.raises(ConfigError, match=r"^amount must"):
        budget.reserve(value)  # type: ignore[arg-type]
    held = budget.reserve(1)
    with pytest.raises(ConfigError, match=r"^actual must"):
        held.settle(value)  # type: ignore[arg-type]
    assert held.keep() and budget.spent == 1, "a cost that is none leaves the reservation to be kept"


dollars = st.floats(0, 2, allow_nan=False)


@given(dollars, st.lists(st.tuples(dollars, st.floats(0, 1), st.sampled_from(["settle", "refund", "keep", "open"]))))
def test_no_order_of_events_passes_the_limit(limit: float, events: list[tuple[float, float, str]]) -> None:
    budget = Budget(limit)
    waiting: list[Reservation] = []
    for amount, share, end in events:
        try:
            held = budget.reserve(amount)
        except BudgetExceededError:
            assert budget.spent + budget.reserved + amount > limit - 1e-11
        else:
            waiting.append(held)
            if end == "settle":
                held.settle(amount * share)
            elif end != "open":
                getattr(held, end)()
        assert budget.spent + budget.reserved <= limit + 1e-11
    for held in waiting:
        held.keep()
    assert budget.reserved == 0 and budget.spent <= limit + 1e-11


def test_a_million_cents_are_ten_thousand_dollars() -> None:
    budget = Budget(100)
    for _ in range(10_000):
        budget.reserve(0.01).settle(0.01)
    assert budget.spent == 100.0 and budget.left == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_eight_threads_racing_for_the_last_cent_never_overspend(seed: int) -> None:
    budget = Budget(1.0)
    granted = [0] * 8
    most = [0.0] * 8
    start = threading.Barrier(8)

    def race(number: int) -> None:
        rng = random.Random(seed * 8 + number)
        start.wait()
        for _ in range(2000):
            try:
                held = budget.reserve(0.01)
            except BudgetExceededError:
                continue
            granted[number] += 1
            end = rng.choice(["settle", "settle", "refund", "keep"])
            if end == "settle":
                held.settle(rng.random() * 0.01)
            else:
                getattr(held, end)()
            most[number] = max(most[number], budget.spent)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= budget.spent <= 1.0 and budget.reserved == 0
    assert sum(granted) >= 100 and budget.spent > 0.98, "and the money was really used"


def test_all_of_it_is_granted_exactly_where_it_fits_exactly() -> None:
    budget = Budget(0.7)
    held: list[Reservation] = []
    lock = threading.Lock()

    def take() -> None:
        for _ in range(20):
            try:
                mine = budget.reserve(0.07)
            except BudgetExceededError as error:
                assert error.passing
                continue
            with lock:
                held.append(mine)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 10 and budget.left == 0


def test_a_purse_holds_a_token_for_each_byte_and_the_longest_answer() -> None:
    purse = Purse(Budget(100), PRICE)
    assert purse.bound(1000, 50, 1) == pytest.approx(((1000 + OVERHEAD) * 2 + 50 * 10) / 1e6)
    assert purse.bound(1000, 100, 2) == purse.bound(1000, 100, 1), "max_tokens counts all answers already"
    assert purse.bound(1000, 0, 2) == pytest.approx(((1000 + OVERHEAD) * 2 + 2 * 1000 * 10) / 1e6)
    assert purse.bound(10**9, 1, 1) == pytest.approx((100_000 * 2 + 10) / 1e6), "no prompt is longer than the context"
    no_most = Price(input=2.0, output=10.0, context=5000)
    assert Purse(Budget(1), no_most).bound(0, 0, 1) == pytest.approx((OVERHEAD * 2 + 5000 * 10) / 1e6)
    assert answers_asked(b'{"n": 3}') == 3
    assert [answers_asked(body) for body in (b"{}", b'{"n":null}', b'{"n":"x"}', b'{"n":-2}', b'"n"')] == [1] * 5


@given(st.text(max_size=300))
def test_no_text_has_more_tokens_than_the_bound_even_byte_by_byte(text: str) -> None:
    purse = Purse(Budget(1), Price(input=1e6, output=0.0))
    assert purse.bound(len(text.encode()), 1, 1) >= len(text.encode())


def test_a_purse_settles_by_usage_and_keeps_all_where_there_is_none() -> None:
    budget = Budget(1.0)
    purse = Purse(budget, PRICE)
    assert purse.settle(purse.reserve(1000, 50, 1), Usage(prompt_tokens=250, completion_tokens=20)) == pytest.approx(
        0.0007
    )
    assert budget.spent == pytest.approx(0.0007) and budget.reserved == 0
    held = purse.reserve(1000, 50, 1)
    assert purse.settle(held, None) is None
    assert budget.spent == pytest.approx(0.0007 + held.amount)


def test_what_has_no_price_is_refused_unless_it_is_allowed_and_then_it_is_counted() -> None:
    budget = Budget(1.0)
    with pytest.raises(ConfigError, match=r"cannot hold x/y: its price is not known; .*prices=…"):
        Purse(budget, None, model="x/y").reserve(10, 10, 1)
    purse = Purse(budget, None, model="x/y", unknown_price="allow")
    held = purse.reserve(10, 10, 1)
    assert held.amount == 0 and purse.settle(held, Usage(prompt_tokens=5)) is None and held.closed
    assert purse.unpriced == 1 and budget.spent == 0
    endless = Price(provider="p", model="m", input=1.0, output=1.0)
    with pytest.raises(ConfigError, match=r"cannot hold p/m: how long its answers can be"):
        Purse(budget, endless).reserve(10, 0, 1)
    assert Purse(budget, endless).reserve(10, 5, 1).refund()
    assert Purse(budget, endless, unknown_price="allow").reserve(10, 0, 1).amount > 0
    with pytest.raises(ConfigError, match="unknown_price must be 'refuse' or 'allow'"):
        Purse(budget, endless, unknown_price="maybe")  # type: ignore[arg-type]


def test_free_models_and_embeddings_need_no_bound_of_the_answer() -> None:
    table = PriceTable.load()
    local = table.find("local", "smollm2")
    assert Purse(Budget(0), local).reserve(10**6, 0, 1).amount == 0
    embedding = table.find("openai", "text-embedding-3-small")
    assert embedding is not None
    assert Purse(Budget(1), embedding).bound(100, 0, 1) == pytest.approx((100 + OVERHEAD) * 0.02 / 1e6)
    many_texts = Purse(Budget(1), embedding).bound(10**6, 0, 1)
    assert many_texts == pytest.approx((10**6 + OVERHEAD) * 0.02 / 1e6), "the context bounds each text, not their sum"


@pytest.mark.parametrize("seed", range(3))
def test_eight_endpoints_with_prices_of_the_table_share_one_budget_and_never_pass_it(seed: int) -> None:
    budget = Budget(0.5)
    paid = [0.0] * 8
    rows = [price for price in PriceTable.load() if not price.free]

    def ask(number: int) -> None:
        rng = random.Random(100 * seed + number)
        purse = Purse(budget, rng.choice(rows))
        for _ in range(500):
            size, most = rng.randrange(1, 5000), rng.randrange(1, 500)
            try:
                held = purse.reserve(size, most, 1)
            except BudgetExceededError:
                continue
            used = Usage(prompt_tokens=rng.randrange(1, size + 1), completion_tokens=rng.randrange(most + 1))
            paid[number] += purse.settle(held, used) or 0.0

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(paid) == pytest.approx(budget.spent) and budget.spent <= 0.5 and budget.reserved == 0


@given(st.integers(1, 20_000_000), st.integers(0, 10**9), st.integers(1, 10**6))
def test_the_last_of_a_large_budget_that_is_shared_can_be_spent(cents: int, elsewhere: int, last: int) -> None:
    """Whatever its size: what is told of it and given back are whole numbers, so that nothing is lost in rounding."""
    budget = Budget(cents / 100, shared=True)
    limit = budget.claims().limit
    part = max(0, limit - elsewhere)
    budget.allow(part, min(elsewhere, limit))
    if part > last:
        budget.reserve((part - last) / SHARES).keep()
    left = part - budget.claims().spent
    if left > 0:
        budget.reserve(left / SHARES).keep()
    assert budget.claims().spent == part
    with pytest.raises(BudgetExceededError) as refused:
        budget.reserve(1 / SHARES)
    assert budget.claims().missing == 1 and refused.value.passing == (elsewhere < limit and part + elsewhere < limit)
