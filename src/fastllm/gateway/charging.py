"""Charging: the gateway's engine as a batch sees it: its requests are its tenant's, with that tenant's limits, and are
told of like all others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from ..engine.endpoint import Endpoint
from ..engine.engine import Engine
from ..engine.stats import Stats
from ..engine.underway import UnderWay
from ..errors import ConfigError, LLMError, RateLimitError, StoppedError
from ..options import Retry
from ..types import Request, Response
from .auth import Admission, Admissions, Tenant
from .operations import bound_of, may_be_billed
from .record import Listener, Record, tell

ROUTE = "/batches/rows"  # no path, but what the rows of batches are told as
USUAL = Retry()
LONGEST_WAIT = 60.0  # seconds until a tenant's limits are asked again


class Gate(Protocol):
    """What is needed of the app."""

    admissions: Admissions | None
    listeners: tuple[Listener, ...]

    @property
    def engine(self) -> Engine: ...
    def serves(self, model: str) -> bool: ...


class Patient:
    """Gives the gateway's engine of the moment, as patient as a batch may be: it has a day, and no one waits."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._of: Engine | None = None
        self._engine: Engine | None = None

    def engine(self) -> Engine:
        base = self._gate.engine
        if self._engine is None or base is not self._of:
            retry = msgspec.structs.replace(
                base.retry,
                attempts=max(base.retry.attempts, USUAL.attempts),
                cap=max(base.retry.cap, USUAL.cap),
                retry_after_cap=max(base.retry.retry_after_cap, USUAL.retry_after_cap),
                patient=True,
            )
            timeout = msgspec.structs.replace(base.timeout, queue=None)
            self._of, self._engine = base, base.with_options(retry=retry, timeout=timeout)
        return self._engine


class Charged:
    """Executes the requests of one tenant's batch."""

    def __init__(self, gate: Gate, patient: Patient, tenant: Tenant, batch_id: str) -> None:
        self._gate = gate
        self._patient = patient
        self._tenant = tenant
        self._batch_id = batch_id

    @property
    def concurrency(self) -> int | None:
        return self._patient.engine().concurrency

    async def meet(self, models: Sequence[str]) -> None:
        """Have the endpoints of these models made. Their slots bound the rows that are in work, and so what a kill
        costs: those that were sent, and whose answers are not on the disk."""
        engine = self._patient.engine()
        for model in models:
            with contextlib.suppress(ConfigError):  # its rows will say so
                await _endpoints(engine, model)

    @property
    def stats(self) -> Stats:
        return self._patient.engine().stats

    @property
    def under_way(self) -> UnderWay:
        return self._patient.engine().under_way

    async def execute(self, request: Request) -> Response:
        """Answer one request. Raises as the engine does."""
        engine = self._patient.engine()
        request = msgspec.structs.replace(request, namespace=self._tenant.namespace)
        if not self._gate.serves(request.model):
            raise ConfigError(f"the model {request.model[:100]!r} is not served here any more")
        admission = await self._admitted(engine, request)
        began = time.monotonic()
        try:
            response = await engine.execute(request)
        except LLMError as error:
            if admission is not None and may_be_billed(error):
                admission.settle(None, None)
            self._tell(request, time.monotonic() - began, None, error)
            raise
        else:
            if admission is not None:
                admission.settle(response.usage, response.cost)
            self._tell(request, time.monotonic() - began, response, None)
            return response
        finally:
            if admission is not None:
                admission.release()

    async def _admitted(self, engine: Engine, request: Request) -> Admission | None:
        """Wait until the tenant's limits let it in. BudgetExceededError ends the batch."""
        admissions, tenant = self._gate.admissions, self._tenant
        if admissions is None or tenant.key is None:
            return None
        endpoints = await _endpoints(engine, request.model)
        tokens = max(endpoint.estimator.estimate(request).tokens for endpoint in endpoints)
        bounds = [bound_of(endpoint, request) for endpoint in endpoints]
        priced = [bound for bound in bounds if bound is not None]
        bound = max(priced) if len(priced) == len(bounds) else None
        while True:
            try:
                return admissions.admit(tenant.key, tokens, bound)
            except RateLimitError as error:
                if isinstance(error, StoppedError) or error.fatal_for_key:
                    raise
                wait = error.retry_after if error.retry_after is not None else 1.0
            await asyncio.sleep(min(max(0.05, wait), LONGEST_WAIT))

    def _tell(self, request: Request, seconds: float, response: Response | None, error: LLMError | None) -> None:
        if not self._gate.listeners:
            return
        record = Record(
            at=time.time(),
            request_id=self._batch_id,
            method="POST",
            route=ROUTE,
            status=200,
            seconds=seconds,
            tenant=self._tenant.id,
            model=request.model,
        )
        if response is not None:
            record.status, record.endpoint, record.attempts = response.status_code, response.endpoint, response.attempts
            record.cached, record.usage, record.cost = response.cached, response.usage, response.cost
        elif error is not None:
            record.status = error.status_code or 500
            record.error = record.kind = type(error).__name__
            record.attempts, record.endpoint = error.attempts, error.endpoint
        tell(self._gate.listeners, (record,))

    def __repr__(self) -> str:
        return f"<Charged {self._tenant.id or 'anybody'} {self._batch_id}>"


async def _endpoints(engine: Engine, model: str) -> Sequence[Endpoint]:
    """Give who may answer for a model."""
    tiers = engine.router.route(model)
    if tiers is None:
        return (engine.router.known.get(model) or await engine.router.resolve(model),)
    return [member.endpoint for member in (await tiers.begin()).members]
