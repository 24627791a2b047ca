"""OpenAPI: the document at /openapi.json, made of the tables below when it is first asked for.

It promises what the gateway itself sees to: paths, methods, keys, the fields it reads, and the shape of its errors.
What else a provider takes and gives is the provider's to say, and unknown fields pass both ways.
`tests/gateway/test_openapi.py` holds it to the routes, and has Schemathesis ask for what it promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from .. import __version__
from ..types import PATHS

Schema = dict[str, Any]
_JSON, _EVENTS = "application/json", "text/event-stream"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Iterable[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _list_of(item: Schema) -> Schema:
    more = {"first_id": _OR_NULL_TEXT, "last_id": _OR_NULL_TEXT, "has_more": {"type": "boolean"}}
    return _object(
        ("object", "data", "has_more"), object={"const": "list"}, data={"type": "array", "items": item}, **more
    )


_TEXT: Schema = {"type": "string"}
_OR_NULL_TEXT: Schema = {"type": ["string", "null"]}
_WHOLE: Schema = {"type": "integer"}
_TIME: Schema = {"type": ["integer", "null"]}
_ITEMS: Schema = {"type": "array", "items": {"type": "object"}}
_COUNT: Schema = {"type": ["integer", "null"]}
_MODEL = {
    "type": "string",
    "description": "A name that /models lists, or matches what may be asked for.",
}
_READ: dict[str, Schema] = {"model": _MODEL, "stream": {"type": ["boolean", "null"]}}
_INPUT: Schema = {"anyOf": [_TEXT, {"type": "array", "items": {}}]}

_LIMIT: Schema = {"type": ["number", "null"], "minimum": 1, "maximum": 10**15}
_SPENT: Schema = {
    "type": ["number", "null"], "minimum": 0,
    "description": "US dollars; null where the key has no budget for this period.",
}  # fmt: skip
_USD: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 10**9}

_SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"),
            message=_TEXT, type=_TEXT, param=_OR_NULL_TEXT, code=_OR_NULL_TEXT,
        ),
    ),
    "MessagesError": _object(
        ("type", "error", "request_id"),
        type={"const": "error"}, error=_object(("type", "message"), type=_TEXT, message=_TEXT), request_id=_TEXT,
    ),
    "ChatRequest": _object(("messages",), **_READ, messages=_ITEMS, max_tokens=_COUNT, max_completion_tokens=_COUNT),
    "Chat": _object(("choices",), id=_TEXT, object={"const": "chat.completion"}, choices=_ITEMS),
    "CompletionRequest": _object(("prompt",), **_READ, prompt=_INPUT, max_tokens=_COUNT),
    "Completion": _object(("choices",), object={"const": "text_completion"}, choices=_ITEMS),
    "EmbeddingsRequest": _object(
        ("input",), model=_MODEL, input=_INPUT, encoding_format={"examples": ["float", "base64"]}
    ),
    "Embeddings": _object(("data",), object={"const": "list"}, data=_ITEMS),
    "ModerationRequest": _object(("input",), model=_MODEL, input={}),
    "Moderation": _object(("results",), results=_ITEMS),
    "ResponseRequest": _object(
        (), **_READ, input=_INPUT, max_output_tokens=_COUNT, store={"examples": [True, False]},
        previous_response_id=_OR_NULL_TEXT,
    ),
    "Response": _object(("id", "object", "output"), id=_TEXT, object={"const": "response"}, output=_ITEMS),
    "InputTokensRequest": _object((), model=_MODEL, input={}, previous_response_id=_OR_NULL_TEXT),
    "InputTokens": _object(
        ("input_tokens", "object"), input_tokens={"type": "integer", "minimum": 1},
        object={"const": "response.input_tokens"},
    ),
    "MessagesRequest": _object(("messages", "max_tokens"), **_READ, messages=_ITEMS, max_tokens={"type": "integer"}),
    "Message": _object(("type", "content"), type={"const": "message"}, role=_TEXT, content=_ITEMS),
    "CountRequest": _object((), model=_MODEL, messages={}),
    "Counted": _object(("input_tokens",), input_tokens={"type": "integer", "minimum": 1}),
    "Model": _object(
        ("id", "object", "created", "owned_by"),
        id=_TEXT, object={"const": "model"}, created=_WHOLE, owned_by=_TEXT,
    ),
    "File": _object(
        ("id", "object", "bytes", "created_at", "filename", "purpose", "status"),
        id=_TEXT, object={"const": "file"}, bytes=_WHOLE, created_at=_WHOLE, expires_at=_TIME, filename=_TEXT,
        purpose=_TEXT, status=_TEXT,
    ),
    "FileUpload": _object(
        ("file", "purpose"), file={"type": "string", "format": "binary"},
        purpose={"enum": ["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]},
    ),
    "Batch": _object(
        ("id", "object", "endpoint", "input_file_id", "completion_window", "status", "created_at", "request_counts"),
        id=_TEXT, object={"const": "batch"}, endpoint=_TEXT, input_file_id=_TEXT, completion_window=_TEXT,
        status={"enum": [
            "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled",
        ]},
        created_at=_WHOLE, output_file_id=_OR_NULL_TEXT, error_file_id=_OR_NULL_TEXT,
        request_counts=_object(("total", "completed", "failed"), total=_WHOLE, completed=_WHOLE, failed=_WHOLE),
    ),
    "BatchRequest": _object(
        ("input_file_id", "endpoint", "completion_window"),
        input_file_id=_TEXT, completion_window={"const": "24h"},
        endpoint={"enum": sorted(f"/v1{path}" for path in PATHS)},
        metadata={
            "type": ["object", "null"], "maxProperties": 16, "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
    ),
    "KeyRequest": {
        **_object(
            ("name",), name={"type": "string", "minLength": 1, "maxLength": 200},
            models={"type": ["array", "null"], "items": {"type": "string", "minLength": 1}},
            rpm=_LIMIT, tpm=_LIMIT, parallel={"type": ["integer", "null"], "minimum": 1, "maximum": 10**15},
            budget_day=_USD, budget_month=_USD,
            expires={"type": ["number", "null"], "minimum": 1, "maximum": 10**11, "description": "Seconds since 1970."},
        ),
        "additionalProperties": False,
    },
    "RotateRequest": {
        **_object((), grace={"type": "number", "minimum": 0, "maximum": 366 * 86_400}), "additionalProperties": False,
    },
    "Key": _object(
        ("id", "object", "name", "state", "created", "spent_day", "spent_month"),
        id=_TEXT, object={"const": "key"}, name=_TEXT, state={"enum": ["valid", "expired", "revoked"]},
        created={"type": "number"}, spent_day=_SPENT, spent_month=_SPENT, tail=_TEXT,
        secret={"type": "string", "description": "In the answer that made it alone."},
    ),
    "Deleted": _object(("id", "object", "deleted"), id=_TEXT, object=_TEXT, deleted={"const": True}),
    "Health": _object(("status",), status=_TEXT),
}  # fmt: skip
_LISTS = {"Models": "Model", "Files": "File", "Batches": "Batch", "Keys": "Key"}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query(name: str, **schema: Any) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


_AFTER = _query("after", type="string")
_LIMIT_100, _LIMIT_10K = (_query("limit", type="integer", minimum=1, maximum=most) for most in (100, 10_000))
_ORDER, _PURPOSE = _query("order", enum=["asc", "desc"]), _query("purpose", type="string")


class Operation(msgspec.Struct, frozen=True):
    """One path and method: what it takes, and what it gives."""

    path: str
    method: str
    summary: str
    gives: str = ""
    takes: str = ""
    kind: str = _JSON  # of what it takes
    streams: bool = False
    open: bool = False  # without a key
    needs_body: bool = True  # where it takes one
    errors: str = "Error"
    query: tuple[Schema, ...] = ()


def _anthropic(path: str, summary: str, takes: str, gives: str, *, streams: bool = False) -> Operation:
    return Operation(path, "post", summary, gives, takes, streams=streams, errors="MessagesError")


_DEPLOYMENT = "/openai/deployments/{deployment}"
OPERATIONS = (
    Operation("/v1/chat/completions", "post", "Chat, whole or streamed", "Chat", "ChatRequest", streams=True),
    Operation("/v1/completions", "post", "Complete a text", "Completion", "CompletionRequest", streams=True),
    Operation("/v1/embeddings", "post", "Embed texts or lists of token ids", "Embeddings", "EmbeddingsRequest"),
    Operation("/v1/moderations", "post", "Judge texts", "Moderation", "ModerationRequest"),
    Operation("/v1/responses", "post", "Respond, whole or streamed", "Response", "ResponseRequest", streams=True),
    Operation("/v1/responses/input_tokens", "post", "Count the tokens of it", "InputTokens", "InputTokensRequest"),
    Operation("/v1/responses/{response_id}", "get", "Give a response of the same key", "Response"),
    Operation("/v1/responses/{response_id}", "delete", "Delete a response", "Deleted"),
    Operation("/v1/responses/{response_id}/cancel", "post", "Cancel a response in the background", "Response"),
    Operation(
        "/v1/responses/{response_id}/input_items", "get", "List what a response was asked", "Items",
        query=(_LIMIT_100, _ORDER, _AFTER),
    ),
    _anthropic("/v1/messages", "Anthropic's Messages, whole or streamed", "MessagesRequest", "Message", streams=True),
    _anthropic("/v1/messages/count_tokens", "Count the tokens of a message", "CountRequest", "Counted"),
    Operation("/v1/models", "get", "List the models that have names", "Models"),
    Operation("/v1/models/{model}", "get", "Tell of a model; its name may hold slashes", "Model"),
    Operation("/v1/files", "post", "Upload a file", "File", "FileUpload", kind="multipart/form-data"),
    Operation("/v1/files", "get", "List files", "Files", query=(_LIMIT_10K, _ORDER, _AFTER, _PURPOSE)),
    Operation("/v1/files/{file_id}", "get", "Tell of a file", "File"),
    Operation("/v1/files/{file_id}", "delete", "Delete a file", "Deleted"),
    Operation("/v1/files/{file_id}/content", "get", "Give a file's content"),
    Operation("/v1/batches", "post", "Begin a batch", "Batch", "BatchRequest"),
    Operation("/v1/batches", "get", "List batches, the newest first", "Batches", query=(_LIMIT_100, _AFTER)),
    Operation("/v1/batches/{batch_id}", "get", "Tell of a batch", "Batch"),
    Operation("/v1/batches/{batch_id}/cancel", "post", "Cancel a batch", "Batch"),
    Operation("/v1/keys", "post", "Make a key for a client; the master key alone may", "Key", "KeyRequest"),
    Operation("/v1/keys", "get", "List keys and what they have spent", "Keys", query=(_query("all", type="boolean"),)),
    Operation("/v1/keys/{key_id}", "get", "Tell of a key", "Key"),
    Operation("/v1/keys/{key_id}/revoke", "post", "End a key for good", "Key"),
    Operation("/v1/keys/{key_id}/rotate", "post", "Give a key a new secret", "Key", "RotateRequest", needs_body=False),
    *(
        Operation(f"{_DEPLOYMENT}{path}", "post", f"Azure's path of {path}", gives, takes, streams=streams)
        for path, takes, gives, streams in (
            ("/chat/completions", "ChatRequest", "Chat", True),
            ("/completions", "CompletionRequest", "Completion", True),
            ("/embeddings", "EmbeddingsRequest", "Embeddings", False),
        )
    ),
    *(
        Operation(path, "get", "Say that the gateway lives, or is ready", "Health", open=True)
        for path in ("/health", "/health/live", "/health/ready")
    ),
    Operation("/openapi.json", "get", "Give this document", "Document", open=True),
)  # fmt: skip


def _operation(asked: Operation) -> Schema:
    answer: Schema = (
        {_JSON: {"schema": _ref(asked.gives)}} if asked.gives else {"application/octet-stream": {"schema": {}}}
    )
    if asked.streams:
        answer[_EVENTS] = {"schema": {}}
    error = {
        "description": "What is wrong, in the dialect of the path",
        "content": {_JSON: {"schema": _ref(asked.errors)}},
    }
    found: Schema = {
        "summary": asked.summary,
        "operationId": _id_of(asked),
        "responses": {"200": {"description": "The answer", "content": answer}, "4XX": error, "5XX": error},
    }
    if asked.method == "post" and asked.path in _LINKS:
        found["responses"]["200"]["links"] = _links(asked.path)
    if asked.path == "/health/ready":
        found["responses"]["503"] = found["responses"]["200"]
    names = [part[1:-1] for part in asked.path.split("/") if part.startswith("{")]
    if names or asked.query:
        found["parameters"] = [*map(_path, names), *asked.query]
    if asked.takes:
        found["requestBody"] = {"required": asked.needs_body, "content": {asked.kind: {"schema": _ref(asked.takes)}}}
    if asked.open:
        found["security"] = []
    return found


_NO_MARKS = str.maketrans("", "", "/{}._-")
_LINKS = {"/v1/files": "file_id", "/v1/batches": "batch_id", "/v1/responses": "response_id"}


def _links(path: str) -> Schema:
    """Give where the id of what was made goes next."""
    name = _LINKS[path]
    below = [operation for operation in OPERATIONS if operation.path.startswith(f"{path}/{{{name}}}")]
    return {_id_of(one): {"operationId": _id_of(one), "parameters": {name: "$response.body#/id"}} for one in below}


def _id_of(operation: Operation) -> str:
    return f"{operation.method}{operation.path.title().translate(_NO_MARKS)}"


@lru_cache(maxsize=1)
def document() -> bytes:
    """Give the document, as JSON."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    lists = {name: _list_of(_ref(item)) for name, item in _LISTS.items()}
    more = {"Items": _list_of({"type": "object"}), "Document": _object(("openapi", "paths"), openapi=_TEXT)}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "FastLLM gateway",
                "version": __version__,
                "description": "OpenAI's and Anthropic's API in front of any provider. Every path with /v1 is served "
                "without it, too. Unknown fields of requests go to the provider, and those of its answers come back.",
            },
            "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}],
            "paths": paths,
            "components": {
                "schemas": {**_SCHEMAS, **lists, **more},
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
                },
            },
        }
    )
