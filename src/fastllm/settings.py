"""Settings of the command line: flags, environment and fastllm.toml become one value each, with its origin.

Every setting is declared once, in SETTINGS. The same name is used everywhere: `max_retries` in TOML and Python,
`--max-retries` as a flag, `FASTLLM_MAX_RETRIES` in the environment. A flag wins over the environment, the
environment over the file, the file over the default.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from .errors import ConfigError
from .formats.base import READ, WRITTEN
from .formats.columns import DEFAULT, NAMES, Columns
from .options import CachePolicy, Limits, Retry, Route, Timeout, Upstream
from .providers.vendors import Vendor, register_vendor
from .schema.base import Schema
from .types import _without_secrets

FILE = "fastllm.toml"
PREFIX = "FASTLLM_"
TABLES = ("routes", "vendors", "gateway")
_SETTING_OF = {"cache.directory": "cache_dir"}  # where an option's field is not called as the setting
_FLAGS = (
    "CONFIG",
    "DASHBOARD",
    "DRY_RUN",
    "FORCE",
    "MASTER_KEY",
    "OUTPUT",
    "OVERWRITE",
    "RETRY_FAILED",
)  # variables that are no settings
_APPS = ("GATEWAY_",)  # what these begin with belongs to an app, which checks it
_PATHS = frozenset({"cache_dir", "db", "prices", "schema", "summary_json"})


class Setting(msgspec.Struct, frozen=True):
    """One setting: its name, how its text is read, what it means, its default and the words it may be."""

    name: str
    kind: type
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    least: float | None = None  # where no option checks it

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


class Value(msgspec.Struct, frozen=True):
    """A setting's value and where it came from."""

    value: Any
    origin: str


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("model", str, "Model to ask, such as openai/gpt-4o-mini or local/smollm2."),
        Setting("base_url", str, "Address of an OpenAI-compatible API; the model's name then goes through as it is."),
        Setting("api_key_env", str, "Environment variable that holds the API key."),
        Setting("concurrency", int, "Requests in flight at most. [default: found out while running]"),
        Setting("rpm", float, "Requests in any 60 seconds at most."),
        Setting("tpm", float, "Tokens in any 60 seconds at most."),
        Setting("itpm", float, "Tokens of prompts in any 60 seconds at most."),
        Setting("otpm", float, "Tokens of answers in any 60 seconds at most."),
        Setting("rpd", float, "Requests in any 24 hours at most."),
        Setting("tpd", float, "Tokens in any 24 hours at most."),
        Setting(
            "adaptive",
            str,
            "Find out what the provider takes within these limits; off: go straight up to them, and learn nothing.",
            "on",
            ("on", "off"),
        ),
        Setting("max_retries", int, "Further attempts after the first. [default: 7, and patience with 429s]"),
        Setting("hedge", float, "Quantile of the latency after which a second attempt goes out. [default: never]"),
        Setting("timeout", float, "Seconds for one request in total.", 600.0),
        Setting(
            "budget", float, "Most to spend, in US dollars, over all requests of a run. [default: no limit]", least=0
        ),
        Setting("prices", str, "File with prices of your own, JSON or TOML. [default: the table of `fastllm prices`]"),
        Setting("unknown_price", str, "What a budget does with what has no price.", "refuse", ("refuse", "allow")),
        Setting(
            "unsupported_params",
            str,
            "A parameter that a model refuses: leave it out, or fail.",
            "adapt",
            ("adapt", "refuse"),
        ),
        Setting(
            "embeddings_per_request",
            int,
            "Inputs to embed that share a request, at most; 1: none. [default: as many as the vendor takes]",
            least=1,
        ),
        Setting("workers", int, "Processes that answer rows, for the sake of more cores.", 1, least=1),
        Setting("leases", str, "A file: processes that name it share limits and budget. [default: each has its own]"),
        Setting("cache", str, "Keep answers and use them again.", "off", ("off", "memory", "disk")),
        Setting("cache_dir", str, "Directory of the disk cache. [default: the user's cache directory]"),
        Setting("ttl", float, "Seconds that a cached answer is good for. [default: until evicted]"),
        Setting("db", str, "File of the gateway's keys, budgets and usage. [default: in the user's state directory]"),
        Setting("prompt", str, "Template of the prompt, with {column} for the columns of a row."),
        Setting("system", str, "System message for every row; may hold {column}, too."),
        Setting("temperature", float, "Sampling temperature, for rows that do not set it.", least=0),
        Setting("max_tokens", int, "Longest answer in tokens, for rows that do not set it.", least=1),
        Setting("schema", str, "JSON schema file that every answer must fit."),
        Setting(
            "schema_retries", int, "How often an answer that does not fit the schema is asked for again.", 2, least=0
        ),
        Setting("durability", str, "How soon a finished row is on disk.", "normal", ("normal", "full")),
        Setting(
            "order", str, "Order of the answers: as in the input, or as they came.", "input", ("input", "finished")
        ),
        Setting("input_format", str, "What INPUT is. [default: its suffix tells; of -: jsonl]", None, READ),
        Setting("output_format", str, "What OUT is to be. [default: its suffix tells]", None, WRITTEN),
        Setting("keep", str, "Columns of the input to stand beside the answer: a,b or *."),
        Setting("fields", str, "Fields of answers that are JSON, to stand beside the text: a,b.c."),
        Setting("columns", str, f"Columns of a table, of {', '.join(NAMES)}. [default: {','.join(DEFAULT)}]"),
        Setting(
            "failures",
            str,
            "Where rows that failed are told: only beside OUT, or also as rows of it.",
            "file",
            ("file", "rows"),
        ),
        Setting("progress", str, "What to show meanwhile.", "auto", ("auto", "rich", "plain", "none")),
        Setting("summary_json", str, "File for the summary as JSON."),
        Setting(
            "dashboard_port",
            int,
            "Serve a page to watch the run by, on this port of 127.0.0.1; 0: any free one.",
            least=0,
        ),
    )
}

