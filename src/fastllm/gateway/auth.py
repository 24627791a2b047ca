"""Who asks: from the token of a request to a tenant, and what the tenant may do.

The app knows keys by two protocols alone. `Keys` says whose a token is; `Admissions` holds a tenant's limits, from
which every request takes before it is sent and to which it gives back, once, whatever happens. The master key is the
one that is known without a store.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

import msgspec

from ..answers import Usage
from ..errors import PermissionDeniedError

MASTER = "master"


class Tenant(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Whom a request belongs to. `models` are the names or patterns that it may ask for (None: all that are served),
    `key` is what `Admissions` knows it by (None: it has no limits), `expires` until when it gets in, in seconds since
    the epoch (None: for good)."""

    id: str
    models: Sequence[str] | None = None
    is_master: bool = False
    key: Any = None
    namespace: str = ""
    expires: float | None = None

    def check_valid(self, now: float) -> None:
        """Raise PermissionDeniedError where its time is over."""
        if self.expires is not None and now >= self.expires:
            raise PermissionDeniedError(
                "this key is expired: ask whoever runs this gateway for another",
                status_code=403,
                code="key_expired",
                type="permission_error",
                sent=False,
            )

    def may_ask(self, model: str) -> bool:
        """Tell whether it may ask for this model."""
        return self.models is None or any(model == name or fnmatchcase(model, name) for name in self.models)


ANYBODY = Tenant(id="", is_master=True)  # where the gateway has no keys at all


class Keys(Protocol):
    """Knows tokens. It compares in constant time, and never shows one."""

    def check(self, token: str) -> Tenant | Awaitable[Tenant | None] | None: ...


class Admission(Protocol):
    """What one request holds of its tenant's limits. Only the first of the two calls counts."""

    def settle(self, usage: Usage | None, cost: float | None) -> None:
        """Book what it really used; None is what nobody knows, and then the estimate stands."""

    def release(self) -> None:
        """Give everything back: nothing was sent."""

    def lines(self) -> bytes:
        """Give the `x-ratelimit-*` of its tenant as they are now: lines of a head, see `faces.pairs_of`."""


class Admissions(Protocol):
    """Admits the requests of tenants. Raises RateLimitError, BudgetExceededError or PermissionDeniedError, with a
    truthful `retry_after`."""

    def admit(self, key: Any, tokens: float, cost_bound: float | None) -> Admission: ...

    def lines(self, key: Any) -> bytes:
        """Give the `x-ratelimit-*` of a tenant for an answer that tells of an error."""


class Store(Protocol):
    """A store of virtual keys, as `gateway.keys.KeyStore` is one."""

    def find(self, secret: str) -> Any: ...
    def list(self) -> Sequence[Any]: ...


class MasterKey:
    """The one key that opens everything; only its hash is held."""

    def __init__(self, key: str, namespace: str = "") -> None:
        self._digest = _digest(key)
        self._tenant = Tenant(id=MASTER, is_master=True, namespace=namespace)

    @property
    def tenant(self) -> Tenant:
        return self._tenant

    def check(self, token: str) -> Tenant | None:
        return self._tenant if hmac.compare_digest(_digest(token), self._digest) else None

    def __repr__(self) -> str:
        return "<MasterKey ***>"


class StoredKeys:
    """The master key, where there is one, and the virtual keys of a store. Each of these has a cache of its own."""

    def __init__(self, store: Store, master: MasterKey | None = None, namespace: str = "") -> None:
        self._store = store
        self._master = master
        self._namespace = namespace
        self._tenants: dict[str, Tenant] = {}  # by the id of their key, as it was when they last asked

    def check(self, token: str) -> Tenant | None:
        key = self._store.find(token)  # which costs nothing where the token has not the look of one of its keys
        if key is not None:
            return self._of(key)
        return self._master.check(token) if self._master is not None else None

    def tenant(self, id: str) -> Tenant | None:
        """Give who has this id: for work that goes on after the request that began it. None where it is no more."""
        if id == MASTER:
            return self._master.tenant if self._master is not None else None
        return next((self._of(key) for key in self._store.list() if key.id == id and key.revoked is None), None)

    def _of(self, key: Any) -> Tenant:
        known = self._tenants.get(key.id)
        if known is None or known.key is not key:
            space = f"{self._namespace}/{key.id}"
            known = Tenant(id=key.id, models=key.models, key=key, namespace=space, expires=key.expires)
            self._tenants[key.id] = known
        return known

    def __repr__(self) -> str:
        return f"<StoredKeys {self._store!r}>"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
