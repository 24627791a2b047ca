"""Endpoint: a dialect at a base URL with one key and one model, and its limits."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from types import MappingProxyType

from ..answers import Usage
from ..errors import (
    APIConnectionError,
    APIStatusError,
    BudgetExceededError,
    InternalServerError,
    LLMError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
)
from ..policy.backoff import UNREACHABLE_CODES, only_patience
from ..policy.breaker import PROBE
from ..policy.fingerprint import scope
from ..policy.headers import refusal_about
from ..policy.hedging import Hedging
from ..policy.packing import Packing
from ..policy.parameters import Parameters
from ..policy.pricing import Price
from ..policy.purse import Purse, answers_asked
from ..policy.retries import RetryBudget
from ..policy.tokens import Estimator
from ..providers.base import Provider
from ..types import MESSAGES, RESPONSES, Request, Response, Target
from .limiter import Limiter
from .permit import Permit

logger = logging.getLogger("fastllm")

PERMISSION = 3  # refusals of a kind that may concern one request, in a row, until the key is taken to be refused
_LATE = frozenset({"timeout_first_byte", "timeout_attempt"})
_KEY_HEADER = re.compile(rb"(?i)authorization|key|token|cookie|secret")
_SHORTEST_KEY = 8
_SPOKEN = frozenset((RESPONSES, MESSAGES))  # what not every dialect has
TOLD = 1.0  # seconds from which on an outage is told of: with a provider that often fails, short ones come in swarms
LONG = 60.0  # seconds: a wait that a batch does not begin without a word
NO_NAMES: Mapping[str, str] = MappingProxyType({})


class Endpoint:
    """What a limit belongs to: base URL, key and model. `name` is what people see; it holds no secret."""

    __slots__ = (
        "_out_since",
        "_refusals",
        "_secrets",
        "_warned",
        "cost",
        "estimator",
        "hedging",
        "limit_names",
        "limiter",
        "name",
        "packing",
        "parameters",
        "price",
        "provider",
        "purse",
        "retries",
        "scope",
        "target",
    )

    def __init__(
        self,
        name: str,
        provider: Provider,
        target: Target,
        limiter: Limiter,
        *,
        namespace: str = "",
        limit_names: Mapping[str, str] = NO_NAMES,
        price: Price | None = None,
        purse: Purse | None = None,
        parameters: Parameters | None = None,
        packing: Packing | None = None,
    ) -> None:
        self.name = name
        self.provider = provider
        self.target = target
        self.limiter = limiter
        self.limit_names = limit_names
        self.estimator = Estimator()
        self.price = price
        self.cost: float | None = 0.0  # USD, of the answers so far; None where one has no known price or usage
        self.purse = purse
        self.parameters = parameters  # what it does not take; None: its refusals are the caller's business
        self.packing = packing or Packing()  # how many inputs go into one embeddings request
        self.retries = RetryBudget(limiter.now)
        self.hedging: Hedging | None = None  # once somebody asks for it
        self._refusals = 0
        self._secrets = _secrets(target)
        self._warned = False
        self._out_since: float | None = None  # an outage that was told of
        self.scope = scope(provider.name, target.base_url, target.headers, namespace)

    def is_like(self, other: Endpoint) -> bool:
        """Tell whether another endpoint at the same place was made with the same options."""
        return (
            (self.scope, self.limiter.limits, self.price, self.limit_names)
            == (other.scope, other.limiter.limits, other.price, other.limit_names)
            and type(self.provider) is type(other.provider)
            and self.packing.inputs == other.packing.inputs
            and (self.purse and self.purse.budget) is (other.purse and other.purse.budget)
        )

    @property
    def model(self) -> str:
        """The model's name on the wire."""
        return self.target.model

    def adapted(self, request: Request) -> Request:
        """Give the request as it goes out: in an operation that the dialect has, without what was refused before."""
        if request.path in _SPOKEN:
            request = self.provider.spoken(request)
        if self.parameters is None or not self.parameters.rules:
            return request
        return self.parameters.applied(request)

    def adapts(self, sent: Request, error: LLMError) -> bool:
        """Learn from a refusal of what was sent; True if it taught something."""
        if self.parameters is None or not isinstance(error, APIStatusError):
            return False
        learnt = self.parameters.learn(sent, error)
        if learnt:
            logger.warning("%s: %s (unsupported_params='refuse' makes it an error)", self.name, learnt)
        return learnt is not None

    def ended(self, permit: Permit, error: LLMError | None) -> None:
        """Learn from how an attempt ended, and give its permit back."""
        limiter = self.limiter
        try:
            if error is not None:
                self._failed(permit, error)
                if error.fatal_for_key:
                    self._refusals += 1
                    if self._refusals >= (PERMISSION if isinstance(error, PermissionDeniedError) else 1):
                        limiter.condemn(error)  # before the permit lets in the next
            if self._out_since is not None and not limiter.breaker.opened:
                logger.warning("%s answers again, after %.0f s", self.name, limiter.now - self._out_since)
                self._out_since = None
        finally:
            if permit.money is not None:
                permit.money.keep()  # unless it was settled or given back: nobody knows whether it was billed
            permit.release()

    def _failed(self, permit: Permit, error: LLMError) -> None:
        """A request that was refused used no tokens, one that never left used nothing, and one that broke off while
        it was answered what its usage says, or else the estimate."""
        limiter = self.limiter
        if error.retryable and error.retry_after:
            if error.retry_after >= LONG and error.retry_after > limiter.parked_for + 1.0:
                logger.warning(
                    "%s wants nobody for %.0f s (%s): waiting", self.name, error.retry_after, error.status_code
                )
            limiter.park(error.retry_after, str(error.status_code or error.code or ""))
        if not error.sent:
            permit.refund()
            self._give_back(permit)
        elif isinstance(error, APIStatusError):
            partial: Response | None = error.partial
            if partial is None or not (partial.choices or partial.output):
                permit.settle(0.0)
                self._give_back(permit)
            elif partial.usage is not None:
                permit.settle(partial.usage.total_tokens)
                self._bill(partial.usage)
                self._pay(permit, partial)
        if isinstance(error, RateLimitError):
            if error.retryable:
                limiter.refused(permit, error.retry_after, refusal_about(error.type, error.message))
        elif isinstance(error, (APIConnectionError, InternalServerError)):
            self.broke(permit, error)
        elif isinstance(error, APIStatusError) and not error.fatal_for_key:
            limiter.alive(permit)

    def broke(self, permit: Permit, error: LLMError) -> None:
        """Learn from an attempt whose end says nothing about its request."""
        limiter = self.limiter
        if error.code in UNREACHABLE_CODES and not (limiter.breaker.proven or self._warned):
            self._warned = True  # a batch would otherwise wait without a word
            logger.warning("%s does not answer (%s); trying again", self.name, error.message)
        if isinstance(error, OverloadedError):
            limiter.overloaded(permit)
        if error.code in _LATE:
            limiter.timed_out(permit)
        limiter.failed(permit, answered=error.status_code is not None)
        out = limiter.breaker.open_for(limiter.now)
        if out >= TOLD and self._out_since is None and limiter.breaker.proven:
            self._out_since = limiter.now - out
            logger.warning(
                "%s does not answer (%s); asking every %g s whether it is back", self.name, _brief(error), PROBE
            )
        if limiter.breaker.dead:
            limiter.condemn(error)  # a wrong address, or a server that is down: no use to try every row

    def answered(self, permit: Permit, response: Response, request: Request) -> None:
        """Book what a whole answer really cost, and learn from it."""
        usage = response.usage
        if self.cost is not None or self.price is not None:
            response.cost = self._bill(usage)
        if usage is not None:
            permit.settle(usage.total_tokens, usage.prompt_tokens)
            self.estimator.learn(request, usage)
        if self.purse is not None:
            self._pay(permit, response)
        self._refusals = 0
        self.limiter.answered(permit, response.latency)

    def left(self, permit: Permit, seen: Response) -> None:
        """Book what a stream had used that its reader left: what its usage says, or else its prompt and what had come.
        The money stays spent, because nobody knows how much the provider had written by then."""
        usage = seen.usage
        self._bill(usage)
        self.limiter.alive(permit)
        if usage is not None:
            permit.settle(usage.total_tokens, usage.prompt_tokens)
            self._pay(permit, seen)
        else:
            permit.settle(permit.prompt + len(seen.body) * self.estimator.ratio)

    def patient(self, error: LLMError) -> bool:
        """Tell whether a batch should wait until this has passed: not where nobody has ever answered."""
        breaker = self.limiter.breaker
        if breaker.opened and breaker.proven and isinstance(error, (APIConnectionError, InternalServerError)):
            return True  # a probe's failure is the outage's, not the request's
        return only_patience(error) and (error.code not in UNREACHABLE_CODES or self.limiter.breaker.proven)

    def give_up_after(self, seconds: float, error: LLMError) -> None:
        """Stop everybody who waits, and raise StoppedError, if nobody has answered for so long."""
        limiter = self.limiter
        if limiter.breaker.open_for(limiter.now) > seconds:
            limiter.condemn(error)
            limiter.check_key()

    def cleanse(self, error: LLMError) -> None:
        """Take our own key out of what the provider said: some repeat it."""
        for secret in self._secrets:
            if secret in error.message:
                error.message = error.message.replace(secret, "***")

    def may_retry(self, error: LLMError, *, batch: bool) -> bool:
        """Take one attempt more from the retry budget; False if nothing is left. Where the limiter sets the pace, after
        a 429 and where nobody answers, it costs nothing."""
        if isinstance(error, RateLimitError) or self.limiter.breaker.opened:
            self.retries.skip()
            return True
        return self.retries.withdraw(self.limiter.now, self.limiter.attempts, batch=batch)

    # Money

    def reserve(self, request: Request, permit: Permit) -> None:
        """Hold the most that an attempt can cost. Raises BudgetExceededError, or ConfigError for an unknown price."""
        if self.purse is not None:
            permit.money = self.purse.reserve(len(request.body), request.max_tokens, answers_asked(request.body))

    def affords(self, request: Request) -> bool:
        """Tell whether that can be held now. Raises as `reserve` where it never will be."""
        if self.purse is None:
            return True
        try:
            self.purse.reserve(len(request.body), request.max_tokens, answers_asked(request.body)).refund()
        except BudgetExceededError as error:
            if not error.passing:
                raise
            return False
        return True

    def _bill(self, usage: Usage | None) -> float | None:
        """Give what an answer has cost, and add it to the others', as long as that is known."""
        if self.price is None or usage is None:
            self.cost = None
            return None
        cost = self.price.cost(usage)
        if self.cost is not None:
            self.cost += cost
        return cost

    def _pay(self, permit: Permit, response: Response) -> None:
        if self.purse is not None and permit.money is not None:
            self.purse.settle(permit.money, response.usage)

    def _give_back(self, permit: Permit) -> None:
        if permit.money is not None:
            permit.money.refund()

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} {self.limiter!r}>"


def _brief(error: LLMError) -> str:
    """Say what went wrong without what was answered: logs hold no answers."""
    if isinstance(error, ProtocolError):
        return f"an answer that is none: {error.code or 'not HTTP'}"
    return f"status {error.status_code}" if isinstance(error, APIStatusError) else error.message


def _secrets(target: Target) -> tuple[str, ...]:
    """Give the values of the headers that carry a key, without their scheme ("Bearer")."""
    found = (line.partition(b": ") for line in target.headers.encoded.split(b"\r\n"))
    values = (value.decode("latin-1").split() for name, _, value in found if _KEY_HEADER.search(name))
    return tuple(words[-1] for words in values if words and len(words[-1]) >= _SHORTEST_KEY)
