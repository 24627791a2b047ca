"""Teams: rows answered by several processes are answered once each, in order where that is asked for, whoever dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from fastllm import AsyncFastLLM, CachePolicy, FastLLM, Limits, Retry, errors as e, register_vendor
from fastllm.answers import TokenDetails, Usage
from fastllm.cache.memory import InMemoryCache
from fastllm.errors import Tried
from fastllm.jobs import wire
from fastllm.jobs.team import TeamError
from fastllm.providers.vendors import VENDORS
from fastllm.testing import MockConfig, serve_in_thread
from fastllm.types import Headers, Outcome, Request, Response
from kits.commands import settle

FASTLLM = [sys.executable, "-m", "fastllm.cli"]


@pytest.fixture
def server() -> Iterator[Any]:
    with serve_in_thread(MockConfig(latency=0.01)) as running:
        yield running


def client(server: Any, **more: Any) -> AsyncFastLLM:
    return AsyncFastLLM(base_url=server.base_url, api_key="k", **{"workers": 2, **more})


def questions(count: int) -> Iterator[str]:
    return (f"question {n}" for n in range(count))


def pids(client: AsyncFastLLM) -> list[int]:
    team: Any = client._many
    return [member.process.pid for member in team.members]


def gone(pid: int) -> bool:
    """Tell whether a process has ended; a zombie has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


async def wait_until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within five seconds")


async def test_each_row_is_answered_once_by_either_process(server: Any) -> None:
    async with client(server) as many:
        outcomes = [outcome async for outcome in many.stream(questions(500), model="m")]
        assert sorted(outcome.index for outcome in outcomes) == list(range(500)) and all(o.ok for o in outcomes)
        assert {o.custom_id: o.text.endswith(f"question {o.index}") for o in outcomes} == {
            f"row-{n}": True for n in range(500)
        }
        stats = many.stats
        assert (stats.ok, stats.attempts, stats.in_flight) == (500, 500, 0) and stats.p50 is not None
        assert len(pids(many)) == 2
    assert server.stats.answered == 500 and many.stats.ok == 500
    again = [outcome async for outcome in many.stream(questions(3), model="m")]
    assert len(again) == 3, "a client that was closed starts afresh"
    await many.aclose()


async def test_outcomes_stand_in_the_order_of_the_rows(server: Any) -> None:
    async with client(server) as many:
        found = await many.process([*questions(200)], model="m")
        assert [outcome.index for outcome in found] == list(range(200))
        mixed = await many.process(["a", {"nonsense": 1}, "b"], model="m")
    assert [outcome.ok for outcome in mixed] == [True, False, True]
    assert isinstance(mixed[1].error, e.InvalidRequestError)


async def test_rows_that_are_waited_for(server: Any) -> None:
    async def slowly() -> AsyncIterator[str]:
        for question in questions(50):
            await asyncio.sleep(0.001)
            yield question

    async with client(server) as many:
        assert len([outcome async for outcome in many.stream(slowly(), model="m")]) == 50


async def test_rows_may_end_long_after_the_last_one_was_answered(server: Any) -> None:
    async def slowly() -> AsyncIterator[str]:
        for question in questions(200):
            yield question
        await wait_until(lambda: server.stats.answered == 200)
        await asyncio.sleep(0.1)

    async with client(server, limits=Limits(concurrency=20)) as many, asyncio.timeout(20):
        assert len([outcome async for outcome in many.stream(slowly(), model="m")]) == 200


async def test_a_source_that_raises_loses_no_answer(server: Any) -> None:
    def broken() -> Iterator[str]:
        yield from questions(20)
        raise ZeroDivisionError

    found = []
    async with client(server) as many:
        with pytest.raises(ZeroDivisionError):
            async for outcome in many.stream(broken(), model="m"):
                found.append(outcome)
    assert len(found) == 20


