"""bespokelabs-curator's `LLM` on a list of prompts, its cache in a directory that is thrown away."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

# It counts tokens with tiktoken, which would fetch its vocabulary; litellm, which it depends on, brings the file along.
_litellm = importlib.util.find_spec("litellm")
if _litellm is not None and _litellm.origin is not None:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(_litellm.origin).parent / "litellm_core_utils" / "tokenizers")
os.environ.update(CURATOR_DISABLE_RICH_DISPLAY="1", TELEMETRY_ENABLED="0", HF_HUB_OFFLINE="1", OPENAI_API_KEY="k")

import common
from bespokelabs import curator


def main() -> None:
    url, count, in_flight = common.given()
    with tempfile.TemporaryDirectory() as folder:
        model = curator.LLM(
            model_name="gpt-4o-mini",
            backend="openai",
            backend_params={
                "base_url": url,
                "max_requests_per_minute": 10_000_000,
                "max_tokens_per_minute": 10_000_000_000,
            },
        )
        rounds = iter(range(1_000_000))

        def ask(number: int) -> int:
            # Different prompts of the same length: equal ones would be answered from its cache.
            start = next(rounds) * 10_000_000
            prompts = [f"{start + n:012d}" + common.PROMPT[12:] for n in range(number)]
            found = model(prompts, working_dir=f"{folder}/{start}")
            rows = getattr(found, "dataset", found)
            return sum(common.right(row["response"]) for row in rows)

        common.measure_sync(ask, count, in_flight)


if __name__ == "__main__":
    main()
