"""The other direction, for servers: generateContent bodies as chat bodies, chat chunks as generateContent events.

What chat has no word for (`safetySettings`, `cachedContent`, Gemini's own tools and parts) is passed on under its own
name, so that a request that goes on to Gemini arrives as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..answers import ToolCall
from ..types import Chunk
from .checked import as_list, as_mapping, refused
from .gemini_answer import part_of_call, reason_back, said, usage_back
from .places import Places

_CONFIG = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "seed": "seed",
    "candidateCount": "n",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "responseLogprobs": "logprobs",
    "logprobs": "top_logprobs",
    "maxOutputTokens": "max_tokens",
    "stopSequences": "stop",
}
_READ = frozenset(("contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "model"))
_MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto"}
_UNDERSCORE = re.compile(r"_([a-z])")
_encode = msgspec.json.encode


def from_gemini(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Give the chat body of a generateContent body. InvalidRequestError where there is none."""
    body = _camel(body)
    messages: list[dict[str, Any]] = []
    system = body.get("systemInstruction")
    if system:
        parts = [_camel(part) for part in as_list(as_mapping(system, "systemInstruction").get("parts"), "its parts")]
        messages.append({"role": "system", "content": _content(parts, "systemInstruction")})
    called: list[tuple[str, Any]] = []  # names and ids of the calls that wait for a result
    for place, turn in enumerate(as_list(body.get("contents"), "contents")):
        messages += _messages(as_mapping(turn, f"contents[{place}]"), place, called)
    out: dict[str, Any] = {"model": model, "messages": messages}
    out |= _tools(body.get("tools")) | _choice(body.get("toolConfig"))
    out |= _config(_camel(as_mapping(body.get("generationConfig") or {}, "generationConfig")))
    return out | {name: value for name, value in body.items() if name not in _READ and value is not None}


def _camel(fields: Any) -> Any:
    """Give an object with its names as Gemini's reference has them: as all of protobuf's JSON, they may also come in
    snake_case, and Google's own SDK sends some so."""
    if not isinstance(fields, Mapping):
        return fields
    return {_UNDERSCORE.sub(lambda found: found[1].upper(), str(name)): value for name, value in fields.items()}