async def test_leaving_early_leaves_nothing_behind(server: Any) -> None:
    async with client(server) as many:
        stream = many.stream(questions(100_000), model="m")
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]  # a generator
        team: Any = many._many
        assert all(member.rows == 0 for member in team.members)
        await wait_until(lambda: server.stats.in_flight == 0)
        assert len(await many.process(["still there"], model="m")) == 1
        processes = pids(many)
    assert all(gone(pid) for pid in processes)


async def test_rows_of_a_process_that_is_killed_are_given_to_another(server: Any) -> None:
    seen: list[int] = []
    async with client(server, limits=Limits(concurrency=20)) as many:
        async for outcome in many.stream(questions(600), model="m"):
            assert outcome.ok
            seen.append(outcome.index)
            if len(seen) == 100:
                os.kill(pids(many)[0], signal.SIGKILL)
        assert sorted(seen) == list(range(600)), "each once"
        assert len(pids(many)) == 2, "another one took its place"
        assert server.stats.answered <= 640, "at most what was under way was asked twice"


async def test_what_a_killed_process_did_is_counted_once(server: Any, tmp_path: Path) -> None:
    """It may die before it reports; its rows came all the same, and what it held is held by the one in its place."""
    server.script(["400"] * 40)
    prices = tmp_path / "prices.toml"
    prices.write_text(
        'date = "2026-11-28"\n[providers.base_url.models."m"]\ninput = 1000.0\noutput = 1000.0\ncontext = 100\n'
    )
    seen: list[Outcome] = []
    async with client(server, limits=Limits(concurrency=20), prices=prices) as many:
        async for outcome in many.stream(questions(1500), model="m"):
            seen.append(outcome)
            if len(seen) in (100, 700):
                os.kill(pids(many)[0], signal.SIGKILL)
        running = many.stats
    answers = [outcome.response for outcome in seen if outcome.response is not None]
    for stats in (running, many.stats):
        assert (stats.done, stats.ok, stats.failed, stats.errors) == (1500, 1460, 40, {"BadRequestError": 40})
        assert 1 <= stats.most_in_flight <= 20, "one in the place of another is not one more"
        assert stats.attempts >= 1500, "more, if rows were asked twice"
        assert stats.completion_tokens >= sum(a.usage.completion_tokens for a in answers if a.usage is not None)
    assert running.cost_usd is not None and running.cost_usd >= sum(a.cost or 0.0 for a in answers) * 0.999


async def test_what_is_in_flight_is_known_of_all_processes() -> None:
    """Ctrl-C says how many requests it waits for."""
    with serve_in_thread(MockConfig(latency=1.0)) as slow:
        async with client(slow, limits=Limits(concurrency=20)) as many:
            asking = asyncio.ensure_future(many.process([*questions(60)], model="m"))
            team: Any = many._many
            for answered in (0, 20):
                await wait_until(lambda answered=answered: slow.stats.answered >= answered and team.in_flight(1) == 20)
            assert len(await asking) == 60 and team.in_flight(1) == 0


async def test_processes_that_die_again_and_again_end_the_run(server: Any) -> None:
    async with client(server, limits=Limits(concurrency=20)) as many:
        with pytest.raises(TeamError, match="3 worker processes died"):
            async for outcome in many.stream(questions(1_000_000), model="m"):
                if outcome.index % 100 == 0:
                    for pid in pids(many)[:1]:
                        os.kill(pid, signal.SIGKILL)


async def test_errors_arrive_as_they_were(server: Any) -> None:
    server.script(["400:context_length_exceeded"])
    async with client(server, retry=Retry(attempts=1)) as many:
        (found,) = await many.process(["long"], model="m")
        error = found.error
        assert isinstance(error, e.ContextLengthError) and error.status_code == 400 and error.attempts == 1
        assert error.history and not error.retryable and found.request is not None
    with serve_in_thread(MockConfig(api_key="other")) as strict:
        async with client(strict) as many:
            refused = await many.process([*questions(40)], model="m")
    assert {type(outcome.error) for outcome in refused} <= {e.AuthenticationError, e.StoppedError}
    assert strict.stats.requests <= 4, "a refused key is not tried row by row"


