"""Findings: what the trials count, and how an output is compared with that of an uninterrupted run."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import msgspec

from fastllm.jobs.manifest import manifest_path, read_manifest

MOST_SHOWN = 20

# The only thing in an output that differs between two whole runs: a provider counts its requests.
_REQUEST_ID = re.compile(rb'"request_id":"req_[0-9a-f]{16}"')
_SAME = b'"request_id":"req_0123456789abcdef"'


class Findings(msgspec.Struct):
    """What one trial tried and found. Anything in the middle line is a broken promise."""

    trial: str
    states: int = 0
    kills: int = 0
    lost: int = 0
    duplicate: int = 0
    torn: int = 0
    wrong: int = 0
    asked_twice: int = 0  # rows asked though the journal had their answer
    notes: dict[str, int] = {}  # what is no promise but worth knowing
    complaints: list[str] = []

    @property
    def broken(self) -> int:
        return self.lost + self.duplicate + self.torn + self.wrong + self.asked_twice

    def complain(self, text: str) -> None:
        if len(self.complaints) < MOST_SHOWN:
            self.complaints.append(text)

    def note(self, what: str, count: int = 1) -> None:
        self.notes[what] = self.notes.get(what, 0) + count

    def most(self, what: str, count: int) -> None:
        self.notes[what] = max(count, self.notes.get(what, 0))

    def compare(self, expected: bytes, output: Path, where: str) -> None:
        """Count what is lost, doubled, torn or wrong in a finished output; and hold its manifest to it."""
        try:
            got = output.read_bytes()
        except FileNotFoundError:
            self.lost += expected.count(b"\n")
            self.complain(f"{where}: there is no output")
            return
        if normal(got) == normal(expected):
            return
        before = self.broken
        names = {json.loads(line)["custom_id"]: line for line in normal(expected).splitlines(keepends=True)}
        seen: Counter[str] = Counter()
        for line in normal(got).splitlines(keepends=True):
            try:
                name = json.loads(line)["custom_id"]
            except (ValueError, KeyError):
                self.torn += 1
                continue
            seen[name] += 1
            self.wrong += names.get(name) != line
        self.lost += sum(name not in seen for name in names)
        self.duplicate += sum(count - 1 for count in seen.values())
        self.wrong += self.broken == before  # nothing but the order
        self.complain(f"{where}: the output differs from that of an uninterrupted run")

    def check_manifest(self, output: Path, where: str) -> None:
        """What the manifest of a finished job says of the output is so."""
        manifest = read_manifest(manifest_path(output))
        rows = output.read_bytes().count(b"\n")
        if manifest is None or manifest.state != "finished" or manifest.totals is None or manifest.totals.ok != rows:
            self.wrong += 1
            self.complain(f"{where}: the manifest does not tell of a finished job with {rows} answers")

    def __str__(self) -> str:
        found = f"{self.lost} lost, {self.duplicate} duplicate, {self.torn} torn, {self.wrong} wrong"
        notes = "".join(f"; {count:,} {what}" for what, count in self.notes.items())
        kills = f", {self.kills:,} kills" if self.kills else ""
        return f"{self.trial:8} {self.states:>7,} states{kills}: {found}, {self.asked_twice} asked twice{notes}"


def normal(content: bytes) -> bytes:
    """Give an output with all request ids made equal."""
    return _REQUEST_ID.sub(_SAME, content)
