"""Journal: the append-only record of finished rows beside the output, and the only truth about them.

It knows for each row whether it is done, and gives its answer back. One process at a time may hold it: the lock is the
system's and dies with the process. It is kept after the job, as large as the answers are, so that running the job
again does nothing, or only what failed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from ..errors import ConfigError, JobConflictError
from ..formats.ids import UNKNOWN, key_of
from .appender import Appender, JournalError
from .frames import END, FAILED, MAGIC, MAX_ROWS, OK, VERSION, Frames, Layout, Scan, new_layout, read_layout
from .index import Checkpoint, Note, RowIndex
from .replacing import sync_directory

__all__ = ["Durability", "Entry", "Identity", "Journal", "JournalError", "journal_path"]

Durability = Literal["normal", "full"]
SYNC_EVERY: dict[str, float] = {"normal": 1.0, "full": 0.01}  # seconds
_IN_WORDS = {"fingerprint": "the input's content", "schema": "the schema"}  # too long to be shown
_PROMPTS = ("prompt", "system")  # no prompt is in a message or a log
JOURNAL, INDEX = ".journal", ".index"
_HEADER_AT_MOST = 1 << 24
_CHECKPOINT = 64 * 1024 * 1024  # bytes of journal after which the index covers it
_OPEN_END = MAX_ROWS - 1  # the number of rows that says: it is no longer known
_LOCK_TRIES, _LOCK_PAUSE = 5, 0.02  # seconds between them
_ROOM = 1024  # bytes of the header that are kept free for what a job may become


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a job the same job. `fingerprint` is the hash of the input's content ("" for a stream).

    `base_url` is None where none was given, and in journals that are older than this field: those fit any.
    """

    fingerprint: str = ""
    model: str = ""
    prompt: str | None = None
    system: str | None = None
    params: dict[str, Any] = {}
    base_url: str | None = None
    schema: dict[str, Any] | None = None
    moved: bool = False  # rows may stand on other lines than those that their answers were recorded with

    def differences(self, other: Identity) -> list[str]:
        """Say in words what changed from this one to the other."""
        found = []
        for field in self.__struct_fields__:
            before, now = getattr(self, field), getattr(other, field)
            if before == now or field == "moved" or (field == "base_url" and before is None):
                continue
            if field in _PROMPTS:
                found.append(f"{field} ({_hashed(before)} -> {_hashed(now)})")
            else:
                found.append(_IN_WORDS.get(field) or f"{field} {_shown(before)} -> {_shown(now)}")
        return found


class Entry(msgspec.Struct, kw_only=True, array_like=True):
    """What the journal keeps of a finished row: its answer, or its error and the row's source.

    A row whose answer did not fit its schema has an error and the answer."""

    custom_id: str | None = None
    line: int = 0
    status: int = 0
    request_id: str | None = None
    body: bytes = b""
    error: dict[str, Any] | None = None
    source: bytes = b""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 0
    cached: bool = False
    endpoint: str = ""
    finish_reason: str | None = None
    cached_tokens: int = 0
    cost: float | None = None  # USD; None where the price or the usage is not known


Finished = tuple[int, bool, int, Entry]  # a row's index, whether it is ok, its source's checksum, what is kept of it


class _Id(msgspec.Struct, array_like=True):
    """As much of an Entry as is read of every row."""

    custom_id: str | None = None


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Entry).decode
_unpack_id = msgspec.msgpack.Decoder(_Id).decode
_identity = msgspec.msgpack.Decoder(Identity)


def journal_path(output: Path) -> Path:
    """Give the journal's place. ConfigError where the output's name is none."""
    if not output.name:
        raise ConfigError(f"the output must be a file's name, not {str(output)!r}")
    return output.with_name(output.name + JOURNAL)


