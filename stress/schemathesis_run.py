"""Have Schemathesis ask a gateway for whatever its OpenAPI document allows, and much that it does not.

    python stress/schemathesis_run.py --rounds 14          # about 100,000 cases: half an hour

Each round draws anew, with a seed of its own; only the first one has the cases that are always the same, too. The
gateway and the mock behind it are processes of their own, with files and batches; Schemathesis is the one that
`scripts/clients` installs. Says how many answers there were of each status; fails where one was 5xx, or where
Schemathesis has found an answer that the document does not allow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEY = "sk-master-of-the-stress-test"
# What a provider refuses although its shape is right is the provider's to say.
WITHOUT = "positive_data_acceptance"


@contextmanager
def running(*command: str, folder: Path, **environ: str) -> Iterator[str]:
    """Run a command of fastllm's that listens, and give its address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTLLM", "OPENAI"))}
    line = [sys.executable, "-m", "fastllm.cli", *command]
    more = {"PYTHONPATH": str(ROOT / "src"), "OPENAI_API_KEY": "k", **environ}
    out = subprocess.PIPE
    child = subprocess.Popen(line, cwd=folder, env={**kept, **more}, stdout=out, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().split()[-1]
    finally:
        child.terminate()
        child.wait(60)
        sys.stdout.write(child.stdout.read())
        child.stdout.close()


def asked(origin: str, given: argparse.Namespace, number: int, folder: Path) -> bool:
    """Ask for one round; say whether all was well."""
    line = [str(ROOT / ".venv-clients" / "bin" / "schemathesis"), "run", f"{origin}/openapi.json"]
    line += ["--header", f"Authorization: Bearer {KEY}", "--exclude-checks", WITHOUT, "--warnings", "off"]
    line += ["--max-examples", str(given.examples), "--seed", str(given.seed + number)]
    line += ["--phases", "fuzzing,stateful"] if number else []
    return (
        subprocess.run(
            [*line, "--continue-on-failure", "--no-color", "--suppress-health-check", "all"], cwd=folder
        ).returncode
        == 0
    )


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--examples", type=int, default=300, help="cases of each operation in a round")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        environ = {
            "FASTLLM_MASTER_KEY": KEY,
            "FASTLLM_DB": str(folder / "db"),
            "FASTLLM_GATEWAY_DATA_DIR": str(folder / "data"),
        }
        with running("mock", folder=folder) as mock:
            serve = ("serve", "--port", "0", "--base-url", mock, "--access-log", "access.log")
            with running(*serve, folder=folder, **environ) as origin:
                failed = [number for number in range(given.rounds) if not asked(origin, given, number, folder)]
        statuses = Counter(json.loads(text)["status"] for text in (folder / "access.log").read_bytes().splitlines())
    print("answers:", sum(statuses.values()), dict(sorted(statuses.items())))
    print("rounds:", given.rounds, "with failures:", len(failed))
    return 1 if failed or any(status >= 500 for status in statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
