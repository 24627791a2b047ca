"""contrib.otel: spans and metrics of requests after the GenAI conventions, below the caller's span, without prompts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fastllm import AsyncFastLLM, FastLLM, LLMError, Retry
from fastllm.contrib.otel import SECONDS, TOKENS, OpenTelemetry, place_of
from fastllm.contrib.otel_export import exporters
from fastllm.engine.events import RequestDone
from fastllm.errors import ConfigError
from fastllm.testing import MockConfig, MockServer, serve_in_thread
from fastllm.types import Request
from kits.gateway import BODY, KEY, served

CANARY = "canary-4711"
MESSAGES: Any = [{"role": "user", "content": CANARY}]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Told:
    """What was told to OpenTelemetry."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def observer(self, **more: Any) -> OpenTelemetry:
        return OpenTelemetry(tracer_provider=self.tracers, meter_provider=self.meters, **more)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        found = [m for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for m in s.metrics]
        return [point for metric in found if metric.name == name for point in metric.data.data_points]

    def close(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


@asynccontextmanager
async def client(told: Told, mock: MockConfig | None = None, **more: Any) -> AsyncIterator[AsyncFastLLM]:
    async with MockServer(mock) as server:
        observer = told.observer(base_url=server.base_url)
        async with AsyncFastLLM(base_url=server.base_url, api_key="k-secret", observers=[observer], **more) as made:
            yield made


async def test_an_answer_is_a_span_with_the_conventions_attributes(told: Told) -> None:
    async with client(told) as llm:
        answer = await llm.chat.completions.create(model="m", messages=MESSAGES)
        (span,) = told.spans
        assert (span.name, span.kind, span.status.status_code) == ("chat m", SpanKind.CLIENT, StatusCode.UNSET)
        attributes = dict(span.attributes or {})
        assert attributes.pop("server.port")
        assert attributes == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "m",
            "gen_ai.response.model": answer.model,
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
            "server.address": "127.0.0.1",
            "fastllm.attempts": 1,
            "fastllm.cache": "miss",
        }
        assert span.start_time is not None and span.end_time is not None and span.start_time <= span.end_time


async def test_the_span_stands_below_the_callers(told: Told) -> None:
    tracer = told.tracers.get_tracer("test")
    async with client(told) as llm:
        with tracer.start_as_current_span("mine") as mine:
            await llm.chat.completions.create(model="m", messages=MESSAGES)
            usage = {"include_usage": True}
            stream = await llm.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options=usage)
            assert [chunk async for chunk in stream]
            await asyncio.gather(*(llm.embeddings.create(model="e", input=str(n)) for n in range(3)))
    spans = [span for span in told.spans if span.name != "mine"]
    assert [span.name for span in spans] == ["chat m"] * 2 + ["embeddings e"] * 3
    assert all(span.parent is not None and span.parent.span_id == mine.get_span_context().span_id for span in spans)
    assert (spans[1].attributes or {})["gen_ai.usage.output_tokens"]


def test_so_it_does_with_the_client_that_has_a_thread_of_its_own(told: Told) -> None:
    tracer = told.tracers.get_tracer("test")
    with (
        serve_in_thread(MockConfig()) as server,
        FastLLM(base_url=server.base_url, api_key="k", observers=[told.observer()]) as llm,
        tracer.start_as_current_span("mine") as mine,
    ):
        llm.chat.completions.create(model="m", messages=MESSAGES)
    span = told.spans[0]
    assert span.parent is not None and span.parent.span_id == mine.get_span_context().span_id


async def test_an_error_is_told_by_its_class_and_never_by_its_words(told: Told) -> None:
    mock = MockConfig(error_rate=1.0, errors=("500",))
    async with client(told, mock, retry=Retry(attempts=2, base=0.001, cap=0.002)) as llm:
        with pytest.raises(LLMError):
            await llm.chat.completions.create(model="m", messages=MESSAGES)
    (span,) = told.spans
    attributes = dict(span.attributes or {})
    assert span.status.status_code is StatusCode.ERROR and span.status.description is None and not span.events
    assert attributes["error.type"] == "InternalServerError" and attributes["http.response.status_code"] == 500
    assert attributes["fastllm.attempts"] == 2
    (point,) = told.points("gen_ai.client.operation.duration")
    assert point.attributes["error.type"] == "InternalServerError"
    assert not told.points("gen_ai.client.token.usage")


