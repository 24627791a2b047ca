"""OpenTelemetry: spans and metrics of requests, after the semantic conventions for generative AI.

`FastLLM(observers=[OpenTelemetry()])` makes a span `chat MODEL` of every request that has ended, below the span that is
current where it was asked, and the histograms `gen_ai.client.operation.duration` and `gen_ai.client.token.usage`. What
becomes of them is decided by the providers that the program has set up: without any, nothing. No prompt, answer, key or
message of an error is an attribute.

A span is made when its request has ended, with the times that it had: it costs nothing before, and a request that is
never answered for has none. So a provider is not told of the trace.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from .. import __version__
from ..build import address_of
from ..engine.events import Event, RequestDone
from ..errors import ConfigError, LLMError, MissingExtra
from ..policy.names import LONGEST_NAME, MOST_NAMES, OTHER
from ..providers.vendors import LOCAL, VENDORS, split_model
from ..types import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, MODERATIONS, RESPONSES, Response

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
except ImportError:
    raise MissingExtra("OpenTelemetry needs its own package: pip install 'fastllm[otel]'") from None

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(float(4**power) for power in range(14))
MOST_PLACES = 1000

_OPERATIONS = {
    CHAT: "chat", RESPONSES: "chat", MESSAGES: "chat", COMPLETIONS: "text_completion", EMBEDDINGS: "embeddings",
    MODERATIONS: "moderation",
}  # fmt: skip
_PROVIDERS = {  # where the convention has another name than we have
    "anthropic-openai": "anthropic", "azure": "azure.ai.openai", "bedrock": "aws.bedrock", "gemini": "gcp.gemini",
    "gemini-openai": "gcp.gemini", "mistral": "mistral_ai", "vertex": "gcp.vertex_ai", "xai": "x_ai",
}  # fmt: skip
_UNTRACED = ("/health", "/health/live", "/health/ready", "/metrics")

Attributes = dict[str, str | int | float | bool | tuple[str, ...]]
Message = MutableMapping[str, Any]
ASGI = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class _Answer(msgspec.Struct):
    """What is read of an answer's body."""

    model: str | None = None


_answer = msgspec.json.Decoder(_Answer)


class OpenTelemetry:
    """An observer for an engine or a client. `tracer_provider` and `meter_provider` stand in for the program's own,
    `base_url` is where requests go whose endpoint names no provider. With `strangers`, requests name models that others
    made up: metrics have the names of those that were answered for."""

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        base_url: str | None = None,
        strangers: bool = False,
    ) -> None:
        self._tracer = trace.get_tracer("fastllm", __version__, tracer_provider)
        meter = metrics.get_meter("fastllm", __version__, meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self._strangers = strangers
        self._models: set[str] = set()
        self._places: dict[str, Attributes] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestDone):
            common = self._common(event)
            self._span(event, common)
            self._measure(event, common)

    def serving(self) -> Serving:
        """Give what makes spans of the requests that a gateway serves."""
        return Serving(self._tracer)

    def _common(self, event: RequestDone) -> Attributes:
        """Give the attributes that spans and metrics share; the model is still as it was asked for."""
        request, response, error = event.request, event.response, event.error
        endpoint = response.endpoint if response is not None else error.endpoint if error is not None else ""
        found: Attributes = {
            "gen_ai.operation.name": _OPERATIONS.get(request.path, request.path.strip("/")),
            "gen_ai.request.model": request.model[:LONGEST_NAME],
            **self._place(endpoint or request.model.partition(" at ")[0]),
        }
        answered_by = _model_of(response)
        if answered_by:
            found["gen_ai.response.model"] = answered_by
        if error is not None:
            found["error.type"] = type(error).__name__
        if response is not None:
            found["fastllm.cache"] = "hit" if response.cached else "miss"
        return found

    def _span(self, event: RequestDone, common: Attributes) -> None:
        ended = time.time_ns()
        name = f"{common['gen_ai.operation.name']} {common['gen_ai.request.model']}".strip()
        began = ended - int(event.seconds * 1e9)
        above, links = _above()
        span = self._tracer.start_span(name, above, SpanKind.CLIENT, common, links, began)
        if span.is_recording():
            span.set_attributes(_told(event))
            if event.error is not None:
                span.set_status(Status(StatusCode.ERROR))  # what it says may hold a piece of what was asked
        span.end(ended)

    def _measure(self, event: RequestDone, common: Attributes) -> None:
        asked = common["gen_ai.request.model"] = self._label(str(common["gen_ai.request.model"]), event.error)
        if asked == OTHER:  # its place may be made up as well
            common.pop("server.address", None)
            common.pop("server.port", None)
        answered_by = common.get("gen_ai.response.model")
        if answered_by is not None:
            common["gen_ai.response.model"] = self._label(str(answered_by), None)
        self._duration.record(event.seconds, common)
        response = event.response
        if response is None or response.usage is None or response.cached:  # what was kept used its tokens once
            return
        del common["fastllm.cache"]
        usage = response.usage
        for kind, count in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
            if count:
                self._tokens.record(count, {**common, "gen_ai.token.type": kind})

    def _label(self, model: str, error: LLMError | None) -> str:
        if model in self._models:
            return model
        if len(self._models) >= MOST_NAMES or (error is not None and self._strangers):
            return OTHER
        self._models.add(model)
        return model

    def _place(self, endpoint: str) -> Attributes:
        found = self._places.get(endpoint)
        if found is None:
            found = place_of(endpoint, self._base_url)
            if len(self._places) < MOST_PLACES:
                self._places[endpoint] = found
        return found

    def __repr__(self) -> str:
        return f"<OpenTelemetry {len(self._models)} models>"


