"""Messages as lines: the payloads of a poll stand one per line, whatever line breaks their senders left in them."""

from collections.abc import Sequence
from itertools import accumulate

import msgspec

# Outside of texts, where JSON has neither, a line break is white space like any other.
_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")
# In a text neither may stand; a space would make one event of what is none.
_STILL_WRONG = bytes.maketrans(b"\r\n", b"\v\v")
_NULL = b"null"
_ANY = msgspec.json.Decoder(msgspec.Raw)
_RECORD = msgspec.json.Decoder(dict[str, msgspec.Raw] | list[msgspec.Raw])


def framed(values: Sequence[bytes | None]) -> tuple[bytes, list[int] | None]:
    """The block of the messages' payloads, and with which line each message ends, None where each has one line.

    A message holds one payload, also one that is written over several lines, or some, one per line (NDJSON). One
    without a value becomes `null`, which is no event and is rejected as such.
    """
    lines = [_NULL if value is None else value for value in values]
    block = b"\n".join(lines)
    if block.count(b"\n") < len(lines):
        return block, None
    parted = [_lines(value) if b"\n" in value else [value] for value in lines]
    ends = list(accumulate(map(len, parted)))
    return b"\n".join(line for message in parted for line in message), ends


def _lines(value: bytes) -> list[bytes]:
    """The payloads of a message with line breaks, at least one; what can't be read stays whole, and unreadable.

    Where the first line is JSON by itself, all of it can't be one value, so lines are payloads. Else it is one value
    over several lines, unless it is none, and some line alone can be read.
    """
    lines = [line for line in value.split(b"\n") if line.strip()]
    if len(lines) < 2:
        return lines or [b""]
    if _is_json(lines[0]):
        return lines
    if _is_json(value):
        return [value.translate(_NO_BREAKS)]
    return lines if any(map(_is_record, lines)) else [value.translate(_STILL_WRONG)]


def _is_json(text: bytes) -> bool:
    try:
        _ANY.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_record(line: bytes) -> bool:
    try:
        _RECORD.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
