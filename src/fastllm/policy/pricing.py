"""What tokens cost: a dated table of list prices (data/prices.json), a user's own over it, and the sums.

The rules. A model that the table does not know has no price: None, never 0. Only the providers in the list `free`
cost nothing, whatever the model. Where a price changes with the hour or is reduced for a time, the table holds the
higher one, and where a usage does not tell what was cheaper, the dearer is counted: a cost may be a little more than
the bill, not less. What is billed beside tokens (tools, images, audio, faster service tiers) is not in it.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ..answers import Usage
from ..errors import ConfigError

DEFAULT_PROVIDER = "openai"  # what a model without a provider's name before it belongs to
_MILLION = 1e6
# Only whole dates: `-2508` and `-001` are versions, which may have another price.
_DATED = re.compile(r"[-@](?:\d{4}-\d{2}-\d{2}|\d{8})$")

Usd = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class LongPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prices of a whole request whose prompt has more than `above` tokens."""

    above: Count
    input: Usd
    output: Usd
    cached_input: Usd | None = None
    cache_write: Usd | None = None


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one model costs, in USD per million tokens.

    `cached_input` is for prompt tokens that the provider had in its cache, `cache_write` for those it put there;
    `long` replaces the prices where the prompt is long; `per_request` is USD for each request; `batch` is what the
    provider's batch API multiplies all of it with. `max_output_tokens` and `context` are the model's limits. None
    stands for what is not known.
    """

    provider: str = ""
    model: str = ""
    input: Usd
    output: Usd
    cached_input: Usd | None = None
    cache_write: Usd | None = None
    long: LongPrompt | None = None
    per_request: Usd = 0.0
    batch: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    max_output_tokens: Count | None = None
    context: Count | None = None
    note: str = ""
    check: str = ""
    date: str = ""
    source: str = ""

    @property
    def free(self) -> bool:
        """True where nothing is ever billed."""
        dearest = max(self.input, self.output, self.cache_write or 0.0, self.per_request)
        return dearest == 0 and self.long is None

    def cost(self, usage: Usage, *, batch: bool = False) -> float:
        """Give the USD that one answer cost. `batch` says that it came through the provider's batch API.

        Some count reasoning beside `completion_tokens` (xAI, Gemini's OpenAI endpoint): what is in the total and not in
        the prompt is billed as answer.
        """
        prompt, long = usage.prompt_tokens, self.long
        rates = long if long is not None and prompt > long.above else self
        answer = max(usage.completion_tokens, usage.total_tokens - prompt)
        usd = prompt * rates.input + answer * rates.output
        details = usage.prompt_tokens_details or usage.input_tokens_details
        if details is not None:
            cached = min(max(details.cached_tokens or 0, 0), prompt)
            written = min(max(details.cache_write_tokens or 0, 0), prompt - cached)
            if rates.cached_input is not None:
                usd += cached * (rates.cached_input - rates.input)
            if rates.cache_write is not None:
                usd += written * (rates.cache_write - rates.input)
        usd /= _MILLION
        if batch and self.batch is not None:
            usd *= self.batch
        return usd + self.per_request

    def bound(self, prompt_tokens: int, max_output_tokens: int, n: int = 1) -> float:
        """Give the most USD that a request of at most so many tokens can cost, with `n` answers to one prompt."""
        prompt, answer = max(self.input, self.cached_input or 0.0, self.cache_write or 0.0), self.output
        long = self.long
        if long is not None and prompt_tokens > long.above:
            prompt = max(prompt, long.input, long.cached_input or 0.0, long.cache_write or 0.0)
            answer = max(answer, long.output)
        return (prompt_tokens * prompt + max(n, 1) * max_output_tokens * answer) / _MILLION + self.per_request


class _Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, dict[str, Any]]
    date: str = ""
    source: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    providers: dict[str, _Provider] = {}
    free: list[str] = []
    date: str = ""
    currency: str = "USD"
    unit: str = ""
    about: str = ""


class PriceTable:
    """Prices by provider and model; `date` is when the snapshot was taken, `free` the providers that cost nothing."""

    def __init__(self, rows: dict[str, dict[str, Price]], *, free: frozenset[str], date: str, about: str = "") -> None:
        self.date = date
        self.about = about
        self.free = free
        self._rows = rows

    @classmethod
    def load(cls, path: str | Path | None = None, *, providers: frozenset[str] | None = None) -> PriceTable:
        """Read the package's table, and a JSON or TOML file of the same shape over it.

        A row of the file replaces the row of that model, of which only `max_output_tokens` and `context` are kept
        where the file says nothing about them. `providers` are the names that the file may hold beside those of the
        package's table. Raises ConfigError that names the file and the place in it.
        """
        content = resources.files(__name__.partition(".")[0]).joinpath("data", "prices.json").read_bytes()
        snapshot = _convert(msgspec.json.decode(content), "the package's prices.json")
        rows = _rows_of(snapshot, "the package's prices.json", {})
        free = frozenset(snapshot.free)
        if path is not None:
            own = _convert(_read(Path(path)), str(path))
            if providers is not None:
                _check_names([*own.providers, *own.free], providers | free | rows.keys(), str(path))
            for provider, models in _rows_of(own, str(path), rows).items():
                rows.setdefault(provider, {}).update(models)
            free |= frozenset(own.free)
        return cls(rows, free=free, date=snapshot.date, about=snapshot.about)

    @property
    def providers(self) -> frozenset[str]:
        """The providers that the table knows, free ones included."""
        return self.free | self._rows.keys()

    def find(self, provider: str | None, model: str) -> Price | None:
        """Give a model's price, or None where it is not known.

        The name may be exact, carry a date (`gpt-4o-mini-2024-07-18`), or its provider's name (`openai/gpt-4o-mini`);
        without a provider, that name decides, and else it is OpenAI's.
        """
        if provider is None:
            provider, model = self._split(model)
        if provider in self.free:
            return Price(provider=provider, model=model, input=0.0, output=0.0, note="free")
        rows = self._rows.get(provider, {})
        for name in (model, *_without_prefix(provider, model)):
            found = rows.get(name) or rows.get(_DATED.sub("", name))
            if found is not None:
                return found
        return None

    def _split(self, model: str) -> tuple[str, str]:
        ends = [i for i in (model.find("/"), model.find(":")) if i > 0]
        cut = min(ends, default=0)
        return (model[:cut], model[cut + 1 :]) if model[:cut] in self.providers else (DEFAULT_PROVIDER, model)

    def __iter__(self) -> Iterator[Price]:
        """Give every row, by provider and model."""
        for provider in sorted(self._rows):
            for model in sorted(self._rows[provider]):
                yield self._rows[provider][model]

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def __repr__(self) -> str:
        return f"<PriceTable of {self.date}: {len(self)} models, free: {', '.join(sorted(self.free))}>"


def _check_names(names: list[str], known: frozenset[str], where: str) -> None:
    """A price under a name that nobody has would never be found."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: no provider is called {name!r}; {hint}")