def _told(event: RequestDone) -> Attributes:
    """Give what only a span says of a request."""
    found: Attributes = {}
    response, error = event.response, event.error
    if event.left:
        found["fastllm.left"] = True
    if error is not None:
        found["fastllm.attempts"] = error.attempts
        if error.status_code is not None:
            found["http.response.status_code"] = error.status_code
    if response is None:
        return found
    found["fastllm.attempts"] = response.attempts
    if response.finish_reason:
        found["gen_ai.response.finish_reasons"] = (response.finish_reason,)
    if response.usage is not None and not response.cached:
        found["gen_ai.usage.input_tokens"] = response.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = response.usage.completion_tokens
        if response.usage.cached_tokens:
            found["gen_ai.usage.cache_read.input_tokens"] = response.usage.cached_tokens
    if response.cost is not None:
        found["fastllm.cost_usd"] = response.cost
    return found


def _model_of(response: Response | None) -> str:
    """Give the model that an answer names, without reading the rest of it."""
    if response is None:
        return ""
    try:
        return (_answer.decode(response.body).model or "")[:LONGEST_NAME]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def place_of(endpoint: str, base_url: str | None = None) -> Attributes:
    """Give the attributes of the place that an endpoint's name stands for: the provider, and its address if known."""
    name, _ = split_model(endpoint, VENDORS.keys() | {LOCAL})
    url: str | None = base_url
    if name is not None and name in VENDORS:
        vendor = VENDORS[name]
        try:
            url = (vendor.base_url_env and os.environ.get(vendor.base_url_env)) or address_of(vendor, os.environ)
        except ConfigError:
            url = None
    elif name == LOCAL:
        url = None
    elif " at " in endpoint:  # of a route
        url = f"http://{endpoint.rpartition(' at ')[2].partition(' (')[0]}"
    # Behind an address of somebody's own there is OpenAI's dialect, whoever speaks it.
    found: Attributes = {"gen_ai.provider.name": _PROVIDERS.get(name, name) if name else "openai"}
    try:
        parts = urlsplit(url or "")
        if parts.hostname:
            found["server.address"] = parts.hostname
            found["server.port"] = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        pass
    return found


class Ended(Protocol):
    """What is read of the gateway's record of a request."""

    method: str
    route: str
    status: int
    tenant: str


class _Serving(msgspec.Struct, eq=False):
    """One request of a gateway's client."""

    span: Span
    ended: bool = False


_serving: ContextVar[_Serving | None] = ContextVar("fastllm_serving", default=None)


def _above() -> tuple[context.Context | None, list[trace.Link]]:
    """Give where a request stands, None for what is current. A batch goes on when the request that began it has ended:
    its rows have traces of their own, with a link, because a trace of a hundred thousand spans is of no use."""
    serving = _serving.get()
    if serving is None or not serving.ended:
        return None, []
    return context.Context(), [trace.Link(serving.span.get_span_context())]


class Serving:
    """Spans of the requests that a gateway serves, of kind SERVER: `around` its app, which leaves in the scope, as
    `fastllm.record`, what became of the request.

    A request's `traceparent` is continued (`OTEL_PROPAGATORS` says which headers mean that), and what the engine asks
    for it stands below. Requests for health and metrics have none.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._fields = frozenset(name.encode() for name in propagate.get_global_textmap().fields)

    def around(self, app: ASGI) -> ASGI:
        """Give the app with a span around each request."""

        async def traced(
            scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
        ) -> None:
            if scope["type"] != "http" or scope["path"].removeprefix("/v1") in _UNTRACED:
                await app(scope, receive, send)
                return
            parent = propagate.extract(self._carrier(scope))
            span = self._tracer.start_span(scope["method"][:20], context=parent, kind=SpanKind.SERVER)
            serving = _Serving(span)
            here = _serving.set(serving)
            token = context.attach(trace.set_span_in_context(span, parent))
            try:
                await app(scope, receive, send)
            finally:
                context.detach(token)
                _serving.reset(here)
                serving.ended = True
                record = scope.get("fastllm.record")
                if record is not None:
                    _complete(span, record)
                span.end()

        return traced

    def _carrier(self, scope: Message) -> Mapping[str, str]:
        return {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in self._fields}


def _complete(span: Span, record: Ended) -> None:
    """Say on a span what became of its request."""
    if not span.is_recording():
        return
    span.update_name(f"{record.method[:20]} {record.route}".strip())
    found: Attributes = {
        "http.request.method": record.method[:20],
        "http.response.status_code": record.status,
    }
    if record.route:
        found["http.route"] = record.route
    if record.tenant:
        found["fastllm.key"] = record.tenant
    if record.status >= 500:
        found["error.type"] = str(record.status)
        span.set_status(Status(StatusCode.ERROR))
    span.set_attributes(found)
