"""The sync client's bridge between threads: sources read by their owner, nothing paid for lost, nobody waiting for
himself."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastllm
from fastllm import AttemptFailed, FastLLM
from fastllm.sync import Portal
from fastllm.testing import MockConfig, serve_in_thread
from fastllm.transport.scripted import ScriptedTransport
from fastllm.types import HTTPRequest, HTTPResponse


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts here, even where the tests run in the background of a shell that has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


ANSWER = HTTPResponse(status=200, body=b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')
SLOW = """
import sys
from fastllm import FastLLM
client = FastLLM(base_url=sys.argv[1], api_key="k")
try:
    client.run(sys.argv[2], sys.argv[3], model="mock-model")
except KeyboardInterrupt:
    sys.exit(130)
"""


def ask(text: str = "hello") -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def make(handler: Callable[[HTTPRequest], Any] = lambda http: ANSWER, **options: Any) -> FastLLM:
    return FastLLM(base_url="http://x/v1", api_key="k", transport=ScriptedTransport(handler), **options)


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_source_that_breaks_raises_after_every_row_it_gave_is_answered_and_delivered() -> None:
    def source() -> Iterator[dict[str, Any]]:
        for i in range(200):
            yield ask(str(i))
        raise ZeroDivisionError

    with make() as client:
        found = []
        with pytest.raises(ZeroDivisionError):
            for outcome in client.stream(source()):
                found.append(outcome.index)
        assert sorted(found) == list(range(200)) and client.stats.ok == client.stats.attempts == 200


def test_a_row_of_a_live_feed_is_sent_when_it_comes() -> None:
    feed: queue.Queue[Any] = queue.Queue()
    with make() as client:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend(client.stream(iter(feed.get, None))))
        thread.start()
        for sent in range(1, 4):
            feed.put(ask(str(sent)))
            until(lambda sent=sent: client.stats.attempts == sent)  # type: ignore[misc]
        feed.put(None)
        thread.join(20)
        assert len(found) == 3


def test_sources_and_templates_are_read_in_the_callers_thread() -> None:
    here = threading.get_ident()
    seen: list[int] = []

    def template(row: str) -> str:
        seen.append(threading.get_ident())
        return row

    with make() as client, sqlite3.connect(":memory:") as db:
        db.execute("create table t(x)")
        db.executemany("insert into t values(?)", [("a",), ("b",)])

        def rows() -> Iterator[str]:
            return (x for (x,) in db.execute("select x from t"))

        assert [o.ok for o in client.map("say {}", rows(), model="m")] == [True, True]
        assert [o.ok for o in client.map(template, rows(), model="m")] == [True, True]
        assert [o.ok for o in client.process((ask(x) for x in rows()), model="m")] == [True, True]
        assert [o.ok for o in client.stream(ask(x) for x in rows())] == [True, True]
        assert seen == [here, here]
        asking = (client.chat.completions.create(**ask(x)).text for x in rows())
        assert [o.ok for o in client.map("say {}", asking, model="m")] == [True, True]
    db.close()


def test_no_verb_waits_for_its_own_loop() -> None:
    errors: list[str] = []

    def observer(event: Any) -> None:
        if errors:
            return
        for wrong in (
            lambda: list(client.stream([ask()])),
            lambda: client.process([ask()]),
            lambda: client.map("{}", ["x"], model="m"),
            lambda: client.close(),
        ):
            with pytest.raises(fastllm.FastLLMError, match="use AsyncFastLLM") as caught:
                wrong()
            errors.append(str(caught.value))

    with make(observers=[observer]) as client:
        client.chat.completions.create(**ask())
    assert len(errors) == 4


def test_leaving_a_stream_early_ends_its_requests_before_it_returns() -> None:
    """The pump's end is awaited: no request is left under way."""

    async def handler(http: HTTPRequest) -> HTTPResponse:
        if b"now" not in http.body:
            await asyncio.sleep(100)
        return ANSWER

    with make(handler) as client:
        stream = client.stream([ask("now"), *(ask(str(i)) for i in range(20))])
        assert next(stream).ok
        assert client.stats.in_flight > 0
        stream.close()  # type: ignore[attr-defined]
        assert client.stats.in_flight == client.stats.waiting == 0


