"""Keys: the virtual keys that clients of the gateway show, and what each of them may do.

A secret is shown once, when it is made. What is kept is its SHA-256 (32 random bytes need no slow hash: nobody guesses
them) and its last four characters, for people to tell keys apart. Looking one up is a dict access by that hash, so its
time says nothing about any secret that exists. Changes by other processes are seen within LOOK seconds.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError
from .database import Database

logger = logging.getLogger("fastllm")

PREFIX = "sk-fastllm-"
RANDOM_BYTES = 32
LOOK = 0.5  # seconds between looks at what other processes changed
LONGEST_SECRET = 256
MOST_USD = 1e9
_CHANGED = "SELECT version, id, record FROM keys WHERE version > ? ORDER BY version"
_MOST = 1e15  # requests or tokens: beyond it somebody mistook the unit


class VirtualKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one key may do; it holds no secret. None: no limit.

    `models` are names as clients send them, or globs ("gpt-*"); `rpm` and `tpm` hold in any 60 seconds, `parallel`
    bounds the requests under way, the budgets are US dollars per UTC day and calendar month. `expires`, `created` and
    `revoked` are seconds since the epoch; `tail` are the last characters of the secret.
    """

    id: str
    name: str
    models: tuple[str, ...] | None = None
    rpm: float | None = None
    tpm: float | None = None
    parallel: int | None = None
    budget_day: float | None = None
    budget_month: float | None = None
    expires: float | None = None
    created: float = 0.0
    revoked: float | None = None
    tail: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise ConfigError(f"key.name must be text that can be read, such as 'team-a', not {self.name!r}")
        if len(self.name) > 200:
            raise ConfigError(f"key.name must have at most 200 characters, not {len(self.name)}")
        msgspec.structs.force_setattr(self, "models", _checked_models(self.models))
        _checked("rpm", self.rpm, "requests in any 60 seconds", least=1, most=_MOST)
        _checked("tpm", self.tpm, "tokens in any 60 seconds", least=1, most=_MOST)
        _checked("parallel", self.parallel, "requests under way", least=1, most=_MOST, whole=True)
        _checked("budget_day", self.budget_day, "US dollars a day", least=0, most=MOST_USD)
        _checked("budget_month", self.budget_month, "US dollars a month", least=0, most=MOST_USD)
        _checked("expires", self.expires, "seconds since 1970", least=1, most=1e11)

    def state(self, now: float) -> str:
        """Say in a word whether it can be used: "valid", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


Keys = list[VirtualKey]
LIMITS = ("models", "rpm", "tpm", "parallel", "budget_day", "budget_month", "expires")  # what a caller may set


def key_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Give what `KeyStore.create` takes from a mapping that somebody else wrote; ConfigError for a field unknown."""
    if "name" not in given:
        raise ConfigError("key.name is missing: give the key a name, such as 'team-a'")
    for field in given:
        if field != "name" and field not in LIMITS:
            near = difflib.get_close_matches(str(field), ("name", *LIMITS), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are name, {', '.join(LIMITS)}"
            raise ConfigError(f"a key has no field {str(field)[:50]!r}; {hint}")
    return dict(given)


class _Secret(msgspec.Struct, frozen=True):
    """A hash and until when it is good; None: as long as its key is."""

    hash: bytes
    key: str
    expires: float | None

    def __repr__(self) -> str:
        return f"<a secret of {self.key}>"


class KeyStore:
    """The keys of a file; None is the gateway's usual one. Any thread may call anything here.

    `create`, `rotate` and `revoke` wait for the disk (some milliseconds): from an event loop, call them in a thread.
    """

    def __init__(
        self,
        path: str | Path | Database | None = None,
        *,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owned = not isinstance(path, Database)
        self._database = path if isinstance(path, Database) else Database(path)
        self._watch = self._database.watch()
        self._wall = wall
        self._now = now
        self._keys: dict[str, VirtualKey] = {}
        self._secrets: dict[bytes, _Secret] = {}
        self._hashes: dict[str, Sequence[bytes]] = {}  # of each key's secrets
        self._version = 0
        self._look_at = 0.0
        self._lock = threading.Lock()
        self.refresh()

    def create(
        self,
        name: str,
        *,
        models: Sequence[str] | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        parallel: int | None = None,
        budget_day: float | None = None,
        budget_month: float | None = None,
        expires: float | None = None,
    ) -> tuple[VirtualKey, str]:
        """Make a key and give it with its secret, which is never shown again. ConfigError for what cannot be."""
        now = self._wall()
        secret = _new_secret()
        key = VirtualKey(
            id=f"key-{secrets.token_hex(8)}",
            name=name,
            models=models,  # type: ignore[arg-type]  # any sequence; checked and made a tuple
            rpm=rpm,
            tpm=tpm,
            parallel=parallel,
            budget_day=budget_day,
            budget_month=budget_month,
            expires=expires,
            created=now,
            tail=secret[-4:],
        )
        if expires is not None and expires <= now:
            raise ConfigError(f"key.expires must be in the future, not {expires!r} (it is {now:.0f} now)")
        self.refresh()
        if any(other.name == name and other.state(now) == "valid" for other in self.list()):
            raise ConfigError(
                f"a key called {name!r} exists already: choose another name, or rotate or revoke that one"
            )
        self._write(key, [_Secret(_hash(secret), key.id, None)])
        return key, secret

    def find(self, secret: str) -> VirtualKey | None:
        """Give the key that this secret belongs to; None for a secret that is unknown, revoked or was rotated away.

        An expired key is given, so that its owner can be told; the door refuses it, and `Tenants.admit`.
        """
        if self._now() >= self._look_at:
            self.refresh()
        if not isinstance(secret, str) or not secret.startswith(PREFIX) or len(secret) > LONGEST_SECRET:
            return None
        hashed = _hash(secret)
        found = self._secrets.get(hashed)
        if found is None or not hmac.compare_digest(found.hash, hashed):
            return None
        if found.expires is not None and self._wall() >= found.expires:
            return None
        key = self._keys.get(found.key)
        return key if key is not None and key.revoked is None else None

    def current(self, key: VirtualKey) -> VirtualKey:
        """Give a key as it is by now, for work that goes on for longer than the request that began it."""
        if self._now() >= self._look_at:
            self.refresh()
        return self._keys.get(key.id, key)

    def get(self, id: str) -> VirtualKey:
        """Give the key of that id, or the one of that name; ConfigError where there is none."""
        self.refresh()
        key = self._keys.get(id)
        if key is not None:
            return key
        named = [key for key in self.list() if key.name == id]
        live = [key for key in named if key.revoked is None] or named
        if live:
            return live[-1]
        known = [*(key.name for key in self._keys.values()), *self._keys]
        near = difflib.get_close_matches(str(id), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`fastllm keys list` shows all"
        raise ConfigError(f"there is no key {str(id)[:50]!r}; {hint}" if not _is_secret(id) else _NO_SECRET)

    def list(self) -> Keys:
        """Give every key, revoked ones too, the oldest first."""
        self.refresh()
        return sorted(self._keys.values(), key=lambda key: (key.created, key.id))

    def rotate(self, id: str, *, grace: float = 0.0) -> tuple[VirtualKey, str]:
        """Give a key a new secret; those before it are good for `grace` more seconds. Limits and spending stay."""
        _checked("grace", grace, "seconds", least=0, most=366 * 86400.0, name="grace", optional=False)
        key = self.get(id)
        if key.revoked is not None:
            raise ConfigError(f"the key {key.name!r} ({key.id}) is revoked: create another one")
        secret = _new_secret()
        key = msgspec.structs.replace(key, tail=secret[-4:])
        until = self._wall() + grace
        kept = [
            _Secret(old.hash, key.id, until if old.expires is None else min(until, old.expires))
            for old in self._secrets.copy().values()
            if old.key == key.id and grace > 0
        ]
        self._write(key, [*kept, _Secret(_hash(secret), key.id, None)])
        return key, secret

    def revoke(self, id: str) -> VirtualKey:
        """End a key for good, at once here and within a second in other processes; again changes nothing."""
        key = self.get(id)
        if key.revoked is None:
            key = msgspec.structs.replace(key, revoked=self._wall())
            self._write(key, [])
        return key

    def _write(self, key: VirtualKey, owned: Sequence[_Secret]) -> None:
        record = msgspec.json.encode(key).decode()
        with self._database.transaction() as db:
            (version,) = db.execute("SELECT coalesce(max(version), 0) + 1 FROM keys").fetchone()
            db.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", (key.id, version, record))
            db.execute("DELETE FROM secrets WHERE key = ?", (key.id,))
            db.executemany(
                "INSERT INTO secrets VALUES (?, ?, ?)", [(secret.hash, secret.key, secret.expires) for secret in owned]
            )
        self._database.checkpoint()  # a key that was shown, or revoked, is so after a power cut, too
        self.refresh()

    def refresh(self) -> None:
        """See what changed since the last look; costs microseconds where nothing did."""
        self._look_at = self._now() + LOOK
        with self._lock:
            if not self._watch.changed():
                return
            for version, id, record in self._watch.read(_CHANGED, (self._version,)) or ():
                owned = self._watch.read("SELECT hash, key, expires FROM secrets WHERE key = ?", (id,))
                if owned is None:
                    return  # at the next look
                self._take(id, record, [_Secret(*row) for row in owned])
                self._version = version

    def _take(self, id: str, record: str, owned: Sequence[_Secret]) -> None:
        for old in self._hashes.pop(id, ()):
            del self._secrets[old]
        try:
            self._keys[id] = msgspec.json.decode(record, type=VirtualKey)
        except msgspec.DecodeError as error:
            self._keys.pop(id, None)
            logger.error("the key %s in %s cannot be read and is not accepted: %s", id, self._database.path, error)
            return
        self._hashes[id] = [secret.hash for secret in owned]
        self._secrets.update((secret.hash, secret) for secret in owned)

    def close(self) -> None:
        """Idempotent. The database is closed only if it was opened here."""
        self._watch.close()
        if self._owned:
            self._database.close()

    def __repr__(self) -> str:
        return f"<KeyStore {len(self._keys)} keys in {self._database.path}>"


_NO_SECRET = "a key is called by its id or its name, not by its secret; `fastllm keys list` shows them"


def _is_secret(text: object) -> bool:
    return isinstance(text, str) and PREFIX in text


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _checked_models(models: Any) -> tuple[str, ...] | None:
    if models is None:
        return None
    if isinstance(models, str) or not isinstance(models, Sequence):
        raise ConfigError(f"key.models must be a list of model names or globs, such as ['gpt-4o*'], not {models!r}")
    if not models:
        raise ConfigError("key.models must name at least one model; use None for all models")
    for model in models:
        if not isinstance(model, str) or not model or not model.isprintable():
            raise ConfigError(f"key.models must be a list of model names or globs; {model!r} is neither")
    return tuple(models)


def _checked(
    field: str,
    value: Any,
    unit: str,
    *,
    least: float,
    most: float,
    whole: bool = False,
    name: str = "",
    optional: bool = True,
) -> None:
    """Refuse what is no number in the range; the message names the field, the value and what would be right."""
    if value is None and optional:
        return
    right = f"a {'whole ' if whole else ''}number of {unit} from {least:g} to {most:g}"
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most or math.isnan(value):
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
        none = ", or None for no limit" if optional else ""
        raise ConfigError(f"{name or 'key.' + field} must be {right}{none}; not {shown[:100]}")
