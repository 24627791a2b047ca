"""Columns: what stands beside each other in an output, of the row, of its answer and of how it came about."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec

from ..answers import content_text
from ..errors import ConfigError
from ..types import Outcome, Response

ALL = "*"
_encode = msgspec.json.encode
_decode = msgspec.json.decode
_object = msgspec.json.Decoder(dict[str, Any])
_THOUGHTS = ("reasoning_content", "reasoning")
_UNREAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _usage(name: str) -> Callable[[Response], Any]:
    def get(answer: Response) -> Any:
        usage = answer.usage or answer.payload.usage
        return None if usage is None else getattr(usage, name)

    return get


def _cached_tokens(answer: Response) -> int | None:
    usage = answer.usage or answer.payload.usage
    return None if usage is None or usage.prompt_tokens_details is None else usage.prompt_tokens_details.cached_tokens


def _finish_reason(answer: Response) -> str | None:
    return answer.finish_reason or (answer.choices[0].finish_reason if answer.choices else None)


# Of an answer: each column's type and value.
_OF_ANSWER: dict[str, tuple[type, Callable[[Response], Any]]] = {
    "text": (str, lambda answer: answer_text(answer)),
    "finish_reason": (str, _finish_reason),
    "prompt_tokens": (int, _usage("prompt_tokens")),
    "completion_tokens": (int, _usage("completion_tokens")),
    "cached_tokens": (int, _cached_tokens),
    "cost": (float, lambda answer: answer.cost),
    "attempts": (int, lambda answer: answer.attempts),
    "cached": (bool, lambda answer: answer.cached),
    "endpoint": (str, lambda answer: answer.endpoint or None),
    "model": (str, lambda answer: answer.payload.model or None),
    "status": (int, lambda answer: answer.status_code),
    "request_id": (str, lambda answer: answer.request_id),
    "body": (str, lambda answer: answer.body.decode("utf-8", "replace")),
}
_OF_ROW: dict[str, type] = {"custom_id": str, "index": int, "error": str, "error_class": str}
NAMES = (*_OF_ROW, *_OF_ANSWER)
DEFAULT = ("custom_id", "text", "finish_reason", "prompt_tokens", "completion_tokens")


class Columns(msgspec.Struct, frozen=True, kw_only=True):
    """What an output is to hold. `names` are the columns of a table (CSV, Parquet, Arrow), in their order; `keep` names
    columns of the input that stand beside the answer, ("*",) all of them; `fields` are taken out of answers that are
    JSON, `a.b` out of the object `a`; with `failures` rows that failed are in the output, too, in their place."""

    names: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    failures: bool = False

    @classmethod
    def of(
        cls,
        names: str | Iterable[str] | None = None,
        keep: str | Iterable[str] | None = None,
        fields: str | Iterable[str] | None = None,
        *,
        failures: bool = False,
    ) -> Self:
        """Take names as a sequence, or as text with commas between them. Raises ConfigError for a name that is none."""
        chosen = _names("columns", names)
        for name in chosen:
            if name not in NAMES:
                raise ConfigError(f"columns has no {name!r}{_near(name, NAMES)}")
        return cls(names=chosen, keep=_names("keep", keep), fields=_names("fields", fields), failures=failures)

    @property
    def keeps(self) -> bool:
        return bool(self.keep)

    def check_kept(self, header: Sequence[str] | None) -> None:
        """Raise ConfigError for a column that the input does not have, where that is known before its rows."""
        for name in self.keep:
            if header is not None and name not in (ALL, "custom_id", *header):
                raise ConfigError(f"keep={name!r} is no column of the input{_near(name, header)}")

    def table(self, header: Sequence[str] | None = None) -> list[Column]:
        """Give the columns of a table. `header` are those of the input, where they are known before its rows."""
        kept = self.keep
        self.check_kept(header)
        if ALL in kept:
            if header is None:
                raise ConfigError(
                    "keep='*' in a table needs an input with named columns (CSV, Parquet, Arrow); name them: keep='a,b'"
                )
            kept = tuple(header)
        names = self.names or (*DEFAULT, *(("error_class", "error") if self.failures else ()))
        taken = {*names}
        found = [Column(name=name, kind=_OF_ROW[name] if name in _OF_ROW else _OF_ANSWER[name][0]) for name in names]
        extra = []
        for name in kept:
            if name != "custom_id" or "custom_id" not in names:
                extra.append(Column(name=_free(name, "input_", taken), source=name, of_row=True))
        for name in self.fields:
            extra.append(Column(name=_free(name, "answer_", taken), source=name))
        at = 1 if names[:1] == ("custom_id",) else 0
        kept_columns = [column for column in extra if column.of_row]
        return [*found[:at], *kept_columns, *found[at:], *(column for column in extra if not column.of_row)]

    def unkept(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Leave out of names those that are kept: whoever keeps a column knows that it is there."""
        return {} if ALL in self.keep else {name: count for name, count in counts.items() if name not in self.keep}

    def kept(self, source: bytes) -> dict[str, Any]:
        """Give the kept columns of a row; those that it does not have are left out."""
        try:
            row = _object.decode(source)
        except _UNREAD:
            return {}
        return row if ALL in self.keep else {name: row[name] for name in self.keep if name in row}

    def parsed(self, answer: Response) -> dict[str, Any]:
        """Give the fields of an answer that is a JSON object; None for those that it does not have."""
        value = parsed(answer)
        return {name: _at(value, name) for name in self.fields}


