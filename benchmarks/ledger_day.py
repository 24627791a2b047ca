"""A day with the ledgers: is any window of the server ever over the limit, and how much of the limit is used?

    PYTHONPATH=src python benchmarks/ledger_day.py --hours 24       # by hand; minutes of two cores, no network

Claim: 24 virtual hours, 20 configurations: no window of 60 s at the server is over the limit, though every request
takes 0 to 200 ms to get there; at least 98 % of the limit is used while there is demand (95 % where a request may be
over 2 % of the tokens a minute). Exits with 1 if that is not so.

The two ledgers are asked and booked together as engine/limiter does, without asyncio: head of the line first, a timer
that wakes up to 5 ms late. Above 3,000 requests a minute, n requests go as one: they are booked at one time and
arrive together (column `group`). Demand pauses for 10 s to 10 minutes after every 10 to 60 minutes; "used" leaves out
the first minute of each. Where both limits are set, it is the share of what goes through two windows in order without
any network: with sizes that vary, no client that keeps its order can fill both. Every 2 hours or so the process is
restarted and forgets its ledgers. `--restart pause` (the claim): the new one begins 61 s after the last request of
the old one. `--restart told`: it begins as soon as that one has arrived, with a single request, and is told limit and
remaining with every answer, 1 s later. That request knows nothing, and one that asks whether others have left room
knows that there may be none: the server refuses these, and only these, if need be.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import random
import sys
import time
from collections import deque
from typing import NamedTuple

from fastllm.policy.headers import Limit
from fastllm.policy.learner import FREE
from fastllm.policy.ledger import REQUESTS, TOKENS, Ledger
from fastllm.policy.window import WINDOW, Entry

JITTER = 0.2
LATE = 0.005
ANSWER = 1.0
MOST_A_MINUTE = 3000
RESTART = 7200.0
LARGE = 0.02


class Config(NamedTuple):
    rpm: float | None
    tpm: float | None
    median: float = 500.0  # tokens a request, log-normal
    sigma: float = 0.8
    largest: float = 0.02  # of the TPM


CONFIGS = [
    Config(1, None),
    Config(3, None),
    Config(10, None),
    Config(60, None),
    Config(500, None),
    Config(3_000, None),
    Config(10_000, None),
    Config(100_000, None),
    Config(None, 1_000, 20, 0.6, 0.1),
    Config(None, 10_000, 100, 0.8, 0.05),
    Config(None, 200_000, 500),
    Config(None, 2_000_000, 1_000, 1.0),
    Config(None, 30_000_000, 2_000, 1.2),
    Config(1, 1_000, 200, 0.5, 0.9),
    Config(20, 10_000, 300, 0.8, 0.2),
    Config(60, 40_000, 500, 0.8, 0.1),
    Config(500, 200_000, 500),
    Config(3_000, 2_000_000, 500, 0.8, 0.01),
    Config(10_000, 10_000_000, 1_000, 1.0, 0.005),
    Config(100_000, 30_000_000, 300, 0.8, 0.001),
]


class Server:
    """A sliding window of 60 s by time of arrival, which lets everything in and counts what was too much."""

    def __init__(self, limit: float | None) -> None:
        self.limit = float("inf") if limit is None else limit
        self.used = self.most = 0.0
        self.over = 0
        self._live: deque[tuple[float, float]] = deque()

    def expire(self, at: float) -> None:
        live = self._live
        while live and live[0][0] + WINDOW <= at:
            self.used -= live.popleft()[1]

    def has_room(self, at: float, amount: float) -> bool:
        self.expire(at)
        return self.used + amount <= self.limit * (1.0 + 1e-9)

    def arrive(self, at: float, amount: float) -> None:
        self.expire(at)
        self._live.append((at, amount))
        self.used += amount
        if self.used > self.most:
            self.most = self.used
        if self.used > self.limit * (1.0 + 1e-9):
            self.over += 1


class Sent(NamedTuple):
    """One request on its way, what was booked for it, and how much was used with it."""

    arrives: float
    number: float
    count: int
    size: float
    at: float
    request: Entry
    token: Entry
    used: float
    used_tokens: float
    asks: bool


class Meter:
    """How much went out while there was demand: an amount counts evenly from its request to the next."""

    def __init__(self) -> None:
        self.requests = self.tokens = self.seconds = 0.0
        self._begin = float("inf")
        self._last: tuple[float, float, float] | None = None

    def start(self, begin: float) -> None:
        """Count from here on, up to the next `end`, in whole minutes: each of them can be no more than full."""
        self._begin, self._last = begin, None

    def count(self, now: float, requests: float, tokens: float, end: float = float("inf")) -> None:
        """A request goes out (or would, after `end`)."""
        if self._last is not None and now > self._begin:
            at, amount, size = self._last
            part = 1.0 if at >= self._begin and now <= end else (min(now, end) - max(at, self._begin)) / (now - at)
            if part > 0.0:
                self.requests += part * amount
                self.tokens += part * size
                self.seconds += min(now, end) - max(at, self._begin)
        self._last = (now, requests, tokens)


class Result(NamedTuple):
    number: int
    sent: float
    group: int
    restarts: int
    most_requests: float
    most_tokens: float
    over: int
    used: float
    wanted: float
    cost: float


def ideal(rpm: float, tpm: float, table: list[float], rng: random.Random) -> float:
    """Requests a second, over whole windows, of a client that keeps the order and knows when both have room."""
    live: deque[tuple[float, float]] = deque()
    group = max(1, round(rpm / MOST_A_MINUTE))
    end = WINDOW * max(20, int(20_000 / rpm))
    now = used = 0.0
    done = 0
    while True:
        size = sum(table[int(rng.random() * 4096)] for _ in range(group))
        while len(live) + 1 > rpm / group or used + size > tpm * (1.0 + 1e-9):
            at, gone = live.popleft()
            used -= gone
            now = max(now, at + WINDOW)
        if now >= end:
            return group * done / end
        live.append((now, size))
        used += size
        done += 1


def day(number: int, hours: float, restart: str) -> Result:
    config, rng = CONFIGS[number], random.Random(f"day {number}")
    uniform, began = rng.random, time.process_time()
    rpm, tpm = config.rpm, config.tpm
    largest = config.largest * tpm if tpm is not None else 4.0 * config.median
    table = [min(max(1.0, config.median * rng.lognormvariate(0.0, config.sigma)), largest) for _ in range(4096)]
    mean = sum(table) / len(table)
    rate = min(rpm or float("inf"), tpm / mean if tpm is not None else float("inf"))
    group = max(1, round(rate / MOST_A_MINUTE))
    servers = Server(rpm), Server(tpm)
    on_way: list[Sent] = []
    answers: deque[tuple[Sent, bool, float, float]] = deque()  # what was let through or not, and what was left then
    meter = Meter()
    end, now, sent, restarts = hours * 3600.0, 0.0, 0.0, 0
    requests, tokens = Ledger(REQUESTS, rpm), Ledger(TOKENS, tpm)
    next_restart = RESTART * (0.5 + uniform())
    told, began_at = False, 0.0

    def arrivals(until: float) -> None:
        while on_way and on_way[0].arrives <= until:
            it = heapq.heappop(on_way)
            amounts = (it.count, it.size)
            room = all(server.has_room(it.arrives, n) for server, n in zip(servers, amounts, strict=True))
            if room or not it.asks:
                for server, n in zip(servers, amounts, strict=True):
                    server.arrive(it.arrives, n)
            if told and it.at >= began_at:
                answers.append((it, room or not it.asks, *(max(0.0, s.limit - s.used) for s in servers)))

    def hear(until: float) -> None:
        arrivals(until)
        while answers and answers[0][0].arrives + ANSWER <= until:
            it, room, *left = answers.popleft()
            if not room:
                requests.settle(it.request, -it.count)
                tokens.settle(it.token, -it.size)
            for server, ledger, own, rest in (
                (servers[0], requests, it.used if room else it.used - it.count, left[0]),
                (servers[1], tokens, it.used_tokens if room else it.used_tokens - it.size, left[1]),
            ):
                if server.limit < float("inf"):
                    ledger.tell(it.arrives + ANSWER, it.at, Limit(limit=server.limit, remaining=rest), own)

    while now < end:
        stop = now + WINDOW * rng.randint(10, 60)
        meter.start(now + WINDOW)
        held, first = FREE, told
        while True:
            if group == 1:
                size = table[int(uniform() * 4096)]
            else:
                size = sum(table[int(uniform() * 4096)] for _ in range(group))
            while True:
                if told:
                    hear(now)
                when = requests.when(now, group)
                if when > now:
                    held = REQUESTS
                more = tokens.when(now, size)
                if more > now:
                    if when <= now:
                        held = TOKENS
                    when = max(when, more)
                if when <= now:
                    break
                now = max(when, now + 1e-4) + LATE * uniform()
            meter.count(now, group, size, stop)
            if now >= stop:
                break
            request = requests.add(now, group, held == REQUESTS)
            token = tokens.add(now, size, held == TOKENS)
            sent += group
            asks = first or any(it.window.used > it.left for it in (requests, tokens))
            used, used_tokens = requests.window.used, tokens.window.used
            way = Sent(now + JITTER * uniform(), sent, group, size, now, request, token, used, used_tokens, asks)
            heapq.heappush(on_way, way)
            if first:
                now, first = now + ANSWER + JITTER, False
            arrivals(now)
        if now >= next_restart:
            next_restart = now + RESTART * (0.5 + uniform())
            restarts += 1
            requests, tokens = Ledger(REQUESTS, rpm), Ledger(TOKENS, tpm)
            answers.clear()
            began_at = now
            told = restart == "told"
            now += JITTER if told else 61.0
        else:
            now += 10.0 + 590.0 * uniform()
    arrivals(float("inf"))
    if rpm is not None and tpm is not None:
        used = meter.requests / meter.seconds / ideal(rpm, tpm, table, rng)
    elif rpm is not None:
        used = meter.requests / (rpm / WINDOW * meter.seconds)
    else:
        assert tpm is not None
        used = meter.tokens / (tpm / WINDOW * meter.seconds)
    wanted = 0.95 if tpm is not None and max(table) > (LARGE + 1e-9) * tpm else 0.98
    over = servers[0].over + servers[1].over
    most_requests, most_tokens = (server.most / server.limit for server in servers)
    cost = time.process_time() - began
    return Result(number, sent, group, restarts, most_requests, most_tokens, over, used, wanted, cost)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of configurations, from 1")
    parser.add_argument("--restart", choices=["pause", "told"], default="pause")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    numbers = [number - 1 for number in args.only] if args.only else list(range(len(CONFIGS)))
    print(f"{args.hours:g} h, {len(numbers)} configurations, restart: {args.restart}")
    print("  #      RPM         TPM        sent group restarts  fullest window (req, tok)  over    used  wanted   CPU")
    failed = 0
    with multiprocessing.Pool(args.workers) as pool:
        jobs = [pool.apply_async(day, (number, args.hours, args.restart)) for number in numbers]
        for job in jobs:
            r = job.get()
            config, bad = CONFIGS[r.number], r.over > 0 or r.used < r.wanted
            failed += bad
            print(
                f"{r.number + 1:3} {_number(config.rpm):>8} {_number(config.tpm):>11} {r.sent:>11,.0f} {r.group:>5} "
                f"{r.restarts:>8} {r.most_requests:>12.2%} {r.most_tokens:>12.2%} {r.over:>6} {r.used:>7.2%} "
                f"{r.wanted:>7.0%} {r.cost:>5.1f}{'  FAILED' if bad else ''}",
                flush=True,
            )
    print("all claims hold" if not failed else f"{failed} configurations fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
