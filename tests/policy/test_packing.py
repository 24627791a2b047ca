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


# What vendors say, as they say it (November 2026): OpenAI, Azure, Cohere (also on Bedrock), Gemini, Vertex, Voyage,
# DashScope, SiliconFlow and text-embeddings-inference, servers that check with pydantic or a JSON schema.
COUNTS = [
    (
        "'$.input' is invalid. Expected an array with maximum length 2048, but got an array with length 3000.",
        3000,
        2048,
    ),
    (
        "Invalid 'input': array too long. Expected an array with maximum length 2048, but got an array with length "
        "2049 instead.",
        2049,
        2048,
    ),
    ("Too many inputs for model None. The max number of inputs is 16. We hope to increase the number soon.", 100, 16),
    ("invalid request: total number of texts must be at most 96, received 128", 128, 96),
    (
        "Malformed input request: #/texts: expected maximum item count: 96, found: 128, please reformat your input",
        128,
        96,
    ),
    ("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch", 256, 100),
    ("250 instance(s) is allowed per prediction. Actual: 300", 300, 250),
    ("The batch size limit is 128. Your batch size is 200.", 200, 128),
    (
        "<400> InternalError: Value error, batch size is invalid, it should not be larger than 10.: input.contents",
        64,
        10,
    ),
    ("batch size 256 > maximum allowed batch size 32", 256, 32),
    ("input batch size 473 > maximum allowed batch size 64", 473, 64),
    ("List should have at most 2048 items after validation, not 3000", 3000, 2048),
    ("ensure this value has at most 2048 items", 3000, 2048),
    ("/input must NOT have more than 100 items", 256, 100),
    ("The number of inputs exceeds 1,000", 1500, 1000),
    ("The number of inputs (300) exceeds the limit of 256", 300, 256),
    ("at most 32 inputs", 256, 32),
]


@pytest.mark.parametrize(("message", "inputs", "cap"), COUNTS)
def test_a_refusal_that_names_the_number_of_inputs_is_believed(message: str, inputs: int, cap: int) -> None:
    packing = Packing(5000)
    assert packing.told(message, inputs, 10.0 * inputs)
    assert (packing.inputs, packing.tokens) == (cap, Packing().tokens)


@pytest.mark.parametrize(
    ("message", "tokens", "cap"),
    [
        ("Requested 350000 tokens, max 300000 tokens per request", 350_000, 300_000),
        ("Too many tokens in batch. Max is 16384 got 17555", 17_000, 16_384),
        (
            "Request to model 'voyage-3-large' failed. The max allowed tokens per submitted batch is 120000. Your "
            "batch has 121138 tokens after truncation. Please lower the number of tokens in the batch.",
            121_000,
            120_000,
        ),
        ("The total number of tokens must be at most 20000 per request", 30_000, 20_000),
    ],
)
def test_a_refusal_that_names_the_tokens_of_a_request_sets_their_cap(message: str, tokens: int, cap: int) -> None:
    packing = Packing(2048, 1_000_000)
    assert packing.told(message, 200, tokens)
    assert (packing.inputs, packing.tokens) == (2048, cap)
    assert not packing.holds(2, cap)
    assert packing.holds(2, cap * SHARE)


@pytest.mark.parametrize(
    "message",
    [
        # of one input
        "This model's maximum context length is 8192 tokens, however you requested 10001 tokens (10001 in your prompt; "
        "0 for the completion). Please reduce your prompt; or completion length.",
        "Invalid 'input[50]': maximum input length is 8192 tokens.",
        "Invalid 'input[7]': string too long. Expected a string with maximum length 20, got 30",
        "Invalid 'input[7]': array too long. Expected an array with maximum length 200, but got one of 300.",
        "The example at index 0 in your batch has too many tokens and does not fit into the model's context window of "
        "320 tokens.",
        "Input validation error: `inputs` must have less than 512 tokens. Given: 900",
        "Input text 3 exceeds 512 characters",
        "the input may not be longer than 512 characters at index 3",
        "input is too large to process. increase the physical batch size (current batch size: 512)",
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 512]",
        "body.input.3: List should have at most 512 items after validation, not 600",
        # of something else
        "Invalid value for 'dimensions': must be less than or equal to 16",
        "dimensions must be <= 16",
        "Request payload size exceeds the limit: 900 bytes.",
        "user: String should have at most 64 characters",
        # of nothing
        "invalid input",
        "at most 3000 inputs",  # there were fewer
        "Too many inputs in request, split into more batches.",
    ],
)
def test_a_refusal_that_explains_nothing_teaches_nothing(message: str) -> None:
    packing = Packing(2048, 300_000)
    assert not packing.told(message, 1000, 20_000.0)
    assert (packing.inputs, packing.tokens) == (2048, 300_000)


def test_a_refusal_of_one_input_teaches_nothing_even_if_the_parts_go_through() -> None:
    packing = Packing()
    packing.found("Invalid 'input[50]': maximum input length is 8192 tokens.", 64, 1000.0)
    assert (packing.inputs, packing.tokens) == (Packing().inputs, Packing().tokens)


def test_what_went_through_in_halves_is_the_cap() -> None:
    packing = Packing()
    packing.found("too many inputs", 64, 1000.0)
    assert packing.inputs == 64
    packing.found("too many tokens overall, split into more batches", 32, 800.0)
    assert packing.inputs == 64
    assert packing.holds(32, 800.0)
    assert not packing.holds(33, 801.0)
