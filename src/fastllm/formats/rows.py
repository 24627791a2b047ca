"""The one set of rules by which what a file holds becomes Rows: shapes, ids, models and defaults.

Shapes of an object, in this order:
  --prompt given                 its values are columns for the template
  "body" is there                an OpenAI batch line: custom_id, method, url, body
  "_source" is there             a row that could not be read in the run that wrote this failures file: a bad row
  "messages" or "input"          a plain request body, sent as it is
  "prompt"                       a chat message, after "system" if there is one; of the other columns only known
                                 parameters are sent (and what "extra_body" holds), the rest is counted in `unsent`
The path of a body without a url: "messages" is chat; "input" is embeddings where the model's name holds "embed", the
body has "dimensions" or "encoding_format", or the input is a list of strings or numbers; otherwise it is Responses.

Ids: "custom_id", else "id", else `row-<index>`, counting rows from 0; in a file an id seen before makes a bad row.
`model` given to the reader wins over the row's own. `params` fill in what a body lacks, where its operation knows them.
"stream" is dropped, because answers in bulk are whole. `custom_id`, `id`, `method`, `url`, `_error`, `_answer` and
`_line` are not sent. A `schema` is for rows of chat and Responses that say nothing of their answer's format; others of
these keep their own, and rows of other operations are bad.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ..errors import ConfigError, InvalidRequestError, LLMError
from ..schema.base import Schema
from ..types import CHAT, COMPLETIONS, EMBEDDINGS, MODERATIONS, PATHS, RESPONSES, Request, Row
from .ids import LIKE_MADE_UP, MADE_UP, UNKNOWN, SeenIds, key_of, own_key
from .salvage import own_id, salvaged
from .short import BATCH, PATH_OF_URL, UNFIT, batched, plain
from .template import Template

_R = TypeVar("_R", bound=tuple[int, Any] | tuple[int, Any, Any])  # a record: its line, and what is there

NO_MODEL = "no_model"  # the code of the error of a row without one
SOURCE_BYTES = 64 * 1024  # of a row that cannot be read, as much as this is kept
_OURS = ("custom_id", "id", "method", "url", "_error", "_answer", "_line")
DUPLICATE = "duplicate_id"  # the code of the error of a row whose id an earlier row has
_DEFAULT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

# Columns beside "prompt" that are parameters of chat completions, of OpenAI or of common servers.
_NAMES = (
    "temperature max_tokens max_completion_tokens top_p top_k min_p n seed stop frequency_penalty "
    "presence_penalty repetition_penalty logit_bias logprobs top_logprobs response_format tools tool_choice "
    "parallel_tool_calls reasoning_effort reasoning verbosity service_tier user metadata store modalities "
    "prediction grammar chat_template_kwargs guided_json guided_choice guided_regex guided_grammar "
    "safety_identifier prompt_cache_key web_search_options"
)
PARAMETERS = frozenset(_NAMES.split())
_KNOWN = frozenset(("prompt", "system", "model", "extra_body", "stream", "stream_options", *_OURS))
_MOST_NAMES = 1000
_MISSES = 4  # lines that may not take the short way before it is given up; in a long input one in eight as well


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How rows become requests; part of a job's identity."""

    model: str = ""
    prompt: str | None = None
    system: str | None = None
    params: dict[str, Any] = {}
    schema: Schema[Any] | None = None


class _Line(msgspec.Struct):
    """What has to be known of a line before its shape is clear."""

    custom_id: Any = None
    id: Any = None
    method: Any = None
    url: Any = None
    model: Any = None
    body: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    error: Raw | UnsetType = msgspec.field(name="_error", default=UNSET)
    source: Raw | UnsetType = msgspec.field(name="_source", default=UNSET)


class _Format(msgspec.Struct):
    """What a body says of its answer's format."""

    response_format: Any = None
    text: dict[str, Any] | None = None


class _Ids(msgspec.Struct):
    custom_id: Any = None
    id: Any = None


class _OldError(msgspec.Struct):
    message: str = "the row could not be read"


