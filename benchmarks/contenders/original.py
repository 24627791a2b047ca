"""fastllm-kit, the original: `RequestManager.process_batch`, without a cache and without its progress bar."""

from work import KEY, Work, bodies

from fastllm import OpenAIProvider, RequestManager


def main(work: Work) -> None:
    provider = OpenAIProvider(api_key=KEY, api_base=work.url)
    manager = RequestManager(provider, concurrency=work.in_flight, show_progress=False)

    def run(count: int) -> int:
        answers = manager.process_batch(list(bodies(count)))
        return sum(work.good(answer.response.choices[0].message.content) for answer in answers)

    work.measure(run)


main(Work.given())
