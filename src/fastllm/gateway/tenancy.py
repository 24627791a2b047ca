"""Tenancy: the file of keys, limits, budgets and usage, as the app knows them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..answers import Usage
from ..policy.names import OTHER, Names
from .auth import Keys, MasterKey, StoredKeys
from .counters import Watched
from .database import Database
from .keys import KeyStore, VirtualKey
from .record import Record
from .setup import Setup
from .tenants import Admission, Tenants
from .usage import MOST_GROUPS, UsageLog, UsageRecord


class Tenancy:
    """Opens the file (None: the usual one) and all in it. It is the app's `admissions`, and `add` a listener."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.database = Database(path)
        self.store = KeyStore(self.database)
        self.tenants = Tenants(self.database)
        self.usage = UsageLog(path)
        self.gateway: Watched | None = None
        self._answered = Names(MOST_GROUPS)

    def watch(self, gateway: Watched) -> None:
        """Read from this one which models are named: what becomes of them is written down by name whatever comes."""
        self.gateway = gateway

    def keys(self, master: Keys | None, namespace: str = "") -> Keys | None:
        """Say who may get in: None, everybody, where there is neither a master key nor any other."""
        if master is None and not self.store.list():
            return None
        return StoredKeys(self.store, master if isinstance(master, MasterKey) else None, namespace)

    def admit(self, key: VirtualKey, tokens: float, cost_bound: float | None) -> Admitted:
        """Take from the limits that the key has by now; raises as `Tenants.admit` does."""
        return Admitted(self.tenants.admit(self.store.current(key), tokens, cost_bound))

    def lines(self, key: VirtualKey) -> bytes:
        """Give what an answer's head says of the key's limits."""
        return self.tenants.lines(key)

    def add(self, record: Record) -> None:
        """Write down what a request has used; one that asked no model, or was let in by nobody, used nothing."""
        if not record.model or (not record.tenant and record.status in (401, 403)):
            return
        usage = record.usage or Usage()
        model, endpoint = self._names(record)
        self.usage.add(
            UsageRecord(
                key=record.tenant,
                model=model,
                endpoint=endpoint,
                status=record.status,
                cached=record.cached,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                cost_usd=0.0 if record.cached or not record.attempts else record.cost,
                seconds=record.seconds,
                request_id=record.request_id,
                time=record.at,
            )
        )

    def _names(self, record: Record) -> tuple[str, str]:
        """Give the names of a model and its endpoint, both of which a client may have made up: "other" where nobody
        has answered by them, and the operator did not name the model."""
        model, endpoint = record.model, record.endpoint
        if record.status < 400 or record.usage is not None:
            self._answered.add(model)
            return model, endpoint
        if model in self._answered.known or (self.gateway is not None and self.gateway.catalog.names_model(model)):
            return model, endpoint
        return OTHER, OTHER if endpoint else ""

    def join(self, setup: Setup) -> Setup:
        """Give a setup with the keys of the file beside the master key."""
        return msgspec.structs.replace(setup, keys=self.keys(setup.keys, setup.options.namespace))

    def close(self) -> None:
        """Write what is left."""
        self.tenants.close()
        self.usage.close()
        self.store.close()
        self.database.close()

    def __repr__(self) -> str:
        return f"<Tenancy {self.store!r}>"


class Admitted:
    """What a request holds of its key's limits, in the app's words."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def settle(self, usage: Usage | None, cost: float | None) -> None:
        """Book what it really used; None stands for what nobody knows. Its place is free."""
        self._admission.settle(None if usage is None else usage.total_tokens, cost)
        self._admission.release()

    def release(self) -> None:
        """Give everything back, unless it was settled: nothing was sent."""
        self._admission.settle(0, 0.0)
        self._admission.release()

    def lines(self) -> bytes:
        return self._admission.lines()

    def __repr__(self) -> str:
        return f"<Admitted {self._admission!r}>"
