"""What the model says: answers in OpenAI's shapes that follow from the request alone.

Equal bodies get equal bytes, and every text begins with the checksum of the body it answers, so that a test can
tell an answer that was mixed up, cut or altered. One token is four bytes here. Where the answer is asked to fit a JSON
schema, it is JSON that does, and its texts are the checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import chain
from typing import Any

import msgspec

from .config import MockConfig
from .reply import Refused, Reply, encode, event
from .specimen import specimen

CREATED = 1_700_000_000  # fixed, so that equal requests get equal bytes
_NOT_SUMMED = frozenset({"stream", "stream_options", "mock"})
_WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "iris",
    "jade",
    "kelp",
    "lotus",
    "maple",
    "nectar",
    "opal",
    "pine",
]
_ECHO = 200  # characters of the question that the answer repeats
_canonical = msgspec.json.Encoder(order="sorted").encode
_DONE = b"data: [DONE]\n\n"


def checksum_of(body: dict[str, Any]) -> str:
    """Give the 32 hex digits that an answer to this request body begins with.

    Key order, `stream`, `stream_options` and `mock` do not matter; everything else does.
    Example: `assert answer.choices[0].message.content.startswith(checksum_of(body))`
    """
    return _digest({name: value for name, value in body.items() if name not in _NOT_SUMMED})


def tokens_in(text: str) -> int:
    """Count tokens as the model server does: four bytes each, at least one."""
    return max(1, (len(text) if text.isascii() else len(text.encode())) // 4)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()[:32]


class Ask(msgspec.Struct, gc=False):
    """One request, read as far as all endpoints have in common."""

    body: dict[str, Any]
    model: str
    checksum: str
    config: MockConfig
    sample: int
    stream: bool = False
    include_usage: bool = False
    mock: Any = None

    def id(self, prefix: str) -> str:
        return f"{prefix}-{self.checksum}{self.sample:x}" if self.config.vary else f"{prefix}-{self.checksum}"


class Answer(msgspec.Struct, gc=False):
    """The right reply, and what it costs: `charge` is what TPM is charged."""

    reply: Reply
    prompt_tokens: int
    completion_tokens: int = 0
    charge: int = 0


Answerer = Callable[[Ask], Answer]


def read(body: Any, config: MockConfig, sample: int, default_model: str | None = None) -> Ask:
    """Take the fields apart that no endpoint owns; raise Refused where a model is missing."""
    if not isinstance(body, dict):
        raise Refused(400, "We could not parse the JSON body of your request: it must be an object.")
    model = body.get("model") or default_model
    if not isinstance(model, str) or not model:
        raise Refused(400, "you must provide a model parameter", param="model")
    if not config.any_model and model not in config.models:
        text = f"The model `{model}` does not exist or you do not have access to it."
        raise Refused(404, text, code="model_not_found", param="model")
    ask = Ask(body, model, "", config, sample)
    if not _NOT_SUMMED.isdisjoint(body):
        ask.stream = body.pop("stream", None) is True
        options, ask.mock = body.pop("stream_options", None), body.pop("mock", None)
        ask.include_usage = isinstance(options, dict) and options.get("include_usage") is True
    ask.checksum = _digest(body)
    return ask


def number(body: dict[str, Any], name: str, *, most: int) -> int | None:
    """Read an optional whole number of at least 1."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        text = f"Invalid '{name}': it must be an integer between 1 and {most}."
        raise Refused(400, text, param=name, code="invalid_value")
    return value


