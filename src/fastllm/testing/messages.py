"""Anthropic's Messages from the mock: the chat answer to the same question, in the other dialect."""

from __future__ import annotations

import msgspec

from ..errors import InvalidRequestError
from ..providers.anthropic_answer import to_message
from ..providers.anthropic_reverse import EventEncoder, from_messages
from ..providers.sse import written
from ..types import Chunk
from .answers import Answer, Ask, chat, stream_of
from .reply import Refused, Reply, encode

_DATA = b"data: "


def messages(ask: Ask) -> Answer:
    """Answer a message: the text repeats what the user said last."""
    if not isinstance(ask.body.get("max_tokens"), int):
        raise Refused(400, "max_tokens: Field required", param="max_tokens")
    try:
        body = from_messages(ask.body)
    except InvalidRequestError as error:
        raise Refused(400, error.message) from None
    answer = chat(msgspec.structs.replace(ask, body=body, include_usage=True))
    reply = answer.reply
    if reply.events is None:
        answer.reply = Reply(encode(to_message(msgspec.json.decode(reply.body))))
        return answer
    encoder = EventEncoder(ask.model)
    chunks = [Chunk(data=event[len(_DATA) :].strip()) for event in reply.events if event.startswith(b"data: {")]
    events = [*(event for chunk in chunks for event in encoder.add(chunk)), *encoder.end()]
    answer.reply = stream_of([written(event.event, event.data) for event in events])
    return answer
