"""How many tokens a message would be: Anthropic is asked; for everybody else it is estimated, as admission does."""

from __future__ import annotations

import msgspec

from ..engine.endpoint import Endpoint
from ..engine.engine import Engine
from ..errors import classify
from ..providers.openai import body_of, url_of
from ..types import HTTPRequest, Request

_COUNT = "/messages/count_tokens"
_ANTHROPIC = "anthropic"


class _Counted(msgspec.Struct):
    input_tokens: int


async def count(engine: Engine, request: Request) -> bytes:
    """Give the answer to a request to count tokens. Raises an LLMError, or ConfigError where nobody serves it."""
    endpoint = await _endpoint(engine, request.model)
    if endpoint.provider.name != _ANTHROPIC:
        return msgspec.json.encode(_Counted(input_tokens=int(len(request.body) * endpoint.estimator.ratio) + 1))
    target = endpoint.target
    base = target.base_url.partition("?")[0].rstrip("/")
    url = url_of(target.base_url, _COUNT if base.endswith("/v1") else "/v1" + _COUNT)
    headers = target.headers.merged(request.headers)
    http = HTTPRequest(url=url, body=body_of(request, target), headers=headers)
    answer = await engine.transport.send(http, engine.timeout)
    if not 200 <= answer.status < 300:
        error = classify(answer.status, answer.header, answer.body)
        endpoint.cleanse(error)
        raise error
    return answer.body


async def _endpoint(engine: Engine, model: str) -> Endpoint:
    tiers = engine.router.route(model)
    if tiers is not None:
        return (await tiers.begin()).members[0].endpoint
    return engine.router.known.get(model) or await engine.router.resolve(model)
