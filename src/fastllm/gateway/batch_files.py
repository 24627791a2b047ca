"""What goes into a batch and what comes out of it, as OpenAI has it: the input checked, output and errors written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ..errors import ConfigError, FastLLMError, LLMError
from ..formats.base import open_reader
from ..formats.output import answer_line, error_line
from ..formats.rows import DUPLICATE, NO_MODEL
from ..jobs.frames import FAILED
from ..jobs.journal import Entry, journal_path
from ..jobs.publish import entries, write_answers
from ..jobs.recorded import Recorded
from ..jobs.replacing import replacing
from ..types import Row
from .asking import check_fields
from .auth import Tenant
from .batch_store import Flaw
from .faces import Refusal

MOST_FLAWS = 100  # that are told
MOST_MODELS = 100  # of one batch, whose endpoints are made before it begins
BREATH = 50  # rows after which a thread lets the loop have its turn: it would wait 5 ms for one that does not pause
PAUSE = 0.0005  # seconds
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
_CODES = {DUPLICATE: "duplicate_custom_id", NO_MODEL: "missing_required_parameter"}
_encode = msgspec.json.encode


class _Head(msgspec.Struct):
    """What a line of a batch must have, beside its body."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw()


_head = msgspec.json.Decoder(_Head)


class Checked(msgspec.Struct):
    """A batch's input: the number of its requests, what is wrong with it, and the first models that it asks for."""

    count: int = 0
    flaws: list[Flaw] = []
    models: list[str] = []


def check_input(path: Path, endpoint: str, tenant: Tenant, serves: Callable[[str], bool]) -> Checked:
    """Read a batch's input. Works in a thread."""
    found, models = Checked(), dict[str, None]()
    flaws = found.flaws
    try:
        with open_reader(path) as rows:
            for row in rows:
                found.count += 1
                if found.count % BREATH == 0:
                    time.sleep(PAUSE)
                flaw = _flaw(row, endpoint, tenant, serves)
                if flaw is None and row.request is not None and len(models) < MOST_MODELS:
                    models[row.request.model] = None
                if flaw is not None:
                    flaws.append(flaw)
                    if len(flaws) == MOST_FLAWS:
                        break
    except ConfigError as error:
        found.flaws = [Flaw(code="invalid_file", message=str(error).replace(str(path), "the input file"))]
        return found
    if not found.count:
        flaws.append(Flaw(code="empty_file", message="The input file has no requests."))
    found.models = list(models)
    return found


def _flaw(row: Row, endpoint: str, tenant: Tenant, serves: Callable[[str], bool]) -> Flaw | None:
    """Say what is wrong with a line, if anything is."""

    def flaw(code: str, message: str, param: str | None = None) -> Flaw:
        return Flaw(code=code, message=message, line=row.line, param=param)

    if row.error is not None:
        code = _CODES.get(row.error.code or "")
        if code is None:
            code = "invalid_json_line" if "JSON" in row.error.message else "invalid_request"
        return flaw(code, row.error.message, "model" if row.error.code == NO_MODEL else None)
    head = _head.decode(row.source)
    if not isinstance(head.custom_id, str) or not head.custom_id:
        return flaw("missing_required_parameter", "custom_id must be a string that is not empty", "custom_id")
    if head.method != "POST":
        return flaw("invalid_method", "method must be POST", "method")
    if head.url != endpoint:
        return flaw("mismatched_endpoint", f"url must be {endpoint}, as the batch's endpoint is", "url")
    if not bytes(head.body):
        return flaw("missing_required_parameter", "the line has no body", "body")
    assert row.request is not None
    model = row.request.model
    if not serves(model):
        return flaw("model_not_found", f"the model {model[:100]!r} is not served here", "body.model")
    try:
        check_fields(bytes(head.body), model, tenant)
    except Refusal as refusal:
        return flaw(refusal.code or "invalid_request", refusal.message, refusal.param and f"body.{refusal.param}")
    except LLMError as error:
        return flaw("invalid_request", error.message, "body")
    return None


class Written(msgspec.Struct):
    """How many answers and errors were written."""

    completed: int = 0
    failed: int = 0


def write_results(source: Path, output: Path, errors: Path, *, whole: bool, expired: bool) -> Written:
    """Write what the journal of `output` holds: answers there, unless its job has done so (`whole`), failures as lines
    of `errors`, with them, where the batch has expired, all that was not done. What has no line is no file. Works in a
    thread."""
    written = Written()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(replacing(errors, 0o600))
        recorded: Recorded | None = None
        if journal_path(output).exists():
            recorded = stack.enter_context(Recorded(journal_path(output)))
            for index, entry in _in_turns(entries(recorded, recorded.rows, FAILED)):
                file.write(_failure(index, entry))
                written.failed += 1
            written.completed = recorded.ok
            if written.completed and not (whole and output.exists()):
                write_answers(recorded, recorded.rows, output)
        if expired:
            written.failed += _write_expired(source, recorded, file)
    if not written.failed:
        errors.unlink()
    return written


def _write_expired(source: Path, recorded: Recorded | None, file: BinaryIO) -> int:
    count = 0
    with open_reader(source) as rows:
        for row in rows:
            if recorded is None or not recorded.state(row.index):
                file.write(error_line(row.custom_id or "", row.index, _EXPIRED))
                count += 1
                if count % BREATH == 0:
                    time.sleep(PAUSE)
    return count


def _in_turns(found: Iterator[tuple[int, Entry]]) -> Iterator[tuple[int, Entry]]:
    for count, entry in enumerate(found, 1):
        if count % BREATH == 0:
            time.sleep(PAUSE)
        yield entry


def _failure(index: int, entry: Entry) -> bytes:
    """Give the line of a request that failed: with the provider's answer, where it was one."""
    error = entry.error or {}
    custom_id = entry.custom_id or f"row-{index}"
    if not 400 <= entry.status < 600:
        return error_line(custom_id, index, error)
    told = {name: error.get(name) for name in ("message", "type", "param", "code")}
    body = _encode({"error": told})
    return answer_line(custom_id, index, body, entry.status, entry.request_id)


def words_of(error: FastLLMError | str) -> Flaw:
    """Say why a batch as a whole could not go on."""
    if isinstance(error, LLMError):
        return Flaw(code=error.code or "batch_stopped", message=error.message)
    return Flaw(code="batch_stopped", message=str(error))
