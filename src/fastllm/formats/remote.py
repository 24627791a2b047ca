"""Remote files by fsspec: `s3://…`, `gs://…`, `https://…`, `memory://…`; only whole files cross the network.

An input is copied into a temporary directory first. An output is made in the current directory, with its journal beside
it, and then uploaded, after its file of failures; what is there of another job is not written over unless told so.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError, MissingExtra
from ..types import _without_secrets
from .output import failures_path

_QUERY = re.compile(r"""(?<=://)([^\s'"?@]*@)?([^\s'"?]*)\?[^\s'"]*""")
_READ_ONLY = ("http", "https")


class Places(msgspec.Struct, frozen=True):
    """Where the input and the output of a job lie on this machine. `origin` is where the input came from, without
    secrets, None where it is a file; `url` where the output goes from there."""

    source: str
    output: Path
    origin: str | None = None
    url: str | None = None

    @property
    def shown(self) -> str:
        """What the input is called in messages."""
        return self.origin or self.source

    @property
    def target(self) -> str:
        """What the output is called in messages."""
        return str(self.output) if self.url is None else _without_secrets(self.url)

    def upload(self, failures: Path) -> None:
        """Bring the output to its place, and the file of failures if there is one. ConfigError where it cannot be."""
        if self.url is None:
            return
        system, path = _system(self.url)
        beside = _beside(path, failures.name)
        try:
            if failures.exists():
                system.put_file(str(failures), beside)
            elif system.exists(beside):  # of an earlier run, whose failures have their answers now
                system.rm_file(beside)
            system.put_file(str(self.output), path)
        except Exception as error:  # each file system has its own
            raise ConfigError(
                f"cannot write {self.target}: {_words(error)}; every answer is in {self.output}: run the job again, "
                "which asks nothing any more, to upload it"
            ) from None


def is_remote(name: str | Path) -> bool:
    """Tell a URL from the name of a file."""
    scheme, separator, _ = str(name).partition("://")
    return bool(separator) and scheme.replace("+", "").isalnum()


@contextmanager
def local_places(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    is_ours: Callable[[Path], bool] = lambda local: True,
) -> Iterator[Places]:
    """Give names of local files for both; a copy of a remote input lasts as long as this. ConfigError where there is
    none, or where a remote output is there already and `is_ours` says of its local file that it may not be replaced;
    MissingExtra where a package is not installed."""
    read, written = os.fspath(source), os.fspath(output)
    origin = _without_secrets(read) if is_remote(read) else None
    url = written if is_remote(written) else None
    local = Path(written)
    if url is not None:
        local = _checked(url, read, is_ours)
    with ExitStack() as opened:
        if origin is not None:
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="fastllm-input-"))
            read = str(_fetched(read, Path(folder)))
        yield Places(read, local, origin, url)


def _checked(url: str, source: str, is_ours: Callable[[Path], bool]) -> Path:
    """Give the local name of a remote output, before anything is paid for: neither it nor its file of failures may be
    the input, or anybody else's."""
    shown = _without_secrets(url)
    if url.partition("://")[0] in _READ_ONLY:
        raise ConfigError(f"the output {shown} cannot be written over HTTP; give a file, or a place such as s3://…")
    system, path = _system(url)
    name = shown.rpartition("/")[2]
    if not name:
        raise ConfigError(f"the output {shown} must end with a file's name")
    failures = failures_path(Path(name)).name
    places = {shown: path, _beside(shown, failures): _beside(path, failures)}
    other, at = _system(source if is_remote(source) else f"file://{os.path.realpath(source)}")
    if type(other) is type(system) and at in places.values():
        raise ConfigError(f"the input {_without_secrets(source)} would be replaced by this job; give another output")
    if is_ours(Path(name)):
        return Path(name)
    for told, place in places.items():
        try:
            exists = system.exists(place)
        except Exception as error:  # each file system has its own
            raise ConfigError(f"cannot look for {told}: {_words(error)}") from None
        if exists:
            raise ConfigError(
                f"{told} exists and is of no job in this directory: give another output, or write over it with "
                "overwrite=True"
            )
    return Path(name)


def _fetched(url: str, folder: Path) -> Path:
    shown = _without_secrets(url)
    system, path = _system(url)
    target = folder / (shown.rpartition("/")[2] or "input")
    try:
        system.get_file(path, str(target))
    except FileNotFoundError:
        raise ConfigError(f"cannot read {shown}: there is no such file") from None
    except Exception as error:  # each file system has its own
        raise ConfigError(f"cannot read {shown}: {_words(error)}") from None
    if not target.is_file():
        raise ConfigError(f"cannot read {shown}: it is no file")
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
        raise ConfigError(f"cannot open {_without_secrets(url)}: {_words(error)}") from None
    return system, path


def _beside(path: str, name: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{name}"


def _words(error: Exception) -> str:
    """Say what an error says, in one line and without the queries of URLs, which may be signatures."""
    text = _QUERY.sub(r"\2", str(error).partition("\n")[0])
    return f"{type(error).__name__}: {text}"
