"""Requests of OpenAI's Responses API as chat requests, for dialects and servers that have only chat; plain values.

What chat has no word for (tools that OpenAI runs itself, stored conversations) is an error that names it. What an
earlier answer kept for its own provider (`packed`) goes back with it. Source: the Responses API's reference and the
types of the official SDK, as of November 2026.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from .checked import as_list, as_mapping, refused

KEPT = "fastllm:1:"  # before what an `encrypted_content` of ours holds
_SAME = (
    "model", "temperature", "top_p", "parallel_tool_calls", "user", "metadata", "service_tier", "store",
    "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
)  # fmt: skip
_READ = frozenset(
    (*_SAME, "input", "instructions", "max_output_tokens", "reasoning", "text", "tools", "tool_choice", "top_logprobs",
     "include", "stream")
)  # fmt: skip
_DROPPED = frozenset(("stream_options", "max_tool_calls"))  # which only say how OpenAI's own tools and streams behave
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {"background": (False,), "truncation": ("disabled",)}
_STATEFUL = frozenset(("previous_response_id", "conversation", "prompt", "context_management"))
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = frozenset((_LOGPROBS, "reasoning.encrypted_content"))
_KEPT_FIELDS = ("content_blocks", "content_parts")


def to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Give the chat body of a Responses body. InvalidRequestError where there is none."""
    out: dict[str, Any] = {name: body[name] for name in _SAME if body.get(name) is not None}
    out["messages"] = _messages(body)
    if body.get("max_output_tokens") is not None:
        out["max_completion_tokens"] = body["max_output_tokens"]
    out |= _reasoning(body.get("reasoning")) | _text(body.get("text")) | _tools(body) | _included(body)
    if body.get("stream"):
        out["stream"], out["stream_options"] = True, {"include_usage": True}
    return out | _passed_on(body)


def _passed_on(body: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields that Responses has no word for; refuse those that chat has none for."""
    more = {}
    for name, value in body.items():
        if name in _READ or name in _DROPPED or value is None:
            continue
        if name in _STATEFUL:
            raise refused(f"{name!r} wants a provider that keeps responses, which it does not: give all of `input`")
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise refused(f"{name}={value!r} is nothing that chat has: leave it out")
        else:
            more[name] = value
    return more


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    given = body.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    said: dict[str, Any] | None = None  # the assistant's message that items in a row are parts of
    for place, item in enumerate(as_list(given, "input")):
        where = f"input[{place}]"
        kind = as_mapping(item, where).get("type") or ("message" if "role" in item else None)
        if kind in ("reasoning", "function_call", "custom_tool_call") or item.get("role") == "assistant":
            if said is None:
                said = {"role": "assistant", "content": None}
                messages.append(said)
            _said(said, str(kind), item, where)
            continue
        said = None
        if kind == "message":
            messages.append(_message(item, where))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            content = _output(item.get("output"), where)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        else:
            raise refused(f"{where} has the type {kind!r}, which chat has not")
    # Thoughts that only another provider could read leave nothing behind.
    return [message for message in messages if len(message) > 2 or message["content"] is not None]


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("user", "system", "developer"):
        raise refused(f"{where}.role must be user, assistant, system or developer, not {role!r}")
    return {"role": role, "content": _content(item.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """A single plain text is written as text."""
    if isinstance(content, str):
        return content
    named = ((f"{where}[{place}]", part) for place, part in enumerate(as_list(content, where)))
    parts = [_part(as_mapping(part, name), name) for name, part in named]
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _output(output: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(output, list):
        return _content(output, f"{where}.output")
    return output if isinstance(output, str) else msgspec.json.encode(output).decode()


def _part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    more = {name: part[name] for name in ("cache_control",) if name in part}
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text") or "", **more}
    if kind == "refusal":
        return {"type": "refusal", "refusal": part.get("refusal") or ""}
    if kind == "input_image":
        if not part.get("image_url"):
            raise refused(f"{where} must have an image_url: this provider does not know OpenAI's files")
        detail = {"detail": part["detail"]} if part.get("detail") not in (None, "auto") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}, **more}
    if kind == "input_file":
        found = {name: part[name] for name in ("filename", "file_id") if part.get(name)}
        data = part.get("file_data") or part.get("file_url")
        return {"type": "file", "file": found | ({"file_data": data} if data else {}), **more}
    if kind == "input_audio":
        return dict(part)
    raise refused(f"{where} has the type {kind!r}, which chat has not")


def _said(said: dict[str, Any], kind: str, item: Mapping[str, Any], where: str) -> None:
    """Add an item of an earlier answer to the assistant's message."""
    if kind == "reasoning":
        kept = unpacked(item.get("encrypted_content"))
        said.update({name: value for name, value in kept.items() if name in _KEPT_FIELDS})
        texts = [str(part.get("text") or "") for part in item.get("summary") or () if isinstance(part, Mapping)]
        if texts and not kept:
            said["reasoning_content"] = "\n\n".join(texts)
    elif kind == "function_call":
        call: dict[str, Any] = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments") or "{}"},
        }
        if item.get("extra_content") is not None:
            call["extra_content"] = item["extra_content"]
        said.setdefault("tool_calls", []).append(call)
    elif kind == "custom_tool_call":
        custom = {"name": item.get("name"), "input": item.get("input") or ""}
        said.setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "custom", "custom": custom})
    else:
        content = _content(item.get("content"), f"{where}.content")
        said["content"] = _joined(said["content"], content)


