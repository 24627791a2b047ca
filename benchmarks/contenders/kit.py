"""fastllm-kit's `RequestManager`. Its package has our name: this runs where ours is not installed."""

from __future__ import annotations

import common
from fastllm import OpenAIProvider, RequestBatch, RequestManager


def main() -> None:
    url, count, in_flight = common.given()
    provider = OpenAIProvider(api_key="k", api_base=url)
    manager = RequestManager(provider=provider, concurrency=in_flight, show_progress=False)

    def ask(number: int) -> int:
        with RequestBatch() as batch:
            for n in range(number):
                content = f"{n:012d}" + common.PROMPT[12:]  # its id, and so its answer, is that of the content
                batch.chat.completions.create(model="m", messages=[{"role": "user", "content": content}])
        answers = manager.process_batch(batch)
        return sum(common.right(answer.response.choices[0].message.content) for answer in answers)

    common.measure_sync(ask, count, in_flight)


main()
