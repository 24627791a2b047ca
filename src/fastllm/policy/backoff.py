"""When to ask again: an error and the count of attempts give a number of seconds, or None for "not again".

Rules, first match wins:
1. An error that says asking again cannot help (`retryable` false) is final.
2. Attempts are counted up to `retry.attempts`; with `retry.patient`, a batch request does not count answers that only
   ask for patience (429, an overloaded or unreachable provider), so that only the total deadline ends such a wait.
3. A reused connection that the server had dropped (`is_stale`) says nothing about provider or request: the first time,
   the next attempt is made at once and not counted, so that it happens with one attempt, too. Then it is a reset.
4. An answer that came whole but is nonsense (HTML, no choices) is asked for again twice at most: a proxy or a login
   page does not go away.
5. `Retry-After` is a minimum, with a little jitter on top so that waiters do not return in step (below `base`, such as
   0 or a date in the past, the back-off of rule 6 counts if it is longer); beyond the cap
   (`retry_after_cap`, for a patient batch request `park_cap`) it is final, because hammering earlier would prolong it.
6. Otherwise full jitter: uniform between 0 and base * 2**(n-1), at most `cap`; resets start from a smaller base.

Full jitter and its reasons: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015).
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import APIConnectionError, LLMError, OverloadedError, ProtocolError, RateLimitError
from ..options import Retry

NONSENSE_ATTEMPTS = 3
STALE_CODE = "stale_connection"
RESET_CODES = frozenset({"connection_reset", "eof", STALE_CODE})
UNREACHABLE_CODES = frozenset({"connection_refused", "dns", "timeout_connect"})


def only_patience(error: LLMError) -> bool:
    """True for errors that say "later" about the provider and nothing about this request."""
    if isinstance(error, (RateLimitError, OverloadedError)):
        return True
    return isinstance(error, APIConnectionError) and error.code in UNREACHABLE_CODES


def is_stale(error: LLMError) -> bool:
    """True where only the connection had gone away, unseen, while it was idle."""
    return isinstance(error, APIConnectionError) and error.code == STALE_CODE


def delay(
    retry: Retry, error: LLMError, attempt: int, counted: int, random: Callable[[], float], *, batch: bool = False
) -> float | None:
    """Give the seconds to wait before the next attempt, or None.

    `attempt` counts all attempts made (from 1) but the one that rule 3 gives away, `counted` those that count against
    `retry.attempts`; `random` gives uniform numbers in [0, 1).
    """
    if not error.retryable or counted >= retry.attempts:
        return None
    if isinstance(error, ProtocolError) and error.status_code is not None and attempt >= NONSENSE_ATTEMPTS:
        return None
    after = error.retry_after
    cap = max(retry.retry_after_cap, retry.park_cap) if batch and retry.patient else retry.retry_after_cap
    if after is not None and after > cap:
        return None
    base = retry.reset_base if error.code in RESET_CODES else retry.base
    # The exponent is bounded because a patient request may be asked thousands of times.
    spread = min(retry.cap, base * 2.0 ** min(attempt - 1, 30))
    if after is None:
        return random() * spread
    jitter = random() * min(spread, 1.0, 0.1 + 0.1 * after)
    return after + jitter if after >= base else max(after, random() * spread) + jitter
