"""policy/pricing: every row of the table is sound, an unknown model has no price, and a bound is one."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from fastllm.answers import TokenDetails, Usage
from fastllm.errors import ConfigError
from fastllm.policy.budget import Budget
from fastllm.policy.pricing import LongPrompt, Price, PriceTable
from fastllm.policy.purse import Purse, answers_asked
from fastllm.providers.vendors import VENDORS
from fastllm.types import Request

TABLE = PriceTable.load()
ROWS = list(TABLE)
tokens = st.integers(0, 2_000_000)


def usage(prompt: int, completion: int, cached: int = 0) -> Usage:
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, prompt_tokens_details=TokenDetails(cached_tokens=cached)
    )


def name(price: Price) -> str:
    return f"{price.provider}/{price.model}"


@pytest.mark.parametrize("price", ROWS, ids=name)
def test_every_row_is_sound_dated_and_says_where_it_is_from(price: Price) -> None:
    assert datetime.date(2026, 1, 1) <= datetime.date.fromisoformat(price.date)
    assert price.source.startswith("https://")
    assert price.output == 0 or price.output >= price.input, "an answer's token is never cheaper than a prompt's"
    assert price.cached_input is None or price.cached_input < price.input
    assert price.cache_write is None or price.input < price.cache_write <= 2 * price.input
    assert price.long is None or (price.long.input >= price.input and price.long.output >= price.output)
    assert price.max_output_tokens is None or price.context is None or price.max_output_tokens <= price.context
    assert price.max_output_tokens or "embed" in price.model or price.free or price.context


def test_the_table_knows_the_providers_it_promises_and_each_is_a_vendor() -> None:
    promised = "openai anthropic gemini groq together fireworks deepseek mistral xai cerebras perplexity cohere"
    assert set(promised.split()) == {price.provider for price in ROWS}
    assert TABLE.providers <= set(VENDORS) | {"local"}
    assert TABLE.date and "genai-prices" in TABLE.about and f"{len(TABLE)} models" in repr(TABLE)


def test_only_the_moderation_endpoint_and_free_providers_cost_nothing() -> None:
    assert [name(price) for price in ROWS if price.free] == ["openai/omni-moderation-latest"]
    without_key = {vendor.name for vendor in VENDORS.values() if not vendor.key_required} | {"local"}
    assert TABLE.free == without_key
    for provider in without_key:
        price = TABLE.find(provider, "any-model:8b")
        assert price is not None and price.free and price.cost(usage(10**6, 10**6)) == 0


@pytest.mark.parametrize(
    ("provider", "model", "found"),
    [
        ("openai", "gpt-4o-mini", "openai/gpt-4o-mini"),
        ("openai", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"),
        ("openai", "gpt-4o-2024-05-13", "openai/gpt-4o-2024-05-13"),  # its own row wins over the date being cut off
        ("openai", "openai/gpt-4o-mini", "openai/gpt-4o-mini"),
        (None, "openai/gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"),
        (None, "openai:gpt-4o-mini", "openai/gpt-4o-mini"),
        (None, "gpt-4o-mini", "openai/gpt-4o-mini"),
        (None, "groq/openai/gpt-oss-120b", "groq/openai/gpt-oss-120b"),
        ("groq", "openai/gpt-oss-120b", "groq/openai/gpt-oss-120b"),
        ("anthropic", "claude-haiku-4-5-20251001", "anthropic/claude-haiku-4-5"),
        ("gemini", "models/gemini-2.5-pro", "gemini/gemini-2.5-pro"),
        (None, "ollama:llama3:8b", "ollama/llama3:8b"),
    ],
)
def test_a_model_is_found_by_name_by_date_and_by_its_providers_name(
    provider: str | None, model: str, found: str
) -> None:
    price = TABLE.find(provider, model)
    assert price is not None and name(price) == found


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-mini-tuned"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:mine::x"),
        ("openai", ""),
        ("mistral", "mistral-large-2599"),  # four digits are a version, not a date
        ("nobody", "gpt-4o-mini"),
        (None, "meta-llama/Llama-3.3-70B"),
        (None, "azure/gpt-4o"),
        ("base_url", "gpt-4o-mini"),
    ],
)
def test_a_model_that_is_not_in_the_table_has_no_price(provider: str | None, model: str) -> None:
    assert TABLE.find(provider, model) is None


def test_the_sums() -> None:
    price = Price(input=2.0, output=10.0, cached_input=0.5, batch=0.5, per_request=0.01)
    assert price.cost(usage(1_000_000, 100_000)) == pytest.approx(2.0 + 1.0 + 0.01)
    assert price.cost(usage(1_000_000, 0, cached=400_000)) == pytest.approx(1.2 + 0.2 + 0.01)
    assert price.cost(usage(1_000_000, 100_000), batch=True) == pytest.approx(1.5 + 0.01)
    assert price.cost(usage(100, 0, cached=10**9)) == pytest.approx(100 * 0.5 / 1e6 + 0.01), "no more cached than sent"
    assert price.bound(1000, 100, n=3) == pytest.approx((1000 * 2 + 300 * 10) / 1e6 + 0.01)
    plain = Price(input=1.0, output=1.0)
    assert plain.cost(usage(1_000_000, 0, cached=1_000_000)) == 1.0, "no price for cached tokens: the full one"
    assert plain.cost(usage(1_000_000, 0), batch=True) == 1.0, "no known discount: none"


def test_a_long_prompt_makes_the_whole_request_dearer() -> None:
    price = TABLE.find("gemini", "gemini-2.5-pro")
    assert price is not None and price.long is not None and price.long.above == 200_000
    assert price.cost(usage(200_000, 1000)) == pytest.approx(0.2 * 1.25 + 0.001 * 10)
    assert price.cost(usage(200_001, 1000)) == pytest.approx(0.200001 * 2.5 + 0.001 * 15)


prices = st.floats(0, 1000)
maybe = st.none() | prices


@given(st.data(), prices, prices, maybe, maybe, st.booleans())
def test_no_cost_is_above_its_bound(
    data: st.DataObject, input: float, output: float, cached: float | None, written: float | None, has_long: bool
) -> None:
    rates = {"input": input, "output": output, "cached_input": cached, "cache_write": written}
    long = LongPrompt(above=data.draw(tokens), input=data.draw(prices), output=data.draw(prices)) if has_long else None
    price = Price(**rates, long=long, per_request=data.draw(prices))  # type: ignore[arg-type]
    prompt, answer, n = data.draw(tokens), data.draw(tokens), data.draw(st.integers(1, 4))
    used = usage(data.draw(st.integers(0, prompt)), data.draw(st.integers(0, answer * n)), data.draw(tokens))
    cost, bound = price.cost(used), price.bound(prompt, answer, n)
    assert cost >= -1e-9 and cost <= bound * (1 + 1e-12) + 1e-12


def test_rows_of_a_users_file_win_and_the_others_stay(tmp_path: Path) -> None:
    toml = tmp_path / "prices.toml"
    toml.write_text(
        'date = "2026-12-01"\nfree = ["azure"]\n'
        '[providers.openai.models."gpt-4o-mini"]\ninput = 0.1\noutput = 1\n'
        '[providers.base_url.models."mine"]\ninput = 3\noutput = 4\nmax_output_tokens = 100\n'
    )
    table = PriceTable.load(toml)
    mini, mine = table.find("openai", "gpt-4o-mini"), table.find("base_url", "mine")
    assert mini is not None and (mini.input, mini.cached_input, mini.date) == (0.1, None, "2026-12-01")
    assert mini.max_output_tokens == 16_384 and mini.source == str(toml)
    assert mine is not None and (mine.output, mine.max_output_tokens) == (4, 100)
    assert table.find("openai", "gpt-4o") == TABLE.find("openai", "gpt-4o")
    assert table.find("azure", "anything") is not None and TABLE.find("azure", "anything") is None
    json = tmp_path / "prices.json"
    json.write_text('{"providers": {"xai": {"models": {"grok-4.7": {"input": 1, "output": 2}}}}}')
    grok = PriceTable.load(str(json)).find("xai", "grok-4.7")
    assert grok is not None and (grok.input, grok.long) == (1, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "not valid JSON or TOML"),
        ("[providers.x]\nmodel = {}", "unknown field `model`"),
        ('[providers.x.models."a"]\ninput = 1', r"price of x/a is not valid: .*`output`"),
        ('[providers.x.models."a"]\ninput = 1\noutput = -1', r"x/a is not valid: .*>= 0"),
        ('[providers.x.models."a"]\ninput = nan\noutput = 1', "x/a is not valid"),
        ('[providers.x.models."a"]\ninput = inf\noutput = 1', "x/a is not valid"),
        ('[providers.x.models."a"]\ninput = 1\noutput = 1\ncahed_input = 1', "unknown field `cahed_input`"),
        ('currency = "EUR"', "currency must be USD, not 'EUR'"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        PriceTable.load(path)
    assert "prices.toml" in str(caught.value)
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        PriceTable.load(tmp_path / "none.json")


# What providers count in their own way


def test_reasoning_that_only_the_total_shows_is_billed_as_answer() -> None:
    """xAI's documentation gives this usage."""
    price = Price(input=1.0, output=10.0)
    said = Usage(prompt_tokens=32, completion_tokens=9, total_tokens=135)
    assert price.cost(said) == pytest.approx((32 * 1.0 + 103 * 10.0) / 1e6)
    assert price.cost(Usage(prompt_tokens=32, completion_tokens=9)) == pytest.approx((32 + 90) / 1e6)


