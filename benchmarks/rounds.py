"""One round of one contender, and what several of them come to."""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contenders import Contender
from contenders.work import MARK, Measured, Work
from upstream import Upstream

HERE = Path(__file__).parent
PATIENCE = 90.0  # seconds for imports and warm-up, beside the requests
# Nobody is to fetch a price list, report on its use or draw a progress bar.
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "TELEMETRY_ENABLED": "false",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "HF_HUB_OFFLINE": "1",
}


class Failed(Exception):
    """Says how a contender failed: its last line."""


@dataclass(frozen=True)
class Round:
    measured: Measured
    served: int  # by the server's count, with the warm-up
    server: float  # CPU seconds of the server


@dataclass
class Standing:
    """What a contender came to: its rounds, or why there are none."""

    contender: Contender
    version: str = ""
    rounds: list[Round] = field(default_factory=list)
    error: str = ""

    def _median(self, value: Callable[[Round], float]) -> float:
        return statistics.median(map(value, self.rounds))

    @property
    def requests(self) -> int:
        """Of a round; slow contenders are given fewer."""
        return int(self._median(lambda r: r.measured.requests))

    @property
    def cpu(self) -> float:
        """CPU µs a request."""
        return self._median(lambda r: 1e6 * r.measured.cpu / r.measured.requests)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self._median(lambda r: r.measured.requests / r.measured.seconds)

    @property
    def rss(self) -> float:
        """The most memory, in MB."""
        return self._median(lambda r: r.measured.rss / 1e6)

    @property
    def server(self) -> float:
        """Share of its core that the server was busy, as long as the contender sent."""
        return self._median(lambda r: r.server * r.measured.requests / r.measured.sent / r.measured.seconds)

    @property
    def lost(self) -> int:
        """Requests without a good answer, over all rounds."""
        return sum(r.measured.requests - r.measured.good for r in self.rounds)

    @property
    def extra(self) -> int:
        """Requests that the server saw beyond those that were to be sent, over all rounds; below 0: fewer."""
        return sum(r.served - r.measured.sent for r in self.rounds)

    def efficiency(self, in_flight: int, latency: float) -> float:
        """Share of the ideal rate, `in_flight` in every `latency` seconds."""
        return self.rate * latency / in_flight

    def as_json(self) -> dict[str, object]:
        return {"name": self.contender.name, **{k: v for k, v in asdict(self).items() if k != "contender"}}


def client_core() -> int | None:
    """Give the core for contenders: the first, for the server has the last. None where processes cannot be pinned."""
    return min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


def many_files() -> None:
    """Let this process, and those it starts, open as many sockets as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(contender: Contender, python: Path, work: Work, server: Upstream) -> Round:
    """Run the contender's script to its end, in an environment and home directory of its own."""
    command = [str(python), f"contenders/{contender.script}.py", json.dumps(asdict(work))]
    with tempfile.TemporaryDirectory(prefix="fastllm-bench-") as home:
        pem = Path(home) / "server.pem"
        pem.write_text(server.pem)
        told = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
        told |= {"HOME": home, "SSL_CERT_FILE": str(pem), "REQUESTS_CA_BUNDLE": str(pem), **QUIET}
        served, spent = server.served(), server.cpu()
        try:
            done = subprocess.run(
                command, cwd=HERE, env=told, capture_output=True, text=True, timeout=PATIENCE + 4 * work.seconds
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"did not end within {error.timeout:.0f} s") from None
    found = re.findall(f"^{MARK}(.*)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise Failed(lines[-1][:300])
    return Round(Measured(**json.loads(found[-1])), server.served() - served, server.cpu() - spent)