async def test_equal_requests_meet_in_the_memory_of_one_process(server: Any) -> None:
    async with client(server, cache="memory") as many:
        found = await many.process(["the same"] * 100, model="m")
    assert server.stats.requests == 1 and len({outcome.text for outcome in found}) == 1


async def test_a_disk_cache_serves_all_processes(server: Any, tmp_path: Path) -> None:
    for _ in range(2):
        async with client(server, cache=CachePolicy(mode="disk", directory=str(tmp_path))) as many:
            found = await many.process([*questions(50)], model="m")
    assert server.stats.requests == 50 and all(outcome.cached for outcome in found)


class Answer(msgspec.Struct):
    n: int


async def test_structured_answers_are_read_by_the_callers_own_type(server: Any) -> None:
    async with client(server) as many:
        found = await many.map("How many? {}", ["a", "b"], model="m", response_format=Answer)
    assert all(isinstance(outcome.parsed, Answer) for outcome in found)


async def test_inputs_to_embed_share_requests(server: Any) -> None:
    async with client(server) as many:
        vectors = await many.embed([f"text {n}" for n in range(400)], model="mock-embedding")
    assert len(vectors) == 400 and server.stats.requests <= 20


async def test_vendors_that_were_registered_are_known_to_the_processes(server: Any) -> None:
    register_vendor("teamvendor", base_url=server.base_url, replace=True)
    try:
        async with AsyncFastLLM(workers=2) as many:
            (found,) = await many.process(["hello"], model="teamvendor/m")
            assert found.ok, found.error
    finally:
        del VENDORS["teamvendor"]


def test_what_cannot_be_shared_is_said_by_name() -> None:
    for option in ({"observers": [print]}, {"cache": InMemoryCache()}):
        (name,) = option
        with pytest.raises(e.ConfigError, match=f"{name}.*cannot be shared with worker processes"):
            AsyncFastLLM(workers=2, **option)
    for wrong in (0, -1, True, "2", 1.5):
        with pytest.raises(e.ConfigError, match="workers must be a whole number of at least 1"):
            AsyncFastLLM(workers=wrong)  # type: ignore[arg-type]


def test_more_processes_than_could_be_of_use_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 of them took a machine's memory for two rows."""
    for cores, most in ((1, 32), (64, 256), (None, 32)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert AsyncFastLLM(workers=most)
        with pytest.raises(e.ConfigError, match=f"workers must be at most {most} on this machine.*; not {most + 1}"):
            AsyncFastLLM(workers=most + 1)


async def test_a_model_of_this_process_has_no_use_for_others() -> None:
    async with AsyncFastLLM(workers=2) as many:
        (found,) = await many.process(["hello"], model="local/smollm2")
    assert found.error is not None and "give workers=1" in found.error.message


def test_the_sync_client_has_teams_too(server: Any) -> None:
    with FastLLM(base_url=server.base_url, api_key="k", workers=2) as many:
        assert [o.ok for o in many.map("{}?", ["a", "b", "c"], model="m")] == [True] * 3
        assert many.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}]).text


async def test_a_client_that_is_closed_ends_its_runs(server: Any) -> None:
    many = client(server)
    stream = many.stream(questions(100_000), model="m")
    await anext(aiter(stream))
    await many.aclose()
    with pytest.raises(TeamError, match="closed"):
        async for _ in stream:
            pass


# The command


def rows(folder: Path, count: int) -> None:
    lines = (json.dumps({"custom_id": f"id-{n}", "prompt": f"question {n}"}) + "\n" for n in range(count))
    (folder / "in.jsonl").write_text("".join(lines))


