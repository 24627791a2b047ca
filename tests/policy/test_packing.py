"""policy/packing: requests within the caps, and caps learnt from what real refusals say."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from fastllm.policy.packing import SHARE, Packing


@given(st.lists(st.floats(0.1, 5000), max_size=300), st.integers(1, 50), st.integers(1, 10_000))
def test_requests_are_within_the_caps_and_as_few_as_the_order_allows(
    tokens: list[float], inputs: int, most: int
) -> None:
    packing = Packing(inputs, most)
    sizes = packing.split(tokens)
    assert sum(sizes) == len(tokens)
    at = 0
    for size in sizes:
        part = tokens[at : at + size]
        assert size >= 1
        assert packing.holds(size, sum(part))
        if at + size < len(tokens):  # one more would not have gone in
            assert not packing.holds(size + 1, sum(part) + tokens[at + size])
        at += size


@pytest.mark.parametrize(
    ("message", "inputs", "cap"),
    [
        (
            "'$.input' is invalid. Expected an array with maximum length 2048, but got an array with length 3000.",
            3000,
            2048,
        ),
        ("invalid request: total number of texts must be at most 96, received 128", 128, 96),
        ("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch", 256, 100),
        ("batch size 256 > maximum allowed batch size 32", 256, 32),
        ("The number of inputs exceeds 1,000", 1500, 1000),
    ],
)
def test_a_refusal_that_names_the_number_of_inputs_is_believed(message: str, inputs: int, cap: int) -> None:
    packing = Packing(5000)
    assert packing.told(message, inputs, 10.0 * inputs)
    assert packing.inputs == cap


def test_a_refusal_that_names_tokens_sets_their_cap() -> None:
    packing = Packing(2048, 1_000_000)
    assert packing.told("Requested 350000 tokens, max 300000 tokens per request", 2048, 350_000)
    assert (packing.inputs, packing.tokens) == (2048, 300_000)
    assert not packing.holds(2, 300_000)
    assert packing.holds(2, 300_000 * SHARE)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens, however you requested 9000 tokens",  # of one input
        "invalid input",
        "the input may not be longer than 512 characters at index 3",
        "at most 300 inputs",  # there were fewer
    ],
)
def test_a_refusal_that_explains_nothing_teaches_nothing(message: str) -> None:
    packing = Packing()
    assert not packing.told(message, 40, 2000.0)
    assert (packing.inputs, packing.tokens) == (Packing().inputs, Packing().tokens)


def test_what_went_through_in_halves_is_the_cap() -> None:
    packing = Packing()
    packing.found("too many inputs", 64, 1000.0)
    assert packing.inputs == 64
    packing.found("too many tokens overall, split into more batches", 32, 800.0)
    assert packing.inputs == 64
    assert packing.holds(32, 800.0)
    assert not packing.holds(33, 801.0)