class Journal:
    """An open, locked journal. `state(i)` is 0, OK or FAILED; `total` the number of rows once that is known."""

    def __init__(self, path: Path, fd: int, layout: Layout, durability: Durability) -> None:
        self.path = path
        self._fd = fd
        self._layout = layout
        self._frames = Frames(fd, layout)
        self._rows = RowIndex(path.with_name(path.name + INDEX), layout)
        self._checkpoint: Checkpoint | None = None
        self._saving: threading.Thread | None = None
        self._end = self._covered = self._base = layout.start
        self._appender = Appender(fd, str(path), SYNC_EVERY[durability])
        # Tells how many rows were asked whose outcome is not with the system yet: a kill would have them asked again.
        self.unwritten = self._appender.unwritten
        self._distrusted = False
        self.total: int | None = None
        self.damaged = 0  # places that had to be skipped; their rows run again
        self.input_changed = False  # since these answers: `take_over` once they are known to fit
        self.differences: list[str] = []  # to the job that it was made for, where that was to be overlooked
        self.torn_bytes = 0  # cut from the end: what a crash left of the last frames

    @classmethod
    def open(
        cls,
        path: Path,
        identity: Identity,
        *,
        overwrite: bool = False,
        force: bool = False,
        durability: Durability = "normal",
    ) -> Self:
        """Open or create, and lock. JobConflictError if it is in use, of another job, newer, or no journal. One without
        an answer is nobody's, and started anew; `input_changed` tells where only the input differs. With `force` one
        of another job is taken as it is, and `differences` say in what."""
        if durability not in SYNC_EVERY:
            raise ConfigError(f"durability must be one of {', '.join(SYNC_EVERY)}; not {durability!r}")
        fd = _open_locked(path)
        try:
            layout = _existing_layout(path, fd, overwrite)
            if layout is None or overwrite:
                return cls._begun(path, fd, _new_layout(identity), durability)
            journal = cls(path, fd, layout, durability)
            journal._load()
            if not journal.ok and _differences(layout, identity):
                return cls._begun(path, fd, _new_layout(identity), durability)
            if force:
                journal.differences = _differences(layout, identity)
            else:
                journal.input_changed = _same_job(path, layout, identity)
            return journal
        except OSError as error:
            os.close(fd)
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _begun(cls, path: Path, fd: int, layout: Layout, durability: Durability) -> Self:
        _start(path, fd, layout)
        journal = cls(path, fd, layout, durability)
        journal._rows.drop()
        return journal

    def take_over(self, identity: Identity) -> None:
        """Make this the journal of a changed input, whose answered rows were compared with their checks, or of a job
        that is to go on with other parameters.

        The number of rows is taken back first: whatever a crash leaves, nothing counts as complete. The header's
        copies are written one after the other, so that one of them is whole.
        """
        self._put_total(_OPEN_END)
        self.sync()
        packed = _packed(msgspec.structs.replace(identity, moved=True), len(self._layout.identity))
        if packed is not None:  # else it stays as it is, and the rows are compared, or forced, every time
            layout = msgspec.structs.replace(self._layout, identity=packed)
            header = layout.header()
            half = len(header) // 2
            for at in (0, half):
                os.pwrite(self._fd, header[at : at + half], at)
                os.fsync(self._fd)
            self._layout = layout
        self.input_changed = False

    def _load(self) -> None:
        size = os.fstat(self._fd).st_size
        if size < self._layout.start:  # the second copy of the header was torn, so there are no rows
            _start(self.path, self._fd, self._layout)
            self._rows.drop()
            return
        saved = self._rows.load(size)
        if saved is not None:
            self._covered, self.total = saved.covered, saved.total
        scan = Scan(self._fd, self._layout, size, self._covered)
        self._rows.note(self._notes(scan))
        self._end = self._base = scan.end
        self.damaged = scan.damaged
        self.torn_bytes = size - scan.end
        if self.torn_bytes:
            os.ftruncate(self._fd, scan.end)
            os.fsync(self._fd)
        os.lseek(self._fd, scan.end, os.SEEK_SET)

    def _notes(self, scan: Scan) -> Iterator[Note]:
        for offset, index, state, check, payload in scan:
            if state == END:
                self.total = None if index == _OPEN_END else index
            else:
                yield index, OK if state == OK else FAILED, offset, check, _key(payload, index)

    @property
    def ok(self) -> int:
        return self._rows.ok

    @property
    def failed(self) -> int:
        return self._rows.failed

    def state(self, index: int) -> int:
        """Tell whether a row is done: 0, OK or FAILED."""
        return self._rows.state(index)

    @property
    def states(self) -> bytearray:
        """The states of all rows so far, a byte each: for a look at every row."""
        return self._rows.states

    def keys(self, index: int, states: bytes) -> Sequence[int]:
        """Give the ids' keys of the rows from `index` on that are in one of these states, up to the first that is not
        (or fewer)."""
        return self._rows.keys(index, states)

    def line(self, index: int) -> int:
        """Give the line on which a done row stood; 0 where that cannot be read."""
        try:
            return self.read(index).line
        except JournalError:
            return 0

    def count(self, total: int) -> tuple[int, int]:
        """Give how many of the first `total` rows are ok and how many failed: an earlier stream may have had more."""
        return self._rows.count(total)

    def check(self, index: int) -> int:
        """Give the checksum of a done row's source."""
        return self._rows.check(index)

    @property
    def backlog(self) -> int:
        """Bytes not yet written."""
        return self._appender.accepted - self._appender.written

    def when_written(self, call: Callable[[], object] | None) -> None:
        """Have something called, in another thread, each time after rows were written, or could not be."""
        self._appender.wrote = call

    @property
    def failure(self) -> JournalError | None:
        return self._appender.failure

    def append(self, index: int, ok: bool, check: int, entry: Entry) -> None:
        """Record a finished row, without waiting for the disk. JournalError once the file cannot be written."""
        self.append_all([(index, ok, check, entry)])

    def append_all(self, finished: Iterable[Finished]) -> None:
        """Do the same with several rows, which are written together."""
        offset, frame_of = self._end, self._layout.frame
        frames: list[bytes] = []
        notes: list[Note] = []
        asked = 0
        try:
            for index, ok, check, entry in finished:
                state, custom_id = OK if ok else FAILED, entry.custom_id
                frame = frame_of(offset, index, state, check, _pack(entry))
                frames.append(frame)
                notes.append((index, state, offset, check, UNKNOWN if custom_id is None else key_of(custom_id, index)))
                offset += len(frame)
                asked += entry.attempts > 0 and not entry.cached
        finally:  # whatever is wrong with one, those before it are kept
            self._put(b"".join(frames), marked=asked)
            self._rows.note(notes)
            self._cover()

    @property
    def identity(self) -> Identity:
        """Whose it is. JournalError where that cannot be read."""
        try:
            return _identity.decode(self._layout.identity)
        except msgspec.DecodeError:
            raise JournalError(f"the header of {self.path} cannot be read") from None

    @property
    def moved(self) -> bool:
        """Tell whether rows may stand elsewhere than where `line` says, since the input changed."""
        try:
            return self.identity.moved
        except JournalError:
            return True

    def finish(self, total: int) -> None:
        """Record that the input has this many rows and all are done."""
        if self.total != total:
            self._put_total(total)

    def _put_total(self, total: int) -> None:
        self._put(self._layout.frame(self._end, total, END, 0))
        self.total = None if total == _OPEN_END else total
        self._cover()

    def _put(self, frames: bytes, *, marked: int = 0) -> None:
        self._appender.put(frames, marked=marked)
        self._end += len(frames)

    def _cover(self) -> None:
        """Have the index follow, now and then."""
        if self._end - self._covered > _CHECKPOINT or self._checkpoint is not None:
            self._save()

    def _save(self) -> None:
        """Let the index cover what is in the journal: at first the pages, and when the journal is safe, the header."""
        waiting = self._checkpoint
        if waiting is None:
            self._covered = self._end
            self._checkpoint = self._rows.checkpoint(self._end, self.total)
        elif self._base + self._appender.synced >= waiting.covered:
            self._checkpoint = None
            self._join()
            self._saving = threading.Thread(target=waiting.write, name="fastllm-index", daemon=True)
            self._saving.start()

    def _join(self) -> None:
        if self._saving is not None:
            self._saving.join()
            self._saving = None

    def sync(self) -> None:
        """Wait until all that was appended is on the disk. JournalError if it is not."""
        self._appender.sync()

    def read(self, index: int) -> Entry:
        """Give back what was recorded of a done row; `sync` comes before. JournalError if it is damaged."""
        try:
            found = self._frames.read(self._rows.offset(index))
            if found is not None and found[0] == index:
                return _unpack(found[2])
        except (OSError, msgspec.DecodeError):
            pass
        self._distrust()
        raise JournalError(f"{self.path} is damaged at row {index}; run the job again: that row is asked anew")

    def as_finished(self) -> Iterator[int]:
        """Give the rows in the order in which they got their last outcome; `sync` comes before. JournalError at the end
        if one of them is damaged, of which only the index knows."""
        missing = self.ok + self.failed
        for offset, index, state, *_ in Scan(self._fd, self._layout, self._end, self._layout.start):
            if state != END and self.state(index) and self._rows.offset(index) == offset:
                missing -= 1
                yield index
        if missing:
            self._distrust()
            raise JournalError(
                f"{self.path} is damaged: {missing} of its rows cannot be read; run the job again, which asks them anew"
            )

    def _distrust(self) -> None:
        """The index knows of a row that is not there: the next run reads the journal itself."""
        self._distrusted = True
        self._join()
        self._rows.drop()

    def close(self) -> None:
        """Sync, unlock and close. Idempotent; what went wrong is in `failure`."""
        if self._fd >= 0:
            self._appender.close()
            self._join()
            if self.failure is None and not self._distrusted and self._end > self._covered:
                last = self._rows.checkpoint(self._end, self.total)
                if last is not None:
                    last.write()
            self._rows.close()
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Close it and leave no file behind; under the lock, so that nobody else's is meant."""
        if self._fd >= 0:
            self._distrust()
            self.path.unlink(missing_ok=True)
        self.close()

    def __repr__(self) -> str:
        return f"<Journal {self.path.name}: {self.ok} ok, {self.failed} failed, {self.unwritten()} to be written>"


