"""Remote files by fsspec: `s3://…`, `gs://…`, `https://…`, `memory://…`; only whole files cross the network.

An input is copied into a temporary directory first. An output is made in the current directory, with its journal beside
it, and then uploaded; it counts as there when that is done.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError, MissingExtra
from ..types import _without_secrets


class Places(msgspec.Struct, frozen=True):
    """Where the input and the output of a job lie on this machine; `url` is where the output goes from there."""

    source: str
    output: Path
    url: str | None = None

    def upload(self, failures: Path | None, *, only_if_missing: bool = False) -> None:
        """Bring the output to its place, and the file of failures. ConfigError where it cannot be."""
        if self.url is None:
            return
        system, path = _system(self.url)
        files = [(self.output, path)]
        if failures is not None:
            files.insert(0, (failures, f"{path.rpartition('/')[0]}/{failures.name}"))
        shown = _without_secrets(self.url)
        try:
            for local, remote in files:
                if not (only_if_missing and system.exists(remote) and system.size(remote) == local.stat().st_size):
                    system.put_file(str(local), remote)
        except Exception as error:  # each file system has its own
            raise ConfigError(
                f"cannot write {shown}: {_words(error, self.url)}; every answer is in {self.output}, "
                "run the job again to upload"
            ) from None


def is_remote(name: str | Path) -> bool:
    """Tell a URL from the name of a file."""
    scheme, separator, _ = str(name).partition("://")
    return bool(separator) and scheme.replace("+", "").isalnum()


@contextmanager
def local_places(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Iterator[Places]:
    """Give names of local files for both; a copy of a remote input lasts as long as this. ConfigError where there is
    none, MissingExtra where a package is not installed."""
    read, written = os.fspath(source), os.fspath(output)
    with ExitStack() as opened:
        if is_remote(written):
            _system(written)
            name = _without_secrets(written).rpartition("/")[2]
            if not name:
                raise ConfigError(f"the output {_without_secrets(written)} must end with a file's name")
        if is_remote(read):
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="fastllm-input-"))
            read = str(_fetched(read, Path(folder)))
        yield Places(read, Path(name) if is_remote(written) else Path(written), written if is_remote(written) else None)


def _fetched(url: str, folder: Path) -> Path:
    system, path = _system(url)
    target = folder / (path.rstrip("/").rpartition("/")[2].partition("?")[0] or "input")
    try:
        system.get_file(path, str(target))
    except FileNotFoundError:
        raise ConfigError(f"cannot read {_without_secrets(url)}: there is no such file") from None
    except Exception as error:  # each file system has its own
        raise ConfigError(f"cannot read {_without_secrets(url)}: {_words(error, url)}") from None
    return target


def _system(url: str) -> tuple[Any, str]:
    """Give the file system of a URL, and its path there."""
    try:
        import fsspec
    except ImportError:
        raise MissingExtra("remote files need a package: pip install 'fastllm[remote]'") from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtra(f"{url.partition('://')[0]}:// needs a package: {error}") from None
    except ValueError as error:
        raise ConfigError(f"cannot open {_without_secrets(url)}: {_words(error, url)}") from None
    return system, path


def _words(error: Exception, url: str) -> str:
    text = str(error).replace(url, _without_secrets(url)).partition("\n")[0]
    return f"{type(error).__name__}: {text}"
