"""A purse pays for the requests of one endpoint: it turns a request into the most it can cost, and a usage into money.

The bound of a prompt is one token for each byte of the body, and OVERHEAD for what the provider puts around it. No
tokenizer makes more tokens than bytes, because the smallest token is one byte, and some come near it: those that split
numbers into digits on numbers, and all on base64. English has four bytes to a token, so most of a reservation comes
back a moment later, when the usage is known. What a body only points to (an image's address, a file's id, an earlier
response) has no bound here; it is settled as what it was.

The bound of the answer is what the request allows, else the most the model can write, else its whole context.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..answers import Usage
from ..errors import ConfigError
from .budget import Budget, Reservation
from .pricing import Price

UnknownPrice = Literal["refuse", "allow"]
# Tokens for chat templates and hidden instructions; for tools, providers add some 350 (Anthropic's documentation).
OVERHEAD = 512


class _Asked(msgspec.Struct):
    n: int | None = None
    best_of: int | None = None


_asked = msgspec.json.Decoder(_Asked)


def answers_asked(body: bytes) -> int:
    """Give how many answers a request's body asks for (`n`, `best_of`): what `Purse.reserve` wants for `n`."""
    if b'"n"' not in body and b'"best_of"' not in body:
        return 1
    try:
        asked = _asked.decode(body)
        return max(1, asked.n or 1, asked.best_of or 1)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1


class Purse:
    """Reserves and settles for one endpoint and model; `price` None where it is not known.

    Around each attempt::

        body = request.body
        reservation = purse.reserve(len(body), request.max_tokens, answers_asked(body))  # before it is sent
        purse.settle(reservation, response.usage)  # answered
        reservation.refund()  # the provider cannot have seen it, or answered with an error status
        reservation.keep()  # nobody knows: cut off, timed out, cancelled

    Only the first of the last three counts, so `finally: reservation.keep()` is safe after the others. What has no
    price, or no bound, is refused by ConfigError unless `unknown_price` is "allow"; then it passes, what is known of
    it is reserved, and `unpriced` counts the answers whose cost nobody knows.
    """

    __slots__ = ("_name", "budget", "price", "unknown_price", "unpriced")

    def __init__(
        self, budget: Budget, price: Price | None, *, model: str = "", unknown_price: UnknownPrice = "refuse"
    ) -> None:
        if unknown_price not in ("refuse", "allow"):
            raise ConfigError(f"unknown_price must be 'refuse' or 'allow', not {unknown_price!r}")
        self.budget = budget
        self.price = price
        self.unknown_price = unknown_price
        self.unpriced = 0
        self._name = model or (f"{price.provider}/{price.model}" if price is not None else "this model")

    def reserve(self, body_bytes: int, max_tokens: int, n: int) -> Reservation:
        """Hold the most that one attempt can cost. Raises BudgetExceededError, and ConfigError as said above.

        `max_tokens` is what `Request.max_tokens` is: of all answers together, 0 where it was not said. `n` is the
        number of answers; it matters where `max_tokens` is 0.
        """
        return self.budget.reserve(self.bound(body_bytes, max_tokens, n))

    def bound(self, body_bytes: int, max_tokens: int, n: int) -> float:
        """Give the dollars that `reserve` would hold. ConfigError where they are not known."""
        price = self.price
        if price is None:
            self._refuse("its price is not known")
            return 0.0
        prompt = body_bytes + OVERHEAD
        if price.context is not None and price.output:  # one request to embed may hold many texts, each of that length
            prompt = min(prompt, price.context)
        if max_tokens > 0:
            return price.bound(prompt, max_tokens)
        most = price.max_output_tokens if price.max_output_tokens is not None else price.context
        if most is None:
            if not price.free:
                self._refuse("how long its answers can be is not known, and the request sets no max_tokens")
            most = 0
        return price.bound(prompt, most, n)

    def settle(self, reservation: Reservation, usage: Usage | None) -> float | None:
        """Book what an answer cost and give the dollars; None where nobody knows: then all that was held is gone.

        A usage without a prompt is no count. One whose total is more than its parts costs at most what was held, or
        what its parts do.
        """
        if self.price is None:
            self.unpriced += 1
        elif usage is not None and usage.prompt_tokens > 0:
            cost = self.price.cost(usage)
            if cost > reservation.amount and usage.total_tokens > usage.prompt_tokens + usage.completion_tokens:
                parts = msgspec.structs.replace(usage, total_tokens=usage.prompt_tokens + usage.completion_tokens)
                cost = max(reservation.amount, self.price.cost(parts))
            reservation.settle(cost)
            return cost
        reservation.keep()
        return None

    def _refuse(self, why: str) -> None:
        if self.unknown_price == "refuse":
            raise ConfigError(
                f"a budget cannot hold {self._name}: {why}; give its row in a file (prices=…), "
                "or let it pass without a bound (unknown_price='allow')"
            )

    def __repr__(self) -> str:
        return f"<Purse for {self._name}, {self.unpriced} unpriced, {self.budget!r}>"
