"""wrk, a load generator in C: the limit. It runs for a time, and reads nothing of an answer but its length."""

import json
import re
import tempfile
from pathlib import Path

from work import KEY, Measured, Work, bodies, child


def main(work: Work) -> None:
    body = json.dumps(next(bodies(1)))
    seconds = max(1, round(min(work.seconds, work.requests * max(work.latency, 0.005) / work.in_flight)))
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(
            f"wrk.method = 'POST'; wrk.body = '{body}'\n"
            f"wrk.headers['content-type'] = 'application/json'; wrk.headers['authorization'] = 'Bearer {KEY}'\n"
        )
        command = ["wrk", "-t1", f"-c{work.in_flight}", f"-d{seconds}", "-s", str(script)]
        taken, said = child([*command, f"{work.url}/chat/completions"])
    requests, lasted = re.search(r"(\d+) requests in ([\d.]+)s", said).groups()
    failed = sum(map(int, re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", said)))
    Measured(int(requests), int(requests) - failed, int(requests), float(lasted), taken.cpu, taken.rss).print()


main(Work.given())
