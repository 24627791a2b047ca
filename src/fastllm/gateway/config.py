"""Options of the gateway: flags, environment and the `[gateway]` table of fastllm.toml become one frozen value.

Every option is declared once, as a field of GatewayOptions: `body_bytes` in the file, `--body-bytes` as a flag where
there is one, `FASTLLM_GATEWAY_BODY_BYTES` in the environment. Keys never stand in the file, only the names of the
variables that hold them.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..errors import ConfigError
from ..options import Retry, Timeout
from ..settings import PREFIX, Settings, Value

ENV = PREFIX + "GATEWAY_"
MASTER_KEY = "FASTLLM_MASTER_KEY"
SHORTEST_KEY = 16  # characters
ATTEMPTS = 3  # of one request; a program that waits for its answer has retries of its own
CAP = 8.0  # seconds of back-off at most

_WHOLE: dict[str, tuple[int, str]] = {  # field -> the least that it may be, and of what
    "port": (0, "a port number (0: any free one)"),
    "body_bytes": (1024, "bytes"),
    "header_bytes": (1024, "bytes"),
    "queue_size": (0, "requests"),
    "file_bytes": (1024, "bytes"),
    "tenant_bytes": (1024, "bytes"),
    "batches": (1, "batches"),
}
_LISTS = ("models", "passthrough")
_SECONDS = ("header_seconds", "idle_seconds", "body_seconds", "write_seconds", "keep_alive", "queue", "drain")


class GatewayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the gateway listens, what it takes, and whom it serves. Sizes in bytes, times in seconds.

    `master_key_env` names the variable that holds the key which opens everything; without one the gateway serves
    everybody who reaches it, which it does beyond this machine only where `insecure` says so. `models` are the names
    that may be asked for, `*` standing for any text; without any, those of the routes, the setting `model`, and all of
    the providers whose keys are set. `queue` is for how long a request may wait for its turn, `queue_size` how many may
    wait for one endpoint; `drain` is the time that requests under way are given when the gateway stops, after `lead`
    seconds in which only /health/ready says so. `namespace` keeps the cache apart from that of other programs.
    `access_log` is a file for one line of JSON for each request, or `-` for standard error; with `otel`, spans and
    metrics go where OpenTelemetry's variables say.

    Uploaded files and batches lie in `data_dir`: files of at most `file_bytes` each and `tenant_bytes` for all of one
    key, `batches` of them at work at once. `passthrough` are providers whose whole API is open under /NAME, with the
    server's key, `*` being all whose key is set.
    """

    host: str = "127.0.0.1"
    port: int = 4000
    master_key_env: str = MASTER_KEY
    insecure: bool = False
    models: Sequence[str] = ()
    namespace: str = ""
    body_bytes: int = 64 * 1024 * 1024
    header_bytes: int = 32 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 600.0
    write_seconds: float = 60.0
    keep_alive: float = 15.0
    queue: float = 30.0
    queue_size: int = 1000
    lead: float = 0.0
    drain: float = 30.0
    access_log: str | None = None
    otel: bool = False
    data_dir: str | None = None
    file_bytes: int = 512 * 1024 * 1024
    tenant_bytes: int = 16 * 1024 * 1024 * 1024
    batches: int = 4
    passthrough: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field, (least, unit) in _WHOLE.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 2**53:
                raise ConfigError(f"gateway.{field} must be {unit}, at least {least}; not {value!r}")
        if self.port > 65535:
            raise ConfigError(f"gateway.port must be at most 65535, not {self.port}")
        for field in (*_SECONDS, "lead"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
                raise ConfigError(f"gateway.{field} must be a number of seconds of at least 0, not {value!r}")
            if not value and field != "lead":
                raise ConfigError(f"gateway.{field} must be more than 0 seconds")
        if not self.host:
            raise ConfigError("gateway.host must be an address or a name, such as 127.0.0.1")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.master_key_env):
            raise ConfigError(
                f"gateway.master_key_env must be the name of a variable, not {self.master_key_env[:4]!r}…"
            )
        if any(not name for name in self.models):
            raise ConfigError("gateway.models must be names of models, or patterns such as 'openai/*'")

    @property
    def is_local(self) -> bool:
        """True where only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def master_key(self, environ: Mapping[str, str]) -> str | None:
        """Give the master key, None where there is none. ConfigError where it is none that can be kept a secret."""
        key = environ.get(self.master_key_env, "").strip()
        if not key:
            return None
        if not re.fullmatch(r"[!-~]+", key) or len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"the key in {self.master_key_env} must have at least {SHORTEST_KEY} characters, all of them ASCII and "
                "none a space (it is not shown here)"
            )
        return key

    def check_door(self, *, has_keys: bool) -> None:
        """Raise ConfigError where anybody on the network could use the providers' keys."""
        if not (self.is_local or has_keys or self.insecure):
            raise ConfigError(
                f"not listening on {self.host} without a key: set {self.master_key_env}, create keys, or listen on "
                "127.0.0.1 (insecure = true in [gateway] serves everybody)"
            )


class Resolved(msgspec.Struct, frozen=True):
    """The options, and where each value came from."""

    options: GatewayOptions
    origins: Mapping[str, str]

    def items(self) -> list[tuple[str, Value]]:
        """Give the name, value and origin of each."""
        fields = GatewayOptions.__struct_fields__
        return [(name, Value(getattr(self.options, name), self.origins.get(name, "default"))) for name in fields]


def resolve(settings: Settings, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Resolved:
    """Lay flags over the environment, that over the file's table. ConfigError names the place of what is wrong."""
    table = settings.gateway
    given: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in GatewayOptions.__struct_fields__:
        variable = ENV + name.upper()
        if flags.get(name) is not None:
            given[name], origins[name] = flags[name], "--" + name.replace("_", "-")
        elif environ.get(variable):
            text = environ[variable]
            given[name] = [part.strip() for part in text.split(",")] if name in _LISTS else text
            origins[name] = variable
        elif name in table:
            given[name], origins[name] = table[name], settings.place
    for name in table:
        _known(name, GatewayOptions.__struct_fields__, f"[gateway] in {settings.place}")
    for variable in environ:
        if variable.startswith(ENV):
            _known(variable.removeprefix(ENV).lower(), GatewayOptions.__struct_fields__, "the environment")
    try:
        return Resolved(msgspec.convert(given, GatewayOptions, strict=False), origins)
    except (msgspec.ValidationError, ConfigError) as error:
        name = next((name for name in given if f"$.{name}" in str(error) or f"gateway.{name} " in str(error)), "")
        place = f" ({origins[name]})" if name else ""
        raise ConfigError(f"{error}{place}") from None


def _known(name: str, names: Sequence[str], where: str) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"
    raise ConfigError(f"unknown option {name!r} of the gateway in {where}{hint}")


def retry_of(settings: Settings, options: GatewayOptions) -> Retry:
    """Give how often a request is tried again: seldom, and a provider's `Retry-After` beyond the time that a request
    may wait is passed on."""
    retry = settings.retry()
    attempts = retry.attempts if settings.is_given("max_retries") else ATTEMPTS
    longest = min(retry.retry_after_cap, options.queue)
    return msgspec.structs.replace(
        retry, attempts=attempts, cap=min(retry.cap, CAP), retry_after_cap=longest, patient=True
    )


def timeout_of(settings: Settings, options: GatewayOptions) -> Timeout:
    """Give the times of one request."""
    return msgspec.structs.replace(settings.timeout(), queue=options.queue)
