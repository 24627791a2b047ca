"""What an endpoint does not take, as it said so itself: parameters to be left out or called otherwise.

Nothing is sent that the caller did not ask for, and nothing is changed before the provider has refused it. A 400 that
says of a parameter of the request that it is not supported teaches one rule, and every later request of this endpoint
goes by it:
- where the message names the parameter to use instead ("Use 'max_completion_tokens' instead"), it is renamed;
- where it only tunes how the answer is made (`DROPPABLE`), it is left out;
- anything else (messages, tools, the schema of the answer, `n`, `stop`) is what the caller wants: the error stands.

It also stands where the parameter as such is supported: where one value of it is refused (`unsupported_value`), unless
only the default is taken, and where it is refused in company of another one, or under a condition. The next request
may have another value or other company.

The wordings are those of OpenAI, Anthropic, Groq, Mistral and of servers that check with pydantic, November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import UNSET

from ..errors import BadRequestError, UnprocessableEntityError, UnsupportedParameterError
from ..types import Request

UnsupportedParams = Literal["adapt", "refuse"]

DROPPABLE = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
        "logit_bias", "logprobs", "top_logprobs", "parallel_tool_calls", "reasoning_effort", "verbosity", "store",
        "service_tier", "metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "stream_options", "prediction", "thinking",
    }
)  # fmt: skip
RENAMED = {
    "max_tokens": frozenset({"max_completion_tokens", "max_output_tokens"}),
    "max_completion_tokens": frozenset({"max_tokens", "max_output_tokens"}),
    "max_output_tokens": frozenset({"max_tokens", "max_completion_tokens"}),
    "user": frozenset({"safety_identifier", "prompt_cache_key"}),
}
_NAME = r"[`'\"]?([a-z][a-z0-9_]*)[`'\"]?"
_INSTEAD = re.compile(r"(?i)\buse " + _NAME + r" instead|instead,? use " + _NAME)
# Nobody there knows the parameter, whatever else was sent.
_UNKNOWN = (
    re.compile(r"(?i)unrecognized (?:request )?(?:argument|parameter|field)s?(?: supplied)?:? " + _NAME),
    re.compile(r"(?i)unknown (?:parameter|field|argument):? " + _NAME),
    re.compile(_NAME + r":? (?i:extra (?:inputs|fields) (?:are )?not permitted)"),
)
# It is known, and not supported: by this model, or only in this request?
_UNSUPPORTED = (
    re.compile(r"(?i)unsupported (?:parameter|field|argument)s?:? " + _NAME),
    re.compile(
        _NAME + r"(?: parameter)? (?i:is|are) (?i:not supported|unsupported|not permitted|not allowed|deprecated)"
    ),
    re.compile(_NAME + r" (?i:must be unset|cannot be (?:set|used|specified))"),
)
_VALUE = (re.compile(r"(?i)unsupported value:? " + _NAME), re.compile(_NAME + r" (?i:does not support)"))
_ONLY_DEFAULT = re.compile(r"(?i)\bonly (?:the|its) default\b")
_CONDITION = re.compile(
    r"(?i)\b(?:when|while|whenever|if|unless|until|without|together|both|either|combin\w+|simultaneous\w*|alongside|along"
    r"|at the same time|mutually|in addition)\b"
)
_SENTENCE_END = re.compile(r"[.;!?\n](?=\s|$)")
_WORDS = frozenset({"model", "messages", "input", "user", "text", "prompt"})  # fields that are words, too
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Parameters:
    """The rules of one endpoint: parameter -> its new name, or None to leave it out. `known` are those that need no
    refusal; with `learns` False it stays with them."""

    __slots__ = ("_learns", "rules")

    def __init__(self, known: Mapping[str, str] | None = None, *, learns: bool = True) -> None:
        self.rules: dict[str, str | None] = dict(known or {})
        self._learns = learns

    def learn(self, request: Request, error: Exception) -> str | None:
        """Take a rule from a refusal of this request, as it was sent. Gives the rule in words if it is a new one, ""
        where another request had taught it meanwhile, None where the refusal teaches nothing."""
        if not self._learns or not isinstance(error, BadRequestError | UnprocessableEntityError):
            return None
        try:
            body = _fields.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        name = next((name for name in _named(error, body) if name in body), None)
        if name is None:
            return None
        new = next((found for found in _instead(error.message) if found in RENAMED.get(name, ())), None)
        if new in self.rules or (new is None and name not in DROPPABLE):
            return None  # there and back again would never end
        known = name in self.rules
        self.rules[name] = new
        if known:
            return ""
        return f"{name} is called {new} there" if new else f"{name} is not supported there and left out"

    def applied(self, request: Request) -> Request:
        """Give the request as this endpoint takes it."""
        text = request.body
        if b"\\u" not in text and not any(f'"{name}"'.encode() in text for name in self.rules):
            return request  # a key may be written with escapes
        body = _fields.decode(text)
        changes: dict[str, object] = {}
        for name in self.rules:
            if name in body:
                changes[name] = UNSET
                new = self._final(name)
                if new is not None and new not in body:
                    changes[new] = body[name]
        if not changes:
            return request
        for name, value in changes.items():
            if value is UNSET:
                del body[name]
            else:
                assert isinstance(value, msgspec.Raw)
                body[name] = value
        return msgspec.structs.replace(request, body=msgspec.json.encode(body))

    def _final(self, name: str) -> str | None:
        """Follow the rules: what is called otherwise may in turn have been refused."""
        new: str | None = name
        while new is not None and new in self.rules:
            new = self.rules[new]
        return new

    def __repr__(self) -> str:
        return f"<Parameters {self.rules}>"


def _named(error: BadRequestError | UnprocessableEntityError, body: Mapping[str, object]) -> list[str]:
    """Give the parameters that a refusal calls unsupported whatever else is asked for, the surest first."""
    message = error.message
    unknown = [match[1] for pattern in _UNKNOWN for match in pattern.finditer(message)]
    values = [match[1] for pattern in _VALUE for match in pattern.finditer(message) if match[1] in body.keys() - _WORDS]
    one_value = bool(values) or error.code == "unsupported_value"
    if _CONDITION.search(message) or (one_value and not _ONLY_DEFAULT.search(message)):
        return unknown
    found = [error.param] if error.param and isinstance(error, UnsupportedParameterError) else []
    found += [match[1] for pattern in _UNSUPPORTED for match in pattern.finditer(message)] + values
    return [*unknown, *(name for name in found if not _in_company(name, message, body))]


def _in_company(name: str, message: str, body: Mapping[str, object]) -> bool:
    """Tell whether the sentences that name this parameter (all, if none does) name another one, too."""
    said = _INSTEAD.sub("", message)
    others = (body.keys() | DROPPABLE) - _WORDS - {name}
    other = re.compile(r"(?i)\b(?:" + "|".join(re.escape(field).replace("_", "[_ ]") for field in others) + r")\b")
    own = re.compile(r"(?i)\b" + re.escape(name) + r"\b")
    sentences = _SENTENCE_END.split(said)
    return any(other.search(sentence) for sentence in [found for found in sentences if own.search(found)] or sentences)


def _instead(message: str) -> list[str]:
    match = _INSTEAD.search(message)
    return [name for name in match.groups() if name] if match is not None else []
