"""Requests between OpenAI's chat shape and Anthropic's Messages, in both directions; as plain values, without I/O.

What one side has no word for is an error that names it, never dropped in silence; fields that only Anthropic knows
(`thinking`, `top_k`, `cache_control` of a part, its own tools and content blocks) may stand in a chat body and pass.
Source: the Messages API's reference and the OpenAI chat reference, as of November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .checked import DATA_URL, as_list, as_mapping, as_objects, refused

MAX_TOKENS = 4096  # which Anthropic wants to be told; sent where the caller does not bound the answer
_SAME = ("model", "temperature", "top_p", "stream", "metadata", "service_tier")
_DROPPED = frozenset(("stream_options", "max_completion_tokens", "parallel_tool_calls", "store"))
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # fields of chat that Messages lacks, and values that ask for nothing
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "seed": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "functions": (),
    "function_call": (),
    "verbosity": (),
    "web_search_options": (),
}
_EFFORTS = {"minimal": "low"}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_decode = msgspec.json.decode
_encode = msgspec.json.encode


def to_messages(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Give the Messages body of a chat body. InvalidRequestError where there is none."""
    out: dict[str, Any] = {name: chat[name] for name in _SAME if chat.get(name) is not None}
    out["max_tokens"] = chat.get("max_completion_tokens") or chat.get("max_tokens") or MAX_TOKENS
    out |= _conversation(chat.get("messages"))
    if chat.get("stop") is not None:
        stop = chat["stop"]
        out["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if chat.get("tools"):
        out["tools"] = [_tool(tool) for tool in as_list(chat["tools"], "tools")]
    choice = _tool_choice(chat.get("tool_choice"), chat.get("parallel_tool_calls"), has_tools=bool(chat.get("tools")))
    if choice is not None:
        out["tool_choice"] = choice
    if chat.get("user") is not None:
        out["metadata"] = {**as_mapping(chat.get("metadata") or {}, "metadata"), "user_id": chat["user"]}
    config = {**as_mapping(chat.get("output_config") or {}, "output_config"), **_output_config(chat)}
    if config:
        out["output_config"] = config
    if chat.get("reasoning_effort") == "none" and chat.get("thinking") is None:
        out["thinking"] = {"type": "disabled"}
    return out | _passed_on(chat, out)


def _passed_on(chat: Mapping[str, Any], done: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields that chat has no word for; refuse those that Messages has none for."""
    known = {*done, *_DROPPED, "messages", "stop", "user", "response_format", "reasoning_effort", "max_tokens"}
    more = {}
    for name, value in chat.items():
        if name in _NEUTRAL:
            if value is not None and value not in _NEUTRAL[name]:
                raise refused(f"Anthropic's Messages has no {name!r}: leave it out")
        elif name not in known and value is not None:
            more[name] = value
    return more


def _output_config(chat: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    shape = chat.get("response_format")
    if shape is not None:
        kind = as_mapping(shape, "response_format").get("type")
        if kind == "json_schema":
            schema = as_mapping(shape.get("json_schema"), "response_format.json_schema").get("schema")
            config["format"] = {"type": "json_schema", "schema": schema}
        elif kind != "text":
            raise refused(f"response_format {kind!r} is nothing that Anthropic's Messages has: give a json_schema")
    effort = chat.get("reasoning_effort")
    if effort is not None and not isinstance(effort, str):
        raise refused(f"reasoning_effort must be text, such as 'low', not {effort!r}")
    if effort not in (None, "none"):
        config["effort"] = _EFFORTS.get(effort, effort)
    return config


def _conversation(messages: Any) -> dict[str, Any]:
    """Give `system` and `messages`: roles that follow one another are one turn."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for place, message in enumerate(as_list(messages, "messages")):
        where = f"messages[{place}]"
        role = as_mapping(message, where).get("role")
        if role in ("system", "developer"):
            system += _blocks(message.get("content"), where)
            continue
        if role == "user":
            blocks = _blocks(message.get("content"), where)
        elif role == "assistant":
            blocks = _said(message, where)
        elif role == "tool":
            role, blocks = "user", [_result(message, where)]
        else:
            raise refused(f"{where} has the role {role!r}, which Anthropic's Messages has not")
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    out: dict[str, Any] = {"messages": [{**turn, "content": _shortest(turn["content"])} for turn in turns]}
    if system:
        out["system"] = _shortest(system)
    return out


def _shortest(blocks: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A single plain text is written as text."""
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        return str(blocks[0]["text"])
    return blocks


def _blocks(content: Any, where: str) -> list[dict[str, Any]]:
    if content is None or content == "":
        return []  # an empty text block is refused there
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = []
    for place, part in enumerate(as_list(content, f"{where}.content")):
        block = _block(as_mapping(part, f"{where}.content[{place}]"), f"{where}.content[{place}]")
        if block is not None:
            blocks.append(block)
    return blocks


def _block(part: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    kind = part.get("type")
    more = {name: part[name] for name in ("cache_control",) if name in part}
    if kind == "text":
        return dict(part) if part.get("text") else None
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal") or "", **more}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        return {"type": "image", "source": _source(url, f"{where}.image_url"), **more}
    if kind == "file":
        return {"type": "document", **_document(as_mapping(part.get("file"), f"{where}.file"), where), **more}
    if kind == "input_audio":
        raise refused(f"{where} is audio, which Anthropic's Messages does not take")
    return dict(part)  # one of Anthropic's own


def _source(url: Any, where: str) -> dict[str, Any]:
    if not isinstance(url, str) or not url:
        raise refused(f"{where} must have a url, not {type(url).__name__}")
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    found = DATA_URL.fullmatch(url)
    if found is None:
        raise refused(f"{where} is a data URL without ;base64,")
    return {"type": "base64", "media_type": found[1] or "application/octet-stream", "data": found[2]}


def _document(file: Mapping[str, Any], where: str) -> dict[str, Any]:
    if file.get("file_id"):
        return {"source": {"type": "file", "file_id": file["file_id"]}}
    title = {"title": file["filename"]} if file.get("filename") else {}
    data = file.get("file_data")
    if isinstance(data, str) and not data.startswith(("data:", "http")):
        return {"source": {"type": "base64", "media_type": "application/pdf", "data": data}, **title}
    return {"source": _source(data, f"{where}.file.file_data"), **title}


def _said(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Give an earlier answer's blocks: those that it came in, where it has kept them."""
    if message.get("content_blocks") is not None:
        return as_objects(message["content_blocks"], f"{where}.content_blocks")
    blocks = as_objects(message.get("thinking_blocks") or [], f"{where}.thinking_blocks")
    blocks += _blocks(message.get("content"), where)
    if message.get("refusal") and not message.get("content"):
        blocks.append({"type": "text", "text": message["refusal"]})
    for place, call in enumerate(as_objects(message.get("tool_calls") or [], f"{where}.tool_calls")):
        blocks.append(_use(call, f"{where}.tool_calls[{place}]"))
    return blocks


def _use(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = as_mapping(call.get("function"), f"{where}.function")
    arguments = function.get("arguments") or "{}"
    try:
        given = _decode(arguments) if isinstance(arguments, str) else arguments
    except (msgspec.DecodeError, RecursionError):
        raise refused(f"{where}.function.arguments is not valid JSON") from None
    if not isinstance(given, dict):
        raise refused(f"{where}.function.arguments must be a JSON object")
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given}


def _result(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
    blocks = _blocks(message.get("content"), where)
    if blocks:
        out["content"] = _shortest(blocks)
    return out | {name: message[name] for name in ("is_error", "cache_control") if message.get(name) is not None}


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function" or "function" not in tool:
        return dict(as_mapping(tool, "a tool"))  # one of Anthropic's own
    function = as_mapping(tool["function"], "tools[].function")
    out: dict[str, Any] = {"name": function.get("name")}
    out |= {name: function[name] for name in ("description", "strict") if function.get(name) is not None}
    out["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    return out | {name: tool[name] for name in ("cache_control",) if name in tool}


def _tool_choice(choice: Any, parallel: Any, *, has_tools: bool) -> dict[str, Any] | None:
    out: dict[str, Any] | None = None
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise refused(f"tool_choice must be auto, required, none or a function's name, not {choice!r}")
        out = {"type": _CHOICES[choice]}
    elif isinstance(choice, Mapping):
        function = choice.get("function")
        named = choice.get("type") == "function" and isinstance(function, Mapping)
        out = {"type": "tool", "name": function.get("name")} if named and function else dict(choice)
    if parallel is False and has_tools:
        out = out or {"type": "auto"}
        if out["type"] != "none":
            out["disable_parallel_tool_use"] = True
    return out
