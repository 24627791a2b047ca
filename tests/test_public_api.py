"""The public names are the ones listed, each documented, and the lazy table agrees with what type checkers see."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import fastllm

SOURCE = Path(fastllm.__file__).read_text()


@pytest.mark.parametrize("name", fastllm.__all__)
def test_every_public_name_can_be_had_and_is_documented(name: str) -> None:
    value = getattr(fastllm, name)
    if inspect.isclass(value):
        assert vars(value).get("__doc__"), f"{name} has no docstring of its own"
        assert value.__module__.startswith("fastllm.")


def test_type_checkers_see_the_same_names_as_the_lazy_table() -> None:
    block = next(
        node
        for node in ast.parse(SOURCE).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        (alias.asname or alias.name): node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == fastllm._TABLE


def test_a_name_that_is_not_public_is_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fastllm.nonsense
    assert "FastLLM" in dir(fastllm)


def test_the_package_is_typed() -> None:
    assert (Path(fastllm.__file__).parent / "py.typed").exists()
