"""gateway: nothing that a client sends makes it ask anybody but the operator's providers: a corpus of addresses in
every place that a server could take for one, and a private listener that must hear nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastllm.gateway.catalog import Catalog
from fastllm.options import Route, Upstream
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse
from kits.beside import opened
from kits.gateway import CHAT, connection, head_and_body, served

FORMS = [
    "http://127.0.0.1:{port}/x", "http://localhost:{port}/x", "https://127.0.0.1:{port}/", "HTTP://127.0.0.1:{port}",
    "http://[::1]:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://0:{port}/",
    "http://0x7f000001:{port}/", "http://0x7f.0.0.1:{port}/", "http://2130706433:{port}/", "http://0177.0.0.1:{port}/",
    "http://127.1:{port}/", "http://openai.test@127.0.0.1:{port}/", "http://127.0.0.1:{port}#@openai.test/",
    "http://127.0.0.1:{port}\\@openai.test/", "//127.0.0.1:{port}/x", "http:127.0.0.1:{port}", "http:/127.0.0.1:{port}",
    "http://127.0.0.1:{port}/%2e%2e", "http://\u2460\u2461\u2466.0.0.1:{port}/", "http://127\u30020.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET", "ws://127.0.0.1:{port}/", "http://169.254.169.254/latest/meta-data/",
    "http://metadata.google.internal/", "http://10.0.0.1/", "file:///etc/passwd", "file://localhost/etc/passwd",
    "data:text/plain,x", "os.environ/OPENAI_API_KEY", "/etc/passwd", "../../etc/passwd", "\\\\127.0.0.1\\x", "jar:http://a!/",
]  # fmt: skip
REFUSED = ("api_base", "api_key", "base_url", "extra_headers", "extra_query", "user_config", "callbacks")
FIELDS = (
    "url", "endpoint", "webhook", "webhook_url", "callback_url", "proxy", "http_proxy", "host", "api_host",
    "api_version",
    "azure_endpoint", "organization", "custom_llm_provider", "base_model", "target", "upstream", "server", "user",
    "provider",
    "redirect", "input_file_id", "file_id", "conversation", "prompt_cache_key", "safety_identifier", "service_tier",
)  # fmt: skip
HEADERS = (
    "x-forwarded-host", "x-forwarded-server", "x-base-url", "x-api-base", "openai-base-url", "x-openai-api-base",
    "base-url",
    "helicone-target-url",
    "helicone-openai-api-base", "x-portkey-custom-host", "x-litellm-api-base", "x-upstream-url",
    "x-original-url", "x-rewrite-url", "x-host", "forwarded", "referer", "destination", "location", "x-target", "proxy",
    "x-proxy", "content-location", "x-forwarded-for", "true-client-ip", "openai-organization", "openai-project", "via",
    "anthropic-beta", "anthropic-version", "openai-beta", "x-request-id",
)  # fmt: skip


def parts(url: str) -> list[dict[str, Any]]:
    """Contents that are addresses, in the words of chat."""
    return [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": url},
        {"type": "file", "file": {"file_id": url}}, {"type": "file", "file": {"file_data": url, "filename": url}},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "video_url", "video_url": {"url": url}}, {"type": "audio_url", "audio_url": {"url": url}},
    ]  # fmt: skip


def asked_with(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Requests with an address in every place of a body."""
    hello = [{"role": "user", "content": "hello"}]
    chat = {"model": "m", "messages": hello}
    found: list[tuple[str, dict[str, Any]]] = [(CHAT, {**chat, name: url}) for name in (*REFUSED, *FIELDS)]
    found += [
        (CHAT, {**chat, name: {"api_base": url, "url": url}}) for name in ("extra_body", "metadata", "litellm_params")
    ]
    found += [(CHAT, {**chat, "fallbacks": [{"model": "m", "api_base": url}]})]
    found += [(CHAT, {**chat, "tools": [{"type": "mcp", "server_url": url, "server_label": "a"}]})]
    found += [
        (CHAT, {**chat, "model": name}) for name in (url, f"openai/{url}", f"m at {url}", f"local/{url}", f"m@{url}")
    ]
    for model in ("m", "claude", "gemini"):
        found += [(CHAT, {"model": model, "messages": [{"role": "user", "content": [part]}]}) for part in parts(url)]
        items = [
            {"type": "input_image", "image_url": url}, {"type": "input_image", "file_id": url},
            {"type": "input_file", "file_url": url}, {"type": "input_file", "file_id": url},
        ]  # fmt: skip
        found += [("/v1/responses", {"model": model, "input": [{"role": "user", "content": [item]}]}) for item in items]
        found += [("/v1/responses", {"model": model, "input": url, "previous_response_id": url})]
        sources = [{"type": "url", "url": url}, {"type": "file", "file_id": url}, {"type": "base64", "data": url}]
        blocks = [{"type": kind, "source": source} for kind in ("image", "document") for source in sources]
        message = {"model": model, "max_tokens": 5}
        found += [("/v1/messages", {**message, "messages": [{"role": "user", "content": [block]}]}) for block in blocks]
        found += [("/v1/messages", {**message, "messages": hello, "mcp_servers": [{"type": "url", "url": url}]})]
    found += [("/v1/embeddings", {"model": "m", "input": url}), ("/v1/embeddings", {"model": "m", "input": [url]})]
    found += [("/v1/moderations", {"model": "m", "input": [{"type": "image_url", "image_url": {"url": url}}]})]
    return found