def texts_in(value: Any) -> list[str]:
    """Give the texts of a message's content or an input, whatever its nesting."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in texts_in(part)]
    if isinstance(value, dict):
        return texts_in(value.get("text", value.get("content")))
    return []


def compose(ask: Ask, said: str, index: int = 0) -> str:
    """Give the text of one choice, before any cut by max_tokens."""
    config = ask.config
    if config.answer is not None:
        text = config.answer
        if config.vary:
            text = f"{text} sample {ask.sample}"
    elif (schema := _schema_of(ask.body)) is not None:
        text = encode(specimen(schema, ask.checksum)).decode()
    else:
        pick = int(ask.checksum[:8], 16) ^ (config.seed * 2_654_435_761) ^ (index * 40_503)
        words = f"{_WORDS[pick & 15]} {_WORDS[pick >> 4 & 15]} {_WORDS[pick >> 8 & 15]}"
        mark = f" sample {ask.sample}" if config.vary else ""
        text = f"{ask.checksum}{mark} {words}: {said[:_ECHO]}"
    return text if config.answer_bytes is None else _stretched(text, config.answer_bytes)


def _schema_of(body: dict[str, Any]) -> Any:
    """Give the JSON schema that the answer is asked to fit, if it is."""
    asked, text = body.get("response_format"), body.get("text")
    if isinstance(asked, dict) and isinstance(asked.get("json_schema"), dict):
        return asked["json_schema"].get("schema")
    if isinstance(text, dict) and isinstance(text.get("format"), dict):
        return text["format"].get("schema")
    return None


def _stretched(text: str, size: int) -> str:
    """Give exactly `size` bytes: the text repeated and cut, a character cut in half replaced by dots."""
    data = text.encode() + b" "
    kept = (data * (size // len(data) + 1))[:size].decode("utf-8", "ignore")
    return kept + "." * (size - len(kept.encode()))


def cut(text: str, limit: int | None) -> tuple[str, int, str]:
    """Give the text as far as `limit` tokens reach, its tokens and the finish_reason."""
    count = tokens_in(text)
    if limit is None or count <= limit:
        return text, count, "stop"
    text = text.encode()[: limit * 4].decode("utf-8", "ignore")
    return text, tokens_in(text), "length"


def portions(text: str) -> list[str]:
    """Cut a text into the pieces it is streamed in: about a token each."""
    return [text[i : i + 4] for i in range(0, len(text), 4)] or [""]


def stream_of(events: list[bytes]) -> Reply:
    return Reply(content_type="text/event-stream", events=events)


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


# --- chat/completions ------------------------------------------------------------------------------------------


def chat(ask: Ask) -> Answer:
    """Answer a chat: the text repeats the last user message."""
    body = ask.body
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or any(not isinstance(m, dict) for m in messages):
        raise Refused(400, "Invalid 'messages': it must be a non-empty array of objects.", param="messages")
    limit = number(body, "max_completion_tokens", most=1 << 31) or number(body, "max_tokens", most=1 << 31)
    prompt, said = _heard(messages)
    if (call := called(ask, body)) is not None:
        return _called(ask, call, prompt)
    made = [cut(compose(ask, said, i), limit) for i in range(number(body, "n", most=128) or 1)]
    completion = made[0][1] if len(made) == 1 else sum(tokens for _, tokens, _ in made)
    reply = _chat_stream(ask, made, prompt) if ask.stream else Reply(_chat_whole(ask, made, prompt, completion))
    return Answer(reply, prompt, completion, prompt + (completion if limit is None else limit * len(made)))


def called(ask: Ask, body: dict[str, Any]) -> dict[str, Any] | None:
    """Give the tool call that must be made: of the function that is named, or else of the first; its arguments are the
    least that fits, with the checksum for text. None where no call is required."""
    choice = body.get("tool_choice")
    named = choice["function"].get("name") if isinstance(choice, dict) and "function" in choice else None
    functions = [tool["function"] for tool in body.get("tools") or () if isinstance(tool, dict) and "function" in tool]
    wanted = [one for one in functions if named is None or one.get("name") == named]
    if not wanted or (choice != "required" and named is None):
        return None
    arguments = encode(specimen(wanted[0].get("parameters") or {"type": "object"}, ask.checksum)).decode()
    return {"id": ask.id("call"), "type": "function", "function": {"name": wanted[0]["name"], "arguments": arguments}}


def _called(ask: Ask, call: dict[str, Any], prompt: int) -> Answer:
    """Answer with a tool call."""
    completion = tokens_in(call["function"]["arguments"])
    usage = usage_of(prompt, completion)
    if not ask.stream:
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
        frame = _chat_frame(ask, "chat.completion")
        return Answer(Reply(encode({**frame, "choices": [choice], "usage": usage})), prompt, completion, prompt)
    frame = {**_chat_frame(ask, "chat.completion.chunk"), "system_fingerprint": "fp_mock"}
    function = {"name": call["function"]["name"], "arguments": ""}
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call, "function": function}]},
        *(
            {"tool_calls": [{"index": 0, "function": {"arguments": part}}]}
            for part in portions(call["function"]["arguments"])
        ),
        {},
    ]
    last = len(deltas) - 1
    choices = [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": "tool_calls" if place == last else None}
        for place, delta in enumerate(deltas)
    ]
    events = [event({**frame, "choices": [choice]}) for choice in choices]
    if ask.include_usage:
        events.append(event({**frame, "choices": [], "usage": usage}))
    return Answer(stream_of([*events, _DONE]), prompt, completion, prompt)


def _heard(messages: list[dict[str, Any]]) -> tuple[int, str]:
    """Count the prompt's tokens and find what the user said last."""
    size, said = 0, ""
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) else "\n".join(texts_in(content))
        size += len(text) if text.isascii() else len(text.encode())
        if message.get("role") == "user":
            said = text
    return max(1, size // 4), said


# Written by hand, not encoded from dicts: this is the hot path, and a third of the cost.
_WHOLE = (
    b'{"id":"%b","object":"chat.completion","created":%d,"model":%b,"choices":[%b],'
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}'
)
_CHOICE = (
    b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null},"logprobs":null,"finish_reason":"%b"}'
)


