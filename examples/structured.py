"""Answers as values of a type; one that does not fit is asked for again, and at last an error that has the answer.

Run: python examples/structured.py
"""

from typing import Annotated

import msgspec

from fastllm import FastLLM, InvalidAnswerError


class City(msgspec.Struct):
    country: Annotated[str, msgspec.Meta(max_length=30)]
    is_capital: bool


with FastLLM() as client:
    cities = ["Paris", "Tokyo", "Rome"]
    outcomes = client.map(
        "{}: which country is it in, and is it the capital?",
        cities,
        model="local/smollm2",
        response_format=City,
        max_tokens=60,
        temperature=0,
    )
    for city, outcome in zip(cities, outcomes, strict=True):
        if isinstance(outcome.error, InvalidAnswerError):
            print(city, "no valid answer, but", outcome.error.response.text)
        else:
            print(city, outcome.parsed)
