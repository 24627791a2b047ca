"""How many tokens a request would be: the provider is asked where it can count, which Anthropic does for messages and
OpenAI for responses; for everybody else it is estimated, as admission does."""

from __future__ import annotations

import msgspec

from ..engine.endpoint import Endpoint
from ..engine.engine import Engine
from ..errors import classify
from ..providers.openai import body_of, url_of
from ..types import RESPONSES, HTTPRequest, Request
from .responses import by_chat

_COUNT, _INPUT_TOKENS = "/messages/count_tokens", "/responses/input_tokens"
_ANTHROPIC = "anthropic"
_NOT_THERE = frozenset((404, 405, 501))


class _Counted(msgspec.Struct, omit_defaults=True):
    input_tokens: int
    object: str = ""


async def count(engine: Engine, request: Request) -> bytes:
    """Give the answer to a request to count tokens. Raises an LLMError, or ConfigError where nobody serves it."""
    endpoint = await _endpoint(engine, request.model)
    counted = None
    if request.path == RESPONSES:
        if not by_chat(endpoint):
            url = url_of(endpoint.target.base_url, _INPUT_TOKENS)
            counted = await _asked(engine, endpoint, request, url, passed_over=_NOT_THERE)
        kind = "response.input_tokens"
    else:
        if endpoint.provider.name == _ANTHROPIC:
            base_url = endpoint.target.base_url
            base = base_url.partition("?")[0].rstrip("/")
            url = url_of(base_url, _COUNT if base.endswith("/v1") else "/v1" + _COUNT)
            counted = await _asked(engine, endpoint, request, url)
        kind = ""
    if counted is not None:
        return counted
    tokens = int(len(request.body) * endpoint.estimator.ratio) + 1
    return msgspec.json.encode(_Counted(input_tokens=tokens, object=kind))


async def _asked(
    engine: Engine, endpoint: Endpoint, request: Request, url: str, passed_over: frozenset[int] = frozenset()
) -> bytes | None:
    """Ask the provider; None where it says that it cannot count."""
    headers = endpoint.target.headers.merged(request.headers)
    http = HTTPRequest(url=url, body=body_of(request, endpoint.target), headers=headers)
    answer = await engine.transport.send(http, engine.timeout)
    if answer.status in passed_over:
        return None
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
