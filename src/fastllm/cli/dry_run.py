"""`fastllm run … --dry-run`: what a run would ask, cost and take. It sends nothing, writes nothing, needs no key."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import click
import msgspec

from ..answers import Usage
from ..build import DEFAULT_VENDOR, known_providers, price_table
from ..errors import ConfigError, JobConflictError
from ..formats.base import Reader, check_model, check_output, open_reader
from ..formats.remote import Places
from ..formats.rows import unsent_words
from ..jobs.frames import END, FAILED, OK, Scan
from ..jobs.journal import _differences, _existing_layout, _same_job, journal_path
from ..jobs.publish import check_places
from ..jobs.runner import identify
from ..policy.budget import Budget, dollars
from ..policy.pricing import Price, PriceTable
from ..policy.purse import Purse, answers_asked
from ..policy.tokens import MARGIN, START_ANSWER, Estimator
from ..policy.window import SPAN
from ..progress.words import duration
from ..providers.vendors import VENDORS, split_model
from ..settings import Settings
from ..types import Request
from .say import in_flags, say

NOT_SENT = "fields that are no known parameter are not sent (extra_body sends anything)"
BASE_URL = "base_url"  # the provider's name, in a price file, of a server behind --base-url


class Plan(msgspec.Struct):
    """What one model would be asked. `cost` is by the estimate, `bound` the most that a budget would hold for it, in
    US dollars; None where it is not known."""

    price: Price | None
    purse: Purse
    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float | None = 0.0
    bound: float | None = 0.0

    def add(self, request: Request, estimator: Estimator) -> None:
        need = estimator.estimate(request)
        prompt, answer = int(need.prompt), int(need.tokens - need.prompt)
        self.requests += 1
        self.prompt_tokens += prompt
        self.answer_tokens += answer
        if self.price is None or self.cost is None:
            self.cost = None
        else:
            self.cost += self.price.cost(Usage(prompt_tokens=prompt, completion_tokens=answer))
        if self.bound is not None:
            try:
                self.bound += self.purse.bound(len(request.body), request.max_tokens, answers_asked(request.body))
            except ConfigError:
                self.bound = None


class Count:
    """What the rows of an input are, counted in memory that does not grow with it."""

    def __init__(self, table: PriceTable, settings: Settings) -> None:
        self.answered = self.failed = self.bad = 0
        self.complaint = ""
        self.plans: dict[str, Plan] = {}
        self._table = table
        self._base_url = settings["base_url"]
        self._known = known_providers()
        self._estimator = Estimator(START_ANSWER * MARGIN + 1)

    def read(self, reader: Reader, earlier: _Earlier) -> None:
        """Count every row. JobConflictError where one is not what it was when it was answered."""
        for row in reader:
            state = earlier.state(row.index)
            if state == OK:
                if earlier.checks[row.index] != crc32(row.source) and not earlier.is_forced:
                    raise JobConflictError(
                        f"row {row.index} is not what it was when it was answered: the input changed"
                    )
                self.answered += 1
                continue
            if row.request is None:
                self.bad += 1
                self.complaint = self.complaint or (row.error.message if row.error is not None else "")
                continue
            self.failed += state == FAILED
            model = row.request.model
            plan = self.plans.get(model)
            if plan is None:
                price = self._price(model)
                plan = self.plans[model] = Plan(price, Purse(Budget(0), price, model=model))
            plan.add(row.request, self._estimator)

    def _price(self, model: str) -> Price | None:
        """Find the price as the run finds the provider."""
        if self._base_url is not None:
            url = self._base_url.rstrip("/")
            names = (vendor.name for vendor in VENDORS.values() if vendor.base_url == url)
            return self._table.find(next(names, BASE_URL), model)
        name, rest = split_model(model, self._known)
        return self._table.find(name or DEFAULT_VENDOR, rest)

    @property
    def requests(self) -> int:
        return sum(plan.requests for plan in self.plans.values())


class _Earlier:
    """Which rows an earlier run answered, by its journal, which is only read."""

    def __init__(self) -> None:
        self.states = bytearray()
        self.checks = array("I")
        self.is_forced = False  # answers count, though their rows may be others now

    def state(self, index: int) -> int:
        return self.states[index] if index < len(self.states) else 0

    @classmethod
    def of(cls, path: Path, reader: Reader, base_url: str | None, *, force: bool = False) -> _Earlier:
        """Read the journal. JobConflictError where it is another job's, as the run would say."""
        found = cls()
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            layout = _existing_layout(path, fd, False)
            if layout is None:
                return found
            for _, index, state, check, _ in Scan(fd, layout, os.fstat(fd).st_size):
                if state != END:
                    found._note(index, state, check)
            identity = identify(reader, base_url)
            if OK not in found.states and _differences(layout, identity):
                return cls()  # without an answer it would be started anew
            if not force:
                _same_job(path, layout, identity)
            found.is_forced = force
            return found
        finally:
            os.close(fd)

    def _note(self, index: int, state: int, check: int) -> None:
        more = index + 1 - len(self.states)
        if more > 0:
            more += len(self.states) // 8 + 64
            self.states.extend(bytes(more))
            self.checks.frombytes(bytes(self.checks.itemsize * more))
        self.states[index] = OK if state == OK else FAILED
        self.checks[index] = check


