"""What `client.embed` gives: the vectors of many inputs, in their order, beside what they cost."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import msgspec

from .answers import Usage
from .errors import ConfigError, InvalidRequestError, LLMError, MissingExtra
from .formats.short import BATCH
from .params import EmbeddingParams, to_request
from .rows import refuse_single
from .types import EMBEDDINGS, Outcome, Row

Input = str | Sequence[int]


class Vectors(Sequence[Any]):
    """The vectors of many inputs: `vectors[i]` is the i-th input's, floats in a NumPy array of float32 where NumPy is
    installed, else in an `array.array`. A vector whose request failed raises that error; `errors` has them by index.

    `usage` and `cost` (USD, None where a price is not known) are sums, `cached` counts the answers from the cache.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = list(outcomes)
        self.errors: dict[int, LLMError] = {o.index: o.error for o in self.outcomes if o.error is not None}
        answers = [outcome.response for outcome in self.outcomes if outcome.response is not None]
        tokens = sum(answer.usage.prompt_tokens for answer in answers if answer.usage is not None and not answer.cached)
        self.usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
        costs = [answer.cost for answer in answers]
        self.cost: float | None = None if None in costs else sum(cost for cost in costs if cost is not None)
        self.cached = sum(answer.cached for answer in answers)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        outcome = self.outcomes[index]
        if outcome.response is None:
            raise outcome.error or ConfigError(f"input {index} has no vector")
        return outcome.response.data[0].floats

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def to_numpy(self) -> Any:
        """Give all vectors as one array of float32 of shape (inputs, dimensions). Raises the first input's error where
        one has failed, and MissingExtra without NumPy."""
        try:
            numpy = import_module("numpy")
        except ImportError:
            raise MissingExtra("to_numpy() needs NumPy: pip install numpy") from None
        return numpy.asarray(list(self), dtype=numpy.float32).reshape(len(self), -1 if len(self) else 0)

    def __repr__(self) -> str:
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return f"<Vectors of {len(self)} inputs{failed}, {self.usage.prompt_tokens} tokens>"


def rows_of_inputs(
    inputs: Iterable[Input] | AsyncIterable[Input], model: str, params: EmbeddingParams
) -> Iterable[Row] | AsyncIterable[Row]:
    """Make a row of each input. ConfigError for what is no collection of inputs, or an impossible parameter."""
    refuse_single("inputs", "texts", inputs)
    # The tersest form: a vector's floats as text are four times as long.
    fields: Any = {"encoding_format": "base64", **params}
    to_request(EMBEDDINGS, model, {"input": "-"}, fields, stream=False)  # a wrong parameter is told before any row
    if isinstance(inputs, AsyncIterable):
        return _async_rows(inputs, model, fields)
    return (_row(index, item, model, fields) for index, item in enumerate(inputs))


async def _async_rows(inputs: AsyncIterable[Input], model: str, fields: Any) -> AsyncIterator[Row]:
    index = 0
    async for item in inputs:
        yield _row(index, item, model, fields)
        index += 1


def _row(index: int, item: Any, model: str, fields: Any) -> Row:
    """An input that cannot be sent is that row's error and nobody else's."""
    try:
        if not isinstance(item, str):
            item = [operator.index(token) for token in item]
        if not item:
            raise ValueError("it is empty")
        request = to_request(EMBEDDINGS, model, {"input": item}, fields, stream=False)
    except (TypeError, ValueError) as error:
        text = f"inputs[{index}] must be a text or a list of token ids: {error}"
        return Row(index=index, custom_id=str(index), error=InvalidRequestError(text, sent=False))
    return Row(index=index, custom_id=str(index), request=msgspec.structs.replace(request, priority=BATCH))
