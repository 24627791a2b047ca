"""Call: one logical request on its way through the engine: what its steps tell each other."""

from __future__ import annotations

import msgspec

from ..clock import Deadline
from ..errors import DeadlineExceededError, LLMError
from ..options import Timeout
from ..types import Request, Response
from .endpoint import Endpoint
from .flight import Flight


class Call(msgspec.Struct, eq=False):
    """The state of one request."""

    request: Request
    timeout: Timeout
    deadline: Deadline
    began: float
    excused: float = 0.0  # seconds that are not held against the deadline
    endpoint: Endpoint | None = None
    flight: Flight | None = None
    attempts: int = 0
    spared: int = 0  # attempts that cost nothing, because their connection was stale: one at most
    whole: list[bool] | None = None  # with hedging: not empty once one of its streams has ended whole
    last: LLMError | None = None
    response: Response | None = None  # paid for: nothing that happens from then on may lose it


def too_late(call: Call) -> DeadlineExceededError:
    """Give the error of a request whose time is up."""
    last = call.last
    why = f"; the last attempt ended with: {last.message}" if last is not None else ""
    error = DeadlineExceededError(
        f"no answer within {call.timeout.total:g} s (timeout.total){why}",
        code="deadline_exceeded",
        status_code=last.status_code if last is not None else None,
        request_id=last.request_id if last is not None else None,
    )
    error.attempts = call.attempts
    error.endpoint = call.endpoint.name if call.endpoint is not None else ""
    return error