_format = msgspec.json.Decoder(_Format)
_line = msgspec.json.Decoder(_Line)
_ids = msgspec.json.Decoder(_Ids)
_object = msgspec.json.Decoder(dict[str, Raw])
_columns = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.encode
_INVALID = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Intake:
    """Makes Rows of lines or columns, in the order of a file. It never raises for what a row holds."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._prompt = Template(recipe.prompt) if recipe.prompt is not None else None
        self._system = Template(recipe.system) if recipe.system is not None else None
        params = dict(recipe.params)
        self._shapes: dict[str, Any] = {}
        if recipe.schema is not None:
            params.pop("response_format", None)
            self._shapes = {CHAT: recipe.schema.response_format, RESPONSES: recipe.schema.text_format}
        try:
            self._params = {name: Raw(_encode(value)) for name, value in params.items() if value is not None}
        except (TypeError, ValueError) as error:
            raise ConfigError(f"params cannot be written as JSON: {error}") from None
        made = self._prompt is not None or self._system is not None or bool(self._params) or bool(self._shapes)
        self._short = None if made else plain  # the way that the next line is likely to take
        self._misses = 0
        self.unsent: dict[str, int] = {}  # columns beside "prompt" that are no parameter, and how often
        self.count = 0
        self._seen = SeenIds()
        self._derived = bytearray()  # a bit for each row whose id was made up
        self._claimed = False  # some row's own id looks like a made-up one

    def expect(self, rows: int) -> None:
        """Take in how many rows there will be, about."""
        self._seen.expected = rows

    def recall(self, key: int, line: int) -> None:
        """Count a row that needs no answer any more, and keep in mind the id whose key this is."""
        index = self.count
        self.count = index + 1
        if MADE_UP < key < LIKE_MADE_UP:
            self._seen.add(key, line)
        else:
            self._note(key, index, line)

    def _recall_all(self, keys: Sequence[int], line: int) -> None:
        """Do the same for rows that stand on lines of their own from this one on."""
        if min(keys) > MADE_UP and max(keys) < LIKE_MADE_UP:
            self.count += len(keys)
            self._seen.add_all(keys, line)
            return
        for key in keys:
            self.recall(key, line)
            line += 1

    def remember(self, text: bytes, line: int) -> None:
        """Count a row of JSON that needs no answer any more, and keep its id in mind."""
        try:
            found = _ids.decode(text)
        except _INVALID:
            self.recall(key_of(salvaged(text) or f"row-{self.count}", self.count), line)
        else:
            self._remember(found.custom_id, found.id, line)

    def remember_columns(self, columns: dict[str, Any], line: int) -> None:
        """Do the same with a mapping."""
        self._remember(columns.get("custom_id"), columns.get("id"), line)

    def _remember(self, custom_id: Any, other: Any, line: int) -> None:
        index = self.count
        self.count = index + 1
        try:
            self._identify(custom_id, other, index, line)
        except InvalidRequestError:
            self._note(key_of(own_id(custom_id, other) or f"row-{index}", index), index, line)

    def unanswered(
        self,
        records: Iterator[_R],
        passed: Callable[[int], Sequence[int] | None],
        row: Callable[[_R], Row],
        remember: Callable[[_R], None],
        *,
        line_of: Callable[[int], int] | None = None,
        behind: Callable[[int], Iterator[_R]] | None = None,
    ) -> Iterator[Row | int]:
        """Do what `Reader.unanswered` says, for records that begin with their line. `behind` gives those that come
        after a line: then rows are passed over unread that stand on one line each, without another between them."""
        line = 0  # of the row before
        is_behind = True  # that is where the records are
        while True:
            before = self.count
            keys = passed(before)
            if keys is None:
                yield from map(row, records if behind is None or is_behind else behind(line))
                return
            last = 0
            if keys and line_of is not None and behind is not None and UNKNOWN not in keys:
                last = line_of(before + len(keys) - 1)
            if last == line + len(keys) > line:
                self._recall_all(keys, line + 1)
                line, is_behind = last, False
                yield len(keys)
                continue
            if behind is not None and not is_behind:
                records, is_behind = behind(line), True
            if not keys:
                record = next(records, None)
                if record is None:
                    return
                line = record[0]
                yield row(record)
                continue
            for key, record in zip(keys, records, strict=False):  # keys first: no record is taken in vain
                line = record[0]
                if key:
                    self.recall(key, line)
                else:
                    remember(record)
            yield self.count - before
            if self.count - before < len(keys):
                return

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise ConfigError if a template names none of these columns."""
        for template in (self._prompt, self._system):
            if template is not None:
                template.check(columns)

    def line(self, text: bytes, line: int) -> Row:
        """Make a Row of one JSON object."""
        index = self.count
        if self._short is not None:
            row = self._short(text, index, line, self.recipe.model)
            if row is not None and (not line or self._is_free(row)):
                self.count = index + 1
                return row
            self._missed()
        self.count = index + 1
        custom_id: str | None = None
        try:
            try:
                if not text.isascii():
                    text.decode()  # msgspec skips over what it need not decode
                head = _line.decode(text)
            except _INVALID as error:
                custom_id = salvaged(text)
                raise InvalidRequestError(_what(error, text), sent=False) from None
            custom_id = own_id(head.custom_id, head.id)
            custom_id = self._identify(head.custom_id, head.id, index, line)
            request = self._request(head, text, custom_id)
        except LLMError as error:
            return self._bad(index, line, custom_id, error, text)
        except UNFIT as error:
            return self._bad(index, line, custom_id, InvalidRequestError(_what(error, text), sent=False), text)
        return Row(index=index, request=request, custom_id=custom_id, line=line, source=text)

    def columns(self, columns: dict[str, Any], line: int) -> Row:
        """Make a Row of a mapping, such as a line of CSV."""
        try:
            text = _encode(columns)
        except UNFIT as error:
            given = columns.get("custom_id")
            custom_id = given if isinstance(given, str) and _is_text(given) else None
            return self.bad(line, f"the row cannot be written as JSON: {error}", custom_id=custom_id)
        return self.line(text, line)

    def bad(self, line: int, message: str, source: bytes = b"", *, custom_id: str | None = None) -> Row:
        """Make the Row of something that is none."""
        index = self.count
        self.count = index + 1
        return self._bad(index, line, custom_id, InvalidRequestError(message, sent=False), source)

    def _bad(self, index: int, line: int, custom_id: str | None, error: LLMError, source: bytes) -> Row:
        if line:
            error.message = f"line {line}: {error.message}"
            error.args = (error.message,)
        custom_id = custom_id or f"row-{index}"
        self._note(key_of(custom_id, index), index, line)
        return Row(index=index, error=error, custom_id=custom_id, line=line, source=source)

    def _missed(self) -> None:
        """Try the other short way with the next line, and none any more where many lines take neither."""
        self._misses += 1
        other = batched if self._short is plain else plain
        self._short = other if self._misses <= _MISSES + self.count // 8 else None

    def _is_free(self, row: Row) -> bool:
        """Take the id of a row that came the short way; False where that needs a closer look."""
        if self._short is batched:
            key = own_key(row.custom_id or "")
            return key < LIKE_MADE_UP and not self._seen.add(key, row.line)
        if not self._claimed:
            self._note_made_up(row.index)
        return not self._claimed

    def _note(self, key: int, index: int, line: int) -> None:
        """Keep in mind that an id is taken."""
        if key == MADE_UP:
            self._note_made_up(index)
            return
        self._claimed = self._claimed or key >= LIKE_MADE_UP
        if line:
            self._seen.add(key, line)

    def _note_made_up(self, index: int) -> None:
        try:
            self._derived[index >> 3] |= 1 << (index & 7)
        except IndexError:
            self._derived.extend(bytes(index // 8 + 4096 - len(self._derived)))
            self._derived[index >> 3] |= 1 << (index & 7)

    def _identify(self, custom_id: Any, other: Any, index: int, line: int) -> str:
        """Give the row's id and remember it; a derived id is remembered as one bit."""
        given = custom_id if custom_id is not None else other
        if given is None or given == "":
            if not line:
                return f"row-{index}"
            self._note(MADE_UP, index, line)
            derived = f"row-{index}"
            if self._claimed and (first := self._seen.add(own_key(derived), line)):
                raise InvalidRequestError(
                    f"the row has no custom_id, and {derived!r}, which it would get, is taken by line {first}",
                    code=DUPLICATE,
                    sent=False,
                )
            return derived
        if type(given) is int:
            given = str(given)
        elif type(given) is not str:
            name = "custom_id" if custom_id is not None else "id"
            raise InvalidRequestError(f"{name} must be a string, not {_shown(given)}", sent=False)
        if not line:  # nothing but a file is looked up by its ids
            return given
        if given.startswith("row-") and given[4:].isdecimal():
            self._claimed = True
            place = int(given[4:]) if len(given) < 24 else -1
            if given != f"row-{place}":
                place = -1
            if 0 <= place < 8 * len(self._derived) and self._derived[place >> 3] >> (place & 7) & 1:
                text = f"custom_id {given!r} is taken by row {place}"
                raise InvalidRequestError(text, code=DUPLICATE, sent=False)
            if place == index:  # the id that it would get: passed over later, it is known by nothing else
                self._note(MADE_UP, index, line)
        if first := self._seen.add(own_key(given), line):
            text = f"custom_id {given!r} was already used on line {first}"
            raise InvalidRequestError(text, code=DUPLICATE, sent=False)
        return given

    def _request(self, head: _Line, text: bytes, custom_id: str) -> Request:
        if self._prompt is not None:
            return self._from_columns(_all_columns(text), custom_id)
        if head.body is not UNSET:
            return self._from_batch(head, text, custom_id)
        if head.source is not UNSET:
            raise InvalidRequestError(_old_message(head.error), sent=False)
        if head.messages is not UNSET or head.input is not UNSET:
            return self._from_body(head, text, custom_id)
        if head.prompt is not UNSET:
            return self._from_columns(_all_columns(text), custom_id)
        names = ", ".join(name for name in _all_columns(text) if not name.startswith("_"))
        raise InvalidRequestError(
            "the row is no request: it has none of body, messages, prompt, input; "
            f"for other columns give prompt=…. Columns: {names or 'none'}",
            sent=False,
        )

    def _from_batch(self, head: _Line, text: bytes, custom_id: str) -> Request:
        body = bytes(cast(Raw, head.body))
        if not body.startswith(b"{"):
            raise InvalidRequestError(f"body must be an object, not {_shown(body)}", sent=False)
        if head.method is not None and head.method not in ("POST", "post"):
            raise InvalidRequestError(f"method must be POST, not {_shown(head.method)}", sent=False)
        if head.url is None:
            inner = _line.decode(body)
            path = self._path(inner, body)
        else:
            found = PATH_OF_URL.get(head.url) if isinstance(head.url, str) else None
            if found is None:
                urls = ", ".join(sorted("/v1" + path for path in PATHS))
                raise InvalidRequestError(f"url {_shown(head.url)} is not one of {urls}", sent=False)
            path = found
        return self._finish(path, body, custom_id, text)

    def _from_body(self, head: _Line, text: bytes, custom_id: str) -> Request:
        path = CHAT if head.messages is not UNSET else self._path(head, text)
        body = text
        ours = head.custom_id is not None or head.id is not None or head.error is not UNSET
        if ours or head.url is not None or head.method is not None:
            fields = _object.decode(text)
            for name in _OURS:
                fields.pop(name, None)
            body = _encode(fields)
        return self._finish(path, body, custom_id, text)

    def _from_columns(self, columns: dict[str, Any], custom_id: str) -> Request:
        prompt = self._prompt.render(columns) if self._prompt is not None else columns.get("prompt")
        if not isinstance(prompt, str | list):
            raise InvalidRequestError(f"prompt must be text, not {_shown(prompt)}", sent=False)
        system = self._system.render(columns) if self._system is not None else None
        body: dict[str, Any] = {}
        if self._prompt is None:
            own = columns.get("system")
            system = own if isinstance(own, str) and own else system
            for name, value in columns.items():
                if value is None:
                    continue
                if name in PARAMETERS:
                    body[name] = value
                elif name not in _KNOWN and (name in self.unsent or len(self.unsent) < _MOST_NAMES):
                    self.unsent[name] = self.unsent.get(name, 0) + 1
            extra = columns.get("extra_body")
            if isinstance(extra, dict):
                body.update(extra)
        own_model = columns.get("model")
        if isinstance(own_model, str) and own_model and not self.recipe.model:
            body["model"] = own_model
        elif self.recipe.model:
            body["model"] = self.recipe.model
        messages = [{"role": "system", "content": system}] if system is not None else []
        body["messages"] = [*messages, {"role": "user", "content": prompt}]
        return self._finish(CHAT, _encode(body), custom_id)

    def _path(self, head: _Line, body: bytes) -> str:
        """Choose the operation of a body without a url, by the rule at the top."""
        if head.messages is not UNSET:
            return CHAT
        if head.input is not UNSET:
            model = self.recipe.model or head.model
            listed = bytes(head.input).lstrip()[:32].replace(b" ", b"")
            if (
                (isinstance(model, str) and "embed" in model.lower())
                or (listed[:1] == b"[" and listed[1:2] not in (b"{", b"]"))
                or not _object.decode(body).keys().isdisjoint(("dimensions", "encoding_format"))
            ):
                return EMBEDDINGS
            return RESPONSES
        return COMPLETIONS if head.prompt is not UNSET else CHAT

    def _finish(self, path: str, body: bytes, custom_id: str, columns: bytes | None = None) -> Request:
        """Make the request; the body is rewritten only where something must change."""
        if self._params:
            body = self._rewritten(path, body)
        if self._system is not None and columns is not None:
            body = _with_system(path, body, self._system, columns)
        request = Request.from_body(body, path=path, model=self.recipe.model, custom_id=custom_id, priority=BATCH)
        if request.stream:
            request = msgspec.structs.replace(request, body=self._rewritten(path, body), stream=False)
        if self._shapes:
            request = self._shaped(request)
        if not request.model:
            text = "the row names no model; give one in the row or with model=…"
            raise InvalidRequestError(text, code=NO_MODEL, sent=False)
        return request

    def filled(self, request: Request) -> Request:
        """Give a request that was made elsewhere the parameters and the system message that it lacks."""
        body = self._rewritten(request.path, request.body) if self._params else request.body
        if self._system is not None:
            body = _with_system(request.path, body, self._system, body)
        if body is not request.body:
            request = request.with_body(body, model=request.model)
        return self._shaped(request) if self._shapes else request

    def _shaped(self, request: Request) -> Request:
        """Give the request with the schema that its answer must fit, if it has no wish of its own."""
        shape = self._shapes.get(request.path)
        if shape is None:
            raise InvalidRequestError(f"{request.path} takes no schema: run this row without one", sent=False)
        own = _format.decode(request.body)
        if own.response_format is not None or (own.text is not None and "format" in own.text):
            return request
        fields = {"response_format": shape} if request.path == CHAT else {"text": {**(own.text or {}), **shape}}
        return msgspec.structs.replace(request.with_fields(**fields), schema=self.recipe.schema)

    def _rewritten(self, path: str, body: bytes) -> bytes:
        try:
            fields = _object.decode(body)
        except _INVALID as error:
            raise InvalidRequestError(_what(error, body), sent=False) from None
        fields.pop("stream", None)
        fields.pop("stream_options", None)
        for name, value in self._params.items():
            fitting = _fitting(path, name)
            taken = _DEFAULT_LIMITS if fitting in _DEFAULT_LIMITS else (fitting,)
            if fitting and not any(other in fields for other in taken):
                fields[fitting] = value
        return _encode(fields)

    def __repr__(self) -> str:
        return f"<Intake {self.count} rows>"


def unsent_words(unsent: dict[str, int], most: int = 8) -> str:
    """Name the columns that were not sent, the most frequent first, each with the parameter it may be meant for."""
    words = []
    for name, count in sorted(unsent.items(), key=lambda item: -item[1])[:most]:
        near = difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=0.75)
        rows = "1 row" if count == 1 else f"{count:,} rows"
        words.append(f"{_shown(name)[1:-1]} ({rows}{f'; did you mean {near[0]}?' if near else ''})")
    return ", ".join(words) + (f" and {len(unsent) - most:,} more" if len(unsent) > most else "")


def _fitting(path: str, name: str) -> str:
    """Give the name by which an operation knows a default, or "" where it does not."""
    if path == RESPONSES and name in _DEFAULT_LIMITS:
        return "max_output_tokens"
    if path in (EMBEDDINGS, MODERATIONS) and name in PARAMETERS and name != "user":
        return ""
    return name


def _with_system(path: str, body: bytes, system: Template, text: bytes) -> bytes:
    """Put the system message before messages that have none, or into the instructions of a Responses body."""
    if path not in (CHAT, RESPONSES):
        raise InvalidRequestError(f"{path} takes no system message: run this row without one", sent=False)
    fields = _object.decode(body)
    name = "messages" if path == CHAT else "input"
    raw = bytes(fields.get(name, b"[]"))
    messages: list[Any] = []
    if path == CHAT or raw.startswith(b"["):
        try:
            messages = msgspec.json.decode(raw, type=list[dict[str, Any]])
        except msgspec.DecodeError as error:
            raise InvalidRequestError(f"{name} must be a list of objects: {error}", sent=False) from None
    given = bytes(fields.get("instructions", b"null")) if path == RESPONSES else b"null"
    if given not in (b"null", b'""') or any(item.get("role") in ("system", "developer") for item in messages):
        return body
    rendered = system.render(_all_columns(text))
    if path == RESPONSES:
        fields["instructions"] = Raw(_encode(rendered))
    else:
        fields["messages"] = Raw(_encode([{"role": "system", "content": rendered}, *messages]))
    return _encode(fields)


def _all_columns(text: bytes) -> dict[str, Any]:
    try:
        return _columns.decode(text)
    except _INVALID as error:
        raise InvalidRequestError(_what(error, text), sent=False) from None


def _old_message(error: Raw | UnsetType) -> str:
    try:
        message = msgspec.json.decode(error, type=_OldError).message if isinstance(error, Raw) else _OldError().message
    except msgspec.DecodeError:
        message = _OldError().message
    return message.split(": ", 1)[1] if message.startswith("line ") and ": " in message else message


def _what(error: Exception, text: bytes) -> str:
    """Say why a line is not a row, in one line."""
    if isinstance(error, UnicodeDecodeError):
        return not_utf8(error)
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if text.lstrip()[:1] != b"{" and isinstance(error, msgspec.ValidationError):
        return f"not a JSON object but {_shown(text)}"
    return f"not valid JSON: {error}"


def check_header(name: str | Path, header: Sequence[str], intake: Intake) -> None:
    """Raise ConfigError where a table has no columns that make a request."""
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise ConfigError(f"the header of {name} names a column twice: {', '.join(map(repr, twice))}")
    if header and intake.recipe.prompt is not None:
        intake.check_columns(header)
    elif header and not {"prompt", "messages", "input", "body"}.intersection(header):
        raise ConfigError(f"{name} has no column 'prompt'; give prompt=… with some of {{{'}, {'.join(header)}}}")


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say what is wrong with the bytes, and the way out."""
    return f"not UTF-8 at byte {error.start} ({error.reason}); convert the file, such as with: iconv -f CP1252 -t UTF-8"


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True


def _shown(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else _encode(value).decode()
    text = text.strip()
    return text if len(text) <= 40 else text[:40] + "…"
