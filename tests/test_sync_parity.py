"""FastLLM has every method of AsyncFastLLM, with the same parameters."""

from __future__ import annotations

import inspect

import pytest

from fastllm import batch, client, keywords, resources, sync, sync_resources

PAIRS = [(client.AsyncFastLLM, sync.FastLLM)] + [
    (getattr(resources, name), getattr(sync_resources, name))
    for name in ("Chat", "ChatCompletions", "Completions", "Embeddings", "Moderations", "Responses")
]
RENAMED = {"aclose": "close"}
ONLY_ASYNC = {"engine"}


def public(cls: type) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_")]


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda cls: cls.__name__)
def test_the_sync_client_has_the_same_methods_with_the_same_parameters(theirs: type, ours: type) -> None:
    for name in public(theirs):
        if name in ONLY_ASYNC:
            continue
        twin = getattr(ours, RENAMED.get(name, name))
        if callable(twin) and name != "with_options":
            assert list(inspect.signature(twin).parameters) == list(inspect.signature(getattr(theirs, name)).parameters)
    assert not set(public(ours)) - set(public(theirs)) - set(RENAMED.values())


def test_a_batch_collects_through_the_same_tree() -> None:
    for name in ("ChatCompletions", "Completions", "Embeddings", "Moderations", "Responses"):
        theirs = inspect.signature(getattr(resources, name).create).parameters
        ours = inspect.signature(getattr(batch, "_" + name).create).parameters
        assert list(ours) == [parameter for parameter in theirs if parameter != "stream"]


def test_both_clients_take_the_same_options() -> None:
    wanted = set(inspect.signature(client.AsyncFastLLM.__init__).parameters) - {"self", "unknown"}
    assert set(client.ClientParams.__annotations__) == wanted == keywords.OPTIONS
    changes = set(inspect.signature(client.AsyncFastLLM.with_options).parameters) - {"self", "unknown"}
    assert set(keywords.CHANGEABLE) == changes