def answered(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_a_job_of_several_processes_that_is_killed_goes_on_where_it_was(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(tmp_path, monkeypatch, server.base_url, workers="2", concurrency="20")
    rows(tmp_path, 1200)
    command = [*FASTLLM, "run", "in.jsonl", "--output", "out.jsonl", "--progress", "none"]
    process = subprocess.Popen(command)
    while server.stats.answered < 400 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    sent = server.stats.requests
    done = subprocess.run(command, timeout=60)
    assert done.returncode == 0
    assert sorted(answered(tmp_path / "out.jsonl")) == sorted(f"id-{n}" for n in range(1200))
    assert server.stats.requests <= 1200 + 3 * 20 and server.stats.requests > sent, "what was answered is not asked"


def test_ctrl_c_drains_all_processes(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(tmp_path, monkeypatch, server.base_url, workers="2", concurrency="20")
    rows(tmp_path, 5000)
    command = [*FASTLLM, "run", "in.jsonl", "--output", "out.jsonl", "--progress", "plain"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    while server.stats.answered < 300 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "go on with:" in said, said
    before = server.stats.answered
    done = subprocess.run(command, timeout=60, capture_output=True)
    assert done.returncode == 0 and server.stats.answered == 5000, (before, server.stats.answered)
    assert len(set(answered(tmp_path / "out.jsonl"))) == 5000


async def test_processes_leave_when_their_owner_is_killed(server: Any, tmp_path: Path) -> None:
    code = (
        "import asyncio, fastllm\n"
        "async def main():\n"
        f"    async with fastllm.AsyncFastLLM(base_url={server.base_url!r}, api_key='k', workers=2) as many:\n"
        "        async for outcome in many.stream((str(n) for n in range(10**9)), model='m'):\n"
        "            if outcome.index == 0: print(*[m.process.pid for m in many._many.members], flush=True)\n"
        "asyncio.run(main())\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert owner.stdout is not None
    children = [int(pid) for pid in (await asyncio.to_thread(owner.stdout.readline)).split()]
    assert len(children) == 2
    owner.kill()
    owner.wait()
    owner.stdout.close()
    await wait_until(lambda: all(gone(pid) for pid in children))


# The wire

texts = st.text(max_size=20)
usages = st.none() | st.builds(
    Usage,
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    prompt_tokens_details=st.none() | st.builds(TokenDetails, cached_tokens=st.integers(0, 100)),
)
tries = st.lists(
    st.builds(Tried, endpoint=texts, error=texts, status_code=st.none() | st.integers(100, 599)), max_size=2
)
responses = st.builds(
    Response,
    body=st.binary(max_size=40),
    usage=usages,
    finish_reason=st.none() | texts,
    request_id=st.none() | texts,
    endpoint=texts,
    attempts=st.integers(0, 9),
    cached=st.booleans(),
    latency=st.floats(0, 100),
    cost=st.none() | st.floats(0, 10),
    history=st.builds(tuple, tries),
)
KINDS = [cls for cls in vars(e).values() if isinstance(cls, type) and issubclass(cls, e.LLMError)]


def through(message: wire.Message, *cuts: int) -> Any:
    """Read what was written, in pieces."""
    data, unpacker = wire.packed(message), wire.Unpacker()
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    found = [m for a, b in pairwise(places) for m in unpacker.feed(data[a:b])]
    (one,) = found
    return one


@given(responses, st.integers(0, 200), st.integers(0, 200))
def test_an_answer_comes_over_as_it_was(response: Response, one: int, other: int) -> None:
    (row,) = through(wire.Outcomes(1, [wire.Answered(3, wire.told(response))]), one, other).rows
    found = wire.response_of(row.response)
    assert row.turn == 3
    for name in Response.__struct_fields__:
        assert getattr(found, name) == getattr(response, name), name


@given(st.sampled_from(KINDS), texts, st.booleans(), st.none() | st.floats(0, 100), st.none() | responses, st.data())
def test_an_error_comes_over_as_it_was(
    kind: Any, text: str, flag: bool, wait: float | None, response: Response | None, data: Any
) -> None:
    error = kind.__new__(kind)
    e.LLMError.__init__(error, text, code=text, retry_after=wait, retryable=flag, sent=not flag, status_code=418)
    error.attempts, error.endpoint, error.response = 4, text, response
    error.history = tuple(data.draw(tries))
    (row,) = through(wire.Outcomes(1, [wire.Answered(0, None, wire.failed(error))])).rows
    found = wire.error_of(row.error)
    assert type(found) is kind and str(found) == str(error) and found.to_dict() == error.to_dict()
    for name in ("retryable", "sent", "retry_after", "attempts", "history"):
        assert getattr(found, name) == getattr(error, name)
    assert (found.response is None) == (response is None)


def test_an_error_of_a_class_of_ones_own_comes_over_as_its_nearest_relative() -> None:
    class OwnError(e.RateLimitError):
        pass

    found = wire.error_of(wire.failed(OwnError("no", status_code=429)))
    assert type(found) is e.RateLimitError
    misfit = e.InvalidRequestError("no key", sent=False)
    misfit.__cause__ = e.MissingKeyError("no key")
    assert isinstance(wire.error_of(wire.failed(misfit)).__cause__, e.MissingKeyError)


@given(
    st.binary(max_size=30),
    texts,
    st.integers(0, 9),
    st.none() | st.floats(1, 9),
    st.dictionaries(st.just("x-a"), st.from_regex("[a-z]*", fullmatch=True)),
)
def test_a_request_comes_over_as_it_was(
    body: bytes, model: str, sample: int, timeout: float | None, headers: dict[str, str]
) -> None:
    request = Request(body=body, model=model, sample=sample, timeout=timeout, headers=Headers(headers), priority=1)
    (row,) = through(wire.Rows(2, [wire.asked(7, request, 0)])).rows
    found = wire.request_of(row, {})
    for name in Request.__struct_fields__:
        assert getattr(found, name) == getattr(request, name), name


async def test_processes_share_the_limits_whoever_dies(server: Any) -> None:
    async with client(server, workers=3, limits=Limits(rpm=45)) as many:
        outcomes: list[bool] = []

        async def ask() -> None:
            async for outcome in many.stream(questions(200), model="m"):
                outcomes.append(outcome.ok)

        asking = asyncio.ensure_future(ask())
        await wait_until(lambda: len(outcomes) > 10)
        os.kill(pids(many)[0], signal.SIGKILL)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asking, 2)
    assert 20 < server.stats.requests <= 45 and all(outcomes)


async def test_processes_share_the_requests_in_flight(server: Any) -> None:
    async with client(server, workers=3, limits=Limits(concurrency=4)) as many:
        outcomes = [outcome async for outcome in many.stream(questions(200), model="m")]
    assert len(outcomes) == 200 and all(outcome.ok for outcome in outcomes)
    assert server.stats.most_in_flight <= 4


async def test_processes_share_the_budget(server: Any, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    row = '[providers.base_url.models."m"]\ninput = 1000.0\noutput = 1000.0\ncontext = 100\n'
    prices.write_text(f'date = "2026-11-28"\n{row}')
    async with client(server, workers=2, budget=1.0, prices=prices) as many:
        requests = (
            {"model": "m", "messages": [{"role": "user", "content": "?"}], "max_tokens": 20} for _ in range(100)
        )
        outcomes = [outcome async for outcome in many.stream(requests)]
        spent = sum(outcome.response.cost or 0.0 for outcome in outcomes if outcome.response is not None)
    refused = [outcome for outcome in outcomes if not outcome.ok]
    assert refused and all(isinstance(outcome.error, e.BudgetExceededError) for outcome in refused)
    bound = 0.12  # what one request may cost
    assert 1.0 - bound < spent <= 1.0
