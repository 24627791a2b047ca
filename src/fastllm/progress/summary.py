"""What a run came to: everything as data for programs, and as a few aligned lines for people."""

from __future__ import annotations

import os

import msgspec

from ..engine.holds import KnownLimit
from ..engine.stats import Snapshot
from ..policy.budget import dollars
from .words import count, duration, latency, plural


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of one run; times in seconds, ratios 0 to 1, None where there is nothing to measure. Rates are of
    what this run did, never of what was `resumed`.

    `rows` = `ok` + `failed` + `resumed` + `left`; `cached` and `joined` are part of `ok`
    (and of `misfits`, answers that did not fit the schema and were asked for again or failed).
    """

    rows: int
    ok: int
    failed: int
    cached: int
    joined: int
    misfits: int
    resumed: int
    left: int
    elapsed: float
    requests_per_second: float
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_per_second: float
    completion_tokens_per_second: float
    cost_usd: float | None
    attempts: int
    retries: int
    hedges: int
    rate_limited: int
    cache_hit_ratio: float | None
    most_in_flight: int
    errors: dict[str, int]
    latency_p50: float | None
    latency_p95: float | None
    latency_p99: float | None
    limits: dict[str, dict[str, KnownLimit]]
    output: str | None
    failures: str | None

    def to_json(self) -> bytes:
        """Give indented JSON with a final newline, for `--summary-json`."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def text(self) -> str:
        """Give a few aligned lines without colour codes."""
        return "".join(f"  {name:<10} {value}\n" if name else f"{value}\n" for name, value in self.lines())

    def lines(self) -> list[tuple[str, str]]:
        """Give (name, value) for each line; the heading has no name. What did not happen has no line."""
        now = self.ok + self.failed
        head = f"{now:,} {'row' if now == 1 else 'rows'} in {duration(self.elapsed)}"
        head += f" · {count(self.requests_per_second)}/s"
        if now != self.rows:
            head += f" · {self.rows - self.left:,} of {self.rows:,} done"
        found = [("", head)]
        found.append(("ok", _with_notes(f"{self.ok:,}", {"cached": self.cached, "joined": self.joined})))
        if self.failed:
            found.append(("failed", _with_notes(f"{self.failed:,}", self.errors)))
        if self.misfits:
            found.append(("misfits", f"{plural(self.misfits, 'answer', 'answers')} did not fit the schema"))
        if self.resumed:
            found.append(("resumed", f"{self.resumed:,} from an earlier run"))
        if self.left:
            found.append(("left", f"{self.left:,} not done; run again to go on"))
        if self.attempts:
            notes = {"retries": self.retries, "hedges": self.hedges, "rate-limited": self.rate_limited}
            found.append(
                ("sent", _with_notes(f"{self.attempts:,}", notes) + f", at most {self.most_in_flight:,} at once")
            )
        if self.prompt_tokens or self.completion_tokens:
            found.append(("tokens", f"{self._tokens()}"))
        if self.cost_usd:
            found.append(("cost", dollars(self.cost_usd)))
        if self.latency_p50 is not None and self.latency_p95 is not None and self.latency_p99 is not None:
            p50, p95, p99 = map(latency, (self.latency_p50, self.latency_p95, self.latency_p99))
            found.append(("latency", f"p50 {p50}, p95 {p95}, p99 {p99}"))
        found += [("limits", _limits(name, limits, len(self.limits))) for name, limits in self.limits.items()]
        found += [
            (name, _printable(path)) for name, path in (("output", self.output), ("failures", self.failures)) if path
        ]
        return found

    def _tokens(self) -> str:
        into, out = count(self.prompt_tokens), count(self.completion_tokens)
        rates = count(self.prompt_tokens_per_second), count(self.completion_tokens_per_second)
        return f"{into} in ({rates[0]}/s), {out} out ({rates[1]}/s)"


def summary(
    snapshot: Snapshot,
    *,
    total: int | None = None,
    already_done: int = 0,
    elapsed: float | None = None,
    output: str | os.PathLike[str] | None = None,
    failures: str | os.PathLike[str] | None = None,
) -> Summary:
    """Sum up one run from its last snapshot; `elapsed` in seconds, where it is not the engine's own."""
    seconds = snapshot.elapsed if elapsed is None else max(0.0, elapsed)
    per_second = 1.0 / seconds if seconds > 0 else 0.0
    known = snapshot.done + already_done
    rows = max(known, total or 0)
    return Summary(
        rows=rows,
        ok=snapshot.ok,
        failed=snapshot.failed,
        cached=snapshot.cached,
        joined=snapshot.joined,
        misfits=snapshot.misfits,
        resumed=already_done,
        left=rows - known,
        elapsed=seconds,
        requests_per_second=snapshot.done * per_second,
        prompt_tokens=snapshot.prompt_tokens,
        completion_tokens=snapshot.completion_tokens,
        prompt_tokens_per_second=snapshot.prompt_tokens * per_second,
        completion_tokens_per_second=snapshot.completion_tokens * per_second,
        cost_usd=snapshot.cost_usd,
        attempts=snapshot.attempts,
        retries=snapshot.retries,
        hedges=snapshot.hedges,
        rate_limited=snapshot.rate_limited,
        cache_hit_ratio=snapshot.cache_hit_ratio,
        most_in_flight=snapshot.most_in_flight,
        errors=dict(sorted(snapshot.errors.items(), key=lambda item: (-item[1], item[0]))),
        latency_p50=snapshot.p50,
        latency_p95=snapshot.p95,
        latency_p99=snapshot.p99,
        limits=snapshot.learnt,
        output=_path(output),
        failures=_path(failures),
    )


def _limits(name: str, limits: dict[str, KnownLimit], endpoints: int) -> str:
    """What the provider told or refusals taught; the endpoint's name only where there are more."""
    words = (f"{k.limit:,.10g} {unit.replace('_per_', ' a ')} ({k.source})" for unit, k in limits.items())
    return f"{_printable(name) + ': ' if endpoints > 1 else ''}{', '.join(words)}"


def _with_notes(value: str, notes: dict[str, int]) -> str:
    found = ", ".join(f"{number:,} {name}" for name, number in notes.items() if number)
    return f"{value} ({found})" if found else value


def _path(path: str | os.PathLike[str] | None) -> str | None:
    """A path as text that JSON can hold, whatever bytes the file name has."""
    return None if path is None else os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