async def test_what_comes_from_the_cache_uses_no_tokens(told: Told) -> None:
    async with client(told, cache="memory") as llm:
        for _ in range(2):
            await llm.chat.completions.create(model="m", messages=MESSAGES)
    first, second = (dict(span.attributes or {}) for span in told.spans)
    assert (first["fastllm.cache"], second["fastllm.cache"]) == ("miss", "hit")
    assert "gen_ai.usage.input_tokens" in first and "gen_ai.usage.input_tokens" not in second
    assert sum(point.count for point in told.points("gen_ai.client.operation.duration")) == 2
    assert sum(point.count for point in told.points("gen_ai.client.token.usage")) == 2


async def test_the_metrics_have_the_conventions_names_units_and_buckets(told: Told) -> None:
    async with client(told) as llm:
        answer = await llm.chat.completions.create(model="m", messages=MESSAGES)
    (duration,) = told.points("gen_ai.client.operation.duration")
    assert duration.explicit_bounds == SECONDS and duration.count == 1
    tokens = {point.attributes["gen_ai.token.type"]: point for point in told.points("gen_ai.client.token.usage")}
    assert tokens["input"].sum == answer.usage.prompt_tokens and tokens["output"].sum == answer.usage.completion_tokens
    assert tokens["input"].explicit_bounds == TOKENS == (
        1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
    )  # fmt: skip


async def test_a_stream_that_is_left_says_so(told: Told) -> None:
    async with client(told, MockConfig(token_rate=50.0)) as llm:
        stream = await llm.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.aclose()
    (span,) = told.spans
    assert (span.attributes or {})["fastllm.left"] is True and span.status.status_code is StatusCode.UNSET


async def test_names_that_strangers_make_up_are_no_labels_of_metrics(told: Told) -> None:
    observer = told.observer(strangers=True)
    mock = MockConfig(any_model=False, models=("m",))
    async with served(mock, engine={"observers": [observer]}) as gate:
        for number in range(5):
            assert (await gate.ask(body={**BODY, "model": f"made-up-{number}"})).status == 404
        assert (await gate.ask()).status == 200
    labels = {point.attributes["gen_ai.request.model"] for point in told.points("gen_ai.client.operation.duration")}
    assert labels == {"other", "m"}


async def test_a_requests_traceparent_is_continued_through_the_gateway(told: Told) -> None:
    observer = told.observer(strangers=True)
    serving = observer.serving()
    body = {**BODY, "messages": MESSAGES}
    more: Any = {"engine": {"observers": [observer]}, "around": serving.around}
    async with served(key=KEY, **more) as gate:
        answer = await gate.ask(body=body, traceparent=PARENT, authorization=f"Bearer {KEY}")
        assert answer.status == 200
        await gate.idle()
        inner, outer = told.spans
        assert inner.parent is not None and outer.parent is not None
        assert (inner.name, inner.kind, outer.name, outer.kind) == (
            "chat m", SpanKind.CLIENT, "POST /chat/completions", SpanKind.SERVER,
        )  # fmt: skip
        assert f"{outer.parent.span_id:016x}" == "b7ad6b7169203331"
        assert f"{inner.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
        assert inner.parent.span_id == outer.context.span_id
        attributes = dict(outer.attributes or {})
        assert attributes["http.response.status_code"] == 200 and attributes["fastllm.key"] == "master"
        streamed = await gate.ask(body={**body, "stream": True}, authorization=f"Bearer {KEY}")
        assert streamed.events[-1] == b"data: [DONE]"
        assert (await gate.ask(authorization="Bearer wrong")).status == 401
        assert (await gate.get("/health")).status == (await gate.get("/v1/health/ready")).status == 200
        await gate.idle()
        inner, outer, refused = told.spans[2:]
        assert inner.parent is not None and inner.parent.span_id == outer.context.span_id and outer.parent is None
        assert (refused.attributes or {})["http.response.status_code"] == 401
        assert trace.get_current_span() is trace.INVALID_SPAN
        everything = "".join(span.to_json() for span in told.spans)
        assert CANARY not in everything and KEY not in everything and "upstream-key" not in everything


