"""bespokelabs-curator: `curator.LLM` with its OpenAI back end; its cache is off, its limits do not bind.

Its files go to a directory that is thrown away. The tokenizer's table is the one that litellm, which curator needs,
ships for use without a network.
"""

import importlib.util
import os
import tempfile
from pathlib import Path

os.environ["CURATOR_DISABLE_CACHE"] = "1"
litellm = importlib.util.find_spec("litellm")
assert litellm is not None and litellm.origin is not None
os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")

from bespokelabs import curator  # noqa: E402
from work import KEY, MODEL, Work, prompts  # noqa: E402


def main(work: Work) -> None:
    limits = {
        "max_requests_per_minute": 100_000_000,
        "max_tokens_per_minute": 1_000_000_000_000,
        "max_concurrent_requests": work.in_flight,
    }
    llm = curator.LLM(
        model_name=MODEL, backend="openai", backend_params={"base_url": work.url, "api_key": KEY, **limits}
    )

    def run(count: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            answered = llm(list(prompts(count)), working_dir=folder)
            return sum(map(work.good, answered.dataset["response"]))

    work.measure(run)


main(Work.given())
