"""Every Python block of README and docs runs, in order, page by page, against the mock instead of a provider."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastllm.testing import MockConfig, serve_in_thread

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_code_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with serve_in_thread(MockConfig()) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-for-the-mock")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        namespace: dict[str, object] = {"__name__": "docs"}
        for number, block in enumerate(blocks(page), 1):
            exec(compile(block, f"{page.name}, block {number}", "exec", dont_inherit=True), namespace)  # noqa: S102
        for client in [value for value in namespace.values() if type(value).__name__ == "FastLLM"]:
            client.close()  # type: ignore[attr-defined]


TYPED = """
from fastllm import AsyncFastLLM, FastLLM, Response, SyncStream

client = FastLLM()
messages = [{"role": "user", "content": "Hello"}]


def ask(flag: bool) -> Response | SyncStream:
    client.completions.create(model="m", prompt="x", stream=flag)
    client.responses.create(model="m", input="x", stream=flag)
    return client.chat.completions.create(model="m", messages=messages, stream=flag)


async def ask_many(flag: bool) -> str:
    client.process([messages, messages], model="m")
    client.process([messages, "a prompt", {"messages": messages}], model="m")
    client.run("in.jsonl", "out.jsonl", model="m", max_tokens=5, temperature=0, keep="a")
    found = await AsyncFastLLM().chat.completions.create(model="m", messages=messages, stream=flag)
    answer = client.chat.completions.create(model="m", messages=messages)
    return answer.text if isinstance(found, Response) else found.response.text
"""


def test_code_blocks_and_examples_are_typed(tmp_path: Path) -> None:
    """What stands in the docs passes `mypy --strict` where it is pasted, and so does what they promise in words."""
    (tmp_path / "typed.py").write_text(TYPED)
    for page in PAGES:
        (tmp_path / f"page_{page.stem.lower().replace('-', '_')}.py").write_text("\n\n".join(blocks(page)))
    files = [*map(str, sorted(tmp_path.glob("*.py"))), *map(str, sorted((ROOT / "examples").glob("*.py")))]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--explicit-package-bases", *files]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_readmes_first_two_blocks_are_one_command_each() -> None:
    found = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    for block in found[:2]:
        assert block.count("\n") == 1
    assert "examples/questions.jsonl --model local/smollm2 --output answers.jsonl" in found[0]
    assert "scripts/test" in found[1] and os.access(ROOT / "scripts" / "test", os.X_OK)
