"""A virtual environment for each set of requirements, made with pip where it does not exist yet, and kept."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from contenders import TREE, Contender

HERE = Path(__file__).parent
STAMP = "made-from.json"  # of an environment: what it was made from


class CannotInstall(Exception):
    """Says what pip said last."""


def directory() -> Path:
    """Give where the environments are kept by default: the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastllm-bench"


def python(root: Path, contender: Contender) -> Path:
    """Give the Python of the contender's environment. Its environment is made anew where what it is made from changed.

    A contender without requirements shares the Python of this process.
    """
    if not contender.needs:
        return Path(sys.executable)
    name = "+".join(contender.needs).replace("[", "-").replace("]", "")
    folder = root / name
    stamp = {
        "needs": [str(HERE.parent) if need == TREE else need for need in contender.needs],
        "constraints": (HERE / contender.constraints).read_text(),
        "python": platform.python_version(),
    }
    made = folder / "bin" / "python"
    if _read(folder / STAMP) == stamp:
        return made
    print(f"making the environment {name}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    install = [str(made), "-m", "pip", "install", "--quiet", "--constraint", str(HERE / contender.constraints)]
    for need in contender.needs:
        install += ["--editable", str(HERE.parent)] if need == TREE else [need]
    _run(install)
    (folder / STAMP).write_text(json.dumps(stamp))
    return made


def version(made: Path, contender: Contender) -> str:
    """Give the version of what the contender needs first, as it is installed."""
    if not contender.needs:
        return ""
    package = contender.needs[0].partition("[")[0]
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return _run([str(made), "-c", code]).strip()


def _read(path: Path) -> object:
    return json.loads(path.read_text()) if path.exists() else None


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise CannotInstall((lines or [f"status {done.returncode}"])[-1])
    return done.stdout
