"""gateway: operations on the wire: bytes in and out, streams, headers, paths, errors in the dialect of the route."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from fastllm import __version__
from fastllm.gateway.catalog import Catalog
from fastllm.options import Route, Upstream
from fastllm.testing import MockConfig, checksum_of
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPResponse
from kits.gateway import BODY, CHAT, connection, head_and_body, served

MESSAGE = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("path", "body", "object"),
    [
        ("/chat/completions", BODY, "chat.completion"),
        ("/completions", {"model": "m", "prompt": "hello"}, "text_completion"),
        ("/embeddings", {"model": "m", "input": ["a", "b"]}, "list"),
        ("/moderations", {"model": "m", "input": "a"}, None),
        ("/responses", {"model": "m", "input": "a"}, "response"),
        ("/messages?beta=true", MESSAGE, None),
    ],
)
async def test_every_operation_has_its_path_with_and_without_v1(prefix: str, path: str, body: Any, object: Any) -> None:
    async with served() as gateway:
        answer = await gateway.ask(prefix + path, body)
        assert answer.status == 200 and answer.reason == "OK", answer.body
        assert answer.headers["content-type"] == "application/json"
        assert answer.json().get("object") == object
        await gateway.idle()


async def test_an_answer_goes_out_byte_for_byte_and_says_how_it_came_about() -> None:
    async with served() as gateway:
        answer = await gateway.ask(x_request_id="mine-1")
        direct = await gateway.mock_answer()
        assert answer.body == direct
        told = {name: value for name, value in answer.headers.items() if name.startswith("x-")}
        assert float(told.pop("x-fastllm-overhead-ms")) >= 0.0
        assert told == {
            "x-request-id": "mine-1", "x-fastllm-request-id": "mine-1", "x-fastllm-provider": "m",
            "x-fastllm-attempts": "1", "x-fastllm-cache": "off",
        }  # fmt: skip


async def test_a_body_goes_to_the_provider_byte_for_byte_with_what_nobody_here_knows() -> None:
    body = b'{ "unknown": {"a":[1.50, null]},\n "messages":[{"content":"hi","role":"user"}] ,"model":"m"}'
    async with served() as gateway:
        seen: list[bytes] = []
        send = gateway.engine.transport.send

        async def spy(http: Any, timeout: Any) -> Any:
            seen.append(http.body)
            return await send(http, timeout)

        gateway.engine.transport.send = spy  # type: ignore[method-assign]
        assert (await gateway.ask(body=body)).status == 200
        assert seen == [body]


async def test_a_stream_has_whole_events_with_line_feeds_and_ends_with_done() -> None:
    async with served(MockConfig(token_rate=400.0)) as gateway:
        async with connection(gateway.server.port) as wire:
            await wire.send(head_and_body("POST", CHAT, {**BODY, "stream": True}))
            head = await wire.head()
            assert head.headers["content-type"].startswith("text/event-stream")
            assert head.headers["cache-control"] == "no-cache" and head.headers["x-accel-buffering"] == "no"
            pieces = [piece async for piece in wire.pieces()]
        assert len(pieces) > 3
        for piece in pieces:
            assert piece.startswith(b"data: ") and piece.endswith(b"\n\n") and b"\r" not in piece
        assert pieces[-1] == b"data: [DONE]\n\n"
        await gateway.idle()


async def test_a_reader_that_strips_every_read_and_splits_at_blank_lines_loses_nothing() -> None:
    """As `vllm bench serve` reads: comments and events must be blocks of their own, and none cut by a write."""
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    fast = MockConfig(token_rate=50.0)
    async with served(fast, keep_alive=0.005) as gateway, connection(gateway.server.port) as wire:
        await wire.send(head_and_body("POST", CHAT, body))
        head, buffer, texts, comments = await wire.head(), "", [], 0
        assert (head.status, head.reason) == (200, "OK")
        async for piece in wire.pieces():
            buffer += piece.decode().strip() + "\n\n"
            *blocks, buffer = buffer.split("\n\n")
            for block in blocks:
                if block.startswith(":"):
                    comments += 1
                    assert "data" not in block
                elif block and (data := block.removeprefix("data: ")) != "[DONE]":
                    chunk = msgspec.json.decode(data)
                    assert all("delta" in choice for choice in chunk["choices"])
                    texts += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
        assert chunk["choices"] == [] and chunk["usage"]["completion_tokens"] > 0
        assert comments and "".join(texts).startswith(checksum_of({**BODY, "ignore_eos": True}))


@pytest.mark.parametrize("asked", [None, {"include_usage": False}, {"include_usage": True}, {"continuous": 1}])
async def test_the_usage_of_a_stream_is_ours_and_the_clients_only_if_it_asked(asked: Any) -> None:
    options = {} if asked is None else {"stream_options": asked}
    async with served() as gateway:
        answer = await gateway.ask(body={**BODY, "stream": True, **options})
        wanted = bool(asked and asked.get("include_usage"))
        assert (b'"choices":[],"usage"' in answer.body.replace(b" ", b"")) is wanted, answer.body[-300:]
        await gateway.idle()
        usage = gateway.records[-1].usage
        assert usage is not None and usage.prompt_tokens > 0 and usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("path", "body", "first", "last"),
    [
        ("/v1/responses", {"model": "m", "input": "hi"}, b"event: response.created", b"event: response.completed"),
        ("/v1/messages", MESSAGE, b"event: message_start", b"event: message_stop"),
    ],
)
async def test_events_with_names_keep_them(path: str, body: Any, first: bytes, last: bytes) -> None:
    async with served() as gateway:
        events = (await gateway.ask(path, {**body, "stream": True})).events
        assert events[0].startswith(first) and events[-1].startswith(last)
        assert all(b"\ndata: {" in event for event in events)


async def test_a_quiet_stream_is_kept_alive_by_comments_of_their_own() -> None:
    async with served(keep_alive=0.05, engine={"api_key": "k"}) as gateway:
        gateway.mock.script(["stream_stall"])
        async with connection(gateway.server.port) as wire:
            await wire.send(head_and_body("POST", CHAT, {**BODY, "stream": True}))
            await wire.head()
            pieces = wire.pieces()
            seen = []
            async with asyncio.timeout(10):
                while seen.count(b":\n\n") < 2:
                    seen.append(await anext(pieces))
            assert seen[0].startswith(b"data: ")
        await gateway.idle()


@pytest.mark.fault("84")
async def test_an_error_inside_a_stream_is_an_event_of_the_dialect_and_no_done_follows() -> None:
    async with served() as gateway:
        gateway.mock.script(["stream_error_event", "stream_truncated"])
        for _ in range(2):
            answer = await gateway.ask(body={**BODY, "stream": True})
            assert answer.status == 200 and b"[DONE]" not in answer.body
            last = answer.events[-1]
            assert last.startswith(b'data: {"error":{"message":')
        gateway.mock.script(["stream_truncated"])
        answer = await gateway.ask("/v1/messages", {**MESSAGE, "stream": True})
        assert answer.events[-1].startswith(b'event: error\ndata: {"type":"error"'), answer.body
        await gateway.idle()
        assert [record.status for record in gateway.records] == [500, 502, 502]


@pytest.mark.fault("84")
async def test_what_fails_before_the_first_byte_is_tried_again_and_nobody_sees_it() -> None:
    async with served() as gateway:
        gateway.mock.script(["500", "reset", None])
        answer = await gateway.ask(body={**BODY, "stream": True})
        assert answer.status == 200 and answer.headers["x-fastllm-attempts"] == "3"


async def test_azures_path_names_the_model() -> None:
    async with served() as gateway:
        path = "/openai/deployments/my-gpt/chat/completions?api-version=2026-01-01"
        answer = await gateway.ask(path, {"messages": BODY["messages"]})
        assert answer.json()["model"] == "my-gpt"
        assert (await gateway.ask("/openai/v1/chat/completions")).status == 200


async def test_a_request_without_a_model_gets_the_default_one() -> None:
    async with served(catalog=Catalog((), default="usual")) as gateway:
        body = {"messages": BODY["messages"]}
        answer = await gateway.ask(body=body)
        assert answer.json()["choices"][0]["message"]["content"].startswith(checksum_of({**body, "model": "usual"}))
    async with served() as gateway:
        refused = await gateway.ask(body=body)
        assert (refused.status, refused.json()["error"]["param"]) == (400, "model")


async def test_models_are_listed_and_may_have_slashes() -> None:
    async with served(catalog=Catalog(("a/b", "c", "x/*"))) as gateway:
        listed = (await gateway.get("/v1/models")).json()
        assert [entry["id"] for entry in listed["data"]] == ["a/b", "c"] and listed["object"] == "list"
        for path in ("/v1/models/a/b", "/models/a%2Fb", "/v1/models/x/any"):
            answer = await gateway.get(path)
            assert answer.status == 200 and answer.json()["object"] == "model", path
        missing = await gateway.get("/v1/models/nope")
        assert (missing.status, missing.json()["error"]["code"]) == (404, "model_not_found")
        refused = await gateway.ask(body={**BODY, "model": "nope"})
        assert (refused.status, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert gateway.mock.stats.requests == 0


@pytest.mark.fault("88")
@pytest.mark.parametrize("name", ["local//etc/passwd", "local/../x", "local:./a.gguf", "local/~/m.gguf"])
async def test_no_pattern_lets_a_client_name_a_file(name: str) -> None:
    assert not Catalog(("*",)).serves(name)
    assert Catalog((name,)).serves(name)
    assert Catalog(("local/*",)).serves("local/smollm2")


async def test_errors_are_json_in_the_dialect_of_the_route_on_everything() -> None:
    async with served(body_bytes=2000) as gateway:
        for path, wrong in (("/v1/nothing", 404), (CHAT, 405)):
            answer = await gateway.get(path)
            assert answer.status == wrong
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert (await gateway.get(CHAT)).headers["allow"] == "POST, OPTIONS"
        large = await gateway.ask(body={**BODY, "x": "y" * 3000})
        assert (large.status, large.json()["error"]["code"]) == (413, "request_too_large")
        bad = await gateway.ask(body=b"{nonsense")
        assert (bad.status, bad.json()["error"]["type"]) == (400, "invalid_request_error")
        for path, body, status in (
            ("/v1/messages", b"{", 400),
            ("/v1/messages", {**MESSAGE, "x": "y" * 3000}, 413),
            ("/v1/messages/x", b"", 404),
        ):  # fmt: skip
            answer = await gateway.ask(path, body)
            assert answer.status == status and answer.json()["type"] == "error"
            assert answer.json()["request_id"] == answer.headers["x-request-id"] == answer.headers["request-id"]


async def test_head_and_options_are_answered() -> None:
    async with served() as gateway:
        head = await gateway.get("/v1/models", method="HEAD")
        assert head.status == 200 and int(head.headers["content-length"]) > 10 and head.body == b""
        options = await gateway.get(CHAT, method="OPTIONS")
        assert (options.status, options.headers["allow"]) == (204, "POST, OPTIONS")
        assert "content-length" not in options.headers  # RFC 9110, 8.6
        assert "access-control-allow-origin" not in options.headers


@pytest.mark.parametrize(
    ("fault", "status", "again"),
    [
        ("400", 400, None), ("401", 502, "false"), ("404", 404, None), ("413", 413, None), ("422", 422, None),
        ("429:insufficient_quota", 429, "false"), ("500", 500, "false"), ("503", 503, "false"), ("529", 529, "false"),
        ("reset", 502, "false"), ("empty", 502, "false"),
    ],
)  # fmt: skip
async def test_a_providers_error_keeps_its_status_where_that_does_not_mislead(
    fault: str, status: int, again: str | None
) -> None:
    async with served() as gateway:
        gateway.mock.script([fault] * 5)
        answer = await gateway.ask()
        assert answer.status == status, answer.body
        assert answer.headers.get("x-should-retry") == again
        assert "upstream-key" not in answer.body.decode()


async def test_anthropics_529_stays_what_it_is() -> None:
    async with served() as gateway:
        gateway.mock.script(["529"] * 5)
        answer = await gateway.ask("/v1/messages", MESSAGE)
        assert answer.status == 529 and answer.json()["error"]["type"] == "overloaded_error"


async def test_tokens_are_counted_without_asking_anybody_where_nobody_can_be_asked() -> None:
    async with served() as gateway:
        answer = await gateway.ask("/v1/messages/count_tokens", {"model": "m", "messages": MESSAGE["messages"]})
        assert answer.status == 200 and answer.json()["input_tokens"] > 5
        assert gateway.mock.stats.requests == 0


@pytest.mark.fault("88")
@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "extra_headers", "callbacks", "user_config"])
async def test_no_field_says_where_a_request_goes_or_as_whom(field: str) -> None:
    async with served() as gateway:
        answer = await gateway.ask(body={**BODY, field: "http://169.254.169.254/"})
        assert (answer.status, answer.json()["error"]["code"]) == (400, "forbidden_field")
        assert gateway.mock.stats.requests == 0


@pytest.mark.fault("89")
async def test_of_the_clients_headers_only_the_versions_go_on() -> None:
    async with served() as gateway:
        seen: list[dict[str, str]] = []
        send = gateway.engine.transport.send

        async def spy(http: Any, timeout: Any) -> Any:
            seen.append(dict(http.headers))
            return await send(http, timeout)

        gateway.engine.transport.send = spy  # type: ignore[method-assign]
        sent = {
            "authorization": "Bearer client-secret", "cookie": "a=b", "x_forwarded_for": "1.2.3.4", "te": "trailers",
            "connection": "keep-alive, x-secret", "x_secret": "1", "proxy_authorization": "x", "forwarded": "for=x",
            "openai_organization": "org", "anthropic_beta": "b-1", "anthropic_version": "v-1", "openai_beta": "o-1",
        }  # fmt: skip
        assert (await gateway.ask(**sent)).status == 200
        assert seen == [
            {
                "authorization": "Bearer upstream-key", "content-type": "application/json",
                "accept": "application/json, text/event-stream", "user-agent": f"fastllm/{__version__}",
                "anthropic-version": "v-1", "anthropic-beta": "b-1", "openai-beta": "o-1",
            }
        ]  # fmt: skip


async def test_a_models_name_cannot_write_headers() -> None:
    async with served() as gateway:
        answer = await gateway.ask(body={**BODY, "model": "a\r\nset-cookie: x\u20ac"})
        assert answer.status == 200 and "set-cookie" not in answer.headers
        assert answer.headers["x-fastllm-provider"] == "a??set-cookie: x?"


# Anthropic behind it


def _behind(handler: Any) -> dict[str, Any]:
    """An engine whose one route leads to Anthropic's dialect, played by a function."""
    upstream = Upstream(model="anthropic/claude", base_url="http://anthropic.test", api_key="sk-ant-upstream")
    return {"base_url": None, "transport": ScriptedTransport(handler), "routes": {"c": Route(endpoints=[upstream])}}


