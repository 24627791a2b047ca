"""Store: where bytes lie. Cache: what may be kept, under which key, for how long, and in which form."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable

import msgspec

from ..errors import ConfigError
from ..options import CachePolicy
from ..types import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Response
from .codec import LARGE, LARGEST, Entry, pack, unpack

logger = logging.getLogger("fastllm")

# How a whole answer ends. Cut off, filtered and failed ones are asked for again.
WHOLE = frozenset({"stop", "tool_calls", "function_call"})
# Operations whose answers may have no reason to end. Not Responses: there None is an answer still under way.
_WHOLE_OF: dict[str, frozenset[str | None]] = {
    CHAT: WHOLE,
    COMPLETIONS: WHOLE,
    RESPONSES: WHOLE | {"completed"},
    MESSAGES: WHOLE,
}
_WHOLE_ELSE: frozenset[str | None] = WHOLE | {None, "completed"}
SKEW = 300.0  # seconds by which clocks that share a store may differ


class StoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds now: entries, their bytes, and its bound in bytes (None: unbounded)."""

    entries: int
    bytes: int
    max_bytes: int | None = None
    expired: int = 0


class Store(ABC):
    """Keeps opaque bytes under opaque keys until they expire. A failing store misses; it need not raise.

    `expires_at` is wall-clock seconds since the epoch, None for never. A store may drop any entry at any time and may
    even give damaged bytes: the Cache above it finds out.
    """

    @abstractmethod
    async def get(self, key: bytes) -> bytes | None:
        """Give the value, or None where there is none, it has expired, or it cannot be read."""

    @abstractmethod
    async def put(self, key: bytes, value: bytes, expires_at: float | None = None) -> None:
        """Keep the value, replacing any other under this key; a `get` from now on sees it."""

    @abstractmethod
    async def delete(self, key: bytes) -> None:
        """Remove the value; nothing happens where there is none."""

    @abstractmethod
    async def clear(self) -> int:
        """Remove everything; give the number of entries removed."""

    @abstractmethod
    async def prune(self) -> int:
        """Remove what has expired or exceeds the bounds; give the number of entries removed."""

    @abstractmethod
    async def stats(self) -> StoreStats: ...

    async def aclose(self) -> None:
        """Write what is pending and let go of files. Idempotent; the next use opens the store again."""
        return None


class Cache:
    """Keeps answers in a Store: only whole successes, under the key of their request, for `ttl` seconds.

    On a hit the stored key and request are compared with the asked ones, so that a collision is a miss and not a wrong
    answer. Whatever fails in the store is a miss, told once in the log. `namespace` keeps the answers of groups apart.

        FastLLM(cache=Cache(MyStore(), ttl=3600))
    """

    def __init__(
        self,
        store: Store,
        *,
        ttl: float | None = None,
        namespace: str = "",
        wall: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(store, Store):
            raise ConfigError(f"a Cache keeps its answers in a Store, not in {store!r}")
        CachePolicy(ttl=ttl, namespace=namespace)  # checks both
        self.store = store
        self.ttl = ttl
        self.namespace = namespace
        self.hits = self.misses = 0
        self._wall = wall
        self._troubles: Counter[str] = Counter()
        self._told = 0

    @property
    def errors(self) -> int:
        """How often the store failed or held what could not be used."""
        return self._troubles.total()

    async def get(self, key: bytes, canonical: bytes, max_age: float | None = None) -> Response | None:
        """Give the answer kept under this key for this very request, none older than `max_age` seconds, or None."""
        try:
            value = await self.store.get(key)
            if value is None:
                self.misses += 1
                return None
            entry = unpack(key, canonical, value) if len(value) < LARGE else await _unpacked(key, canonical, value)
        except Exception as error:  # foreign code: a store of somebody else's must not fail a request
            self.misses += 1
            self._trouble("read", error)
            return None
        if entry is not None and self._is_fresh(entry, max_age):
            self.hits += 1
            return entry.response()
        self.misses += 1
        if entry is None:
            self._trouble("use an entry of", "damaged, of another version or of another request")
            await self._forget(key)
        return None

    async def put(self, key: bytes, canonical: bytes, response: Response) -> None:
        """Keep the answer if it is a whole success."""
        size = len(response.body) + len(canonical)
        if size > LARGEST or not may_be_kept(response):
            return
        now = self._wall()
        try:
            if size < LARGE:
                value = pack(key, canonical, now, response)
            else:
                value = await asyncio.to_thread(pack, key, canonical, now, response)
            await self.store.put(key, value, None if self.ttl is None else now + self.ttl)
        except Exception as error:  # as in `get`
            self._trouble("write", error)

    def _is_fresh(self, entry: Entry, max_age: float | None) -> bool:
        """The reader's own ttl counts too, and after a step back of the clock no entry lives longer for it."""
        most = self.ttl if max_age is None else max_age if self.ttl is None else min(max_age, self.ttl)
        return most is None or -SKEW <= self._wall() - entry.created < most

    async def _forget(self, key: bytes) -> None:
        try:
            await self.store.delete(key)
        except Exception as error:  # as in `get`
            self._trouble("write", error)

    def _trouble(self, verb: str, why: object) -> None:
        self._troubles[verb] += 1
        if self._troubles[verb] == 1:
            self._told += 1
            logger.warning("cannot %s the cache (%s); answers are asked for anew", verb, why)

    async def clear(self) -> int:
        """Remove everything; give the number of entries removed."""
        return await self.store.clear()

    async def prune(self) -> int:
        """Remove what has expired or exceeds the bounds; give the number of entries removed."""
        return await self.store.prune()

    async def stats(self) -> StoreStats:
        """What the store holds now; `hits`, `misses` and `errors` are attributes."""
        return await self.store.stats()

    async def aclose(self) -> None:
        """Write what is pending. A closed cache opens again at its next use."""
        if self.errors > self._told:
            logger.warning("the cache failed %d times in all", self.errors)
            self._told = self.errors
        await self.store.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.hits} hits, {self.misses} misses, {self.errors} errors, {self.store!r}>"


def may_be_kept(response: Response) -> bool:
    """True for a whole success that came from the provider just now."""
    if response.cached or response.status_code != 200 or not response.body:
        return False
    return response.finish_reason in _WHOLE_OF.get(response.path, _WHOLE_ELSE)


async def _unpacked(key: bytes, canonical: bytes, value: bytes) -> Entry | None:
    return await asyncio.to_thread(unpack, key, canonical, value)


def check_bytes(max_bytes: int) -> int:
    """Check a size bound; ConfigError names it."""
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes <= 0:
        raise ConfigError(f"max_bytes must be a whole number of bytes greater than 0, not {max_bytes!r}")
    return max_bytes
