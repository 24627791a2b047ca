"""Options: small frozen values that check themselves, with the defaults written where they stand.

None means "none" or "unlimited", never "default"; UNSET means "the caller did not say".
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from .errors import ConfigError

__all__ = [
    "UNSET", "CacheControl", "CacheMode", "CachePolicy", "Limits", "Retry", "Route", "Timeout", "UnsetType", "Upstream",
]  # fmt: skip

CacheMode = Literal["off", "memory", "disk"]
Choice = Literal["weighted", "least_loaded"]
Reason = Literal["rate_limit", "outage", "key", "not_found", "context_length", "content_filter"]
REASONS: tuple[Reason, ...] = get_args(Reason)
_AFTER_TOTAL = 1.0  # seconds: more than timers are late


class Timeout(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds for each phase of a request; None switches one off.

    `connect` covers DNS, TCP and any proxy, `tls` the handshake, `first_byte` from the request sent to the
    answer's first byte, `between_chunks` each further read, `attempt` one attempt from its permit to its whole answer
    (of a stream: to its first chunk), after which the next one follows, `total` everything: waits,
    attempts and back-off. `queue` is for how long a single call may wait for its turn under an endpoint's limits; where
    it is known at once that this would take longer, it fails at once. `Timeout.of(30)` sets the total, which ends each
    phase, too.
    """

    connect: float | None = 5.0
    tls: float | None = 5.0
    first_byte: float | None = 120.0
    between_chunks: float | None = 60.0
    total: float | None = 600.0
    attempt: float | None = None
    queue: float | None = None

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            _number("timeout." + field, getattr(self, field), above=0, unit="seconds")

    @classmethod
    def of(cls, value: Timeout | float | None) -> Timeout:
        """Accept a Timeout, a number of total seconds, or None for no limit at all."""
        if isinstance(value, Timeout):
            return value
        if value is None:
            return cls(connect=None, tls=None, first_byte=None, between_chunks=None, total=None)
        total = _number("timeout", value, above=0, unit="seconds")
        assert total is not None
        # The total comes first, or it would be chance which of two timers fires, and so which error is raised.
        later = total + _AFTER_TOTAL
        return cls(connect=min(5.0, later), tls=min(5.0, later), first_byte=later, between_chunks=later, total=total)


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one endpoint and model may be asked at most; what is None is learnt from its answers.

    `concurrency` is requests in flight; `rpm` and `tpm` are requests and tokens (prompt and answer) in any 60 seconds,
    `itpm` and `otpm` the tokens of prompts and of answers alone, `rpd` and `tpd` requests and tokens in any 24 hours.
    Nothing is sent beyond these, tokens by their estimates (what an answer costs more is booked, and what follows waits
    for it); within them, `adaptive` finds out what the provider really takes.
    """

    concurrency: int | None = None
    rpm: float | None = None
    tpm: float | None = None
    itpm: float | None = None
    otpm: float | None = None
    rpd: float | None = None
    tpd: float | None = None
    adaptive: bool = True

    def __post_init__(self) -> None:
        _number("limits.concurrency", self.concurrency, above=0, whole=True, unit="requests in flight")
        _number("limits.rpm", self.rpm, at_least=1, unit="requests per minute")
        for field, unit in (
            ("tpm", "tokens per minute"),
            ("itpm", "prompt tokens per minute"),
            ("otpm", "answer tokens per minute"),
            ("rpd", "requests per day"),
            ("tpd", "tokens per day"),
        ):
            _number("limits." + field, getattr(self, field), at_least=1, unit=unit)
        if not isinstance(self.adaptive, bool):
            raise ConfigError(f"limits.adaptive must be True or False, not {self.adaptive!r}")


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When to ask again. Delays in seconds, full jitter: uniform in [0, min(cap, base * 2**n)].

    `attempts` counts all tries of one request; waits that a 429 or an outage asked for (`Retry-After`) count
    too, unless `patient`: then a batch request waits them out, and they are not held against its deadline.
    `Retry-After` is a minimum up to `retry_after_cap`; beyond it the request fails, saying until when the endpoint is
    blocked. A patient batch waits for up to `park_cap`; beyond that its job stops, to be resumed.

    `hedge` is a quantile of the endpoint's own latency, such as 0.98 (None: off). An attempt that takes longer gets a
    second one beside it, the first whole answer wins (of a stream: the first chunk), and the other is cancelled. That
    is at most 2 % more attempts, and each may cost what an attempt costs.
    """

    attempts: int = 8
    base: float = 0.5
    reset_base: float = 0.05
    cap: float = 30.0
    retry_after_cap: float = 120.0
    park_cap: float = 3600.0
    patient: bool = True
    hedge: float | None = None

    def __post_init__(self) -> None:
        _number("retry.attempts", self.attempts, at_least=1, whole=True, required=True, unit="attempts")
        for field in ("base", "reset_base", "cap", "retry_after_cap", "park_cap"):
            _number("retry." + field, getattr(self, field), at_least=0, required=True, unit="seconds")
        if not isinstance(self.patient, bool):
            raise ConfigError(f"retry.patient must be True or False, not {self.patient!r}")
        hedge = self.hedge
        if hedge is not None and (isinstance(hedge, bool) or not isinstance(hedge, int | float) or not 0 < hedge < 1):
            raise ConfigError(f"retry.hedge must be a quantile between 0 and 1, such as 0.98, or None; not {hedge!r}")


class CachePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Where answers are kept and for how long. `ttl` in seconds (None: until evicted), sizes in bytes."""

    mode: CacheMode = "off"
    directory: str | None = None
    ttl: float | None = None
    memory_bytes: int = 256 * 1024 * 1024
    disk_bytes: int = 10 * 1024 * 1024 * 1024
    namespace: str = ""

    def __post_init__(self) -> None:
        if self.mode not in ("off", "memory", "disk"):
            raise ConfigError(f"cache must be one of off, memory, disk; not {self.mode!r}")
        _number("cache.ttl", self.ttl, above=0, unit="seconds")
        _number("cache.memory_bytes", self.memory_bytes, above=0, whole=True, required=True, unit="bytes")
        _number("cache.disk_bytes", self.disk_bytes, above=0, whole=True, required=True, unit="bytes")
        if not isinstance(self.directory, str | None):
            raise ConfigError(f"cache.directory must be a path as a string or None, not {self.directory!r}")
        if not isinstance(self.namespace, str):
            raise ConfigError(f"cache.namespace must be a string, not {self.namespace!r}")


class CacheControl(msgspec.Struct, frozen=True, kw_only=True):
    """What one request wants of the cache: to `read` an answer that is kept, none older than `max_age` seconds, and to
    have its own answer kept (`write`). It changes nothing where there is no cache."""

    read: bool = True
    write: bool = True
    max_age: float | None = None

    def __post_init__(self) -> None:
        _number("cache_control.max_age", self.max_age, at_least=0, unit="seconds")


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One endpoint behind a Route. `model` is a model string as everywhere ("openai/gpt-4o-mini").

    `base_url` is another address for it, `api_key` or the variable `api_key_env` another key, `limits` hold for this
    endpoint alone, and `weight` is its share of the requests, beside the others'. The repr shows no key.
    """

    model: str
    base_url: str | None = None
    api_key: str | None = None
    api_key_env: str | None = None
    limits: Limits | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(f"upstream.model must name a model, such as 'openai/gpt-4o-mini', not {self.model!r}")
        for field in ("base_url", "api_key", "api_key_env"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"upstream.{field} of {self.model!r} must be non-empty text or None")
        if self.api_key is not None and self.api_key_env is not None:
            raise ConfigError(f"upstream {self.model!r} has both api_key and api_key_env: give one")
        if self.limits is not None and not isinstance(self.limits, Limits):
            raise ConfigError(f"upstream.limits of {self.model!r} must be Limits(…) or None, not {self.limits!r}")
        _number("upstream.weight", self.weight, above=0, required=True, unit="shares")

    def __repr__(self) -> str:
        more = [f", {name}={value!r}" for name in ("api_key_env", "limits") if (value := getattr(self, name))]
        return f"Upstream(model={self.model!r}{''.join(more)}, weight={self.weight:g})"


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several endpoints behind one name. Each is a model string or an Upstream.

    `endpoints` are equals: a request goes to one that can take it now, and where it fails to another. `choose` says to
    which, if several can: by "weighted" turns, or to the "least_loaded". With `sticky`, requests that begin alike (or
    share `prompt_cache_key` or `user`) go to the same one while it can take them, for the sake of its prompt cache.

    `fallbacks` are asked one after another where the endpoints before them cannot answer, for the reasons in `on`:
    "rate_limit" (an interactive request would wait longer than `patience` seconds), "outage" (after `tries` attempts
    that failed), "key" (refused, no credit), "not_found", and at once for "context_length" (the prompt is too long)
    and "content_filter".
    """

    endpoints: Sequence[str | Upstream]
    fallbacks: Sequence[str | Upstream] = ()
    choose: Choice = "weighted"
    sticky: bool = False
    on: Sequence[Reason] = REASONS
    tries: int = 2
    patience: float = 10.0

    def __post_init__(self) -> None:
        for field in ("endpoints", "fallbacks"):
            msgspec.structs.force_setattr(self, field, _upstreams(field, getattr(self, field)))
        if not self.endpoints:
            raise ConfigError("route.endpoints must name at least one model, such as ['openai/gpt-4o-mini']")
        if self.choose not in get_args(Choice):
            raise ConfigError(f"route.choose must be 'weighted' or 'least_loaded', not {self.choose!r}")
        if not isinstance(self.sticky, bool):
            raise ConfigError(f"route.sticky must be True or False, not {self.sticky!r}")
        unknown = [reason for reason in self.on if reason not in REASONS]
        if unknown:
            raise ConfigError(f"route.on must be a list of {', '.join(REASONS)}; {unknown[0]!r} is none of them")
        msgspec.structs.force_setattr(self, "on", tuple(self.on))
        _number("route.tries", self.tries, at_least=1, whole=True, required=True, unit="attempts")
        _number("route.patience", self.patience, at_least=0, required=True, unit="seconds")

    @property
    def tiers(self) -> tuple[tuple[Upstream, ...], ...]:
        """The endpoints, then each fallback."""
        return _upstreams("endpoints", self.endpoints), *((one,) for one in _upstreams("fallbacks", self.fallbacks))


def _upstreams(field: str, given: object) -> tuple[Upstream, ...]:
    if isinstance(given, str | Upstream) or not isinstance(given, Iterable):
        raise ConfigError(f"route.{field} must be a list of model strings or Upstreams, not {given!r}")
    found = []
    for item in given:
        if not isinstance(item, str | Upstream):
            raise ConfigError(f"route.{field} must be a list of model strings or Upstreams; {item!r} is neither")
        found.append(Upstream(model=item) if isinstance(item, str) else item)
    return tuple(found)


def _number(
    field: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    whole: bool = False,
    required: bool = False,
    unit: str,
) -> float | None:
    """Check one number (None passes unless required); the message names the field, the value, the allowed range."""
    if value is None and not required:
        return None
    allowed = f"a {'whole ' if whole else ''}number of {unit} "
    allowed += f"greater than {above}" if above is not None else f"of at least {at_least}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (whole and not isinstance(value, int)):
        raise ConfigError(f"{field} must be {allowed}, not {value!r}")
    if not -sys.float_info.max <= value <= sys.float_info.max:  # NaN, infinity, an int that no float can hold
        raise ConfigError(
            f"{field} must be {allowed}, not {_shown(value)}{'' if required else '; use None for no limit'}"
        )
    if (above is not None and value <= above) or (at_least is not None and value < at_least):
        raise ConfigError(f"{field} must be {allowed}, not {value!r}")
    return float(value)


def _shown(value: float) -> str:
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else repr(value)
