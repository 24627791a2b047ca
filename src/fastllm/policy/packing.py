"""How many inputs go into one embeddings request: the vendor's published caps, and what its refusals say of them.

A refusal that names a number is believed. One that does not is put down to the size of the request only after its
halves went through: until then it may as well be one input's fault.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

INPUTS = 256  # where a vendor says nothing
TOKENS = 100_000
SHARE = 0.8  # of the cap on tokens that is used: they are estimated

# A number behind a word for a bound, with at most two words between them: "must be at most 96", "maximum length 2048".
_BOUND = re.compile(
    r"(?:\bmost|\bmax\w*|\blimit\w*|\bup to|\bexceeds?|\bthan|\ballow\w*|<=?|>)[\s:=]*(?:[a-z_]+\s+){0,3}?(\d[\d,_]*)",
    re.IGNORECASE,
)
_OF_TOKENS = re.compile(r"\btokens?\b", re.IGNORECASE)


class Packing:
    """The caps of one endpoint: `inputs` and `tokens` of one request; they only ever fall."""

    __slots__ = ("inputs", "tokens")

    def __init__(self, inputs: int = 0, tokens: int = 0) -> None:
        self.inputs = inputs or INPUTS
        self.tokens = float(tokens or TOKENS)

    def holds(self, inputs: int, tokens: float) -> bool:
        """Tell whether a request of that many inputs and (estimated) tokens is within the caps; one input always is."""
        return inputs <= 1 or (inputs <= self.inputs and tokens <= self.tokens * SHARE)

    def told(self, message: str, inputs: int, tokens: float) -> bool:
        """Learn from a refusal's words. False if they say nothing that explains it."""
        bounds = [int(re.sub(r"[,_]", "", found)) for found in _BOUND.findall(message)]
        if _OF_TOKENS.search(message):
            fitting = [bound for bound in bounds if inputs < bound < self.tokens and bound < 4 * tokens]
            if not fitting:
                return False
            # The estimate was too low by so much; the count of the refused request is not in every message.
            self.tokens = float(max(fitting))
            return self.tokens * SHARE < tokens
        fitting = [bound for bound in bounds if 1 <= bound < inputs]
        if not fitting:
            return False
        self.inputs = min(self.inputs, max(fitting))
        return True

    def found(self, message: str, inputs: int, tokens: float) -> None:
        """Learn that requests of this size go through where one of twice the size was refused with that message."""
        if _OF_TOKENS.search(message):
            self.tokens = min(self.tokens, max(1.0, tokens / SHARE))
        else:
            self.inputs = min(self.inputs, max(1, inputs))

    def split(self, tokens: Sequence[float]) -> list[int]:
        """Give how many of these inputs, by their tokens, go into each of several requests that are within the caps."""
        sizes: list[int] = []
        count, sum_ = 0, 0.0
        for size in tokens:
            if count and not self.holds(count + 1, sum_ + size):
                sizes.append(count)
                count, sum_ = 0, 0.0
            count, sum_ = count + 1, sum_ + size
        return [*sizes, count] if count else sizes

    def __repr__(self) -> str:
        return f"<Packing up to {self.inputs} inputs and {self.tokens:.0f} tokens a request>"