class Listener:
    """What must hear nothing."""

    def __init__(self) -> None:
        self.heard = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard += 1
        writer.transport.abort()


@asynccontextmanager
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    servers = [await asyncio.start_server(made.serve, "127.0.0.1", 0)]
    made.port = servers[0].sockets[0].getsockname()[1]
    try:
        servers.append(await asyncio.start_server(made.serve, "::1", made.port))
    except OSError:
        pass  # a machine without IPv6
    try:
        yield made
    finally:
        for server in servers:
            server.close()
        assert not made.heard


OPENAIS = "https://api.openai.com/v1"  # what `openai/…` stands for, where any name may be asked for
PLACES = ("http://openai.test/v1", "http://claude.test", "http://gemini.test")


class Providers:
    """Say no to everything, and note where it was sent."""

    def __init__(self) -> None:
        self.asked: list[HTTPRequest] = []
        ends = {"m": "openai/m", "claude": "anthropic/c", "gemini": "gemini/g"}
        self.engine: dict[str, Any] = {
            "base_url": None,
            "transport": ScriptedTransport(self._answer),
            "routes": {
                name: Route(endpoints=[Upstream(model=model, base_url=base_url, api_key="k")])
                for (name, model), base_url in zip(ends.items(), PLACES, strict=True)
            },
        }

    def _answer(self, http: HTTPRequest) -> HTTPResponse:
        self.asked.append(http)
        return HTTPResponse(status=400, body=b'{"error":{"message":"no","type":"invalid_request_error"}}')

    def check(self) -> None:
        for http in self.asked:
            assert http.url.startswith(tuple(f"{place}/" for place in (*PLACES, OPENAIS))), http.url


@pytest.mark.fault("88")
@pytest.mark.parametrize("form", FORMS)
async def test_no_address_in_a_body_is_asked(form: str) -> None:
    providers = Providers()
    async with (
        listener() as private,
        served(engine=providers.engine, catalog=Catalog(("m", "claude", "gemini", "*"))) as gate,
    ):
        url = form.format(port=private.port)
        async with connection(gate.server.port) as wire:
            for path, body in asked_with(url):
                answer = await wire.ask("POST", path, body)
                assert 400 <= answer.status < 500, (path, body, answer)
                name = next((name for name in REFUSED if name in body), None)
                if name is not None:
                    assert (answer.status, answer.json()["error"]["code"]) == (400, "forbidden_field")
        providers.check()
        assert providers.asked  # what is no address to us went on as it was


@pytest.mark.fault("88")
@pytest.mark.parametrize("form", FORMS)
async def test_no_address_in_a_header_or_a_request_line_is_asked(form: str) -> None:
    providers = Providers()
    async with listener() as private, served(engine=providers.engine, catalog=Catalog(("m",))) as gate:
        url = form.format(port=private.port)
        for name in HEADERS:
            text = f"host={url}" if name == "forwarded" else url
            async with connection(gate.server.port) as wire:
                await wire.send(head_and_body("POST", CHAT, {"model": "m", "messages": []}, **{name: text}))
                assert 400 <= (await wire.head()).status < 500
        for target in (url, f"/{url}", f"/v1/models/{url}", f"/v1/responses/{url}", f"{CHAT}?api_base={url}"):
            async with connection(gate.server.port) as wire:
                await wire.send(f"POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{{}}".encode())
                assert 400 <= (await wire.head()).status < 500
        providers.check()
        kept = {"anthropic-beta", "anthropic-version", "openai-beta"}
        for http in providers.asked:
            assert not [name for name, value in http.headers.items() if url in value and name not in kept]


@pytest.mark.fault("88")
async def test_no_row_of_a_batch_names_where_it_goes(tmp_path: Path) -> None:
    providers = Providers()
    async with (
        listener() as private,
        opened(tmp_path, engine=providers.engine, models=("m",)) as gate,
        gate.client() as client,
    ):
        url = f"http://127.0.0.1:{private.port}/v1/chat/completions"
        body = {"model": "m", "messages": []}
        for line in (
            {"url": url, "body": body}, {"url": CHAT, "body": {**body, "api_base": url}},
            {"url": CHAT, "body": body, "base_url": url, "api_base": url},
            {"url": CHAT, "body": {**body, "model": url}},
        ):  # fmt: skip
            text = json.dumps({"custom_id": "a", "method": "POST", **line}).encode()
            source = await client.files.create(file=("in.jsonl", text), purpose="batch")
            batch = await client.batches.create(input_file_id=source.id, endpoint=CHAT, completion_window="24h")
            async with asyncio.timeout(10):
                while batch.status not in ("completed", "failed"):
                    await asyncio.sleep(0.005)
                    batch = await client.batches.retrieve(batch.id)
        providers.check()


@pytest.mark.fault("88")
async def test_a_provider_that_redirects_elsewhere_is_not_followed_there() -> None:
    async with listener() as private, served() as gate:
        for stream in (False, True):
            gate.mock.script([f"redirect_307_cross:http://127.0.0.1:{private.port}"] * 3)
            body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
            assert (await gate.ask(body=body)).status >= 400