LIMITS = ("concurrency", "rpm", "tpm", "itpm", "otpm", "rpd", "tpd")


class Settings:
    """Resolved settings: `settings["rpm"]` is a value, `settings.origin("rpm")` says where it came from.

    `routes` and `vendors` stand in the file alone, as tables; the vendors are registered when they are read. `gateway`
    is the table that the gateway reads; `place` is the file's path.
    """

    def __init__(
        self,
        values: Mapping[str, Value],
        routes: Mapping[str, Route] | None = None,
        vendors: Sequence[Vendor] = (),
        gateway: Mapping[str, Any] | None = None,
        place: str = FILE,
    ) -> None:
        self._values = dict(values)
        self.routes = dict(routes or {})
        self.vendors = tuple(vendors)
        self.gateway = dict(gateway or {})
        self.place = place

    def __getitem__(self, name: str) -> Any:
        return self._values[name].value

    def origin(self, name: str) -> str:
        return self._values[name].origin

    def items(self) -> list[tuple[str, Value]]:
        return list(self._values.items())

    def is_given(self, name: str) -> bool:
        """True if somebody set it: it is not the default."""
        return self._values[name].origin != "default"

    def limits(self) -> Limits:
        with self._by_origin():
            return Limits(**{name: self[name] for name in LIMITS}, adaptive=self["adaptive"] == "on")

    def timeout(self) -> Timeout:
        with self._by_origin():
            return Timeout.of(self["timeout"]) if self.is_given("timeout") else Timeout()

    def retry(self) -> Retry:
        retries, hedge = self["max_retries"], self["hedge"]
        if retries is not None and retries < 0:
            raise ConfigError(f"{self._place('max_retries')} must be a whole number of at least 0, not {retries}")
        with self._by_origin():
            return Retry(hedge=hedge) if retries is None else Retry(attempts=retries + 1, patient=False, hedge=hedge)

    def cache(self, *, in_use: bool = True) -> CachePolicy:
        """What is said of the cache. ConfigError where a flag says something of one that is not `in_use`: nobody who
        writes it means nothing by it, whereas a file or a variable may speak of runs with a cache."""
        mode = self["cache"]
        is_off = mode == "off" and self.origin("cache") == SETTINGS["cache"].flag
        for name, modes in (("cache_dir", ("disk",)), ("ttl", ("disk", "memory"))):
            flag = SETTINGS[name].flag
            if in_use and mode not in modes and not is_off and self.origin(name) == flag:
                raise ConfigError(f"{flag} changes nothing where the cache is {mode}: give --cache {modes[0]}, too")
        with self._by_origin():
            return CachePolicy(mode=self["cache"], directory=self["cache_dir"], ttl=self["ttl"])

    def schema(self) -> Schema[Any] | None:
        if self["schema"] is None:
            if self.origin("schema_retries") == SETTINGS["schema_retries"].flag:
                raise ConfigError("--schema-retries says how often to ask for an answer that fits: give --schema, too")
            return None
        return Schema.of(Path(self["schema"]), retries=self["schema_retries"])

    def shape(self) -> Columns:
        """What the output holds."""
        with self._by_origin():
            given = (self["columns"], self["keep"], self["fields"])
            return Columns.of(*given, failures=self["failures"] == "rows")

    @contextmanager
    def _by_origin(self) -> Iterator[None]:
        """Name a value that cannot be by where it was written, not by the option that it becomes."""
        try:
            yield
        except ConfigError as error:
            field, space, rest = str(error).partition(" ")
            name = _SETTING_OF.get(field, field.partition(".")[2] or field)
            if not space or name not in SETTINGS or not self.is_given(name):
                raise
            raise ConfigError(f"{self._place(name)} {rest.removesuffix('.0')}") from None

    def _place(self, name: str) -> str:
        origin = self.origin(name)
        return origin if origin in (SETTINGS[name].flag, SETTINGS[name].variable) else f"{name} in {origin}"

    def api_key(self, environ: Mapping[str, str]) -> str | None:
        """The key from the variable that `api_key_env` names; None where the provider's own variable is to be used."""
        variable = self["api_key_env"]
        if variable is None:
            return None
        if not environ.get(variable):
            raise ConfigError(f"the environment variable {variable} (--api-key-env) is not set or empty")
        return environ[variable]

    def __repr__(self) -> str:
        given = ", ".join(
            f"{name}={shown(v.value)!r} ({v.origin})" for name, v in self.items() if v.origin != "default"
        )
        return f"<Settings {given or 'all default'}>"


