"""`fastllm serve` as a process: it says where it listens, serves, reads its settings again, and ends in peace."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fastllm.providers.vendors import VENDORS
from fastllm.testing import MockConfig, serve_in_thread
from kits.gateway import KEY
from kits.serve import FILE, command, environment, post, serving


def get(origin: str, path: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(f"{origin}{path}", headers=headers), timeout=20) as answer:
        return str(answer.read(), "utf-8")


def test_it_serves_reads_its_settings_again_on_sighup_and_ends_on_sigterm(tmp_path: Path) -> None:
    with serve_in_thread(MockConfig(api_key="upstream")) as mock:
        path = tmp_path / "fastllm.toml"
        path.write_text(FILE.format(more="", base_url=mock.base_url))
        keys = {"OURS": "upstream", "FASTLLM_MASTER_KEY": KEY}
        with serving(tmp_path, "--access-log", "access.log", **keys) as (process, origin):
            assert post(origin, "ours")[0] == 401
            assert post(origin, "ours", authorization=f"Bearer {KEY}")[0] == 200
            assert post(origin, "theirs", authorization=f"Bearer {KEY}")[0] == 404
            path.write_text(FILE.format(more="prot = 1", base_url=mock.base_url))
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            assert "not reloaded" in process.stderr.readline()
            assert post(origin, "ours", authorization=f"Bearer {KEY}")[0] == 200
            path.write_text(FILE.replace("ours", "theirs").format(more="", base_url=mock.base_url))
            process.send_signal(signal.SIGHUP)
            assert "reloaded" in process.stderr.readline()
            assert post(origin, "theirs", authorization=f"Bearer {KEY}")[0] == 200
            assert post(origin, "ours", authorization=f"Bearer {KEY}")[0] == 404
            counted = get(origin, "/metrics", authorization=f"Bearer {KEY}")
            asked = 'fastllm_requests_total{cached="false",model="ours",route="/chat/completions",status="200"} 2.0'
            assert asked in counted and "fastllm_endpoint_attempts_total" in counted
            assert KEY not in counted and "upstream" not in counted
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            assert process.stderr.read() == "fastllm: stopping\n"
        lines = (tmp_path / "access.log").read_text().splitlines()
        assert [json.loads(line)["status"] for line in lines] == [401, 200, 404, 200, 200, 404, 200]
        assert KEY not in "".join(lines) and "upstream" not in "".join(lines)


def test_what_cannot_be_served_is_not_reloaded_and_all_stays_as_it_is(tmp_path: Path) -> None:
    with serve_in_thread(MockConfig(api_key="upstream")) as mock:
        path, prices = tmp_path / "fastllm.toml", tmp_path / "prices.toml"
        good = FILE.format(more="", base_url=mock.base_url)
        path.write_text(good)
        prices.write_text("= no TOML")
        with serving(tmp_path, OURS="upstream", GROQ_API_KEY="") as (process, origin):
            assert process.stderr is not None
            for text, says in (
                (good + 'fallbacks = ["nope/x"]\n', "routes.ours: no provider 'nope'"),
                (good + 'fallbacks = ["groq/llama-3"]\n', "GROQ_API_KEY"),
                (f'prices = "{prices}"\n{good}', "prices.toml"),
                (None, f"the file it began with ({path}) is gone"),
            ):
                path.unlink()
                if text is not None:
                    path.write_text(text)
                process.send_signal(signal.SIGHUP)
                said = process.stderr.readline()
                assert said.startswith("fastllm: error: not reloaded: ") and says in said
                assert post(origin, "ours")[0] == 200
                path.write_text(good)
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGHUP)
            assert process.stderr.readline() == "fastllm: reloaded\n"
            assert post(origin, "ours")[0] == 200


def test_a_check_says_what_would_be_served_and_serves_nothing(tmp_path: Path) -> None:
    (tmp_path / "fastllm.toml").write_text(FILE.format(more='models = ["openai/*"]', base_url="http://127.0.0.1:9/v1"))
    done = command(tmp_path, "--check", "--model", "groq/x", GROQ_API_KEY="k", OURS="k")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [
        "listens on 127.0.0.1:0", "wants no key", "serves ours -> m at 127.0.0.1:9 (OURS)", "serves groq/x -> groq/x",
        "models: ours, groq/x, openai/*",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "more", "says"),
    [
        (("--host", "0.0.0.0"), {}, "not listening on 0.0.0.0 without a key"),
        ((), {"FASTLLM_MASTER_KEY": "short"}, "at least 16 characters"),
        (("--model", "groq/x"), {}, "GROQ_API_KEY"),
        (("--rpm", "0"), {}, "--rpm"),
        ((), {"FASTLLM_GATEWAY_PROT": "1"}, "did you mean 'port'"),
        (("--access-log", "no/such/file"), {}, "access log"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_served(
    arguments: tuple[str, ...], more: dict[str, str], says: str, tmp_path: Path
) -> None:
    done = command(tmp_path, "--port", "0", *arguments, **{"MISTRAL_API_KEY": "k", **more})
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "more", "says"),
    [
        (("--model", "local/smolm2"), "", "did you mean local/smollm2?"),
        ((), 'passthrough = ["opnai"]', "no provider 'opnai' that could be passed through to; did you mean 'openai'?"),
        ((), 'passthrough = ["openai"]', "gateway.passthrough: no API key for openai: set OPENAI_API_KEY"),
        ((), 'models = ["ours", "ourz"]', "'ourz' is neither a route nor provider/model; did you mean 'ours'?"),
        ((), 'models = ["opnai/x"]', "did you mean 'openai/x'?"),
        ((), 'models = ["extar"]', "'extar' is neither a route nor provider/model; write 'openai/extar'"),
        ((), 'master_key_env = "NOPE"', "NOPE is not set or empty"),
    ],
)
def test_a_check_refuses_what_could_not_be_served(
    arguments: tuple[str, ...], more: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "fastllm.toml").write_text(FILE.format(more=more, base_url="http://127.0.0.1:9/v1"))
    done = command(tmp_path, "--check", *arguments, OURS="k")
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_a_check_says_what_is_passed_through_and_makes_no_file(tmp_path: Path) -> None:
    more = 'models = ["gpt-9", "anthropic/*"]\npassthrough = ["openai"]'
    (tmp_path / "fastllm.toml").write_text(FILE.format(more=more, base_url="http://127.0.0.1:9/v1"))
    done = command(tmp_path, "--check", "--db", "f.db", OURS="k", OPENAI_API_KEY="k")
    assert (done.returncode, done.stderr) == (0, "")
    assert "serves gpt-9 -> openai/gpt-9\n" in done.stdout
    assert "serves /openai -> all of openai's API, passed through\n" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["fastllm.toml"]


def test_behind_a_base_url_every_name_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "fastllm.toml").write_text('[gateway]\nmodels = ["extar"]\n')
    done = command(tmp_path, "--check", "--base-url", "http://127.0.0.1:9/v1")
    assert done.returncode == 0 and "models: extar" in done.stdout


def test_nothing_to_serve_is_said(tmp_path: Path) -> None:
    keys = {name: "" for vendor in VENDORS.values() for name in vendor.key_env}
    done = command(tmp_path, "--check", **keys)
    assert done.returncode == 2 and "there is nothing to serve: give --model" in done.stderr


def test_help_needs_no_package_of_the_gateways_own(tmp_path: Path) -> None:
    for more, status, says in ((["--help"], 0, "--access-log"), (["--check"], 2, "pip install 'fastllm[gateway]'")):
        line = f"import sys; sys.modules['uvicorn'] = None; sys.argv[1:] = {['serve', *more]}"
        code = f"{line}; from fastllm.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == status and says in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--port", "0", "--model", "ollama/m") as (process, origin):
        with urllib.request.urlopen(f"{origin}/health/ready", timeout=20) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


class Collector(BaseHTTPRequestHandler):
    """Takes what is exported over OTLP/HTTP."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *of: object) -> None:
        pass


