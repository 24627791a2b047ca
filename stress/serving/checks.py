"""Checks: what FastLLM is asked to do with a server, through its public API. Each gives a line, or raises."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec

from fastllm import (
    APIStatusError,
    AsyncFastLLM,
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    InvalidAnswerError,
    NotFoundError,
    ProtocolError,
    Timeout,
    UnprocessableEntityError,
)

from .servers import KEY, NOT_JSON, Serving

QUESTION = "What is the capital of France?"
PARALLEL = 16
CITY_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Unsupported(Exception):
    """The server cannot do it, as its answer to a plain HTTP client says too."""


class City(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(max_length=20)]
    is_capital: bool


def client_of(server: Serving, **options: Any) -> Any:
    """Give a client. Bodies are dicts here, so that a plain client can send the same: no type for the overloads."""
    return AsyncFastLLM(**{"base_url": server.base_url, "api_key": KEY, "timeout": Timeout(total=300.0), **options})


def body_of(server: Serving, question: str = QUESTION, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": server.model, "messages": messages, "max_tokens": 24, "temperature": 0, **more}


def holds(fact: object, words: str) -> None:
    if not fact:
        raise AssertionError(words)


async def asked(server: Serving, create: Callable[..., Awaitable[Any]], path: str, body: dict[str, Any]) -> Any:
    """Ask what not every server can do. What FastLLM is refused must be refused to a plain client, too."""
    try:
        return await create(**body)
    except APIStatusError as error:
        status, said = server.plain(path, body)
        if status != error.status_code:
            raise AssertionError(f"a plain request gives {status}, FastLLM {error!r}") from error
        raise Unsupported(f"{status} {said}") from error


async def _pieces(stream: Any) -> list[str]:
    return [str(chunk.delta) async for chunk in stream]


async def chat(server: Serving) -> str:
    async with client_of(server) as client:
        answer = await client.chat.completions.create(**body_of(server))
        again = json.loads(answer.raw)
    plain = server.plain("/chat/completions", body_of(server))[1]["choices"][0]["message"]["content"]
    holds(answer.text and answer.text == again["choices"][0]["message"]["content"], f"{answer.text!r} of {again}")
    holds(answer.text == plain, f"{answer.text!r}, but a plain request gives {plain!r}")
    return f"{answer.text!r}, as a plain request"


async def streamed(server: Serving) -> str:
    async with client_of(server) as client:
        whole = await client.chat.completions.create(**body_of(server))
        stream = await client.chat.completions.create(**body_of(server), stream=True)
        pieces = await _pieces(stream)
        response = stream.response
    holds("".join(pieces) == response.text, f"{pieces} make {response.text!r}")
    holds(response.text == whole.text, f"streamed {response.text!r}, whole {whole.text!r}")
    holds(response.finish_reason == whole.finish_reason, f"{response.finish_reason}, whole {whole.finish_reason}")
    return f"{len([piece for piece in pieces if piece])} pieces, the sum as the whole answer, {response.finish_reason}"


async def usage(server: Serving) -> str:
    async with client_of(server) as client:
        whole = (await client.chat.completions.create(**body_of(server))).usage
        options = {"stream_options": {"include_usage": True}}
        stream = await client.chat.completions.create(**body_of(server), stream=True, **options)
        last = (await stream.final()).usage
        counted = client.stats
    holds(whole is not None and whole.prompt_tokens > 0 and whole.completion_tokens > 0, f"{whole}")
    assert whole is not None
    holds(whole.total_tokens == whole.prompt_tokens + whole.completion_tokens, f"{whole}")
    said = f"{whole.prompt_tokens} and {whole.completion_tokens} tokens whole"
    if last is None:
        return f"{said}; streamed it gives none"
    holds((last.prompt_tokens, last.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens), f"{last}")
    holds(counted.prompt_tokens == 2 * whole.prompt_tokens, f"counted {counted.prompt_tokens}")
    return f"{said}, streamed the same"


async def parallel(server: Serving) -> str:
    """Prompts of different length: whose count of tokens is out of order has another's answer."""
    prompts = [f"Count: {'one ' * (index + 1)}" for index in range(PARALLEL)]
    items = [
        {"custom_id": str(index), "body": body_of(server, prompt, max_tokens=8)} for index, prompt in enumerate(prompts)
    ]
    found: dict[int, int] = {}
    async with client_of(server) as client:
        async for outcome in client.stream(items):
            answer = outcome.unwrap()
            index = int(outcome.custom_id or -1)
            holds(index not in found and answer.usage is not None, f"{index} twice or without usage: {answer!r}")
            found[index] = answer.usage.prompt_tokens if answer.usage is not None else 0
        stats = client.stats
    lengths = [found[index] for index in sorted(found)]
    holds(sorted(found) == list(range(PARALLEL)), f"answered were {sorted(found)}")
    holds(lengths == list(range(lengths[0], lengths[0] + PARALLEL)), f"tokens of the prompts: {lengths}")
    holds(not stats.in_flight and not stats.waiting, "something is left in flight")
    return f"{PARALLEL} answers, each to its question, {stats.attempts} attempts"


