"""`fastllm run … --dry-run`: what a run would ask, cost and take. It sends nothing, writes nothing, needs no key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import click
import msgspec

from ..answers import Usage
from ..build import DEFAULT_VENDOR, known_providers, price_table
from ..errors import ConfigError, JobConflictError
from ..formats.base import Reader, open_reader
from ..formats.remote import Places
from ..formats.rows import unsent_words
from ..jobs.checks import check_job
from ..jobs.frames import FAILED, OK
from ..jobs.journal import journal_path
from ..jobs.publish import Shape
from ..jobs.recorded import Recorded
from ..jobs.runner import identify, is_left
from ..policy.budget import Budget, dollars
from ..policy.pricing import Price, PriceTable
from ..policy.purse import Purse, answers_asked
from ..policy.tokens import MARGIN, START_ANSWER, Estimator
from ..policy.window import SPAN
from ..progress.words import duration
from ..providers.vendors import VENDORS, split_model
from ..settings import Settings
from ..types import Request
from .again import Again
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
        self._routes = settings.routes
        self._estimator = Estimator(START_ANSWER * MARGIN + 1)

    def read(self, reader: Reader, earlier: Recorded | None, again: Again) -> None:
        """Count every row. JobConflictError where one is not what it was when it was answered."""
        for row in reader:
            state = 0 if earlier is None else earlier.state(row.index)
            if earlier is not None and state == OK:
                if earlier.check(row.index) != crc32(row.source) and not again.force:
                    raise JobConflictError(
                        f"row {row.index} is not what it was when it was answered: the input changed"
                    )
                self.answered += 1
                continue
            if is_left(state, again.retry_failed):
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
        route = self._routes.get(model)
        if route is not None:  # what the first of its endpoints takes
            model = route.tiers[0][0].model
        name, rest = split_model(model, self._known)
        return self._table.find(name or DEFAULT_VENDOR, rest)

    @property
    def requests(self) -> int:
        return sum(plan.requests for plan in self.plans.values())


@contextmanager
def _earlier(journal: Path, reader: Reader, base_url: str | None, again: Again) -> Iterator[Recorded | None]:
    """Give what an earlier run answered, where a run of this job would go on with it."""
    if again.overwrite or not journal.exists():
        yield None
        return
    with Recorded(journal) as recorded:
        yield recorded if recorded.counts_for(identify(reader, base_url), force=again.force) else None


def show(places: Places, settings: Settings, again: Again) -> int:
    """Print the plan of a run and give its exit status. ConfigError where the run would refuse to begin."""
    output = places.output
    table = price_table(settings["prices"])
    budget = None if settings["budget"] is None else Budget(settings["budget"])
    settings.limits()
    settings.cache()
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
        shape = Shape(columns=settings.shape(), format=settings["output_format"], reader=reader)
        check_job(reader, output, shape, journal=journal, overwrite=again.overwrite, retry_failed=again.retry_failed)
        with _earlier(journal, reader, settings["base_url"], again) as earlier:
            count.read(reader, earlier, again)
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
