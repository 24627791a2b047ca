"""Metrics of several processes of one gateway: each writes its own to a file, and whichever is asked adds them up.

Counters and histograms are sums; what is so at the moment stands there once for each process, by its number. What a
process had counted that is no more still counts, but for its last seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..errors import MissingExtra

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric
    from prometheus_client.parser import text_string_to_metric_families as families_of
    from prometheus_client.registry import Collector
except ImportError:
    raise MissingExtra("the gateway's metrics need prometheus-client: pip install 'fastllm[gateway]'") from None

logger = logging.getLogger("fastllm.gateway")

PUBLISHED = 5.0  # seconds between two writes
_ADDED = frozenset(("counter", "histogram"))


class Published(Collector):
    """The files of a folder as one; this process's is number `index`, and `own` gives what it is to hold."""

    def __init__(self, folder: Path, index: int, own: Callable[[], str]) -> None:
        self._folder = folder
        self._index = index
        self._own = own
        self._before = _read(self._path(index))  # of a process that died in this place
        self._writing = threading.Lock()

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.prom"

    def publish(self) -> None:
        """Write down what this process and the one before it in its place have counted."""
        with self._writing:
            self._write(self._own())

    def _write(self, own: str) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Fixed(summed([(None, self._before), ("", own)])))
        part = self._path(self._index).with_suffix(".part")
        part.write_bytes(generate_latest(registry))
        part.replace(self._path(self._index))

    def collect(self) -> Iterator[Metric]:
        # What is told here the others know from now on: no counter falls from one's answer to the next of another.
        with self._writing:
            own = self._own()
            with contextlib.suppress(OSError):
                self._write(own)
        texts: list[tuple[str | None, str]] = [(None, self._before), (str(self._index), own)]
        for path in sorted(self._folder.glob("*.prom")):
            if path != self._path(self._index):
                texts.append((path.stem, _read(path)))
        yield from summed(texts)

    def describe(self) -> Iterable[Metric]:
        return ()

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Publish now and then, in a thread, and once more at the end."""
        task = asyncio.create_task(self._go_on(), name="fastllm-metrics")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            await asyncio.to_thread(self._try)

    async def _go_on(self) -> None:
        while True:
            await asyncio.to_thread(self._try)
            await asyncio.sleep(PUBLISHED)

    def _try(self) -> None:
        try:
            self.publish()
        except Exception as error:  # whatever it is: the others must not take old numbers for new ones for ever
            logger.error("metrics cannot be told to the other processes: %s", type(error).__name__)


class _Fixed(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families

    def describe(self) -> Iterable[Metric]:
        return ()


def summed(texts: Iterable[tuple[str | None, str]]) -> list[Metric]:
    """Add up metrics in Prometheus' text form. Gauges get the label `process`, stay as they are where it is "", and are
    left out where it is None."""
    found: dict[str, Metric] = {}
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for process, text in texts:
        for family in families_of(text):
            total = found.get(family.name)
            if total is None:
                total = found[family.name] = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                if family.type not in _ADDED:
                    if process is not None:
                        labels = {**sample.labels, "process": process} if process else sample.labels
                        total.add_sample(sample.name, labels, sample.value)
                    continue
                place = sample.name, tuple(sorted(sample.labels.items()))
                sums[place] = sums.get(place, 0.0) + sample.value
    for (name, key), value in sums.items():
        found[_family(name, found)].add_sample(name, dict(key), value)
    return [family for family in found.values() if family.samples]


def _family(sample: str, known: dict[str, Metric]) -> str:
    """Give the name of the family that a counter's or a histogram's sample belongs to."""
    for suffix in ("_total", "_bucket", "_count", "_sum"):
        if sample.endswith(suffix) and sample.removesuffix(suffix) in known:
            return sample.removesuffix(suffix)
    return sample


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""