async def finish_reasons(server: Serving) -> str:
    async with client_of(server) as client:
        short = await client.chat.completions.create(**body_of(server, max_tokens=3))
        holds(short.finish_reason == "length", f"max_tokens=3 ended with {short.finish_reason}: {short.text!r}")
        plain = await client.chat.completions.create(**body_of(server))
        word = plain.text.split()[2]
        body = body_of(server, stop=[word])
        stopped = await asked(server, client.chat.completions.create, "/chat/completions", body)
        if (
            word in stopped.text
            and word in server.plain("/chat/completions", body)[1]["choices"][0]["message"]["content"]
        ):
            raise Unsupported(f"max_tokens gives length, but stop={word!r} is ignored")
        holds(word not in stopped.text and stopped.finish_reason == "stop", f"stop={word!r}: {stopped.text!r}")
    return "length at max_tokens, stop at a stop word, which is left out"


async def schema(server: Serving) -> str:
    body = body_of(server, "Paris: its name, and whether it is a capital, as JSON.", max_tokens=60)
    async with client_of(server) as client:
        try:
            answer = await client.chat.completions.create(**body, response_format=City, schema_retries=0)
        except InvalidAnswerError as error:
            if error.response.text.lstrip().startswith("{"):
                raise
            raise Unsupported(f"it answers in prose, and FastLLM tells: {error.message}") from error
        except APIStatusError as error:
            form = {"type": "json_schema", "json_schema": {"name": "City", "schema": msgspec.json.schema(City)}}
            status, said = server.plain("/chat/completions", {**body, "response_format": form})
            if status == error.status_code:
                raise Unsupported(f"{status} {said}") from error
            raise
    holds(isinstance(answer.parsed, City), f"{answer.parsed!r}")
    return f"{answer.parsed}"


async def tools(server: Serving) -> str:
    """A small model need not call anything: the answer has to be read, whatever it is."""
    body = body_of(server, "What is the weather in Paris?", tools=[CITY_TOOL], max_tokens=200)
    async with client_of(server) as client:
        answer = await asked(server, client.chat.completions.create, "/chat/completions", body)
        stream = await asked(server, client.chat.completions.create, "/chat/completions", {**body, "stream": True})
        last = await stream.final()
    calls, message = len(answer.choices[0].message.tool_calls or ()), answer.text
    holds(calls or message, f"neither calls nor text: {answer.raw!r:.300}")
    holds((answer.finish_reason == "tool_calls") == bool(calls), f"{calls} calls, but {answer.finish_reason}")
    holds(last.choices[0].message.tool_calls or last.text, "neither calls nor text in a stream")
    return f"accepted and read: {calls} calls, {answer.finish_reason}"


async def forced_tool(server: Serving) -> str:
    """Of one tool `required` means the same as its name; some servers know only the one or the other."""
    named = {"type": "function", "function": {"name": "weather"}}
    refusals: list[str] = []
    async with client_of(server) as client:
        for choice in (named, "required"):
            body = body_of(server, "Weather in Paris?", tools=[CITY_TOOL], tool_choice=choice, max_tokens=200)
            answer = await asked(server, client.chat.completions.create, "/chat/completions", body)
            if calls := answer.choices[0].message.tool_calls:
                break
            plain = server.plain("/chat/completions", body)[1]["choices"][0]["message"]
            holds(not plain.get("tool_calls"), "a plain request gets a call")
            refusals.append("by name" if choice is named else str(choice))
        else:
            raise Unsupported(f"it calls nothing, whether told to {' or '.join(refusals)}")
        last = await (await client.chat.completions.create(**body, stream=True)).final()
    told, again = calls[0].function, last.choices[0].message.tool_calls[0].function
    holds(told.name == "weather" == again.name, f"called {told.name!r}, streamed {again.name!r}")
    holds(again.arguments == told.arguments, f"{told.arguments!r}, streamed {again.arguments!r}")
    holds(json.loads(told.arguments), f"arguments are {told.arguments!r}")
    return f"weather({told.arguments}), streamed the same; told {'by name' if choice is named else choice}"


async def completions(server: Serving) -> str:
    body = {"model": server.model, "prompt": "The capital of France is", "max_tokens": 5, "temperature": 0}
    async with client_of(server) as client:
        answer = await asked(server, client.completions.create, "/completions", body)
        stream = await client.completions.create(**body, stream=True)
        pieces = await _pieces(stream)
    holds(answer.text and "".join(pieces) == answer.text, f"{answer.text!r}, streamed {pieces}")
    return f"{answer.text!r}, streamed the same"


