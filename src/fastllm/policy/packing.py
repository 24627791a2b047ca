"""How many inputs go into one embeddings request: the vendor's published caps, and what its refusals say of them.

A refusal that names the most inputs, or the most tokens, of a request is believed. Numbers of anything else (one
input's length, dimensions, bytes) are not looked at. A refusal that names no number is put down to the size of the
request only after its halves went through: until then it may as well be one input's fault.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

INPUTS = 256  # where a vendor says nothing
TOKENS = 100_000
SHARE = 0.8  # of the cap on tokens that is used: they are estimated

# A number behind a word for a bound, with a few words between them: "must be at most 96", "maximum item count: 96".
_BOUND = re.compile(
    r"(?:\bmost|\bmax\w*|\blimit\w*|\bup to|\bonly|\bexceeds?|\bthan|\ballow\w*|<=?|>)[\s:=]*(?:[a-z_]+:?\s+){0,6}?"
    r"(\d[\d,_]*)",
    re.IGNORECASE,
)
_ALLOWED = re.compile(r"(\d[\d,_]*) \w+(?:\(s\))? (?:is|are) allowed", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.;!?](?=\s|$)")
_OF_ONE = re.compile(
    r"\binputs?\s*(?:\[\d|\.\d)|\bindex \d|\b(?:input|text|document|item|element|example|instance) #?\d|physical batch",
    re.IGNORECASE,
)
_OF_TOKENS = re.compile(r"\btokens?\b", re.IGNORECASE)
_OF_A_REQUEST = re.compile(
    r"\b(?:per|in|in each|in one|in a|in the|per submitted) (?:request|batch|call)\b|\b(?:overall|total|across all)\b",
    re.IGNORECASE,
)
_OF_A_PROMPT = re.compile(r"\bcontext\b|\bprompt\b|\b(?:per|each) (?:input|text|document)\b", re.IGNORECASE)
_THINGS = r"(?:inputs|texts|items|documents|requests|instances?(?:\(s\))?|elements|entries|strings|embeddings)"
_OF_INPUTS = re.compile(
    rf"\b(?:number|count|amount) of {_THINGS}|\bitem count\b|\bbatch[ _-]?size\b|\b(?:array|list)\b|\d {_THINGS}\b"
    r"|\d instance\(s\)",
    re.IGNORECASE,
)
_OF_SIZE = re.compile(r"\b(?:characters?|chars|bytes|dimensions?|string|tokens?)\b|\b[km]i?b\b", re.IGNORECASE)


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
        if _OF_ONE.search(message):
            return False
        if _OF_TOKENS.search(message):
            if _OF_A_PROMPT.search(message) or not _OF_A_REQUEST.search(message):
                return False
            fitting = [bound for bound in _bounds(message) if inputs < bound < self.tokens and bound < 4 * tokens]
            if not fitting:
                return False
            # The estimate was too low by so much; the count of the refused request is not in every message.
            self.tokens = float(max(fitting))
            return self.tokens * SHARE < tokens
        told = [part for part in _SENTENCE_END.split(message) if _OF_INPUTS.search(part) and not _OF_SIZE.search(part)]
        fitting = [bound for part in told for bound in _bounds(part) if 1 <= bound < inputs]
        if not fitting:
            return False
        self.inputs = min(self.inputs, max(fitting))
        return True

    def found(self, message: str, inputs: int, tokens: float) -> None:
        """Learn that requests of this size go through where one of twice the size was refused with that message."""
        if _OF_ONE.search(message):
            return
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


def _bounds(text: str) -> list[int]:
    found = [*_BOUND.findall(text), *_ALLOWED.findall(text)]
    return [int(re.sub(r"[,_]", "", number)) for number in found]
