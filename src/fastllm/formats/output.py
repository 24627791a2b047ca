"""What comes out: answers as OpenAI's batch output lines or CSV, failures as lines that are valid input again."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ..answers import content_text
from ..types import Outcome, Response
from .files import create_bytes
from .rows import SOURCE_BYTES

_encode = msgspec.json.encode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_THOUGHTS = ("reasoning_content", "reasoning")
CSV_COLUMNS = ("custom_id", "text", "finish_reason", "prompt_tokens", "completion_tokens")


def answer_line(custom_id: str, index: int, body: bytes, *, status: int = 200, request_id: str | None = None) -> bytes:
    """Give a line of OpenAI's batch output. The body is kept byte for byte, but for line ends between its tokens."""
    if b"\n" in body or b"\r" in body:  # never inside a JSON string, so a space means the same
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    name = _encode(custom_id)
    line_id = hashlib.blake2b(b"%d:%s" % (index, name), digest_size=12).hexdigest().encode()
    return (
        b'{"id":"batch_req_%s","custom_id":%s,"response":{"status_code":%d,"request_id":%s,"body":%s},"error":null}\n'
        % (
            line_id,
            name,
            status,
            _encode(request_id),
            body,
        )
    )


def failure_line(custom_id: str | None, line: int, source: bytes, error: dict[str, Any], answer: bytes = b"") -> bytes:
    """Give a line that is the row itself with its error beside it, so that the file of failures is an input.

    `answer` is the body of one that was paid for and does not fit; it goes in as `_answer`.
    What is no JSON object is kept as text in `_source`; read again, it is the same bad row.
    """
    try:
        source.decode()
        fields = _object.decode(source)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = source[:SOURCE_BYTES].decode("utf-8", "replace")
        bad = {"custom_id": custom_id, "_error": error, "_line": line, "_source": text}
        return _encode(bad) + b"\n"
    own = bytes(fields.get("custom_id", b"null"))
    if (bytes(fields.get("id", b"null")) if own == b"null" else own) in (b"null", b'""') and custom_id is not None:
        fields.pop("custom_id", None)
        fields = {"custom_id": msgspec.Raw(_encode(custom_id)), **fields}
    fields["_error"] = msgspec.Raw(_encode(error))
    fields.pop("_answer", None)  # of an earlier run
    if answer:
        fields["_answer"] = msgspec.Raw(answer)
    return _encode(fields).replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


class JSONLWriter:
    """OpenAI's batch output shape."""

    def __init__(self, file: BinaryIO, name: Path) -> None:
        self._raw = file
        self._file = create_bytes(file, name)

    def write(self, outcome: Outcome) -> None:
        answer = outcome.unwrap()
        custom_id = outcome.custom_id if outcome.custom_id is not None else f"row-{outcome.index}"
        self._file.write(
            answer_line(custom_id, outcome.index, answer.body, status=answer.status_code, request_id=answer.request_id)
        )

    def close(self) -> None:
        if self._file is not self._raw:
            self._file.close()


class CSVWriter:
    """One line an answer: its text and its tokens. What is no single text is JSON: several choices, tool calls,
    vectors. Fields are quoted where they must be; lines end in LF."""

    def __init__(self, file: BinaryIO, name: Path, delimiter: str = ",") -> None:
        self._raw = file
        self._file = create_bytes(file, name)
        self._text = io.TextIOWrapper(self._file, encoding="utf-8", errors="backslashreplace", newline="")
        self._rows = csv.writer(self._text, delimiter=delimiter, lineterminator="\n")
        self._rows.writerow(CSV_COLUMNS)

    def write(self, outcome: Outcome) -> None:
        answer = outcome.unwrap()
        usage = answer.usage or answer.payload.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else ("", "")
        finish = answer.finish_reason or (answer.choices[0].finish_reason if answer.choices else None) or ""
        self._rows.writerow((outcome.custom_id, _cell(answer), finish, *tokens))

    def close(self) -> None:
        self._text.detach()
        if self._file is not self._raw:
            self._file.close()


def _cell(answer: Response) -> str:
    """Give all that was answered as one text: nothing that was paid for is left out."""
    try:
        fields = answer.to_dict()
    except (msgspec.DecodeError, RecursionError):
        return answer.body.decode("utf-8", "replace")
    choices, data, output = fields.get("choices"), fields.get("data"), fields.get("output")
    if isinstance(choices, list) and choices:
        texts = [_choice(choice) for choice in choices]
        return _json(texts) if len(texts) > 1 else texts[0] if isinstance(texts[0], str) else _json(texts[0])
    if isinstance(data, list) and data:
        vectors = [item.get("embedding", item) if isinstance(item, dict) else item for item in data]
        return _json(vectors[0] if len(vectors) == 1 else vectors)
    if isinstance(output, list) and any(_is_more_than_text(item) for item in output):
        return _json(output)
    if isinstance(fields.get("results"), list):
        return _json(fields["results"])
    return answer.text


def _choice(choice: Any) -> Any:
    """A choice's text, or its message where that is more than text."""
    if not isinstance(choice, dict):
        return choice
    message = choice.get("message")
    if isinstance(choice.get("text"), str) or not isinstance(message, dict):
        return choice.get("text") or ""
    content = content_text(message.get("content"))
    more = ("tool_calls", "function_call", "audio", "images", "refusal", *(() if content else _THOUGHTS))
    if any(message.get(name) for name in more):
        return {name: value for name, value in message.items() if value is not None}
    return content


def _is_more_than_text(item: Any) -> bool:
    """Tell whether an item of a Responses answer is anything but a message or what led to it."""
    return isinstance(item, dict) and item.get("type") not in ("message", "reasoning")


def _json(value: Any) -> str:
    return _encode(value).decode()