def _messages(turn: Mapping[str, Any], place: int, called: list[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    where = f"contents[{place}]"
    role = turn.get("role") or "user"
    given = as_list(turn.get("parts"), f"{where}.parts")
    parts = [_camel(as_mapping(part, f"{where}.parts[]")) for part in given]
    if role == "model":
        message = said(parts, place)
        called += [(call["function"]["name"], call["id"]) for call in message.get("tool_calls") or ()]
        message.pop("refusal")
        yield message
        return
    if role not in ("user", "function"):
        raise refused(f"{where}.role must be user or model, not {role!r}")
    rest = []
    for part in parts:
        if isinstance(part.get("functionResponse"), dict):
            yield _result(part["functionResponse"], called)
        else:
            rest.append(part)
    if rest:
        yield {"role": "user", "content": _content(rest, where)}


def _result(response: Mapping[str, Any], called: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which call it answers is told by its id, or else by the name of the function: the first that still waits."""
    name, given = response.get("name"), response.get("id")
    found = next((item for item in called if (item[1] == given if given else item[0] == name)), (name, given or name))
    if found in called:
        called.remove(found)
    content = response.get("response")
    text = content["output"] if isinstance(content, dict) and content.keys() == {"output"} else content
    out = {"role": "tool", "tool_call_id": found[1], "content": text if isinstance(text, str) else _json(text)}
    return {**out, "name": name} if name else out


def _json(value: Any) -> str:
    return _encode(value).decode()


def _content(parts: list[Any], where: str) -> str | list[dict[str, Any]]:
    """A single plain text is written as text."""
    out = [_part(as_mapping(part, f"{where}.parts[]")) for part in parts]
    if len(out) == 1 and out[0].keys() == {"type", "text"}:
        return str(out[0]["text"])
    return out


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.keys() == {"text"}:
        return {"type": "text", "text": part["text"]}
    data = _camel(part.get("inlineData"))
    if isinstance(data, dict):
        kind = str(data.get("mimeType") or "")
        if kind.startswith("audio/"):
            audio = {"format": kind.removeprefix("audio/"), "data": data.get("data")}
            return {"type": "input_audio", "input_audio": audio}
        url = f"data:{kind};base64,{data.get('data')}"
        if kind.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": url}}
        return {"type": "file", "file": {"file_data": url}}
    file = _camel(part.get("fileData"))
    if isinstance(file, dict) and str(file.get("mimeType") or "").startswith("image/"):
        return {"type": "image_url", "image_url": {"url": file.get("fileUri")}}
    return dict(part)  # one of Gemini's own


def _tools(tools: Any) -> dict[str, Any]:
    out: list[dict[str, Any]] = []
    for tool in as_list(tools or [], "tools"):
        fields = _camel(as_mapping(tool, "a tool"))
        for given in as_list(fields.pop("functionDeclarations", None) or [], "functionDeclarations"):
            declared = _camel(as_mapping(given, "functionDeclarations[]"))
            function = {name: declared[name] for name in ("name", "description") if declared.get(name) is not None}
            schema = declared.get("parametersJsonSchema") or _lower(declared.get("parameters"))
            if schema:
                function["parameters"] = schema
            out.append({"type": "function", "function": function})
        if fields:
            out.append(fields)
    return {"tools": out} if out else {}


def _lower(schema: Any) -> Any:
    """Gemini's own schemas name types in capitals; JSON Schema does not."""
    if isinstance(schema, list):
        return [_lower(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value.lower() if name == "type" and isinstance(value, str) else _lower(value)
        for name, value in schema.items()
    }


def _choice(config: Any) -> dict[str, Any]:
    calling = _camel(_camel(as_mapping(config or {}, "toolConfig")).get("functionCallingConfig"))
    if not isinstance(calling, dict):
        return {}
    names = as_list(calling.get("allowedFunctionNames") or [], "allowedFunctionNames")
    if calling.get("mode") == "ANY" and len(names) == 1:
        return {"tool_choice": {"type": "function", "function": {"name": names[0]}}}
    mode = calling.get("mode")
    if not isinstance(mode, str) or mode not in _MODES:
        raise refused(f"functionCallingConfig.mode must be one of {', '.join(_MODES)}, not {mode!r}")
    return {"tool_choice": _MODES[mode]}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    out = {ours: config[theirs] for theirs, ours in _CONFIG.items() if config.get(theirs) is not None}
    if config.get("responseMimeType") == "application/json":
        schema = config.get("responseJsonSchema") or _lower(config.get("responseSchema"))
        shape = {"name": "answer", "schema": schema, "strict": True}
        out["response_format"] = {"type": "json_schema", "json_schema": shape} if schema else {"type": "json_object"}
    thinking = _camel(config.get("thinkingConfig"))
    if isinstance(thinking, dict) and isinstance(thinking.get("thinkingLevel"), str):
        out["reasoning_effort"] = thinking["thinkingLevel"].lower()
    elif thinking is not None:
        out["generationConfig"] = {"thinkingConfig": thinking}
    if config.get("responseModalities"):
        kinds = as_list(config["responseModalities"], "responseModalities")
        out["modalities"] = [str(kind).lower() for kind in kinds]
    return out


class AnswerEncoder:
    """Writes the chunks of a chat stream as the events of a streamGenerateContent answer.

    Gemini gives a function call whole, so its pieces are kept until the next call, or the end.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._calls: dict[int, dict[int, dict[str, Any]]] = {}  # of each choice
        self._places: dict[int, Places] = {}  # the same
        self._id = ""

    def add(self, chunk: Chunk) -> bytes:
        """Give the events of a chunk."""
        self._id = self._id or chunk.id
        out = []
        for choice in chunk.choices:
            index, delta = choice.index or 0, choice.delta
            parts: list[dict[str, Any]] = []
            thought = delta.reasoning_content or delta.reasoning
            if thought:
                parts.append({"text": thought, "thought": True})
            text = delta.content if isinstance(delta.content, str) else delta.refusal
            if text:
                parts.append({"text": text})
            for call in delta.tool_calls or ():
                self._collect(index, call)
            if choice.finish_reason:
                parts += [part_of_call(call) for _, call in sorted(self._calls.pop(index, {}).items())]
            if parts or choice.finish_reason:
                out.append(self._event(index, parts, choice.finish_reason))
        usage = chunk.to_dict().get("usage")
        if isinstance(usage, dict):
            out.append(self._written({"usageMetadata": usage_back(usage)}))
        return b"".join(out)

    def _collect(self, index: int, call: ToolCall) -> None:
        calls = self._calls.setdefault(index, {})
        place = self._places.setdefault(index, Places()).of(call)
        one = calls.setdefault(place, {"id": None, "function": {"name": None, "arguments": ""}})
        one["id"] = one["id"] or call.id
        if call.function is not None:
            one["function"]["name"] = one["function"]["name"] or call.function.name
            one["function"]["arguments"] += call.function.arguments or ""

    def _event(self, index: int, parts: list[dict[str, Any]], reason: str | None) -> bytes:
        candidate: dict[str, Any] = {"index": index, "content": {"role": "model", "parts": parts}}
        if reason:
            candidate["finishReason"] = reason_back(reason)
        return self._written({"candidates": [candidate]})

    def _written(self, fields: dict[str, Any]) -> bytes:
        more = {"responseId": self._id} if self._id else {}
        return b"data: %b\n\n" % _encode({**fields, "modelVersion": self._model, **more})