def show(places: Places, settings: Settings, *, overwrite: bool, force: bool = False) -> int:
    """Print the plan of a run and give its exit status. ConfigError where the run would refuse to begin."""
    output = places.output
    table = price_table(settings["prices"])
    budget = None if settings["budget"] is None else Budget(settings["budget"])
    settings.limits()
    params = {name: settings[name] for name in ("temperature", "max_tokens") if settings[name] is not None}
    count = Count(table, settings)
    with open_reader(
        places.source,
        model=settings["model"] or "",
        prompt=settings["prompt"],
        system=settings["system"],
        params=params,
        schema=settings.schema(),
        format=settings["input_format"],
    ) as reader:
        journal = journal_path(output)
        check_output(output, settings.shape(), format=settings["output_format"], like=reader)
        check_places(output, reader.path, journal=journal, overwrite=overwrite)
        if not overwrite and not journal.exists() and output.exists():
            raise JobConflictError(f"{output} exists and is of no job that could be resumed: give another --output")
        check_model(reader)
        count.read(
            reader,
            _Earlier()
            if overwrite or not journal.exists()
            else _Earlier.of(journal, reader, settings["base_url"], force=force),
        )
        unsent = settings.shape().unkept(reader.unsent)
    if unsent:
        say(f"fastllm: warning: {places.shown}: {NOT_SENT}: {unsent_words(unsent)}")
    for label, text in _lines(count, table, budget, settings):
        click.echo(in_flags(f"{label:<15}{text}"))
    return 0


def _lines(count: Count, table: PriceTable, budget: Budget | None, settings: Settings) -> Iterator[tuple[str, str]]:
    asked = f"{count.requests:,} to ask"
    if count.failed:
        asked += f" ({count.failed:,} of them failed in an earlier run)"
    bad = f"{count.bad:,} bad {'row' if count.bad == 1 else 'rows'}"
    if count.complaint:
        bad += f" ({count.complaint})"
    yield "requests", f"{asked}, {count.answered:,} answered by an earlier run, {bad}"
    plans = count.plans.values()
    yield "prompt tokens", f"about {sum(plan.prompt_tokens for plan in plans):,} (an estimate by the size of the text)"
    yield "answer tokens", f"about {sum(plan.answer_tokens for plan in plans):,} (max_tokens, or a usual length)"
    yield "cost", _cost(count, table)
    if budget is not None:
        yield "budget", _budget(count, budget, settings)
    yield "time", _time(count, settings)
    yield "", "nothing was sent"


def _cost(count: Count, table: PriceTable) -> str:
    known = sum(plan.cost for plan in count.plans.values() if plan.cost is not None)
    unknown = [model for model, plan in count.plans.items() if plan.cost is None]
    if unknown:
        more = f" and {len(unknown) - 1:,} more model{'s' * (len(unknown) > 2)}" if len(unknown) > 1 else ""
        rest = f"; the others about {dollars(known)}" if len(unknown) < len(count.plans) else ""
        return f"unknown price for {unknown[0]}{more}{rest}"
    if count.plans and all(plan.price is not None and plan.price.free for plan in count.plans.values()):
        return "$0.00 (free)"
    bounds = [plan.bound for plan in count.plans.values()]
    most = "" if None in bounds else f", at most {dollars(sum(bound or 0.0 for bound in bounds))}"
    return f"about {dollars(known)}{most} (list prices of {table.date})"


def _budget(count: Count, budget: Budget, settings: Settings) -> str:
    refused = [model for model, plan in count.plans.items() if plan.bound is None]
    if refused and settings["unknown_price"] == "refuse":
        return f"{dollars(budget.limit)} would refuse {refused[0]}: what it may cost is not known"
    known = sum(plan.cost or 0.0 for plan in count.plans.values())
    rest = ", without the unknown prices" if any(plan.cost is None for plan in count.plans.values()) else ""
    if known > budget.limit:
        return f"{dollars(budget.limit)}, {dollars(known - budget.limit)} less than the estimate{rest}"
    return f"{dollars(budget.limit)}, the estimate leaves {dollars(budget.limit - known)}{rest}"


def _time(count: Count, settings: Settings) -> str:
    """The least time by the limits that were given; each model has its own."""
    rpm, tpm = settings["rpm"], settings["tpm"]
    if rpm is None and tpm is None:
        return "limits not known: learnt while running"
    windows = 0
    for plan in count.plans.values():
        used = [(plan.requests, rpm), (plan.prompt_tokens + plan.answer_tokens, tpm)]
        windows = max(windows, *(math.ceil(amount / limit) - 1 for amount, limit in used if limit is not None))
    given = [f"{limit:,.10g} {what}" for limit, what in ((rpm, "requests"), (tpm, "tokens")) if limit is not None]
    least = f"at least {duration(windows * SPAN)}" if windows > 0 else "as long as the answers take"
    return f"{least} at {' and '.join(given)} a minute"
