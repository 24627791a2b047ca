"""FastLLM: very many LLM API requests through any provider; see README.md.

Public names are loaded at their first use, so that `import fastllm` reads no file but this one and msgspec's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .answers import (
        Choice as Choice,
        Embedding as Embedding,
        Message as Message,
        Moderation as Moderation,
        ToolCall as ToolCall,
        Usage as Usage,
    )
    from .attachment import (
        attach as attach,
    )
    from .batch import (
        RequestBatch as RequestBatch,
    )
    from .cache.base import (
        Cache as Cache,
        Store as Store,
        StoreStats as StoreStats,
    )
    from .cache.disk import (
        DiskCache as DiskCache,
    )
    from .cache.memory import (
        InMemoryCache as InMemoryCache,
    )
    from .client import (
        AsyncFastLLM as AsyncFastLLM,
    )
    from .embedding import (
        Vectors as Vectors,
    )
    from .engine.events import (
        AttemptFailed as AttemptFailed,
        Observer as Observer,
        RequestDone as RequestDone,
    )
    from .engine.stats import (
        Snapshot as Snapshot,
    )
    from .engine.stream import (
        Stream as Stream,
    )
    from .errors import (
        APIConnectionError as APIConnectionError,
        APIStatusError as APIStatusError,
        APITimeoutError as APITimeoutError,
        AuthenticationError as AuthenticationError,
        BadRequestError as BadRequestError,
        BudgetExceededError as BudgetExceededError,
        ConfigError as ConfigError,
        ConflictError as ConflictError,
        ContentFilterError as ContentFilterError,
        ContextLengthError as ContextLengthError,
        DeadlineExceededError as DeadlineExceededError,
        FastLLMError as FastLLMError,
        InternalServerError as InternalServerError,
        InvalidAnswerError as InvalidAnswerError,
        InvalidRequestError as InvalidRequestError,
        JobConflictError as JobConflictError,
        LimitExceededError as LimitExceededError,
        LLMError as LLMError,
        MissingExtra as MissingExtra,
        MissingKeyError as MissingKeyError,
        NotFoundError as NotFoundError,
        OverloadedError as OverloadedError,
        PermissionDeniedError as PermissionDeniedError,
        ProtocolError as ProtocolError,
        QuotaExceededError as QuotaExceededError,
        RateLimitError as RateLimitError,
        RequestTooLargeError as RequestTooLargeError,
        StoppedError as StoppedError,
        Tried as Tried,
        TruncatedStreamError as TruncatedStreamError,
        UnexpectedStatusError as UnexpectedStatusError,
        UnknownProviderError as UnknownProviderError,
        UnprocessableEntityError as UnprocessableEntityError,
        UnsupportedParameterError as UnsupportedParameterError,
    )
    from .jobs.runner import (
        JobResult as JobResult,
        JournalError as JournalError,
    )
    from .options import (
        UNSET as UNSET,
        CachePolicy as CachePolicy,
        Limits as Limits,
        Retry as Retry,
        Route as Route,
        Timeout as Timeout,
        Upstream as Upstream,
    )
    from .providers.base import (
        Decoder as Decoder,
        Provider as Provider,
    )
    from .providers.openai import (
        OpenAIProvider as OpenAIProvider,
    )
    from .providers.vendors import (
        Vendor as Vendor,
        register_vendor as register_vendor,
    )
    from .schema.base import (
        Schema as Schema,
    )
    from .schema.tool import (
        Tool as Tool,
        tool as tool,
    )
    from .sync import (
        FastLLM as FastLLM,
    )
    from .sync_resources import (
        SyncStream as SyncStream,
    )
    from .transport.base import (
        HTTPStream as HTTPStream,
        Transport as Transport,
    )
    from .types import (
        Chunk as Chunk,
        Headers as Headers,
        HTTPRequest as HTTPRequest,
        HTTPResponse as HTTPResponse,
        Outcome as Outcome,
        ParsedResponse as ParsedResponse,
        Request as Request,
        Response as Response,
        Target as Target,
    )

_HOMES = {
    "answers": ("Choice", "Embedding", "Message", "Moderation", "ToolCall", "Usage"),
    "attachment": ("attach",),
    "batch": ("RequestBatch",),
    "cache.base": ("Cache", "Store", "StoreStats"),
    "cache.disk": ("DiskCache",),
    "cache.memory": ("InMemoryCache",),
    "client": ("AsyncFastLLM",),
    "embedding": ("Vectors",),
    "engine.events": ("AttemptFailed", "Observer", "RequestDone"),
    "engine.stats": ("Snapshot",),
    "engine.stream": ("Stream",),
    "errors": (
        "APIConnectionError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "BudgetExceededError",
        "ConfigError",
        "ConflictError",
        "ContentFilterError",
        "ContextLengthError",
        "DeadlineExceededError",
        "FastLLMError",
        "InternalServerError",
        "InvalidAnswerError",
        "InvalidRequestError",
        "JobConflictError",
        "LLMError",
        "LimitExceededError",
        "MissingExtra",
        "MissingKeyError",
        "NotFoundError",
        "OverloadedError",
        "PermissionDeniedError",
        "ProtocolError",
        "QuotaExceededError",
        "RateLimitError",
        "RequestTooLargeError",
        "StoppedError",
        "Tried",
        "TruncatedStreamError",
        "UnexpectedStatusError",
        "UnknownProviderError",
        "UnprocessableEntityError",
        "UnsupportedParameterError",
    ),
    "jobs.runner": ("JobResult", "JournalError"),
    "options": ("UNSET", "CachePolicy", "Limits", "Retry", "Route", "Timeout", "Upstream"),
    "providers.base": ("Decoder", "Provider"),
    "providers.openai": ("OpenAIProvider",),
    "providers.vendors": ("Vendor", "register_vendor"),
    "schema.base": ("Schema",),
    "schema.tool": ("Tool", "tool"),
    "sync": ("FastLLM",),
    "sync_resources": ("SyncStream",),
    "transport.base": ("HTTPStream", "Transport"),
    "types": (
        "Chunk",
        "HTTPRequest",
        "HTTPResponse",
        "Headers",
        "Outcome",
        "ParsedResponse",
        "Request",
        "Response",
        "Target",
    ),
}
_TABLE = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_TABLE)]


def __getattr__(name: str) -> Any:
    if name not in _TABLE:
        raise AttributeError(f"module 'fastllm' has no attribute {name!r}")
    value = getattr(import_module("." + _TABLE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
