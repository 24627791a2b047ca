"""Token estimates before sending: prompt bytes times a ratio that each model's `usage` calibrates, plus the answer.

An estimate only reserves room in a window; what was really used is settled afterwards. So it aims a little high and
corrects itself within a few answers. Exact counts need a tokenizer per model and a download; a ratio needs neither.

One answer can move an average only so far, because a provider's usage may be absurd.
"""

from __future__ import annotations

import msgspec

from ..answers import Usage
from ..types import EMBEDDINGS, MODERATIONS, Request

START_RATIO = 0.28  # tokens per byte of JSON body: English is near 0.25, other scripts higher per character
START_ANSWER = 256.0  # tokens, until the first answers tell
FIRST_ANSWER = 1024.0  # what is reserved until then: too much waits a moment, too little is over the limit
WEIGHT = 0.05  # of one answer in the moving averages
_SETTLED = 1 / WEIGHT  # answers
_EVERY = 8  # of the answers after that is looked at: the rest would tell the same
MARGIN = 1.25  # on the mean answer length
LEAST_RATIO, MOST_RATIO = 0.0005, 4.0  # base64 images cost few tokens per byte, no text costs more than a few
MOST_JUMP = 16.0  # one answer counts as at most so many times what was expected

_UNANSWERED = frozenset((EMBEDDINGS, MODERATIONS))  # they cost their input alone


class Estimate(msgspec.Struct, gc=False):
    """Tokens to reserve for one request: prompt and answer together, and the prompt's part.

    `least` is what it needs however wrong the guess is: half of the prompt, and `max_tokens` where the caller set it.
    """

    tokens: float
    prompt: float
    least: float


class Estimator:
    """Estimates for one endpoint and model: `estimate` before sending, `learn` from each answer's usage.

    `first` is what an answer is taken to need before there was one.
    """

    __slots__ = ("_unbounded", "_usual", "answer", "learned", "ratio")

    def __init__(self, first: float = FIRST_ANSWER) -> None:
        self.ratio = START_RATIO
        self.answer = START_ANSWER
        self.learned = 0
        self._usual = 0  # tokens of an answer, with the margin; 0 until one was seen
        self._unbounded = int(first)  # what an answer needs that the request does not bound

    def estimate(self, request: Request) -> Estimate:
        """Give the tokens to reserve: prompt and answer, the answer bounded by `max_tokens` where it is given."""
        prompt = int(len(request.body) * self.ratio) + 1
        most = request.max_tokens
        if request.path in _UNANSWERED:
            return Estimate(prompt, prompt, 0.5 * prompt)
        if not most:
            return Estimate(prompt + self._unbounded, prompt, 0.5 * prompt)
        answer = self._usual or most
        return Estimate(prompt + (most if 0 < most < answer else answer), prompt, 0.5 * prompt + most)

    def learn(self, request: Request, usage: Usage) -> None:
        """Move the averages towards what one answer used."""
        learned = self.learned
        if learned > _SETTLED and learned % _EVERY:
            self.learned = learned + 1
            return
        size, prompt, answer = len(request.body), usage.prompt_tokens, usage.completion_tokens
        if prompt <= 0 and answer <= 0:
            return  # nothing was counted
        # The first answers count for more, so that the start values are forgotten soon.
        learned = self.learned = learned + 1
        weight = WEIGHT if learned > _SETTLED else 1.0 / (learned + 1)
        if prompt > 0 and size:
            ratio, seen = self.ratio, prompt / size
            if seen > ratio * MOST_JUMP:
                seen = ratio * MOST_JUMP
            ratio += weight * (seen - ratio)
            self.ratio = LEAST_RATIO if ratio < LEAST_RATIO else MOST_RATIO if ratio > MOST_RATIO else ratio
        if answer >= 0 and request.path not in _UNANSWERED:
            mean = self.answer
            most = (mean + START_ANSWER) * MOST_JUMP
            self.answer = mean + weight * ((most if answer > most else answer) - mean)
        self._usual = self._unbounded = int(self.answer * MARGIN) + 1

    def __repr__(self) -> str:
        return f"<Estimator {self.ratio:.3f} tokens a byte, answers of {self.answer:.0f} tokens, {self.learned} seen>"
