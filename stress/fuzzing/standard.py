"""Event streams by the letter of the standard: what the decoder is compared with."""

from __future__ import annotations

Events = list[tuple[str, bytes]]


def reference(data: bytes) -> Events:
    """The rules as the standard words them, one character at a time, slowly."""
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    lines, line, i = [], b"", 0
    while i < len(data):
        char = data[i : i + 1]
        if char in (b"\r", b"\n"):
            lines.append(line)
            line = b""
            i += 2 if data[i : i + 2] == b"\r\n" else 1
        else:
            line += char
            i += 1
    events: Events = []
    event, buffer, any_data = b"", b"", False
    for line in lines:
        if line == b"":
            if any_data:
                events.append((event.decode("utf-8", "replace"), buffer[:-1]))
            event, buffer, any_data = b"", b"", False
        elif line[:1] != b":":
            name, colon, value = line.partition(b":")
            if colon and value[:1] == b" ":
                value = value[1:]
            if name == b"event":
                event = value
            elif name == b"data":
                buffer, any_data = buffer + value + b"\n", True
    return events
