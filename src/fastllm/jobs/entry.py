"""From outcomes to the journal's entries, and back."""

from __future__ import annotations

import msgspec

from ..answers import TokenDetails, Usage
from ..types import Outcome, Response, Row
from .journal import Entry

_NO_USAGE = Usage()


def entry_of(row: Row, outcome: Outcome, *, keeps_source: bool) -> Entry:
    """Give what the journal keeps of a finished row; of one that is ok its source only if that is wanted."""
    response, error = outcome.response, outcome.error
    if response is None:
        assert error is not None
        entry = Entry(
            custom_id=row.custom_id,
            line=row.line,
            status=error.status_code or 0,
            request_id=error.request_id,
            error=error.to_dict(),
            source=row.source,
            attempts=error.attempts,
            endpoint=error.endpoint,
        )
        return entry if error.response is None else _with_answer(entry, error.response)
    usage = response.usage or _NO_USAGE
    return Entry(
        custom_id=row.custom_id,
        line=row.line,
        status=response.status_code,
        request_id=response.request_id,
        body=response.body,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        attempts=response.attempts,
        cached=response.cached,
        endpoint=response.endpoint,
        finish_reason=response.finish_reason,
        cached_tokens=usage.cached_tokens,
        cost=response.cost,
        source=row.source if keeps_source else b"",
    )


def _with_answer(entry: Entry, answer: Response) -> Entry:
    """The answer that a failed row got all the same, and paid for."""
    usage = answer.usage or _NO_USAGE
    return msgspec.structs.replace(
        entry,
        body=answer.body,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        cost=answer.cost,
    )


def outcome_of(index: int, entry: Entry) -> Outcome:
    """Give the outcome of a row, as far as the journal knows it; of one that failed, without its error."""
    if entry.error is not None:
        return Outcome(index=index, custom_id=entry.custom_id)
    usage = Usage(
        prompt_tokens=entry.prompt_tokens,
        completion_tokens=entry.completion_tokens,
        prompt_tokens_details=TokenDetails(cached_tokens=entry.cached_tokens) if entry.cached_tokens else None,
    )
    response = Response(
        body=entry.body,
        usage=usage if usage.total_tokens else None,
        finish_reason=entry.finish_reason,
        status_code=entry.status,
        request_id=entry.request_id,
        endpoint=entry.endpoint,
        attempts=entry.attempts,
        cached=entry.cached,
        cost=entry.cost,
    )
    return Outcome(index=index, custom_id=entry.custom_id, response=response)
