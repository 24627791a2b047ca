"""FileStore: files of tenants on the disk, each tenant's in a directory of its own, where nobody else's are looked for.

A file is two: its content, and what is known of it as JSON beside it, written last, so that what has no JSON was never
a file. Names are made here; what a client calls a file is only told. Directories are 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ..errors import ConfigError
from ..jobs.replacing import replacing

MOST_FILES = 10_000  # of one tenant
ABANDONED = 86_400.0  # seconds after which what never became a file is removed
_ID = re.compile(r"file-[0-9a-f]{24}")
_KNOWN = ".json"
_INCOMING = ".incoming-"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file. Times are wall times in seconds."""

    id: str
    size: int
    created: float
    name: str
    purpose: str
    expires: float | None = None

    def shown(self) -> dict[str, Any]:
        """Give it as OpenAI does."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": int(self.created),
            "expires_at": None if self.expires is None else int(self.expires),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


_decode = msgspec.json.Decoder(StoredFile).decode


def new_id() -> str:
    """Make an id for a file."""
    return "file-" + secrets.token_hex(12)


def folder_name(tenant: str) -> str:
    """Give the name of a tenant's directory."""
    return hashlib.blake2b(tenant.encode(), digest_size=16).hexdigest()


def private_folder(path: Path) -> Path:
    """Make sure of a directory that is ours alone. ConfigError where it cannot be."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"gateway.data_dir: cannot use {path}: {error.strerror or error}") from None
    return path


def private_file(path: Path) -> BinaryIO:
    """Make a new file to write."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def share(source: Path, target: Path) -> None:
    """Have a file, which nobody writes any more, under a second name."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # the file system has no links
        with source.open("rb") as content, private_file(target) as file:
            shutil.copyfileobj(content, file, 1 << 20)


class FileStore:
    """Files below a directory. Every call works on the disk: not for a loop's thread."""

    def __init__(self, root: Path) -> None:
        self.root = private_folder(root)

    def incoming(self, tenant: str) -> tuple[Path, BinaryIO]:
        """Begin a new file: give where it lies for now."""
        path = private_folder(self._folder(tenant)) / (_INCOMING + secrets.token_hex(12))
        return path, private_file(path)

    def keep(
        self, tenant: str, path: Path, *, name: str, purpose: str, expires: float | None = None, id: str = ""
    ) -> StoredFile:
        """Make a file of what lies at `path`, which is gone then. With an `id` that was kept before, in its place."""
        folder = private_folder(self._folder(tenant))
        size = path.stat().st_size
        found = StoredFile(
            id=id or new_id(), size=size, created=time.time(), name=name, purpose=purpose, expires=expires
        )
        path.chmod(0o600)
        with path.open("rb") as content:
            os.fsync(content.fileno())
        path.replace(folder / found.id)
        with replacing(folder / (found.id + _KNOWN), 0o600) as file:
            file.write(msgspec.json.encode(found))
        return found

    def find(self, tenant: str, id: str) -> StoredFile | None:
        """Give a file of this tenant."""
        if not _ID.fullmatch(id):
            return None
        try:
            found = _decode((self._folder(tenant) / (id + _KNOWN)).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None
        if found.expires is not None and found.expires <= time.time():
            self.remove(tenant, id)
            return None
        return found

    def all(self, tenant: str) -> list[StoredFile]:
        """Give the files of this tenant, the oldest first."""
        folder = self._folder(tenant)
        paths = list(folder.iterdir()) if folder.is_dir() else []
        found = [self.find(tenant, path.stem) for path in paths if path.suffix == _KNOWN]
        return sorted((file for file in found if file is not None), key=lambda file: (file.created, file.id))

    def path(self, tenant: str, id: str) -> Path:
        """Give where the content of a file that was found lies."""
        return self._folder(tenant) / id

    def remove(self, tenant: str, id: str) -> bool:
        """Remove a file; tell whether there was one. Whoever reads it now goes on."""
        if not _ID.fullmatch(id):
            return False
        folder = self._folder(tenant)
        try:
            (folder / (id + _KNOWN)).unlink()
        except FileNotFoundError:
            return False
        (folder / id).unlink(missing_ok=True)
        return True

    def used(self, tenant: str) -> tuple[int, int]:
        """Give how many files a tenant has, and how many bytes, those that are coming in included."""
        count = size = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder(tenant)) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_size
                count += entry.name.endswith(_KNOWN)
        return count, size

    def sweep(self) -> None:
        """Remove what has expired, and what never became a file."""
        now = time.time()
        for folder in self.root.iterdir():
            for path in list(folder.iterdir()) if folder.is_dir() else ():
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    if path.suffix == _KNOWN:
                        found = _decode(path.read_bytes())
                        if found.expires is not None and found.expires <= now:
                            path.unlink()
                            path.with_suffix("").unlink(missing_ok=True)
                    elif now - path.stat().st_mtime > ABANDONED and not path.with_name(path.name + _KNOWN).exists():
                        path.unlink()

    def _folder(self, tenant: str) -> Path:
        return self.root / folder_name(tenant)

    def __repr__(self) -> str:
        return f"<FileStore {self.root}>"
