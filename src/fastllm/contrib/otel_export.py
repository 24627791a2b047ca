"""OpenTelemetry's SDK and exporters for a program of ours, set up by its standard variables (OTEL_*).

What they say is the SDK's own business, but for these: OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER are `otlp`
(default), `console`, `none` or whatever else is installed; OTEL_EXPORTER_OTLP_PROTOCOL is `http/protobuf` (default) or
`grpc`, which needs a package of its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from ..errors import ConfigError, MissingExtra
from .otel import OpenTelemetry

try:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError:
    raise MissingExtra("exporting needs OpenTelemetry's SDK: pip install 'fastllm[otel]'") from None

PATIENCE = 5.0  # seconds for what is left at the end
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


@contextmanager
def exporting(base_url: str | None = None, environ: Mapping[str, str] = os.environ) -> Iterator[OpenTelemetry]:
    """Give an observer whose spans and metrics are exported; at the end, what is left is sent. ConfigError where the
    variables name what is not installed."""
    resource = Resource.create() if _is_named(environ) else Resource.create({SERVICE_NAME: "fastllm"})
    spans = [found() for found in exporters("traces", environ)]
    readers = [_reader(found()) for found in exporters("metrics", environ)]
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    for exporter in spans:
        tracers.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield OpenTelemetry(tracer_provider=tracers, meter_provider=meters, base_url=base_url, strangers=True)
    finally:
        _end(tracers.shutdown, meters.shutdown)


def _end(*shutdowns: Callable[[], object]) -> None:
    """Send what is left, all at once; a collector that does not answer must not hold up the end of the program."""
    threads = [threading.Thread(target=end, name="fastllm-otel-end", daemon=True) for end in shutdowns]
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def exporters(signal: str, environ: Mapping[str, str]) -> list[Any]:
    """Give the classes of the exporters that the variables name for "traces" or "metrics"."""
    names = environ.get(f"OTEL_{signal.upper()}_EXPORTER") or "otlp"
    return [_found(name.strip(), signal, environ) for name in names.split(",") if name.strip() not in ("none", "")]


def _found(name: str, signal: str, environ: Mapping[str, str]) -> Any:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    if name == "otlp":
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
        variable = own if environ.get(own) else "OTEL_EXPORTER_OTLP_PROTOCOL"
        protocol = environ.get(variable) or "http/protobuf"
        if protocol not in _PROTOCOLS:
            raise ConfigError(f"{variable} must be {' or '.join(_PROTOCOLS)}, not {protocol!r}")
        name = _PROTOCOLS[protocol]
    for entry in entry_points(group=f"opentelemetry_{signal}_exporter", name=name):
        return entry.load()
    package = f"opentelemetry-exporter-{name.replace('_', '-')}"
    raise ConfigError(f"{variable}: no exporter {name!r} is installed; pip install {package}")


def _reader(found: Any) -> MetricReader:
    return found if isinstance(found, MetricReader) else PeriodicExportingMetricReader(found)


def _is_named(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("OTEL_SERVICE_NAME")) or "service.name" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