def test_a_purse_never_books_more_than_it_held_for_an_absurd_total() -> None:
    budget = Budget(1.0)
    purse = Purse(budget, Price(input=1.0, output=10.0, max_output_tokens=1000), model="m")
    held = purse.reserve(1000, 1000, 1)
    purse.settle(held, Usage(prompt_tokens=100, completion_tokens=10, total_tokens=5 * 10**6))
    assert budget.spent == pytest.approx(held.amount, abs=1e-9)


@pytest.mark.parametrize("said", [Usage(), Usage(prompt_tokens=-5, completion_tokens=-1), Usage(completion_tokens=3)])
def test_a_usage_that_counts_no_prompt_keeps_what_was_held(said: Usage) -> None:
    budget = Budget(1.0)
    purse = Purse(budget, Price(input=1.0, output=10.0, max_output_tokens=1000), model="m")
    held = purse.reserve(1000, 1000, 1)
    purse.settle(held, said)
    assert budget.spent == pytest.approx(held.amount, abs=1e-9)


@pytest.mark.parametrize(
    ("fields", "most", "answers"),
    [
        (b'"max_tokens":100,"best_of":20', 2000, 20),
        (b'"max_tokens":100,"n":3,"best_of":20', 2000, 20),
        (b'"max_tokens":1000,"max_completion_tokens":10', 1000, 1),
        (b'"max_tokens":10,"max_completion_tokens":1000', 1000, 1),
        (b'"n":4', 0, 4),
    ],
)
def test_the_bound_counts_every_answer_and_the_larger_limit(fields: bytes, most: int, answers: int) -> None:
    body = b'{"model":"m","prompt":"x",%b}' % fields
    assert Request.from_body(body, path="/completions").max_tokens == most
    assert answers_asked(body) == answers


@given(*(st.integers(-10, 5000) for _ in range(4)), st.integers(0, 20_000))
def test_a_cost_is_never_less_than_nothing_nor_more_than_the_bound(
    prompt: int, answer: int, cached: int, written: int, total: int
) -> None:
    details = TokenDetails(cached_tokens=cached, cache_write_tokens=written)
    said = Usage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=total, prompt_tokens_details=details)
    price = Price(input=2.0, output=8.0, cached_input=0.5, cache_write=2.5)
    cost = price.cost(said)
    assert (
        0.0 <= cost <= price.bound(said.prompt_tokens, max(said.completion_tokens, total - said.prompt_tokens)) + 1e-12
    )