async def test_work_that_outlives_its_request_has_a_trace_of_its_own_with_a_link(told: Told) -> None:
    """As the rows of a batch do: hundred thousand spans in the trace of the request that began it are of no use."""
    observer = told.observer()
    answered, rows = asyncio.Event(), []
    request = Request(body=b"{}", model="m", path="/chat/completions")
    done = RequestDone(request=request, response=None, error=LLMError("no"), seconds=0.5)

    async def row() -> None:
        observer(done)
        await answered.wait()
        observer(done)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        rows.append(asyncio.create_task(row()))
        await asyncio.sleep(0)

    scope: Any = {"type": "http", "method": "POST", "path": "/batches", "headers": []}
    nothing: Any = None
    await observer.serving().around(app)(scope, nothing, nothing)
    answered.set()
    await rows[0]
    during, request_span, after = told.spans
    assert during.parent is not None and during.parent.span_id == request_span.context.span_id
    assert after.parent is None and [link.context.span_id for link in after.links] == [request_span.context.span_id]
    assert after.end_time is not None and after.start_time is not None
    assert after.end_time - after.start_time == 500_000_000


async def test_a_wrong_traceparent_begins_a_trace_of_its_own(told: Told) -> None:
    serving = told.observer().serving()
    async with served(around=serving.around) as gate:
        assert (await gate.ask(traceparent="00-nonsense-\xff")).status == 200
        await gate.idle()
        (span,) = told.spans
        assert span.parent is None


@pytest.mark.parametrize(
    ("endpoint", "base_url", "provider", "address"),
    [
        ("openai/gpt-4o", None, "openai", "api.openai.com"),
        ("anthropic/claude", "http://elsewhere/v1", "anthropic", "api.anthropic.com"),
        ("gemini/flash", None, "gcp.gemini", "generativelanguage.googleapis.com"),
        ("mistral/large", None, "mistral_ai", "api.mistral.ai"),
        ("local/smollm2", None, "local", None),
        ("llama at gpu:8000 (OURS)", None, "openai", "gpu"),
        ("m", "http://proxy:9/v1", "openai", "proxy"),
        ("m", None, "openai", None),
        ("m", "http://[broken", "openai", None),
    ],
)
def test_where_a_request_went_is_told_by_its_endpoints_name(
    endpoint: str, base_url: str | None, provider: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    found = place_of(endpoint, base_url)
    assert (found["gen_ai.provider.name"], found.get("server.address")) == (provider, address)


def test_exporters_are_named_by_the_standard_variables() -> None:
    def names(**environ: str) -> list[str]:
        return [found.__name__ for signal in ("traces", "metrics") for found in exporters(signal, environ)]

    assert names() == ["OTLPSpanExporter", "OTLPMetricExporter"]
    assert names(OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="console") == ["ConsoleMetricExporter"]
    for wrong, says in (
        ({"OTEL_TRACES_EXPORTER": "nonsense"}, "pip install opentelemetry-exporter-nonsense"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}, "http/protobuf or grpc"),
    ):
        with pytest.raises(ConfigError, match=says):
            names(**wrong)


@pytest.mark.parametrize(("missing", "module"), [("opentelemetry", "otel"), ("opentelemetry.sdk", "otel_export")])
def test_without_its_packages_the_message_says_what_to_install(missing: str, module: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import fastllm.contrib.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra" in done.stderr and "pip install 'fastllm[otel]'" in done.stderr


def test_a_client_needs_no_sdk() -> None:
    code = "import sys; import fastllm.contrib.otel; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "opentelemetry.sdk" not in done.stdout.split()
