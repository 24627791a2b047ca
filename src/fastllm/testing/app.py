"""What the server does with one whole request: route, authorise, read, judge, answer or go wrong on purpose.

No sockets here: a Received goes in, a Wire comes out, at once; the connection waits `delay` and sends it. The order
of the rules: key, JSON, fields, then limits, then the hidden cap, then faults. So a script of faults is used up
only by requests that would have been answered.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from .answers import CREATED, Answerer, Ask, chat, completions, read
from .config import MockConfig
from .faults import Place, plan_of
from .gemini import route
from .limits import Ledger, Verdict
from .messages import messages
from .more_answers import embeddings, moderations, responses
from .reply import Refused, Reply, Wire, encode, error_body
from .stats import Recorder

_ENDPOINTS: dict[str, Answerer] = {
    "/chat/completions": chat,
    "/completions": completions,
    "/responses": responses,
    "/embeddings": embeddings,
    "/moderations": moderations,
    "/messages": messages,
}
_BY_URL = {f"{prefix}{path}".encode(): answer for path, answer in _ENDPOINTS.items() for prefix in ("", "/v1")}
_DEFAULT_MODELS: dict[Answerer, str] = {moderations: "omni-moderation-latest"}  # where the model may be left out
_REDIRECTED = b"?mock-redirected"  # a redirect that was followed is answered well
_decode = msgspec.json.decode

Predicate = Callable[[dict[str, Any]], bool]


class Received(msgspec.Struct, gc=False):
    """One whole request as it came in."""

    method: bytes
    url: bytes
    authorization: bytes
    fault: bytes
    body: bytes
    keep_alive: bool = True


class _Rule(msgspec.Struct):
    predicate: Predicate
    kind: str
    left: float


class App:
    """Holds everything the connections of one server share."""

    def __init__(self, config: MockConfig, now: Callable[[], float], *, scheme: str = "http") -> None:
        self.config = config
        self.recorder = Recorder()
        self.port = 0
        self._scheme = scheme
        self._now = now
        self._expected = None if config.api_key is None else b"Bearer " + config.api_key.encode()
        self.restart()

    def restart(self) -> None:
        """Forget limits used, scripts, rules and draws: as at the start."""
        config = self.config
        self.recorder.reset()
        self._ledger = Ledger(rpm=config.rpm, tpm=config.tpm, headers=config.headers)
        self._draws = random.Random(config.seed)
        self._delays = random.Random(config.seed + 1)
        self._script: deque[str | None] = deque()
        self._rules: list[_Rule] = []
        self._number = 0

    def script(self, kinds: Iterable[str | None]) -> None:
        """Apply these faults to the next requests in order; None is a good answer."""
        kinds = list(kinds)
        for kind in kinds:
            if kind is not None:
                plan_of(kind)
        self._script.extend(kinds)

    def when(self, predicate: Predicate, kind: str, *, times: float = math.inf) -> None:
        """Apply the fault to requests whose body (without stream, stream_options and mock) the predicate accepts."""
        plan_of(kind)
        self._rules.append(_Rule(predicate, kind, times))

    def answer(self, received: Received) -> Wire:
        """Decide what is sent for one request."""
        self._number += 1
        endpoint = _BY_URL.get(received.url) or _BY_URL.get(received.url.partition(b"?")[0])
        told: dict[str, Any] = {}
        if endpoint is None and (found := route(received.url)) is not None:
            endpoint, model, stream = found
            told = {"model": model, "stream": stream}
        if endpoint is None or received.method != b"POST":
            return self._plain(received)
        self.recorder.began()
        try:
            return self._model(received, endpoint, told)
        except Refused as refused:
            self.recorder.live.rejected += 1
            return Wire(self._dressed(refused.reply, received).pieces(), outcome="rejected")

    def _model(self, received: Received, endpoint: Answerer, told: dict[str, Any]) -> Wire:
        """Answer a model's endpoint; `told` is what of the request stands in its URL."""
        self._authorise(received)
        body = _json(received.body)
        if told and isinstance(body, dict):
            body |= told
        ask = read(body, self.config, self._number, _DEFAULT_MODELS.get(endpoint))
        answer = endpoint(ask)
        now = self._now()
        self.recorder.saw(now, ask.checksum, answer.charge)
        verdict = self._ledger.judge(now, received.authorization, ask.model, answer.charge)
        if (refusal := self._refusal(verdict)) is not None:
            return Wire(self._dressed(refusal, received, verdict.headers).pieces(), outcome="refused")
        delay = self._delay()
        reply = self._dressed(answer.reply, received, verdict.headers, delay)
        kind = self._fault_for(received, ask)
        if kind is not None:
            return self._faulty(kind, reply, received, ask, delay)
        wire = Wire(reply.pieces(), delay=delay, outcome="answered", is_stream=ask.stream)
        wire.tokens = answer.prompt_tokens + answer.completion_tokens
        if ask.stream:
            self._pace(wire)
        return wire

    def _pace(self, wire: Wire) -> None:
        if self.config.token_rate:
            wire.pause = 1 / self.config.token_rate
        else:
            wire.pieces = [b"".join(wire.pieces)]

    def _authorise(self, received: Received) -> None:
        if self._expected is None or received.authorization == self._expected:
            return
        text = "Incorrect API key provided." if received.authorization else "You didn't provide an API key."
        raise Refused(401, text, code="invalid_api_key")

    def _refusal(self, verdict: Verdict) -> Reply | None:
        live = self.recorder.live
        if not verdict.allowed:
            live.refused_429 += 1
            return Reply(error_body(verdict.message, type=verdict.type, code="rate_limit_exceeded"), 429)
        cap = self.config.max_concurrency
        if cap is None or live.in_flight <= cap:
            return None
        if self.config.overload_status == 429:
            live.refused_429 += 1
            text = "Too many requests are being processed at once. Please slow down."
            return Reply(error_body(text, type="requests", code="rate_limit_exceeded"), 429)
        live.refused_503 += 1
        text = "The engine is currently overloaded, please try again later."
        return Reply(error_body(text, type="server_error", code="server_is_overloaded"), 503)

    def _dressed(self, reply: Reply, received: Received, headers: str = "", delay: float = 0.0) -> Reply:
        """Give the reply its headers."""
        last = "" if received.keep_alive else "connection: close\r\n"
        reply.headers = (
            f"x-request-id: req_{self._number:016x}\r\nopenai-processing-ms: {delay * 1000:.0f}\r\n{headers}{last}"
        )
        return reply

    def _delay(self) -> float:
        config = self.config
        if not config.latency or not config.latency_sigma:
            return config.latency
        return config.latency * self._delays.lognormvariate(0.0, config.latency_sigma)

    # --- faults ----------------------------------------------------------------------------------------------

    def _fault_for(self, received: Received, ask: Ask) -> str | None:
        """What the request itself asks for, else the script, else the rules, else the draw."""
        if received.url.endswith(_REDIRECTED):
            return None
        if received.fault:
            return received.fault.decode("latin-1")
        if isinstance(ask.mock, dict) and isinstance(ask.mock.get("fault"), str):
            return str(ask.mock["fault"])
        if self._script:
            return self._script.popleft()
        for rule in self._rules:
            if rule.left > 0 and rule.predicate(ask.body):
                rule.left -= 1
                return rule.kind
        config = self.config
        if config.error_rate and self._draws.random() < config.error_rate:
            return self._draws.choice(config.errors)
        return None

    def _faulty(self, kind: str, reply: Reply, received: Received, ask: Ask, delay: float) -> Wire:
        path = received.url.decode("latin-1").partition("?")[0]
        try:
            wire = plan_of(kind)(reply, Place(path, self.port, self._scheme))
        except ValueError as error:  # an unknown kind or a bad argument that the request named
            raise Refused(400, f"x-mock-fault: {error}", code="unknown_fault") from error
        self.recorder.live.errors_injected += 1
        wire.delay, wire.outcome, wire.is_stream = delay, "injected", ask.stream
        return wire

    # --- everything that is not a model ------------------------------------------------------------------------

    def _plain(self, received: Received) -> Wire:
        try:
            reply = self._looked_up(received.method.decode("latin-1"), received)
        except Refused as refused:
            reply = refused.reply
        reply = self._dressed(reply, received)
        return Wire([reply.head()] if received.method == b"HEAD" else reply.pieces())

    def _looked_up(self, method: str, received: Received) -> Reply:
        path = received.url.decode("latin-1").partition("?")[0]
        path = path.removeprefix("/v1") if path.startswith("/v1/") else path
        allowed = "POST" if path in _ENDPOINTS or path == "/stats/reset" else "GET"
        model = path.removeprefix("/models/") if path.startswith("/models/") else None
        if model is None and path not in (*_ENDPOINTS, "/stats/reset", "/stats", "/health", "/models"):
            raise Refused(404, f"Unknown request URL: {method} {path}.", code="unknown_url")
        if method != allowed and (method, allowed) != ("HEAD", "GET"):
            raise Refused(405, f"Not allowed to {method} on {path}.", code="method_not_supported")
        if path == "/stats/reset":
            self.recorder.reset()
        if path.startswith("/stats"):
            return Reply(encode(self.recorder.snapshot()))
        if path == "/health":
            return Reply(b'{"status":"ok"}')
        self._authorise(received)
        listed = [_listed(name) for name in self.config.models]
        if model is None:
            return Reply(encode({"object": "list", "data": listed}))
        if model not in self.config.models:
            raise Refused(404, f"The model '{model}' does not exist.", code="model_not_found", param="model")
        return Reply(encode(_listed(model)))


def _json(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = f"We could not parse the JSON body of your request: {error}."
        raise Refused(400, text) from error


def _listed(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "fastllm"}
