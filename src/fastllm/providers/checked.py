"""What translators share: looks at plain values that say where something is wrong in a request, and pass over what is
wrong in an answer, whose other parts are good."""

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


def as_objects(value: Any, where: str) -> list[dict[str, Any]]:
    """Give the objects of the list that stands there, as ones that may be changed; InvalidRequestError where one is
    none."""
    return [dict(as_mapping(item, f"{where}[{place}]")) for place, item in enumerate(as_list(value, where))]


def objects_in(value: Any) -> list[dict[str, Any]]:
    """Give the objects of a list, and none where there is no list: for answers, which were paid for as they are."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def object_in(value: Any) -> dict[str, Any]:
    """Give the object that stands there, an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def refused(text: str) -> InvalidRequestError:
    """Make the error of a request that a dialect has no words for."""
    return InvalidRequestError(text, sent=False)