@pytest.mark.parametrize("text", [False, True])
def test_leaving_a_loop_over_an_answer_gives_its_slot_to_the_next_request(text: bool) -> None:
    with serve_in_thread(MockConfig(token_rate=20)) as server:
        client = FastLLM(base_url=server.base_url, api_key="k", limits=fastllm.Limits(concurrency=1), timeout=10)
        kept = []
        for _ in range(3):
            stream = client.chat.completions.create(**ask("a long story " * 20), stream=True)
            kept.append(stream)
            for _ in stream.text_stream if text else stream:
                break
        until(lambda: client.stats.left == 3 and server.stats.streams_cancelled == 3, seconds=2)
        with pytest.raises(fastllm.FastLLMError, match="closed before its end"):
            next(kept[0])
        stream = client.chat.completions.create(**ask(), stream=True)
        first = next(stream).delta
        assert first + "".join(chunk.delta for chunk in stream) == stream.response.text
        client.close()


@pytest.mark.parametrize("verb", ["create", "map", "stream"])
def test_what_an_interrupted_call_left_is_gone_when_it_raises(verb: str) -> None:
    """Ctrl-C cancels the requests and waits for their end."""
    verbs: dict[str, Callable[[FastLLM], object]] = {
        "create": lambda client: client.chat.completions.create(**ask()),
        "map": lambda client: client.map("Say {}", range(500), model="mock-model"),
        "stream": lambda client: list(client.stream((ask(str(i)) for i in range(500)), model="mock-model")),
    }
    with serve_in_thread(MockConfig(latency=30)) as server, FastLLM(base_url=server.base_url, api_key="k") as client:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            verbs[verb](client)
        assert client.stats.attempts > 0 and client.stats.in_flight == client.stats.waiting == 0


def _job(server: Any, tmp_path: Path, rows: int) -> tuple[subprocess.Popen[str], list[str]]:
    source = tmp_path / "in.jsonl"
    lines = ({"custom_id": str(i), "body": {"model": "mock-model", **ask(str(i))}} for i in range(rows))
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    order = [server.base_url, str(source), str(tmp_path / "out.jsonl")]
    child = subprocess.Popen([sys.executable, "-c", SLOW, *order], stderr=subprocess.PIPE, text=True)
    until(lambda: server.stats.requests > 300 or child.poll() is not None)
    return child, order


def test_ctrl_c_in_a_run_keeps_every_answer(tmp_path: Path) -> None:
    with serve_in_thread(MockConfig(latency=0.3)) as server:
        child, order = _job(server, tmp_path, 2_000)
        child.send_signal(signal.SIGINT)
        shown = child.communicate(timeout=30)[1]
        assert child.returncode == 130 and "again" in shown, shown
        asked = server.stats.requests
        with FastLLM(base_url=order[0], api_key="k") as client:
            result = client.run(order[1], order[2], model="mock-model")
        assert result.skipped == asked and result.ok == 2_000


def test_a_second_ctrl_c_in_a_run_raises_at_once(tmp_path: Path) -> None:
    with serve_in_thread(MockConfig(latency=0.0)) as server:
        server.when(lambda body: str(body["messages"][0]["content"]) == "400", "hang")
        child, _ = _job(server, tmp_path, 401)
        until(lambda: server.stats.requests >= 401)
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None and "interrupt" in child.stderr.readline()
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=10)
        assert child.returncode == 130


def test_a_portal_outlives_what_its_callbacks_raise() -> None:
    """SystemExit in an observer ends that call, and not the loop of all others."""

    def observer(event: Any) -> None:
        if not isinstance(event, AttemptFailed):
            raise SystemExit(3)

    with make(observers=[observer]) as client:
        with pytest.raises(SystemExit):
            client.chat.completions.create(**ask())
        with pytest.raises(SystemExit):
            client.chat.completions.create(**ask())
    assert "running" in repr(Portal())


LEFT = """
import time, fastllm
from fastllm import FastLLM
from fastllm.transport.scripted import ScriptedTransport

async def handler(http):
    import asyncio
    await asyncio.sleep(0 if b"now" in http.body else 100)
    return fastllm.HTTPResponse(status=200, body=b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')

client = FastLLM(base_url="http://x/v1", api_key="k", transport=ScriptedTransport(handler))
stream = client.stream(["now", "later"], model="m")
print(next(stream).text, flush=True)
"""


def test_a_stream_that_nobody_closed_does_not_hold_up_the_end_of_the_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", LEFT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "x\n"
    began = time.monotonic()
    assert child.communicate(timeout=20)[1] == "" and child.returncode == 0
    assert time.monotonic() - began < 3
