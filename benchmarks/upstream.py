"""An upstream that is not the bottleneck: nginx with a fixed answer, plain and TLS, at once or after a latency.

    with upstream(Latency(0.05)) as server: ...   # server.plain, server.tls, server.pem

It needs nginx with its Lua module, which `install()` fetches with apt-get where it may. One worker, pinned to the last
core where there are several. Paths that end in `stream/chat/completions` answer with server-sent events.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastllm.testing.tls import certificate

MODULES = Path("/usr/lib/nginx/modules")
PACKAGES = ("nginx-light", "libnginx-mod-http-lua")
CONTENT = "y" * 800
ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1793000000,"model":"m","choices":[{"index":0,"message":'
    f'{{"role":"assistant","content":"{CONTENT}"}},"finish_reason":"stop"}}],'
    '"usage":{"prompt_tokens":150,"completion_tokens":200,"total_tokens":350}}'
)
CHUNKS = 200  # of one streamed answer
_CHUNK = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1793000000,"model":"m",'
    '"choices":[{"index":0,"delta":{"content":"token "},"finish_reason":null}]}'
)
_CONFIG = """
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
worker_processes 1;
worker_rlimit_nofile 60000;
daemon off;
pid {folder}/pid;
events {{ worker_connections 25000; multi_accept on; }}
http {{
  access_log off; server_tokens off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_body_buffer_size 64k; default_type application/json;
  init_by_lua_block {{
    local blank = string.char(10, 10)
    events = string.rep('{chunk}' .. blank, {chunks}) .. 'data: [DONE]' .. blank
  }}
  init_worker_by_lua_block {{ math.randomseed(7) }}
  server {{
    listen 127.0.0.1:{plain} backlog=16384; listen 127.0.0.1:{tls} ssl backlog=16384;
    ssl_certificate {folder}/pem; ssl_certificate_key {folder}/pem; ssl_session_cache shared:s:50m;
    add_header x-request-id req_0123456789;
    add_header x-ratelimit-limit-requests 1000000000; add_header x-ratelimit-remaining-requests 999999999;
    location ~ stream/chat/completions$ {{
      default_type text/event-stream;
      content_by_lua_block {{ ngx.req.read_body(); ngx.header.content_length = #events; ngx.print(events) }}
    }}
    location = /served {{ stub_status; }}
    location / {{ {what} }}
  }}
}}
"""
_LATE = """content_by_lua_block {{
  ngx.req.read_body()
  local seconds = {median}
  if {sigma} > 0 then
    local normal = math.sqrt(-2 * math.log(1 - math.random())) * math.cos(2 * math.pi * math.random())
    seconds = seconds * math.exp({sigma} * normal)
  end
  ngx.sleep(seconds)
  ngx.header.content_length = {length}
  ngx.print('{answer}')
}}"""


@dataclass(frozen=True)
class Latency:
    """How long an answer takes: the median in seconds, and the spread of its logarithm (0: always the median)."""

    median: float = 0.05
    sigma: float = 0.0


@dataclass
class Upstream:
    plain: str
    tls: str
    pem: str
    pid: int
    _asked: int = 0

    def served(self) -> int:
        """Count the requests that were answered so far, without those of this question."""
        with urllib.request.urlopen(self.plain.removesuffix("v1") + "served") as answer:
            requests = int(answer.read().split()[9])  # "server accepts handled requests", and below it three numbers
        self._asked += 1
        return requests - self._asked

    def cpu(self) -> float:
        """Give the CPU seconds of the worker, which does all the work: the master, whose pid is `pid`, does none."""
        worker = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0]
        fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def install(*more: str) -> str:
    """Give nginx's path; fetch it, and what else is named, where it is missing and this process may.

    SystemExit says what to install.
    """
    if not _there(more) and shutil.which("apt-get") and os.geteuid() == 0:
        wanted = ["apt-get", "install", "-y", "-qq", *PACKAGES, *more]
        subprocess.run(wanted, check=False, stdout=subprocess.DEVNULL)
    if not _there(more):
        raise SystemExit(f"this wants nginx with its Lua module: apt-get install {' '.join([*PACKAGES, *more])}")
    return _nginx() or ""


def _nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def _there(more: Iterable[str]) -> bool:
    found = _nginx() is not None and (MODULES / "ngx_http_lua_module.so").exists()
    return found and all(map(shutil.which, more))


@contextmanager
def upstream(latency: Latency | None = None, *, pinned: bool = True) -> Iterator[Upstream]:
    """Run nginx until the block ends. `latency=None` answers at once, without Lua."""
    nginx = install()
    pem, key = certificate("127.0.0.1")
    plain, tls = _free(), _free()
    with tempfile.TemporaryDirectory(prefix="fastllm-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "pem").write_bytes(key + pem)
        what = f"return 200 '{ANSWER}';"
        if latency is not None:
            what = _LATE.format(median=latency.median, sigma=latency.sigma, answer=ANSWER, length=len(ANSWER))
        config = _CONFIG.format(
            modules=MODULES, folder=folder, plain=plain, tls=tls, what=what, chunk=_CHUNK, chunks=CHUNKS
        )
        (folder / "nginx.conf").write_text(config)
        command = [nginx, "-c", str(folder / "nginx.conf"), "-p", name, "-e", f"{name}/error.log"]
        process = subprocess.Popen(_pinned(command) if pinned else command)
        try:
            _await(plain, process, folder / "error.log")
            url = f"127.0.0.1:{plain}/v1"
            yield Upstream(f"http://{url}", f"https://127.0.0.1:{tls}/v1", pem.decode(), process.pid)
        finally:
            process.terminate()
            process.wait()


def _pinned(command: list[str]) -> list[str]:
    if not hasattr(os, "sched_getaffinity") or shutil.which("taskset") is None:
        return command
    return ["taskset", "-c", str(max(os.sched_getaffinity(0))), *command]


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"nginx ended with status {process.returncode}: {log.read_text()[-500:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise SystemExit("nginx does not listen")