async def responses(server: Serving) -> str:
    body = {"model": server.model, "input": QUESTION, "max_output_tokens": 24, "temperature": 0}
    async with client_of(server) as client:
        try:
            answer = await asked(server, client.responses.create, "/responses", body)
        except ProtocolError as error:
            if server.plain("/responses", body)[0] != NOT_JSON:
                raise
            stream = await client.responses.create(**body, stream=True)
            pieces = await _pieces(stream)
            holds(pieces and "".join(pieces) == stream.response.text, f"{pieces} make {stream.response.text!r}")
            raise Unsupported("asked for a whole answer it streams one; streamed it is read") from error
        stream = await client.responses.create(**body, stream=True)
        pieces = await _pieces(stream)
    holds(answer.text and "".join(pieces) == answer.text, f"{answer.text!r}, streamed {pieces}")
    return f"{answer.text!r}, streamed the same"


async def embeddings(server: Serving) -> str:
    texts = ["a cat", "a dog in the garden", "the stock market fell"]
    body = {"model": server.model, "input": texts}
    async with client_of(server, max_retries=0) as client:
        try:
            answer = await asked(server, client.embeddings.create, "/embeddings", body)
        except ProtocolError as error:
            if not isinstance(server.plain("/embeddings", body)[1]["data"][0]["embedding"][0], list):
                raise
            raise Unsupported(f"it gives a vector for each token, and FastLLM tells: {error.message}") from error
        vectors = [list(row.floats) for row in answer.data]
        packed = await client.embed([*texts, *texts], model=server.model)
        alone = [(await client.embeddings.create(model=server.model, input=text)).data[0].floats for text in texts]
    sizes = {len(vector) for vector in vectors}
    holds(len(vectors) == len(texts) and len(sizes) == 1, f"{len(vectors)} vectors of {sizes} numbers")
    for index, vector in enumerate([*packed, *alone]):
        near = _cosine(vector, vectors[index % len(texts)])
        holds(near > 0.99, f"vector {index}: the cosine to the same input's in another request is {near:.3f}")
    return f"{len(texts)} vectors of {sizes.pop()} numbers, the same in client.embed and one by one"


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return float(product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))


async def refused_value(server: Serving) -> str:
    body = body_of(server, temperature="warm")
    return await _refused(server, body, (BadRequestError, UnprocessableEntityError))


async def refused_length(server: Serving) -> str:
    body = body_of(server, "word " * (server.context + server.context // 8), max_tokens=2)
    return await _refused(server, body, (ContextLengthError,))


async def refused_model(server: Serving) -> str:
    return await _refused(server, body_of(server, model="no-such-model"), (NotFoundError, BadRequestError))


async def refused_key(server: Serving) -> str:
    return await _refused(server, body_of(server), (AuthenticationError,), api_key="sk-wrong-0123456789")


async def _refused(server: Serving, body: dict[str, Any], kinds: tuple[type[Exception], ...], **options: Any) -> str:
    async with client_of(server, max_retries=0, **options) as client:
        try:
            answer = await client.chat.completions.create(**body)
        except kinds as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        except APIStatusError as error:
            if error.status_code is not None and error.status_code >= 500:  # no client can tell what it meant
                raise Unsupported(f"it answers {error.status_code}: {error.message}") from error
            raise
    raise Unsupported(f"it does not refuse, but answers {answer.finish_reason}")


async def left_early(server: Serving) -> str:
    """Whoever leaves a long answer frees its place: the next one comes, and nothing is left."""
    long = body_of(server, "Tell a very long story about a whale.", max_tokens=400)
    async with client_of(server) as client:
        began = time.monotonic()
        taken = 0
        async with await client.chat.completions.create(**long, stream=True) as stream:
            async for chunk in stream:
                taken += bool(chunk.delta)
                if taken == 3:
                    break
        left = time.monotonic() - began
        await client.chat.completions.create(**body_of(server, max_tokens=2))
        stats = client.stats
    holds(stats.left == 1 and not stats.in_flight, f"{stats.left} left, {stats.in_flight} in flight")
    return f"after 3 of 400 tokens ({left:.1f} s); the next answer {time.monotonic() - began - left:.1f} s later"


CHECKS: dict[str, Callable[[Serving], Awaitable[str]]] = {
    "chat": chat,
    "chat streamed": streamed,
    "usage": usage,
    "parallel": parallel,
    "finish reasons": finish_reasons,
    "schema": schema,
    "tools": tools,
    "forced tool": forced_tool,
    "completions": completions,
    "responses": responses,
    "embeddings": embeddings,
    "unknown value": refused_value,
    "too long": refused_length,
    "unknown model": refused_model,
    "wrong key": refused_key,
    "left early": left_early,
}
