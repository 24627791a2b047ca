"""Requests in OpenAI's chat and embeddings shapes as Gemini's generateContent and batchEmbedContents; plain values.

What Gemini has no word for is an error that names it, never dropped in silence; fields that only Gemini knows
(`safetySettings`, `cachedContent`, `generationConfig`, tools of its own such as {"googleSearch": {}}) may stand in a
chat body and pass. A tool call keeps its thought signature as Google's own OpenAI-compatible endpoint has it, in
`extra_content.google.thought_signature`, and goes back with it. Source: the Gemini API's reference, November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from .checked import DATA_URL, as_list, as_mapping, as_objects, object_in, refused

_CONFIG = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "n": "candidateCount",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
_DROPPED = frozenset(  # how the answer travels and who asks; no answer depends on them
    ("model", "stream", "stream_options", "store", "metadata", "user", "safety_identifier", "prompt_cache_key",
     "prompt_cache_retention")
)  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # fields that Gemini lacks, and values that ask for nothing
    "parallel_tool_calls": (True,),
    "logit_bias": ({},),
    "audio": (),
    "prediction": (),
    "functions": (),
    "function_call": (),
    "verbosity": (),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
}
_HANDLED = frozenset(
    ("messages", "tools", "tool_choice", "response_format", "reasoning_effort", "stop", "max_tokens",
     "max_completion_tokens", "modalities", "generationConfig", *_CONFIG)
)  # fmt: skip
_MODES = {"auto": "AUTO", "required": "ANY", "none": "NONE"}
# Google's own mapping for models that take a budget of tokens; later ones take a level of that name.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
_TAKES_BUDGET = re.compile(r"gemini-2(\.|-|$)|robotics-er-1\.5")
_AUDIO = {"mp3": "audio/mp3", "wav": "audio/wav"}
_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "heic": "image/heic",
    "heif": "image/heif",
    "pdf": "application/pdf",
    "mp4": "video/mp4",
    "mp3": "audio/mp3",
}


def to_gemini(chat: Mapping[str, Any], model: str = "") -> dict[str, Any]:
    """Give the generateContent body of a chat body for that model. InvalidRequestError where there is none."""
    out = _conversation(chat.get("messages"))
    tools = _tools(chat.get("tools"))
    if tools:
        out["tools"] = tools
    choice = _tool_config(chat.get("tool_choice"))
    if choice is not None:
        out["toolConfig"] = choice
    config = {**_config(chat, model), **as_mapping(chat.get("generationConfig") or {}, "generationConfig")}
    if config:
        out["generationConfig"] = config
    for name, value in chat.items():
        if name in _NEUTRAL:
            if value is not None and value not in _NEUTRAL[name]:
                raise refused(f"Gemini has no {name!r}: leave it out")
        elif name not in _HANDLED and name not in _DROPPED and value is not None:
            out[name] = value
    return out


def _config(chat: Mapping[str, Any], model: str) -> dict[str, Any]:
    config = {theirs: chat[ours] for ours, theirs in _CONFIG.items() if chat.get(ours) is not None}
    limit = chat.get("max_completion_tokens") or chat.get("max_tokens")
    if limit is not None:
        config["maxOutputTokens"] = limit
    if chat.get("stop") is not None:
        config["stopSequences"] = [chat["stop"]] if isinstance(chat["stop"], str) else chat["stop"]
    if chat.get("modalities") is not None:
        config["responseModalities"] = [str(kind).upper() for kind in as_list(chat["modalities"], "modalities")]
    config |= _shape(chat.get("response_format"))
    effort = chat.get("reasoning_effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in _BUDGETS:
            raise refused(f"reasoning_effort must be one of {', '.join(_BUDGETS)}, not {effort!r}")
        if _TAKES_BUDGET.search(model):
            config["thinkingConfig"] = {"thinkingBudget": _BUDGETS[effort]}
        else:
            config["thinkingConfig"] = {"thinkingLevel": "minimal" if effort == "none" else effort}
    return config


def _shape(shape: Any) -> dict[str, Any]:
    if shape is None:
        return {}
    kind = as_mapping(shape, "response_format").get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema":
        schema = as_mapping(shape.get("json_schema"), "response_format.json_schema").get("schema")
        return {"responseMimeType": "application/json", "responseJsonSchema": schema}
    raise refused(f"response_format {kind!r} is nothing that Gemini has: give a json_schema or json_object")


def _conversation(messages: Any) -> dict[str, Any]:
    """Give `systemInstruction` and `contents`: roles that follow one another are one turn."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    names: dict[Any, Any] = {}  # of the functions, by the ids of their calls
    for place, message in enumerate(as_list(messages, "messages")):
        where = f"messages[{place}]"
        role = as_mapping(message, where).get("role")
        if role in ("system", "developer"):
            system += _parts(message.get("content"), where)
            continue
        if role == "user":
            parts = _parts(message.get("content"), where)
        elif role == "assistant":
            role, parts = "model", _said(message, where)
            calls = as_objects(message.get("tool_calls") or [], f"{where}.tool_calls")
            named = [(call.get("id"), object_in(call.get("function"))) for call in calls]
            names |= {name: function.get("name") for name, function in named if isinstance(name, str)}
        elif role == "tool":
            role, parts = "user", [_result(message, names, where)]
        else:
            raise refused(f"{where} has the role {role!r}, which Gemini has not")
        if turns and turns[-1]["role"] == role:
            turns[-1]["parts"] += parts
        elif parts:
            turns.append({"role": role, "parts": parts})
    out: dict[str, Any] = {"contents": turns}
    if system:
        out["systemInstruction"] = {"parts": system}
    return out


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"text": content}]
    parts = []
    for place, part in enumerate(as_list(content, f"{where}.content")):
        parts.append(_part(as_mapping(part, f"{where}.content[{place}]"), f"{where}.content[{place}]"))
    return parts


