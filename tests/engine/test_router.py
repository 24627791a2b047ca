"""Router: from a model's name to its endpoint, of which there is one for each place."""

from __future__ import annotations

import asyncio

from fastllm.engine.endpoint import Endpoint
from fastllm.engine.limiter import Limiter
from fastllm.engine.router import Router
from fastllm.options import Limits
from fastllm.providers.openai import OpenAIProvider
from fastllm.testing.clock import VirtualClock, run_virtual
from fastllm.types import Headers, Target


def test_spellings_of_one_model_share_its_endpoint_and_others_do_not() -> None:
    async def scenario() -> None:
        clock = VirtualClock()

        async def resolve(model: str) -> Endpoint:
            await asyncio.sleep(1)
            name, key = model.rpartition("/")[2].split("+")
            headers = Headers({"authorization": key})
            target = Target(base_url="http://test", model=name, headers=headers)
            return Endpoint(f"test/{name}", OpenAIProvider(), target, Limiter(Limits(), clock))

        router = Router(resolve)
        models = ["gpt+a", "openai/gpt+a", "gpt+a", "gpt+b", "other+a"]
        found = await asyncio.gather(*map(router.resolve, models))
        assert found[0] is found[1] is found[2] is router.pick("gpt+a") is router.pick("openai/gpt+a")
        assert len({id(endpoint) for endpoint in found}) == 3 and len(router.endpoints) == 3
        assert repr(router) == "<Router test/gpt, test/gpt, test/other>"

    run_virtual(scenario)