def load_settings(
    flags: Mapping[str, Any], *, environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> Settings:
    """Resolve every setting. `flags` holds what was said on the command line (None: not said). ConfigError if bad."""
    environ = os.environ if environ is None else environ
    path = Path(environ[PREFIX + "CONFIG"]) if environ.get(PREFIX + "CONFIG") else (directory or Path()) / FILE
    from_file = _read_file(path, required=bool(environ.get(PREFIX + "CONFIG")))
    values = {}
    for name, setting in SETTINGS.items():
        if flags.get(name) is not None:
            values[name] = Value(_checked(setting, flags[name], setting.flag), setting.flag)
        elif environ.get(setting.variable):
            values[name] = Value(_checked(setting, environ[setting.variable], setting.variable), setting.variable)
        elif name in from_file:
            values[name] = Value(_checked(setting, from_file[name], f"{name} in {path}"), str(path))
        else:
            values[name] = Value(setting.default, "default")
    vendors = _vendors(from_file.get("vendors", {}), path)
    gateway = from_file.get("gateway", {})
    if not isinstance(gateway, dict):
        raise ConfigError(f"gateway in {path} must be a table: [gateway]")
    return Settings(values, _routes(from_file.get("routes", {}), path), vendors, gateway, str(path))


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Name the variables that look like settings and are none, each with the one that may be meant."""
    known = [*(PREFIX + name for name in _FLAGS), *(setting.variable for setting in SETTINGS.values())]
    found = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and not name.removeprefix(PREFIX).startswith(_APPS):
            near = difflib.get_close_matches(name, known, n=1)
            found.append(name + (f" (did you mean {near[0]}?)" if near else ""))
    return found


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{PREFIX}CONFIG names {path}, which does not exist") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    for name in content:
        if name not in SETTINGS and name not in TABLES:
            near = difflib.get_close_matches(name, [*SETTINGS, *TABLES], n=1)
            raise ConfigError(f"unknown setting {name!r} in {path}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return content


def _routes(tables: Any, path: Path) -> dict[str, Route]:
    """Read `[routes.NAME]`: the fields of a Route, endpoints as model strings or as tables with the fields of an
    Upstream. Keys stand in variables, not in the file."""
    found = {}
    for name, table in _tables("routes", tables, path):
        where = f"routes.{name} in {path}"
        given = dict(table)
        for field in ("endpoints", "fallbacks"):
            items = given.get(field, [])
            if not isinstance(items, list):
                raise ConfigError(f"{where}: {field} must be a list of model names or tables, not {items!r}")
            if any(isinstance(item, dict) and "api_key" in item for item in items):
                raise ConfigError(f"{where}: {field} must not hold keys; api_key_env names the variable that has one")
            given[field] = [{"model": item} if isinstance(item, str) else item for item in items]
        try:
            found[name] = msgspec.convert(given, Route)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {error}{_near_field(str(error), (Route, Upstream, Limits))}") from None
    return found


def _vendors(tables: Any, path: Path) -> list[Vendor]:
    """Read and register `[vendors.NAME]`: the fields of a Vendor."""
    found = []
    for name, table in _tables("vendors", tables, path):
        try:
            found.append(register_vendor(name, **{"base_url": "", "replace": True, **table}))
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"vendors.{name} in {path}: {error}") from None
    return found


def _tables(kind: str, tables: Any, path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"{kind} in {path} must be tables: [{kind}.NAME]")
    return list(tables.items())


def _near_field(message: str, structs: tuple[type[msgspec.Struct], ...]) -> str:
    """Name the field that may be meant where one is unknown."""
    name = message.partition("unknown field `")[2].partition("`")[0]
    known = [field for struct in structs for field in struct.__struct_fields__]
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _checked(setting: Setting, value: Any, where: str) -> Any:
    """Read one value as its kind; the message names the place, the value and what would be right."""
    if setting.kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{where} must be text, not {value!r}")
        if setting.name not in _PATHS and not _is_text(value):  # a file's name may be any bytes
            raise ConfigError(f"{where} must be text in UTF-8, not {value[:40]!a}")
    else:
        value = _number(setting, value, where)
    if setting.choices and value not in setting.choices:
        raise ConfigError(f"{where} must be one of {', '.join(setting.choices)}; not {value!r}")
    return value


def shown(value: Any) -> Any:
    """The value as people may see it: an address without user, password and query."""
    return _without_secrets(value) if isinstance(value, str) and "://" in value else value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        return False
    return True


def _number(setting: Setting, value: Any, where: str) -> float | int:
    word = "a whole number" if setting.kind is int else "a number"
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not math.isfinite(number) or (setting.kind is int and (number != int(number) or abs(number) > 2**53)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where} must be {word}, not {value!r}") from None
    if setting.least is not None and number < setting.least:
        raise ConfigError(f"{where} must be {word} of at least {setting.least:g}, not {value}")
    return int(number) if setting.kind is int else number
