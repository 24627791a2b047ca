"""What translators of requests share: looks at plain values that say where something is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequestError

DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*?;base64,(.*)", re.DOTALL)


def as_list(value: Any, where: str) -> list[Any]:
    """Give the list that stands there; InvalidRequestError where it is none."""
    if not isinstance(value, list):
        raise refused(f"{where} must be a list, not {_kind(value)}")
    return value


def as_mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Give the object that stands there; InvalidRequestError where it is none."""
    if not isinstance(value, Mapping):
        raise refused(f"{where} must be an object, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def refused(text: str) -> InvalidRequestError:
    """Make the error of a request that a dialect has no words for."""
    return InvalidRequestError(text, sent=False)