def _part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"text": part.get("text") or ""}
    if kind == "refusal":
        return {"text": part.get("refusal") or ""}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        return _data(url, f"{where}.image_url", "image/jpeg")
    if kind == "file":
        return _file(as_mapping(part.get("file"), f"{where}.file"), where)
    if kind == "input_audio":
        audio = as_mapping(part.get("input_audio"), f"{where}.input_audio")
        form = str(audio.get("format"))
        return {"inlineData": {"mimeType": _AUDIO.get(form, f"audio/{form}"), "data": audio.get("data")}}
    if kind is None:
        return dict(part)  # one of Gemini's own
    raise refused(f"{where} has the type {kind!r}, which Gemini has not")


def _file(file: Mapping[str, Any], where: str) -> dict[str, Any]:
    if file.get("file_id"):
        return {"fileData": {"fileUri": file["file_id"]}}
    data = file.get("file_data")
    if isinstance(data, str) and not data.startswith(("data:", "http://", "https://", "gs://")):
        return {"inlineData": {"mimeType": "application/pdf", "data": data}}
    return _data(data, f"{where}.file.file_data", "application/pdf")


def _data(url: Any, where: str, usual: str) -> dict[str, Any]:
    """Data within the request, or the address of some, whose type Gemini wants to be told: by its suffix."""
    if not isinstance(url, str) or not url:
        raise refused(f"{where} must have a url, not {type(url).__name__}")
    if not url.startswith("data:"):
        suffix = url.partition("?")[0].rpartition(".")[2].lower()
        return {"fileData": {"mimeType": _TYPES.get(suffix, usual), "fileUri": url}}
    found = DATA_URL.fullmatch(url)
    if found is None:
        raise refused(f"{where} is a data URL without ;base64,")
    return {"inlineData": {"mimeType": found[1] or usual, "data": found[2]}}


def _said(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Give an earlier answer's parts: those that it came in, where it has kept them."""
    if message.get("content_parts") is not None:
        return as_objects(message["content_parts"], f"{where}.content_parts")
    parts = _parts(message.get("content"), where)
    if message.get("refusal") and not message.get("content"):
        parts.append({"text": message["refusal"]})
    for place, call in enumerate(as_objects(message.get("tool_calls") or [], f"{where}.tool_calls")):
        parts.append(_function_call(call, f"{where}.tool_calls[{place}]"))
    return parts


def _function_call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = as_mapping(call.get("function"), f"{where}.function")
    arguments = function.get("arguments") or "{}"
    try:
        given = msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
    except (msgspec.DecodeError, RecursionError):
        raise refused(f"{where}.function.arguments is not valid JSON") from None
    if not isinstance(given, dict):
        raise refused(f"{where}.function.arguments must be a JSON object")
    told: dict[str, Any] = {"name": function.get("name"), "args": given}
    if call.get("id"):
        told["id"] = call["id"]
    part: dict[str, Any] = {"functionCall": told}
    more = as_mapping(call.get("extra_content") or {}, f"{where}.extra_content")
    google = as_mapping(more.get("google") or {}, f"{where}.extra_content.google")
    signature = google.get("thought_signature")
    return {**part, "thoughtSignature": signature} if signature else part


def _result(message: Mapping[str, Any], names: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """A result is an object there; text that is none becomes its `output`."""
    called = message.get("tool_call_id")
    name = message.get("name") or (names.get(called) if isinstance(called, str) else None)
    if name is None:
        raise refused(f"{where} answers the tool call {called!r}, which no message before it made")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    try:
        given = msgspec.json.decode(content) if isinstance(content, str) else content
    except (msgspec.DecodeError, RecursionError):
        given = content
    told = {"name": name, "response": given if isinstance(given, dict) else {"output": content}}
    return {"functionResponse": {**told, "id": called} if called else told}


def _tools(tools: Any) -> list[dict[str, Any]]:
    declared: list[dict[str, Any]] = []
    own: list[dict[str, Any]] = []
    for tool in as_list(tools or [], "tools"):
        fields = as_mapping(tool, "a tool")
        if "function" not in fields:
            own.append(dict(fields))
            continue
        function = as_mapping(fields["function"], "tools[].function")
        one: dict[str, Any] = {"name": function.get("name")}
        if function.get("description") is not None:
            one["description"] = function["description"]
        if function.get("parameters"):
            one["parametersJsonSchema"] = function["parameters"]
        declared.append(one)
    return [*([{"functionDeclarations": declared}] if declared else []), *own]


def _tool_config(choice: Any) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice not in _MODES:
            raise refused(f"tool_choice must be auto, required, none or a function's name, not {choice!r}")
        return {"functionCallingConfig": {"mode": _MODES[choice]}}
    function = as_mapping(choice, "tool_choice").get("function")
    name = as_mapping(function, "tool_choice.function").get("name")
    return {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": [name]}}


def to_embeddings(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Give the batchEmbedContents body of an embeddings body. InvalidRequestError where there is none."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise refused("input must be text or a list of texts: Gemini takes no tokens")
    more = {name: body[name] for name in ("taskType", "title") if body.get(name) is not None}
    if body.get("dimensions") is not None:
        more["outputDimensionality"] = body["dimensions"]
    name = model if model.startswith("models/") else f"models/{model}"
    return {"requests": [{"model": name, "content": {"parts": [{"text": text}]}, **more} for text in texts]}
