"""What the model server shall be like: one frozen value, checked when it is made."""

from __future__ import annotations

import math

import msgspec

from ..errors import ConfigError
from .faults import plan_of


class MockConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a model server; everything has a default, and the default answers at once and without limits.

    Example: `MockConfig(rpm=500, tpm=100_000, latency=0.2, latency_sigma=0.5, error_rate=0.01)`
    """

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    latency: float = 0.0  # median seconds from arrival to the first byte
    latency_sigma: float = 0.0  # spread of the log-normal; 0: always the median
    token_rate: float = 0.0  # tokens per second of a stream; 0: all at once
    rpm: int | None = None  # per API key and model, in any 60 s
    tpm: int | None = None
    max_concurrency: int | None = None  # a cap that no header tells of
    overload_status: int = 429  # what the cap answers: 429 or 503
    error_rate: float = 0.0
    errors: tuple[str, ...] = ("500", "503", "429", "reset")
    seed: int = 0
    models: tuple[str, ...] = ("mock-model", "mock-embedding")  # what GET /models lists
    any_model: bool = True  # False: a model that is not listed is a 404
    api_key: str | None = None  # set: anything else is a 401
    answer: str | None = None  # the text of every answer; None: checksum, some words, the question
    answer_bytes: int | None = None  # cut or stretch the text to this size
    max_inputs: int = 2048  # of one embeddings request
    dimensions: int = 256  # of embeddings, where the request does not say
    headers: bool = True  # send x-ratelimit-*
    vary: bool = False  # put a counter into each text: equal requests get unequal answers
    body_limit: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("latency", "latency_sigma", "token_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value!r}; it must be a finite number of at least 0")
        for name in ("rpm", "tpm", "max_concurrency", "answer_bytes", "max_inputs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be at least 1, or None")
        if not 0 <= self.error_rate <= 1:
            raise ConfigError(f"error_rate is {self.error_rate!r}; it must be between 0 and 1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port!r}; it must be between 0 and 65535")
        if self.overload_status not in (429, 503):
            raise ConfigError(f"overload_status is {self.overload_status!r}; it must be 429 or 503")
        if not 1 <= self.dimensions <= 65536:
            raise ConfigError(f"dimensions is {self.dimensions!r}; it must be between 1 and 65536")
        if self.error_rate and not self.errors:
            raise ConfigError("error_rate is set, but errors names no kind to draw from")
        for kind in self.errors:
            plan_of(kind)