def _without_prefix(provider: str, model: str) -> Iterator[str]:
    for prefix in (f"{provider}/", f"{provider}:", "models/"):  # Gemini's own names begin with models/
        if model.startswith(prefix):
            yield model.removeprefix(prefix)


def _read(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".toml":
            return tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the prices in {path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the prices in {path} are not valid JSON or TOML: {error}") from None


def _convert(content: Any, where: str) -> _File:
    try:
        file = msgspec.convert(content, _File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} is no price table: {error}") from None
    if file.currency != "USD":
        raise ConfigError(f"{where}: currency must be USD, not {file.currency!r}")
    return file


def _rows_of(file: _File, where: str, below: dict[str, dict[str, Price]]) -> dict[str, dict[str, Price]]:
    rows: dict[str, dict[str, Price]] = {}
    for provider, content in file.providers.items():
        rows[provider] = {}
        for model, fields in content.models.items():
            kept = below.get(provider, {}).get(model)
            limits = {} if kept is None else {"max_output_tokens": kept.max_output_tokens, "context": kept.context}
            made = {
                "date": content.date or file.date,
                "source": content.source or where,
                **limits,
                **fields,
                "provider": provider,
                "model": model,
            }
            try:
                rows[provider][model] = msgspec.convert(made, Price)
            except msgspec.ValidationError as error:
                raise ConfigError(f"{where}: the price of {provider}/{model} is not valid: {error}") from None
    return rows
