"""What a failed request held is let go of at once: errors may be kept, and no collector runs for a while in a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from fastllm import AsyncFastLLM, Limits, Retry
from fastllm.errors import LLMError, ProtocolError
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse

GOOD = b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'
NO_ANSWERS = (
    b"{" + b" " * 1000 + b"}",
    b"<html></html>",
    b'{"choices": [',
    b'{"choices": [{"message": {}}], "n": \xff}',
)


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held() -> int:
    return sum(isinstance(thing, HTTPRequest | HTTPResponse) for thing in gc.get_objects())


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("attempts", [1, 3])
async def test_errors_of_a_batch_hold_neither_requests_nor_answers(attempts: int) -> None:
    bodies = (body for bad in NO_ANSWERS * 20 for body in (GOOD, GOOD, bad))  # fewer, or it would be an outage
    transport = ScriptedTransport(lambda http: HTTPResponse(status=200, body=next(bodies), headers=[(b"a", b"b")]))
    retry = Retry(attempts=attempts, base=0.001, cap=0.001)
    kept = []
    async with AsyncFastLLM(
        base_url="http://host.example", transport=transport, retry=retry, limits=Limits(concurrency=2)
    ) as client:
        async for outcome in client.stream((f"question {n}" for n in range(60)), model="m"):
            kept.append(outcome)
            assert held() <= 8, "what is in flight"
        assert client.stats.attempts > 60 or sum(isinstance(o.error, ProtocolError) for o in kept) == 20


async def test_an_error_that_many_wait_for_is_raised_by_each(uncollected: None) -> None:
    """A refused key ends everybody with one error: what one of them lets go of is not the others'."""
    refused = HTTPResponse(status=401, body=b'{"error": {"message": "no", "type": "invalid_request_error"}}')
    transport = ScriptedTransport(lambda http: refused)
    async with AsyncFastLLM(base_url="http://host.example", transport=transport) as client:
        outcomes = [outcome async for outcome in client.stream((f"question {n}" for n in range(100)), model="m")]
    assert len(outcomes) == 100 and all(isinstance(outcome.error, LLMError) for outcome in outcomes)