def _chat_whole(ask: Ask, made: list[tuple[str, int, str]], prompt: int, completion: int) -> bytes:
    choices = b",".join([_CHOICE % (i, encode(text), reason.encode()) for i, (text, _, reason) in enumerate(made)])
    id = ask.id("chatcmpl").encode()
    return _WHOLE % (id, CREATED, encode(ask.model), choices, prompt, completion, prompt + completion)


def _chat_frame(ask: Ask, kind: str) -> dict[str, Any]:
    return {"id": ask.id("chatcmpl"), "object": kind, "created": CREATED, "model": ask.model}


def _chat_stream(ask: Ask, made: list[tuple[str, int, str]], prompt: int) -> Reply:
    frame = encode({**_chat_frame(ask, "chat.completion.chunk"), "system_fingerprint": "fp_mock"})[:-1]
    tail = b',"usage":null}\n\n' if ask.include_usage else b"}\n\n"

    def piece(index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return b'data: %b,"choices":[%b]%b' % (frame, encode(choice), tail)

    count = range(len(made))
    events = [piece(i, {"role": "assistant", "content": ""}) for i in count]
    events += _interleaved([[piece(i, {"content": part}) for part in portions(made[i][0])] for i in count])
    events += [piece(i, {}, made[i][2]) for i in count]
    if ask.include_usage:
        usage = encode(usage_of(prompt, sum(tokens for _, tokens, _ in made)))
        events.append(b'data: %b,"choices":[],"usage":%b}\n\n' % (frame, usage))
    return stream_of([*events, _DONE])


def _interleaved(lists: list[list[bytes]]) -> list[bytes]:
    if len(lists) == 1:
        return lists[0]
    longest = max(map(len, lists))
    return list(chain.from_iterable([items[i] for items in lists if i < len(items)] for i in range(longest)))


# --- completions (the old endpoint) ----------------------------------------------------------------------------


def completions(ask: Ask) -> Answer:
    """Answer a prompt, or several: `n` texts each."""
    prompt = ask.body.get("prompt")
    tokens = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
    prompts: list[Any] = prompt if isinstance(prompt, list) and not tokens else [prompt]
    if not prompts or any(not isinstance(one, str | list) for one in prompts):
        raise Refused(400, "Invalid 'prompt': it must be a string or an array.", param="prompt")
    limit = number(ask.body, "max_tokens", most=1 << 31)
    n = number(ask.body, "n", most=128) or 1
    asked = sum(tokens_in(one) if isinstance(one, str) else max(1, len(one)) for one in prompts)
    said = [one if isinstance(one, str) else "" for one in prompts for _ in range(n)]
    made = [cut(compose(ask, one, i), limit) for i, one in enumerate(said)]
    completion = sum(tokens for _, tokens, _ in made)
    frame = {"id": ask.id("cmpl"), "object": "text_completion", "created": CREATED, "model": ask.model}
    usage = usage_of(asked, completion)
    reply = _completions_stream(ask, frame, made, usage) if ask.stream else None
    if reply is None:
        choices = [
            {"index": i, "text": text, "logprobs": None, "finish_reason": reason}
            for i, (text, _, reason) in enumerate(made)
        ]
        reply = Reply(encode({**frame, "choices": choices, "usage": usage}))
    return Answer(reply, asked, completion, asked + (completion if limit is None else limit * len(made)))


def _completions_stream(
    ask: Ask, frame: dict[str, Any], made: list[tuple[str, int, str]], usage: dict[str, int]
) -> Reply:
    def piece(index: int, text: str, reason: str | None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        return event({**frame, "choices": [choice]})

    events = _interleaved([[piece(i, part, None) for part in portions(made[i][0])] for i in range(len(made))])
    events += [piece(i, "", made[i][2]) for i in range(len(made))]
    if ask.include_usage:
        events.append(event({**frame, "choices": [], "usage": usage}))
    return stream_of([*events, _DONE])
