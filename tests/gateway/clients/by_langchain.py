"""What langchain-openai makes of a gateway, as JSON: `by_langchain.py BASE_URL KEY`. Its tests read it
(test_clients.py)."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

BASE, KEY = sys.argv[1:]
HERE: dict[str, Any] = {"base_url": BASE, "api_key": KEY, "max_retries": 0}


@tool
def look(place: str) -> str:
    """Look at a place."""
    return place


def streamed(chat: Any) -> dict[str, Any]:
    pieces = list(chat.stream("hello"))
    total = pieces[0]
    for piece in pieces[1:]:
        total += piece
    return {"text": total.text, "pieces": len(pieces), "usage": total.usage_metadata, "tools": total.tool_calls}


chat = ChatOpenAI(model="m", **HERE)
with_tools = chat.bind_tools([look], tool_choice="required")
whole = chat.invoke("hello")
responses = ChatOpenAI(model="m", use_responses_api=True, **HERE)
# The name decides the tokenizer, and so that the inputs go out as lists of numbers.
vectors = OpenAIEmbeddings(model="text-embedding-3-small", **HERE)
texts = OpenAIEmbeddings(model="e", check_embedding_ctx_length=False, **HERE)

print(
    json.dumps(
        {
            "whole": {"text": whole.text, "usage": whole.usage_metadata},
            "streamed": streamed(ChatOpenAI(model="m", stream_usage=True, **HERE)),
            "awaited": asyncio.run(chat.ainvoke("hello")).text,
            "tools": with_tools.invoke("hello").tool_calls,
            "tools_streamed": streamed(with_tools)["tools"],
            "responses": responses.invoke("hello").text,
            "responses_streamed": streamed(responses)["text"],
            "tokens": [len(one) for one in vectors.embed_documents(["hello", "two words"])],
            "query": len(vectors.embed_query("hello")),
            "texts": [len(one) for one in texts.embed_documents(["hello", "two words"])],
        }
    )
)