PLAIN = Columns()


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column of a table: of the input (`of_row`) or a field of the answer where it has a `source`. `kind` is the
    type of its values, None where they may be anything."""

    name: str
    kind: type | None = None
    source: str | None = None
    of_row: bool = False


def cells(columns: Sequence[Column], outcome: Outcome, source: bytes, failure: dict[str, Any] | None) -> list[Any]:
    """Give a row's values, None where there is none."""
    answer = outcome.response
    row: dict[str, Any] | None = None
    value: Any = None
    is_parsed = False
    found: list[Any] = []
    for column in columns:
        name = column.name
        if column.of_row:
            if row is None:
                try:
                    row = _object.decode(source)
                except _UNREAD:
                    row = {}
            found.append(row.get(column.source or name))
        elif column.source is not None:
            if not is_parsed and answer is not None:
                value, is_parsed = parsed(answer), True
            found.append(_at(value, column.source))
        elif name == "custom_id":
            found.append(outcome.custom_id)
        elif name == "index":
            found.append(outcome.index)
        elif name == "error":
            found.append(None if failure is None else failure.get("message"))
        elif name == "error_class":
            found.append(None if failure is None else failure.get("class"))
        else:
            found.append(None if answer is None else _OF_ANSWER[name][1](answer))
    return found


def as_text(value: Any) -> str:
    """Give a value as text: text as it is, anything else as JSON, "" for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else _encode(value).decode()


def parsed(answer: Response) -> Any:
    """Give the value of an answer that is JSON, also in a fence of Markdown; None where it is none."""
    text = answer.text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json").removeprefix("JSON").strip()
    try:
        return _decode(text)
    except _UNREAD:
        return None


def answer_text(answer: Response) -> str:
    """Give all that was answered as one text: nothing that was paid for is left out."""
    try:
        fields = answer.to_dict()
    except (msgspec.DecodeError, RecursionError):
        return answer.body.decode("utf-8", "replace")
    choices, data, output = fields.get("choices"), fields.get("data"), fields.get("output")
    if isinstance(choices, list) and choices:
        texts = [_choice(choice) for choice in choices]
        return as_text(texts if len(texts) > 1 else texts[0])
    if isinstance(data, list) and data:
        vectors = [item.get("embedding", item) if isinstance(item, dict) else item for item in data]
        return as_text(vectors[0] if len(vectors) == 1 else vectors)
    if isinstance(output, list) and any(_is_more_than_text(item) for item in output):
        return as_text(output)
    if isinstance(fields.get("results"), list):
        return as_text(fields["results"])
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


def _at(value: Any, path: str) -> Any:
    """Follow `a.b` into objects; a field that is called so is taken first."""
    if isinstance(value, dict) and path not in value:
        first, _, rest = path.partition(".")
        return _at(value.get(first), rest) if rest else None
    return value.get(path) if isinstance(value, dict) else None


def _free(name: str, prefix: str, taken: set[str]) -> str:
    """Give a column's name, with a prefix where another has it already."""
    while name in taken:
        name = prefix + name
    taken.add(name)
    return name


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    guess = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{guess} known are {', '.join(known)}"


def _names(what: str, names: str | Iterable[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    found = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
    if not all(isinstance(name, str) and name for name in found):
        raise ConfigError(f"{what} must be names with commas between them, such as a,b; not {names!r}")
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ConfigError(f"{what} names {', '.join(map(repr, twice))} twice")
    return found
