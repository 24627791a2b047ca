"""The OpenAI cookbook's parallel processor: its algorithm, written anew.

One loop looks, once a millisecond at most, whether the next request fits into what is left of the requests and tokens
of a minute, which fill up again as time passes; if so it takes it and gives it a task of its own. A tracker counts what
becomes of the tasks; failures go to a queue and come back from there. Each result is appended to a JSONL file that is
opened for it. There is no bound on the requests in flight but these limits.

Tokens are estimated from lengths, where the cookbook runs a tokenizer: this is in its favour.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from work import KEY, Body, Work, bodies

REQUESTS_A_MINUTE = 100_000_000.0
TOKENS_A_MINUTE = 1_000_000_000_000.0
ATTEMPTS = 5
LEAST_TURN = 0.001  # seconds


@dataclass
class Tracker:
    started: int = 0
    under_way: int = 0
    succeeded: int = 0
    failed: int = 0


@dataclass
class Bucket:
    """What is left of a limit per minute."""

    a_minute: float
    left: float = field(init=False)
    at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.left = self.a_minute

    def refill(self) -> None:
        now = time.time()
        self.left = min(self.left + self.a_minute * (now - self.at) / 60, self.a_minute)
        self.at = now


@dataclass
class Task:
    body: Body
    tokens: int
    attempts_left: int = ATTEMPTS
    errors: list[str] = field(default_factory=list)


class Processor:
    def __init__(self, session: aiohttp.ClientSession, url: str, output: Path) -> None:
        self.session, self.url, self.output = session, url, output
        self.tracker = Tracker()
        self.again: asyncio.Queue[Task] = asyncio.Queue()
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, waiting: Iterator[Body]) -> None:
        requests, tokens = Bucket(REQUESTS_A_MINUTE), Bucket(TOKENS_A_MINUTE)
        upcoming: Task | None = None
        left = True
        while True:
            if upcoming is None:
                if not self.again.empty():
                    upcoming = self.again.get_nowait()
                elif left:
                    body = next(waiting, None)
                    left = body is not None
                    if body is not None:
                        upcoming = Task(body, len(body["messages"][0]["content"]) // 4)
                        self.tracker.started += 1
                        self.tracker.under_way += 1
            requests.refill()
            tokens.refill()
            if upcoming is not None and requests.left >= 1 and tokens.left >= upcoming.tokens:
                requests.left -= 1
                tokens.left -= upcoming.tokens
                upcoming.attempts_left -= 1
                task = asyncio.create_task(self.ask(upcoming))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                upcoming = None
            if not self.tracker.under_way:
                return
            await asyncio.sleep(LEAST_TURN)

    async def ask(self, task: Task) -> None:
        try:
            async with self.session.post(self.url, json=task.body) as response:
                answer = await response.json()
            failure = str(answer["error"]) if "error" in answer else ""
        except Exception as error:
            failure = repr(error)
        if not failure:
            self.tracker.succeeded += 1
            self.append([task.body, answer])
        elif task.attempts_left:
            task.errors.append(failure)
            self.again.put_nowait(task)
            return
        else:
            self.tracker.failed += 1
            self.append([task.body, [*task.errors, failure]])
        self.tracker.under_way -= 1

    def append(self, result: list[object]) -> None:
        line = json.dumps(result)
        with self.output.open("a") as file:
            file.write(line + "\n")


async def main(work: Work) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    with tempfile.TemporaryDirectory() as folder:

        async def run(count: int) -> int:
            output = Path(folder) / f"{count}.jsonl"
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
                processor = Processor(session, f"{work.url}/chat/completions", output)
                await processor.run(bodies(count))
            return processor.tracker.succeeded

        await work.measured(run)


asyncio.run(main(Work.given()))
