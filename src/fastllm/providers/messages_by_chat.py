"""MessagesByChat: any dialect that has chat, with Anthropic's Messages API laid over it.

What only Anthropic knows is taken out of a request before anybody else sees it: hints (`cache_control`, thoughts of
another model) are left out, a thinking budget becomes a `reasoning_effort`, and what the caller counts on (tools that
Anthropic runs, documents that chat has no word for) is an error that names it. What a provider wants to see again with
its answer travels in a `redacted_thinking` block, which clients give back as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import InvalidRequestError
from ..types import CHAT, MESSAGES, NO_HEADERS, Chunk, Headers, HTTPRequest, HTTPResponse, Request, Response, Target
from .anthropic_answer import to_message
from .anthropic_replay import events_of
from .anthropic_reverse import EventEncoder, from_messages
from .base import Decoder, Provider
from .checked import object_in, objects_in, refused
from .responses_request import packed, unpacked
from .tool_results import apart

_HINTS = ("context_management", "thinking", "container", "mcp_servers", "output_config", "betas", "inference_geo")
_REFUSED = ("container", "mcp_servers")  # of these: what the answer depends on
_EFFORTS = ((2048, "low"), (8192, "medium"))  # a budget of thinking tokens, and what it is called elsewhere
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.encode


class MessagesByChat(Provider):
    """Serves Messages requests through the chat of another dialect; everything else is the other's."""

    def __init__(self, chat: Provider) -> None:
        self._chat = chat
        self.name = chat.name
        self.has_rich_results = chat.has_rich_results

    def auth_headers(self, api_key: str | None) -> Mapping[str, str]:
        return self._chat.auth_headers(api_key)

    def spoken(self, request: Request) -> Request:
        return self._as_chat(request) if request.path == MESSAGES else self._chat.spoken(request)

    def encode(self, request: Request, target: Target) -> HTTPRequest:
        return self._chat.encode(self._as_chat(request) if request.path == MESSAGES else request, target)

    def decode(self, request: Request, answer: HTTPResponse) -> Response:
        if request.path != MESSAGES:
            return self._chat.decode(request, answer)
        return as_message(self._chat.decode(self._as_chat(request), answer))

    def decoder(self, request: Request) -> Decoder:
        if request.path != MESSAGES:
            return self._chat.decoder(request)
        return _ByChatDecoder(self._chat.decoder(self._as_chat(request)), request.model)

    def replay(self, response: Response, request: Request) -> list[Chunk]:
        return self._chat.replay(response, request) if request.path != MESSAGES else events_of(response.to_dict())

    def _as_chat(self, request: Request) -> Request:
        return as_chat(request, rich_results=self.has_rich_results)


def as_chat(request: Request, *, rich_results: bool) -> Request:
    """Give the chat request of a Messages request. InvalidRequestError where there is none. Without `rich_results`
    images of a tool's result stand behind it."""
    try:
        body = _decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the request body is not a valid JSON object: {error}", sent=False) from None
    headers = {name: value for name, value in request.headers.items() if not name.startswith("anthropic-")}
    chat = to_plain_chat(body)
    if not rich_results:
        chat["messages"] = apart(chat["messages"])
    more = Headers(headers) if headers else NO_HEADERS
    return msgspec.structs.replace(request, path=CHAT, body=_encode(chat), headers=more)


def as_message(chat: Response, *, ended: bool = True) -> Response:
    """Give the answer to a Messages request that a chat answer is; one that has not `ended` needs no reason for it."""
    completion = chat.to_dict()
    message = to_message(completion, ended=ended)
    kept = _kept_of(completion)
    if kept:
        message["content"].append(_block_of(kept))
    return msgspec.structs.replace(chat, body=_encode(message), path=MESSAGES, _payload=None, _fields=None)


