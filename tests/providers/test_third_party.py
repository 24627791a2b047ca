"""A provider in a package of somebody else's: the one that docs/providers.md shows, built, installed and asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from fastllm.testing import MockConfig, serve_in_thread

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"
ASK = """
import threading, http.server, sys
from fastllm import FastLLM
from fastllm.build import known_providers

seen = []

class Talk(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        seen.append((self.path, self.headers["x-acme-key"], self.headers["authorization"]))
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"choices":[{"message":{"content":"It works."},"finish_reason":"stop"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args): pass

server = http.server.HTTPServer(("127.0.0.1", 0), Talk)
threading.Thread(target=server.serve_forever, daemon=True).start()
import acme_fastllm
acme_fastllm.AcmeProvider.base_url = f"http://127.0.0.1:{server.server_port}/llm"
assert "acme" in known_providers()
with FastLLM() as client:
    answer = client.chat.completions.create(model="acme/tiny", messages=[{"role": "user", "content": "Hello"}])
assert seen == [("/llm/talk", "sesame", None)], seen
print(answer.text, answer.endpoint)
"""


def test_a_package_of_ones_own(tmp_path: Path) -> None:
    page = PAGE.read_text()
    code = re.search(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    project = re.search(r"^`pyproject.toml`:\n\n```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert code is not None and project is not None
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    (package / "acme_fastllm.py").write_text(code[1])
    (package / "pyproject.toml").write_text(project[1])
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={site}", str(package)]
    made = subprocess.run(install, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert list(site.glob("acme_fastllm-1.0.dist-info/entry_points.txt"))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path]), "ACME_API_KEY": "sesame"}
    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60, env=environ)
    assert (asked.stdout, asked.stderr) == ("It works. acme/tiny\n", "")


def test_a_vendor_of_ones_own_in_the_file(tmp_path: Path) -> None:
    """`fastllm chat` finds it by its name, with its key in its own header."""
    with serve_in_thread(MockConfig()) as server:
        (tmp_path / "fastllm.toml").write_text(
            f'[vendors.acme]\nbase_url = "{server.base_url}"\nkey_env = "ACME_KEY"\n'
            '[routes.best]\nendpoints = ["acme/mock-model"]\n'
        )
        environ = {**os.environ, "ACME_KEY": "sesame"}
        for model in ("acme/mock-model", "best"):
            command = [sys.executable, "-m", "fastllm.cli", "chat", "Hello there", "--model", model]
            found = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
            assert found.returncode == 0 and found.stdout.rstrip().endswith("Hello there"), found.stderr
