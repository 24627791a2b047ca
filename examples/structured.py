"""Answers as values of a type; one that does not fit is asked for again, and at last an error that has the answer.

python examples/structured.py [MODEL]
"""

import sys
from typing import Annotated

import msgspec

from fastllm import FastLLM, InvalidAnswerError


class City(msgspec.Struct):
    country: Annotated[str, msgspec.Meta(max_length=30)]
    is_capital: bool


model = sys.argv[1] if len(sys.argv) > 1 else "local/smollm2"

with FastLLM() as client:
    cities = ["Paris", "Tokyo", "Rome"]
    outcomes = client.map(
        "{}: which country is it in, and is it the capital?",
        cities,
        model=model,
        response_format=City,
        max_tokens=60,
        temperature=0,
    )
    for city, outcome in zip(cities, outcomes, strict=True):
        if isinstance(outcome.error, InvalidAnswerError):
            print(f"{city}: no valid answer, but {outcome.error.response.text}")
        else:
            print(f"{city}: {outcome.parsed if outcome.ok else outcome.error}")