async def test_a_message_goes_to_anthropic_and_its_answer_back_byte_for_byte() -> None:
    seen: list[Any] = []
    said = (
        b'{"id":"msg_1", "type":"message","role":"assistant","model":"claude","content":[{"type":"text","text":"hi"}],'
        b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":1},"new":[1.50]}'
    )

    def handler(http: Any) -> HTTPResponse:
        seen.append(http)
        return HTTPResponse(status=200, body=said)

    sent = b'{"model":"claude" ,"max_tokens":5,"messages":[],"later":{"a":1.0}}'
    async with served(engine=_behind(handler), catalog=Catalog(("c", "claude"))) as gateway:
        headers = {"anthropic_version": "2099-01-01", "anthropic_beta": "a,b", "x_api_key": "client-key"}
        answer = await gateway.ask("/v1/messages?beta=true", sent.replace(b'"claude" ', b'"c"'), **headers)
        assert answer.status == 200 and answer.body == said
        (http,) = seen
        assert http.url == "http://anthropic.test/v1/messages"
        assert msgspec.json.decode(http.body) == msgspec.json.decode(sent)
        assert http.headers["anthropic-version"] == "2099-01-01" and http.headers["anthropic-beta"] == "a,b"
        assert http.headers["x-api-key"] == "sk-ant-upstream"


async def test_anthropic_counts_its_own_tokens_and_says_itself_what_is_wrong() -> None:
    seen: list[Any] = []
    error = {"type": "invalid_request_error", "message": "not with sk-ant-upstream"}
    answers = [
        HTTPResponse(status=200, body=b'{"input_tokens":42}'),
        HTTPResponse(status=400, body=msgspec.json.encode({"type": "error", "error": error})),
    ]

    def handler(http: Any) -> HTTPResponse:
        seen.append(http)
        return answers.pop(0)

    async with served(engine=_behind(handler)) as gateway:
        body = {"model": "c", "messages": MESSAGE["messages"]}
        answer = await gateway.ask("/v1/messages/count_tokens", body)
        assert answer.body == b'{"input_tokens":42}'
        (http,) = seen
        assert http.url == "http://anthropic.test/v1/messages/count_tokens"
        assert msgspec.json.decode(http.body)["model"] == "claude"
        wrong = await gateway.ask("/v1/messages/count_tokens", body)
        assert wrong.status == 400 and wrong.json()["error"]["type"] == "invalid_request_error"
        assert b"sk-ant-upstream" not in wrong.body