def _open_locked(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    tries = _LOCK_TRIES
    while True:
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ConfigError(f"{path} is a symbolic link; journals are not followed") from None
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"{path} is no regular file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.lstat()):
                return fd
        except FileNotFoundError:
            pass  # replaced between open and lock: take the one that is there now
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                if not os.fstat(fd).st_size:
                    path.unlink(missing_ok=True)
                os.close(fd)
                raise ConfigError(
                    f"cannot lock {path}: {error.strerror or error}; jobs need a file system with locks (flock)"
                ) from None
            tries -= 1
            if not tries:
                os.close(fd)
                raise JobConflictError(
                    f"{path} is in use: another process is running this job; wait for it or stop it"
                ) from None
            time.sleep(_LOCK_PAUSE)  # `fastllm jobs` tries the lock, too, for a moment
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _existing_layout(path: Path, fd: int, overwrite: bool) -> Layout | None:
    """Read the header; None where the file is new, or was not finished when it was made."""
    size = os.fstat(fd).st_size
    content = os.pread(fd, min(size, _HEADER_AT_MOST), 0)
    layout = read_layout(content)
    if layout is not None:
        if layout.version > VERSION and not overwrite:
            raise JobConflictError(
                f"{path} was written by a newer FastLLM (journal version {layout.version}, this one knows {VERSION}): "
                "upgrade, or start anew with overwrite=True"
            )
        return layout
    if _was_being_made(content, size):
        return None
    if MAGIC not in content:
        raise JobConflictError(f"{path} is not a FastLLM journal; move it away or give another output")
    if overwrite:
        return None
    raise JobConflictError(f"the header of {path} is damaged; start anew with overwrite=True")


def _key(payload: memoryview, index: int) -> int:
    try:
        custom_id = _unpack_id(payload).custom_id
    except msgspec.DecodeError:
        return UNKNOWN
    return UNKNOWN if custom_id is None else key_of(custom_id, index)


def _was_being_made(content: bytes, size: int) -> bool:
    """Tell whether a header that cannot be read never was whole. Then the file ends with it: the first row comes when
    it is safe. Sectors of it may be missing, in any order; where its second half begins, its MAGIC says best."""
    if size < 32 or not content.strip(b"\0"):
        return MAGIC.startswith(content[:8]) or not content.strip(b"\0")
    half = content.find(MAGIC, 1)
    if half < 0:
        half = 32 + int.from_bytes(content[12:16], "little")
    return content[:8] in (MAGIC, bytes(8)) and size <= 2 * half


def _packed(identity: Identity, size: int) -> bytes | None:
    """Give the identity as exactly so many bytes, filled up with a field that nobody reads; None where it is longer."""
    packed = msgspec.msgpack.encode(identity)
    free = size - len(packed)
    if free == 0:
        return packed
    name = msgspec.msgpack.encode("padding")
    free -= len(name) + 5  # bin32's head
    if free < 0 or packed[0] & 0xF0 != 0x80 or packed[0] == 0x8F:  # a map of at most 15 fields
        return None
    return bytes([packed[0] + 1]) + packed[1:] + name + b"\xc6" + free.to_bytes(4, "big") + bytes(free)


def _new_layout(identity: Identity) -> Layout:
    packed = msgspec.msgpack.encode(identity)
    return new_layout(_packed(identity, len(packed) + _ROOM) or packed)


def _differences(layout: Layout, identity: Identity) -> list[str]:
    try:
        return _identity.decode(layout.identity).differences(identity)
    except msgspec.DecodeError:
        return []  # nobody can tell, and `_same_job` says so


def _same_job(path: Path, layout: Layout, identity: Identity) -> bool:
    """Tell whether the input alone differs, row by row to be compared. JobConflictError where more does."""
    try:
        before = _identity.decode(layout.identity)
    except msgspec.DecodeError:
        raise JobConflictError(f"the header of {path} cannot be read; start anew with overwrite=True") from None
    changed = before.differences(identity)
    if (
        changed
        and identity.fingerprint
        and not msgspec.structs.replace(before, fingerprint="").differences(
            msgspec.structs.replace(identity, fingerprint="")
        )
    ):
        return True
    if changed:
        raise JobConflictError(
            f"{path} belongs to a job that differs in {', '.join(changed)}: "
            "give another output, go on and keep its answers with force=True, or start anew with overwrite=True"
        )
    return False


def _start(path: Path, fd: int, layout: Layout) -> None:
    """Write the header and make it, and the file's name, safe before the first row."""
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    header = memoryview(layout.header())
    while header:
        header = header[os.write(fd, header) :]
    os.fsync(fd)
    sync_directory(path.parent)


def _hashed(text: str | None) -> str:
    return "none" if text is None else sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:60] + "…"
