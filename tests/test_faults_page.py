"""docs/faults.md names the test of every fault, and every test that is marked stands there.

After a change: python tests/test_faults_page.py
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "faults.md"
ROW = re.compile(r"^\| (?!fault|---)([a-z0-9-]+) \| ([^|]+) \|(.*) \|$", re.MULTILINE)


def marked() -> dict[str, list[str]]:
    """The tests of each fault, as `file::name`."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for test in _tests(ast.parse(path.read_text())):
            for decorator in test.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
                    for name in decorator.args:
                        found[str(ast.literal_eval(name))].append(f"{path.relative_to(TESTS)}::{test.name}")
    return found


def _tests(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def cell(tests: list[str]) -> str:
    """The last column of a fault's row."""
    named = (test.partition("::") for test in sorted(tests))
    return ", ".join(f"[{name.removeprefix('test_')}](../tests/{file})" for file, _, name in named)


def written(page: str) -> str:
    """The page with the tests that there are in its last column."""
    found = marked()
    return ROW.sub(lambda row: f"| {row[1]} | {row[2]} | {cell(found[row[1]])} |", page)


def test_the_page_and_the_marks_agree() -> None:
    page = PAGE.read_text()
    listed = [row[1] for row in ROW.finditer(page)]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(marked())
    assert all(row[3] for row in ROW.finditer(page))
    assert written(page) == page, "run python tests/test_faults_page.py"


def test_every_fault_of_http_providers_streams_and_the_gateway_has_a_test() -> None:
    assert {str(number) for number in (*range(17, 49), *range(82, 97))} <= set(marked())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
