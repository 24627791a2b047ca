"""Where tests of the command line run: a directory of their own, with the mock as their provider."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def settle(folder: Path, monkeypatch: pytest.MonkeyPatch, base_url: str, **settings: str) -> None:
    """Go to a folder, with nothing of this machine's settings and keys in the environment, but these."""
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("FASTLLM", "OPENAI"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))  # for commands in a process of their own
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    for name, value in {"base_url": base_url, "model": "m", **settings}.items():
        monkeypatch.setenv(f"FASTLLM_{name.upper()}", value)