def test_with_otel_spans_and_metrics_go_where_the_standard_variables_say(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector, serve_in_thread(MockConfig()) as mock:
        taken: list[tuple[str, bytes]] = []
        collector.taken = taken  # type: ignore[attr-defined]
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            (tmp_path / "fastllm.toml").write_text(FILE.format(more="otel = true", base_url=mock.base_url))
            more = {"OURS": "upstream", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
            with serving(tmp_path, **more) as (process, origin):
                parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
                assert post(origin, "ours", traceparent=parent)[0] == 200
                process.send_signal(signal.SIGTERM)  # what is left is sent at the end
                assert process.wait(timeout=20) == 0
                assert process.stderr is not None and process.stderr.read() == "fastllm: stopping\n"
        finally:
            collector.shutdown()
            thread.join()
    spans = [
        span
        for path, body in taken
        if path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert sorted(span.name for span in spans) == ["POST /chat/completions", "chat ours"]
    assert {span.trace_id.hex() for span in spans} == {"0af7651916cd43dd8448eb211c80319c"}
    metrics = b"".join(body for path, body in taken if path == "/v1/metrics")
    assert b"gen_ai.client.operation.duration" in metrics and b"fastllm" in metrics
    assert b"upstream" not in b"".join(body for _, body in taken)


def test_otel_that_cannot_be_had_is_said_at_once(tmp_path: Path) -> None:
    done = command(tmp_path, "--port", "0", "--model", "ollama/m", "--otel", OTEL_TRACES_EXPORTER="nonsense")
    assert done.returncode == 2 and "no exporter 'nonsense'" in done.stderr and "Traceback" not in done.stderr
