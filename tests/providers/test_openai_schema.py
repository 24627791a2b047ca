"""providers/openai_schema: a server that takes no schema is told it in words; whoever takes one gets it untouched."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from fastllm.build import EngineOptions, engine
from fastllm.errors import InvalidRequestError
from fastllm.providers.openai import OpenAIProvider
from fastllm.providers.vendors import VENDORS
from fastllm.schema.base import Schema
from fastllm.types import RESPONSES, Request, Schemas, Target

PROVIDER = OpenAIProvider()


@dataclasses.dataclass
class City:
    name: str


SCHEMA = Schema.of(City)


def sent(takes: Schemas, messages: Any, *, schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    fields = {"model": "m", "messages": messages, "response_format": SCHEMA.response_format, **more}
    target = Target(base_url="https://api.test/v1", model="m", schemas=takes)
    body: dict[str, Any] = msgspec.json.decode(PROVIDER.encode(Request.of(fields, schema=schema), target).body)
    return body


USER = {"role": "user", "content": "Rome?"}


def test_who_takes_schemas_gets_the_body_byte_for_byte() -> None:
    request = Request.of({"model": "m", "response_format": SCHEMA.response_format}, schema=SCHEMA)
    assert PROVIDER.encode(request, Target(base_url="https://api.test/v1", model="m")).body is request.body


def test_who_takes_the_wish_for_json_gets_that_and_the_schema_in_words() -> None:
    body = sent("json_object", [USER], temperature=0)
    assert body["response_format"] == {"type": "json_object"} and body["temperature"] == 0
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    told = body["messages"][0]["content"]
    assert "JSON" in told and msgspec.json.encode(SCHEMA.json_schema).decode() in told


def test_who_takes_nothing_of_the_kind_gets_words_alone() -> None:
    body = sent("none", [USER])
    assert "response_format" not in body and body["messages"][1] == USER


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_words_go_behind_the_callers_own(role: str) -> None:
    body = sent("none", [{"role": role, "content": "Be brief."}, USER])
    assert len(body["messages"]) == 2 and body["messages"][0]["role"] == role
    assert body["messages"][0]["content"].startswith("Be brief.\n\nAnswer with JSON alone")


def test_a_system_message_of_parts_stays_as_it_is() -> None:
    parts = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    body = sent("none", [parts, USER])
    assert body["messages"][1:] == [parts, USER] and "JSON" in body["messages"][0]["content"]


def test_a_format_that_the_caller_wrote_is_nobodys_business() -> None:
    body = sent("none", [USER], schema=None)
    assert body["response_format"] == SCHEMA.response_format and body["messages"] == [USER]


def test_the_responses_api_is_told_in_its_own_fields() -> None:
    target = Target(base_url="https://api.test/v1", model="m", schemas="json_object")
    for instructions in ({}, {"instructions": "Be brief."}):
        fields = {"model": "m", "input": "Rome?", "text": SCHEMA.text_format, **instructions}
        http = PROVIDER.encode(Request.of(fields, path=RESPONSES, schema=SCHEMA), target)
        body = msgspec.json.decode(http.body)
        assert body["text"] == {"format": {"type": "json_object"}} and body["input"] == "Rome?"
        assert body["instructions"].startswith("Be brief.\n\n" if instructions else "Answer with JSON")


def test_what_cannot_be_told_is_refused_before_it_is_sent() -> None:
    request = Request.of({"model": "m", "messages": "hello"}, schema=SCHEMA)
    with pytest.raises(InvalidRequestError, match="the schema cannot be told") as caught:
        PROVIDER.encode(request, Target(base_url="https://api.test/v1", model="m", schemas="none"))
    assert not caught.value.sent


@pytest.mark.parametrize(
    ("model", "base_url", "takes"),
    [
        ("openai/gpt-4o", None, "json_schema"),
        ("deepseek/deepseek-chat", None, "json_object"),
        ("anthropic/claude", None, "json_schema"),
        ("x", VENDORS["deepseek"].base_url + "/", "json_object"),
        ("x", "http://localhost:1/v1", "json_schema"),
    ],
)
async def test_the_vendors_table_says_who_takes_what(
    model: str, base_url: str | None, takes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a base_url that is a vendor's; a server of one's own is taken to know schemas."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    made = engine(EngineOptions(api_key="k", base_url=base_url))
    assert (await made.router.resolve(model)).target.schemas == takes
    await made.aclose()
