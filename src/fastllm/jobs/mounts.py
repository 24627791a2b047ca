"""What kind of file system a path lies on, where it is one whose locks may not hold between machines."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")  # Linux; elsewhere nothing is known, and nothing said
_SHARED = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "beegfs"})


def shared_filesystem(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """Give the name of the network file system that holds `path`; None where it is local, or nobody can tell."""
    try:
        text = mounts.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    place = os.path.realpath(path)
    best, kind = "", ""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")  # the fields before the dash are as many as they like
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = _plain(fields[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts in one place, the later one is seen
            best, kind = point, after.split(" ")[0]
    return kind if kind.removeprefix("fuse.") in {*_SHARED, "sshfs"} else None


def _plain(escaped: str) -> str:
    """Undo what proc(5) does to spaces, tabs, line ends and backslashes."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        escaped = escaped.replace(code, character)
    return escaped
