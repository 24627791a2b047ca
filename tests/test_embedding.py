"""client.embed, and embeddings in bulk by stream and run, over real sockets."""

from __future__ import annotations

import asyncio
import json
import sys
from array import array
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from fastllm import AsyncFastLLM, ConfigError, FastLLM, InMemoryCache, InvalidRequestError, MissingExtra
from fastllm.answers import Embedding
from fastllm.testing import MockConfig, serve_in_thread

MODEL = "mock-embedding"
TEXTS = [f"text number {i} {'é' * (i % 7)}" for i in range(700)]


@pytest.fixture(params=["float", "base64"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig(max_inputs=96, dimensions=8)) as running:
        yield running


def client(server: Any, **options: Any) -> AsyncFastLLM:
    return AsyncFastLLM(base_url=server.base_url, api_key="k", **options)


async def alone(server: Any, text: Any) -> Any:
    """The vector that one request by itself gets."""
    async with client(server) as one:
        answer = await one.embeddings.create(model=MODEL, input=text)
        return answer.data[0].embedding


async def test_the_vectors_are_those_of_single_requests_in_the_order_of_the_inputs(server: Any, form: Any) -> None:
    async with client(server) as many:
        vectors = await many.embed(TEXTS, model=MODEL, encoding_format=form)
        requests = many.stats.attempts
    assert len(vectors) == len(TEXTS)
    assert vectors.to_numpy().shape == (700, 8)
    assert vectors.to_numpy().dtype == numpy.float32
    for i in (0, 1, 95, 96, 350, 699):
        assert vectors[i].tolist() == pytest.approx(await alone(server, TEXTS[i]), abs=1e-6)
    assert [vector.tolist() for vector in vectors[3:5]] == vectors.to_numpy()[3:5].tolist()
    assert requests <= 3 + 8 + 3  # three packs of 256 that were too many, and what they made
    assert vectors.usage.prompt_tokens > 700
    assert not vectors.errors


async def test_what_cannot_be_embedded_is_an_error_beside_the_vectors_of_the_others(server: Any) -> None:
    inputs: list[Any] = ["a", "", [1, 2, 3], 7, None, ["text"], "b"]
    async with client(server) as many:
        vectors = await many.embed(inputs, model=MODEL)
    assert sorted(vectors.errors) == [1, 3, 4, 5]
    assert "inputs[1]" in str(vectors.errors[1])
    assert vectors[2].tolist() == pytest.approx(await alone(server, [1, 2, 3]), abs=1e-6)
    assert vectors[6].tolist() == pytest.approx(await alone(server, "b"), abs=1e-6)
    with pytest.raises(InvalidRequestError, match=r"inputs\[3\]"):
        vectors[3]
    with pytest.raises(InvalidRequestError, match=r"inputs\[1\]"):
        vectors.to_numpy()


async def test_a_second_call_finds_each_input_in_the_cache(server: Any) -> None:
    async with client(server, cache=InMemoryCache()) as many:
        first = await many.embed(TEXTS[:100], model=MODEL)
        again = await many.embed(reversed(TEXTS[:200]), model=MODEL)
    assert first.cached == 0
    assert again.cached == 100
    assert again.to_numpy()[::-1][:100].tolist() == first.to_numpy().tolist()


async def test_inputs_may_come_from_an_async_generator_and_none_at_all(server: Any) -> None:
    async def inputs() -> AsyncIterator[str]:
        for text in TEXTS[:10]:
            yield text
            await asyncio.sleep(0.001)

    async with client(server) as many:
        vectors = await many.embed(inputs(), model=MODEL, dimensions=4)
        nothing = await many.embed([], model=MODEL)
    assert vectors.to_numpy().shape == (10, 4)
    assert len(nothing) == 0
    assert nothing.to_numpy().shape[0] == 0


@pytest.mark.parametrize("inputs", ["one text", b"bytes", 7, None])
async def test_inputs_that_are_no_collection_are_refused(server: Any, inputs: Any) -> None:
    async with client(server) as many:
        with pytest.raises(ConfigError, match="inputs must be a list"):
            await many.embed(inputs, model=MODEL)


def test_the_sync_client_and_one_request_an_input(server: Any) -> None:
    with FastLLM(base_url=server.base_url, api_key="k", embeddings_per_request=1) as single:
        one_by_one = single.embed(iter(TEXTS[:50]), model=MODEL)
        assert single.stats.attempts == 50
    with FastLLM(base_url=server.base_url, api_key="k", embeddings_per_request=25) as packed:
        together = packed.embed(TEXTS[:50], model=MODEL)
        assert packed.stats.attempts == 2
        assert packed.stats.ok == 50
    assert one_by_one.to_numpy().tolist() == together.to_numpy().tolist()


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "many"])
def test_an_impossible_number_of_inputs_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="embeddings_per_request must be a whole number"):
        AsyncFastLLM(embeddings_per_request=wrong)


async def test_rows_of_a_file_share_requests_and_stay_rows(server: Any, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [json.dumps({"model": MODEL, "input": text}) for text in TEXTS]
    source.write_text("\n".join(rows))
    async with client(server) as many:
        result = await many.run(source, output)
        requests = many.stats.attempts
    assert (result.ok, result.failed) == (700, 0)
    assert requests < 30
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for i in (0, 95, 400, 699):
        found = lines[i]["response"]["body"]["data"]
        assert [item["index"] for item in found] == [0]
        assert found[0]["embedding"] == pytest.approx(await alone(server, TEXTS[i]), abs=1e-6)


def test_floats_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert Embedding(embedding=[0.5, -2.0]).floats == array("f", [0.5, -2.0])
    assert Embedding(embedding="AAAAPwAAAMA=").floats == array("f", [0.5, -2.0])
    with serve_in_thread(MockConfig(dimensions=8)) as server, FastLLM(base_url=server.base_url, api_key="k") as one:
        vectors = one.embed(["a"], model=MODEL)
        assert isinstance(vectors[0], array)
        with pytest.raises(MissingExtra, match="pip install numpy"):
            vectors.to_numpy()


def test_base64_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"base64|padding|Only"):
        _ = Embedding(embedding="*not base64*").floats
