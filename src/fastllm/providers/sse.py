"""Server-sent events from bytes, by the WHATWG rules, in O(n) at any split.

Lines end in LF, CR or CRLF; a blank line ends an event; `:` begins a comment. Only `event` and `data` matter here;
`id`, `retry` and unknown fields are read and dropped. Data stays bytes: the JSON layer judges its UTF-8.

What comes in is turned to LF line ends at once, so the buffer holds one unfinished line and nothing is searched twice.
Lines are found in C, many at a time: a server may send a million blank lines or comments, and they must cost little.
"""

from __future__ import annotations

import re
from itertools import repeat

from ..errors import ProtocolError

MOST_BYTES = 64 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_LF, _CR = b"\n\r"  # a number is looked for without an exception inside `in`, as a text is first tried

# Lines here stand behind a line end each, so that a field is found by its first letters.
_DATA = re.compile(rb"\ndata(?:: ?([^\n]*)|(?![^\n]))")
_EVENT = re.compile(rb"\nevent(?:: ?([^\n]*)|(?![^\n]))")
_PLAIN = re.compile(_DATA.pattern + rb"(?:\n[^de\n][^\n]*){0,3}(?=\n\n|\n?\Z)")  # and comments up to the blank line
_NAMED = re.compile(_EVENT.pattern + _PLAIN.pattern)
_SHORT = 32  # bytes of an event: a model's are longer
_FEW = 500  # bytes: below that a look at each event is quicker than at all together


class SSEDecoder:
    """Feed bytes, get (event, data) pairs; an event without a name has "".

    ProtocolError if one event, or one line of whatever kind, grows beyond `most_bytes`.
    """

    __slots__ = ("_at_start", "_data", "_event", "_line", "_most", "_swallow_lf")

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._line = bytearray()  # the unfinished line
        self._data: bytes | bytearray | None = None  # of the unfinished event; a bytearray from its second line on
        self._event = ""
        self._at_start = True  # a byte-order mark may still come
        self._swallow_lf = False  # the input so far ended in CR: an LF that follows belongs to it

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Give the events that these bytes complete."""
        if self._at_start:
            data = self._without_bom(data)
        if self._swallow_lf and data:
            self._swallow_lf = False
            data = data[1:] if data[:1] == b"\n" else data
        if _CR in data:
            self._swallow_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        cut = data.rfind(b"\n") + 1
        line = self._line
        if not cut:
            line += data
            self._check(len(line))
            return []
        text = data if cut == len(data) else data[:cut]
        if line:
            line += text
            text = bytes(line)
            line.clear()
        line += data[cut:]
        if len(text) > self._most:
            for whole in text.split(b"\n"):
                self._check(len(whole))
        return self._read(text)

    def _without_bom(self, data: bytes) -> bytes:
        head = bytes(self._line) + data
        self._line.clear()
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._line += head
            return b""
        self._at_start = False
        return head.removeprefix(_BOM)

    def _read(self, text: bytes) -> list[tuple[str, bytes]]:
        """Read whole lines: what ends the event that has begun, whole events, and what the next bytes go on with."""
        events: list[tuple[str, bytes]] = []
        append = events.append
        if self._data is not None or self._event:
            lines, blank, text = (b"\n" + text).partition(b"\n\n")
            self._add(lines)
            if not blank:
                return events
            if self._data is not None:
                append((self._event, bytes(self._data)))
            self._data, self._event = None, ""
        if len(text) <= _FEW and b"data" in text:
            blocks = text.split(b"\n\n")
            rest = blocks.pop()
        else:
            whole, _, rest = text.rpartition(b"\n\n")
            found = _alike(b"\n" + whole) if b"data" in whole else []
            events += found or ()
            blocks = whole.split(b"\n\n") if found is None else []
        known: dict[bytes, tuple[str, bytes] | None] = {}  # a read of very many short events has many that are equal
        for block in blocks:
            if len(block) <= _SHORT:
                if block not in known:
                    known[block] = self._event_of(b"\n" + block)
                if (event := known[block]) is not None:
                    append(event)
            elif _LF in block:
                name, _, data = block.partition(b"\ndata: ")
                if name.startswith(b"event: ") and _LF not in name and _LF not in data:
                    append((_text(name[7:]), data))
                elif b"data" in block and (event := self._event_of(b"\n" + block)) is not None:
                    append(event)
            elif block.startswith(b"data: "):  # nearly always
                append(("", block[6:]))
            elif block.startswith(b"data:"):
                append(("", block[5:]))
        if rest:
            self._add(rest)
        return events

    def _event_of(self, lines: bytes) -> tuple[str, bytes] | None:
        values = _DATA.findall(lines)
        if not values:
            return None
        names = _EVENT.findall(lines) if b"event" in lines else None
        data = values[0] if len(values) == 1 else b"\n".join(values)
        self._check(len(data))
        return (_text(names[-1]) if names else "", data)

    def _add(self, lines: bytes) -> None:
        """Take in lines of the unfinished event."""
        if len(lines) > _FEW:
            lines = b"\n" + lines
            if names := _EVENT.findall(lines):
                self._event = _text(names[-1])
            if values := _DATA.findall(lines):
                self._add_data(b"\n".join(values))
            return
        for line in lines.split(b"\n"):
            name, _, value = line.partition(b":")
            if name == b"data":
                value = value.removeprefix(b" ")
                if self._data is None:
                    self._data = value
                else:
                    self._add_data(value)
            elif name == b"event":
                self._event = _text(value.removeprefix(b" "))

    def _add_data(self, piece: bytes) -> None:
        if self._data is None:
            self._data = piece
        else:
            if isinstance(self._data, bytes):
                self._data = bytearray(self._data)
            self._data += b"\n"
            self._data += piece
        self._check(len(self._data))

    def _check(self, size: int) -> None:
        if size > self._most:
            raise ProtocolError(f"one event of the stream is larger than {self._most} bytes", status_code=200)

    def rest(self) -> bytes:
        """Give the data of an event that the end of the stream cut off; by the rules it is no event."""
        line = bytes(self._line)
        name, _, value = line.partition(b":")
        pieces = [bytes(self._data)] if self._data is not None else []
        return b"\n".join([*pieces, value.removeprefix(b" ")] if name == b"data" else pieces)

    def __repr__(self) -> str:
        size = len(self._line) + len(self._data or b"")
        return f"<SSEDecoder {size} B of an unfinished event>"


def written(event: str, data: bytes) -> bytes:
    """Give one event as it stands in a stream; its data must not hold a line end."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data) if event else b"data: %b\n\n" % data


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _alike(text: bytes) -> list[tuple[str, bytes]] | None:
    """Read whole events if each is one data line, with its name before it in all or in none; None if one is not."""
    count = text.count(b"\ndata")
    if b"\nevent" not in text:
        values = _PLAIN.findall(text)
        return list(zip(repeat(""), values)) if len(values) == count else None
    pairs = _NAMED.findall(text)
    if len(pairs) != count or text.count(b"\nevent") != count:
        return None
    names = {name: _text(name) for name, _ in pairs}
    return [(names[name], value) for name, value in pairs]
