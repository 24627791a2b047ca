"""Takes thoughts that were made of a chat answer out of a Messages body before Anthropic sees it.

Anthropic verifies the signatures of all thoughts, and refuses a conversation with one of another model. Those are known
by an empty signature, or by what a `redacted_thinking` block of ours begins with. A body that has none of them stays as
it is, byte for byte, and is not even parsed.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .checked import object_in
from .responses_request import KEPT

_KEPT = KEPT.encode()
_SIGNATURE = b'"signature"'
_unsigned = re.compile(rb'"signature"\s*:\s*""').search
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def without_foreign_thoughts(body: bytes) -> bytes:
    """Give the body without thoughts that Anthropic did not think; a turn of which nothing is left is left out, as
    Anthropic takes turns of the same role for one."""
    if _KEPT not in body and (_SIGNATURE not in body or _unsigned(body) is None):
        return body
    try:
        fields = _fields.decode(body)
        messages = msgspec.json.decode(fields.get("messages", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body  # which Anthropic will say
    if not isinstance(messages, list):
        return body
    turns = [_without(message) for message in messages]
    if turns == messages:
        return body
    fields["messages"] = msgspec.Raw(msgspec.json.encode([turn for turn in turns if turn is not None]))
    return msgspec.json.encode(fields)


def _without(message: Any) -> Any:
    content = object_in(message).get("content")
    if not isinstance(content, list):
        return message
    rest = [block for block in content if not _is_foreign(object_in(block))]
    if len(rest) == len(content):
        return message
    return {**message, "content": rest} if rest else None


def _is_foreign(block: dict[str, Any]) -> bool:
    kind = block.get("type")
    if kind == "redacted_thinking":
        return str(block.get("data")).startswith(KEPT)
    return kind == "thinking" and block.get("signature") == ""