def to_plain_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Give the chat body of a Messages body, as one may show it to any provider."""
    for name in _REFUSED:
        if body.get(name):
            raise refused(f"{name!r} is nothing that this provider has: leave it out")
    chat = from_messages(body)
    thinking = object_in(body.get("thinking"))
    for name in _HINTS:
        chat.pop(name, None)
    chat["messages"] = [_message(message) for message in chat["messages"]]
    if "tools" in chat:
        chat["tools"] = [_tool(tool) for tool in chat["tools"]]
    budget = thinking.get("budget_tokens")
    if thinking.get("type") == "enabled" and isinstance(budget, int) and "reasoning_effort" not in chat:
        chat["reasoning_effort"] = next((effort for most, effort in _EFFORTS if budget <= most), "high")
    return chat


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Give a message without what chat has no word for."""
    out = {name: value for name, value in message.items() if name not in ("is_error", "cache_control")}
    blocks = out.pop("content_blocks", None)
    if blocks is not None:
        for block in objects_in(blocks):
            _give_back(out, block)
    if isinstance(out.get("content"), list):
        out["content"] = [_part(part) for part in out["content"]]
    if message.get("role") == "assistant" and out.get("content") is None and not out.get("tool_calls"):
        out["content"] = ""
    return out


def _give_back(message: dict[str, Any], block: Mapping[str, Any]) -> None:
    """Look at one block of an earlier answer: what a provider wants to see again goes back to it."""
    kind = block.get("type")
    if kind == "redacted_thinking":
        kept = unpacked(block.get("data"))
        extra = object_in(kept.pop("extra_content", None))
        message.update({name: value for name, value in kept.items() if name == "content_parts"})
        for call in message.get("tool_calls") or ():
            if call.get("id") in extra:
                call["extra_content"] = extra[call["id"]]
    elif kind not in ("text", "tool_use", "thinking"):
        raise refused(f"a block of the type {kind!r} is nothing that this provider has: leave it out")


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind, source = part.get("type"), object_in(part.get("source"))
    if kind == "document" and source.get("type") == "text":
        title = f"{part['title']}\n\n" if part.get("title") else ""
        return {"type": "text", "text": f"{title}{source.get('data') or ''}"}
    if kind not in ("text", "image_url", "file"):
        raise refused(f"a block of the type {kind!r} is nothing that this provider has: leave it out")
    return {name: value for name, value in part.items() if name not in ("cache_control", "citations")}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise refused(f"the tool {tool.get('type')!r} is run by Anthropic itself, and this provider has only functions")
    return {name: value for name, value in tool.items() if name != "cache_control"}


def _kept_of(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Give what of an answer its provider wants to see again, and a message has no place for."""
    message = object_in(next(iter(objects_in(completion.get("choices"))), {}).get("message"))
    calls = objects_in(message.get("tool_calls"))
    extra = {call["id"]: call["extra_content"] for call in calls if call.get("extra_content") and call.get("id")}
    kept = {"content_parts": message.get("content_parts"), "extra_content": extra}
    return {name: value for name, value in kept.items() if value}


def _block_of(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "redacted_thinking", "data": packed(kept)}


class _ByChatDecoder(Decoder):
    def __init__(self, chat: Decoder, model: str) -> None:
        self._chat = chat
        self._encoder = EventEncoder(model)
        self._ended = False

    def feed(self, data: bytes) -> list[Chunk]:
        return self._written(self._chat.feed(data))

    def finish(self) -> list[Chunk]:
        return self._written(self._chat.finish(), end=True)

    def _written(self, chunks: list[Chunk], *, end: bool = False) -> list[Chunk]:
        if self._ended:
            return []
        out = [event for chunk in chunks for event in self._encoder.add(chunk)]
        if end or self._chat.done:
            self._ended = True
            whole = self._chat.response().to_dict()
            kept = _kept_of(whole)
            if kept:
                out += self._encoder.block(_block_of(kept))
            out += self._encoder.end(whole)
        return out

    @property
    def done(self) -> bool:
        return self._chat.done

    def response(self) -> Response:
        return as_message(self._chat.response(), ended=self._ended)
