"""Puts what of a tool's result is no text behind it: for chat whose tool messages take text only, as OpenAI's does."""

from __future__ import annotations

from typing import Any


def apart(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the messages with images and files of tool messages in a user's message behind all of their turn: nothing
    may stand between an assistant's calls and their results."""
    out: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []  # of the results so far
    for message in messages:
        content = message.get("content")
        if message.get("role") != "tool":
            if beside:
                out.append({"role": "user", "content": beside})
                beside = []
        elif isinstance(content, list):
            more = [part for part in content if part.get("type") != "text"]
            if more:
                beside += more
                message = {**message, "content": _text_of(content, more)}
        out.append(message)
    return [*out, {"role": "user", "content": beside}] if beside else out


def _text_of(content: list[dict[str, Any]], more: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A single plain text is written as text; where there is none, a note stands in its place."""
    texts = [part for part in content if part.get("type") == "text"]
    if not texts:
        what = "image" if all(part.get("type") == "image_url" for part in more) else "file"
        return f"see the {what} that follows" if len(more) == 1 else f"see the {len(more)} {what}s that follow"
    return str(texts[0]["text"]) if len(texts) == 1 and texts[0].keys() == {"type", "text"} else texts
