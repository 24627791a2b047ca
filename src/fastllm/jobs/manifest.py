"""Manifest: what a job was and came to, as JSON beside its output, for people and programs.

It is made from the journal, which stays the only truth; only the list of runs and the command line are its own. It is
written when a run begins, so that a killed one is in the list, and when it ends. No prompt, no answer and no key is in
it: templates are hashes. A disk that does not take it costs the manifest and no row.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__
from ..errors import ConfigError
from .frames import VERSION
from .journal import Entry, Identity
from .replacing import replacing

logger = logging.getLogger("fastllm")

FORMAT = 1
MANIFEST = ".manifest.json"


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the job is: of which input, model and parameters; templates as the first 16 digits of their SHA-256."""

    fingerprint: str = ""
    model: str = ""
    base_url: str | None = None
    params: dict[str, Any] = {}
    prompt_sha256: str | None = None
    system_sha256: str | None = None
    schema_sha256: str | None = None


class Totals(msgspec.Struct, kw_only=True):
    """What the rows of a job came to, by their last outcome. `cost_usd` is None where a price or usage is not known;
    `cached` answers cost nothing."""

    rows: int = 0
    ok: int = 0
    failed: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = 0.0
    attempts: int = 0
    retries: int = 0
    errors: dict[str, int] = {}
    endpoints: dict[str, int] = {}

    def add(self, entry: Entry) -> None:
        """Count a row's last entry."""
        self.rows += 1
        attempts = entry.attempts
        self.attempts += attempts
        if attempts > 1:
            self.retries += attempts - 1
        self.prompt_tokens += entry.prompt_tokens
        self.completion_tokens += entry.completion_tokens
        if entry.cached_tokens:
            self.cached_tokens += entry.cached_tokens
        if entry.endpoint:
            self.endpoints[entry.endpoint] = self.endpoints.get(entry.endpoint, 0) + 1
        if self.cost_usd is not None and entry.body and not entry.cached:
            self.cost_usd = None if entry.cost is None else self.cost_usd + entry.cost
        if entry.error is not None:
            self.failed += 1
            kind = str(entry.error.get("class") or "LLMError")
            self.errors[kind] = self.errors.get(kind, 0) + 1
            return
        self.ok += 1
        self.cached += entry.cached


class Run(msgspec.Struct, kw_only=True):
    """One run of the job; `ended` is None while it goes on, and for ever where it was killed. Times in UTC."""

    began: str
    ended: str | None = None
    elapsed: float | None = None
    state: str = "running"  # then finished, interrupted or stopped
    ok: int = 0
    failed: int = 0
    fastllm: str = ""
    python: str = ""


class Manifest(msgspec.Struct, kw_only=True):
    """All of it. `totals`, `output_sha256` and `output_bytes` are there once the output is."""

    format: int = FORMAT
    job: Description
    journal_version: int = VERSION
    input: str | None = None
    input_format: str | None = None
    rows: int | None = None  # of the input, about; exact once the job has finished
    output: str
    failures: str | None = None
    state: str = "running"
    totals: Totals | None = None
    output_sha256: str | None = None
    output_bytes: int | None = None
    shape: dict[str, Any] = {}  # what the output was to look like
    runs: list[Run] = []
    command: list[str] = []  # without prompts
    directory: str | None = None  # in which the command was given


_decode = msgspec.json.Decoder(Manifest).decode


def manifest_path(output: Path) -> Path:
    """Give the manifest's place."""
    return output.with_name(output.name + MANIFEST)


def read_manifest(path: Path) -> Manifest | None:
    """Read one; None where there is none. ConfigError where the file is something else."""
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConfigError(f"{path} is not the manifest of a FastLLM job; move it away or give another output") from None


def description(identity: Identity) -> Description:
    """Describe a job without its prompts."""
    return Description(
        fingerprint=identity.fingerprint,
        model=identity.model,
        base_url=identity.base_url,
        params=identity.params,
        prompt_sha256=_short_hash(identity.prompt),
        system_sha256=_short_hash(identity.system),
        schema_sha256=None if identity.schema is None else _short_hash(msgspec.json.encode(identity.schema).decode()),
    )


class Ledger:
    """Keeps the manifest of one run: `begin`, then `end` or `discard`."""

    def __init__(
        self,
        output: Path,
        source: Path | None,
        identity: Identity,
        command: Sequence[str] = (),
        *,
        origin: str | None = None,
        input_format: str | None = None,
        rows: int | None = None,
        shape: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = manifest_path(output)
        self._output = output
        self._was_there = self._path.exists()
        self.totals = Totals()
        self._manifest = Manifest(
            job=description(identity),
            input=origin or (None if source is None else str(source.absolute())),
            input_format=input_format,
            rows=rows,
            output=output.name,
            command=list(command),
            directory=str(Path.cwd()) if command else None,
            shape=msgspec.json.decode(msgspec.json.encode(shape or {})),
        )

    @property
    def began(self) -> bool:
        return bool(self._manifest.runs)

    def is_told(self, ok: int, failed: int) -> bool:
        """Tell whether the file says of the job that it is done, with so many rows, and its output is as it should look
        now: a run may be killed before it could, or the disk be full, and an earlier one may have been told to write
        another shape."""
        before = self._before()
        if before is None or before.state != "finished" or before.shape != self._manifest.shape:
            return False
        return before.totals is not None and (before.totals.ok, before.totals.failed) == (ok, failed)

    def begin(self, *, anew: bool) -> None:
        """Write that a run began, after the earlier ones of this job; `anew`: there are none."""
        before = None if anew else self._before()
        runs = [] if before is None else before.runs
        self._manifest.runs = [*runs, Run(began=_now(), fastllm=__version__, python=platform.python_version())]
        if before is not None:
            self._manifest.command = self._manifest.command or before.command
            self._manifest.directory = self._manifest.directory or before.directory
        self._write()

    def _before(self) -> Manifest | None:
        try:
            return read_manifest(self._path)
        except ConfigError:
            return None  # damaged: the journal is the truth, and this is written anew

    def end(self, state: str, *, ok: int, failed: int, elapsed: float, failures: Path | None = None) -> None:
        """Write how this run ended. Where it finished, the totals and what the output is, too."""
        run = self._manifest.runs[-1]
        run.ended, run.elapsed, run.state, run.ok, run.failed = _now(), round(elapsed, 3), state, ok, failed
        self._manifest.state = state
        if state == "finished":
            self._manifest.totals, self._manifest.rows = self.totals, self.totals.rows
            self._manifest.failures = None if failures is None else failures.name
            self._manifest.output_sha256, self._manifest.output_bytes = _content(self._output)
        self._write()

    def discard(self) -> None:
        """Leave nothing behind where nothing was before."""
        if not self._was_there:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        try:
            with replacing(self._path, mode=0o600) as file:
                file.write(msgspec.json.format(msgspec.json.encode(self._manifest), indent=2) + b"\n")
        except OSError as error:
            logger.warning("cannot write %s: %s; the job goes on without", self._path, error.strerror or error)
            with contextlib.suppress(OSError):  # what is there tells of an earlier run, and would be taken for this one
                self._path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<Ledger {self._path.name}: {self._manifest.state}, run {len(self._manifest.runs)}>"


def _content(path: Path) -> tuple[str | None, int | None]:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
    except OSError:
        return None, None


def _short_hash(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
