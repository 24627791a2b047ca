"""What an endpoint refuses is left out from then on: once learnt, with one warning, and only where that is wanted."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from fastllm import AsyncFastLLM, errors as e
from fastllm.engine.call import MOST_ADAPTED
from fastllm.policy.parameters import Parameters
from fastllm.testing.clock import run_virtual
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse, Request
from kits.engine import answer, make_engine, refusal, request as plain

ASKED: dict[str, Any] = {"model": "gpt-6", "messages": [{"role": "user", "content": "hi"}]}
MESSAGE = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


def choosy(http: HTTPRequest) -> HTTPResponse:
    """A model that takes neither `max_tokens` nor `temperature`."""
    body = msgspec.json.decode(http.body)
    for name, message in (("max_tokens", MESSAGE), ("temperature", "'temperature' is not supported with this model.")):
        if name in body:
            error = {"message": message, "code": "unsupported_parameter", "param": name}
            return HTTPResponse(status=400, body=msgspec.json.encode({"error": error}))
    return answer(str(body.get("max_completion_tokens")))


async def test_it_is_learnt_once_and_remembered(caplog: pytest.LogCaptureFixture) -> None:
    transport = ScriptedTransport(choosy)
    with caplog.at_level(logging.WARNING, "fastllm"):
        async with AsyncFastLLM(base_url="http://test", api_key="k", transport=transport) as client:
            first = await client.chat.completions.create(**ASKED, max_tokens=7, temperature=0.5)
            assert (first.text, first.attempts) == ("7", 3)
            later = await asyncio.gather(
                *(client.chat.completions.create(**ASKED, max_tokens=n, temperature=0.5) for n in range(1, 9))
            )
    assert [found.text for found in later] == [str(n) for n in range(1, 9)]
    assert [found.attempts for found in later] == [1] * 8
    assert transport.requests == 3 + 8
    assert [record.getMessage() for record in caplog.records] == [
        "gpt-6: max_tokens is called max_completion_tokens there (unsupported_params='refuse' makes it an error)",
        "gpt-6: temperature is not supported there and left out (unsupported_params='refuse' makes it an error)",
    ]


async def test_requests_under_way_meanwhile_are_sent_again_too() -> None:
    async def late(http: HTTPRequest) -> HTTPResponse:
        found = choosy(http)
        await asyncio.sleep(0.01)
        return found

    async with AsyncFastLLM(base_url="http://test", api_key="k", transport=ScriptedTransport(late)) as client:
        found = await asyncio.gather(*(client.chat.completions.create(**ASKED, max_tokens=n) for n in range(1, 9)))
        assert [response.text for response in found] == [str(n) for n in range(1, 9)]
        assert client.stats.failed == 0


async def test_streams_do_it_too_and_no_retries_are_needed() -> None:
    async with AsyncFastLLM(
        base_url="http://test", api_key="k", transport=ScriptedTransport(choosy), max_retries=0
    ) as client:
        stream = await client.chat.completions.create(**ASKED, max_tokens=7, stream=True)
        assert "".join([chunk.delta async for chunk in stream]) == "7"


async def test_a_refusal_that_changes_nothing_is_the_requests_error() -> None:
    def stubborn(http: HTTPRequest) -> HTTPResponse:
        """Reads a parameter out of the text of the prompt."""
        error = {"message": "'temperature' is not supported with this model.", "code": "unsupported_parameter"}
        return HTTPResponse(status=400, body=msgspec.json.encode({"error": error}))

    transport = ScriptedTransport(stubborn)
    async with AsyncFastLLM(base_url="http://test", api_key="k", transport=transport) as client:
        with pytest.raises(e.BadRequestError):
            await client.chat.completions.create(**ASKED, temperature=0.5)
        assert transport.requests == 2  # with it and without


async def test_a_key_with_escapes_is_sent_again_once() -> None:
    transport = ScriptedTransport(choosy)
    async with AsyncFastLLM(base_url="http://test", api_key="k", transport=transport) as client:
        body = b'{"model":"gpt-6","messages":[],"\\u0074emperature":1}'
        request = Request(path="/v1/chat/completions", body=body, model="gpt-6")
        found = [outcome async for outcome in client.stream([request])]
        assert found[0].ok and transport.requests == 2


def test_whatever_a_server_says_it_comes_to_an_end() -> None:
    class Restless(Parameters):
        """Learns from everything, and what it has learnt changes every time."""

        def learn(self, request: Request, error: Exception) -> str:
            self.rules[str(len(self.rules))] = None
            return ""

        def applied(self, request: Request) -> Request:
            return msgspec.structs.replace(request, body=request.body + b" " * len(self.rules))

    async def main() -> None:
        asked = []

        def never(http: HTTPRequest) -> HTTPResponse:
            asked.append(http)
            return refusal(400)

        with pytest.raises(e.BadRequestError):
            await make_engine(never, parameters=Restless()).execute(plain())
        assert len(asked) == 1 + MOST_ADAPTED

    run_virtual(main)


async def test_it_can_be_switched_off() -> None:
    transport = ScriptedTransport(choosy)
    async with AsyncFastLLM(
        base_url="http://test", api_key="k", transport=transport, unsupported_params="refuse"
    ) as client:
        with pytest.raises(e.UnsupportedParameterError) as caught:
            await client.chat.completions.create(**ASKED, max_tokens=7)
        assert caught.value.param == "max_tokens" and transport.requests == 1


def test_a_wrong_word_is_refused() -> None:
    with pytest.raises(e.ConfigError, match="unsupported_params must be 'adapt' or 'refuse', not 'drop'"):
        AsyncFastLLM(unsupported_params="drop")  # type: ignore[arg-type]
