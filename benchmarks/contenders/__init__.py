"""Who takes part in the benchmark: one script each, run by the Python of an environment of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    name: str
    script: str
    needs: tuple[str, ...] = ()  # for pip; versions stand in the constraints
    constraints: str = "constraints.txt"
    goal: float | None = None  # at least so many times the CPU that `OURS` takes, over plain HTTP
    streams: bool = False  # can be run with --streaming


OURS = "fastllm stream"
LIMIT = "wrk"
TREE = "fastllm"  # in `needs`: this tree
MOST_CPU = 45.0  # µs a request: the goal of `OURS`
MOST_CPU_TLS = 60.0
MOST_OF_LIMIT = 5.0  # times what LIMIT takes: another
STREAMED_GOAL = 20.0  # times the chunks a CPU second of the OpenAI SDK

CONTENDERS = (
    Contender(OURS, "fastllm_stream", (TREE,), streams=True),
    Contender("fastllm run", "fastllm_run", (TREE,)),
    Contender("aiohttp alone, uvloop", "raw_aiohttp_uvloop", ("aiohttp", "uvloop")),
    Contender("aiohttp alone", "raw_aiohttp", ("aiohttp", "uvloop"), goal=4),
    Contender("lm-deluge", "deluge", ("lm-deluge",), goal=9),
    Contender("OpenAI cookbook's loop", "cookbook", ("aiohttp", "uvloop"), goal=11),
    Contender("OpenAI SDK on aiohttp", "openai_aiohttp", ("openai[aiohttp]",), goal=30, streams=True),
    Contender("OpenAI SDK", "openai_sdk", ("openai",), goal=70, streams=True),
    Contender("curator", "curator", ("bespokelabs-curator",), "constraints-curator.txt", goal=40),
    Contender("async-batch-llm", "batch_llm", ("async-batch-llm[openai]",), goal=55),
    Contender("litellm", "litellm_sdk", ("litellm",), goal=100),
    Contender("fastllm-kit, the original", "original", ("fastllm-kit",), goal=250),
    Contender(LIMIT, "wrk"),
)