def _joined(before: Any, after: str | list[dict[str, Any]]) -> Any:
    if before is None:
        return after
    return [*_parts(before), *_parts(after)]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def packed(kept: Mapping[str, Any]) -> str:
    """Write what a provider wants to see again with an answer, for the `encrypted_content` of its reasoning item."""
    return KEPT + base64.b64encode(msgspec.json.encode(kept)).decode()


def unpacked(text: Any) -> dict[str, Any]:
    """Read that again; nothing where it is another's, which nobody but OpenAI could read."""
    if not isinstance(text, str) or not text.startswith(KEPT):
        return {}
    try:
        return msgspec.json.decode(base64.b64decode(text[len(KEPT) :], validate=True), type=dict[str, Any])
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise refused("the encrypted_content of a reasoning item was changed: give it back as it came") from None


def _reasoning(reasoning: Any) -> dict[str, Any]:
    effort = as_mapping(reasoning, "reasoning").get("effort") if reasoning is not None else None
    return {"reasoning_effort": effort} if effort is not None else {}


def _text(text: Any) -> dict[str, Any]:
    if text is None:
        return {}
    out: dict[str, Any] = {}
    form = as_mapping(text, "text").get("format")
    if form is not None:
        kind = as_mapping(form, "text.format").get("type")
        if kind == "json_schema":
            names = ("name", "schema", "strict", "description")
            schema = {name: form[name] for name in names if form.get(name) is not None}
            out["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif kind == "json_object":
            out["response_format"] = {"type": "json_object"}
        elif kind != "text":
            raise refused(f"text.format.type must be text, json_object or json_schema, not {kind!r}")
    if text.get("verbosity") is not None:
        out["verbosity"] = text["verbosity"]
    return out


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if body.get("tools"):
        out["tools"] = [_tool(as_mapping(tool, "tools[]")) for tool in as_list(body["tools"], "tools")]
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping):
        out["tool_choice"] = _choice(choice)
    elif choice is not None and out:
        out["tool_choice"] = choice
    return out


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind == "function":
        names = ("name", "description", "parameters", "strict")
        function = {name: tool[name] for name in names if tool.get(name) is not None}
        more = {name: tool[name] for name in ("cache_control",) if name in tool}
        return {"type": "function", "function": function, **more}
    if kind == "custom":
        return {"type": "custom", "custom": {name: value for name, value in tool.items() if name != "type"}}
    raise refused(f"the tool {kind!r} is run by OpenAI itself, and this provider has only functions")


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    kind = choice.get("type")
    if kind in ("function", "custom"):
        return {"type": kind, kind: {"name": choice.get("name")}}
    if kind == "allowed_tools":
        allowed = [_choice(as_mapping(tool, "tool_choice.tools[]")) for tool in choice.get("tools") or ()]
        return {"type": kind, kind: {"mode": choice.get("mode"), "tools": allowed}}
    raise refused(f"tool_choice.type must be function, custom or allowed_tools, not {kind!r}")


def _included(body: Mapping[str, Any]) -> dict[str, Any]:
    for name in as_list(body.get("include") or [], "include"):
        if name not in _INCLUDED:
            raise refused(f"include has {name!r}, which this provider does not give")
    top = body.get("top_logprobs")
    if top or _LOGPROBS in (body.get("include") or ()):
        return {"logprobs": True, **({"top_logprobs": top} if top else {})}
    return {}
