"""The short way of a line to its Row: of one that is sent as it is, which its fields' types alone can tell.

`plain` and `batched` give the row of such a line, and None for every other one, right or wrong: rows.py knows the rules
and says what is wrong. A field that makes a line another one's has a type here that its value does not fit, so one look
tells, where a look for the shape and one at each field would cost twice as much.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from ..types import CHAT, PATHS, Request, Row

BATCH = 1  # the priority of a row: after interactive requests
PATH_OF_URL = {**{path: path for path in PATHS}, **{"/v1" + path: path for path in PATHS}}
UNFIT = (msgspec.MsgspecError, RecursionError, ValueError, TypeError, OverflowError)

_Tokens = Annotated[int, Meta(ge=0, le=2**31)]
_Name = Annotated[str, Meta(min_length=1)]


class _Body(msgspec.Struct, gc=False):
    """A body of one answer, whole."""

    model: str = ""
    stream: bool | None = None
    n: None = None
    best_of: None = None
    max_tokens: _Tokens = 0
    max_completion_tokens: _Tokens = 0
    max_output_tokens: _Tokens = 0


class _Plain(_Body, kw_only=True, gc=False):
    """A body of chat that says nothing to us, but for fields of ours that say nothing."""

    messages: Raw
    custom_id: None = None
    id: None = None
    method: None = None
    url: None = None
    body: UnsetType = UNSET
    error: UnsetType = msgspec.field(name="_error", default=UNSET)
    source: UnsetType = msgspec.field(name="_source", default=UNSET)


class _Batched(msgspec.Struct, gc=False):
    """A line of OpenAI's batches."""

    custom_id: _Name
    url: Literal[tuple(PATH_OF_URL)]  # type: ignore[valid-type]
    body: Raw
    method: Literal["POST", "post"] | None = None


_body = msgspec.json.Decoder(_Body).decode
_plain = msgspec.json.Decoder(_Plain).decode
_batched = msgspec.json.Decoder(_Batched).decode


def plain(text: bytes, index: int, line: int, model: str) -> Row | None:
    """Take a body of chat without an id; `model` wins over its own."""
    try:
        if not text.isascii():
            text.decode()  # msgspec skips over what it need not decode
        head = _plain(text)
    except UNFIT:
        return None
    if head.stream or not (model or head.model):
        return None
    limit = head.max_completion_tokens or head.max_output_tokens
    custom_id = f"row-{index}"
    request = Request(
        path=CHAT,
        body=text,
        model=model or head.model,
        body_model=head.model,
        max_tokens=limit if limit > head.max_tokens else head.max_tokens,
        custom_id=custom_id,
        priority=BATCH,
    )
    return Row(index=index, request=request, custom_id=custom_id, line=line, source=text)


def batched(text: bytes, index: int, line: int, model: str) -> Row | None:
    """Take a line with an id, an url and a body; `model` wins over that one's own."""
    try:
        if not text.isascii():
            text.decode()
        outer = _batched(text)
        body = bytes(outer.body)
        head = _body(body)
    except UNFIT:
        return None
    if head.stream or not (model or head.model):
        return None
    limit = head.max_completion_tokens or head.max_output_tokens
    custom_id = outer.custom_id
    request = Request(
        path=PATH_OF_URL[outer.url],
        body=body,
        model=model or head.model,
        body_model=head.model,
        max_tokens=limit if limit > head.max_tokens else head.max_tokens,
        custom_id=custom_id,
        priority=BATCH,
    )
    return Row(index=index, request=request, custom_id=custom_id, line=line, source=text)
